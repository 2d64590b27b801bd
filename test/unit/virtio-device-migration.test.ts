import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { ProtocolError } from '../../src/errors.ts';
import type { MemoryRange } from '../../src/mem/guest-memory.ts';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { createPipe } from '../../src/sys/pipe.ts';
import { VHOST_USER_PROTOCOL_F_DEVICE_STATE, VHOST_USER_PROTOCOL_F_PAGEFAULT } from '../../src/uapi/vhost-user.ts';
import { featureMask, hasFeature, VHOST_F_LOG_ALL, VIRTIO_F_RING_PACKED } from '../../src/uapi/virtio.ts';
import type { Postcopy } from '../../src/vhost/device-model.ts';
import { StateTransfer } from '../../src/vhost/state-transfer.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import {
  addresses,
  DeviceBench,
  FRONTEND,
  leakless,
  MIB,
  MODERN,
  NUM,
  openFds,
  plainModel,
  pool,
  region,
  sharedArea,
} from '../kit/device-bench.ts';

const LOGGED = MODERN | featureMask(VHOST_F_LOG_ALL);
const GIB = 2 ** 30;
/** Bytes of a log for 16 MiB of guest memory. */
const LOG_BYTES = 512;
const refuses = (call: Promise<unknown>, code: string, message: RegExp) => assert.rejects(call, { code, message });
const bench = (vrings = 1) => DeviceBench.of(plainModel(vrings));

test('virtio device: the dirty log counts while LOG_ALL is negotiated, and rings go on meanwhile', () =>
  leakless(async () => {
    const { device, datapath, told } = await bench().setUp({ vrings: [0], memory: [region(0), region(4 * MIB)] });
    await device.setLog(sharedArea(LOG_BYTES, 4104, 0x5a));
    assert.deepEqual(datapath.calls, [], 'nobody writes it yet');
    await device.setFeatures(LOGGED, true);
    assert.deepEqual(datapath.calls, ['memory']);
    const log = datapath.memory.log!;
    assert.deepEqual([datapath.byteAt(log), log.size, log.callFd], [0x5a, LOG_BYTES, NO_FD]);
    assert.deepEqual(
      log.pages.map(({ guestAddr, size, window, off }) => [guestAddr, size, { window, windowOff: off }]),
      datapath.chunks.map(({ guestAddr, reach, window, windowOff }) => [guestAddr, reach, { window, windowOff }]),
    );
    await device.setFeatures(LOGGED, true);
    await device.setFeatures(MODERN, true);
    assert.deepEqual([datapath.calls, datapath.memory.log, told], [['memory', 'memory'], undefined, ['ready']]);
    await device.destroy();
  }));

test('virtio device: LOG_ALL may come before the log, and a log gives way when the datapath has let go', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ vrings: [0], features: LOGGED });
    assert.equal(datapath.memory.log, undefined);
    const first = sharedArea(LOG_BYTES, 0, 1);
    await device.setLog(first);
    const windows = pool.lent;
    assert.equal(datapath.byteAt(datapath.memory.log!), 1);
    datapath.onMemory = () => assert.equal(datapath.byteAt(datapath.memory.log!), 1, 'it is there until then');
    await device.setLog(sharedArea(2 * LOG_BYTES, 0, 2));
    datapath.onMemory = () => {};
    assert.throws(() => fstatSync(first.fd), { code: 'EBADF' });
    assert.deepEqual([datapath.byteAt(datapath.memory.log!), datapath.memory.log!.size], [2, 2 * LOG_BYTES]);
    assert.equal(pool.lent, windows);
    await device.reset();
    assert.equal(datapath.memory.log, undefined);
    assert.equal(pool.lent, windows - 2, 'guest memory and log');
    await device.destroy();
  }));

test('virtio device: a log that does not reach to the end of guest memory is refused, whichever comes first', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ vrings: [0], memory: [region(0), region(15 * MIB)] });
    await refuses(
      device.setLog(sharedArea(LOG_BYTES - 1)),
      'BAD_SHARED_AREA',
      /^SET_LOG_BASE: the dirty log has 511 bytes, guest memory up to 0x1000000 needs 512/,
    );
    await device.setLog(sharedArea(LOG_BYTES));
    await device.addMemory(region(16 * MIB));
    await refuses(device.setFeatures(LOGGED, true), 'BAD_SHARED_AREA', /^SET_FEATURES: the dirty log has 512 bytes/);
    assert.equal(device.features, MODERN);
    await device.removeMemory(16 * MIB, MIB, FRONTEND + 16 * MIB);
    await device.setFeatures(LOGGED, true);
    const before = openFds();
    datapath.calls.length = 0;
    await refuses(device.addMemory(region(16 * MIB)), 'BAD_SHARED_AREA', /^ADD_MEM_REG/);
    assert.deepEqual([openFds(), datapath.calls], [before, []]);
    await refuses(device.setMemory([region(0), region(16 * MIB)]), 'BAD_SHARED_AREA', /^SET_MEM_TABLE/);
    assert.equal(device.memoryBytes, 0);
    await device.destroy();
  }));

test('virtio device: the datapath hears of the log’s eventfd, which cannot block', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ vrings: [0], features: LOGGED });
    await device.setLogFd(createEventfd());
    assert.deepEqual(datapath.calls, []);
    await device.setLog(sharedArea(LOG_BYTES));
    const first = datapath.memory.log!.callFd!;
    assert.ok(device.hasCallFd(first));
    assert.match(readFileSync(`/proc/self/fdinfo/${first}`, 'utf8'), /flags:\s+0[0-7]*4[0-7]{3}\n/);
    datapath.onMemory = () => fstatSync(first);
    const before = openFds();
    await device.setLogFd(createEventfd());
    assert.equal(openFds(), before);
    assert.notEqual(datapath.memory.log!.callFd, NO_FD);
    datapath.onMemory = () => {};
    await device.setLogFd(NO_FD);
    assert.deepEqual([datapath.memory.log!.callFd, openFds()], [NO_FD, before - 1]);
    await device.destroy();
  }));

test('virtio device: a region over several windows is in the log wherever it lies', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ vrings: [0], features: LOGGED, memory: [region(0, 5 * GIB)] });
    await device.setLog(sharedArea((5 * GIB) / 4096 / 8));
    const { pages } = datapath.memory.log!;
    assert.ok(pages.length >= 3);
    for (const chunk of datapath.chunks)
      for (const at of [0, chunk.reach - 1]) {
        const off = chunk.windowOff + at;
        const piece = pages.find((p) => p.window === chunk.window && off >= p.off && off < p.off + p.size)!;
        assert.equal(piece.guestAddr + off - piece.off, chunk.guestAddr + at);
      }
    await device.destroy();
  }));

test('virtio device: inflight records come back from the front end, and each ring is told where its own are', () =>
  leakless(async () => {
    const { device, datapath } = await bench(3).setUp({ vrings: [0, 1, 2] });
    const area = device.getInflight(2, NUM);
    writeSync(area.fd, Uint8Array.of(0x77), 0, 1, area.size / 2);
    await device.setInflight(area, 2, NUM);
    const places = datapath.running.map((vring) => vring!.config.ring.inflight);
    assert.deepEqual([places[0]!.num, places[1]!.num, places[2]], [NUM, NUM, undefined]);
    assert.equal(datapath.byteAt(places[1]!), 0x77);
    assert.equal(places[1]!.off - places[0]!.off, area.size / 2);

    datapath.onMemory = () => fstatSync(area.fd);
    const next = device.getInflight(3, NUM);
    await device.setInflight(next, 3, NUM);
    datapath.onMemory = () => {};
    assert.throws(() => fstatSync(area.fd), { code: 'EBADF' });
    assert.notEqual(datapath.running[2]!.config.ring.inflight, undefined);
    await refuses(device.setVringNum(0, 2 * NUM), 'BAD_VRING', /512 descriptors, its inflight records are for 256/);
    await device.destroy();
  }));

test('virtio device: inflight records are as large as the ring’s format needs, and as few as fit', () =>
  leakless(async () => {
    const { device } = bench(2);
    await device.setFeatures(MODERN, true);
    const split = device.getInflight(2, NUM);
    await device.setFeatures(MODERN | featureMask(VIRTIO_F_RING_PACKED), true);
    const packed = device.getInflight(2, NUM);
    assert.deepEqual([split.size, packed.size], [2 * 64 * 65, 2 * (32 + 32 * NUM + 32)]);
    await refuses(device.setInflight(split, 2, NUM), 'BAD_SHARED_AREA', /2 queues of 256 descriptors need 16512 bytes/);
    assert.throws(() => fstatSync(split.fd), { code: 'EBADF' });
    assert.throws(() => device.getInflight(3, NUM), { code: 'BAD_SHARED_AREA' });
    await device.setInflight(packed, 2, NUM);
    await device.resetRings();
    assert.throws(() => fstatSync(packed.fd), { code: 'EBADF' });
    for (let i = 0; i < 1000; i++) closeSync(device.getInflight(2, NUM).fd);
    await device.destroy();
  }));

/** A device with a state of `size` bytes; `loaded` gets what it is given. */
function stateful(size: number) {
  const loaded: Uint8Array[] = [];
  const state = Uint8Array.from({ length: size }, (_, i) => (i * 7) % 251);
  const load = (bytes: Uint8Array) => {
    if (bytes[0] === 0xff) throw new ProtocolError('BAD_STATE', 'CHECK_DEVICE_STATE', 'no state of mine');
    loaded.push(bytes);
  };
  return { ...DeviceBench.of(plainModel(1, { save: () => state, load })), state, loaded };
}

/** Everything that comes out of a pipe's end, read as a front end does; closes it. */
async function readAll(fd: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (;;) {
    const part = Buffer.alloc(5000);
    try {
      const n = readSync(fd, part, 0, part.length, null);
      if (n === 0) break;
      parts.push(part.subarray(0, n));
    } catch (error) {
      assert.equal((error as NodeJS.ErrnoException).code, 'EAGAIN');
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
  closeSync(fd);
  return Buffer.concat(parts);
}

for (const size of [0, 1, 4096, 300_000, 2 ** 20])
  test(`virtio device: a state of ${size} bytes goes from one device to another`, () =>
    leakless(async () => {
      const source = stateful(size);
      const target = stateful(0);
      assert.ok(hasFeature(source.device.protocolFeatures, VHOST_USER_PROTOCOL_F_DEVICE_STATE));
      const out = createPipe();
      await source.device.transferState('save', 0, out.writeFd);
      const bytes = await readAll(out.readFd);
      await source.device.checkState();
      assert.deepEqual(bytes, Buffer.from(source.state));

      const into = createPipe();
      await target.device.transferState('load', 0, into.readFd);
      const checked = target.device.checkState();
      for (let done = 0; done < size; ) {
        try {
          done += writeSync(into.writeFd, bytes, done, Math.min(size - done, 10_000));
        } catch (error) {
          assert.equal((error as NodeJS.ErrnoException).code, 'EAGAIN');
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
      }
      closeSync(into.writeFd);
      await checked;
      assert.deepEqual(Buffer.from(target.loaded[0]), bytes);
      await source.device.destroy();
      await target.device.destroy();
    }));

test('virtio device: a state that cannot be is told by CHECK_DEVICE_STATE', () =>
  leakless(async () => {
    const { device, loaded } = stateful(8);
    const attempt = async (bytes: Uint8Array): Promise<void> => {
      const { readFd, writeFd } = createPipe();
      await device.transferState('load', 0, readFd);
      for (let done = 0; done < bytes.length; ) {
        try {
          done += writeSync(writeFd, bytes, done);
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') break;
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
      }
      closeSync(writeFd);
      await device.checkState();
    };
    await refuses(attempt(Uint8Array.of(0xff)), 'BAD_STATE', /^CHECK_DEVICE_STATE: no state of mine/);
    await refuses(attempt(new Uint8Array(2 ** 20 + 1)), 'BAD_STATE', /larger than 1048576 bytes/);
    await refuses(device.checkState(), 'BAD_STATE', /^CHECK_DEVICE_STATE: no state has been transferred/);
    const unread = createPipe();
    closeSync(unread.readFd);
    await device.transferState('save', 0, unread.writeFd);
    await refuses(device.checkState(), 'BAD_STATE', /EPIPE/);
    assert.deepEqual(loaded, []);
    await device.destroy();
  }));

test('virtio device: a transfer that must not be is refused, and its descriptor closed', () =>
  leakless(async () => {
    const { device } = stateful(8);
    const end = () => {
      const { readFd, writeFd } = createPipe();
      closeSync(readFd);
      return writeFd;
    };
    const file = openSync('/dev/null', 'r+');
    await refuses(device.transferState('save', 0, file), 'BAD_STATE', /^SET_DEVICE_STATE_FD: .* is not a pipe/);
    await refuses(device.transferState('save', 1, end()), 'BAD_STATE', /phase 1 is unknown/);
    const { readFd, writeFd } = createPipe();
    await device.transferState('load', 0, readFd);
    await refuses(device.transferState('save', 0, end()), 'BAD_STATE', /CHECK_DEVICE_STATE must end/);
    await device.setStatus(0);
    await refuses(device.checkState(), 'BAD_STATE', /no state has been transferred/);
    closeSync(writeFd);
    await device.destroy();

    const running = await bench().setUp({ vrings: [0] });
    await refuses(running.device.transferState('save', 0, end()), 'BAD_STATE', /every vring must be stopped first/);
    await running.device.getVringBase(0, true);
    await refuses(running.device.transferState('save', 0, end()), 'BAD_STATE', /this device has no state/);
    assert.ok(!hasFeature(running.device.protocolFeatures, VHOST_USER_PROTOCOL_F_DEVICE_STATE));
    await running.device.destroy();
  }));

test('virtio device: a front end that goes leaves no transfer behind, nor who waits for it', () =>
  leakless(async () => {
    const { device } = stateful(8);
    const { readFd, writeFd } = createPipe();
    await device.transferState('load', 0, readFd);
    const checked = refuses(device.checkState(), 'BAD_STATE', /the front end is gone/);
    device.frontEndGone();
    await checked;
    closeSync(writeFd);
    await device.destroy();
  }));

test('state transfer: one that never ends is ended', () =>
  leakless(async () => {
    const { readFd, writeFd } = createPipe();
    const transfer = StateTransfer.load(readFd, () => {}, 50);
    // the timer alone keeps no process alive
    const alive = setInterval(() => {}, 1000);
    await refuses(transfer.ended, 'BAD_STATE', /it has not ended within 50 ms/);
    clearInterval(alive);
    closeSync(writeFd);
  }));

/** Stands in for a userfaultfd. */
class FakePostcopy implements Postcopy {
  readonly told: string[];
  readonly #fd = createEventfd();
  constructor(told: string[]) {
    this.told = told;
  }
  shareFd(): number {
    return createEventfd();
  }
  register(ranges: readonly MemoryRange[]): void {
    this.told.push(...ranges.map(({ address, size }) => `register ${address} ${size}`));
  }
  unregister(): void {}
  close(): void {
    closeSync(this.#fd);
    this.told.push('close');
  }
}

/** A device that can do postcopy, and what its Postcopy was told. */
function postcopyBench() {
  const told: string[] = [];
  const made = DeviceBench.of(plainModel(1), () => new FakePostcopy(told));
  return { device: made.device, datapath: made.datapath, told, runs: () => made.runs[0] };
}

test('virtio device: in postcopy, rings wait until the front end knows where memory is, and files may be empty', () =>
  leakless(async () => {
    const { device, datapath, told, runs } = postcopyBench();
    assert.ok(hasFeature(device.protocolFeatures, VHOST_USER_PROTOCOL_F_PAGEFAULT));
    closeSync(await device.postcopyAdvise());
    await device.postcopyListen();
    await device.setFeatures(MODERN, true);
    const odd = { ...region(4 * MIB, 2 * MIB, false), size: MIB, fileOff: 4104 };
    await device.setMemory([region(0, MIB, false), odd]);
    const addressesHere = device.postcopyAddresses();
    const handle = (i: number) => datapath.memory.windows.find(({ id }) => id === datapath.chunks[i].window)!.address;
    assert.deepEqual(
      addressesHere,
      [0, 1].map((i) => handle(i) + BigInt(datapath.chunks[i].windowOff)),
    );
    assert.deepEqual(told, [`register ${addressesHere[0]} ${MIB}`, `register ${addressesHere[1] - 8n} ${MIB + 4096}`]);
    await refuses(device.addMemory(region(MIB)), 'BAD_POSTCOPY', /^ADD_MEM_REG: memory slots and postcopy/);
    await refuses(device.removeMemory(0, MIB, FRONTEND), 'BAD_POSTCOPY', /^REM_MEM_REG/);
    await device.setVringNum(0, NUM);
    await device.setVringAddr(0, addresses(0));
    await device.setVringKick(0, createEventfd());
    assert.equal(runs(), false);
    assert.equal(device.coverHoles(), false);
    assert.equal(fstatSync(odd.fd).blocks, 0, 'looking for holes fills none');
    await device.postcopyReady();
    assert.equal(runs(), true);
    await device.postcopyEnd();
    assert.deepEqual([told.at(-1), runs()], ['close', true]);
    await device.destroy();
    assert.equal(told.filter((line) => line === 'close').length, 1);
  }));

test('virtio device: postcopy is refused out of order, without the means, and for memory in several windows', () =>
  leakless(async () => {
    const without = bench().device;
    await refuses(without.postcopyAdvise(), 'BAD_POSTCOPY', /^POSTCOPY_ADVISE: postcopy migration is not offered/);
    assert.ok(!hasFeature(without.protocolFeatures, VHOST_USER_PROTOCOL_F_PAGEFAULT));
    await without.destroy();
    const { device, told } = postcopyBench();
    await refuses(device.postcopyListen(), 'BAD_POSTCOPY', /^POSTCOPY_LISTEN: POSTCOPY_ADVISE must come first/);
    closeSync(await device.postcopyAdvise());
    await device.setMemory([region(0)]);
    assert.deepEqual(told, [], 'memory before LISTEN is as always');
    await device.postcopyListen();
    await refuses(
      device.setMemory([region(0), region(4 * GIB, 3 * GIB)]),
      'BAD_POSTCOPY',
      /^SET_MEM_TABLE: guest memory region 1 is too large to be mapped in one piece/,
    );
    assert.deepEqual([told, device.memoryBytes], [[], 0]);
    closeSync(await device.postcopyAdvise());
    assert.deepEqual(told, ['close'], 'a new one takes the place of the old');
    device.frontEndGone();
    assert.deepEqual(told, ['close', 'close'], 'nobody is left to bring pages');
    await device.destroy();
  }));
