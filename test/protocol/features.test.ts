/** Conversations of single protocol features: what is told, what is answered, and in which order it may come. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { send } from '../../src/sys/unix-socket.ts';
import { featureMask } from '../../src/uapi/virtio.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import type { FakeDevice } from './fake-device.ts';
import { ALL_SERVED, altered, GOLDEN, littleEndian64, REPLY_ACK, setFeatures, setProtocolFeatures } from './golden.ts';
import { bytes, FdBox, openFds, type RawPeer, RawServer, TestServer, until } from './harness.ts';
import { prepare, settle } from './prepare.ts';

const PAGEFAULT = 1 << 8;
const SLOTS = 1 << 15;
const INFLIGHT = 1 << 12;
const STATE = 1 << 19;
const MQ = 1;

const golden = (name: string) => {
  const found = GOLDEN.find((each) => each.name === name);
  assert.ok(found !== undefined, name);
  return found;
};
const plain = (hex: string) => hex.replaceAll(/\s/g, '');

interface Parts {
  readonly peer: RawPeer;
  readonly device: FakeDevice;
  readonly server: TestServer;
  readonly box: FdBox;
}

async function withPeer(bits: number, use: (parts: Parts) => Promise<void>, setUp?: (device: FakeDevice) => void) {
  const before = openFds();
  const server = new TestServer(setUp === undefined ? {} : { prepare: setUp });
  const box = new FdBox();
  const { peer, device } = await server.connect();
  await prepare(peer, device, { needs: bits });
  await use({ peer, device, server, box });
  box.close();
  await server.close();
  assert.equal(openFds(), before);
}

test('a device that serves no protocol feature: MQ and REPLY_ACK are offered, nothing else is accepted', () =>
  withPeer(
    MQ | REPLY_ACK,
    async ({ peer, server }) => {
      peer.send(golden('GET_PROTOCOL_FEATURES').request);
      assert.equal(await peer.read(20), `0f0000000500000008000000${littleEndian64(9n)}`);
      peer.send(setProtocolFeatures(SLOTS));
      await peer.untilClosed();
      assert.match(server.problems()[0], /SET_PROTOCOL_FEATURES: feature bits that were not offered: 15/);
    },
    (device) => Object.assign(device, { protocolFeatures: 0n }),
  ));

test('address space and in-band notifications: the device hears of each change, once', () =>
  withPeer(0, async ({ peer, device }) => {
    for (const bits of [ALL_SERVED, ALL_SERVED, MQ, 0, 1 << 21]) peer.send(setProtocolFeatures(bits));
    await settle(peer);
    assert.deepEqual(device.calls, [
      ['setAddressSpace', 'guest'],
      ['setInBand', true],
      ['setAddressSpace', 'frontend'],
      ['setInBand', false],
      ['setAddressSpace', 'guest'],
    ]);
  }));

test('POSTCOPY_LISTEN without REPLY_ACK: acknowledged all the same, as QEMU expects', () =>
  withPeer(PAGEFAULT, async ({ peer, device }) => {
    await prepare(peer, device, { before: [golden('POSTCOPY_ADVISE')] });
    peer.send(altered(golden('POSTCOPY_LISTEN').request, { flags: 9 }));
    assert.equal(await peer.read(20), `1d0000000500000008000000${littleEndian64(0n)}`);
  }));

for (const [what, ack] of [
  ['empty, as the specification has it', '05000000 01000000 00000000'],
  ['64 bits of 0, as QEMU sends it', '05000000 01000000 08000000 0000000000000000'],
] as const) {
  test(`postcopy: the acknowledgement of addresses, ${what}, makes the device ready`, () =>
    withPeer(PAGEFAULT, async ({ peer, device, box, server }) => {
      const table = golden('SET_MEM_TABLE in postcopy');
      await prepare(peer, device, table);
      peer.send(table.request, table.fds?.(box));
      await peer.read(plain(table.answer as string).length / 2);
      peer.send(ack);
      await settle(peer);
      assert.deepEqual(device.calls, [table.told, ['postcopyReady']]);
      assert.deepEqual(server.problems(), []);
    }));
}

test('postcopy: a table sent whole is answered whole', () =>
  withPeer(PAGEFAULT, async ({ peer, device, box }) => {
    const table = golden('SET_MEM_TABLE in postcopy');
    await prepare(peer, device, table);
    peer.send(altered(table.request, { size: 8 + 8 * 32 }), table.fds?.(box));
    assert.equal(await peer.read(12 + 8 + 8 * 32), altered(table.answer as string, { size: 8 + 8 * 32 }));
  }));

test('postcopy: before the addresses are acknowledged, nothing else may come', () =>
  withPeer(PAGEFAULT | REPLY_ACK, async ({ peer, device, box, server }) => {
    const table = golden('SET_MEM_TABLE in postcopy');
    await prepare(peer, device, { ...table, more: REPLY_ACK });
    peer.send(table.request, table.fds?.(box));
    await peer.read(plain(table.answer as string).length / 2);
    peer.send(altered(golden('SET_VRING_KICK without a descriptor').request, { flags: 9 }));
    assert.equal(await peer.read(20), `0c0000000500000008000000${littleEndian64(1n)}`);
    assert.match(server.problems()[0], /SET_VRING_KICK: the addresses of guest memory have not been acknowledged/);
    assert.deepEqual(device.calls, [table.told]);
  }));

test('postcopy: a front end that cannot use the addresses: the connection closes', () =>
  withPeer(PAGEFAULT, async ({ peer, device, box, server }) => {
    const table = golden('SET_MEM_TABLE in postcopy');
    await prepare(peer, device, table);
    peer.send(table.request, table.fds?.(box));
    await peer.read(plain(table.answer as string).length / 2);
    peer.send(`050000000100000008000000${littleEndian64(1n)}`);
    await peer.untilClosed();
    assert.match(server.problems()[0], /SET_MEM_TABLE: the front end cannot use the addresses of its memory/);
  }));

test('postcopy with memory slots, as QEMU does it: each region is answered with its address, all acknowledged at the end', () =>
  withPeer(PAGEFAULT | SLOTS, async ({ peer, device, box, server }) => {
    const add = golden('ADD_MEM_REG');
    await prepare(peer, device, { before: [golden('POSTCOPY_ADVISE'), golden('POSTCOPY_LISTEN')] });
    peer.send(add.request, add.fds?.(box));
    const answer = `250000000500000028000000${plain(add.request).slice(24)}`;
    assert.equal(await peer.read(52), answer.replace('00000000227f0000', '0000000000780000'));
    peer.send(`250000000100000008000000${littleEndian64(0n)}`);
    await settle(peer);
    assert.deepEqual(device.calls, [add.told, ['postcopyReady']]);
    assert.deepEqual(server.problems(), []);
  }));

test('postcopy from beginning to end, as our front end does it', async () => {
  const before = openFds();
  const server = new TestServer();
  const box = new FdBox();
  const frontEnd = await FrontEnd.connect(server.path);
  await until(() => server.devices.length === 1, 'the device is created');
  await frontEnd.setProtocolFeatures(BigInt(PAGEFAULT | REPLY_ACK));
  closeSync(await frontEnd.postcopyAdvise());
  await frontEnd.postcopyListen();
  const region = { guestAddr: 0, size: 0x1000, frontendAddr: 0x5000, fileOff: 0, fd: box.memfd() };
  assert.deepEqual(await frontEnd.setMemTablePostcopy([region]), [0x7000_0000_0000]);
  await frontEnd.postcopyReady();
  await frontEnd.postcopyEnd();
  await frontEnd.setMemTable([region]);
  assert.deepEqual(
    server.devices[0].calls.map(([name]) => name),
    ['postcopyAdvise', 'postcopyListen', 'setMemory', 'postcopyReady', 'postcopyEnd', 'setMemory'],
  );
  server.devices[0].failNext = new Error('no userfaultfd');
  await assert.rejects(frontEnd.postcopyAdvise(), /POSTCOPY_ADVISE: the back end refuses: no file descriptor came/);
  frontEnd.close();
  box.close();
  await server.close();
  assert.equal(openFds(), before);
});

test('GET_INFLIGHT_FD a thousand times: nothing leaks (CVE-2020-10726)', () =>
  withPeer(INFLIGHT, async ({ peer, device }) => {
    const before = openFds();
    const ask = golden('GET_INFLIGHT_FD');
    for (let i = 0; i < 1000; i++) {
      const fds: number[] = [];
      peer.send(ask.request);
      assert.equal(await peer.read(36, fds), plain(ask.answer as string));
      assert.equal(fds.length, 1);
      closeSync(fds[0]);
    }
    assert.equal(device.calls.length, 1000);
    assert.equal(openFds(), before);
  }));

test('GET_INFLIGHT_FD without the padding of the C struct: answered without it', () =>
  withPeer(INFLIGHT, async ({ peer }) => {
    const ask = golden('GET_INFLIGHT_FD');
    const fds: number[] = [];
    peer.send(altered(ask.request, { size: 20 }));
    assert.equal(await peer.read(32, fds), altered(ask.answer as string, { size: 20 }));
    for (const fd of fds) closeSync(fd);
  }));

test('answers with descriptors left unread: the connection is closed at a bound of them', () =>
  withPeer(INFLIGHT, async ({ peer, device, server }) => {
    const before = openFds();
    let most = 0;
    const request = bytes(golden('GET_INFLIGHT_FD').request.repeat(16));
    while (!device.destroyed) {
      try {
        send(peer.fd, request);
      } catch {
        break; // closed
      }
      await sleep(0);
      most = Math.max(most, openFds() - before);
    }
    await until(() => device.destroyed, 'the device is destroyed');
    assert.match(server.problems()[0], /the peer left \d+ bytes and 9 file descriptors unread; connection closed/);
    assert.ok(most <= 9, `${most} descriptors were open`);
  }));

const iotlb = (iova: bigint, size: bigint) =>
  `160000000100000020000000${[iova, size, 0n].map(littleEndian64).join('')}0003000000000000`;
const LIMIT = 2 ** 53;

test('invalidating all there is, beyond 2^53, and across it: the device hears of what it can have', () =>
  withPeer(0, async ({ peer, device }) => {
    await prepare(peer, device, { features: featureMask(33) });
    for (const [iova, size, told] of [
      [0n, 0n, [0, LIMIT]],
      [0n, (1n << 64n) - 1n, [0, LIMIT]],
      [BigInt(LIMIT) - 0x1000n, 1n << 60n, [LIMIT - 0x1000, 0x1000]],
      [BigInt(LIMIT), 0x1000n, undefined],
      [(1n << 64n) - 1n, (1n << 64n) - 1n, undefined],
      [0x1000n, 0n, undefined],
    ] as const) {
      device.calls.length = 0;
      peer.send(iotlb(iova, size));
      assert.equal(await peer.read(20), `160000000500000008000000${littleEndian64(0n)}`);
      assert.deepEqual(device.calls, told === undefined ? [] : [['invalidateIotlb', ...told]]);
    }
  }));

test('RESET_DEVICE: what was negotiated with the driver is over, memory slots are not', () =>
  withPeer(SLOTS | (1 << 13), async ({ peer, device, box }) => {
    await prepare(peer, device, { features: featureMask(33) });
    const add = golden('ADD_MEM_REG');
    peer.send(add.request, add.fds?.(box));
    peer.send(golden('RESET_DEVICE').request);
    peer.send(iotlb(0n, 0n));
    assert.equal(await peer.read(20), `160000000500000008000000${littleEndian64(1n)}`);
    peer.send(setFeatures(featureMask(33)));
    peer.send(iotlb(0n, 0n));
    assert.equal(await peer.read(20), `160000000500000008000000${littleEndian64(0n)}`);
    peer.send(golden('REM_MEM_REG').request);
    await settle(peer);
    const names = device.calls.map(([name]) => name);
    assert.deepEqual(names, ['addMemory', 'resetRings', 'setFeatures', 'invalidateIotlb', 'removeMemory']);
  }));

test('a state transfer that never ends: closing does not wait for it', () =>
  withPeer(
    STATE,
    async ({ peer, device, server }) => {
      peer.send(golden('CHECK_DEVICE_STATE').request);
      await until(() => device.calls.length === 1, 'the device is asked');
      await server.server.close();
      assert.deepEqual(device.calls, [['checkState'], ['destroy']]);
      assert.deepEqual(server.problems(), []);
    },
    (device) => Object.assign(device, { transfer: new Promise(() => {}) }),
  ));

test('config space that the device does not have: our front end hears the refusal', async () => {
  const server = new TestServer();
  const frontEnd = await FrontEnd.connect(server.path);
  await frontEnd.setProtocolFeatures(1n << 9n);
  await assert.rejects(frontEnd.getConfig(18, 4), /GET_CONFIG: the back end refuses/);
  assert.deepEqual(await frontEnd.getConfig(16, 4), Uint8Array.of(17, 18, 19, 20));
  frontEnd.close();
  await server.close();
});

test('an answer with a descriptor too many, or in the wrong place: our front end keeps none', async () => {
  const before = openFds();
  const server = new RawServer();
  const box = new FdBox();
  const frontEnd = await FrontEnd.connect(server.path);
  const peer = await server.accept();
  const answers: [Promise<unknown>, string, number, RegExp | undefined][] = [
    [frontEnd.getFeatures(), golden('GET_FEATURES').answer as string, 3, undefined],
    [frontEnd.postcopyAdvise(), golden('POSTCOPY_ADVISE').answer as string, 2, /2 file descriptors came, not 1/],
    [
      frontEnd.getInflightFd(4, 256),
      altered(golden('GET_INFLIGHT_FD').answer as string, { size: 8 }),
      1,
      /payload is 8/,
    ],
    [
      frontEnd.setDeviceStateFd('save', box.pipe()[1]),
      `2a0000000500000008000000${littleEndian64(0x101n)}`,
      1,
      /the back end refuses \(answer 257\)/,
    ],
  ];
  for (const [asked, answer, fds, says] of answers) {
    peer.send(answer, box.many(fds));
    if (says === undefined) await asked;
    else await assert.rejects(asked, says);
  }
  frontEnd.close();
  for (const each of [peer, box, server]) each.close();
  assert.equal(openFds(), before);
});
