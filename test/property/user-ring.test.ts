/** The rings of a virtio-user port against devices written down from the specification, which use buffers in any order. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import { ringLayout } from '../../src/port/net-pair.ts';
import { makeUserRing } from '../../src/port/user-pair.ts';
import { type UserRing, type UserRingPlan, userRingState } from '../../src/port/user-ring.ts';
import { NaivePackedDevice, type SeenBuffer } from './naive-packed-device.ts';
import { NaiveSplitDevice, passes } from './naive-split-device.ts';

const RING_OFF = 65536;
const BUFFERS_OFF = 2 ** 22;
const DELTA = 0x4000_0000;
const STRIDE = 128;
const ROOM = 100;

const views = openWindow(new WindowPool('wasm').acquire());

type Step =
  | { do: 'post'; n: number; lens: number[] }
  | { do: 'take'; max: number }
  | { do: 'use'; pick: number; batch: number; len: number }
  | { do: 'reap'; max: number }
  | { do: 'move' };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({
      do: fc.constant('post' as const),
      n: fc.nat(20),
      lens: fc.array(fc.integer({ min: 1, max: ROOM }), { minLength: 1, maxLength: 8 }),
    }),
    fc.record({ do: fc.constant('take' as const), max: fc.nat(16) }),
    fc.record({
      do: fc.constant('use' as const),
      pick: fc.nat(64),
      batch: fc.integer({ min: 1, max: 5 }),
      len: fc.nat(ROOM),
    }),
    fc.record({ do: fc.constant('reap' as const), max: fc.nat(20) }),
    fc.record({ do: fc.constant('move' as const) }),
  ),
  { minLength: 20, maxLength: 400, size: 'max' },
);

interface Kind {
  readonly format: 'split' | 'packed';
  readonly size: number;
  readonly receives: boolean;
  readonly inOrder: boolean;
  readonly eventIdx: boolean;
}

interface Held {
  readonly id: number;
  readonly seen: SeenBuffer | undefined;
}

class World {
  readonly kind: Kind;
  readonly plan: UserRingPlan;
  ring: UserRing;
  readonly split: NaiveSplitDevice | undefined;
  readonly packed: NaivePackedDevice | undefined;
  /** ids and lengths on offer and not taken; in the device's hands; used and not reaped; ours */
  readonly offered: { id: number; len: number }[] = [];
  readonly taken: Held[] = [];
  readonly used: { id: number; len: number }[] = [];
  readonly own: { id: number; len: number | undefined }[] = [];
  /** all that were ever posted, in order, and how many of them were used */
  readonly posted: { readonly id: number; used: boolean }[] = [];
  nUsed = 0;
  published: number;

  constructor(kind: Kind) {
    const { format, size, receives, inOrder, eventIdx } = kind;
    this.kind = kind;
    const layout = ringLayout(format === 'packed', size);
    this.plan = {
      format,
      place: { descOff: RING_OFF, availOff: RING_OFF + layout.availOff, usedOff: RING_OFF + layout.usedOff },
      ...{ size, eventIdx, inOrder, receives, stride: STRIDE, room: ROOM },
      buffersOff: BUFFERS_OFF,
      addressDelta: DELTA,
      state: userRingState(size),
    };
    this.ring = makeUserRing(this.plan, views);
    this.ring.reset();
    // split indexes begin shortly before they come round
    const start = format === 'split' ? 65536 - 2 * size : 0;
    const { place } = this.plan;
    this.split = format === 'split' ? new NaiveSplitDevice(views, place, size, { start }) : undefined;
    this.packed = format === 'packed' ? new NaivePackedDevice(views, place, size) : undefined;
    if (this.split !== undefined) {
      const words = new Int32Array(this.plan.state, 0, 2);
      words[0] = (words[0] + start) & 0xffff;
      words[1] = start;
      views.dv.setUint16(place.availOff + 2, words[0], true);
      this.split.forceUsedIdx(start);
      this.split.availEvent = 0;
      this.ring.load();
    }
    this.published = start + (receives ? size : 0);
    for (let id = 0; id < size; id++) {
      if (receives) this.#offer(id, ROOM);
      else this.own.push({ id, len: undefined });
    }
  }

  #offer(id: number, len: number): void {
    this.offered.push({ id, len });
    this.posted.push({ id, used: false });
  }

  run(step: Step): void {
    if (step.do === 'post') this.#post(step.n, step.lens);
    else if (step.do === 'take') this.#take(step.max);
    else if (step.do === 'use') this.#use(step);
    else if (step.do === 'reap') this.#reap(step.max);
    else {
      // another thread takes the ring over
      this.ring.save();
      this.ring = makeUserRing(this.plan, views);
      this.ring.load();
    }
    this.#check();
  }

  #post(most: number, lens: readonly number[]): void {
    const { ring, kind } = this;
    const n = Math.min(most, this.own.length);
    const before = this.published % 65536;
    for (let i = 0; i < n; i++) {
      const len = kind.receives ? ROOM : lens[i % lens.length];
      if (!kind.receives) ring.ownLen[(ring.head + i) & ring.mask] = len;
      this.#offer(this.own[i].id, len);
    }
    this.own.splice(0, n);
    this.published += n;
    const kick = ring.post(n);
    if (n === 0) assert.equal(kick, false);
    else if (this.split !== undefined)
      assert.equal(kick, kind.eventIdx ? passes(0, before, this.published % 65536) : true);
  }

  #take(max: number): void {
    for (let i = 0; i < max; i++) {
      const seen = this.split === undefined ? this.packed?.take() : this.split.take();
      if (seen === undefined) {
        assert.equal(this.offered.length, 0, 'the device sees all that is on offer');
        return;
      }
      const id = 'head' in seen ? seen.head : seen.id;
      const expected = this.offered.shift();
      assert.ok(expected !== undefined, 'the device sees no more than is on offer');
      assert.deepEqual(
        [id, seen.segments],
        [expected.id, [{ addr: BUFFERS_OFF + id * STRIDE + DELTA, len: expected.len, write: this.kind.receives }]],
      );
      this.taken.push({ id, seen: 'head' in seen ? undefined : seen });
    }
  }

  #use({ pick, batch, len: most }: Extract<Step, { do: 'use' }>): void {
    if (this.taken.length === 0) return;
    const { receives, inOrder } = this.kind;
    const len = receives ? most : 0;
    if (!inOrder) {
      const [{ id, seen }] = this.taken.splice(pick % this.taken.length, 1);
      this.split?.use(id, len);
      this.packed?.use(seen as SeenBuffer, len);
      this.#note(id, len);
      return;
    }
    // only the last one is named: those before it are full
    const all = this.taken.splice(0, batch);
    const last = all[all.length - 1];
    this.packed?.useBatch(
      all.map(({ seen }) => seen as SeenBuffer),
      len,
    );
    if (this.split !== undefined) {
      this.split.use(last.id, len);
      this.split.used = (this.split.used + all.length - 1) % 65536;
      this.split.forceUsedIdx(this.split.used);
    }
    for (const { id } of all) this.#note(id, id === last.id ? len : receives ? ROOM : 0);
  }

  #note(id: number, len: number): void {
    this.used.push({ id, len });
    const record = this.posted.findLast((one) => one.id === id);
    assert.ok(record !== undefined && !record.used);
    record.used = true;
    this.nUsed++;
  }

  #reap(max: number): void {
    const n = this.ring.reap(max);
    assert.equal(this.ring.fault, 0);
    if (this.kind.inOrder) assert.ok(n >= Math.min(max, this.used.length) && n <= this.used.length);
    else assert.equal(n, Math.min(max, this.used.length));
    for (const { id, len } of this.used.splice(0, n)) {
      this.own.push({ id, len });
    }
  }

  #check(): void {
    const { ring, kind } = this;
    assert.equal(ring.count, this.own.length);
    for (const [i, { id, len }] of this.own.entries()) {
      const at = (ring.head + i) & ring.mask;
      assert.equal(ring.own[at], id);
      if (len !== undefined && kind.receives) assert.equal(ring.ownLen[at], len);
    }
    const inTurn = this.posted.slice(0, this.nUsed).every(({ used }) => used);
    const base = ring.resumeBase();
    assert.equal(base !== undefined, inTurn, 'it can go on if all before were used');
    if (base === undefined) return;
    if (this.split !== undefined) assert.equal(base, this.split.used);
    else {
      const { at, wrap } = (this.packed as NaivePackedDevice).used;
      assert.equal(base, (at | (wrap << 15)) * 0x10001);
    }
  }
}

for (const format of ['split', 'packed'] as const)
  test(`virtio-user, ${format} rings: buffers go to a device and come back, in any order and in batches, also across threads`, () => {
    fc.assert(
      fc.property(
        fc.constantFrom(1, 2, 4, 8, 32),
        fc.boolean(),
        fc.boolean(),
        fc.boolean(),
        steps,
        (size, receives, inOrder, eventIdx, all) => {
          const world = new World({ format, size, receives, inOrder, eventIdx });
          for (const step of all) world.run(step);
        },
      ),
      { numRuns: 200 },
    );
  });
