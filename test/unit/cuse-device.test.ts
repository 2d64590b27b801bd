/** A network device behind the character device: the same state machine as behind a socket, and the log of a migration. */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { openWindow } from '../../src/mem/window.ts';
import { createEventfd, drain } from '../../src/sys/eventfd.ts';
import { viewOf } from '../../src/sys/libc.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import { FUSE_READ, FUSE_READ_IN, FUSE_WRITE, FUSE_WRITE_IN } from '../../src/uapi/fuse.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import { featureMask, VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { IOTLB } from '../../src/vhost-user/payloads.ts';
import type { NetDeviceOptions } from '../../src/virtio-net/net-device.ts';
import { TAP_FEATURES } from '../../src/virtio-net/net-features.ts';
import { CuseBench, closeFds, memoryTable, OwnMemory, u32s, u64, VhostCaller, vringAddr } from '../kit/cuse-bench.ts';
import { DeviceBench, leakless, MIB } from '../kit/device-bench.ts';
import { until } from '../protocol/harness.ts';

const MODERN = featureMask(VIRTIO_F_VERSION_1);
const NONE = 0xffff_ffff;

/** A device that has been set up and runs, in this process's memory. */
class Running {
  readonly bench: DeviceBench;
  readonly fds: number[] = [];
  cuse!: CuseBench;
  caller!: VhostCaller;
  memory!: OwnMemory;

  constructor(options: Partial<NetDeviceOptions> = {}) {
    this.bench = DeviceBench.net(options);
  }

  #keep(fd: number): number {
    this.fds.push(fd);
    return fd;
  }

  eventfd = () => this.#keep(createEventfd());

  async start(t: TestContext, features = MODERN): Promise<this> {
    this.cuse = await CuseBench.start({ createDevice: () => this.bench.device, tapFeatures: TAP_FEATURES });
    this.caller = await VhostCaller.open(this.cuse.kernel);
    const memfd = this.#keep(createMemfd('guest', MIB));
    writeSync(memfd, Uint8Array.of(1), 0, 1, 0);
    this.memory = new OwnMemory(MIB).map(memfd);
    t.after(() => this.memory.close());
    await this.caller.must(vhost.VHOST_SET_OWNER);
    await this.caller.must(vhost.VHOST_SET_FEATURES, u64(features));
    await this.caller.must(vhost.VHOST_SET_MEM_TABLE, this.table);
    for (const ring of [0, 1]) {
      await this.caller.must(vhost.VHOST_SET_VRING_NUM, u32s(ring, 256));
      await this.caller.must(vhost.VHOST_SET_VRING_BASE, u32s(ring, 7));
      await this.caller.must(vhost.VHOST_SET_VRING_ADDR, this.address(ring));
      await this.caller.must(vhost.VHOST_SET_VRING_KICK, u32s(ring, this.eventfd()));
      await this.caller.must(vhost.VHOST_SET_VRING_CALL, u32s(ring, this.eventfd()));
    }
    return this;
  }

  get table(): Uint8Array {
    return memoryTable([{ guestAddr: 0, size: MIB, userAddr: this.memory.address }]);
  }

  address(ring: number, options = {}): Uint8Array {
    const at = this.memory.address + 0x10000 * (ring + 1);
    return vringAddr(ring, at, at + 0x8000, at + 0x4000, options);
  }

  /** @param fd of a tap, or NONE */
  async setBackends(fd: number): Promise<void> {
    for (const ring of [0, 1]) await this.caller.must(vhost.VHOST_NET_SET_BACKEND, u32s(ring, fd));
  }

  async close(): Promise<void> {
    await this.cuse.close();
    closeFds(this.fds);
  }
}

/** A test that must leave neither descriptors nor windows behind. */
function running(
  name: string,
  use: (device: Running, t: TestContext) => Promise<void>,
  options?: Partial<NetDeviceOptions>,
): void {
  test(name, (t) =>
    leakless(async () => {
      const device = new Running(options);
      await use(device, t);
      await device.close();
    }),
  );
}

running('cuse device: a back end starts the rings, -1 stops them, and they go on where they stood', async (one, t) => {
  const { bench } = await one.start(t);
  assert.deepEqual([bench.runs, bench.told], [[false, false], []]);
  await one.setBackends(one.fds[0]);
  assert.deepEqual([bench.runs, bench.told], [[true, true], ['ready']]);
  assert.equal(bench.device.features, MODERN | TAP_FEATURES);
  await one.setBackends(NONE);
  assert.deepEqual(
    [bench.runs, bench.told],
    [
      [false, false],
      ['ready', 'stopped'],
    ],
  );
  assert.equal(await one.caller.vringBase(0), 7);
  await one.setBackends(one.fds[0]);
  assert.deepEqual(bench.runs, [true, true]);
});

running('cuse device: RESET_OWNER ends all, and the same open can begin again', async (one, t) => {
  const { bench, caller } = await one.start(t);
  await one.setBackends(one.fds[0]);
  await caller.must(vhost.VHOST_RESET_OWNER);
  assert.deepEqual([bench.runs, bench.device.memoryBytes, bench.device.features], [[false, false], 0, 0n]);
  await caller.must(vhost.VHOST_SET_OWNER);
  await caller.must(vhost.VHOST_SET_FEATURES, u64(MODERN));
  await caller.must(vhost.VHOST_SET_MEM_TABLE, one.table);
  assert.equal(bench.device.memoryBytes, MIB);
});

running('cuse device: who closes in the middle of it, without RESET_OWNER, leaves nothing behind', async (one, t) => {
  const { bench, caller } = await one.start(t);
  await one.setBackends(one.fds[0]);
  assert.equal(await caller.release(), 0);
  assert.deepEqual(
    [bench.runs, bench.told],
    [
      [false, false],
      ['ready', 'stopped', 'destroyed'],
    ],
  );
});

running('cuse device: a ring outside guest memory gets no back end', async (one, t) => {
  const { bench, caller, cuse } = await one.start(t);
  const wild = one.memory.address + MIB - 0x800;
  await caller.must(vhost.VHOST_SET_VRING_ADDR, vringAddr(0, wild, wild, wild));
  assert.equal(await caller.call(vhost.VHOST_NET_SET_BACKEND, u32s(0, one.fds[0])), -14);
  assert.match(
    cuse.refusals.join(),
    /NET_SET_BACKEND|SET_VRING_KICK: vring 0: its descriptor table at .* lies outside guest memory/,
  );
  assert.deepEqual(bench.runs, [false, false]);
  await caller.must(vhost.VHOST_SET_VRING_ADDR, one.address(0));
  await one.setBackends(one.fds[0]);
  assert.deepEqual(bench.runs, [true, true]);
});

/** Has the device write a page, as an lcore does: sets its bit in the log that the datapath has. */
function touch({ bench }: Running, page: number): void {
  const memory = bench.datapath.memory;
  const log = memory?.log;
  assert.ok(memory !== undefined && log !== undefined, 'the datapath logs');
  const handle = memory.windows.find(({ id }) => id === log.window);
  assert.ok(handle !== undefined);
  Atomics.or(openWindow(handle).u8, log.off + (page >> 3), 1 << (page & 7));
}

running('cuse device: the log is carried to the opener’s own memory, a byte for eight pages', async (one, t) => {
  const { caller } = await one.start(t);
  const heap = new OwnMemory(4096);
  const log = new Uint8Array(viewOf(BigInt(heap.address), heap.size));
  const heard = one.eventfd();
  await one.setBackends(one.fds[0]);
  await caller.must(vhost.VHOST_SET_LOG_BASE, u64(BigInt(heap.address + 5)));
  await caller.must(vhost.VHOST_SET_LOG_FD, u32s(heard));
  await caller.must(vhost.VHOST_SET_FEATURES, u64(MODERN | featureMask(VHOST_F_LOG_ALL)));
  touch(one, 0);
  touch(one, 9);
  touch(one, 10);
  touch(one, 255);
  await until(() => log[5 + 31] !== 0, 'the log is carried over');
  const dirty = [...log.entries()].filter(([, byte]) => byte !== 0);
  assert.deepEqual(dirty, [
    [5, 0xff],
    [6, 0xff],
    [5 + 31, 0xff],
  ]);
  assert.equal(drain(heard), 1);
  // what the opener has taken stays taken, and is set again when written again
  log.fill(0);
  touch(one, 9);
  await until(() => log[6] === 0xff, 'the log is carried over');
  assert.equal(log[5], 0);
});

running('cuse device: a ring that has stopped has told all that it wrote', async (one, t) => {
  const { caller } = await one.start(t);
  const heap = new OwnMemory(4096);
  const log = new Uint8Array(viewOf(BigInt(heap.address), heap.size));
  await one.setBackends(one.fds[0]);
  await caller.must(vhost.VHOST_SET_LOG_BASE, u64(BigInt(heap.address)));
  await caller.must(vhost.VHOST_SET_FEATURES, u64(MODERN | featureMask(VHOST_F_LOG_ALL)));
  for (const [i, stop] of [
    () => one.setBackends(NONE),
    () => caller.vringBase(1),
    () => caller.must(vhost.VHOST_SET_LOG_BASE, u64(BigInt(heap.address))),
    () => caller.must(vhost.VHOST_SET_FEATURES, u64(MODERN)),
  ].entries()) {
    touch(one, 8 * i);
    await stop();
    assert.equal(log[i], 0xff);
  }
});

running(
  'cuse device: the log grows with guest memory, and is refused where it would be without bounds',
  async (one, t) => {
    const { caller, bench, cuse } = await one.start(t);
    const heap = new OwnMemory(MIB);
    const log = new Uint8Array(viewOf(BigInt(heap.address), heap.size));
    await caller.must(vhost.VHOST_SET_LOG_BASE, u64(BigInt(heap.address)));
    await caller.must(vhost.VHOST_SET_FEATURES, u64(MODERN | featureMask(VHOST_F_LOG_ALL)));
    assert.equal(bench.datapath.memory?.log?.size, 32);
    touch(one, 3);
    const far = (guestAddr: number) => memoryTable([{ guestAddr, size: MIB, userAddr: one.memory.address }]);
    await caller.must(vhost.VHOST_SET_MEM_TABLE, far(2 ** 32));
    assert.equal(log[0], 0xff);
    assert.equal(bench.datapath.memory?.log?.size, (2 ** 32 + MIB) / 32768);
    touch(one, 2 ** 20 + 1);
    await until(() => log[2 ** 17] === 0xff, 'the log is carried over');
    assert.equal(await caller.call(vhost.VHOST_SET_MEM_TABLE, far(2 ** 40)), -14);
    assert.match(cuse.refusals.join(), /a dirty log takes at most 33554432 bytes/);
  },
);

running('cuse device: a log that is nowhere is told, and harms nobody', async (one, t) => {
  const { caller, cuse } = await one.start(t);
  await one.setBackends(one.fds[0]);
  await caller.must(vhost.VHOST_SET_LOG_BASE, u64(0x1000n));
  assert.equal(await caller.call(vhost.VHOST_SET_LOG_BASE, u64(2n ** 53n)), -14);
  await caller.must(vhost.VHOST_SET_FEATURES, u64(MODERN | featureMask(VHOST_F_LOG_ALL)));
  touch(one, 3);
  await until(() => cuse.refusals.some((line) => /the dirty log cannot be written/.test(line)), 'it is told');
  assert.deepEqual(one.bench.runs, [true, true]);
});

running(
  'cuse device: rings behind an IOMMU start when their translations have come',
  async (one, t) => {
    const { caller, bench, cuse } = await one.start(t, MODERN | featureMask(VIRTIO_F_ACCESS_PLATFORM));
    const { kernel } = cuse;
    // ring addresses are I/O virtual: nobody has translated them yet
    await one.setBackends(one.fds[0]);
    assert.deepEqual(bench.runs, [false, false]);
    const read = async () => {
      const body = new DataView(new ArrayBuffer(FUSE_READ_IN.size));
      body.setBigUint64(FUSE_READ_IN.off.fh, caller.handle, true);
      body.setUint32(FUSE_READ_IN.off.size, 72, true);
      const answer = await kernel.request(FUSE_READ, new Uint8Array(body.buffer));
      return answer.error === 0 ? answer.body.getBigUint64(8, true) : undefined;
    };
    const asked = new Set<bigint | undefined>();
    for (let iova = await read(); iova !== undefined; iova = await read()) asked.add(iova);
    assert.ok(asked.has(BigInt(one.memory.address + 0x10000)), 'the descriptor table is asked for');
    const [start, size] = [BigInt(one.memory.address), BigInt(MIB)];
    const update = IOTLB.encode({ iova: start, size, userAddr: start, permissions: 3, type: 2 });
    const message = Uint8Array.from(Buffer.concat([u32s(1, 0), update, new Uint8Array(32)]));
    const body = new DataView(new ArrayBuffer(FUSE_WRITE_IN.size));
    body.setBigUint64(FUSE_WRITE_IN.off.fh, caller.handle, true);
    body.setUint32(FUSE_WRITE_IN.off.size, message.length, true);
    const bytes = Uint8Array.from(Buffer.concat([new Uint8Array(body.buffer), message]));
    assert.equal((await kernel.request(FUSE_WRITE, bytes)).error, 0);
    assert.deepEqual([bench.runs, bench.told], [[true, true], ['ready']]);
  },
  { iommu: true },
);
