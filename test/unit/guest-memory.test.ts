import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, fstatSync, ftruncateSync, mkdtempSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ProtocolError } from '../../src/errors.ts';
import { AddressMap } from '../../src/mem/address-map.ts';
import { GuestMemory, type MemoryRegion } from '../../src/mem/guest-memory.ts';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import { createMemfd } from '../../src/sys/memory.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const TIB = 2 ** 40;
/** Front-end addresses are guest addresses plus this. */
const FRONTEND = 0x7f00_0000_0000;
const TWO_32 = 2 ** 32;

const pool = new WindowPool('wasm');
const openFds = () => readdirSync('/proc/self/fd').length;

function region(guestAddr: number, size: number, fileOff = 0, fd = createMemfd('test', fileOff + size)): MemoryRegion {
  return { guestAddr, size, frontendAddr: FRONTEND + guestAddr, fileOff, fd };
}

/** Guest memory as an lcore sees it. */
class Seen {
  readonly map: AddressMap;
  readonly #windows = new Map<number, DataView>();

  constructor(memory: GuestMemory) {
    this.map = new AddressMap(memory.chunks);
    for (const window of memory.windows) this.#windows.set(window.id, openWindow(window).dv);
  }

  /** The 32-bit word at a guest address, or undefined where `len` bytes from there on do not lie in one piece. */
  word(addr: number, len = 4): number | undefined {
    const lo = (addr % TWO_32) | 0;
    if (!this.map.select(lo, Math.floor(addr / TWO_32) | 0, len)) return undefined;
    return this.#windows.get(this.map.window)!.getUint32(this.map.offset(lo), true);
  }
}

/** Writes words that tell their file offset at those offsets, through the file. */
function mark(fd: number, offsets: readonly number[]): void {
  for (const off of offsets) writeSync(fd, Uint32Array.of(markOf(off)), 0, 4, off);
}
const markOf = (off: number) => (Math.imul(off % TWO_32, 0x9e3779b1) ^ Math.floor(off / TWO_32) ^ 0x5bd1e995) >>> 0;

test('guest memory: several regions at any base and file offset show their files', () => {
  const memory = new GuestMemory(pool);
  const regions = [
    region(0, 3 * MIB),
    region(TWO_32, MIB, 0x5000),
    region(2 ** 46, 2 * MIB, 0x1234),
    region(2 ** 46 + 2 * MIB, 0x3000, 0xfff),
    region(0x8000_0000, 0x800),
  ];
  regions.forEach((r, i) => {
    mark(r.fd, [r.fileOff, r.fileOff + r.size - 4]);
    memory.add(r, i, 'SET_MEM_TABLE');
  });
  const seen = new Seen(memory);
  for (const { guestAddr, size, fileOff } of regions) {
    assert.equal(seen.word(guestAddr), markOf(fileOff));
    assert.equal(seen.word(guestAddr + size - 4), markOf(fileOff + size - 4));
    assert.notEqual(seen.word(guestAddr, size), undefined);
    assert.equal(seen.word(guestAddr, size + 1), undefined);
  }
  for (const nowhere of [3 * MIB, TWO_32 - 4, TWO_32 + MIB, 0x8000_0800, 2 ** 46 - 4, 2 ** 46 + 2 * MIB + 0x3000])
    assert.equal(seen.word(nowhere), undefined, `0x${nowhere.toString(16)}`);
  assert.equal(memory.windows.length, 1, 'small regions share a window');
  memory.clear();
});

test('guest memory: placeOf finds rings by the front end’s addresses, and only where all of a ring lies', () => {
  const memory = new GuestMemory(pool);
  memory.add(region(0x10_0000, MIB, 0x240), 0, 'SET_MEM_TABLE');
  memory.add(region(0x20_0000, MIB), 1, 'SET_MEM_TABLE');
  const at = memory.placeOf(FRONTEND + 0x10_0040, 64);
  const seen = new Seen(memory);
  seen.map.select(0x10_0040, 0, 64);
  assert.deepEqual(at, { window: seen.map.window, off: seen.map.offset(0x10_0040) });
  assert.notEqual(memory.placeOf(FRONTEND + 0x10_0000, MIB), undefined);
  assert.equal(memory.placeOf(FRONTEND + 0x10_0000, MIB + 1), undefined);
  assert.equal(memory.placeOf(FRONTEND + 0x20_0000 - 4, 8), undefined);
  assert.equal(memory.placeOf(FRONTEND + 0xf_ffff, 2), undefined);
  assert.equal(memory.placeOf(0x10_0000, 1), undefined);
  memory.clear();
});

test('guest memory: rings are found by guest addresses where that is what they are', () => {
  const memory = new GuestMemory(pool);
  memory.add(region(0x10_0000, MIB, 0x240), 0, 'SET_MEM_TABLE');
  assert.deepEqual(memory.placeOf(0x10_0040, 64, 'guest'), memory.placeOf(FRONTEND + 0x10_0040, 64));
  assert.equal(memory.placeOf(FRONTEND + 0x10_0040, 64, 'guest'), undefined);
  assert.equal(memory.placeOf(0x1f_fffc, 8, 'guest'), undefined);
  assert.deepEqual([memory.regionAt(0x10_0000, 'guest'), memory.regionAt(0x10_0000)], [0, -1]);
  assert.equal(memory.guestEnd, 0x20_0000);
  memory.clear();
  assert.equal(memory.guestEnd, 0);
});

test('guest memory: a range is told piece by piece, also where it goes on in the next region or window', () => {
  const memory = new GuestMemory(pool);
  memory.add(region(0x10_0000, MIB, 0x1000), 0, 'SET_MEM_TABLE');
  memory.add(region(0x20_0000, 5 * GIB), 1, 'SET_MEM_TABLE');
  const addr = FRONTEND + 0x10_8000;
  const len = 5 * GIB;
  const pieces = memory.piecesOf(addr, len)!;
  assert.equal(
    pieces.reduce((sum, { size }) => sum + size, 0),
    len,
  );
  let at = addr;
  for (const { window, off, size, reach } of pieces) {
    assert.deepEqual(memory.placeOf(at, size), { window, off });
    assert.ok(reach >= size && at + reach <= addr + len);
    assert.deepEqual(memory.placeOf(at, reach), { window, off }, 'all that it reaches is there');
    at += size;
  }
  assert.deepEqual(memory.piecesOf(0x10_8000, len, 'guest'), pieces);
  assert.deepEqual(memory.piecesOf(addr, 0), []);
  assert.equal(memory.piecesOf(addr, 6 * GIB), undefined);
  assert.equal(memory.piecesOf(FRONTEND, MIB), undefined);
  memory.clear();
});

test('guest memory: it tells where in this process each region is mapped, and in how many ranges', () => {
  const memory = new GuestMemory(pool);
  const odd = region(0x10_0000, MIB, 0x1238);
  mark(odd.fd, [0x1238]);
  memory.add(odd, 0, 'SET_MEM_TABLE');
  memory.add(region(0x20_0000, 3 * GIB), 1, 'SET_MEM_TABLE');
  const [first, second] = memory.ranges;
  assert.deepEqual([first.length, first[0].size, second.length], [1, MIB + 0x1000, 2]);
  assert.equal(memory.firstBytes[0], first[0].address + 0x238n);
  assert.equal(memory.firstBytes[1], second[0].address);
  const [{ window, off }] = memory.guestPieces;
  const handle = memory.windows.find(({ id }) => id === window)!;
  assert.equal(handle.address + BigInt(off), memory.firstBytes[0]);
  assert.equal(openWindow(handle).dv.getUint32(off, true), markOf(0x1238));
  memory.clear();
});

for (const base of [0, TWO_32, 2 ** 46, TWO_32 - 2 * GIB + 0x7000])
  test(`guest memory: 5 GiB from 0x${base.toString(16)} on spread over windows, and no frame straddles`, () => {
    const size = 5 * GIB;
    const memory = new GuestMemory(pool);
    const big = region(base, size);
    memory.add(big, 0, 'SET_MEM_TABLE');
    assert.ok(memory.windows.length >= 3);
    const edges = [...memory.chunks.map((chunk) => chunk.guestAddr - base), 4 * GIB, 2 * GIB, size - 8];
    const offsets = [...new Set(edges.flatMap((edge) => [edge - 4, edge, edge + 4]))].filter(
      (off) => off >= 0 && off + 4 <= size,
    );
    mark(big.fd, offsets);
    const seen = new Seen(memory);
    for (const first of offsets) {
      // whatever was looked at before
      for (const off of [first, ...offsets])
        assert.equal(seen.word(base + off), markOf(off), `offset 0x${off.toString(16)}`);
      const whole = Math.min(65536, size - first);
      assert.equal(seen.word(base + first, whole), markOf(first), 'a frame lies in one piece');
      assert.notEqual(memory.placeOf(FRONTEND + base + first, whole), undefined, 'a ring lies in one piece');
    }
    assert.equal(seen.word(base + size), undefined);
    assert.equal(seen.word(base + size - 4, 5), undefined);
    if (base > 0) assert.equal(seen.word(base - 4), undefined);
    memory.clear();
  });

function refuses(memory: GuestMemory, bad: MemoryRegion, index: number, message: RegExp): void {
  const before = openFds();
  assert.throws(
    () => memory.add(bad, index, 'ADD_MEM_REG'),
    (error) => error instanceof ProtocolError && error.code === 'BAD_MEMORY' && message.test(error.message),
  );
  assert.equal(openFds(), before - 1, 'the descriptor is closed');
  assert.throws(() => fstatSync(bad.fd), { code: 'EBADF' });
}

test('guest memory: what cannot be shared is refused by region number, and its descriptor is closed', () => {
  const dir = mkdtempSync(join(tmpdir(), 'vhost-switch-'));
  const memory = new GuestMemory(pool);
  memory.add(region(0x10_0000, MIB), 0, 'SET_MEM_TABLE');
  const fifo = join(dir, 'fifo');
  spawnSync('mkfifo', [fifo]);
  const plain = join(dir, 'plain');
  closeSync(openSync(plain, 'w'));
  const readOnly = () => {
    const fd = openSync(plain, 'r+');
    ftruncateSync(fd, MIB);
    closeSync(fd);
    return openSync(plain, 'r');
  };

  const short = createMemfd('test', 0x2fff);
  refuses(
    memory,
    region(0, 0x2000, 0x1000, short),
    3,
    /^ADD_MEM_REG: guest memory region 3 is too short: 12288 .* 12287$/,
  );
  refuses(memory, region(0, 0x1000, 0, openSync(fifo, 'r+')), 1, /region 1 is not a memory file: .*share=on/);
  refuses(memory, region(0, 0x1000, 0, openSync('/dev/null', 'r+')), 4, /region 4 is not a memory file/);
  refuses(memory, region(0x1f_f000, 0x2000), 5, /region 5 overlaps the region at guest address 0x100000$/);
  refuses(memory, region(0xf_f000, 0x1001), 6, /region 6 overlaps/);
  refuses(memory, region(0x11_0000, 0x1000), 7, /region 7 overlaps/);
  refuses(memory, region(TIB, TIB), 8, /region 8 makes the guest larger than 1 TiB/);
  refuses(memory, region(0, MIB, 0, readOnly()), 9, /region 9 cannot be mapped: mmap: EACCES/);
  assert.equal(memory.regions.length, 1, 'nothing of them is left');

  memory.add(region(0xf_f000, 0x1000), 1, 'ADD_MEM_REG');
  memory.add(region(0x20_0000, 0x1000), 2, 'ADD_MEM_REG');
  memory.clear();
  rmSync(dir, { recursive: true });
});

test('guest memory: detach takes a region out at once and unmaps it when told', () => {
  const before = openFds();
  const memory = new GuestMemory(pool);
  const gone = region(0, MIB);
  const stays = region(MIB, MIB);
  mark(gone.fd, [0]);
  mark(stays.fd, [0]);
  memory.add(gone, 0, 'ADD_MEM_REG');
  memory.add(stays, 1, 'ADD_MEM_REG');
  const stale = new Seen(memory);
  assert.equal(memory.detach(0, MIB, FRONTEND + 1), undefined);
  assert.equal(memory.detach(0, MIB - 1, FRONTEND), undefined);
  const unmap = memory.detach(0, MIB, FRONTEND)!;
  assert.equal(memory.detach(0, MIB, FRONTEND), undefined);
  assert.deepEqual(memory.regions, [stays]);
  assert.equal(new Seen(memory).word(0), undefined);
  assert.equal(memory.placeOf(FRONTEND, 4), undefined);
  assert.equal(stale.word(0), markOf(0), 'an lcore may still be at it');
  unmap();
  assert.equal(stale.word(0), 0, 'a stale address reads zero');
  assert.equal(stale.word(MIB), markOf(0));
  assert.equal(openFds(), before + 1);
  memory.clear();
  assert.equal(stale.word(MIB), 0);
  assert.equal(openFds(), before);
  assert.deepEqual([memory.regions, memory.chunks, memory.windows], [[], [], []]);
});

test('guest memory: windows go back to the pool, also those of regions removed one by one', () => {
  const own = new WindowPool('wasm');
  const memory = new GuestMemory(own);
  memory.add(region(0, 5 * GIB), 0, 'SET_MEM_TABLE');
  const ids = memory.windows.map(({ id }) => id);
  memory.clear();
  memory.add(region(0, 5 * GIB), 0, 'SET_MEM_TABLE');
  assert.deepEqual(memory.windows.map(({ id }) => id).sort(), ids.sort());
  memory.clear();
  for (let round = 0; round < 20; round++) {
    memory.add(region(0, GIB), 0, 'ADD_MEM_REG');
    memory.add(region(GIB, GIB), 1, 'ADD_MEM_REG');
    memory.detach(0, GIB, FRONTEND)!();
    memory.detach(GIB, GIB, FRONTEND + GIB)!();
  }
  assert.ok(own.acquire().id < ids.length + 2, 'removed regions give their windows back');
});

test('guest memory: a memfd cannot be truncated any more once it is mapped', () => {
  const memory = new GuestMemory(pool);
  const sealed = region(0, MIB);
  memory.add(sealed, 0, 'SET_MEM_TABLE');
  assert.throws(() => ftruncateSync(sealed.fd, 4096), { code: 'EPERM' });
  assert.equal(memory.coverTruncated(), false);
  memory.clear();
});

test('guest memory: a file truncated under us is covered with zeros, its neighbours are not', () => {
  const dir = mkdtempSync('/dev/shm/vhost-switch-');
  const memory = new GuestMemory(pool);
  const [cut, whole] = ['cut', 'whole'].map((name, i) => {
    const fd = openSync(join(dir, name), 'wx+');
    ftruncateSync(fd, MIB);
    mark(fd, [0, MIB - 4]);
    return region(i * MIB, MIB, 0, fd);
  });
  memory.add(cut, 0, 'SET_MEM_TABLE');
  memory.add(whole, 1, 'SET_MEM_TABLE');
  const seen = new Seen(memory);
  assert.equal(memory.coverTruncated(), false);
  assert.equal(seen.word(MIB - 4), markOf(MIB - 4));
  ftruncateSync(cut.fd, 4096);
  assert.equal(memory.coverTruncated(), true);
  assert.equal(seen.word(MIB - 4), 0);
  assert.equal(seen.word(2 * MIB - 4), markOf(MIB - 4));
  memory.clear();
  rmSync(dir, { recursive: true });
});

test('guest memory: a file without a page is told from one in use', () => {
  const memory = new GuestMemory(pool);
  const used = region(0, MIB);
  mark(used.fd, [0]);
  memory.add(used, 0, 'SET_MEM_TABLE');
  memory.add(region(MIB, MIB), 1, 'SET_MEM_TABLE');
  assert.equal(memory.findPrivate(FRONTEND), -1);
  assert.equal(memory.findPrivate(FRONTEND + 2 * MIB - 1), 1);
  assert.equal(memory.findPrivate(FRONTEND + 2 * MIB), -1);
  memory.clear();
});
