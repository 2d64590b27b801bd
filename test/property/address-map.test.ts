import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AddressMap, type Chunk } from '../../src/mem/address-map.ts';

const HALF = 2n ** 32n;
const MAX_REACH = 2 ** 31 - 1;

interface Region {
  readonly start: bigint;
  readonly size: number;
  readonly window: number;
  readonly off: number;
}

/** Guest addresses that are likely to go wrong: at and around multiples of 4 GiB and 2 GiB. */
const start = fc.oneof(
  fc.bigInt(0n, 2n ** 34n),
  fc.tuple(fc.bigInt(1n, 20n), fc.integer({ min: -5000, max: 5000 })).map(([half, d]) => half * HALF + BigInt(d)),
  fc
    .tuple(fc.bigInt(1n, 2n ** 20n), fc.integer({ min: -9, max: 9 }))
    .map(([half, d]) => half * (HALF / 2n) + BigInt(d)),
  fc.bigInt(2n ** 46n, 2n ** 53n - 2n ** 32n),
);
const size = fc.oneof(
  fc.integer({ min: 1, max: 9000 }),
  fc.integer({ min: 1, max: MAX_REACH }),
  fc.constant(MAX_REACH),
);
const regions = fc
  .array(fc.record({ start, size, window: fc.nat(1000), off: fc.nat(2 ** 31 - 1) }), { maxLength: 6 })
  .map((all) => {
    const apart: Region[] = [];
    for (const r of all) {
      const free = apart.every((o) => r.start + BigInt(r.size) <= o.start || o.start + BigInt(o.size) <= r.start);
      if (free) apart.push({ ...r, off: Math.min(r.off, 2 ** 31 - 1 - r.size) });
    }
    return apart;
  });

/** As GuestMemory cuts them: a chunk for each upper half that a region has addresses in, reaching to the region's end. */
function chunksOf({ start: from, size: len, window, off }: Region): Chunk[] {
  const chunks: Chunk[] = [];
  for (let at = from; at < from + BigInt(len); at = (at / HALF + 1n) * HALF) {
    const skipped = Number(at - from);
    chunks.push({ guestAddr: Number(at), reach: len - skipped, window, windowOff: off + skipped });
  }
  return chunks;
}

/** A query in relation to the regions: near one's beginning or end, the same lower half elsewhere, or anything. */
const query = fc.record({
  region: fc.nat(5),
  at: fc.constantFrom('start', 'end', 'middle', 'anywhere'),
  delta: fc.integer({ min: -4, max: 4 }),
  otherHalf: fc.constantFrom(0n, 0n, 0n, 1n, -1n, 2n ** 31n, 2n ** 20n),
  any: fc.bigInt(0n, 2n ** 64n - 1n),
  len: fc.oneof(fc.integer({ min: 1, max: 9000 }), fc.integer({ min: 1, max: 2 ** 32 - 1 }), fc.constant(2 ** 32 - 1)),
  toEnd: fc.constantFrom(undefined, undefined, 0, 1, -1),
});

function addressOf(
  q: { region: number; at: string; delta: number; otherHalf: bigint; any: bigint },
  all: Region[],
): bigint {
  const r = all[q.region % Math.max(1, all.length)];
  if (q.at === 'anywhere' || r === undefined) return q.any;
  const inside = q.at === 'start' ? 0n : q.at === 'end' ? BigInt(r.size) : q.any % BigInt(r.size);
  return BigInt.asUintN(64, r.start + inside + BigInt(q.delta) + q.otherHalf * HALF);
}

const lowOf = (addr: bigint) => Number(BigInt.asIntN(32, addr));
const highOf = (addr: bigint) => Number(BigInt.asIntN(32, addr >> 32n));

function holder(all: readonly Region[], addr: bigint, len: number): Region | undefined {
  return all.find((r) => addr >= r.start && addr + BigInt(len) <= r.start + BigInt(r.size));
}

function expectPlace(map: AddressMap, lo: number, r: Region, addr: bigint): void {
  assert.deepEqual([map.window, map.offset(lo)], [r.window, r.off + Number(addr - r.start)]);
}

test('address map: it translates as 64-bit arithmetic would, whatever was looked up before', () => {
  fc.assert(
    fc.property(regions, fc.array(query, { minLength: 1, maxLength: 40 }), (all, queries) => {
      const map = new AddressMap(all.flatMap(chunksOf));
      for (const q of queries) {
        const addr = addressOf(q, all);
        const [lo, hi] = [lowOf(addr), highOf(addr)];
        const near = holder(all, addr, 1);
        const fitting = near && Number(near.start + BigInt(near.size) - addr);
        const len = q.toEnd === undefined || fitting === undefined ? q.len : Math.max(1, fitting + q.toEnd);
        const expected = holder(all, addr, len);
        const text = `0x${addr.toString(16)}, ${len} bytes`;
        const held = len <= MAX_REACH && map.holds(lo, hi, len);
        if (held) assert.ok(expected !== undefined, `${text}: held at once`);
        assert.equal(map.select(lo, hi, len | 0), expected !== undefined, text);
        if (expected !== undefined) expectPlace(map, lo, expected, addr);
      }
    }),
    { numRuns: 3000 },
  );
});

test('address map: going on by what is left reaches a region’s end, byte for byte', () => {
  fc.assert(
    fc.property(regions, query, (all, q) => {
      const map = new AddressMap(all.flatMap(chunksOf));
      let addr = addressOf({ ...q, otherHalf: 0n }, all);
      const r = holder(all, addr, 1);
      if (r === undefined) return;
      const end = r.start + BigInt(r.size);
      for (let pieces = 0; addr < end; pieces++) {
        assert.ok(pieces < 2, 'a region below 2 GiB has at most two pieces');
        assert.ok(map.select(lowOf(addr), highOf(addr), 1));
        expectPlace(map, lowOf(addr), r, addr);
        const left = map.left(lowOf(addr));
        assert.ok(left > 0 && addr + BigInt(left) <= end, `${left} bytes left`);
        addr += BigInt(left);
      }
    }),
    { numRuns: 1000 },
  );
});
