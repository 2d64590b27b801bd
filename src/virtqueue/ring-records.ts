/**
 * A ring's inflight records in use, whatever its format: which buffers this thread has taken and not handed back, and those that a
 * predecessor has left, which come before all others.
 *
 * What the records know of a buffer is its entry: of a split ring its head, of a packed ring's the place of its first descriptor's copy.
 */
import type { WindowViews } from '../mem/window.ts';
import { SPLIT_INFLIGHT_WORDS, SplitInflight } from './inflight.ts';
import { PackedInflight, packedInflightWords } from './packed-inflight.ts';
import type { InflightPlace, RingConfig } from './ring-config.ts';

/** Words that the lcores of a ring share; then those of the records themselves, then the list of what a predecessor has left. */
const RECOVERED = 0;
/** of the list: how many have been handed back */
const DONE = 1;
/** slots that the others take */
const PENDING = 2;
const OWN_WORDS = 3;

const inflightWords = ({ format }: RingConfig, { num }: InflightPlace) =>
  format === 'packed' ? packedInflightWords(num) : SPLIT_INFLIGHT_WORDS;

/** Words that the lcores of a ring share for its records, if it has any. */
export const recordsWords = (config: RingConfig): number =>
  config.inflight === undefined ? 0 : OWN_WORDS + inflightWords(config, config.inflight) + config.num;

export class RingRecords {
  readonly #num: number;
  readonly #state: Int32Array;
  readonly #inflight: SplitInflight | PackedInflight;
  readonly #packed: PackedInflight | undefined;
  /** entries that a predecessor has left, as they were taken */
  readonly #left: Int32Array;
  /** entries taken since the last `commit`: this thread's */
  readonly #taken: Int32Array;
  #nTaken = 0;

  /** @param state `recordsWords` words, zero at first, that are touched under the ring's lock only */
  constructor(config: RingConfig, place: InflightPlace, windows: readonly WindowViews[], state: Int32Array) {
    const { num, desc, format } = config;
    const listAt = OWN_WORDS + inflightWords(config, place);
    const words = state.subarray(OWN_WORDS, listAt);
    this.#num = num;
    this.#state = state;
    this.#packed = format === 'packed' ? new PackedInflight(place, desc, num, windows, words) : undefined;
    this.#inflight = this.#packed ?? new SplitInflight(place, num, windows, words);
    this.#left = state.subarray(listAt, listAt + num);
    this.#taken = new Int32Array(num);
  }

  /** `recover` has been called, by this lcore or another. */
  get isRecovered(): boolean {
    return this.#state[RECOVERED] !== 0;
  }

  /**
   * As `recover` of the records, which it is called with `base` of: before anything else, once for all lcores.
   * @returns the number of buffers left, or INFLIGHT_UNKNOWN_VERSION, INFLIGHT_CORRUPT
   */
  recover(base: number): number {
    const state = this.#state;
    state[RECOVERED] = 1;
    const n = this.#inflight.recover(base, this.#left);
    for (let i = 0; i < n; i++) state[PENDING] += this.#inflight.slotsOf(this.#left[i]);
    return n;
  }

  /** Slots of the buffers that a predecessor has left: they are the first ones behind the ring's position, and not taken from the ring. */
  get pending(): number {
    return this.#state[PENDING];
  }

  /** Where a packed ring goes on, as SET_VRING_BASE has it. */
  get packedBase(): number {
    return (this.#packed as PackedInflight).base;
  }

  /** The entry of the pending buffer whose first slot is `ahead` of the position. */
  pendingAt(ahead: number): number {
    let i = this.#state[DONE];
    for (let slot = 0; slot < ahead; i++) slot += this.#inflight.slotsOf(this.#left[i]);
    return this.#left[i];
  }

  slotsOf(entry: number): number {
    return this.#inflight.slotsOf(entry);
  }

  /** PackedInflight.descriptors. */
  descriptors(entry: number, words: Int32Array): number {
    return (this.#packed as PackedInflight).descriptors(entry, words, 0);
  }

  /**
   * The device has taken `n` buffers, one behind the other from the slot `ahead` of `position` on, and not touched them yet.
   * @param ids their ids, as Vring.chainId
   * @param slots the slots of each, in a packed ring
   * @returns false if there is no room for all of them in the records; none is taken then for all that this object knows
   */
  begin(position: number, ahead: number, ids: Int32Array, slots: Int32Array, n: number): boolean {
    const before = this.#nTaken;
    const packed = this.#packed;
    let at = ahead;
    for (let i = 0; i < n; i++) {
      let entry = ids[i];
      if (at < this.pending) entry = this.#left[this.#state[DONE] + this.#nTaken];
      else if (packed === undefined) (this.#inflight as SplitInflight).take(entry);
      else entry = packed.take((position + at) % this.#num, slots[i]);
      if (entry < 0) {
        this.#nTaken = before;
        return false;
      }
      this.#taken[this.#nTaken++] = entry;
      at += packed === undefined ? 1 : slots[i];
    }
    return true;
  }

  /** Buffers that this thread has taken and not handed back. */
  get nTaken(): number {
    return this.#nTaken;
  }

  /** What the ring shows next hands back the first `n` that were taken. */
  end(n: number): void {
    this.#inflight.end(this.#taken, n);
  }

  /** They have been shown: `slots` slots, and the ring's position is `position`. */
  commit(n: number, slots: number, position: number): void {
    const state = this.#state;
    this.#inflight.commit(this.#taken, n, position);
    if (state[PENDING] > 0) {
      state[DONE] += n;
      state[PENDING] = Math.max(0, state[PENDING] - slots);
    }
    this.#nTaken -= n;
    if (this.#nTaken > 0) this.#taken.copyWithin(0, n, n + this.#nTaken);
  }
}
