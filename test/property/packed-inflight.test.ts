/** A back end that keeps inflight records of a packed ring dies between any two stores: no buffer is lost, none is used twice. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { inflightQueueBytes } from '../../src/uapi/inflight.ts';
import { VRING_DESC_F_NEXT, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED } from '../../src/uapi/virtio-ring.ts';
import { INFLIGHT_CORRUPT, INFLIGHT_UNKNOWN_VERSION } from '../../src/virtqueue/inflight.ts';
import { PackedInflight, packedInflightWords } from '../../src/virtqueue/packed-inflight.ts';
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

/** No power of two: a packed ring may have any size. */
const NUM = 7;
/** The region is for more descriptors than the ring has. */
const REGION_NUM = 9;
const BYTES = inflightQueueBytes('packed', REGION_NUM);
const HEAD = 32;
const ENTRY = 32;
const AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED = 1 << VRING_PACKED_DESC_F_USED;

const ram = new Ram();
const region = ram.alloc(BYTES).off;
const ring = ram.alloc(16 * NUM).off;
const { u8, u16, i32 } = ram.views;
const place = { window: 0, off: region, num: REGION_NUM };
const ringPlace = { window: 0, off: ring };

const newInflight = (views = ram.views) =>
  new PackedInflight(place, ringPlace, NUM, [views], new Int32Array(packedInflightWords(REGION_NUM)));

const words = (slot: number) => (ring + 16 * slot) >> 2;
const idAt = (slot: number) => (ring + 16 * slot + 12) >> 1;
const flagsAt = (slot: number) => (ring + 16 * slot + 14) >> 1;
const availableIn = (wrap: number) => (wrap ? AVAIL : USED);
const usedIn = (wrap: number) => (wrap ? AVAIL | USED : 0);
const is = (slot: number, state: number) => (u16[flagsAt(slot)] & (AVAIL | USED)) === state;

/** A place in the ring and the lap it is in. */
interface At {
  idx: number;
  wrap: number;
}
const advance = (at: At, by: number): At =>
  at.idx + by < NUM ? { idx: at.idx + by, wrap: at.wrap } : { idx: at.idx + by - NUM, wrap: at.wrap ^ 1 };
/** As SET_VRING_BASE has it, avail and used index the same. */
const baseOf = ({ idx, wrap }: At) => ((idx | (wrap << 15)) * 0x10001) >>> 0;

class Driver implements MortalDriver {
  /** buffer id → what it wants and how many descriptors it has */
  readonly #out = new Map<number, { wish: number; count: number }>();
  #next: At;
  #used: At;
  #room = NUM;
  #wishes = 0;

  /** Sets the ring up, and the region as GET_INFLIGHT_FD makes it. */
  constructor(start: At) {
    u8.fill(0, region, ring + 16 * NUM);
    // what was done in the lap before
    for (let i = 0; i < NUM; i++) u16[flagsAt(i)] = usedIn(i < start.idx ? start.wrap : start.wrap ^ 1);
    this.#next = start;
    this.#used = start;
  }

  get outstanding(): number {
    return this.#out.size;
  }

  /** Buffers of one to three descriptors; each descriptor says which wish it belongs to, and which of the buffer's it is. */
  offer(n: number, seed: number): void {
    for (let i = 0; i < n; i++) {
      const count = 1 + ((seed + this.#wishes) % 3);
      if (count > this.#room) return;
      const id = Array.from({ length: NUM }, (_, k) => (seed + k) % NUM).find((k) => !this.#out.has(k))!;
      const wish = ++this.#wishes;
      this.#out.set(id, { wish, count });
      for (let k = count - 1; k >= 0; k--) {
        const { idx, wrap } = advance(this.#next, k);
        i32.set([wish, k, 100 * wish + k], words(idx));
        u16[idAt(idx)] = id;
        u16[flagsAt(idx)] = availableIn(wrap) | (k < count - 1 ? VRING_DESC_F_NEXT : 0);
      }
      this.#next = advance(this.#next, count);
      this.#room -= count;
    }
  }

  collect(): number[] {
    const wishes: number[] = [];
    while (is(this.#used.idx, usedIn(this.#used.wrap))) {
      const id = u16[idAt(this.#used.idx)];
      const buffer = this.#out.get(id);
      assert.equal(buffer?.wish, i32[words(this.#used.idx) + 2], `buffer ${id} is used`);
      this.#out.delete(id);
      this.#room += buffer!.count;
      this.#used = advance(this.#used, buffer!.count);
      wishes.push(buffer!.wish);
    }
    return wishes;
  }
}

/** A buffer the device has. */
interface Held {
  readonly entry: number;
  readonly wish: number;
  readonly id: number;
  readonly count: number;
}

class Device implements MortalDevice {
  readonly writer = new DyingWriter(ram.views);
  readonly #inflight = newInflight(this.writer.views);
  readonly #base: number;
  #held: Held[] = [];
  #avail: At = { idx: 0, wrap: 1 };
  #used: At = { idx: 0, wrap: 1 };

  /** @param base as the front end says; only the first device's is right */
  constructor(base: number) {
    this.#base = base;
  }

  get wishes(): number[] {
    return this.#held.map(({ wish }) => wish);
  }

  start(): void {
    const entries = new Int32Array(NUM);
    const n = this.#inflight.recover(this.#base, entries);
    assert.ok(n >= 0, `recover: ${n}`);
    this.#held = [...entries.subarray(0, n)].map((entry) => {
      const copies = new Int32Array(4 * NUM + 1);
      const count = this.#inflight.descriptors(entry, copies, 1);
      const [wish] = copies.subarray(1);
      for (let k = 0; k < count; k++) {
        assert.deepEqual(
          [...copies.subarray(1 + 4 * k, 4 + 4 * k)],
          [wish, k, 100 * wish + k],
          'as the driver gave it',
        );
        assert.equal((copies[4 + 4 * k] >>> 16) & VRING_DESC_F_NEXT, k < count - 1 ? VRING_DESC_F_NEXT : 0);
      }
      return { entry, wish, id: copies[4] & 0xffff, count };
    });
    const { wishes } = this;
    assert.deepEqual(
      wishes,
      wishes.toSorted((a, b) => a - b),
      'recovered in the order in which they were offered',
    );
    const { base } = this.#inflight;
    this.#avail = { idx: base & 0x7fff, wrap: (base >>> 15) & 1 };
    this.#used = { idx: (base >>> 16) & 0x7fff, wrap: base >>> 31 };
  }

  take(n: number): void {
    const found: Held[] = [];
    let at = this.#avail;
    while (found.length < n && is(at.idx, availableIn(at.wrap))) {
      let count = 1;
      while ((u16[flagsAt(advance(at, count - 1).idx)] & VRING_DESC_F_NEXT) !== 0) count++;
      found.push({ entry: -1, wish: i32[words(at.idx)], id: u16[idAt(at.idx)], count });
      at = advance(at, count);
    }
    const counts = Int32Array.from(found, ({ count }) => count);
    const entries = new Int32Array(found.length);
    assert.equal(this.#inflight.begin(this.#avail.idx, counts, found.length, entries), found.length);
    this.#avail = at;
    this.#held.push(...found.map((buffer, i) => ({ ...buffer, entry: entries[i] })));
  }

  use(n: number, seed: number): void {
    if (this.#held.length === 0) return;
    const buffers = this.#held.splice(seed % this.#held.length, n);
    const entries = Int32Array.from(buffers, ({ entry }) => entry);
    const views = this.writer.views;
    // The flags behind the first may be written early: the driver does not get there.
    const early = seed % 2 === 1;
    if (!early) this.#inflight.end(entries, entries.length);
    const first = this.#used;
    const flags: (() => void)[] = [];
    for (const { id, wish, count } of buffers) {
      const { idx, wrap } = this.#used;
      views.u16[idAt(idx)] = id;
      views.i32[words(idx) + 2] = wish;
      if (idx !== first.idx) flags.push(() => Atomics.store(views.u16, flagsAt(idx), usedIn(wrap)));
      this.#used = advance(this.#used, count);
    }
    for (const store of flags) store();
    if (early) this.#inflight.end(entries, entries.length);
    Atomics.store(views.u16, flagsAt(first.idx), usedIn(first.wrap));
    this.#inflight.commit(entries, entries.length);
  }
}

function run(all: readonly Step[], fate: Fate, start: At = { idx: 0, wrap: 1 }): number[] {
  const driver = new Driver(start);
  let base = baseOf(start);
  const born = () => {
    const device = new Device(base);
    if (u16[(region + 8) >> 1] === 1) base = 0xffff_ffff;
    return device;
  };
  return runLives(born, driver, all, fate);
}

test('packed inflight: whenever and however often the device dies, each buffer is used once', () => {
  const start = fc.record({ idx: fc.nat(NUM - 1), wrap: fc.nat(1) });
  fc.assert(
    fc.property(steps, fates, start, (all, fate, at) => void run(all, fate, at)),
    { numRuns: 3000 },
  );
});

test('packed inflight: it may die at each store of a long life, and at each of the recovery that follows', () => {
  dieEverywhere(SCENARIO, 12, run);
});

/** Buffers of so many descriptors, offered when as many have been before. */
const offerOf = (count: number, before: number): Step => ({ what: 'offer', n: 1, seed: 99 + count - 1 - before });
const take: Step = { what: 'take', n: 8, seed: 0 };
const use: Step = { what: 'use', n: 8, seed: 0 };
const collect: Step = { what: 'collect', n: 1, seed: 0 };

test('packed inflight: it may die while the used index wraps onto a chain that still says "available" of the lap before', () => {
  const firstLap = [offerOf(3, 0), offerOf(3, 1), take, use, collect];
  dieEverywhere([...firstLap, offerOf(2, 2), take, use, offerOf(3, 3), take, use], 12, run);
});

test('packed inflight: it may die in a batch of the whole ring, whose end is its beginning', () => {
  for (const handBack of [use, { ...use, seed: 3 }])
    dieEverywhere(
      [offerOf(3, 0), offerOf(3, 1), offerOf(1, 2), take, handBack, collect, offerOf(3, 3), take, use],
      20,
      run,
    );
});

test('packed inflight: the region is as the specification lays it out', () => {
  u8.fill(0, region, ring + 16 * NUM);
  for (let slot = 0; slot < NUM; slot++) {
    i32.set([0x1000 + slot, slot, 0x100 + slot], words(slot));
    u16[idAt(slot)] = 0x50 + slot;
    u16[flagsAt(slot)] = AVAIL | slot;
  }
  const inflight = newInflight();
  assert.equal(inflight.recover(baseOf({ idx: 5, wrap: 1 }), new Int32Array(NUM)), 0);
  const entries = new Int32Array(3);
  assert.equal(inflight.begin(5, Int32Array.of(2, 1, 1), 3, entries), 3);
  assert.deepEqual([...entries], [0, 2, 3]);
  inflight.end(Int32Array.of(0), 1);
  inflight.commit(Int32Array.of(0), 1);
  const entry = (inflightFlag: string, next: string, last: string, num: string, counter: string, desc: string) =>
    `${inflightFlag} 00 ${next} ${last} ${num} ${counter}00000000000000 ${desc}`;
  assert.equal(
    Buffer.from(u8.subarray(region, region + HEAD + 5 * ENTRY)).toString('hex'),
    [
      '0000000000000000 0100 0900 0000 0000 0000 0000 00 00 00000000000000 000000', // used 2 descriptors from 5 on: index 0, next lap
      entry('00', '0100', '0100', '0200', '00', '5500 8500 05010000 0510000005000000'),
      entry('00', '0400', '0000', '0000', '00', '5600 8600 06010000 0610000006000000'),
      entry('01', '0300', '0200', '0100', '01', '5000 8000 00010000 0010000000000000'),
      entry('01', '0400', '0300', '0100', '02', '5100 8100 01010000 0110000001000000'),
      entry('00', '0500', '0000', '0000', '00', '0000 0000 00000000 0000000000000000'),
    ]
      .join('')
      .replaceAll(' ', ''),
  );
  const successor = newInflight();
  assert.equal(successor.recover(0, new Int32Array(NUM)), 2);
  assert.equal(successor.base, (2 << 0) | (0 << 15) | (0 << 16), 'two buffers behind the used index');
});

test('packed inflight: a driver that makes more available than its ring has gets no entries', () => {
  u8.fill(0, region, ring + 16 * NUM);
  const inflight = newInflight();
  inflight.recover(baseOf({ idx: 0, wrap: 1 }), new Int32Array(NUM));
  const entries = new Int32Array(4);
  assert.equal(inflight.begin(0, Int32Array.of(6, 3, 1), 3, entries), 2);
  assert.equal(inflight.begin(0, Int32Array.of(1), 1, entries), 0);
  assert.equal(inflight.begin(0, Int32Array.of(0), 1, entries), 0);
});

test('packed inflight: a region of another version, or an index beyond the ring, is refused', () => {
  const refused = () => newInflight().recover(baseOf({ idx: 0, wrap: 1 }), new Int32Array(NUM));
  u8.fill(0, region, region + BYTES);
  assert.equal(newInflight().recover(baseOf({ idx: NUM, wrap: 1 }), new Int32Array(NUM)), INFLIGHT_CORRUPT);
  assert.equal(refused(), 0);
  for (const [off, value, answer] of [
    [8, 2, INFLIGHT_UNKNOWN_VERSION],
    [14, REGION_NUM + 1, INFLIGHT_CORRUPT], // old_free_head
    [16, NUM, INFLIGHT_CORRUPT], // used_idx
    [18, NUM, INFLIGHT_CORRUPT], // old_used_idx
    [HEAD + 2, 0, INFLIGHT_CORRUPT], // the free list goes round
  ] as const) {
    const before = u16[(region + off) >> 1];
    u16[(region + off) >> 1] = value;
    assert.equal(refused(), answer, `${off} = ${value}`);
    u16[(region + off) >> 1] = before;
  }
  assert.equal(refused(), 0);
});

test('packed inflight: nonsense from the front end is refused or taken as buffers that fit the ring; nothing else changes', () => {
  const word = fc.oneof({ weight: 8, arbitrary: fc.nat(REGION_NUM + 1) }, { weight: 1, arbitrary: fc.nat(0xffff) });
  let taken = 0;
  fc.assert(
    fc.property(
      fc.array(fc.record({ inflight: fc.nat(1), next: word, last: word, num: word }), {
        minLength: REGION_NUM,
        maxLength: REGION_NUM,
      }),
      fc.array(word, { minLength: 6, maxLength: 6 }),
      fc.array(fc.record({ at: fc.nat(BYTES / 2 - 1), value: word }), { maxLength: 3 }),
      fc.boolean(),
      (list, head, changes, honest) => {
        u8.fill(0x5c, region - 64, region + BYTES + 64);
        u8.fill(0, region, region + HEAD + REGION_NUM * ENTRY);
        if (honest) {
          const inflight = newInflight();
          inflight.recover(baseOf({ idx: 3, wrap: 1 }), new Int32Array(NUM));
          inflight.begin(3, Int32Array.of(2, 1, 3), 3, new Int32Array(3));
          for (const { at, value } of changes) if (at !== 4) u16[(region >> 1) + at] = value;
        } else {
          u16.set([1, REGION_NUM, ...head], (region + 8) >> 1);
          for (let i = 0; i < REGION_NUM; i++) {
            const { inflight, next, last, num } = list[i];
            u16.set([inflight, next, last, num], (region + HEAD + i * ENTRY) >> 1);
          }
        }
        const entries = new Int32Array(NUM).fill(-1);
        const inflight = newInflight();
        const n = inflight.recover(0, entries);
        assert.ok(n === INFLIGHT_CORRUPT || (n >= 0 && n <= NUM));
        if (n >= 0) {
          taken++;
          const copies = new Int32Array(4 * NUM);
          let total = 0;
          for (let i = 0; i < n; i++) total += inflight.descriptors(entries[i], copies, 0);
          assert.ok(total <= NUM && total >= n);
          assert.ok((inflight.base & 0x7fff) < NUM && ((inflight.base >>> 16) & 0x7fff) < NUM);
          const room = new Int32Array(NUM).fill(1);
          inflight.begin(0, room, NUM, new Int32Array(NUM));
          inflight.end(entries, n);
          inflight.commit(entries, n);
        }
        for (const [from, to] of [
          [region - 64, region],
          [region + HEAD + REGION_NUM * ENTRY, region + BYTES],
        ])
          assert.ok(
            u8.subarray(from, to).every((byte) => byte === 0x5c),
            'outside the region',
          );
      },
    ),
    { numRuns: 3000 },
  );
  assert.ok(taken > 100, `${taken} of the regions made sense`);
});

test('packed inflight: a region that does not fit is refused', () => {
  const state = new Int32Array(packedInflightWords(REGION_NUM));
  for (const bad of [
    { ...place, off: region + 4 },
    { ...place, off: 2 ** 31 - 128 },
    { ...place, num: NUM - 1 },
  ])
    assert.throws(() => new PackedInflight(bad, ringPlace, NUM, [ram.views], state), RangeError);
});
