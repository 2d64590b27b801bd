import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { AddressMap } from '../../src/mem/address-map.ts';
import { openWindow, type WindowViews } from '../../src/mem/window.ts';
import { counterBlock, VRING_SLOTS } from '../../src/stats/counters.ts';
import { Caller, createEventfd, drain } from '../../src/sys/eventfd.ts';
import { BURST_SIZE } from '../../src/virtio-net/burst.ts';
import { completeBurst, dequeueBurst } from '../../src/virtio-net/dequeue.ts';
import { DROP_FAULT, DROP_NO_BUFFER, DROP_TOO_BIG, Enqueuer } from '../../src/virtio-net/enqueue.ts';
import { NetVring } from '../../src/virtio-net/net-vring.ts';
import { OffloadStage } from '../../src/virtio-net/offload-stage.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { PackedRing } from '../../src/virtqueue/packed-ring.ts';
import { SplitRing } from '../../src/virtqueue/split-ring.ts';
import { type Chain, Dice, NaiveDriver } from '../kit/naive-driver.ts';
import { pool } from '../kit/ram.ts';
import { EVENTS, type RawPackedRing } from '../kit/raw-packed-ring.ts';
import { FORMATS, type Format } from '../kit/raw-ring.ts';
import type { RawSplitRing } from '../kit/raw-split-ring.ts';

interface Scenario {
  readonly format: Format;
  readonly seed: number;
  readonly txNum: number;
  readonly rxNum: number;
  readonly start: number;
  readonly header: 'legacy' | 'modern' | 'mergeable';
  readonly sourceHeader: 10 | 12;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  readonly inOrder: boolean;
}

/** A split ring's size is a power of two. */
const size = (format: Format) =>
  format === 'split'
    ? fc.integer({ min: 0, max: 10 }).map((log2) => 2 ** log2)
    : fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 1024 }));

const scenario = (format: Format): fc.Arbitrary<Scenario> =>
  fc.record({
    format: fc.constant(format),
    seed: fc.noShrink(fc.integer()),
    txNum: size(format),
    rxNum: size(format),
    start: fc.oneof(fc.integer({ min: 65400, max: 65535 }), fc.integer({ min: 0, max: 65535 })),
    header: fc.constantFrom('legacy', 'modern', 'mergeable'),
    sourceHeader: fc.constantFrom(10, 12),
    eventIdx: fc.boolean(),
    indirect: fc.boolean(),
    inOrder: fc.boolean(),
  });

const MAX_FRAME = 9728;
/** Receive chains of a driver without mergeable buffers, and with. */
const RX_BYTES = { fixed: [1, 4000], mergeable: [200, 1500] } as const;
const JUMBO_PERCENT = 3;
const SLOTS = 128;

/** Two rings with a driver each, and the device between them. */
class Bench {
  readonly s: Scenario;
  readonly dice: Dice;
  readonly tx: NaiveDriver;
  readonly rx: NaiveDriver;
  readonly txRing: NetVring;
  readonly rxRing: NetVring;
  /** what the receiver's memory must look like */
  readonly expected: Buffer;
  readonly frames: Buffer[] = [];
  readonly #stage = new RingStage();
  readonly #enqueuer: Enqueuer;
  readonly #calls: { tx: CallModel; rx: CallModel };
  readonly #headerLen: 10 | 12;
  entries = 0;

  constructor(s: Scenario) {
    this.s = s;
    this.dice = new Dice(s.seed);
    this.#headerLen = s.header === 'legacy' ? 10 : 12;
    const mergeable = s.header === 'mergeable';
    const { format, start: at, eventIdx, indirect, inOrder } = s;
    const common = { format, start: at, eventIdx, indirect, inOrder };
    const fds = { tx: createEventfd(), rx: createEventfd() };
    this.tx = new NaiveDriver(this.dice, s.txNum, false, MAX_FRAME + 12, SLOTS, {
      ...common,
      headerLen: s.sourceHeader,
      callFd: fds.tx,
    });
    const rxOptions = { ...common, headerLen: this.#headerLen, mergeable, callFd: fds.rx };
    this.rx = new NaiveDriver(this.dice, s.rxNum, true, 4000, SLOTS, rxOptions);
    this.expected = Buffer.from(this.rx.arena);
    const windows: WindowViews[] = [];
    for (const { handle, views } of [...this.tx.rams, ...this.rx.rams]) windows[handle.id] = views;
    const Ring = format === 'packed' ? PackedRing : SplitRing;
    const caller = new Caller(new Int32Array(1), 0);
    const start = ({ ring, ram }: NaiveDriver) =>
      new NetVring(
        new Ring(ring.config, new AddressMap(ram.chunks), windows, caller),
        ring.features,
        new Float64Array(counterBlock(VRING_SLOTS)),
      );
    this.txRing = start(this.tx);
    this.rxRing = start(this.rx);
    const bounce = openWindow(pool.acquire());
    windows[bounce.id] = bounce;
    this.#enqueuer = new Enqueuer(this.#stage, new OffloadStage(bounce, 65536, 2 ** 20), windows);
    const Calls = format === 'packed' ? PackedCalls : SplitCalls;
    this.#calls = { tx: new Calls(this.tx, s), rx: new Calls(this.rx, s) };
  }

  /** The drivers offer something, the device moves a burst, and everything is compared. */
  step(): void {
    this.#offerFrames();
    this.#offerBuffers();
    this.#calls.tx.changeMind(this.dice);
    this.#calls.rx.changeMind(this.dice);
    const on = this.tx.offered.length;
    const n = dequeueBurst(this.txRing, this.#stage);
    assert.equal(this.txRing.ring.fault, 0);
    assert.ok(n >= Math.min(on, 1) && n <= Math.min(on, BURST_SIZE), `${n} taken of ${on}`);
    if (n === 0) return;
    this.#deliver(n);
    completeBurst(this.txRing, this.#stage);
    this.#calls.tx.check(this.tx.takeBack(Array(n).fill(0)));
    assert.equal(this.txRing.ring.base, this.tx.ring.base);
    this.frames.splice(0, n);
    this.entries += n;
  }

  #offerFrames(): void {
    for (let i = this.dice.int(0, 40); i > 0; i--) {
      const len = this.dice.chance(JUMBO_PERCENT) ? this.dice.int(2000, MAX_FRAME) : this.dice.int(0, 300);
      const bytes = Buffer.alloc(this.s.sourceHeader + len);
      for (let b = 0; b < bytes.length; b += 4)
        bytes.writeInt32LE(this.dice.int(0, 0x7fffffff), Math.min(b, bytes.length - 4));
      const chain = this.tx.offer(bytes.length);
      if (chain === undefined) break;
      this.tx.write(chain, bytes);
      this.frames.push(bytes.subarray(this.s.sourceHeader));
    }
    this.tx.ring.publish();
  }

  #offerBuffers(): void {
    const [min, max] = this.s.header === 'mergeable' ? RX_BYTES.mergeable : RX_BYTES.fixed;
    for (let i = this.dice.int(0, 60); i > 0; i--) {
      const bytes = this.dice.chance(90) ? this.dice.int(Math.max(min, 320), max) : this.dice.int(min, max);
      if (this.rx.offer(bytes) === undefined) break;
    }
    this.rx.ring.publish();
  }

  #deliver(n: number): void {
    for (let i = 0; i < n; i++) assert.equal(this.#stage.burst.len[i], this.frames[i].length);
    // some of the burst's packets, as when others go elsewhere
    const list = Int32Array.from([...Array(n).keys()].filter(() => this.dice.chance(95)));
    const { lens, drops, bytes } = this.#model(list);
    this.#stage.burst.delivered.fill(0);
    const delivered = this.#enqueuer.enqueue(this.rxRing, list, 0, list.length);
    assert.equal(this.rxRing.ring.fault, 0);
    assert.deepEqual([...this.#enqueuer.drops], drops, 'drops');
    assert.equal(delivered, list.length - drops.reduce((a, b) => a + b));
    assert.equal(
      this.#stage.burst.delivered.reduce((a, b) => a + b),
      delivered,
    );
    assert.equal(this.rxRing.bytes, bytes);
    assert.ok(this.expected.equals(this.rx.arena), 'exactly the frames’ bytes are written, and nothing beside them');
    const used = this.rx.takeBack(lens);
    for (const chain of used) this.rx.refill(chain, this.expected);
    if (used.length > 0) this.#calls.rx.check(used);
    assert.equal(this.rxRing.ring.base, this.rx.ring.base);
    if (drops[DROP_TOO_BIG] > 0) this.#passFirst();
    this.entries += lens.length;
  }

  /** What the specification says becomes of the packets: used lengths and drops; writes them into `expected`. */
  #model(list: Int32Array): { lens: number[]; drops: number[]; bytes: number } {
    const lens: number[] = [];
    const drops = [0, 0, 0, 0, 0];
    let bytes = 0;
    for (const packet of list) {
      const frame = this.frames[packet];
      const need = this.#headerLen + frame.length;
      const chains: Chain[] = [];
      let room = 0;
      let dropped: number | undefined;
      while (room < need && dropped === undefined) {
        const next = this.rx.offered[lens.length + chains.length];
        if (next === undefined) dropped = DROP_NO_BUFFER;
        else if (this.s.header !== 'mergeable' && next.bytes < need) dropped = DROP_TOO_BIG;
        else {
          chains.push(next);
          room += next.bytes;
        }
      }
      if (dropped !== undefined) {
        drops[dropped]++;
        continue;
      }
      const header = Buffer.alloc(this.#headerLen);
      if (this.#headerLen === 12) header.writeUInt16LE(chains.length, 10);
      let data = Buffer.concat([header, frame]);
      for (const chain of chains) {
        const part = data.subarray(0, chain.bytes);
        this.rx.write(chain, part, this.expected);
        lens.push(part.length);
        data = data.subarray(part.length);
      }
      bytes += frame.length;
    }
    assert.equal(drops[DROP_FAULT], 0);
    return { lens, drops, bytes };
  }

  /** A frame of no bytes takes the first buffer, in which the last frame did not fit: else the driver would never get on. */
  #passFirst(): void {
    const first = this.rx.offered[0];
    if (first === undefined) return;
    if (first.bytes < this.#headerLen) {
      this.rx.growFirst();
      return;
    }
    const header = Buffer.alloc(this.#headerLen);
    if (this.#headerLen === 12) header.writeUInt16LE(1, 10);
    this.rx.write(first, header, this.expected);
    const { burst } = this.#stage;
    burst.len[0] = burst.first[0] = burst.first[1] = 0;
    assert.equal(this.#enqueuer.enqueue(this.rxRing, Int32Array.of(0), 0, 1), 1);
    assert.ok(this.expected.equals(this.rx.arena), 'a frame of no bytes is a header');
    const used = this.rx.takeBack([this.#headerLen]);
    for (const chain of used) this.rx.refill(chain, this.expected);
    this.#calls.rx.check(used);
  }

  close(): void {
    for (const { ring } of [this.tx, this.rx]) closeSync(ring.config.callFd);
  }
}

/** When the driver wants to be called, and whether it was. */
interface CallModel {
  changeMind(dice: Dice): void;
  /** These chains have been used since the last check: says whether exactly the call that was due has come. */
  check(used: readonly Chain[]): void;
}

const assertCalls = (driver: NaiveDriver, due: boolean) =>
  assert.equal(drain(driver.ring.config.callFd), due ? 1 : 0, 'calls');

/** @see VIRTIO 1.2 §2.7.7 */
class SplitCalls implements CallModel {
  readonly #driver: NaiveDriver;
  readonly #ring: RawSplitRing;
  readonly #eventIdx: boolean;
  #event: number;
  #noInterrupt = false;
  #used: number;
  #first = true;

  constructor(driver: NaiveDriver, { eventIdx, start }: Scenario) {
    this.#driver = driver;
    this.#ring = driver.ring as RawSplitRing;
    this.#eventIdx = eventIdx;
    this.#event = this.#used = start;
    this.#ring.usedEvent = start;
  }

  changeMind(dice: Dice): void {
    if (dice.chance(60)) this.#event = (this.#used + dice.int(-3, 36)) & 0xffff;
    if (dice.chance(30)) this.#noInterrupt = !this.#noInterrupt;
    this.#ring.usedEvent = this.#event;
    // with EVENT_IDX the flag means nothing
    this.#ring.noInterrupt = this.#noInterrupt;
  }

  check({ length: n }: readonly Chain[]): void {
    let passed = false;
    for (let i = 0; i < n; i++) if (((this.#used + i) & 0xffff) === this.#event) passed = true;
    const due = this.#eventIdx ? passed || this.#first : !this.#noInterrupt;
    this.#used = (this.#used + n) & 0xffff;
    this.#first = false;
    assertCalls(this.#driver, due);
  }
}

/** Slots are counted through two laps: from 0 to 2 · num − 1. @see VIRTIO 1.2 §2.8.10 */
class PackedCalls implements CallModel {
  readonly #driver: NaiveDriver;
  readonly #ring: RawPackedRing;
  readonly #eventIdx: boolean;
  #flags: number = EVENTS.enable;
  #event = 0;
  #used: number;
  #first = true;

  constructor(driver: NaiveDriver, { eventIdx }: Scenario) {
    this.#driver = driver;
    this.#ring = driver.ring as RawPackedRing;
    this.#eventIdx = eventIdx;
    const { slot, wrap } = this.#ring.usedPosition;
    this.#used = slot + (wrap === 1 ? 0 : this.#ring.num);
  }

  get #laps(): number {
    return 2 * this.#ring.num;
  }

  changeMind(dice: Dice): void {
    const { num } = this.#ring;
    // between what was used last and a lap from here
    if (dice.chance(60)) this.#event = (this.#used + dice.int(-Math.min(3, num - 1), Math.min(36, num))) % this.#laps;
    if (this.#event < 0) this.#event += this.#laps;
    if (dice.chance(50)) this.#flags = dice.int(EVENTS.enable, EVENTS.reserved);
    this.#ring.setEvent(this.#flags, { slot: this.#event % num, wrap: this.#event < num ? 1 : 0 });
  }

  check(used: readonly Chain[]): void {
    const slots = used.reduce((sum, { descriptors }) => sum + descriptors.length, 0);
    let passed = false;
    for (let i = 0; i < slots; i++) if ((this.#used + i) % this.#laps === this.#event) passed = true;
    this.#used = (this.#used + slots) % this.#laps;
    let due = this.#flags !== EVENTS.disable;
    if (due && this.#flags === EVENTS.desc && this.#eventIdx) due = passed || this.#first;
    if (this.#flags !== EVENTS.disable) this.#first = false;
    assertCalls(this.#driver, due);
  }
}

function run(s: Scenario, until: (bench: Bench, steps: number) => boolean): number {
  const bench = new Bench(s);
  try {
    for (let steps = 0; !until(bench, steps); steps++) bench.step();
    return bench.entries;
  } finally {
    bench.close();
  }
}

for (const format of FORMATS) {
  test(`${format} rings: frames of any layout come out whole, in order and once, in buffers of any layout`, () => {
    fc.assert(
      fc.property(scenario(format), (s) => {
        run(s, (_, steps) => steps === 40);
      }),
      { numRuns: 120 },
    );
  });

  const sizes = format === 'split' ? { txNum: 256, rxNum: 128 } : { txNum: 251, rxNum: 97 };
  for (const [name, s] of [
    ['without event index', { header: 'modern', eventIdx: false, indirect: false, sourceHeader: 12, inOrder: true }],
    [
      'with event index and mergeable buffers',
      { header: 'mergeable', eventIdx: true, indirect: true, sourceHeader: 10 },
    ],
    ['of a legacy driver', { header: 'legacy', eventIdx: true, indirect: true, sourceHeader: 10 }],
  ] as const)
    test(`${format} rings ${name}: the indexes wrap, and nothing changes`, () => {
      fc.assert(
        fc.property(fc.noShrink(fc.integer()), (seed) => {
          run({ inOrder: false, ...s, ...sizes, format, seed, start: 65000 }, (bench) => bench.entries > 140_000);
        }),
        { numRuns: 1 },
      );
    });
}

for (const num of [32768, 32767])
  test(`packed rings of ${num} descriptors: a lap and more, and nothing changes`, () => {
    const sizes = { txNum: num, rxNum: num, start: (num - 600) | 0x8000 };
    const more = { header: 'mergeable', sourceHeader: 12, eventIdx: true, indirect: false, inOrder: false } as const;
    fc.assert(
      fc.property(fc.noShrink(fc.integer()), (seed) => {
        run({ format: 'packed', seed, ...sizes, ...more }, ({ tx, rx }) => {
          const laps = [tx, rx].map(({ ring }) => (ring as RawPackedRing).slotsUsed / num);
          return Math.min(...laps) > 1.1;
        });
      }),
      { numRuns: 1 },
    );
  });
