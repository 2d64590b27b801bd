/** Numbered frames between guests of our own without an end, while the test does something to them or to their switch. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { waitUntil } from '../peers/process.ts';

/** What a card must have. */
export type Talker = Pick<VirtioUser, 'mac' | 'macBytes' | 'send' | 'flush' | 'receive'>;

const SHORTEST = 60;
const LONGEST = 1514;
const PATIENCE_MS = 10_000;
/** So long without a frame, and those on the way are lost, where they may be. */
const LOST_AFTER_MS = 15;
/** An IPv4 header and a UDP header with this port; each pair sends from one of its own. Nothing here looks at lengths or checksums. */
const UDP_PORT = 0x88b5;
const IPV4 = [0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
const AT = { fromPort: 34, port: 36, lane: 42, pair: 43, number: 44 };

export interface LaneOptions {
  /** queue pairs of the sender to send by, each a flow of its own; default the first */
  readonly pairs?: number;
  /** frames on the way, a flow */
  readonly window?: number;
  /** frames may be lost; they come once, in order and unharmed all the same */
  readonly lossy?: boolean;
  /** the longest frame */
  readonly longest?: number;
}

/** One pair's frames from one card to another. */
class Flow {
  next = 0;
  /** one behind the last that came */
  due = 0;
  /** one behind the last that came or was given up */
  seen = 0;
  came = 0;
  lastMs = performance.now();
  /** the receiver's pairs that it came by */
  readonly pairs = new Set<number>();
}

let lanes = 0;

/** Frames from one card to another. */
export class Lane {
  readonly from: Talker;
  readonly to: Talker;
  readonly flows: readonly Flow[];
  readonly id = lanes++ & 0xff;
  lossy: boolean;
  paused = false;
  readonly #window: number;
  readonly #frame: Uint8Array;
  readonly #longest: number;

  constructor(from: Talker, to: Talker, options: LaneOptions = {}) {
    this.from = from;
    this.to = to;
    this.lossy = options.lossy ?? false;
    this.#window = options.window ?? 64;
    this.#longest = options.longest ?? LONGEST;
    this.flows = Array.from({ length: options.pairs ?? 1 }, () => new Flow());
    this.#frame = Uint8Array.from({ length: this.#longest }, (_, i) => (i * 11 + this.id) & 0xff);
    this.#frame.set([...to.macBytes, ...from.macBytes, ...IPV4]);
    this.#frame.set([UDP_PORT >> 8, UDP_PORT & 0xff], AT.port);
    this.#frame[AT.lane] = this.id;
  }

  /** Frames that have come. */
  get came(): number {
    return this.flows.reduce((sum, { came }) => sum + came, 0);
  }

  get onTheWay(): number {
    return this.flows.reduce((sum, { next, seen }) => sum + next - seen, 0);
  }

  /** Frame `n` of a flow, there until the next is asked for. */
  #numbered(pair: number, n: number): Uint8Array {
    const frame = this.#frame;
    frame[AT.pair] = pair;
    frame.set([3, pair], AT.fromPort);
    for (let i = 0; i < 4; i++) frame[AT.number + i] = n >>> (24 - 8 * i);
    return frame.subarray(0, SHORTEST + ((n * 37) % (this.#longest - SHORTEST + 1)));
  }

  /** Sends what may be on the way. @returns frames */
  fill(): number {
    let sent = 0;
    if (this.paused) return sent;
    for (const [pair, flow] of this.flows.entries()) {
      const before = sent;
      if (this.lossy && performance.now() - flow.lastMs > LOST_AFTER_MS) {
        flow.seen = flow.next;
        flow.lastMs = performance.now();
      }
      while (flow.next - flow.seen < this.#window && this.from.send(this.#numbered(pair, flow.next), undefined, pair)) {
        flow.next++;
        sent++;
      }
      if (sent > before) this.from.flush(pair);
    }
    return sent;
  }

  take(got: Uint8Array, byPair = 0): void {
    const pair = got[AT.pair];
    const n = Buffer.from(got.buffer, got.byteOffset).readUInt32BE(AT.number);
    const flow = this.flows[pair];
    const what = `frame ${n} of lane ${this.id} from ${this.from.mac}, pair ${pair}`;
    assert.ok(flow !== undefined && n < flow.next, `${what} was never sent`);
    assert.ok(Buffer.from(got).equals(this.#numbered(pair, n)), `${what} is not as it was sent`);
    assert.ok(n >= flow.due, `${what} came again, or late: ${flow.due} is due`);
    assert.ok(this.lossy || n === flow.due, `${what} where ${flow.due} is due: one before it is lost`);
    flow.due = n + 1;
    flow.seen = Math.max(flow.seen, flow.due);
    flow.came++;
    flow.pairs.add(byPair);
    flow.lastMs = performance.now();
  }
}

/** All lanes at once, on this thread. */
export class Traffic {
  readonly lanes: readonly Lane[];
  /** by card and pair, what has been received, announcements and all */
  readonly received = new Map<Talker, { packets: number; bytes: number }[]>();
  #stopping = false;
  #done: Promise<void> = Promise.resolve();
  #hold: Promise<void> | undefined;

  /** Receives on the first `rxPairs` pairs of each card. */
  constructor(all: readonly Lane[], rxPairs: (card: Talker) => number = () => 1) {
    this.lanes = all;
    for (const card of new Set(all.flatMap(({ from, to }) => [from, to])))
      this.received.set(
        card,
        Array.from({ length: rxPairs(card) }, () => ({ packets: 0, bytes: 0 })),
      );
  }

  start(): this {
    this.#stopping = false;
    this.#done = this.#run();
    this.#done.catch(() => {}); // told by those who wait
    return this;
  }

  async #run(): Promise<void> {
    for (let idle = 0; !this.#stopping; ) {
      if (this.#hold !== undefined) await this.#hold;
      let n = 0;
      for (const lane of this.lanes) n += lane.fill();
      n += this.receiveAll();
      idle = n > 0 ? 0 : idle + 1;
      await (idle < 20 ? new Promise((resolve) => setImmediate(resolve)) : sleep(1));
    }
  }

  /** Takes what has arrived everywhere. @returns frames */
  receiveAll(): number {
    let n = 0;
    for (const [card, pairs] of this.received) for (const pair of pairs.keys()) n += this.receiveOn(card, pair);
    return n;
  }

  /** Takes what has arrived on one pair. @returns frames */
  receiveOn(card: Talker, pair: number): number {
    const count = this.received.get(card)?.[pair];
    let n = 0;
    for (let got = card.receive(pair); got !== undefined; got = card.receive(pair), n++) {
      this.#deliver(card, got, pair);
      if (count === undefined) continue;
      count.packets++;
      count.bytes += got.length;
    }
    return n;
  }

  #deliver(card: Talker, got: Uint8Array, pair: number): void {
    if (((got[AT.port] << 8) | got[AT.port + 1]) !== UDP_PORT) return; // somebody's announcement
    const lane = this.lanes.find(({ id, to }) => id === got[AT.lane] && to === card);
    // what was flooded before its address was known
    if (lane !== undefined) lane.take(got, pair);
    else assert.ok(!Buffer.from(got.subarray(0, 6)).equals(card.macBytes), `a stranger's frame for ${card.mac}`);
  }

  /** Waits until `n` frames more have come on every lane that is not paused. */
  async comeMore(n = 300, ms = PATIENCE_MS): Promise<void> {
    const targets = this.lanes.map((lane) => lane.came + n);
    const giveUpAt = performance.now() + ms;
    const left = () => this.lanes.filter((lane, i) => !lane.paused && lane.came < targets[i]);
    while (left().length > 0) {
      const late = left().map((l) => `${l.from.mac} to ${l.to.mac}: ${l.came} came, ${l.onTheWay} on the way`);
      assert.ok(performance.now() < giveUpAt, `no more frames: ${late.join('; ')}`);
      await Promise.race([sleep(2), this.#done]);
    }
  }

  /** Does nothing to any card while `use` runs: as if the guests were stopped between two instructions. */
  async whileHeld<T>(use: () => Promise<T> | T): Promise<T> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#hold = promise;
    await sleep(0);
    try {
      return await use();
    } finally {
      this.#hold = undefined;
      resolve();
    }
  }

  /** No lane sends; what is on the way arrives. */
  async settle(ms = PATIENCE_MS): Promise<void> {
    for (const lane of this.lanes) lane.paused = true;
    const quiet = () => this.lanes.every((lane) => lane.lossy || lane.onTheWay === 0);
    const rest = () => this.lanes.map((l) => `${l.from.mac} to ${l.to.mac}: ${l.onTheWay}`).join('; ');
    await Promise.race([
      waitUntil('all frames to arrive', quiet, ms, { everyMs: 1, details: rest }),
      this.#done.then(() => assert.ok(quiet(), 'traffic has ended')),
    ]);
  }

  resume(): void {
    for (const lane of this.lanes) lane.paused = false;
  }

  /** Ends it, when all has arrived. Fails for what went wrong meanwhile. */
  async stop(): Promise<void> {
    try {
      await this.settle();
    } finally {
      this.#stopping = true;
    }
    await this.#done;
  }
}
