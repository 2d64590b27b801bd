import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AddressMap } from '../../src/mem/address-map.ts';
import type { RangePiece } from '../../src/mem/mapped-region.ts';
import { IOTLB_MAX_ENTRIES, Iotlb } from '../../src/vhost/iotlb.ts';
import { IOTLB_READ, IOTLB_WRITE, type IotlbEntry } from '../../src/vhost/vhost-device.ts';

const PAGE = 4096;
const TWO_32 = 2 ** 32;
const BOTH = IOTLB_READ | IOTLB_WRITE;
/** The front end's memory: 64 pages from here on, the upper half in another window. */
const USER = 0x7f00_0000_0000;
const HALF = 32 * PAGE;

/** Where front-end addresses lie: two windows, each at offset 65536. */
function find(userAddr: number, len: number): RangePiece[] | undefined {
  const from = userAddr - USER;
  if (from < 0 || from + len > 2 * HALF) return undefined;
  const pieces: RangePiece[] = [];
  for (const window of [0, 1]) {
    const begin = Math.max(from, window * HALF);
    const end = Math.min(from + len, (window + 1) * HALF);
    if (begin < end) pieces.push({ window, off: 65536 + begin - window * HALF, size: end - begin, reach: end - begin });
  }
  return pieces;
}

const entry = (iova: number, size: number, userPage: number, permissions = BOTH): IotlbEntry => ({
  iova,
  size,
  userAddr: USER + userPage * PAGE,
  permissions,
});

function filled(...entries: IotlbEntry[]): Iotlb {
  const iotlb = new Iotlb();
  for (const one of entries) assert.ok(iotlb.update(one, find));
  return iotlb;
}

test('iotlb: pages that lie together are one chunk, others are not', () => {
  const iotlb = filled(
    entry(0x10_0000, PAGE, 3),
    entry(0x10_2000, PAGE, 5),
    entry(0x10_1000, PAGE, 4),
    entry(0x10_3000, PAGE, 9),
    entry(0x10_4000, PAGE, 10, IOTLB_READ),
  );
  assert.deepEqual(iotlb.chunks, [
    { guestAddr: 0x10_0000, reach: 3 * PAGE, window: 0, windowOff: 65536 + 3 * PAGE, writable: true },
    { guestAddr: 0x10_3000, reach: PAGE, window: 0, windowOff: 65536 + 9 * PAGE, writable: true },
    { guestAddr: 0x10_4000, reach: PAGE, window: 0, windowOff: 65536 + 10 * PAGE, writable: false },
  ]);
  assert.deepEqual(iotlb.placeOf(0x10_0800, 2 * PAGE, true), { window: 0, off: 65536 + 3 * PAGE + 0x800 });
  assert.equal(iotlb.placeOf(0x10_2800, PAGE, true), undefined, 'not in one piece');
  assert.notEqual(iotlb.placeOf(0x10_4000, PAGE, false), undefined);
  assert.equal(iotlb.placeOf(0x10_4000, PAGE, true), undefined, 'read only');
});

test('iotlb: an entry over two windows and a multiple of 4 GiB is found by AddressMap on either side', () => {
  const iova = TWO_32 - 30 * PAGE;
  const iotlb = filled(entry(iova, 2 * HALF, 0));
  const map = new AddressMap(iotlb.chunks);
  for (const [page, window] of [
    [0, 0],
    [29, 0],
    [30, 0],
    [31, 0],
    [32, 1],
    [63, 1],
  ] as const) {
    const addr = iova + page * PAGE;
    assert.ok(map.select((addr % TWO_32) | 0, Math.floor(addr / TWO_32), PAGE), `page ${page}`);
    assert.deepEqual([map.window, map.offset((addr % TWO_32) | 0)], [window, 65536 + (page - window * 32) * PAGE]);
  }
  assert.equal(map.select(((iova + 2 * HALF) % TWO_32) | 0, 1, 1), false);
});

test('iotlb: what lies outside memory is refused, and changes nothing', () => {
  const iotlb = filled(entry(0, PAGE, 0));
  assert.equal(iotlb.update(entry(0, 2 * PAGE, 63), find), false);
  assert.equal(iotlb.translate(0), USER);
});

test('iotlb: the oldest entries give way, and pieces are bounded as well', () => {
  const iotlb = new Iotlb();
  for (let i = 0; i < IOTLB_MAX_ENTRIES + 10; i++) iotlb.update(entry(2 * i * PAGE, PAGE, 0), find);
  assert.equal(iotlb.size, IOTLB_MAX_ENTRIES);
  assert.equal(iotlb.translate(9 * 2 * PAGE), undefined);
  assert.equal(iotlb.translate(10 * 2 * PAGE), USER);

  const many = new Iotlb();
  const inPieces = (_: number, len: number) =>
    Array.from({ length: 100 }, (_, i) => ({ window: i, off: 65536, size: len / 100, reach: len / 100 }));
  for (let i = 0; i < 1000; i++) many.update(entry(200 * i * PAGE, 100 * PAGE, 0), inPieces);
  assert.ok(many.size < 100, `${many.size} entries of 100 pieces`);
  assert.ok(many.size > 50);
  assert.equal(many.chunks.length, 100 * many.size);
  assert.equal(many.translate(200 * 999 * PAGE), USER, 'the newest is there');
});

test('iotlb: a question is not repeated until it is answered, taken back, or a second has passed', () => {
  const iotlb = new Iotlb();
  assert.equal(iotlb.ask(0x5000, IOTLB_READ, 0), true);
  assert.equal(iotlb.ask(0x5008, IOTLB_READ, 10), false, 'the same page');
  assert.equal(iotlb.ask(0x5008, IOTLB_WRITE, 10), true, 'for another purpose');
  assert.equal(iotlb.ask(0x5000, IOTLB_READ, 1001), true, 'the guest may have mapped it by now');
  iotlb.update(entry(0x4000, 2 * PAGE, 0), find);
  assert.equal(iotlb.ask(0x5000, IOTLB_READ, 1002), true, 'answered, so it is a new question');
  iotlb.invalidate(0x5000, 1);
  assert.equal(iotlb.ask(0x5000, IOTLB_READ, 1003), true);
  for (let i = 0; i < 10_000; i++) iotlb.ask(i * PAGE, IOTLB_READ, 1004);
  assert.equal(iotlb.ask(9_999 * PAGE, IOTLB_READ, 1004), false);
  assert.equal(iotlb.ask(0, IOTLB_READ, 1004), true, 'only so many are remembered');
});

test('iotlb: like a page table that forgets whole entries, whatever comes in which order', () => {
  const pages = fc.integer({ min: 0, max: 15 });
  const step = fc.record({
    kind: fc.constantFrom('update' as const, 'update' as const, 'invalidate' as const),
    page: pages,
    count: fc.integer({ min: 1, max: 4 }),
    userPage: fc.integer({ min: 0, max: 60 }),
    permissions: fc.integer({ min: 1, max: 3 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const iotlb = new Iotlb();
      let entries: IotlbEntry[] = [];
      for (const { kind, page, count, userPage, permissions } of steps) {
        const iova = page * PAGE;
        const size = count * PAGE;
        entries = entries.filter((e) => e.iova + e.size <= iova || iova + size <= e.iova);
        if (kind === 'update') entries.push(entry(iova, size, userPage, permissions));
        if (kind === 'update') assert.ok(iotlb.update(entry(iova, size, userPage, permissions), find));
        else iotlb.invalidate(iova, size);
      }
      const map = new AddressMap(iotlb.chunks);
      for (let addr = 0; addr < 20 * PAGE; addr += PAGE) {
        const mapped = entries.find((e) => addr >= e.iova && addr < e.iova + e.size);
        assert.equal(iotlb.translate(addr + 5), mapped && mapped.userAddr + addr + 5 - mapped.iova);
        for (const wanted of [IOTLB_READ, IOTLB_WRITE, BOTH])
          assert.equal(
            iotlb.missing(addr, 1, wanted),
            mapped !== undefined && (mapped.permissions & wanted) === wanted ? undefined : addr,
          );
        const place = mapped && find(mapped.userAddr + addr - mapped.iova, PAGE)?.[0];
        assert.equal(map.select(addr, 0, PAGE), place !== undefined);
        if (place !== undefined) assert.deepEqual([map.window, map.offset(addr)], [place.window, place.off]);
      }
    }),
  );
});
