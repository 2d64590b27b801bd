/** A back end that keeps inflight records of a split ring dies between any two stores: no buffer is lost, none is used twice. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { inflightQueueBytes } from '../../src/uapi/inflight.ts';
import {
  INFLIGHT_CORRUPT,
  INFLIGHT_UNKNOWN_VERSION,
  SPLIT_INFLIGHT_WORDS,
  SplitInflight,
} from '../../src/virtqueue/inflight.ts';
import { DyingWriter } from '../kit/dying-memory.ts';
import {
  dieEverywhere,
  type Fate,
  fates,
  type MortalDevice,
  type MortalDriver,
  runLives,
  SCENARIO,
  type Step,
  steps,
} from '../kit/mortal-device.ts';
import { Ram } from '../kit/ram.ts';

const NUM = 8;
const MASK = NUM - 1;
/** The region is for more descriptors than the ring has. */
const REGION_NUM = 12;
const BYTES = inflightQueueBytes('split', REGION_NUM);

const ram = new Ram();
const region = ram.alloc(BYTES).off;
/** Avail and used ring, each an index and entries of words; and one word a descriptor, which says what the driver wants. */
const avail = ram.alloc(4 + 4 * NUM).off;
const used = ram.alloc(4 + 8 * NUM).off;
const desc = ram.alloc(4 * NUM).off;
const { u8, u16, i32 } = ram.views;
const place = { window: 0, off: region, num: REGION_NUM };

const newInflight = (views = ram.views) => new SplitInflight(place, NUM, [views], new Int32Array(SPLIT_INFLIGHT_WORDS));

class Driver implements MortalDriver {
  /** head → what it wants */
  readonly #out = new Map<number, number>();
  #seen: number;
  #wishes = 0;

  /** Sets the ring up, and the region as GET_INFLIGHT_FD makes it. */
  constructor(startIdx: number) {
    u8.fill(0, region, desc + 4 * NUM);
    u16[avail >> 1] = startIdx;
    u16[used >> 1] = startIdx;
    this.#seen = startIdx;
  }

  get outstanding(): number {
    return this.#out.size;
  }

  offer(n: number, seed: number): void {
    for (let i = 0, left = n; i < NUM && left > 0; i++) {
      const head = (seed + i) & MASK;
      if (this.#out.has(head)) continue;
      this.#out.set(head, ++this.#wishes);
      i32[(desc >> 2) + head] = this.#wishes;
      const idx = u16[avail >> 1];
      i32[(avail >> 2) + 1 + (idx & MASK)] = head;
      u16[avail >> 1] = idx + 1;
      left--;
    }
  }

  collect(): number[] {
    const wishes: number[] = [];
    for (; this.#seen !== u16[used >> 1]; this.#seen = (this.#seen + 1) & 0xffff) {
      const at = (used >> 2) + 1 + 2 * (this.#seen & MASK);
      assert.equal(this.#out.get(i32[at]), i32[at + 1], `head ${i32[at]} is used`);
      this.#out.delete(i32[at]);
      wishes.push(i32[at + 1]);
    }
    return wishes;
  }
}

const wishOf = (head: number) => i32[(desc >> 2) + head];

class Device implements MortalDevice {
  readonly writer = new DyingWriter(ram.views);
  readonly #inflight = newInflight(this.writer.views);
  #held: number[] = [];
  #nextAvail = 0;

  get wishes(): number[] {
    return this.#held.map(wishOf);
  }

  start(): void {
    const heads = new Int32Array(NUM);
    const usedIdx = u16[used >> 1];
    const n = this.#inflight.recover(usedIdx, heads);
    assert.ok(n >= 0, `recover: ${n}`);
    this.#held = [...heads.subarray(0, n)];
    const { wishes } = this;
    assert.deepEqual(
      wishes,
      wishes.toSorted((a, b) => a - b),
      'recovered in the order in which they were offered',
    );
    this.#nextAvail = (usedIdx + n) & 0xffff;
  }

  take(n: number): void {
    const ready = (u16[avail >> 1] - this.#nextAvail) & 0xffff;
    assert.ok(ready <= NUM, `${ready} entries available`);
    const entry = (i: number) => i32[(avail >> 2) + 1 + ((this.#nextAvail + i) & MASK)];
    const heads = Int32Array.from({ length: Math.min(n, ready) }, (_, i) => entry(i));
    this.#inflight.begin(heads, heads.length);
    this.#nextAvail = (this.#nextAvail + heads.length) & 0xffff;
    this.#held.push(...heads);
  }

  use(n: number, seed: number): void {
    if (this.#held.length === 0) return;
    const at = seed % this.#held.length;
    const heads = Int32Array.from(this.#held.slice(at, at + n));
    const idx = u16[used >> 1];
    const ring = this.writer.views;
    heads.forEach((head, i) => {
      const entry = (used >> 2) + 1 + 2 * ((idx + i) & MASK);
      ring.i32[entry] = head;
      ring.i32[entry + 1] = wishOf(head);
    });
    this.#inflight.end(heads, heads.length);
    Atomics.store(ring.u16, used >> 1, idx + heads.length);
    this.#inflight.commit(heads, heads.length, (idx + heads.length) & 0xffff);
    this.#held.splice(at, heads.length);
  }
}

const run = (all: readonly Step[], fate: Fate, startIdx = 0xfff0) =>
  runLives(() => new Device(), new Driver(startIdx), all, fate);

test('split inflight: whenever and however often the device dies, each buffer is used once', () => {
  fc.assert(
    fc.property(steps, fates, fc.constantFrom(0, 0xfffc, 77), (all, fate, startIdx) => {
      run(all, fate, startIdx);
    }),
    { numRuns: 2000 },
  );
});

test('split inflight: it may die at each store of a long life, and at each of the recovery that follows', () => {
  dieEverywhere(SCENARIO, 8, run);
});

test('split inflight: the region is as the specification lays it out', () => {
  u8.fill(0, region, region + BYTES);
  const inflight = newInflight();
  assert.equal(inflight.recover(0x1234, new Int32Array(NUM)), 0);
  inflight.begin(Int32Array.of(5, 2, 1), 3);
  inflight.end(Int32Array.of(1, 5), 2);
  inflight.commit(Int32Array.of(1, 5), 2, 0x1236);
  const hex = Buffer.from(u8.subarray(region, region + 16 + 6 * 16)).toString('hex');
  assert.equal(
    hex,
    [
      '0000000000000000 0100 0c00 0500 3612', // features, version, desc_num, last_batch_head, used_idx
      '00 0000000000 0000 0000000000000000', // inflight, padding, next, counter
      '00 0000000000 0000 0200000000000000',
      '01 0000000000 0000 0100000000000000',
      '00 0000000000 0000 0000000000000000',
      '00 0000000000 0000 0000000000000000',
      '00 0000000000 0100 0000000000000000',
    ]
      .join('')
      .replaceAll(' ', ''),
  );
});

test('split inflight: the counter goes on behind the highest, through all of its 64 bits', () => {
  u8.fill(0, region, region + BYTES);
  newInflight().recover(0, new Int32Array(NUM));
  const counter = (head: number, value?: bigint) => {
    const at = region + 16 + head * 16 + 8;
    if (value !== undefined) ram.views.dv.setBigUint64(at, value, true);
    return ram.views.dv.getBigUint64(at, true);
  };
  for (const [head, value] of [
    [3, 0x1_ffff_fffen],
    [6, 0x1_0000_0000n],
    [0, 0xffff_ffffn],
  ] as const) {
    u8[region + 16 + head * 16] = 1;
    counter(head, value);
  }
  const inflight = newInflight();
  const heads = new Int32Array(NUM);
  assert.equal(inflight.recover(0, heads), 3);
  assert.deepEqual([...heads.subarray(0, 3)], [0, 6, 3]);
  inflight.begin(Int32Array.of(1, 2), 2);
  assert.deepEqual([counter(1), counter(2)], [0x1_ffff_ffffn, 0x2_0000_0000n]);
});

test('split inflight: a driver that sets its ring up anew leaves nothing inflight', () => {
  u8.fill(0, region, region + BYTES);
  const before = newInflight();
  before.recover(5000, new Int32Array(NUM));
  before.begin(Int32Array.of(1, 2), 2);
  const after = newInflight();
  assert.equal(after.recover(0, new Int32Array(NUM)), 0);
  assert.equal(newInflight().recover(0, new Int32Array(NUM)), 0);
});

test('split inflight: a region of another version or with a broken list is refused', () => {
  u8.fill(0, region, region + BYTES);
  newInflight().recover(0, new Int32Array(NUM));
  u16[(region + 8) >> 1] = 2;
  assert.equal(newInflight().recover(0, new Int32Array(NUM)), INFLIGHT_UNKNOWN_VERSION);
  u16[(region + 8) >> 1] = 1;
  u16[(region + 12) >> 1] = NUM; // last_batch_head
  assert.equal(newInflight().recover(1, new Int32Array(NUM)), INFLIGHT_CORRUPT);
});

test('split inflight: nonsense from the front end yields heads of the ring, each once, and nothing outside the region changes', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: BYTES, maxLength: BYTES }),
      fc.nat(0xffff),
      fc.boolean(),
      (bytes, usedIdx, near) => {
        u8.fill(0x5c, region - 64, region + BYTES + 64);
        u8.set(bytes, region);
        u16[(region + 8) >> 1] = 1;
        if (near) u16[(region + 14) >> 1] = usedIdx - (bytes[0] & 15);
        for (let i = 0; i < REGION_NUM; i++) {
          u8[region + 16 + i * 16] = bytes[i] & 3;
          if (near) u16[(region + 16 + i * 16 + 6) >> 1] = bytes[i] & 9;
        }
        const heads = new Int32Array(NUM).fill(-1);
        const inflight = newInflight();
        const n = inflight.recover(usedIdx, heads);
        assert.ok(n === INFLIGHT_CORRUPT || (n >= 0 && n <= NUM));
        const found = [...heads.subarray(0, Math.max(0, n))];
        assert.ok(found.every((head) => head >= 0 && head < NUM) && new Set(found).size === found.length);
        inflight.begin(Int32Array.of(-1, 2 ** 31 - 1, 70_000), 3);
        inflight.end(Int32Array.of(-1, 2 ** 31 - 1), 2);
        inflight.commit(Int32Array.of(-1, 70_000), 2, 5);
        const fence = [
          ...u8.subarray(region - 64, region),
          ...u8.subarray(region + 16 + REGION_NUM * 16, region + BYTES + 64),
        ];
        assert.ok(fence.slice(0, 64).every((byte) => byte === 0x5c) && fence.slice(-64).every((byte) => byte === 0x5c));
      },
    ),
    { numRuns: 1000 },
  );
});

test('split inflight: a region that does not fit is refused', () => {
  const state = new Int32Array(SPLIT_INFLIGHT_WORDS);
  for (const bad of [
    { ...place, off: region + 4 },
    { ...place, off: -8 },
    { ...place, off: 2 ** 31 - 64 },
    { ...place, num: 7 },
  ])
    assert.throws(() => new SplitInflight(bad, NUM, [ram.views], state), RangeError);
});
