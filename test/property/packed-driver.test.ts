/** The packed driver against a naive device, step by step with any steps, and over long ways round rings of odd sizes. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import type { Segment } from '../../src/virtqueue/driver-ring.ts';
import { PackedDriver, packedRingLayout } from '../../src/virtqueue/packed-driver.ts';
import { type Cursor, NaivePackedDevice, type SeenBuffer } from './naive-packed-device.ts';

const RING_OFF = 65536;
const TABLES_OFF = 2 ** 22;
const BUFFERS_OFF = 2 ** 24;
/** Guest addresses are window offsets plus this: the upper half is not 0. */
const BASE = 0x3_0000_0000;
/** Bytes of a segment at most, and segments of a buffer. */
const MAX_LEN = 96;
const MAX_SEGMENTS = 6;

const views = openWindow(new WindowPool('wasm').acquire());

interface Shape {
  lens: number[];
  nWrite: number;
  indirect: boolean;
}

interface Setup {
  size: number;
  eventIdx: boolean;
  inOrder: boolean;
  start: Cursor;
}

/** A buffer on its way: offered, taken, used. */
interface Tracked {
  id: number;
  chain: Segment[];
  /** its place in guest memory, and what the pattern of its bytes is made from */
  slot: number;
  descriptors: number;
  seen?: SeenBuffer;
  /** what `reap` is to say of it, and the bytes written to its writable segments from the first on */
  usedLen?: number;
  written?: number;
}

/** A driver, a device, and the books kept about both. */
class World {
  readonly setup: Setup;
  readonly driver: PackedDriver;
  readonly device: NaivePackedDevice;
  readonly free: number[];
  added: Tracked[] = [];
  offered: Tracked[] = [];
  taken: Tracked[] = [];
  used: Tracked[] = [];
  readonly ids = new Set<number>();
  hidden = 0;
  /** the device's wish: flags, and the event as a count of descriptors since the beginning */
  wish = { flags: 0, event: 0 };
  /** descriptors published and reaped since the beginning */
  published = 0;
  reaped = 0;

  constructor(setup: Setup) {
    const { size, eventIdx, inOrder, start } = setup;
    const place = packedRingLayout(size, RING_OFF);
    this.setup = setup;
    this.driver = new PackedDriver(views, place, size, eventIdx, inOrder);
    this.driver.reset(start.at | (start.wrap << 15));
    this.device = new NaivePackedDevice(views, place, size, { start, base: BASE });
    this.free = Array.from({ length: size }, (_, n) => size - 1 - n);
  }

  get outstanding(): number {
    return this.added.length + this.offered.length + this.taken.length + this.used.length;
  }

  /** Fills the buffer with a pattern of its own; the last `nWrite` segments are for the device to write. */
  add({ lens, nWrite, indirect }: Shape): boolean {
    const slot = this.free.at(-1);
    const before = this.driver.nFree;
    const descriptors = indirect ? 1 : lens.length;
    const fits = descriptors <= before && lens.length <= this.setup.size;
    const at = slot ?? 0;
    const chain = lens.map((len, i) => {
      const off = BUFFERS_OFF + (at * MAX_SEGMENTS + i) * MAX_LEN;
      if (fits) views.u8.fill((at * 17 + i) & 0xff, off, off + len);
      return { addr: BASE + off, len, write: i >= lens.length - nWrite };
    });
    const table = TABLES_OFF + at * 16 * MAX_SEGMENTS;
    const id = indirect ? this.driver.addIndirect(chain, { addr: BASE + table, off: table }) : this.driver.add(chain);
    if (!fits) {
      assert.equal(id, -1);
      return false;
    }
    assert.ok(id >= 0 && id < this.setup.size && !this.ids.has(id), `id ${id} is given out twice, or never was`);
    this.free.pop();
    this.ids.add(id);
    this.added.push({ id, chain, slot: at, descriptors });
    this.hidden += descriptors;
    assert.equal(this.driver.nFree, before - descriptors);
    return true;
  }

  publish(): void {
    const { flags, event } = this.wish;
    const now = this.published + this.hidden;
    const passed = event >= this.published && event < now;
    const wanted = this.hidden > 0 && flags !== 1 && (flags !== 2 || !this.setup.eventIdx || passed);
    assert.equal(
      this.driver.publish(),
      wanted,
      `kick from ${this.published} to ${now}, flags ${flags}, event ${event}`,
    );
    this.published = now;
    this.hidden = 0;
    this.offered.push(...this.added.splice(0));
  }

  /** The place of the `n`th descriptor since the beginning, which may be before that. */
  cursor(n: number): Cursor {
    const { size, start } = this.setup;
    const at = start.at + n;
    const lap = Math.floor(at / size);
    return { at: at - lap * size, wrap: ((start.wrap + Math.abs(lap)) % 2) as 0 | 1 };
  }

  /** Events lie within a ring's length of where the driver will be after its next batch. */
  want(flags: 0 | 1 | 2, ahead: number): void {
    const event = this.published + (ahead % this.setup.size);
    this.wish = { flags, event };
    this.device.wantKicks(flags, this.cursor(event));
  }

  take(max: number): void {
    for (let n = 0; n < max; n++) {
      const expected = this.offered.shift();
      const seen = this.device.take();
      if (expected === undefined) {
        assert.equal(seen, undefined);
        return;
      }
      const { id, chain, slot, descriptors } = expected;
      assert.deepEqual(seen, { id, descriptors, segments: chain });
      for (const [i, { addr, len, write }] of chain.entries()) {
        const bytes = views.u8.subarray(addr - BASE, addr - BASE + len);
        const same = bytes.every((byte) => byte === ((slot * 17 + i) & 0xff));
        assert.ok(write || same, 'payload to the device is spoilt');
      }
      this.taken.push({ ...expected, seen });
    }
  }

  /** Writes up to `len` bytes. @returns how many: as many as there is room for */
  #write({ chain, id }: Tracked, len: number): number {
    let done = 0;
    for (const segment of chain.filter(({ write }) => write === true)) {
      for (let i = 0; i < segment.len && done < len; i++, done++)
        views.u8[segment.addr - BASE + i] = (id + done * 3) & 0xff;
    }
    return done;
  }

  /** Uses any `n` of the taken buffers; an in-order device the first ones. `how`: each by itself, or all told of at once. */
  use(pick: number, n: number, len: number, how: 'singly' | 'at once'): void {
    if (this.taken.length === 0) return;
    const { inOrder } = this.setup;
    const from = inOrder ? 0 : pick % this.taken.length;
    const group = this.taken.splice(from, inOrder || how === 'at once' ? Math.max(1, n) : 1);
    const batch = inOrder && how === 'at once';
    for (const [i, one] of group.entries()) {
      const filled = batch && i + 1 < group.length;
      one.written = this.#write(one, filled ? Number.POSITIVE_INFINITY : len);
      one.usedLen = one.written;
    }
    const seen = group.map((one) => one.seen as SeenBuffer);
    if (batch) this.device.useBatch(seen, group[group.length - 1].usedLen as number);
    else if (how === 'singly') for (const [i, one] of seen.entries()) this.device.use(one, group[i].usedLen as number);
    else {
      const lens = group.map(({ usedLen }) => usedLen as number);
      this.device.useTogether(seen, lens);
    }
    this.used.push(...group);
  }

  reap(max: number): void {
    for (let n = 0; n < max; n++) {
      assert.equal(this.driver.ready, this.used.length > 0);
      const expected = this.used.shift();
      assert.equal(this.driver.reap(), expected?.id ?? -1);
      assert.equal(this.driver.broken, undefined);
      if (expected === undefined) return;
      const { id, chain, slot, descriptors, usedLen, written = 0 } = expected;
      assert.equal(this.driver.usedLen, usedLen);
      let done = 0;
      for (const segment of chain.filter(({ write }) => write === true)) {
        for (let i = 0; i < segment.len && done < written; i++, done++) {
          assert.equal(views.u8[segment.addr - BASE + i], (id + done * 3) & 0xff, 'payload from the device is spoilt');
        }
      }
      this.ids.delete(id);
      this.free.push(slot);
      this.reaped += descriptors;
    }
  }

  /** A device that begins anew at `vringBase` stands where this one would after using what it has taken. */
  checkBase(): void {
    const { at, wrap } = this.device.used;
    const half = at | (wrap << 15);
    assert.equal(this.driver.vringBase, half + half * 65536);
  }

  /** The driver's wish for calls is where it will reap next. */
  checkCalls(): void {
    const sleep = this.driver.enableCalls();
    assert.equal(sleep, this.used.length === 0);
    const { flags, at, wrap } = this.device.callsWanted;
    assert.equal(flags, this.setup.eventIdx ? 2 : 0);
    if (sleep && this.setup.eventIdx) assert.deepEqual({ at, wrap }, this.device.used);
    this.driver.disableCalls();
    assert.equal(this.device.callsWanted.flags, 1);
  }

  /** Everything comes back in the end. */
  finish(): void {
    this.publish();
    this.take(this.setup.size);
    while (this.taken.length > 0) this.use(0, 3, 600, 'at once');
    this.reap(this.setup.size + 1);
    assert.equal(this.driver.nFree, this.setup.size);
    assert.equal(this.ids.size, 0);
    assert.equal(this.reaped, this.published);
  }
}

const shape: fc.Arbitrary<Shape> = fc.record({
  lens: fc.array(fc.integer({ min: 1, max: MAX_LEN }), { minLength: 1, maxLength: MAX_SEGMENTS }),
  nWrite: fc.nat(MAX_SEGMENTS),
  indirect: fc.boolean(),
});

type Step = (world: World) => void;

const step: fc.Arbitrary<Step> = fc.oneof(
  shape.map(
    (s): Step =>
      (world) =>
        void world.add(s),
  ),
  fc.constant<Step>((world) => world.publish()),
  fc.nat(8).map(
    (n): Step =>
      (world) =>
        world.take(n),
  ),
  fc
    .tuple(
      fc.nat(64),
      fc.integer({ min: 1, max: 4 }),
      fc.nat(600),
      fc.constantFrom('singly' as const, 'at once' as const),
    )
    .map(
      ([pick, n, len, how]): Step =>
        (world) =>
          world.use(pick, n, len, how),
    ),
  fc.nat(8).map(
    (n): Step =>
      (world) =>
        world.reap(n),
  ),
  fc.tuple(fc.constantFrom(0 as const, 1 as const, 2 as const), fc.nat(40)).map(
    ([flags, ahead]): Step =>
      (world) =>
        world.want(flags, ahead),
  ),
  fc.constant<Step>((world) => world.checkBase()),
  fc.constant<Step>((world) => world.checkCalls()),
);

const setup: fc.Arbitrary<Setup> = fc
  .record({
    size: fc.constantFrom(1, 2, 3, 4, 5, 7, 16),
    eventIdx: fc.boolean(),
    inOrder: fc.boolean(),
    at: fc.nat(15),
    up: fc.boolean(),
  })
  .map(({ size, eventIdx, inOrder, at, up }) => ({
    size,
    eventIdx,
    inOrder,
    start: { at: at % size, wrap: up ? 1 : 0 },
  }));

test('packed driver: it does what a device that follows the specification expects, whatever comes in whatever order', () => {
  fc.assert(
    fc.property(setup, fc.array(step, { minLength: 20, maxLength: 400, size: 'max' }), (setup, steps) => {
      const world = new World(setup);
      for (const step of steps) step(world);
      world.finish();
    }),
    { numRuns: 300 },
  );
});

/** Numbers that look random and come again from the same seed: Marsaglia's xorshift. */
function numbersFrom(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

describe('packed driver: far round rings of any size', () => {
  for (const size of [1, 2, 3, 5, 7, 256, 1000, 32768]) {
    test(`150000 descriptors pass a ring of ${size}, and at least three laps`, () => {
      fc.assert(
        fc.property(fc.integer({ min: 1 }), fc.boolean(), fc.boolean(), (seed, inOrder, eventIdx) => {
          const random = numbersFrom(seed);
          const start: Cursor = { at: random(size), wrap: random(2) === 1 ? 1 : 0 };
          const world = new World({ size, eventIdx, inOrder, start });
          const burst = Math.min(size, 64);
          while (world.reaped < 150_000) {
            const adds = 1 + random(burst);
            for (let i = 0; i < adds; i++) {
              const lens = Array.from({ length: 1 + random(3) }, () => 1 + random(8));
              if (!world.add({ lens, nWrite: random(3), indirect: random(4) === 0 })) break;
            }
            world.publish();
            world.want(random(3) as 0 | 1 | 2, random(size));
            world.take(random(2 * burst + 1));
            for (let i = random(burst + 1); i > 0; i--)
              world.use(random(1 << 15), 1 + random(3), random(40), random(2) === 0 ? 'singly' : 'at once');
            world.reap(random(2 * burst + 1));
            if (random(16) === 0) {
              world.checkBase();
              world.checkCalls();
            }
          }
          world.finish();
        }),
        { numRuns: 2 },
      );
    });
  }
});
