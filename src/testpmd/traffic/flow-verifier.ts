/**
 * Looks at received bursts for the packets that frame-maker.ts makes: what of each flow is lost, out of order, twice, or damaged,
 * and how long it was on its way. Every field is read once and checked before it is used: whoever sent the packet may be anybody.
 *
 * Counters and histogram are in shared memory: the thread that verifies writes, any other may read.
 */
import type { WindowViews } from '../../mem/window.ts';
import { NanosecondStamp } from '../../net/capture-format.ts';
import { FrameHeaders } from '../../net/headers.ts';
import { MonotonicClock } from '../../sys/clock.ts';
import { IPPROTO_UDP, UDPHDR } from '../../uapi/ip.ts';
import type { Burst } from '../../virtio-net/burst.ts';
import { MAX_GSO_BYTES } from '../../virtio-net/offload-stage.ts';
import { HISTOGRAM_BYTES, LatencyHistogram } from './latency-histogram.ts';
import {
  checkOf,
  FLOW_MASK,
  HEAD_BYTES,
  hashTail,
  MAGIC,
  MAX_FLOWS,
  OFF_CHECK,
  OFF_FLOW,
  OFF_NUMBER,
  OFF_TIME_HI,
  OFF_TIME_LO,
  TIME_HI_MASK,
} from './payload.ts';

/** What is counted of a flow, in the order of its slots. */
const FLOW_COUNTERS = {
  received: 'sound packets, each number once',
  bytes: 'their bytes, whole frames',
  lost: 'numbers that were passed over and have not come since',
  reordered: 'packets that came behind a later one',
  duplicated: 'packets that came again',
  late: 'packets so far behind that nobody knows whether they came before; they count as lost',
  damaged: 'packets whose checksum is wrong, of the flow that they say',
} as const;

export type FlowCounter = keyof typeof FLOW_COUNTERS;
const COUNTERS = Object.keys(FLOW_COUNTERS) as FlowCounter[];
const SLOT = Object.fromEntries(COUNTERS.map((name, i) => [name, i])) as Record<FlowCounter, number>;
const SLOTS = COUNTERS.length;

/** What is counted of no flow: other packets, and ours of a flow that is not expected. */
const FOREIGN = 0;
const UNKNOWN_FLOW = 1;
const TOTALS = 2;

/** Numbers that are remembered of each flow, behind the highest: a multiple of 32, a power of two. */
export const WINDOW = 256;
const WINDOW_WORDS = WINDOW / 32;
/**
 * Of each flow: its run and one more, or 0 before its first packet; the highest number; how many numbers, that one and those behind
 * it, are remembered; and which of them came.
 */
const RUN = 0;
const HIGHEST = 1;
const REMEMBERED = 2;
const SEEN = 3;
const STATE_WORDS = SEEN + WINDOW_WORDS;

/** The counters as other threads have them; survives postMessage. */
export interface VerifierMemory {
  readonly flows: number;
  readonly counters: SharedArrayBuffer;
  readonly latency: SharedArrayBuffer;
}

export function verifierMemory(flows: number): VerifierMemory {
  if (flows < 1 || flows > MAX_FLOWS) throw new RangeError(`${flows} flows: 1 to ${MAX_FLOWS} can be told apart`);
  const counters = new SharedArrayBuffer(8 * (TOTALS + SLOTS * flows));
  return { flows, counters, latency: new SharedArrayBuffer(HISTOGRAM_BYTES) };
}

export class FlowVerifier {
  readonly #flows: number;
  readonly #counters: Float64Array;
  readonly #latency: LatencyHistogram;
  readonly #state: Int32Array;
  readonly #fromFirst: boolean;
  readonly #clock = new MonotonicClock();
  readonly #stamp = new NanosecondStamp();
  #nowHi = 0;
  #nowLo = 0;
  readonly #headers = new FrameHeaders();
  /** a packet that comes in several pieces is put together here */
  readonly #whole = new DataView(new ArrayBuffer(MAX_GSO_BYTES));

  /** @param fromFirst every run is seen from its first packet on: if number 0 is missing it is lost. Else a flow begins where it is met. */
  constructor({ flows, counters, latency }: VerifierMemory, fromFirst: boolean) {
    this.#flows = flows;
    this.#counters = new Float64Array(counters);
    this.#latency = new LatencyHistogram(latency);
    this.#state = new Int32Array(flows * STATE_WORDS);
    this.#fromFirst = fromFirst;
  }

  /** Looks at a burst that has just been received; it stays as it is. @param windows the thread's, by id */
  verify(burst: Burst, windows: readonly WindowViews[]): void {
    const { count, first, len, segments } = burst;
    if (count === 0) return;
    this.#clock.read();
    this.#stamp.set(this.#clock.sec, this.#clock.nsec);
    this.#nowHi = this.#stamp.hi & TIME_HI_MASK;
    this.#nowLo = this.#stamp.lo | 0;
    for (let i = 0; i < count; i++) {
      const s = first[i];
      if (len[i] < 0 || len[i] > MAX_GSO_BYTES) this.#counters[FOREIGN]++;
      else if (first[i + 1] - s === 1) this.#look(windows[segments.window[s]].dv, segments.off[s], len[i]);
      else this.#look(this.#gather(burst, i, windows), 0, len[i]);
    }
  }

  #gather({ segments, first }: Burst, i: number, windows: readonly WindowViews[]): DataView {
    const whole = this.#whole;
    let to = 0;
    for (let s = first[i]; s < first[i + 1]; s++) {
      const { u8 } = windows[segments.window[s]];
      const from = segments.off[s];
      for (let k = 0; k < segments.len[s] && to < MAX_GSO_BYTES; k++) whole.setUint8(to++, u8[from + k]);
    }
    return whole;
  }

  /** Looks at the frame of `len` bytes at `off`. */
  #look(dv: DataView, off: number, len: number): void {
    const headers = this.#headers;
    if (!headers.parse(dv, off, len) || headers.protocol !== IPPROTO_UDP || headers.payloadOff + HEAD_BYTES > len) {
      this.#counters[FOREIGN]++;
      return;
    }
    const at = off + headers.payloadOff;
    if (dv.getUint16(at) !== MAGIC) {
      this.#counters[FOREIGN]++;
      return;
    }
    const flowWord = dv.getInt32(at + OFF_FLOW);
    const flow = flowWord & FLOW_MASK;
    if (flow >= this.#flows) {
      this.#counters[UNKNOWN_FLOW]++;
      return;
    }
    const slots = TOTALS + SLOTS * flow;
    // Frames may be padded: the datagram says how long it is.
    const payload = dv.getUint16(at - UDPHDR.size + UDPHDR.off.len) - UDPHDR.size;
    const number = dv.getInt32(at + OFF_NUMBER);
    const timeHi = dv.getUint16(at + OFF_TIME_HI);
    const timeLo = dv.getInt32(at + OFF_TIME_LO);
    if (payload < HEAD_BYTES || headers.payloadOff + payload > len) {
      this.#counters[slots + SLOT.damaged]++;
      return;
    }
    const tail = hashTail(dv, at + HEAD_BYTES, payload - HEAD_BYTES);
    if (checkOf(tail, number, flowWord, timeHi, timeLo) !== dv.getUint16(at + OFF_CHECK)) {
      this.#counters[slots + SLOT.damaged]++;
      return;
    }
    if (!this.#count(flow, flowWord >>> 24, number)) return;
    this.#counters[slots + SLOT.bytes] += len;
    this.#recordLatency(timeHi, timeLo);
  }

  /** Now less the time that a packet says, modulo 2⁴⁸: more than half of that is before the packet was made. */
  #recordLatency(timeHi: number, timeLo: number): void {
    const low = (this.#nowLo - timeLo) >>> 0;
    const borrow = this.#nowLo >>> 0 < timeLo >>> 0 ? 1 : 0;
    const high = (this.#nowHi - timeHi - borrow) & TIME_HI_MASK;
    if (high === 0) this.#latency.record(low);
    else this.#latency.record((high < 2 ** 15 ? high : high - 2 ** 16) * 2 ** 32 + low);
  }

  /** Counts a sound packet. @returns false if it is not counted as received */
  #count(flow: number, run: number, number: number): boolean {
    const state = this.#state;
    const counters = this.#counters;
    const slots = TOTALS + SLOTS * flow;
    const base = flow * STATE_WORDS;
    if (state[base + RUN] !== run + 1) {
      state[base + RUN] = run + 1;
      state[base + HIGHEST] = this.#fromFirst ? -1 : (number - 1) | 0;
      state[base + REMEMBERED] = 0;
    }
    const highest = state[base + HIGHEST];
    const ahead = (number - highest) | 0;
    const word = base + SEEN + ((number & (WINDOW - 1)) >> 5);
    const bit = 1 << (number & 31);
    if (ahead > 0) {
      if (ahead > 1) {
        counters[slots + SLOT.lost] += ahead - 1;
        forget(state, base + SEEN, highest, ahead);
      }
      state[word] |= bit;
      state[base + HIGHEST] = number;
      state[base + REMEMBERED] = Math.min(WINDOW, state[base + REMEMBERED] + ahead);
    } else if (-ahead >= state[base + REMEMBERED]) {
      counters[slots + SLOT.late]++;
      return false;
    } else if ((state[word] & bit) !== 0) {
      counters[slots + SLOT.duplicated]++;
      return false;
    } else {
      state[word] |= bit;
      counters[slots + SLOT.reordered]++;
      // unless the counters have been cleared meanwhile
      if (counters[slots + SLOT.lost] > 0) counters[slots + SLOT.lost]--;
    }
    counters[slots + SLOT.received]++;
    return true;
  }
}

/** The `ahead` − 1 numbers behind `highest` have not come. */
function forget(state: Int32Array, seen: number, highest: number, ahead: number): void {
  if (ahead > WINDOW) {
    state.fill(0, seen, seen + WINDOW_WORDS);
    return;
  }
  for (let k = 1; k < ahead; k++) {
    const at = (highest + k) & (WINDOW - 1);
    state[seen + (at >> 5)] &= ~(1 << (at & 31));
  }
}

/** What has been counted by one verifier or several, for any thread. */
export class VerifierCounters {
  readonly flows: number;
  readonly #counters: readonly Float64Array[];
  readonly #latencies: readonly LatencyHistogram[];

  /** All of as many flows. */
  constructor(...memories: readonly VerifierMemory[]) {
    this.flows = memories[0].flows;
    this.#counters = memories.map(({ counters }) => new Float64Array(counters));
    this.#latencies = memories.map(({ latency }) => new LatencyHistogram(latency));
  }

  /** Of all packets, as it is now. */
  get latency(): LatencyHistogram {
    const all = new LatencyHistogram();
    for (const one of this.#latencies) all.add(one);
    return all;
  }

  #sum(slot: number): number {
    return this.#counters.reduce((sum, counters) => sum + counters[slot], 0);
  }

  /** Packets that are none of ours. */
  get foreign(): number {
    return this.#sum(FOREIGN);
  }

  /** Ours, of a flow that is not expected. */
  get unknownFlow(): number {
    return this.#sum(UNKNOWN_FLOW);
  }

  of(flow: number, counter: FlowCounter): number {
    return this.#sum(TOTALS + SLOTS * flow + SLOT[counter]);
  }

  /** Of all flows together. */
  total(counter: FlowCounter): number {
    let sum = 0;
    for (let flow = 0; flow < this.flows; flow++) sum += this.of(flow, counter);
    return sum;
  }

  clear(): void {
    for (const counters of this.#counters) counters.fill(0);
    for (const latency of this.#latencies) latency.clear();
  }
}
