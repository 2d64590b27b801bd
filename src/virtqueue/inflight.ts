/**
 * Inflight records of a split ring: which descriptors the device has taken and not yet handed back, kept where they outlive this
 * process. The successor goes on wherever this one stops, be it between two stores.
 *
 * The front end shares the region and may write nonsense there. In operation nothing is read from it; what recovery reads is read once
 * and checked, and the heads that come of it are descriptors like any that the driver offers.
 *
 * What each step costs: `begin` one locked operation a head (10 ns), the others one a burst.
 * @see QEMU docs/interop/vhost-user.rst "Inflight I/O tracking"; `packed-inflight.ts` for packed rings
 */
import type { WindowViews } from '../mem/window.ts';
import { INFLIGHT_DESC_SPLIT, INFLIGHT_SPLIT_HEAD, INFLIGHT_VERSION } from '../uapi/inflight.ts';
import type { InflightPlace } from './ring-config.ts';

/** What `recover` answers instead of a number of buffers. */
export const INFLIGHT_UNKNOWN_VERSION = -1;
export const INFLIGHT_CORRUPT = -2;

/** Words of state that the lcores of a split ring share: the counter's halves, and the head of the last batch. */
export const SPLIT_INFLIGHT_WORDS = 3;
const COUNTER_LO = 0;
const COUNTER_HI = 1;
const LAST_BATCH_HEAD = 2;

const { size: HEAD_SIZE, off: HEAD } = INFLIGHT_SPLIT_HEAD;
const { size: DESC_SIZE, off: DESC } = INFLIGHT_DESC_SPLIT;

/** A counter of 64 bits in two words of `state`. */
export function takeCounter(state: Int32Array): void {
  state[COUNTER_LO] = (state[COUNTER_LO] + 1) | 0;
  if (state[COUNTER_LO] === 0) state[COUNTER_HI] = (state[COUNTER_HI] + 1) | 0;
}

/**
 * Sorts `n` entries by the 64-bit counters whose word index `at` tells, and leaves the number behind the highest in `state`.
 * Not for the packet path.
 */
export function sortByCounter(
  entries: Int32Array,
  n: number,
  words: Int32Array,
  at: (entry: number) => number,
  state: Int32Array,
): void {
  const counters = Array.from(entries.subarray(0, n), (entry) => ({
    entry,
    lo: words[at(entry)] >>> 0,
    hi: words[at(entry) + 1] >>> 0,
  }));
  counters.sort((a, b) => a.hi - b.hi || a.lo - b.lo);
  for (let i = 0; i < n; i++) entries[i] = counters[i].entry;
  const highest = counters.at(-1);
  state[COUNTER_LO] = highest?.lo ?? 0;
  state[COUNTER_HI] = highest?.hi ?? 0;
  if (highest !== undefined) takeCounter(state);
}

/** @throws RangeError if `bytes` at the place do not fit the window or are not aligned to 8 */
export function checkInflightPlace(place: InflightPlace, bytes: number, num: number): void {
  const { off } = place;
  if (off < 0 || off % 8 !== 0 || off + bytes >= 2 ** 31) throw new RangeError('inflight records: not in their window');
  if (place.num < num) throw new RangeError(`inflight records: ${place.num} descriptors, the ring has ${num}`);
}

export class SplitInflight {
  readonly #mask: number;
  readonly #u8: Uint8Array;
  readonly #u16: Uint16Array;
  readonly #i32: Int32Array;
  readonly #off: number;
  /** where the first descriptor's entry is, bytes */
  readonly #desc: number;
  readonly #descNum: number;
  readonly #state: Int32Array;

  /**
   * Touches nothing yet: `recover` comes before anything else, once for all lcores that use the ring.
   * @param num descriptors of the ring, a power of two, at most `place.num`
   * @param windows by window id
   * @param state SPLIT_INFLIGHT_WORDS words, shared by the lcores that use the ring: each call is made under its lock
   * @throws RangeError if the region does not fit its window or the ring: the main thread has seen to that
   */
  constructor(place: InflightPlace, num: number, windows: readonly WindowViews[], state: Int32Array) {
    checkInflightPlace(place, HEAD_SIZE + place.num * DESC_SIZE, num);
    const { u8, u16, i32 } = windows[place.window];
    this.#mask = num - 1;
    this.#u8 = u8;
    this.#u16 = u16;
    this.#i32 = i32;
    this.#off = place.off;
    this.#desc = place.off + HEAD_SIZE;
    this.#descNum = place.num;
    this.#state = state;
  }

  /**
   * The device has taken `n` heads, in the order of the avail ring; their buffers are not touched yet. Each becomes inflight by one
   * store: what a crash leaves is a beginning of the burst, and the avail ring still has the rest.
   */
  begin(heads: Int32Array, n: number): void {
    for (let i = 0; i < n; i++) this.take(heads[i]);
  }

  /** `begin` for one head. */
  take(head: number): void {
    const state = this.#state;
    const at = this.#entry(head);
    this.#i32[(at + DESC.counter) >> 2] = state[COUNTER_LO];
    this.#i32[(at + DESC.counter + 4) >> 2] = state[COUNTER_HI];
    takeCounter(state);
    Atomics.store(this.#u8, at + DESC.inflight, 1);
  }

  /** Slots of the ring that a buffer takes. */
  slotsOf(_head: number): number {
    return 1;
  }

  /**
   * The next store to the ring's used index hands back these `n` heads and no other. To be called when their used entries are
   * written, before the index is.
   */
  end(heads: Int32Array, n: number): void {
    let last = this.#state[LAST_BATCH_HEAD];
    for (let i = 0; i < n; i++) {
      this.#u16[(this.#entry(heads[i]) + DESC.next) >> 1] = last;
      last = heads[i] & this.#mask;
    }
    this.#state[LAST_BATCH_HEAD] = last;
    // Only the list's head as it is when the used index moves tells recovery anything: one store will do for the batch.
    Atomics.store(this.#u16, (this.#off + HEAD.last_batch_head) >> 1, last);
  }

  /** The ring's used index has been stored, and now is `usedIdx`: the heads given to `end` are not inflight any more. */
  commit(heads: Int32Array, n: number, usedIdx: number): void {
    for (let i = 0; i < n; i++) this.#u8[this.#entry(heads[i]) + DESC.inflight] = 0;
    Atomics.store(this.#u16, (this.#off + HEAD.used_idx) >> 1, usedIdx);
  }

  /**
   * Finishes what a predecessor has left undone, and finds what it had not handed back. A crash in here is recovered from like any.
   *
   * The caller processes the heads again, in the order given and without `begin`, and goes on in the avail ring behind all that was
   * ever taken, at `usedIdx` + the number of heads.
   * @param usedIdx the ring's used index
   * @param heads gets the heads; room for as many as the ring has
   * @returns the number of heads, or INFLIGHT_UNKNOWN_VERSION, INFLIGHT_CORRUPT: the ring cannot be started
   */
  recover(usedIdx: number, heads: Int32Array): number {
    const u16 = this.#u16;
    const version = Atomics.load(u16, (this.#off + HEAD.version) >> 1);
    if (version !== 0 && version !== INFLIGHT_VERSION) return INFLIGHT_UNKNOWN_VERSION;
    if (version === 0) this.#clear(usedIdx);
    else if (!this.#finishBatch(usedIdx)) return INFLIGHT_CORRUPT;

    let n = 0;
    for (let head = 0; head <= this.#mask; head++)
      if (this.#u8[this.#entry(head) + DESC.inflight] === 1) heads[n++] = head;
    sortByCounter(heads, n, this.#i32, (head) => (this.#entry(head) + DESC.counter) >> 2, this.#state);
    this.#state[LAST_BATCH_HEAD] = 0;
    return n;
  }

  /** @returns false if the list of the last batch leads out of the ring */
  #finishBatch(usedIdx: number): boolean {
    const u16 = this.#u16;
    const batch = (usedIdx - Atomics.load(u16, (this.#off + HEAD.used_idx) >> 1)) & 0xffff;
    if (batch === 0) return true;
    if (batch > this.#mask + 1) {
      // No batch is larger than the ring: the driver has set it up anew since, and nothing of it is inflight.
      this.#clear(usedIdx);
      return true;
    }
    let head = u16[(this.#off + HEAD.last_batch_head) >> 1];
    for (let i = 0; i < batch; i++) {
      if (head > this.#mask) return false;
      this.#u8[this.#entry(head) + DESC.inflight] = 0;
      head = u16[(this.#entry(head) + DESC.next) >> 1];
    }
    Atomics.store(u16, (this.#off + HEAD.used_idx) >> 1, usedIdx);
    return true;
  }

  /** An empty region. The version makes it one, last of all. */
  #clear(usedIdx: number): void {
    const u16 = this.#u16;
    this.#i32[(this.#off + HEAD.features) >> 2] = 0;
    this.#i32[(this.#off + HEAD.features + 4) >> 2] = 0;
    for (let i = 0; i < this.#descNum; i++) this.#u8[this.#desc + i * DESC_SIZE + DESC.inflight] = 0;
    u16[(this.#off + HEAD.desc_num) >> 1] = this.#descNum;
    u16[(this.#off + HEAD.last_batch_head) >> 1] = 0;
    Atomics.store(u16, (this.#off + HEAD.used_idx) >> 1, usedIdx);
    Atomics.store(u16, (this.#off + HEAD.version) >> 1, INFLIGHT_VERSION);
  }

  /** Where a head's entry is. Whatever the head, it is inside the region. */
  #entry(head: number): number {
    return this.#desc + (head & this.#mask) * DESC_SIZE;
  }
}
