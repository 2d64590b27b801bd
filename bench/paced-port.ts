/**
 * A static port that sends what is due and not as much as goes in, with a number in each frame and a time in some. A number goes on
 * with each frame, so that a frame is counted where it belongs however long it takes.
 *
 * Hot functions here do no allocation and touch Atomics once a burst.
 */
import { LatencyHistogram } from '../src/testpmd/traffic/latency-histogram.ts';
import type { StaticRing } from './static-ring.ts';

const LINE_WORDS = 16;
/** Words of a buffer, behind header, addresses, type, and room for alignment; all in the first line. */
const SEQ = 7;
const STAMP = 8;
/** What of a buffer must arrive: the rest may be anything. */
export const CARRIED = [SEQ, STAMP];
/** In place of a time. */
const NO_STAMP = 0;

/** Now, in nanoseconds modulo 2³², as frames carry it: a small number, which costs no memory to be passed. */
export const clock = (): number => (performance.now() * 1e6) | 0 || 1;

export class PacedPort {
  readonly rx: StaticRing;
  readonly tx: StaticRing;
  /** how long frames that arrive here were on the way, ns */
  readonly latency = new LatencyHistogram();
  /** frames since the mark: sent, and of those numbered since the mark of who sent them, received */
  sent = 0;
  received = 0;
  /** frames that came with a number not above the one before */
  disorder = 0;
  /** sum of all words read, so that reading them is not optimised away */
  sink = 0;
  /** words from a buffer's beginning to the end of its last line that is touched */
  readonly #words: number;
  readonly #sample: number;
  #untilStamp = 0;
  #seq = 0;
  #lastSeq = 0;
  #fromSeq = 0;

  /**
   * Takes the rings of a port over, with nothing on the way.
   * @param lines cache lines of a frame that are written and read, at least the first
   * @param sample every how many frames one carries a time
   */
  constructor(rx: StaticRing, tx: StaticRing, lines: number, sample: number) {
    this.rx = rx;
    this.tx = tx;
    this.#words = lines * LINE_WORDS;
    this.#sample = sample;
  }

  /** The number of the frame sent last. */
  get seq(): number {
    return this.#seq;
  }

  /** Counts from here on: own frames, and of those that arrive the ones numbered above `seq`. */
  mark(seq: number): void {
    this.sent = 0;
    this.received = 0;
    this.disorder = 0;
    this.#fromSeq = seq;
    this.latency.clear();
  }

  /** Buffers that can be sent now, found to be `wanted` at least if it is so. */
  room(wanted: number): number {
    const { tx } = this;
    let free = tx.mask + 1 - ((tx.avail - tx.used) & 0xffff);
    if (free >= wanted) return free;
    const back = tx.look(1);
    if (back > 0) tx.retire(back);
    free += back;
    return free;
  }

  /** Sends the next `n` frames; there must be room. `stamp`: the time that some of them carry */
  send(n: number, stamp: number): void {
    const { i32, bufferIdx, mask, avail } = this.tx;
    const words = this.#words;
    let seq = this.#seq;
    let untilStamp = this.#untilStamp;
    for (let k = 0; k < n; k++) {
      const at = bufferIdx[(avail + k) & mask];
      seq = (seq + 1) | 0;
      i32[at] = 0; // the packet header's first word, as a driver clears it
      i32[at + SEQ] = seq;
      if (untilStamp === 0) {
        i32[at + STAMP] = stamp;
        untilStamp = this.#sample;
      } else i32[at + STAMP] = NO_STAMP;
      untilStamp--;
      for (let word = LINE_WORDS; word < words; word += LINE_WORDS) i32[at + word] = seq;
    }
    this.#seq = seq;
    this.#untilStamp = untilStamp;
    this.sent += n;
    this.tx.publish(n);
  }

  /** Reads the next `n` received frames. `now`: the time at which they were there */
  read(n: number, now: number): void {
    const { i32, bufferIdx, mask, used } = this.rx;
    const words = this.#words;
    let sink = this.sink;
    let last = this.#lastSeq;
    for (let k = 0; k < n; k++) {
      const at = bufferIdx[(used + k) & mask];
      const seq = i32[at + SEQ];
      if (((seq - last) | 0) <= 0) this.disorder++;
      last = seq;
      if (((seq - this.#fromSeq) | 0) > 0) {
        this.received++;
        const stamp = i32[at + STAMP];
        if (stamp !== NO_STAMP) this.latency.record((now - stamp) | 0);
      }
      for (let word = LINE_WORDS; word < words; word += LINE_WORDS) sink = (sink + i32[at + word]) | 0;
    }
    this.sink = sink;
    this.#lastSeq = last;
  }

  /** Sends `n` frames back, each with number and time of one received: the next ones to be recycled. There must be room. */
  reflect(n: number): void {
    const { i32, bufferIdx, mask, avail } = this.tx;
    const { i32: rxI32, bufferIdx: rxIdx, mask: rxMask, used } = this.rx;
    const words = this.#words;
    for (let k = 0; k < n; k++) {
      const at = bufferIdx[(avail + k) & mask];
      const from = rxIdx[(used + k) & rxMask];
      const seq = rxI32[from + SEQ];
      i32[at] = 0;
      i32[at + SEQ] = seq;
      i32[at + STAMP] = rxI32[from + STAMP];
      for (let word = LINE_WORDS; word < words; word += LINE_WORDS) i32[at + word] = seq;
      if (((seq - this.#fromSeq) | 0) > 0) this.sent++;
    }
    this.tx.publish(n);
  }
}
