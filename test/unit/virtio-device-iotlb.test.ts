import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { VHOST_VRING_F_LOG } from '../../src/uapi/vhost-user.ts';
import {
  featureMask,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../../src/uapi/virtio.ts';
import { IOTLB_READ, IOTLB_WRITE } from '../../src/vhost/vhost-device.ts';
import {
  addresses,
  DeviceBench,
  FRONTEND,
  leakless,
  MIB,
  MODERN,
  NUM,
  plainModel,
  RecordingChannel,
  region,
} from '../kit/device-bench.ts';

const TRANSLATED = featureMask(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM);
const BOTH = IOTLB_READ | IOTLB_WRITE;
/** Where the guest's IOMMU shows its memory from 0 on. */
const IOVA = 0xffff_0000_0000;
const refuses = (call: Promise<unknown>, code: string, message: RegExp) => assert.rejects(call, { code, message });

/** Where vring 0's parts begin, from the start of memory on. */
const [DESC, AVAIL, USED] = [0x10000, 0x14000, 0x18000];

/** A device whose vring 0 is started with addresses that nobody has translated. */
async function waiting(features = TRANSLATED) {
  const bench = DeviceBench.of(plainModel(1));
  const channel = new RecordingChannel();
  bench.device.setChannel(channel);
  await bench.setUp({ features, vrings: [0], space: IOVA });
  const map = (off: number, size: number, permissions = BOTH, to = off) =>
    bench.device.updateIotlb({ iova: IOVA + off, size, userAddr: FRONTEND + to, permissions });
  return { device: bench.device, datapath: bench.datapath, channel, map, runs: () => bench.runs[0] };
}
const miss = (off: number, permissions: number) => `miss 0x${(IOVA + off).toString(16)} ${permissions}`;

test('virtio device: a ring waits for the translations of its parts, asks for each once, and starts with the last', () =>
  leakless(async () => {
    const { device, datapath, channel, map, runs } = await waiting();
    assert.deepEqual([datapath.memory.iotlb, datapath.chunks, runs()], [true, [], false]);
    assert.deepEqual(channel.asked, [miss(DESC, IOTLB_READ), miss(AVAIL, IOTLB_READ), miss(USED, BOTH)]);
    channel.asked.length = 0;
    await map(DESC, 4096, IOTLB_READ);
    await map(AVAIL, 4096, IOTLB_READ);
    await map(USED, 4096, IOTLB_READ);
    assert.equal(runs(), false, 'the used ring must be writable');
    assert.deepEqual(channel.asked, [miss(USED, BOTH)], 'so it is asked for again');
    await map(USED, 4096);
    const { ring } = datapath.running[0]!.config;
    const start = datapath.chunks[0].windowOff - DESC;
    assert.deepEqual([ring.desc.off, ring.avail.off, ring.used.off], [start + DESC, start + AVAIL, start + USED]);
    assert.deepEqual(
      datapath.chunks.map(({ guestAddr, reach, writable }) => [guestAddr - IOVA, reach, writable]),
      [
        [DESC, 4096, false],
        [AVAIL, 4096, false],
        [USED, 4096, true],
      ],
    );
    const { calls } = datapath;
    calls.length = 0;
    const parts = addresses(0, 0, IOVA);
    await device.setVringAddr(0, { ...parts, flags: VHOST_VRING_F_LOG, logAddr: parts.usedAddr });
    assert.deepEqual([calls, datapath.running[0]!.config.ring.usedLogAddr], [[], undefined], 'logged where it lies');
    await device.destroy();
  }));

test('virtio device: a ring over several pages asks page by page, and takes them where they lie together', () =>
  leakless(async () => {
    const { device, channel, map, runs } = await waiting();
    await device.setVringNum(0, 1024);
    await map(AVAIL, 0x8000);
    for (const page of [0, 1, 2]) {
      assert.equal(runs(), false);
      channel.asked.length = 0;
      await map(DESC + page * 4096, 4096, IOTLB_READ);
      assert.deepEqual(channel.asked, [miss(DESC + (page + 1) * 4096, IOTLB_READ)]);
    }
    await map(DESC + 3 * 4096, 4096, IOTLB_READ);
    assert.equal(runs(), true);
    await refuses(
      map(DESC + 3 * 4096, 4096, IOTLB_READ, 0),
      'BAD_VRING',
      /^IOTLB_MSG: vring 0: its descriptor table at .* is not in one piece/,
    );
    assert.equal(runs(), false);
    await device.destroy();
  }));

test('virtio device: the descriptors of a packed ring must be writable', () =>
  leakless(async () => {
    const { device, datapath, channel } = await waiting(TRANSLATED | featureMask(VIRTIO_F_RING_PACKED));
    assert.deepEqual(channel.asked, [miss(DESC, BOTH), miss(AVAIL, IOTLB_READ), miss(USED, BOTH)]);
    await device.updateIotlb({ iova: IOVA, size: MIB, userAddr: FRONTEND, permissions: BOTH });
    assert.equal(datapath.running[0]!.config.ring.format, 'packed');
    await device.destroy();
  }));

test('virtio device: an invalidated ring is stopped before that is answered, and starts where its pages are next', () =>
  leakless(async () => {
    const { device, datapath, map, runs } = await waiting();
    await map(0, MIB);
    datapath.calls.length = 0;
    await device.invalidateIotlb(IOVA + MIB, MIB);
    assert.deepEqual(datapath.calls, ['memory'], 'other addresses do not matter to it');
    await device.invalidateIotlb(IOVA + USED, 1);
    assert.deepEqual(datapath.calls, ['memory', 'stop 0', 'memory']);
    assert.equal(datapath.chunks.length, 0);
    await map(0, MIB);
    assert.equal(runs(), true);
    datapath.calls.length = 0;
    await map(USED, 4096, BOTH, 0x40000);
    assert.deepEqual(datapath.calls, ['stop 0', 'memory'], 'the rest of the entry it replaces is gone');
    await map(DESC, 0x8000);
    assert.equal(datapath.running[0]!.config.ring.used.off, datapath.chunks[0].windowOff - DESC + 0x40000);
    await device.destroy();
  }));

test('virtio device: misses of the datapath are passed on once, while there is somebody to ask', () =>
  leakless(async () => {
    const { device, channel, map } = await waiting();
    await map(0, MIB, IOTLB_READ);
    channel.asked.length = 0;
    for (let i = 0; i < 100; i++) {
      device.onIotlbMiss(0, IOVA + MIB + 16, false);
      device.onIotlbMiss(0, IOVA + MIB + 32, false);
      device.onIotlbMiss(0, IOVA + 4096, true);
      device.onIotlbMiss(0, IOVA + 4096, false);
    }
    assert.deepEqual(channel.asked, [miss(MIB + 16, IOTLB_READ), miss(4096, IOTLB_WRITE)]);
    device.setChannel(undefined);
    device.onIotlbMiss(0, IOVA + 2 * MIB, false);
    device.setChannel(channel);
    device.onIotlbMiss(0, IOVA + 2 * MIB, false);
    assert.equal(channel.asked.at(-1), miss(2 * MIB, IOTLB_READ), 'a question that nobody heard does not count');
    await device.destroy();
    const other = await DeviceBench.of(plainModel(1)).setUp({ vrings: [0] });
    other.device.setChannel(channel);
    const before = channel.asked.length;
    other.device.onIotlbMiss(0, 2 ** 40, false);
    assert.equal(channel.asked.length, before, 'nor does one without an IOMMU');
    await other.device.destroy();
  }));

test('virtio device: a ring that waits is asked for when the way to ask opens', () =>
  leakless(async () => {
    const bench = DeviceBench.of(plainModel(1));
    await bench.setUp({ features: TRANSLATED, vrings: [0], space: IOVA });
    const channel = new RecordingChannel();
    bench.device.setChannel(channel);
    assert.equal(channel.asked.length, 3);
    await bench.device.destroy();
  }));

test('virtio device: a ring that waits asks again, for the guest may map it late', { timeout: 10_000 }, () =>
  leakless(async () => {
    const { device, channel } = await waiting();
    const asked = new Promise<void>((resolve) => {
      const wait = setInterval(() => {
        if (channel.asked.length < 6) return;
        clearInterval(wait);
        resolve();
      }, 50);
    });
    await asked;
    assert.deepEqual(channel.asked.slice(3), channel.asked.slice(0, 3));
    await device.destroy();
  }),
);

test('virtio device: translations of addresses that are not there, or without an IOMMU agreed on, are refused', () =>
  leakless(async () => {
    const { device, datapath, map } = await waiting();
    datapath.calls.length = 0;
    await refuses(map(0, MIB + 1), 'BAD_IOTLB', /^IOTLB_MSG: 1048577 bytes at 0x7f0000000000 lie outside guest memory/);
    await refuses(map(0, 2 ** 52), 'BAD_IOTLB', /lie outside/);
    assert.deepEqual(datapath.calls, []);
    await device.destroy();
    const plain = DeviceBench.of(plainModel(1)).device;
    await plain.setFeatures(MODERN, true);
    const entry = { iova: 0, size: 4096, userAddr: FRONTEND, permissions: BOTH };
    await refuses(plain.updateIotlb(entry), 'BAD_IOTLB', /VIRTIO_F_ACCESS_PLATFORM/);
    await refuses(plain.invalidateIotlb(0, 4096), 'BAD_IOTLB', /VIRTIO_F_ACCESS_PLATFORM/);
    await plain.destroy();
  }));

test('virtio device: memory that goes takes its translations along, new memory all of them', () =>
  leakless(async () => {
    const { device, datapath, map, runs } = await waiting();
    await device.addMemory(region(MIB));
    await map(0, MIB);
    await map(MIB, MIB);
    const seen = () => datapath.chunks.map(({ guestAddr, reach }) => [guestAddr - IOVA, reach]);
    assert.deepEqual(seen(), [[0, 2 * MIB]], 'what is side by side in a window is one');
    datapath.calls.length = 0;
    await device.removeMemory(MIB, MIB, FRONTEND + MIB);
    assert.deepEqual(datapath.calls, ['memory'], 'the ring lies elsewhere');
    assert.deepEqual(seen(), [[0, MIB]]);
    await device.setMemory([region(0)]);
    assert.deepEqual([datapath.chunks, runs()], [[], false]);
    await map(0, MIB);
    assert.equal(runs(), true);
    await device.destroy();
  }));

test('virtio device: without the IOMMU addresses are the front end’s again', () =>
  leakless(async () => {
    const { device, datapath, map, runs } = await waiting();
    await map(0, MIB);
    await device.setFeatures(MODERN, true);
    assert.deepEqual([datapath.memory.iotlb, runs()], [false, false]);
    assert.equal(datapath.chunks[0].guestAddr, 0);
    await device.setFeatures(TRANSLATED, true);
    assert.deepEqual(datapath.chunks, [], 'and what was translated before does not count');
    await device.destroy();
  }));

test('virtio device: private memory is found through translations, too', () =>
  leakless(async () => {
    const { device } = DeviceBench.of(plainModel(1));
    await device.setFeatures(TRANSLATED, true);
    await device.setMemory([region(0, MIB, false)]);
    await device.setVringNum(0, NUM);
    await device.setVringAddr(0, { flags: 0, logAddr: 0, descAddr: 0, availAddr: 0x4000, usedAddr: 0x8000 });
    await device.setVringKick(0, createEventfd());
    const entry = { iova: 0, size: MIB, userAddr: FRONTEND, permissions: BOTH };
    await refuses(device.updateIotlb(entry), 'PRIVATE_MEMORY', /region 0 is private/);
    await device.destroy();
  }));
