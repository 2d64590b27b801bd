import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import type { Segment } from '../../src/virtqueue/driver-ring.ts';
import { SplitDriver, splitLayout } from '../../src/virtqueue/split-driver.ts';
import { NaiveSplitDevice, passes, type SeenChain } from './naive-split-device.ts';

const RING_OFF = 65536;
const TABLES_OFF = 2 ** 22;
const BUFFERS_OFF = 2 ** 23;
/** Guest addresses are window offsets plus this: the upper half is not 0. */
const BASE = 0x3_0000_0000;
/** Bytes of a segment at most. */
const MAX_LEN = 96;

const views = openWindow(new WindowPool('wasm').acquire());

type Step =
  | { do: 'add'; lens: number[]; nWrite: number; indirect: boolean }
  | { do: 'publish' }
  | { do: 'take'; max: number }
  | { do: 'use'; pick: number; len: number }
  | { do: 'reap'; max: number }
  | { do: 'want kick'; ahead: number };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({
      do: fc.constant('add' as const),
      lens: fc.array(fc.integer({ min: 1, max: MAX_LEN }), { minLength: 1, maxLength: 6 }),
      nWrite: fc.nat(6),
      indirect: fc.boolean(),
    }),
    fc.record({ do: fc.constant('publish' as const) }),
    fc.record({ do: fc.constant('take' as const), max: fc.nat(8) }),
    fc.record({ do: fc.constant('use' as const), pick: fc.nat(64), len: fc.nat(600) }),
    fc.record({ do: fc.constant('reap' as const), max: fc.nat(8) }),
    fc.record({ do: fc.constant('want kick' as const), ahead: fc.integer({ min: -4, max: 12 }) }),
  ),
  { minLength: 20, maxLength: 400, size: 'max' },
);

/** A driver, a device, and the books kept about both. */
class World {
  readonly size: number;
  readonly eventIdx: boolean;
  readonly driver: SplitDriver;
  readonly device: NaiveSplitDevice;
  /** chains offered and not taken yet, in order */
  readonly offered: { head: number; chain: Segment[] }[] = [];
  readonly taken: SeenChain[] = [];
  readonly used: { head: number; len: number; bytes: Map<number, number> }[] = [];
  /** ids in the device's hands or used, with the descriptors they occupy */
  readonly outstanding = new Map<number, number>();
  /** where each outstanding chain's buffers lie */
  readonly slots = new Map<number, number>();
  availEvent = 0;
  flagged = false;
  published: number;

  constructor(size: number, start: number, eventIdx: boolean) {
    const place = splitLayout(size, RING_OFF);
    this.size = size;
    this.eventIdx = eventIdx;
    this.driver = new SplitDriver(views, place, size, eventIdx);
    this.driver.reset(start);
    this.device = new NaiveSplitDevice(views, place, size, { start, base: BASE });
    this.published = start;
  }

  run(step: Step): void {
    if (step.do === 'add') this.#add(step);
    else if (step.do === 'publish') this.#publish();
    else if (step.do === 'take') this.#take(step.max);
    else if (step.do === 'use') this.#use(step);
    else if (step.do === 'reap') this.#reap(step.max);
    else this.#wantKick(step.ahead);
  }

  /** Buffers of slot `n`, filled with a pattern of its own; the last `nWrite` are for the device to write. */
  #add({ lens, nWrite, indirect }: Extract<Step, { do: 'add' }>): void {
    const slot = [...Array(this.size).keys()].find((n) => ![...this.slots.values()].includes(n));
    if (slot === undefined) return;
    const chain = lens.map((len, i) => {
      const off = BUFFERS_OFF + (slot * 6 + i) * MAX_LEN;
      views.u8.fill((slot * 17 + i) & 0xff, off, off + len);
      return { addr: BASE + off, len, write: i >= lens.length - nWrite };
    });
    const table = TABLES_OFF + slot * 16 * 6;
    const nDesc = indirect ? 1 : chain.length;
    const before = this.driver.nFree;
    const head = indirect ? this.driver.addIndirect(chain, { addr: BASE + table, off: table }) : this.driver.add(chain);
    if (nDesc > before || (indirect && chain.length > this.size)) {
      assert.equal(head, -1);
      return;
    }
    assert.ok(head >= 0 && !this.outstanding.has(head), `id ${head} is given out twice`);
    this.outstanding.set(head, nDesc);
    this.slots.set(head, slot);
    this.offered.push({ head, chain });
    assert.equal(this.driver.nFree, before - nDesc);
  }

  #publish(): void {
    const now = this.driver.availIdx;
    const old = this.published;
    const expected = this.eventIdx ? passes(this.availEvent, old, now) : now !== old && !this.flagged;
    assert.equal(this.driver.publish(), expected, `kick from ${old} to ${now}, avail_event ${this.availEvent}`);
    this.published = now;
  }

  #wantKick(ahead: number): void {
    this.availEvent = (this.device.avail + ahead + 65536) % 65536;
    this.device.availEvent = this.availEvent;
    this.flagged = ahead % 2 === 1;
    this.device.flags = this.flagged ? 1 : 0;
  }

  #take(max: number): void {
    for (let n = 0; n < max && this.device.avail !== this.published; n++) {
      const seen = this.device.take() ?? assert.fail('a published chain is missing');
      const expected = this.offered.shift() ?? assert.fail('a chain nobody offered');
      assert.deepEqual(seen, { head: expected.head, segments: expected.chain });
      for (const [i, { addr, len, write }] of seen.segments.entries()) {
        const slot = this.slots.get(seen.head) ?? assert.fail();
        const bytes = views.u8.subarray(addr - BASE, addr - BASE + len);
        assert.ok(write || bytes.every((byte) => byte === ((slot * 17 + i) & 0xff)), 'payload to the device is spoilt');
      }
      this.taken.push(seen);
    }
    if (this.device.avail === this.published) assert.equal(this.device.take(), undefined);
  }

  /** Uses any of the taken chains, writing `len` bytes at most. */
  #use({ pick, len }: Extract<Step, { do: 'use' }>): void {
    if (this.taken.length === 0) return;
    const [{ head, segments }] = this.taken.splice(pick % this.taken.length, 1);
    const bytes = new Map<number, number>();
    for (const segment of segments.filter(({ write }) => write)) {
      for (let i = 0; i < segment.len && bytes.size < len; i++)
        bytes.set(segment.addr - BASE + i, (head + i * 3) & 0xff);
    }
    for (const [off, byte] of bytes) views.u8[off] = byte;
    this.device.use(head, bytes.size);
    this.used.push({ head, len: bytes.size, bytes });
  }

  #reap(max: number): void {
    for (let n = 0; n < max; n++) {
      const expected = this.used.shift();
      assert.equal(this.driver.reap(), expected?.head ?? -1);
      assert.equal(this.driver.broken, undefined);
      if (expected === undefined) return;
      assert.equal(this.driver.usedLen, expected.len);
      for (const [off, byte] of expected.bytes) assert.equal(views.u8[off], byte, 'payload from the device is spoilt');
      this.outstanding.delete(expected.head);
      this.slots.delete(expected.head);
    }
  }

  /** Everything comes back in the end. */
  finish(): void {
    this.#publish();
    this.#take(this.size);
    while (this.taken.length > 0) this.#use({ do: 'use', pick: 0, len: 600 });
    this.#reap(this.size + 1);
    assert.equal(this.outstanding.size, 0);
    assert.equal(this.driver.nFree, this.size);
  }
}

test('split driver: whatever the device does within the rules, every buffer comes back once, in order, payload intact', () => {
  const size = fc.constantFrom(1, 2, 4, 8, 32);
  const start = fc.oneof(fc.integer({ min: 65500, max: 65535 }), fc.nat(65535));
  fc.assert(
    fc.property(size, start, fc.boolean(), steps, (size, start, eventIdx, steps) => {
      const world = new World(size, start, eventIdx);
      for (const step of steps) world.run(step);
      world.finish();
    }),
    { numRuns: 300 },
  );
});
