import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { createEventfd } from '../../src/sys/eventfd.ts';
import {
  featureMask,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../src/uapi/virtio.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { VirtioDevice } from '../../src/vhost/virtio-device.ts';
import {
  addresses,
  DeviceBench,
  FRONTEND,
  MIB,
  MODERN,
  NUM,
  openFds,
  plainModel,
  region,
} from '../kit/device-bench.ts';

const twoVrings = () => DeviceBench.of(plainModel(2, { readyVrings: [0, 1] }));
const refuses = (call: Promise<unknown>, code: string, message: RegExp) => assert.rejects(call, { code, message });

test('virtio device: whatever the order of the requests, both vrings end up running with what was asked', async () => {
  const before = openFds();
  type Step = (device: VirtioDevice) => Promise<void>;
  const common: Step[] = [(d) => d.setFeatures(MODERN, true), (d) => d.setMemory([region(0)])];
  const ofVring = (vring: number): Step[] => [
    (d) => d.setVringNum(vring, NUM),
    (d) => d.setVringBase(vring, 7),
    (d) => d.setVringAddr(vring, addresses(vring)),
    (d) => d.setVringKick(vring, createEventfd()),
    (d) => d.setVringCall(vring, createEventfd()),
    (d) => d.setVringErr(vring, createEventfd()),
    (d) => d.setVringEnable(vring, true),
  ];
  const all = [...common, ...ofVring(0), ...ofVring(1)];
  await fc.assert(
    fc.asyncProperty(
      fc.shuffledSubarray(all, { minLength: all.length }),
      fc.array(fc.constantFrom(...all), { maxLength: 3 }),
      async (steps, again) => {
        const { device, datapath, told } = twoVrings();
        for (const step of [...steps, ...again]) await step(device);
        for (const vring of [0, 1]) {
          const { config, enabled, callFd } = datapath.running[vring]!;
          const base = datapath.chunks[0].windowOff + 0x10000 * (vring + 1);
          assert.equal(enabled, true);
          assert.ok(callFd !== NO_FD && config.errFd !== NO_FD && config.ring.kickFd !== NO_FD);
          const offs = [config.ring.desc, config.ring.avail, config.ring.used].map(({ off }) => off - base);
          assert.deepEqual([config.ring.num, config.ring.base, ...offs], [NUM, 7, 0, 0x4000, 0x8000]);
        }
        const count = (what: string) => told.filter((word) => word === what).length;
        assert.equal(count('ready'), count('stopped') + 1);
        await device.destroy();
        assert.equal(openFds(), before);
      },
    ),
    { numRuns: 60 },
  );
});

test('virtio device: the features accepted decide event index and indirect tables, and the datapath gets them all', async () => {
  for (const [bits, expected] of [
    [[], [false, false]],
    [[VIRTIO_F_VERSION_1], [false, false]],
    [[VIRTIO_RING_F_EVENT_IDX], [true, false]],
    [
      [VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_F_IN_ORDER],
      [false, true],
    ],
  ] as const) {
    const features = featureMask(...bits);
    const { device, datapath } = await twoVrings().setUp({ features });
    const { eventIdx, indirect, format } = datapath.running[0]!.config.ring;
    assert.deepEqual([eventIdx, indirect], expected);
    assert.deepEqual([format, datapath.running[0]!.config.features], ['split', features]);
    await device.destroy();
  }
});

test('virtio device: GET_VRING_BASE stops that vring alone, and it starts again with the next kick', async () => {
  const { device, datapath, told } = await twoVrings().setUp();
  datapath.nextAvail = 4711;
  const before = openFds();
  assert.equal(await device.getVringBase(1, true), 4711);
  assert.deepEqual(datapath.calls, ['stop 1']);
  assert.equal(openFds(), before - 1, 'the kick eventfd is closed');
  await device.setVringNum(1, NUM);
  await device.setVringAddr(1, addresses(1));
  assert.equal(datapath.running[1], undefined);
  assert.equal(await device.getVringBase(1, true), 4711, 'once more is harmless');
  await device.setVringKick(1, NO_FD);
  assert.equal(datapath.running[1]!.config.ring.kickFd, NO_FD);
  assert.equal(datapath.running[1]!.enabled, true, 'the vring is as enabled as it was');
  assert.deepEqual(told, ['ready', 'stopped', 'ready']);
  await device.destroy();
});

test('virtio device: SET_VRING_BASE is what GET_VRING_BASE answers for a vring that never ran', async () => {
  const { device } = twoVrings();
  await device.setFeatures(MODERN, true);
  await device.setVringBase(0, 65535);
  assert.equal(await device.getVringBase(0, true), 65535);
  await refuses(device.setVringBase(1, 65536), 'BAD_VRING', /vring 1: index 65536/);
  await device.destroy();
});

test('virtio device: new memory in mid-run stops the vrings, and starts them in it', async () => {
  const { device, datapath } = await twoVrings().setUp();
  const before = openFds();
  await device.setMemory([region(16 * MIB), region(0)]);
  assert.deepEqual(datapath.calls, ['stop 0', 'stop 1', 'memory', 'start 0', 'start 1']);
  assert.equal(openFds(), before + 1);
  datapath.calls.length = 0;
  await device.setMemory([region(16 * MIB)]);
  assert.deepEqual(datapath.calls, ['stop 0', 'stop 1', 'memory'], 'vrings without memory wait');
  await device.setMemory([region(0)]);
  assert.deepEqual(
    datapath.running.map((vring) => vring?.enabled),
    [true, true],
  );
  await device.destroy();
});

test('virtio device: after memory that was refused the datapath has none, and nothing runs', async () => {
  const { device, datapath } = await twoVrings().setUp();
  const before = openFds();
  const short = { ...region(MIB), size: 2 * MIB };
  await refuses(device.setMemory([region(0), short, region(8 * MIB)]), 'BAD_MEMORY', /region 1 is too short/);
  assert.equal(openFds(), before - 1, 'the descriptors given and the old one are closed');
  assert.deepEqual([datapath.memory.chunks, datapath.memory.windows], [[], []]);
  await device.setVringKick(0, createEventfd());
  assert.deepEqual(datapath.running, [undefined, undefined]);
  await device.setMemory([region(0)]);
  assert.ok(datapath.running.every((vring) => vring !== undefined));
  await device.destroy();
});

test('virtio device: memory is added and removed while the vrings run', async () => {
  const { device, datapath } = await twoVrings().setUp();
  await device.addMemory(region(MIB));
  assert.deepEqual(datapath.calls, ['memory']);
  const chunk = datapath.chunks[1];
  assert.equal(datapath.byteOf(chunk), 1);
  datapath.onMemory = () => assert.equal(datapath.byteOf(chunk), 1, 'memory stays until the lcore has let go of it');
  const before = openFds();
  await device.removeMemory(MIB, MIB, FRONTEND + MIB);
  datapath.onMemory = () => {};
  assert.deepEqual(datapath.calls, ['memory', 'memory']);
  assert.equal(datapath.chunks.length, 1);
  assert.equal(openFds(), before - 1);
  await refuses(
    device.removeMemory(MIB, MIB, FRONTEND + MIB),
    'BAD_MEMORY',
    /no region at guest address 0x100000 of 1048576/,
  );
  await refuses(device.addMemory(region(0, MIB)), 'BAD_MEMORY', /ADD_MEM_REG: guest memory region 1 overlaps/);
  assert.equal(openFds(), before - 1);
  assert.equal(device.memoryBytes, MIB);
  await device.destroy();
});

test('virtio device: a vring whose memory is removed stops, and runs again when it comes back', async () => {
  const bench = await twoVrings().setUp({ memory: [region(0), region(4 * MIB)] });
  const { device, datapath, told } = bench;
  await device.setVringAddr(1, addresses(1, 4 * MIB));
  datapath.calls.length = 0;
  await device.removeMemory(4 * MIB, MIB, FRONTEND + 4 * MIB);
  assert.deepEqual(datapath.calls, ['stop 1', 'memory']);
  await device.addMemory(region(8 * MIB));
  assert.deepEqual(bench.runs, [true, false], 'other memory is no reason to fail');
  await device.addMemory(region(4 * MIB));
  assert.deepEqual(bench.runs, [true, true]);
  assert.deepEqual(told.slice(-2), ['stopped', 'ready']);
  await device.destroy();
});

test('virtio device: reset stops everything, forgets everything, and it can be set up anew', async () => {
  const before = openFds();
  const bench = await twoVrings().setUp();
  const { device, datapath, told } = bench;
  await device.reset();
  assert.deepEqual(datapath.calls, ['stop 0', 'stop 1', 'memory']);
  assert.equal(openFds(), before);
  assert.deepEqual([device.features, device.memoryBytes, datapath.chunks.length], [0n, 0, 0]);
  await device.setMemory([region(0)]);
  assert.deepEqual(bench.runs, [false, false]);
  await bench.setUp();
  assert.deepEqual(bench.runs, [true, true]);
  assert.deepEqual(told, ['ready', 'stopped', 'ready']);
  await device.destroy();
});

test('virtio device: destroy takes the port out before it unmaps, and closes every descriptor', async () => {
  const before = openFds();
  const { device, datapath, told } = await twoVrings().setUp({ memory: [region(0), region(MIB)] });
  assert.equal(openFds(), before + 2 + 6);
  await device.destroy();
  assert.deepEqual(datapath.calls, ['stop 0', 'stop 1', 'removePort']);
  assert.equal(openFds(), before);
  assert.deepEqual(told, ['ready', 'stopped', 'destroyed']);
});

test('virtio device: ring addresses that are misaligned or outside memory are refused by vring and part', async () => {
  const bench = await twoVrings().setUp();
  const { device } = bench;
  const good = addresses(1);
  for (const [change, message] of [
    [
      { descAddr: good.descAddr + 8 },
      /^SET_VRING_ADDR: vring 1: its descriptor table at 0x7f0000020008 is not aligned to 16 bytes$/,
    ],
    [{ availAddr: good.availAddr + 1 }, /vring 1: its avail ring at 0x7f0000024001 is not aligned to 2 bytes/],
    [{ usedAddr: good.usedAddr + 2 }, /vring 1: its used ring at 0x7f0000028002 is not aligned to 4 bytes/],
    [{ descAddr: 0 }, /vring 1: its descriptor table at 0x0 lies outside guest memory/],
    [{ availAddr: FRONTEND + MIB - 4 - 2 * NUM }, /vring 1: its avail ring at .* lies outside guest memory/],
    [{ usedAddr: FRONTEND + MIB - 4 - 8 * NUM }, /vring 1: its used ring at .* lies outside guest memory/],
    [{ usedAddr: 2 ** 53 - 4 }, /vring 1: its used ring at 0x1ffffffffffffc lies outside/],
  ] as const) {
    await refuses(device.setVringAddr(1, { ...good, ...change }), 'BAD_VRING', message);
    assert.deepEqual(bench.runs, [true, false]);
  }
  await device.setVringAddr(1, { ...good, availAddr: FRONTEND + MIB - 4 - 2 * NUM - 2 });
  assert.deepEqual(bench.runs, [true, true], 'a ring may end with memory');
  await device.destroy();
});

test('virtio device: a ring size that is no power of two up to 32768 is refused', async () => {
  const bench = await twoVrings().setUp();
  for (const num of [3, 255, 32769, 65536, 2 ** 32 - 1])
    await refuses(bench.device.setVringNum(0, num), 'BAD_VRING', new RegExp(`^SET_VRING_NUM: vring 0: ${num} `));
  assert.deepEqual(bench.runs, [true, true], 'and nothing changes');
  await bench.device.setVringNum(0, 1);
  assert.equal(bench.datapath.running[0]!.config.ring.num, 1);
  await bench.device.destroy();
});

test('virtio device: memory that the front end has mapped for itself is told from shared memory', async () => {
  const { device } = twoVrings();
  await device.setMemory([region(0, MIB, false)]);
  await device.setVringNum(0, NUM);
  await device.setVringAddr(0, addresses(0));
  await refuses(
    device.setVringKick(0, createEventfd()),
    'PRIVATE_MEMORY',
    /SET_VRING_KICK: guest memory region 0 is private: .*share=on/,
  );
  await device.destroy();
});

test('virtio device: a new call eventfd is in use before the old one is closed, and cannot block', async () => {
  const { device, datapath } = await twoVrings().setUp();
  const before = openFds();
  const fd = createEventfd();
  await device.setVringCall(0, fd);
  assert.deepEqual(datapath.calls, ['call 0']);
  assert.equal(datapath.running[0]!.callFd, fd);
  assert.equal(openFds(), before);
  assert.match(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'), /flags:\s+0[0-7]*4[0-7]{3}\n/);
  await device.setVringCall(0, NO_FD);
  assert.equal(datapath.running[0]!.callFd, NO_FD);
  assert.equal(openFds(), before - 1);
  await device.destroy();
});

test('virtio device: without protocol features rings are enabled with the features, also while they run', async () => {
  const { device, datapath } = twoVrings();
  await device.setFeatures(MODERN, true);
  await device.setMemory([region(0)]);
  for (const vring of [0, 1]) {
    await device.setVringNum(vring, NUM);
    await device.setVringAddr(vring, addresses(vring));
    await device.setVringKick(vring, NO_FD);
    assert.equal(datapath.running[vring]!.enabled, false, 'with them rings begin disabled');
  }
  datapath.calls.length = 0;
  await device.setFeatures(MODERN, true);
  assert.deepEqual(datapath.calls, [], 'the same features again change nothing');
  await device.setFeatures(MODERN, false);
  assert.deepEqual(
    datapath.running.map((vring) => vring?.enabled),
    [true, true],
  );
  await device.setFeatures(MODERN, true);
  assert.deepEqual(
    datapath.running.map((vring) => vring?.enabled),
    [true, true],
    'and none is disabled by them',
  );
  await device.destroy();
});
