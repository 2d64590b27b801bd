/**
 * A virtio-user port's rings in WebAssembly against their twins in TypeScript: the same device before both, polite or not, and the same
 * memory, state and burst behind each step.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CopyStage } from '../../src/mem/copy-stage.ts';
import { openWindow, type WindowHandle, WindowPool, type WindowViews } from '../../src/mem/window.ts';
import { ringLayout } from '../../src/port/net-pair.ts';
import { UserFrames } from '../../src/port/user-frames.ts';
import { makeUserRing, type VirtioUserSpec } from '../../src/port/user-pair.ts';
import { type UserRing, type UserRingPlan, userRingState } from '../../src/port/user-ring.ts';
import { UserStage } from '../../src/port/user-stage.ts';
import type { Burst } from '../../src/virtio-net/burst.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { NaivePackedDevice, type SeenBuffer } from './naive-packed-device.ts';
import { NaiveSplitDevice } from './naive-split-device.ts';

const RING_OFF = 65536;
const RING_BYTES = 8192;
const BUFFERS_OFF = 2 ** 22;
const DELTA = 0x4000_0000;
const STRIDE = 128;
const ROOM = 100;
const MAX_SIZE = 64;
const FRAMES_OFF = 2 ** 20;

const pool = new WindowPool('wasm');
/** where both twins' packets come from */
const source = pool.acquire();

interface Kind {
  readonly format: 'split' | 'packed';
  readonly size: number;
  readonly receives: boolean;
  readonly inOrder: boolean;
  readonly mergeable: boolean;
  readonly offloads: boolean;
}

/** One of the two: a ring with its memory, and the burst. */
class Twin {
  readonly handle: WindowHandle = pool.acquire();
  readonly views: WindowViews = openWindow(this.handle);
  readonly windows: WindowViews[] = [];
  readonly ringStage = new RingStage();
  readonly copyStage = new CopyStage();
  readonly burst: Burst = this.ringStage.burst;
  plan!: UserRingPlan;
  ring!: UserRing;
  frames!: UserFrames;
  split: NaiveSplitDevice | undefined;
  packed: NaivePackedDevice | undefined;
  taken: { id: number; seen: SeenBuffer | undefined }[] = [];

  constructor() {
    this.windows[this.handle.id] = this.views;
    this.windows[source.id] = openWindow(source);
  }

  begin({ format, size, receives, inOrder, mergeable, offloads }: Kind, inModule: boolean): void {
    this.views.u8.fill(0, RING_OFF, RING_OFF + RING_BYTES);
    this.views.u8.fill(0, BUFFERS_OFF, BUFFERS_OFF + MAX_SIZE * STRIDE);
    this.burst.clear();
    this.burst.delivered.fill(0);
    const layout = ringLayout(format === 'packed', size);
    this.plan = {
      format,
      place: { descOff: RING_OFF, availOff: RING_OFF + layout.availOff, usedOff: RING_OFF + layout.usedOff },
      ...{ size, eventIdx: false, inOrder, receives, stride: STRIDE, room: ROOM },
      ...{ buffersOff: BUFFERS_OFF, addressDelta: DELTA, state: userRingState(size) },
    };
    makeUserRing(this.plan, this.views).reset();
    const { place } = this.plan;
    this.taken = [];
    this.packed = format === 'packed' ? new NaivePackedDevice(this.views, place, size) : undefined;
    // split indexes begin shortly before they come round
    const start = 65536 - 2 * size;
    this.split = format === 'split' ? new NaiveSplitDevice(this.views, place, size, { start }) : undefined;
    if (this.split !== undefined) {
      const words = new Int32Array(this.plan.state, 0, 2);
      words[0] = (words[0] + start) & 0xffff;
      words[1] = start;
      this.views.dv.setUint16(place.availOff + 2, words[0], true);
      this.split.forceUsedIdx(start);
    }
    const stage = inModule ? UserStage.for(this.ringStage, this.views, [size]) : undefined;
    assert.equal(stage !== undefined, inModule);
    this.ring = makeUserRing(this.plan, this.views, stage?.ring(size));
    this.ring.load();
    const spec = { windows: [this.handle], headerLen: 12, mergeable, pairs: [] } as const;
    const offers = { accepts: offloads ? 1 : 0, maySend: offloads ? 1 : 0 };
    const all: VirtioUserSpec = { ...spec, ...offers };
    this.frames = new UserFrames(all, this.burst, this.windows, this.copyStage, stage);
  }

  /** All that a step can change, for comparison. */
  look() {
    const { ring, views, burst, frames } = this;
    ring.save();
    const bytes = (off: number, n: number) => Buffer.from(views.u8.slice(off, off + n)).toString('base64');
    const { count } = burst;
    const { off, len, window } = burst.segments;
    // packets in a card's memory are in different windows
    const windows = [...window.subarray(0, count)].map((id) => (id === this.handle.id ? 'card' : id));
    return {
      memory: [bytes(RING_OFF, RING_BYTES), bytes(BUFFERS_OFF, MAX_SIZE * STRIDE)],
      state: Buffer.from(new Uint8Array(this.plan.state)).toString('base64'),
      ring: { head: ring.head, count: ring.count, fault: ring.fault },
      packets: [burst.first, burst.len, burst.front, off, len, burst.delivered].map((a) => [...a.subarray(0, count)]),
      windows,
      bytes: frames.bytes,
    };
  }
}

const packet = fc.record({
  len: fc.oneof({ weight: 20, arbitrary: fc.nat(ROOM - 12) }, { weight: 1, arbitrary: fc.constantFrom(-1, 89, 5000) }),
  needs: fc.oneof({ weight: 20, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.constant(1) }),
  inCard: fc.oneof({ weight: 15, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
  pieces: fc.oneof({ weight: 20, arbitrary: fc.constant(1) }, { weight: 1, arbitrary: fc.constant(2) }),
});

const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('take' as const), max: fc.nat(32) }) },
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constant('use' as const),
      pick: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(64) }),
      batch: fc.integer({ min: 1, max: 9 }),
      len: fc.oneof(
        { weight: 20, arbitrary: fc.integer({ min: 28, max: ROOM }) },
        { weight: 1, arbitrary: fc.nat(30) },
      ),
      flags: fc.oneof({ weight: 15, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(0xffff) }),
      buffers: fc.oneof({ weight: 15, arbitrary: fc.constant(1) }, { weight: 1, arbitrary: fc.nat(3) }),
      seed: fc.integer(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('poke' as const),
      at: fc.nat(RING_BYTES / 4 - 1),
      value: fc.oneof(fc.integer(), fc.nat(300)),
    }),
  },
  { weight: 5, arbitrary: fc.record({ do: fc.constant('reap' as const), max: fc.nat(40) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('list' as const) }) },
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant('post' as const),
      n: fc.nat(32),
      packets: fc.array(packet, { maxLength: 32, size: 'max' }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('move' as const) }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

const twins = [new Twin(), new Twin()] as const;

function use(
  twin: Twin,
  kind: Kind,
  { pick, batch, len: most, flags, buffers, seed }: Extract<Step, { do: 'use' }>,
): void {
  const { taken, views } = twin;
  if (taken.length === 0) return;
  const len = kind.receives ? most : 0;
  const all = kind.inOrder ? taken.splice(0, batch) : taken.splice(pick % taken.length, 1);
  for (const { id } of all) {
    if (!kind.receives) break;
    const buffer = BUFFERS_OFF + (id % kind.size) * STRIDE;
    for (let i = 0; i < ROOM; i += 4) views.dv.setInt32(buffer + i, Math.imul(seed ^ (i + id), 0x9e3779b1), true);
    views.dv.setUint16(buffer, flags, true);
    views.dv.setUint16(buffer + 10, buffers, true);
  }
  const last = all[all.length - 1];
  twin.packed?.useBatch(
    all.map(({ seen }) => seen as SeenBuffer),
    len,
  );
  if (twin.split === undefined) return;
  twin.split.use(last.id, len);
  twin.split.used = (twin.split.used + all.length - 1) % 65536;
  twin.split.forceUsedIdx(twin.split.used);
}

/** Makes packets of the burst, and sends what is plain of them; or gives receive buffers back. @returns what was found on the way */
function post(twin: Twin, kind: Kind, { n, packets }: Extract<Step, { do: 'post' }>): unknown {
  const { ring, burst, frames, handle } = twin;
  if (kind.receives) return ring.post(Math.min(n, ring.count));
  burst.clear();
  for (const [i, { len, needs, inCard, pieces }] of packets.entries()) {
    burst.first[i] = burst.segments.count;
    for (let piece = 0; piece < pieces; piece++)
      burst.segments.push(inCard ? handle.id : source.id, FRAMES_OFF + 256 * i + 128 * piece, len);
    burst.first[i + 1] = burst.segments.count;
    burst.len[i] = len;
    burst.needs[i] = needs;
  }
  burst.count = packets.length;
  burst.offloads = true;
  // all in order, or those from some number on in reverse
  const list = n % 2 === 0 ? burst.all : burst.all.slice(0, packets.length).reverse();
  const from = Math.min(n >> 2, packets.length);
  const to = Math.min(packets.length, from + ring.count);
  const placed = frames.place(ring, list, from, to) - from;
  return [placed, ring.post(placed)];
}

function run(twin: Twin, kind: Kind, one: Step): unknown {
  const { ring, burst, frames } = twin;
  switch (one.do) {
    case 'take':
      for (let i = 0; i < one.max; i++) {
        const seen = twin.packed?.take() ?? twin.split?.take();
        if (seen === undefined) break;
        twin.taken.push('head' in seen ? { id: seen.head, seen: undefined } : { id: seen.id, seen });
      }
      return twin.taken.map(({ id }) => id);
    case 'use':
      return use(twin, kind, one);
    case 'poke':
      return twin.views.i32.fill(one.value, RING_OFF / 4 + one.at, RING_OFF / 4 + one.at + 1).length;
    case 'reap':
      return ring.reap(one.max);
    case 'list':
      if (!kind.receives || ring.fault !== 0) return 0;
      burst.clear();
      burst.count = frames.list(ring, Math.min(ring.count, 32));
      return burst.count;
    case 'post':
      return ring.fault === 0 ? post(twin, kind, one) : 0;
    case 'move':
      ring.save();
      return ring.load();
  }
}

/** A device that has been poked at may be beyond what its own plain code can read. */
function attempt(twin: Twin, kind: Kind, one: Step): unknown {
  if (one.do !== 'take' && one.do !== 'use') return run(twin, kind, one);
  try {
    return run(twin, kind, one);
  } catch (error) {
    return `${error}`;
  }
}

for (const format of ['split', 'packed'] as const)
  test(`virtio-user, ${format} rings: WebAssembly does what TypeScript does`, () => {
    const { u8 } = openWindow(source);
    for (let i = 0; i < 32 * 256; i++) u8[FRAMES_OFF + i] = i * 31;
    let [listed, placed] = [0, 0];
    fc.assert(
      fc.property(
        fc.constantFrom(1, 2, 4, 16, MAX_SIZE),
        fc.record({ receives: fc.boolean(), inOrder: fc.boolean(), mergeable: fc.boolean(), offloads: fc.boolean() }),
        fc.array(step, { minLength: 20, maxLength: 300, size: 'max' }),
        (size, flags, steps) => {
          const kind: Kind = { format, size, ...flags };
          twins[0].begin(kind, true);
          twins[1].begin(kind, false);
          for (const one of steps) {
            const [found, expected] = twins.map((twin) => attempt(twin, kind, one));
            assert.deepEqual(found, expected);
            assert.deepEqual(twins[0].look(), twins[1].look());
            if (one.do === 'list') listed += found as number;
            if (one.do === 'post' && Array.isArray(found)) placed += found[0];
          }
        },
      ),
      { numRuns: 150 },
    );
    assert.ok(listed > 100 && placed > 100, `only ${listed} packets received, ${placed} sent`);
  });
