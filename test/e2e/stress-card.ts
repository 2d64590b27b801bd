/** A card whose pairs send and receive in bulk, every frame with a number and a payload that only it has; each that comes is compared. */
import assert from 'node:assert/strict';
import { macOf } from '../../bench/frames.ts';
import { StaticPort } from '../../bench/static-port.ts';
import type { StaticRing } from '../../bench/static-ring.ts';
import { StepCard, type StepCardOptions } from './step-card.ts';

/** The cards' numbers: those that send to each other, one that talks to those that come and go, and the latter. */
export const STEADY = [0, 1, 2, 3];
export const TALKER = 4;
export const COMERS = [5, 6];
export const RING_SIZE = 256;
const HEADER_LEN = 12;
const ADDRESSES = 12;
const ETHERTYPE = [0x88, 0xb5];
/** Of the words that a frame's payload has, from a multiple of four on: its number, then flow and length, then what follows from both. */
const NUMBER_WORD = (HEADER_LEN + 16) >> 2;
const FLOW_WORD = NUMBER_WORD + 1;
/** Mostly short ones, by place in the ring. */
const SIZES = [64, 64, 128, 64, 64, 1500, 64, 60];
/** Frames in a row that go to the same card. */
const RUN = 16;
const MIX = 0x9e3779b1;
const MAX_CARDS = 16;
const MAX_PAIRS = 2;
const MAX_FLOWS = MAX_CARDS * MAX_CARDS * MAX_PAIRS;
/** A ring whose buffers the device has had for so long is not served any more. */
const STALLED_MS = 30_000;

const flowOf = (from: number, pair: number, to: number) => (from * MAX_PAIRS + pair) * MAX_CARDS + to;

/** What has been sent and received, by flow: a card's frames from one pair to one other card. Cards that come again go on counting. */
export class Ledger {
  readonly sent = new Float64Array(MAX_FLOWS);
  readonly received = new Float64Array(MAX_FLOWS);
  /** by receiver's pair and flow: the last number that came */
  readonly last = Array.from({ length: MAX_PAIRS }, () => new Float64Array(MAX_FLOWS));
  /** frames received, of all flows */
  total = 0;

  /** Frames of the flows between these cards. */
  sum(counts: Float64Array, cards: readonly number[]): number {
    let sum = 0;
    for (const from of cards)
      for (const to of cards) for (let pair = 0; pair < MAX_PAIRS; pair++) sum += counts[flowOf(from, pair, to)];
    return sum;
  }
}

/** One transmit ring, with what its buffers are and where they go. */
interface Sender {
  readonly ring: StaticRing;
  readonly pair: number;
  /** by place: the flow, and words of payload behind the flow word */
  readonly flows: Int32Array;
  readonly words: Int32Array;
  lastMs: number;
}

export interface StressCardOptions extends Omit<StepCardOptions, 'mac' | 'ringSize'> {
  /** the card's number */
  readonly n: number;
  /** numbers of the cards that it sends to */
  readonly peers: readonly number[];
}

export class StressCard {
  readonly n: number;
  readonly step: StepCard;
  readonly #ledger: Ledger;
  readonly #ports: readonly StaticPort[];
  readonly #senders: readonly Sender[];
  /** what the device has used is sent again */
  sending = false;

  /** Connects, and starts all rings. */
  static async connect(options: StressCardOptions, ledger: Ledger): Promise<StressCard> {
    const { n, peers, ...step } = options;
    return new StressCard(n, peers, ledger, await StepCard.started({ ...step, mac: macOf(n), ringSize: RING_SIZE }));
  }

  private constructor(n: number, peers: readonly number[], ledger: Ledger, step: StepCard) {
    this.n = n;
    this.step = step;
    this.#ledger = ledger;
    const to = (at: number) => peers[Math.floor(at / RUN) % peers.length];
    const size = (at: number) => SIZES[at % SIZES.length];
    const frames = Array.from({ length: RING_SIZE }, (_, at) => emptyFrame(n, to(at), size(at)));
    this.#ports = step.pairs.map((pair) => new StaticPort(pair, step.ram, frames, HEADER_LEN));
    this.#senders = this.#ports.map(({ tx: ring }, pair) => ({
      ...{ ring, pair, lastMs: performance.now() },
      flows: Int32Array.from(frames, (_, at) => flowOf(n, pair, to(at))),
      words: Int32Array.from(frames, (frame) => (frame.length - 24) >> 2),
    }));
  }

  /** Buffers that the device has used, of all transmit and of all receive rings. */
  get taken(): number {
    return this.#ports.reduce((sum, { tx }) => sum + tx.total, 0);
  }

  get delivered(): number {
    return this.#ports.reduce((sum, { rx }) => sum + rx.total, 0);
  }

  /** The same of one receive ring. */
  deliveredTo(pair: number): number {
    return this.#ports[pair].rx.total;
  }

  /** Sends `n` frames more on each pair, at most a ring of them: none may be out. */
  send(n: number): void {
    for (const sender of this.#senders) {
      this.#write(sender, n);
      sender.ring.publish(n);
      sender.lastMs = performance.now();
    }
  }

  /** True if the device has taken all that was sent. */
  get idle(): boolean {
    return this.#ports.every(({ tx }) => tx.avail === ((tx.used + tx.pending()) & 0xffff));
  }

  /** Takes what has come, and sends again what the device has taken. @returns buffers used */
  turn(): number {
    let n = 0;
    for (let pair = 0; pair < this.#ports.length; pair++) {
      n += this.#receive(pair);
      n += this.#sendAgain(this.#senders[pair]);
    }
    return n;
  }

  #sendAgain(sender: Sender): number {
    const { ring } = sender;
    const n = ring.look(1);
    if (n === 0) return 0;
    ring.retire(n);
    sender.lastMs = 0;
    if (!this.sending) return n;
    this.#write(sender, n);
    ring.publish(n);
    return n;
  }

  /** Fails if the device has kept buffers of a transmit ring for long. */
  assertServed(now: number): void {
    for (const sender of this.#senders) {
      if (sender.lastMs === 0 || sender.ring.avail === sender.ring.used) sender.lastMs = now;
      const ms = now - sender.lastMs;
      assert.ok(ms < STALLED_MS, `card ${this.n}, pair ${sender.pair}: nothing is taken for ${ms.toFixed(0)} ms`);
    }
  }

  #write({ ring, flows, words }: Sender, n: number): void {
    const { i32, bufferIdx, mask, avail } = ring;
    const { sent } = this.#ledger;
    for (let k = 0; k < n; k++) {
      const place = (avail + k) & mask;
      const at = bufferIdx[place];
      const flow = flows[place];
      const number = ++sent[flow] | 0;
      i32[at] = 0; // the packet header's first word, as a driver clears it
      i32[at + NUMBER_WORD] = number;
      i32[at + FLOW_WORD] = (flow << 16) | words[place];
      const seed = number ^ flow;
      for (let w = 1; w <= words[place]; w++) i32[at + FLOW_WORD + w] = seed ^ Math.imul(w, MIX);
    }
  }

  #receive(pair: number): number {
    const { rx } = this.#ports[pair];
    const n = rx.look(1);
    if (n === 0) return 0;
    for (let k = 0; k < n; k++) this.#check(rx, (rx.used + k) & 0xffff, pair);
    this.#ledger.total += n;
    rx.recycle(n);
    return n;
  }

  #check(rx: StaticRing, place: number, pair: number): void {
    const { i32, bufferIdx, mask } = rx;
    const { sent, received, last } = this.#ledger;
    const at = bufferIdx[place & mask];
    const number = i32[at + NUMBER_WORD];
    const flow = i32[at + FLOW_WORD] >>> 16;
    const words = i32[at + FLOW_WORD] & 0xffff;
    if (flow % MAX_CARDS !== this.n || flow >= MAX_FLOWS) assert.fail(`card ${this.n} gets a frame of flow ${flow}`);
    if (number <= last[pair][flow]) assert.fail(`flow ${flow}: frame ${number} behind ${last[pair][flow]}`);
    if (number > sent[flow]) assert.fail(`flow ${flow}: frame ${number} of ${sent[flow]} that were sent`);
    const len = rx.usedLenAt(place);
    if (len !== HEADER_LEN + 24 + 4 * words) assert.fail(`flow ${flow}: frame ${number} has ${len} bytes`);
    const seed = number ^ flow;
    for (let w = 1; w <= words; w++)
      if (i32[at + FLOW_WORD + w] !== (seed ^ Math.imul(w, MIX)))
        assert.fail(`flow ${flow}: frame ${number} is harmed`);
    last[pair][flow] = number;
    received[flow]++;
  }

  /** Guest addresses of the frames' first bytes in the receive buffers of pair 0. */
  get receiveBuffers(): number[] {
    const { rx } = this.#ports[0];
    const [{ guestAddr }] = this.step.ram.regions;
    const base = this.step.ram.offsetOf(guestAddr) as number;
    return Array.from(rx.bufferIdx, (idx) => guestAddr + 4 * idx - base);
  }
}

/** Numbers wrap after 2³¹ frames of one flow, which no run has. */
function emptyFrame(from: number, to: number, size: number): Uint8Array {
  const frame = new Uint8Array(size);
  const bytes = (n: number) =>
    macOf(n)
      .split(':')
      .map((byte) => Number.parseInt(byte, 16));
  frame.set([...bytes(to), ...bytes(from), ...ETHERTYPE]);
  assert.ok(size > ADDRESSES + ETHERTYPE.length && size % 4 === 0);
  return frame;
}
