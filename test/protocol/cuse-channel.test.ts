/** Agreeing with the kernel on a device, and what becomes of it. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { SwitchError } from '../../src/errors.ts';
import { CUSE_INIT, CUSE_INIT_OUT, FUSE_DESTROY, FUSE_IN_HEADER, FUSE_OPEN } from '../../src/uapi/fuse.ts';
import { VHOST_GET_FEATURES, VHOST_SET_FEATURES, VHOST_SET_OWNER } from '../../src/uapi/vhost-ioctl.ts';
import { CuseChannel } from '../../src/vhost-cuse/cuse-channel.ts';
import { CuseBench, u64, VhostCaller } from '../kit/cuse-bench.ts';
import { FakeCuse } from '../kit/fake-cuse.ts';
import { FakeDevice } from './fake-device.ts';
import { openFds, until } from './harness.ts';

const someDevice = () => new FakeDevice();
const refusal = (message: RegExp) => (error: unknown) =>
  error instanceof SwitchError && error.code === 'CUSE_REFUSED' && message.test(error.message);

test('cuse: the smaller of both minor versions is agreed on, and the device is named', async () => {
  for (const [minor, agreed] of [
    [16, 16],
    [31, 31],
    [38, 38],
    [45, 38],
  ]) {
    const bench = new CuseBench({ createDevice: someDevice });
    const { error, body } = await bench.kernel.init({ minor });
    const { major, minor: at, flags } = CUSE_INIT_OUT.off;
    assert.deepEqual(
      [error, body.getUint32(major, true), body.getUint32(at, true), body.getUint32(flags, true)],
      [0, 7, agreed, 1],
    );
    assert.equal(bench.kernel.devName, 'usvhost-1');
    await bench.server.ready;
    await bench.close();
  }
});

test('cuse: a kernel whose protocol is not spoken here is refused in words', async () => {
  const before = openFds();
  const init = (...words: number[]) => new Uint8Array(new Uint32Array(words).buffer);
  const bad: readonly (readonly [number, Uint8Array, RegExp])[] = [
    [CUSE_INIT, init(6, 38, 0, 1), /the kernel speaks FUSE 6\.38, it must be 7\.16 or a later 7/],
    [CUSE_INIT, init(8, 0, 0, 1), /the kernel speaks FUSE 8\.0/],
    [CUSE_INIT, init(7, 11, 0, 1), /the kernel speaks FUSE 7\.11/],
    [CUSE_INIT, init(7, 38, 0, 0), /without unrestricted ioctls/],
    [CUSE_INIT, init(7, 38, 0), /CUSE_INIT is cut off/],
    [FUSE_OPEN, init(0, 0), /request 14 came before CUSE_INIT/],
  ];
  for (const [opcode, body, message] of bad) {
    const bench = new CuseBench({ createDevice: someDevice });
    bench.kernel.sendRaw(bench.kernel.bytesOf(opcode, body, 2n));
    await assert.rejects(bench.server.ready, refusal(message));
    await bench.close();
  }
  assert.equal(openFds(), before);
});

test('cuse: bytes that are no request cost the device, with everything closed', async () => {
  const before = openFds();
  const kernel = new FakeCuse();
  const long = kernel.bytesOf(FUSE_OPEN, new Uint8Array(8), 2n);
  await kernel.close();
  closeSync(kernel.deviceFd);
  for (const bytes of [new Uint8Array(1), long.slice(0, FUSE_IN_HEADER.size - 1), Uint8Array.of(...long, 0)]) {
    const device = new FakeDevice();
    const bench = await CuseBench.start({ createDevice: () => device });
    await bench.kernel.open();
    bench.kernel.sendRaw(bytes);
    await until(() => device.destroyed && bench.gone.length === 1, 'the device is gone');
    assert.match(bench.gone[0], /a request has a length other than its header says/);
    assert.equal(bench.server.connectionCount, 0);
    await bench.close();
  }
  assert.equal(openFds(), before);
});

test('cuse: when the kernel gives the device up, all opens end', async () => {
  for (const how of ['close', 'destroy'] as const) {
    const devices: FakeDevice[] = [];
    const createDevice = () => {
      devices.push(new FakeDevice());
      return devices.at(-1);
    };
    const bench = await CuseBench.start({ createDevice });
    for (let i = 0; i < 3; i++) await bench.kernel.open();
    if (how === 'close') await bench.kernel.close();
    else bench.kernel.sendRaw(bench.kernel.bytesOf(FUSE_DESTROY, new Uint8Array(0), 99n));
    await until(() => bench.gone.length === 1, 'the switch hears of it');
    assert.deepEqual(
      devices.map(({ destroyed }) => destroyed),
      [true, true, true],
    );
    assert.match(bench.refusals.join(), /^\/dev\/usvhost-1: the kernel has taken it away/);
    await bench.close();
  }
});

test('cuse: when the kernel takes the device away before it is made, whoever waits for it hears', async () => {
  const bench = new CuseBench({ createDevice: someDevice });
  await bench.kernel.close();
  await assert.rejects(bench.server.ready, refusal(/^\/dev\/usvhost-1 cannot be made: the kernel has closed it$/));
  await bench.close();
});

test('cuse: closing takes the device from all who have it open', async () => {
  const before = openFds();
  const devices: FakeDevice[] = [];
  const createDevice = () => {
    devices.push(new FakeDevice());
    return devices.at(-1);
  };
  const bench = await CuseBench.start({ createDevice });
  for (let i = 0; i < 2; i++) await new VhostCaller(bench.kernel, await bench.kernel.open()).must(VHOST_SET_OWNER);
  await bench.server.close();
  assert.deepEqual(
    devices.map(({ destroyed }) => destroyed),
    [true, true],
  );
  assert.deepEqual(bench.gone, []);
  await bench.close();
  assert.equal(openFds(), before);
});

test('cuse: every open has a device of its own, as many as there are', async () => {
  const devices: FakeDevice[] = [];
  const createDevice = () => {
    if (devices.length === 3) return undefined;
    devices.push(new FakeDevice());
    return devices.at(-1);
  };
  const bench = await CuseBench.start({ createDevice });
  const opens = [];
  for (let i = 0; i < 3; i++) opens.push(await VhostCaller.open(bench.kernel));
  assert.equal(await bench.kernel.open(), -16n);
  assert.match(bench.refusals.join(), /open 3: refused, there is no device for it/);
  assert.deepEqual([bench.server.connectionCount, new Set(opens.map(({ handle }) => handle)).size], [3, 3]);
  await opens[1].must(VHOST_SET_FEATURES, u64(1n << 32n));
  assert.deepEqual(
    devices.map(({ calls }) => calls.length),
    [0, 1, 0],
  );
  assert.equal(await opens[1].release(), 0);
  assert.deepEqual([bench.server.connectionCount, devices[1].destroyed, devices[0].destroyed], [2, true, false]);
  assert.equal(await opens[1].release(), -9);
  await bench.close();
});

test('cuse: a device that fails to be made, or to be destroyed, costs its opener only', async () => {
  const device = new FakeDevice();
  let made = 0;
  const bench = await CuseBench.start({
    createDevice: () => {
      if (made++ === 0) throw new Error('no room');
      return device;
    },
  });
  assert.equal(await bench.kernel.open(), -16n);
  assert.match(bench.refusals.join(), /no device could be created: no room/);
  const caller = await VhostCaller.open(bench.kernel);
  device.failNext = new Error('stuck');
  assert.equal(await caller.release(), 0);
  assert.match(bench.refusals.join(), /not destroyed cleanly: stuck/);
  await bench.close();
});

test('cuse: a device that is taken away answers ENODEV until it is closed', async () => {
  const device = new FakeDevice();
  const bench = await CuseBench.start({ createDevice: () => device });
  const caller = await VhostCaller.open(bench.kernel);
  bench.server.disconnect(new FakeDevice());
  assert.equal(await caller.call(VHOST_SET_OWNER), 0);
  bench.server.disconnect(device);
  await until(() => device.destroyed, 'the device is gone');
  assert.equal(await caller.call(VHOST_GET_FEATURES, new Uint8Array(8)), -19);
  assert.equal(await caller.release(), 0);
  await bench.close();
});

test('cuse: ioctls from many threads at once are done one after the other', async () => {
  const device = new FakeDevice();
  const bench = await CuseBench.start({ createDevice: () => device });
  const caller = await VhostCaller.open(bench.kernel);
  const results = await Promise.all(Array.from({ length: 400 }, () => caller.call(VHOST_SET_FEATURES, u64(1n << 32n))));
  assert.deepEqual(new Set(results), new Set([0]));
  assert.equal(device.calls.length, 400);
  await bench.close();
});

test('cuse: no more requests are taken than can wait, and all are answered in the end', async (t) => {
  const COUNT = 600;
  const kernel = new FakeCuse();
  const waiting: (() => void)[] = [];
  const channel = new CuseChannel(kernel.deviceFd, 'x', {
    onRequest: async () => {
      await new Promise<void>((resolve) => waiting.push(resolve));
      return { error: 0 };
    },
    onGone: () => {},
  });
  t.after(async () => {
    channel.close();
    await kernel.close();
  });
  await kernel.init();
  await channel.ready;
  const answers = Array.from({ length: COUNT }, () => kernel.request(FUSE_OPEN, new Uint8Array(8)));
  for (let left = COUNT; left > 0; ) {
    const most = Math.min(256, left);
    await until(() => waiting.length === most, `${most} requests wait`);
    for (let i = 0; i < 3; i++) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(waiting.length, most, 'and no more');
    left -= most;
    for (const answer of waiting.splice(0)) answer();
  }
  await Promise.all(answers);
});
