/** The ioctls of vhost-net: what they tell the device, and what is refused. The opener is this process unless said otherwise. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, readdirSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { libc } from '../../src/sys/libc.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import { FUSE_POLL, FUSE_READ, FUSE_WRITE } from '../../src/uapi/fuse.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import {
  featureMask,
  VHOST_F_LOG_ALL,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_CSUM } from '../../src/uapi/virtio-net.ts';
import { IOTLB, type IotlbPayload } from '../../src/vhost-user/payloads.ts';
import { CuseBench, memoryTable, OwnMemory, u32s, u64, VhostCaller, vringAddr } from '../kit/cuse-bench.ts';
import type { Answer } from '../kit/fake-cuse.ts';
import { FakeDevice } from './fake-device.ts';
import { FdBox, hexOf, openFds, until } from './harness.ts';

const [EPERM, E2BIG, EBADF, EAGAIN, EFAULT, EBUSY, EINVAL, ENOTTY, EOPNOTSUPP, ENOBUFS] = [
  -1, -7, -9, -11, -14, -16, -22, -25, -95, -105,
];
const mmap = libc.func('mmap', 'uintptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']);
const munmap = libc.func('munmap', 'int', ['uintptr_t', 'size_t']);
const PROT_READ = 1;
const MAP_SHARED = 1;
const NONE = 0xffff_ffff;
const MIB = 2 ** 20;

interface Bench {
  readonly cuse: CuseBench;
  readonly device: FakeDevice;
  readonly caller: VhostCaller;
  readonly box: FdBox;
}

/** A test over one open, owned by this process; nothing may stay open behind it. */
function ioctlTest(name: string, use: (bench: Bench, t: TestContext) => Promise<void>, tapFeatures = 0n): void {
  test(name, async (t) => {
    const before = openFds();
    const device = new FakeDevice();
    const cuse = await CuseBench.start({ createDevice: () => device, tapFeatures });
    const box = new FdBox();
    const caller = await VhostCaller.open(cuse.kernel);
    await caller.must(vhost.VHOST_SET_OWNER);
    await use({ cuse, device, caller, box }, t);
    box.close();
    await cuse.close();
    assert.equal(device.destroyed, true);
    assert.equal(openFds(), before, 'as many descriptors are open as before');
  });
}

/** Shared memory of this process: a region that is mapped from `fd`. */
function mapped(t: TestContext, size: number, fd: number): OwnMemory {
  const memory = new OwnMemory(size).map(fd);
  t.after(() => memory.close());
  return memory;
}

ioctlTest(
  'cuse ioctls: features are those of the device, and bit 27 is the header',
  async ({ device, caller, cuse }) => {
    const modern = featureMask(VIRTIO_F_VERSION_1);
    const header = featureMask(vhost.VHOST_NET_F_VIRTIO_NET_HDR);
    assert.equal(await caller.features(), device.offeredFeatures | header);
    await caller.must(vhost.VHOST_SET_FEATURES, u64(modern));
    await caller.must(vhost.VHOST_SET_FEATURES, u64(modern | header));
    assert.deepEqual(device.calls, [
      ['setFeatures', modern | featureMask(VIRTIO_NET_F_CSUM), false],
      ['setFeatures', modern, false],
    ]);
    for (const bit of [30, 63, VHOST_F_LOG_ALL])
      assert.equal(await caller.call(vhost.VHOST_SET_FEATURES, u64(featureMask(bit))), EOPNOTSUPP);
    assert.match(cuse.refusals[0], /SET_FEATURES: feature bits that were not offered: 30; refused$/);
  },
  featureMask(VIRTIO_NET_F_CSUM),
);

ioctlTest('cuse ioctls: features of the back end are for translations', async ({ device, caller }) => {
  const offered = async () => {
    const bytes = u64(99n);
    await caller.must(vhost.VHOST_GET_BACKEND_FEATURES, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  };
  assert.equal(await offered(), 2n);
  await caller.must(vhost.VHOST_SET_BACKEND_FEATURES, u64(2n));
  await caller.must(vhost.VHOST_SET_BACKEND_FEATURES, u64(0n));
  assert.equal(await caller.call(vhost.VHOST_SET_BACKEND_FEATURES, u64(4n)), EOPNOTSUPP);
  device.offeredFeatures = featureMask(VIRTIO_F_VERSION_1);
  assert.equal(await offered(), 0n);
  assert.equal(await caller.call(vhost.VHOST_SET_BACKEND_FEATURES, u64(2n)), EOPNOTSUPP);
});

ioctlTest('cuse ioctls: translations are asked for by reads, and given by writes', async ({ cuse, device, caller }) => {
  const { kernel } = cuse;
  const poll = async (flags = 1) =>
    (await kernel.request(FUSE_POLL, body(caller.handle, 77n, flags, 1))).body.getUint32(0, true);
  const read = (size = 72) => kernel.request(FUSE_READ, body(caller.handle, 0n, size, 0, 0, 0, 0, 0));
  const translated = featureMask(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM);
  await caller.must(vhost.VHOST_SET_FEATURES, u64(translated));
  assert.deepEqual([await poll(), (await read()).error], [0, EAGAIN]);
  device.channel?.iotlbMiss(0x5000, 3);
  device.channel?.iotlbMiss(0x9000, 1);
  await until(() => kernel.notices.length > 0, 'the poller is told');
  assert.deepEqual(
    kernel.notices.map(({ code, body: notice }) => [code, notice.getBigUint64(0, true)]),
    [[1, 77n]],
  );
  assert.deepEqual([await poll(), (await read(71)).error], [0x41, EINVAL]);
  const message = (answer: Answer) => hexOf(new Uint8Array(answer.body.buffer, answer.body.byteOffset));
  const tail = '00'.repeat(38);
  assert.equal(message(await read()), `0100000000000000${'0050000000000000'}${'00'.repeat(16)}0301${tail}`);
  await caller.must(vhost.VHOST_SET_BACKEND_FEATURES, u64(2n));
  device.channel?.iotlbMiss(0xa000, 2);
  assert.equal(message(await read()), `0100000000000000${'0090000000000000'}${'00'.repeat(16)}0101${tail}`);
  assert.equal(message(await read()), `0200000000000000${'00a0000000000000'}${'00'.repeat(16)}0201${tail}`);
  assert.deepEqual([await poll(0), (await read()).error, kernel.notices.length], [0, EAGAIN, 1]);

  device.calls.length = 0;
  const entry = { iova: 0x5000n, size: 0x1000n, userAddr: 0x7f00_0000_0000n, permissions: 3, type: 2 };
  const write = (type: number, space: number, iotlb: IotlbPayload, padding = 32) =>
    kernel.request(FUSE_WRITE, writeBody(caller.handle, type, space, iotlb, padding));
  assert.deepEqual([(await write(2, 0, entry)).body.getUint32(0, true), (await write(1, 99, entry, 0)).error], [72, 0]);
  assert.equal((await write(2, 0, { ...entry, type: 3 })).error, 0);
  const told = { iova: 0x5000, size: 0x1000, userAddr: 0x7f00_0000_0000, permissions: 3 };
  assert.deepEqual(device.calls, [
    ['updateIotlb', told],
    ['updateIotlb', told],
    ['invalidateIotlb', 0x5000, 0x1000],
  ]);
  for (const [answer, errno] of [
    [await write(3, 0, entry), EINVAL],
    [await write(2, 1, entry), EINVAL],
    [await write(2, 0, { ...entry, type: 5 }), EINVAL],
    [await write(2, 0, { ...entry, permissions: 4 }), EINVAL],
    [await write(2, 0, { ...entry, size: 0n }), EFAULT],
    [await write(2, 0, { ...entry, iova: 2n ** 53n }), EFAULT],
    [await kernel.request(FUSE_WRITE, writeBody(caller.handle, 2, 0, entry, 32).slice(0, 40 + 39)), EINVAL],
  ] as const)
    assert.equal(answer.error, errno);
  await caller.must(vhost.VHOST_SET_FEATURES, u64(featureMask(VIRTIO_F_VERSION_1)));
  assert.equal((await write(2, 0, entry)).error, EFAULT);
});

ioctlTest(
  'cuse ioctls: a front end that does not read is asked no more than it can bear',
  async ({ cuse, device, caller }) => {
    await caller.must(vhost.VHOST_SET_FEATURES, u64(featureMask(VIRTIO_F_ACCESS_PLATFORM)));
    for (let i = 0; i < 5000; i++) device.channel?.iotlbMiss(i * 4096, 1);
    let read = 0;
    while ((await cuse.kernel.request(FUSE_READ, body(caller.handle, 0n, 72, 0, 0, 0, 0, 0))).error === 0) read++;
    assert.equal(read, 1024);
  },
);

/** A handle, another number, and words of 32 bits. */
function body(handle: bigint, second: bigint, ...words: number[]): Uint8Array {
  return Uint8Array.from(Buffer.concat([u64(handle), u64(second), u32s(...words)]));
}

function writeBody(handle: bigint, type: number, space: number, iotlb: IotlbPayload, padding: number): Uint8Array {
  const message = Buffer.concat([u32s(type, space), IOTLB.encode(iotlb), new Uint8Array(padding)]);
  return Uint8Array.from(Buffer.concat([body(handle, 0n, message.length, 0, 0, 0, 0, 0), message]));
}

ioctlTest('cuse ioctls: a device has one owner, who alone may set it up', async ({ cuse, device, caller }, t) => {
  const other = spawn('sleep', ['60'], { stdio: 'ignore' });
  t.after(() => other.kill('SIGKILL'));
  assert.equal(await caller.call(vhost.VHOST_SET_OWNER), EBUSY);
  cuse.kernel.pid = other.pid as number;
  assert.equal(await caller.call(vhost.VHOST_SET_OWNER), EBUSY);
  assert.equal(await caller.call(vhost.VHOST_SET_VRING_NUM, u32s(0, 256)), EPERM);
  assert.equal(await caller.call(vhost.VHOST_RESET_OWNER), EPERM);
  assert.match(
    cuse.refusals.join('\n'),
    new RegExp(`process ${other.pid} does not own the device, process ${process.pid} does`),
  );
  cuse.kernel.pid = process.pid;
  await caller.must(vhost.VHOST_SET_VRING_NUM, u32s(0, 256));
  await caller.must(vhost.VHOST_RESET_OWNER);
  assert.deepEqual(device.calls, [['setVringNum', 0, 256], ['reset']]);
  assert.equal(await caller.call(vhost.VHOST_SET_VRING_NUM, u32s(0, 256)), EPERM);
  assert.match(cuse.refusals.at(-1) as string, /nobody does: SET_OWNER comes first/);
  await caller.must(vhost.VHOST_SET_OWNER);
});

ioctlTest('cuse ioctls: who cannot be seen is refused', async ({ cuse, caller }) => {
  await caller.must(vhost.VHOST_RESET_OWNER);
  for (const pid of [0, 2 ** 22 + 1]) {
    cuse.kernel.pid = pid;
    assert.equal(await caller.call(vhost.VHOST_SET_OWNER), EPERM);
  }
  assert.match(
    cuse.refusals.join('\n'),
    /the caller cannot be seen \(it is in another PID namespace\): run the switch in/,
  );
});

ioctlTest('cuse ioctls: a thread counts as its process', async ({ cuse, caller }) => {
  const threads = readdirSync('/proc/self/task').map(Number);
  assert.ok(threads.length > 1);
  cuse.kernel.pid = threads.find((thread) => thread !== process.pid) as number;
  await caller.must(vhost.VHOST_SET_VRING_NUM, u32s(0, 256));
});

ioctlTest('cuse ioctls: a ring runs while it has a back end and a kick', async ({ device, caller, box }) => {
  const [kick, call, err, tap] = box.many(4);
  const ring = async (...calls: (readonly unknown[])[]) => {
    assert.deepEqual(device.calls, calls);
    device.calls.length = 0;
  };
  device.vringBase = 17;
  await caller.must(vhost.VHOST_SET_VRING_NUM, u32s(1, 256));
  await caller.must(vhost.VHOST_SET_VRING_BASE, u32s(1, 5));
  await caller.must(vhost.VHOST_SET_VRING_KICK, u32s(1, kick));
  await caller.must(vhost.VHOST_SET_VRING_CALL, u32s(1, call));
  await caller.must(vhost.VHOST_SET_VRING_ERR, u32s(1, err));
  await ring(['setVringNum', 1, 256], ['setVringBase', 1, 5], ['setVringCall', 1, 'fd'], ['setVringErr', 1, 'fd']);
  await caller.must(vhost.VHOST_NET_SET_BACKEND, u32s(1, tap));
  await ring(['setVringKick', 1, 'fd']);
  await caller.must(vhost.VHOST_NET_SET_BACKEND, u32s(1, tap));
  await ring();
  for (const busy of [vhost.VHOST_SET_VRING_NUM, vhost.VHOST_SET_VRING_BASE])
    assert.equal(await caller.call(busy, u32s(1, 128)), EBUSY);
  assert.equal(await caller.vringBase(1), 17);
  await ring(['getVringBase', 1, true], ['setVringKick', 1, 'fd']);
  await caller.must(vhost.VHOST_SET_VRING_KICK, u32s(1, NONE));
  await ring(['getVringBase', 1, true]);
  assert.equal(await caller.vringBase(1), 17);
  await ring(['getVringBase', 1, true]);
  await caller.must(vhost.VHOST_SET_VRING_KICK, u32s(1, kick));
  await ring(['setVringKick', 1, 'fd']);
  await caller.must(vhost.VHOST_SET_VRING_CALL, u32s(1, NONE));
  await caller.must(vhost.VHOST_SET_VRING_ERR, u32s(1, NONE));
  await ring(['setVringCall', 1, 'NO_FD'], ['setVringErr', 1, 'NO_FD']);
  await caller.must(vhost.VHOST_NET_SET_BACKEND, u32s(1, NONE));
  await ring(['getVringBase', 1, true]);
  await caller.must(vhost.VHOST_SET_VRING_NUM, u32s(1, 128));
});

ioctlTest('cuse ioctls: a ring that the device cannot start has no back end', async ({ device, caller, box }) => {
  const [kick, tap] = box.many(2);
  await caller.must(vhost.VHOST_SET_VRING_KICK, u32s(0, kick));
  device.failNext = new Error('no');
  assert.equal(await caller.call(vhost.VHOST_NET_SET_BACKEND, u32s(0, tap)), -5);
  assert.deepEqual(device.calls, [['getVringBase', 0, true]]);
  await caller.must(vhost.VHOST_SET_VRING_NUM, u32s(0, 256));
});

ioctlTest('cuse ioctls: a ring that is not there is refused everywhere', async ({ device, caller, box }) => {
  const [fd] = box.many(1);
  for (const index of [4, 0x7fff_ffff, NONE]) {
    const byState = [vhost.VHOST_SET_VRING_NUM, vhost.VHOST_SET_VRING_BASE, vhost.VHOST_GET_VRING_BASE];
    for (const cmd of byState) assert.equal(await caller.call(cmd, u32s(index, 1)), ENOBUFS);
    for (const cmd of [
      vhost.VHOST_SET_VRING_KICK,
      vhost.VHOST_SET_VRING_CALL,
      vhost.VHOST_SET_VRING_ERR,
      vhost.VHOST_NET_SET_BACKEND,
    ])
      assert.equal(await caller.call(cmd, u32s(index, fd)), ENOBUFS);
    assert.equal(await caller.call(vhost.VHOST_SET_VRING_ADDR, vringAddr(index, 0, 0, 0)), ENOBUFS);
  }
  assert.deepEqual(device.calls, []);
});

ioctlTest(
  'cuse ioctls: descriptors that are closed, or of the wrong kind, are refused',
  async ({ device, caller, box }) => {
    const closed = 10_000;
    const eventfds = [vhost.VHOST_SET_VRING_KICK, vhost.VHOST_SET_VRING_CALL, vhost.VHOST_SET_VRING_ERR];
    for (const cmd of eventfds) {
      for (const fd of [closed, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe])
        assert.equal(await caller.call(cmd, u32s(0, fd)), EBADF, `descriptor ${fd}`);
      for (const fd of [box.memfd(), box.devNull(), ...box.pipe()])
        assert.equal(await caller.call(cmd, u32s(0, fd)), EINVAL);
    }
    assert.equal(await caller.call(vhost.VHOST_SET_LOG_FD, u32s(closed)), EBADF);
    assert.equal(await caller.call(vhost.VHOST_SET_LOG_FD, u32s(box.memfd())), EINVAL);
    assert.equal(await caller.call(vhost.VHOST_NET_SET_BACKEND, u32s(0, closed)), EBADF);
    assert.deepEqual(device.calls, []);
  },
);

ioctlTest('cuse ioctls: sizes and indexes are those of the ring’s format', async ({ device, caller }) => {
  const num = (n: number) => caller.call(vhost.VHOST_SET_VRING_NUM, u32s(0, n));
  const base = (n: number) => caller.call(vhost.VHOST_SET_VRING_BASE, u32s(0, n));
  for (const bad of [0, 3, 300, 32769, 65536, NONE]) assert.equal(await num(bad), EINVAL, `${bad} descriptors`);
  for (const bad of [65536, NONE]) assert.equal(await base(bad), EINVAL, `index ${bad}`);
  assert.deepEqual(device.calls, []);
  assert.deepEqual([await num(1), await num(32768), await base(65535)], [0, 0, 0]);
  const packed = featureMask(VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED);
  device.offeredFeatures = packed;
  await caller.must(vhost.VHOST_SET_FEATURES, u64(packed));
  assert.deepEqual([await num(300), await base(0x8005_8003), await num(32769), await num(0)], [0, 0, EINVAL, EINVAL]);
});

ioctlTest(
  'cuse ioctls: wild ring addresses and flags are refused, others are the device’s to judge',
  async ({ device, caller }) => {
    const bytes = vringAddr(0, 0x1000, 0x2000, 0x3000);
    new DataView(bytes.buffer).setBigUint64(8, 2n ** 53n, true);
    assert.equal(await caller.call(vhost.VHOST_SET_VRING_ADDR, bytes), EFAULT);
    assert.equal(await caller.call(vhost.VHOST_SET_VRING_ADDR, vringAddr(0, 0, 0, 0, { flags: 2 })), EOPNOTSUPP);
    for (const bad of [vringAddr(0, 0, 2, 0), vringAddr(0, 0, 0, 1), vringAddr(0, 0, 0, 0, { flags: 1, log: 2 })])
      assert.equal(await caller.call(vhost.VHOST_SET_VRING_ADDR, bad), EINVAL);
    assert.deepEqual(device.calls, []);
    await caller.must(vhost.VHOST_SET_VRING_ADDR, vringAddr(0, 3, 2 ** 53 - 4, 2, { log: 9 }));
    const told = { flags: 0, descAddr: 3, usedAddr: 2 ** 53 - 4, availAddr: 2, logAddr: 0 };
    assert.deepEqual(device.calls, [['setVringAddr', 0, told]]);
  },
);

ioctlTest('cuse ioctls: a size or an index that no split ring has is refused', async ({ device, caller }) => {
  for (const num of [0, 3, 100, 65536, 2 ** 31])
    assert.equal(await caller.call(vhost.VHOST_SET_VRING_NUM, u32s(0, num)), EINVAL);
  for (const base of [65536, 2 ** 31])
    assert.equal(await caller.call(vhost.VHOST_SET_VRING_BASE, u32s(0, base)), EINVAL);
  assert.deepEqual(device.calls, []);
  for (const num of [1, 32768]) await caller.must(vhost.VHOST_SET_VRING_NUM, u32s(0, num));
  await caller.must(vhost.VHOST_SET_VRING_BASE, u32s(0, 65535));
  assert.deepEqual(device.calls, [
    ['setVringNum', 0, 1],
    ['setVringNum', 0, 32768],
    ['setVringBase', 0, 65535],
  ]);
});

ioctlTest('cuse ioctls: other ioctls are ENOTTY, whatever comes with them', async ({ device, caller, cuse }) => {
  for (const cmd of [0, 0xaf00, 0x4008af13, 0x4008af23, 0x5401, 0xffff_ffff, vhost.VHOST_SET_MEM_TABLE + 0x10000]) {
    assert.equal(await caller.call(cmd, new Uint8Array(64)), ENOTTY);
    const { error } = await cuse.kernel.ioctlRequest(caller.handle, cmd, 0, { data: new Uint8Array(8), outSize: 8 });
    assert.equal(error, ENOTTY);
  }
  assert.deepEqual(device.calls, []);
});

ioctlTest(
  'cuse ioctls: an argument that is nowhere is EFAULT, and a 32-bit caller is served like others',
  async ({ device, caller, cuse }) => {
    assert.equal(await caller.call(vhost.VHOST_SET_VRING_NUM), EFAULT);
    assert.equal(await caller.call(vhost.VHOST_GET_FEATURES, new Uint8Array(4)), EFAULT);
    assert.deepEqual(device.calls, []);
    const flags = 2 | 1;
    const data = u32s(0, 64) as Uint8Array<ArrayBuffer>;
    assert.equal(
      (await cuse.kernel.ioctlRequest(caller.handle, vhost.VHOST_SET_VRING_NUM, 0, { data, flags })).error,
      0,
    );
    assert.deepEqual(device.calls, [['setVringNum', 0, 64]]);
  },
);

ioctlTest(
  'cuse ioctls: guest memory is found by its address, whatever the opener still has open',
  async ({ device, caller, box }, t) => {
    const fd = box.memfd(4 * MIB);
    const open = mapped(t, 4 * MIB, fd);
    const gone = createMemfd('gone', MIB);
    const closed = mapped(t, MIB, gone);
    closeSync(gone);
    const before = openFds();
    await caller.must(
      vhost.VHOST_SET_MEM_TABLE,
      memoryTable([
        { guestAddr: 0, size: 0xa0000, userAddr: open.address },
        { guestAddr: 0xc0000, size: MIB, userAddr: open.address + 0xc0000 },
        { guestAddr: 2 ** 32, size: MIB, userAddr: closed.address },
      ]),
    );
    assert.deepEqual(device.calls, [
      [
        'setMemory',
        [
          { guestAddr: 0, size: 0xa0000, frontendAddr: open.address, fileOff: 0, fd: 'fd' },
          { guestAddr: 0xc0000, size: MIB, frontendAddr: open.address + 0xc0000, fileOff: 0xc0000, fd: 'fd' },
          { guestAddr: 2 ** 32, size: MIB, frontendAddr: closed.address, fileOff: 0, fd: 'fd' },
        ],
      ],
    ]);
    assert.equal(openFds(), before);
  },
);

ioctlTest(
  'cuse ioctls: a region over several files is several, over pieces of one file it is one',
  async ({ device, caller, box }, t) => {
    const memory = new OwnMemory(4 * MIB);
    t.after(() => memory.close());
    const [a, b] = [box.memfd(4 * MIB), box.memfd(4 * MIB)];
    memory
      .map(a, 0, MIB, 0)
      .map(a, MIB, MIB, MIB)
      .map(b, 2 * MIB, MIB, 0)
      .map(a, 3 * MIB, MIB, 3 * MIB);
    const table = memoryTable([{ guestAddr: 0x1000_0000, size: 4 * MIB, userAddr: memory.address }]);
    await caller.must(vhost.VHOST_SET_MEM_TABLE, table);
    const [[, regions]] = device.calls as [[string, { guestAddr: number; size: number; fileOff: number }[]]];
    assert.deepEqual(
      regions.map(({ guestAddr, size, fileOff }) => [guestAddr - 0x1000_0000, size, fileOff]),
      [
        [0, 2 * MIB, 0],
        [2 * MIB, MIB, 0],
        [3 * MIB, MIB, 3 * MIB],
      ],
    );
  },
);

ioctlTest(
  'cuse ioctls: memory that is not shared is refused with the option to use',
  async ({ device, caller, cuse }) => {
    const anonymous = new OwnMemory(32 * MIB);
    const table = memoryTable([{ guestAddr: 0, size: 32 * MIB, userAddr: anonymous.address }]);
    assert.equal(await caller.call(vhost.VHOST_SET_MEM_TABLE, table), EFAULT);
    assert.match(
      cuse.refusals.join(),
      /guest memory region 0, at 0x[0-9a-f]+ in the opener, is anonymous memory, and must be shared; in QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on/,
    );
    assert.deepEqual(device.calls, []);
  },
);

ioctlTest(
  'cuse ioctls: a small private region beside a shared one is left out',
  async ({ device, caller, cuse, box }, t) => {
    const shared = mapped(t, MIB, box.memfd(MIB));
    const video = new OwnMemory(32 * MIB);
    const table = (size: number) =>
      memoryTable([
        { guestAddr: 0, size: MIB, userAddr: shared.address },
        { guestAddr: 2 ** 32, size, userAddr: video.address },
      ]);
    await caller.must(vhost.VHOST_SET_MEM_TABLE, table(16 * MIB));
    assert.equal((device.calls[0][1] as unknown[]).length, 1);
    assert.match(cuse.refusals.join(), /guest memory region 1, .* is anonymous memory, .*: left out$/);
    assert.equal(await caller.call(vhost.VHOST_SET_MEM_TABLE, table(16 * MIB + 4096)), EFAULT);
    assert.equal(device.calls.length, 1);
  },
);

ioctlTest(
  'cuse ioctls: regions that are nowhere, too many, empty or across each other are refused',
  async ({ device, caller, cuse, box }, t) => {
    const memory = mapped(t, MIB, box.memfd(MIB));
    const at = (guestAddr: number, size: number, userAddr: number) => ({ guestAddr, size, userAddr });
    const bad: readonly (readonly [Uint8Array, number, RegExp])[] = [
      // what lies in front of it is nothing, or something of this process
      [memoryTable([at(0, MIB, memory.address - 0x1000)]), EFAULT, /of which .* are mapped there|is anonymous memory/],
      [memoryTable([at(0, 0x1000, 0x1000)]), EFAULT, /has 4096 bytes, of which 0 are mapped there/],
      [memoryTable([at(0, 2 ** 52, memory.address)]), EFAULT, /of which/],
      [memoryTable([at(0, 0, memory.address)]), EFAULT, /is empty/],
      [memoryTable([at(2 ** 53 - 4096, 8192, memory.address)]), EFAULT, /ends beyond 2\^53/],
      [
        memoryTable([at(0, 0x2000, memory.address), at(0x1000, 0x1000, memory.address + 0x4000)]),
        EFAULT,
        /overlap in their guest addresses/,
      ],
      [
        memoryTable([at(0, 0x2000, memory.address), at(0x4000, 0x1000, memory.address + 0x1000)]),
        EFAULT,
        /overlap in their user addresses/,
      ],
      [memoryTable([], 510), E2BIG, /510 regions, must be at most 509/],
      [memoryTable([], 0xffff_ffff), E2BIG, /4294967295 regions/],
      [memoryTable([], 2 ** 32), EOPNOTSUPP, /the padding is not 0/],
    ];
    const before = openFds();
    for (const [table, errno, message] of bad) {
      assert.equal(await caller.call(vhost.VHOST_SET_MEM_TABLE, table), errno, String(message));
      assert.match(cuse.refusals.at(-1) as string, message);
    }
    const wild = memoryTable([at(0, MIB, memory.address)]);
    for (const off of [8, 16, 24]) {
      const bytes = wild.slice();
      new DataView(bytes.buffer).setBigUint64(off, 2n ** 64n - 1n, true);
      assert.equal(await caller.call(vhost.VHOST_SET_MEM_TABLE, bytes), EFAULT);
    }
    assert.deepEqual([device.calls, openFds()], [[], before]);
  },
);

ioctlTest('cuse ioctls: as many regions as a device holds', async ({ device, caller, box }, t) => {
  const COUNT = 509;
  const memory = mapped(t, COUNT * 0x2000, box.memfd(COUNT * 0x2000));
  const table = memoryTable(
    Array.from({ length: COUNT }, (_, i) => ({
      guestAddr: i * 0x2000,
      size: 0x1000,
      userAddr: memory.address + i * 0x2000,
    })),
  );
  await caller.must(vhost.VHOST_SET_MEM_TABLE, table);
  assert.equal((device.calls[0][1] as unknown[]).length, COUNT);
});

ioctlTest(
  'cuse ioctls: a table that changes while it is copied is refused',
  async ({ device, caller, cuse, box }, t) => {
    const memory = mapped(t, MIB, box.memfd(MIB));
    for (const [from, to] of [
      [2, 3],
      [2, 1],
      [2, 0],
      [1, 509],
    ]) {
      const regions = Array.from({ length: from }, (_, i) => ({
        guestAddr: i * 0x1000,
        size: 0x1000,
        userAddr: memory.address + i * 0x1000,
      }));
      const bytes = memoryTable(regions);
      let copied = 0;
      const change = () => {
        // the head has been copied, and the whole of it is about to be
        if (++copied === 2) new DataView(bytes.buffer).setUint32(0, to, true);
      };
      const memoryOf = { base: 0x1000, bytes };
      const { result } = await cuse.kernel.ioctl(caller.handle, vhost.VHOST_SET_MEM_TABLE, memoryOf, change);
      assert.equal(result, EINVAL, `${from} regions become ${to}`);
    }
    assert.deepEqual(device.calls, []);
  },
);

ioctlTest(
  'cuse ioctls: a file that the opener may only read is not opened to write to',
  async ({ device, caller, cuse }, t) => {
    const file = createMemfd('read-only', MIB);
    const address = Number(mmap(0n, MIB, PROT_READ, MAP_SHARED, file, 0));
    closeSync(file);
    t.after(() => munmap(address, MIB));
    const before = openFds();
    const table = memoryTable([{ guestAddr: 0, size: MIB, userAddr: address }]);
    assert.equal(await caller.call(vhost.VHOST_SET_MEM_TABLE, table), EFAULT);
    assert.match(cuse.refusals.join(), /is read-only memory of \/memfd:read-only/);
    assert.deepEqual([device.calls, openFds()], [[], before]);
  },
);

/** A process that does nothing, with `fds` as its descriptors from 3 on. */
function idler(t: TestContext, fds: readonly number[] = []): ChildProcess {
  const child = spawn('sleep', ['600'], { stdio: ['ignore', 'ignore', 'ignore', ...fds] });
  t.after(() => child.kill('SIGKILL'));
  return child;
}

ioctlTest('cuse ioctls: descriptors and memory are the opener’s', async ({ cuse, device, caller, box }, t) => {
  await caller.must(vhost.VHOST_RESET_OWNER);
  const child = idler(t, box.many(1));
  cuse.kernel.pid = child.pid as number;
  await caller.must(vhost.VHOST_SET_OWNER);
  device.calls.length = 0;
  await caller.must(vhost.VHOST_SET_VRING_CALL, u32s(0, 3));
  assert.equal(await caller.call(vhost.VHOST_SET_VRING_CALL, u32s(0, 999)), EBADF);
  assert.deepEqual(device.calls, [['setVringCall', 0, 'fd']]);
  const memory = mapped(t, MIB, box.memfd(MIB));
  const table = memoryTable([{ guestAddr: 0, size: MIB, userAddr: memory.address }]);
  assert.equal(await caller.call(vhost.VHOST_SET_MEM_TABLE, table), EFAULT);
});

ioctlTest(
  'cuse ioctls: when the owner ends, the device forgets all, though another still has it open',
  async ({ cuse, device, caller, box }, t) => {
    await caller.must(vhost.VHOST_RESET_OWNER);
    const child = idler(t, box.many(1));
    cuse.kernel.pid = child.pid as number;
    await caller.must(vhost.VHOST_SET_OWNER);
    await caller.must(vhost.VHOST_SET_VRING_KICK, u32s(0, 3));
    device.calls.length = 0;
    child.kill('SIGKILL');
    await until(() => device.calls.length > 0, 'the device is reset');
    assert.deepEqual(device.calls, [['reset']]);
    assert.equal(device.destroyed, false);
    cuse.kernel.pid = process.pid;
    await caller.must(vhost.VHOST_SET_OWNER);
  },
);
