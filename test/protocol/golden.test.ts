/** The bytes of every message, as our front end says them and as our back end understands them. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { REQUEST, type RequestName } from '../../src/uapi/vhost-user.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import type { FakeDevice } from './fake-device.ts';
import { altered, GOLDEN, REPLY_ACK } from './golden.ts';
import { FdBox, openFds, RawServer, TestServer, until } from './harness.ts';
import { bytesIn, prepare, settle } from './prepare.ts';

const plain = (hex: string) => hex.replaceAll(/\s/g, '');
const ACK_REQUESTED = 9;
const withBase = (device: FakeDevice) => Object.assign(device, { vringBase: 0x1234 });

test('every request of the specification that a net device may get has golden bytes', () => {
  const others: readonly RequestName[] = [
    ...(['CREATE_CRYPTO_SESSION', 'CLOSE_CRYPTO_SESSION'] as const),
    ...(['GPU_SET_SOCKET', 'GET_SHARED_OBJECT', 'GET_SHMEM_CONFIG'] as const),
  ];
  const golden = new Set(GOLDEN.map(({ request }) => Buffer.from(plain(request), 'hex').readUInt32LE(0)));
  const missing = (Object.keys(REQUEST) as RequestName[]).filter((name) => !golden.has(REQUEST[name]));
  assert.deepEqual(missing.sort(), [...others].sort());
});

for (const golden of GOLDEN) {
  test(`front end: ${golden.name} has the bytes of the specification`, async () => {
    const before = openFds();
    const server = new RawServer();
    const box = new FdBox();
    const frontEnd = await FrontEnd.connect(server.path);
    const peer = await server.accept();
    if (golden.needs !== undefined) {
      await frontEnd.setProtocolFeatures(BigInt(golden.needs & ~REPLY_ACK));
      await peer.read(20);
    }
    const received: number[] = [];
    const fds = golden.fds?.(box) ?? [];

    const result = golden.call(frontEnd, fds);
    const request = golden.askedFlags ? altered(golden.request, { flags: ACK_REQUESTED }) : plain(golden.request);
    assert.equal(await peer.read(bytesIn(request), received), request);
    assert.equal(received.length, golden.ownFds ?? fds.length);
    if (golden.answer !== undefined) peer.send(golden.answer, box.many(golden.answerFds ?? 0));
    assert.deepEqual(await result, golden.value);
    assert.ok(peer.silent());

    frontEnd.close();
    for (const fd of received) closeSync(fd);
    for (const each of [peer, box, server]) each.close();
    assert.equal(openFds(), before);
  });

  test(`back end: ${golden.name} is understood and answered`, async () => {
    const before = openFds();
    const server = new TestServer({ prepare: withBase });
    const box = new FdBox();
    const { peer, device } = await server.connect();
    await prepare(peer, device, golden);

    const received: number[] = [];
    peer.send(golden.request, golden.fds?.(box));
    if (golden.answer !== undefined) {
      assert.equal(await peer.read(bytesIn(golden.answer), received), plain(golden.answer));
    }
    assert.equal(received.length, golden.answerFds ?? 0);
    if (golden.told !== undefined) {
      await until(() => device.calls.length > 0, 'the device is told');
      assert.deepEqual(device.calls, [golden.told]);
    }
    for (const { request, told } of golden.after ?? []) {
      peer.send(request);
      await until(() => device.calls.length > 1, 'the device is told what follows');
      assert.deepEqual(device.calls.at(-1), told);
    }
    await settle(peer); // the next message is understood: nothing too much or too little has been read
    assert.deepEqual(server.problems(), []);

    for (const fd of received) closeSync(fd);
    box.close();
    await server.close();
    assert.equal(device.destroyed, true);
    assert.equal(openFds(), before);
  });

  test(`back end: ${golden.name} is acknowledged when REPLY_ACK is negotiated`, async () => {
    const server = new TestServer({ prepare: withBase });
    const box = new FdBox();
    const { peer, device } = await server.connect();
    await prepare(peer, device, { ...golden, more: REPLY_ACK });
    peer.send(altered(golden.request, { flags: ACK_REQUESTED }), golden.fds?.(box));
    const ack = `${plain(golden.request).slice(0, 8)}05000000080000000000000000000000`;
    const received: number[] = [];
    const expected = plain(golden.answer ?? ack);
    assert.equal(await peer.read(bytesIn(expected), received), expected);
    for (const { request } of golden.after ?? []) peer.send(request);
    await settle(peer);
    for (const fd of received) closeSync(fd);
    box.close();
    await server.close();
  });

  if (golden.told === undefined) continue;
  test(`back end: ${golden.name}, when the device refuses, is answered with the failure or closes`, async () => {
    const before = openFds();
    for (const asked of [false, true]) {
      const server = new TestServer({ prepare: withBase });
      const box = new FdBox();
      const { peer, device } = await server.connect();
      await prepare(peer, device, { ...golden, more: asked ? REPLY_ACK : 0 });
      device.failNext = new TypeError('a bug');
      peer.send(asked ? altered(golden.request, { flags: ACK_REQUESTED }) : golden.request, golden.fds?.(box));
      const refused = `${plain(golden.request).slice(0, 8)}05000000080000000100000000000000`;
      const mayRefuse = asked && golden.answer === undefined ? refused : undefined;
      const failure = golden.failure?.(asked) ?? mayRefuse;

      if (failure !== undefined) {
        const expected = plain(failure);
        assert.equal(await peer.read(bytesIn(expected)), expected);
        await settle(peer);
      } else {
        await peer.untilClosed();
      }
      assert.match(server.problems()[0], /^error device 0: [A-Z_]+: a bug; (request refused|connection closed)$/);
      box.close();
      await server.close();
    }
    assert.equal(openFds(), before);
  });
}
