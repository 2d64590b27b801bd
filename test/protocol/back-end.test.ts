/** What the back end makes of messages in all the orders that real front ends send them in. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ProtocolError } from '../../src/errors.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { refusal } from './fake-device.ts';
import { altered, GOLDEN, setProtocolFeatures } from './golden.ts';
import { FdBox, openFds, TestServer, until } from './harness.ts';

const BIT_30 = featureMask(30);
const V1 = featureMask(VIRTIO_F_VERSION_1);
const region = (guestAddr: number, fd: number) => ({
  guestAddr,
  size: 0x1000,
  frontendAddr: guestAddr,
  fileOff: 0,
  fd,
});

async function withFrontEnd(
  use: (frontEnd: FrontEnd, server: TestServer, box: FdBox) => Promise<void>,
  options?: ConstructorParameters<typeof TestServer>[0],
): Promise<void> {
  const before = openFds();
  const server = new TestServer(options);
  const box = new FdBox();
  const frontEnd = await FrontEnd.connect(server.path);
  await until(() => server.devices.length === 1, 'the device is created');
  await use(frontEnd, server, box);
  frontEnd.close();
  box.close();
  await server.close();
  assert.ok(server.devices.every((device) => device.destroyed));
  assert.equal(openFds(), before);
}

test('features without bit 30: the device hears that rings begin enabled', () =>
  withFrontEnd(async (frontEnd, { devices }) => {
    await frontEnd.setFeatures(V1);
    await frontEnd.getFeatures();
    assert.deepEqual(devices[0].calls, [['setFeatures', V1, false]]);
  }));

test('SET_VRING_ENABLE before features and memory, and repeated SET_VRING_CALL: all reach the device in order', () =>
  withFrontEnd(async (frontEnd, { devices }, box) => {
    await frontEnd.setVringCall(0, box.eventfd());
    await frontEnd.setVringEnable(0, true);
    await frontEnd.setVringCall(0, box.eventfd());
    await frontEnd.setFeatures(V1 | BIT_30);
    await frontEnd.getFeatures();
    assert.deepEqual(
      devices[0].calls.map(([name]) => name),
      ['setVringCall', 'setVringEnable', 'setVringCall', 'setFeatures'],
    );
  }));

test('GET_VRING_BASE of a ring that was never set up: answered', () =>
  withFrontEnd(async (frontEnd) => {
    assert.equal(await frontEnd.getVringBase(3), 0);
  }));

test('a ring of 0 descriptors, as DPDK names those it does not use: the device decides', () =>
  withFrontEnd(async (frontEnd, { devices }) => {
    await frontEnd.setVringNum(3, 0);
    await frontEnd.getFeatures();
    assert.deepEqual(devices[0].calls, [['setVringNum', 3, 0]]);
  }));

test('SET_PROTOCOL_FEATURES that nobody asked for, before SET_FEATURES: accepted', () =>
  withFrontEnd(async (frontEnd, server) => {
    await frontEnd.setProtocolFeatures(0x8n);
    await frontEnd.setOwner();
    assert.deepEqual(server.problems(), []);
  }));

test('an acknowledgement asked for without REPLY_ACK: none is sent', async () => {
  const server = new TestServer();
  const { peer } = await server.connect();
  peer.send(altered('03000000 09000000 00000000', {}));
  peer.send(GOLDEN[0].request);
  assert.equal((await peer.read(20)).slice(0, 8), '01000000');
  await server.close();
});

test('SET_MEM_TABLE sent whole, with room for 8 regions: the first nregions count', async () => {
  const server = new TestServer();
  const box = new FdBox();
  const { peer, device } = await server.connect();
  const table = GOLDEN.find(({ name }) => name === 'SET_MEM_TABLE');
  peer.send(altered(table?.request as string, { size: 8 + 8 * 32 }), [box.memfd(), box.memfd()]);
  await until(() => device.calls.length > 0, 'the device is told');
  assert.deepEqual(device.calls, [table?.told]);
  box.close();
  await server.close();
});

test('REM_MEM_REG with a descriptor: it is closed, the region removed', async () => {
  const before = openFds();
  const server = new TestServer();
  const box = new FdBox();
  const { peer, device } = await server.connect();
  const removal = GOLDEN.find(({ name }) => name === 'REM_MEM_REG');
  peer.send(setProtocolFeatures());
  peer.send(removal?.request as string, [box.memfd()]);
  await until(() => device.calls.length > 0, 'the device is told');
  assert.deepEqual(device.calls, [removal?.told]);
  box.close();
  await server.close();
  assert.equal(openFds(), before);
});

test('509 memory slots: filled one by one, the 510th refused, a removed one usable again', () =>
  withFrontEnd(async (frontEnd, { devices }, box) => {
    await frontEnd.setProtocolFeatures(0x8008n);
    const fd = box.memfd();
    const slots = await frontEnd.getMaxMemSlots();
    assert.equal(slots, 509);
    for (let i = 0; i < slots; i++) await frontEnd.addMemReg(region(i * 0x1000, fd));
    await assert.rejects(frontEnd.addMemReg(region(0x1000_0000, fd)), { code: 'PROTOCOL_REPLY' });
    await frontEnd.remMemReg(region(0x5000, fd));
    await assert.rejects(frontEnd.addMemReg(region(0x6000, box.memfd())), { code: 'PROTOCOL_REPLY' }, 'still overlaps');
    await frontEnd.addMemReg(region(0x5000, fd));
    assert.equal(devices[0].calls.length, slots + 2);
  }));

test('a region added once a queue pair, as QEMU up to 8 does: it is there once, and gone when it was taken away as often', () =>
  withFrontEnd(async (frontEnd, { devices }, box) => {
    await frontEnd.setProtocolFeatures(0x8008n);
    const one = region(0x1000, box.memfd());
    for (let pair = 0; pair < 3; pair++) await frontEnd.addMemReg(one);
    const told = (what: string) => devices[0].calls.filter(([name]) => name === what).length;
    assert.equal(told('addMemory'), 1);
    await assert.rejects(frontEnd.addMemReg({ ...one, fd: box.memfd() }), { code: 'PROTOCOL_REPLY' }, 'another file');
    for (let pair = 0; pair < 3; pair++) {
      assert.equal(told('removeMemory'), 0);
      await frontEnd.remMemReg(one);
    }
    assert.equal(told('removeMemory'), 1);
  }));

test('RESET_OWNER, as some versions of QEMU send it when the guest reboots: rings are disabled, memory stays', () =>
  withFrontEnd(async (frontEnd, { devices }, box) => {
    await frontEnd.setProtocolFeatures(0x8008n);
    await frontEnd.addMemReg(region(0, box.memfd()));
    await frontEnd.resetOwner();
    await assert.rejects(frontEnd.addMemReg(region(0, box.memfd())), { code: 'PROTOCOL_REPLY' }, 'the region is there');
    const disabled = [0, 1, 2, 3].map((vring) => ['setVringEnable', vring, false]);
    assert.deepEqual(devices[0].calls.slice(1), disabled);
  }));

test('a device that refuses: the front end hears it and the connection lives on', () =>
  withFrontEnd(async (frontEnd, server) => {
    await frontEnd.setProtocolFeatures(0x8n);
    server.devices[0].failNext = refusal();
    await assert.rejects(frontEnd.setVringNum(0, 256), (error: ProtocolError) => {
      assert.equal(error.message, 'SET_VRING_NUM: the back end refuses (answer 1)');
      return error.code === 'PROTOCOL_REPLY' && error.request === 'SET_VRING_NUM';
    });
    await frontEnd.setVringNum(0, 256);
    assert.deepEqual(server.problems(), ['error device 0: SET_VRING_NUM: the device refuses; request refused']);
  }));

test('a device that refuses, without REPLY_ACK: the connection closes', () =>
  withFrontEnd(async (frontEnd, server) => {
    server.devices[0].failNext = new TypeError('a bug');
    await frontEnd.setVringNum(0, 256);
    await frontEnd.onClose;
    await until(() => server.devices[0].destroyed, 'the device is destroyed');
    assert.deepEqual(server.problems(), ['error device 0: SET_VRING_NUM: a bug; connection closed']);
  }));

test('a front end gone while the device is at work: destroy waits for the call', () =>
  withFrontEnd(
    async (frontEnd, { devices }) => {
      await frontEnd.setVringNum(0, 256);
      frontEnd.close();
      await until(() => devices[0].destroyed, 'the device is destroyed');
      assert.deepEqual(devices[0].calls, [['setVringNum', 0, 256], ['destroy']]);
    },
    { prepare: (device) => Object.assign(device, { delayMs: 20 }) },
  ));

test('a slow device: messages wait their turn, other connections do not', () =>
  withFrontEnd(
    async (frontEnd, server) => {
      const slow = Promise.all([frontEnd.setVringNum(0, 8), frontEnd.setVringNum(1, 16), frontEnd.getVringBase(0)]);
      const other = await FrontEnd.connect(server.path);
      const start = performance.now();
      await other.getFeatures();
      assert.ok(performance.now() - start < 60, 'the other connection waited');
      await slow;
      assert.deepEqual(server.devices[0].calls, [
        ['setVringNum', 0, 8],
        ['setVringNum', 1, 16],
        ['getVringBase', 0, true],
      ]);
      other.close();
    },
    { prepare: (device) => Object.assign(device, { delayMs: 40 }) },
  ));

test('a hostile front end cannot flood the log: lines are counted instead', () =>
  withFrontEnd(async (frontEnd, server) => {
    await frontEnd.setProtocolFeatures(0x8n);
    for (let i = 0; i < 200; i++) await assert.rejects(frontEnd.setVringNum(99, 256));
    frontEnd.close();
    await until(() => server.devices[0].destroyed, 'the device is destroyed');
    await sleep(1);
    const problems = server.problems();
    assert.ok(problems.length < 30, `${problems.length} lines`);
    assert.match(problems.at(-1) as string, /^warn device 0: 1\d\d more lines like this suppressed$/);
  }));

test('SET_VRING_NUM and SET_VRING_CALL a thousand times: nothing leaks', () =>
  withFrontEnd(async (frontEnd, server, box) => {
    const before = openFds();
    const fd = box.eventfd();
    for (let i = 0; i < 1000; i++) {
      await frontEnd.setVringNum(0, 256);
      await frontEnd.setVringCall(0, fd);
    }
    await frontEnd.getFeatures();
    assert.equal(server.devices[0].calls.length, 2000);
    assert.equal(openFds(), before + 1);
  }));
