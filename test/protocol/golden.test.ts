/** The bytes of every message, as our front end says them and as our back end understands them. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { altered, GOLDEN, GOLDEN_FRONT_END_ONLY, setProtocolFeatures } from './golden.ts';
import { FdBox, openFds, RawServer, TestServer, until } from './harness.ts';

const plain = (hex: string) => hex.replaceAll(/\s/g, '');
const ACK_REQUESTED = 9;

for (const golden of [...GOLDEN, ...GOLDEN_FRONT_END_ONLY]) {
  test(`front end: ${golden.name} has the bytes of the specification`, async () => {
    const before = openFds();
    const server = new RawServer();
    const box = new FdBox();
    const frontEnd = await FrontEnd.connect(server.path);
    const peer = await server.accept();
    const received: number[] = [];
    const fds = golden.fds?.(box) ?? [];

    const result = golden.call(frontEnd, fds);
    assert.equal(await peer.read(plain(golden.request).length / 2, received), plain(golden.request));
    assert.equal(received.length, fds.length);
    if (golden.answer !== undefined) peer.send(golden.answer);
    assert.deepEqual(await result, golden.value);
    assert.ok(peer.silent());

    frontEnd.close();
    for (const fd of received) closeSync(fd);
    for (const each of [peer, box, server]) each.close();
    assert.equal(openFds(), before);
  });
}

for (const golden of GOLDEN) {
  test(`back end: ${golden.name} is understood and answered`, async () => {
    const before = openFds();
    const server = new TestServer({ prepare: (device) => Object.assign(device, { vringBase: 0x1234 }) });
    const box = new FdBox();
    const { peer, device } = await server.connect();
    if (golden.slots) peer.send(setProtocolFeatures());

    peer.send(golden.request, golden.fds?.(box));
    if (golden.answer !== undefined)
      assert.equal(await peer.read(plain(golden.answer).length / 2), plain(golden.answer));
    if (golden.told !== undefined) {
      await until(() => device.calls.length > 0, 'the device is told');
      assert.deepEqual(device.calls, [golden.told]);
    }
    // the next message is understood: nothing too much or too little has been read
    peer.send(GOLDEN[0].request);
    assert.equal(await peer.read(20), plain(GOLDEN[0].answer as string));
    assert.deepEqual(server.problems(), []);

    box.close();
    await server.close();
    assert.equal(device.destroyed, true);
    assert.equal(openFds(), before);
  });

  test(`back end: ${golden.name} is acknowledged when REPLY_ACK is negotiated`, async () => {
    const server = new TestServer({ prepare: (device) => Object.assign(device, { vringBase: 0x1234 }) });
    const box = new FdBox();
    const { peer } = await server.connect();
    peer.send(setProtocolFeatures());
    peer.send(altered(golden.request, { flags: ACK_REQUESTED }), golden.fds?.(box));
    const ack = `${plain(golden.request).slice(0, 8)}05000000080000000000000000000000`;
    assert.equal(await peer.read(20), plain(golden.answer ?? ack));
    box.close();
    await server.close();
  });
}
