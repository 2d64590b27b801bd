/**
 * Inflight records of a packed ring: as `inflight.ts` keeps them of a split one. Since used descriptors overwrite those that the driver
 * made available, the records hold a copy of each descriptor taken. Entries that hold none are in a free list.
 *
 * The region has two of everything that moves: free list, used index and wrap counter, each with the value from before the last batch.
 * The order of stores tells recovery how far a batch came:
 * - `end` changes the free list first and the index after it. While index and wrap counter are as before, nothing was handed back.
 * - The batch is handed back by the flags of its first descriptor, which the ring writes last of all. Before that, what stands there
 *   is available by the old wrap counter.
 * - `commit` changes the old free list first. Once it equals the new one, the batch was handed back, whatever the rest says: the spec's
 *   way, to look at the flags, may then find by an old index and a new counter, or the other way round, a descriptor of another lap.
 *
 * A batch that was not handed back may have left flags behind its first descriptor that say "used". Recovery takes them back, all of
 * them up to the avail index, lest the driver believe them when the first descriptor is used by another batch, a shorter one.
 *
 * The free list is kept here as well, and only recovery reads the region's: see `inflight.ts` on what the front end may write.
 * @see QEMU docs/interop/vhost-user.rst "Inflight I/O tracking"; VIRTIO 1.2 §2.8
 */
import type { Place } from '../mem/guest-memory.ts';
import type { WindowViews } from '../mem/window.ts';
import { INFLIGHT_DESC_PACKED, INFLIGHT_PACKED_HEAD, INFLIGHT_VERSION } from '../uapi/inflight.ts';
import { VRING_PACKED_DESC, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED } from '../uapi/virtio-ring.ts';
import {
  checkInflightPlace,
  INFLIGHT_CORRUPT,
  INFLIGHT_UNKNOWN_VERSION,
  sortByCounter,
  takeCounter,
} from './inflight.ts';
import type { InflightPlace } from './ring-config.ts';

const { size: HEAD_SIZE, off: HEAD } = INFLIGHT_PACKED_HEAD;
const { size: DESC_SIZE, off: DESC } = INFLIGHT_DESC_PACKED;
/** One descriptor in the ring: 16 bytes, four words. */
const RING_DESC_SHIFT = 4;
const AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED = 1 << VRING_PACKED_DESC_F_USED;
const WRAP_BIT = 15;

/** The words of `state`: the first two are the counter's halves, see `takeCounter`; then three arrays by entry. */
const FREE_HEAD = 2;
const FREE_COUNT = 3;
const USED_IDX = 4;
const USED_WRAP = 5;
const ARRAYS = 6;

/** Words of state that the lcores of a packed ring share, for records of `num` descriptors. */
export const packedInflightWords = (num: number): number => ARRAYS + 3 * num;

export class PackedInflight {
  /** descriptors of the ring */
  readonly #num: number;
  /** entries of the region */
  readonly #entries: number;
  readonly #u8: Uint8Array;
  readonly #u16: Uint16Array;
  readonly #i32: Int32Array;
  readonly #off: number;
  /** where the first entry is, bytes */
  readonly #desc: number;
  readonly #ringOff: number;
  readonly #ring16: Uint16Array;
  readonly #ring32: Int32Array;
  readonly #state: Int32Array;
  /** in `state`, by entry: the next one of its list; by head: its last entry, and how many it has */
  readonly #next: number;
  readonly #last: number;
  readonly #count: number;

  /**
   * Touches nothing yet: `recover` comes before anything else, once for all lcores that use the ring.
   * @param ring the descriptor ring
   * @param num its descriptors, at most `place.num`
   * @param windows by window id
   * @param state `packedInflightWords(place.num)` words, shared by the lcores that use the ring: each call is made under its lock
   * @throws RangeError if the region does not fit its window or the ring: the main thread has seen to that
   */
  constructor(place: InflightPlace, ring: Place, num: number, windows: readonly WindowViews[], state: Int32Array) {
    checkInflightPlace(place, HEAD_SIZE + place.num * DESC_SIZE, num);
    const { u8, u16, i32 } = windows[place.window];
    this.#num = num;
    this.#entries = place.num;
    this.#u8 = u8;
    this.#u16 = u16;
    this.#i32 = i32;
    this.#off = place.off;
    this.#desc = place.off + HEAD_SIZE;
    this.#ringOff = ring.off;
    this.#ring16 = windows[ring.window].u16;
    this.#ring32 = windows[ring.window].i32;
    this.#state = state;
    this.#next = ARRAYS;
    this.#last = ARRAYS + place.num;
    this.#count = ARRAYS + 2 * place.num;
  }

  /**
   * The device has taken `n` buffers, one behind the other in the ring; they are not touched yet. Copies their descriptors, as they
   * are in the ring now: if the driver has changed them since they were read, it gets back what it asked for.
   * @param first index in the ring of the first buffer's first descriptor
   * @param counts descriptors of each buffer in the ring
   * @param entries gets the entry of each buffer, by which `end` and `commit` know it
   * @returns buffers recorded: fewer than `n` if there are no entries left, because the driver has made more descriptors available
   * than the ring has. Those of the last are not recorded.
   */
  begin(first: number, counts: Int32Array, n: number, entries: Int32Array): number {
    let at = first;
    for (let i = 0; i < n; i++) {
      const entry = this.take(at, counts[i]);
      if (entry < 0) return i;
      entries[i] = entry;
      at += counts[i];
      if (at >= this.#num) at -= this.#num;
    }
    return n;
  }

  /** `begin` for one buffer. @returns its entry, or −1 if there are not enough left */
  take(first: number, count: number): number {
    const state = this.#state;
    if (count < 1 || count > state[FREE_COUNT]) return -1;
    const head = state[FREE_HEAD];
    const headAt = this.#entry(head);
    this.#i32[(headAt + DESC.counter) >> 2] = state[0];
    this.#i32[(headAt + DESC.counter + 4) >> 2] = state[1];
    takeCounter(state);
    let last = head;
    for (let i = 0, at = first; i < count; i++) {
      last = state[FREE_HEAD];
      this.#copyIn(at, this.#entry(last));
      state[FREE_HEAD] = state[this.#next + last];
      at = at + 1 === this.#num ? 0 : at + 1;
    }
    state[FREE_COUNT] -= count;
    state[this.#last + head] = last;
    state[this.#count + head] = count;
    this.#u16[(headAt + DESC.last) >> 1] = last;
    this.#u16[(headAt + DESC.num) >> 1] = count;
    // Inflight, yet in the free list until its old head moves: a crash in between gives it back.
    this.#u8[headAt + DESC.inflight] = 1;
    Atomics.store(this.#u16, (this.#off + HEAD.free_head) >> 1, state[FREE_HEAD]);
    Atomics.store(this.#u16, (this.#off + HEAD.old_free_head) >> 1, state[FREE_HEAD]);
    return head;
  }

  #copyIn(ringIdx: number, to: number): void {
    const from = (this.#ringOff >> 2) + (ringIdx << 2);
    const words = this.#ring32;
    this.#i32[(to + DESC.addr) >> 2] = words[from];
    this.#i32[(to + DESC.addr + 4) >> 2] = words[from + 1];
    this.#i32[(to + DESC.len) >> 2] = words[from + 2];
    this.#i32[(to + DESC.id) >> 2] = words[from + 3]; // and flags: both structs have them side by side
  }

  /**
   * The next batch of used descriptors hands back these `n` buffers and no other. To be called before the flags of its first one are
   * written; neither `begin` nor another `end` comes before `commit`.
   */
  end(entries: Int32Array, n: number): void {
    if (n === 0) return;
    const state = this.#state;
    let free = state[FREE_HEAD];
    let used = state[USED_IDX];
    for (let i = 0; i < n; i++) {
      const last = state[this.#last + entries[i]];
      state[this.#next + last] = free;
      this.#u16[(this.#entry(last) + DESC.next) >> 1] = free;
      free = entries[i];
      used += state[this.#count + free];
      state[FREE_COUNT] += state[this.#count + free];
    }
    state[FREE_HEAD] = free;
    if (used >= this.#num) {
      used -= this.#num;
      state[USED_WRAP] ^= 1;
    }
    state[USED_IDX] = used;
    Atomics.store(this.#u16, (this.#off + HEAD.free_head) >> 1, free);
    Atomics.store(this.#u16, (this.#off + HEAD.used_idx) >> 1, used);
    Atomics.store(this.#u8, this.#off + HEAD.used_wrap_counter, state[USED_WRAP]);
  }

  /** All flags have been written, those of the batch's first descriptor last of all: what was given to `end` is not inflight any more. */
  commit(entries: Int32Array, n: number): void {
    const state = this.#state;
    for (let i = 0; i < n; i++) this.#u8[this.#entry(entries[i]) + DESC.inflight] = 0;
    this.#storeOld(state[FREE_HEAD], state[USED_IDX], state[USED_WRAP]);
  }

  #storeOld(free: number, used: number, wrap: number): void {
    Atomics.store(this.#u16, (this.#off + HEAD.old_free_head) >> 1, free);
    Atomics.store(this.#u16, (this.#off + HEAD.old_used_idx) >> 1, used);
    Atomics.store(this.#u8, this.#off + HEAD.old_used_wrap_counter, wrap);
  }

  /**
   * Finishes what a predecessor has left undone, and finds what it had not handed back. A crash in here is recovered from like any.
   * Not for the packet path.
   *
   * The caller processes the buffers again, in the order given and without `begin`: `descriptors` tells what they are. The ring goes
   * on where `base` says, behind all that was ever taken.
   * @param base as SET_VRING_BASE has it; it counts only for a region that nobody has used yet
   * @param entries gets the entries of the buffers; room for as many as the ring has descriptors
   * @returns the number of buffers, or INFLIGHT_UNKNOWN_VERSION, INFLIGHT_CORRUPT: the ring cannot be started
   */
  recover(base: number, entries: Int32Array): number {
    const version = Atomics.load(this.#u16, (this.#off + HEAD.version) >> 1);
    if (version !== 0 && version !== INFLIGHT_VERSION) return INFLIGHT_UNKNOWN_VERSION;
    const known = version === 0 ? this.#initialise(base) : this.#finishBatch();
    if (!known) return INFLIGHT_CORRUPT;
    const n = this.#readLists(entries);
    if (n < 0) return n;
    this.#takeBackFlags();
    const counterOf = (head: number) => (this.#entry(head) + DESC.counter) >> 2;
    sortByCounter(entries, n, this.#i32, counterOf, this.#state);
    return n;
  }

  /** Where the ring goes on, as SET_VRING_BASE has it: at first behind all that was recovered. */
  get base(): number {
    const state = this.#state;
    // What is not in the free list is inflight, and lies between used and avail index.
    let avail = state[USED_IDX] + this.#entries - state[FREE_COUNT];
    let wrap = state[USED_WRAP];
    if (avail >= this.#num) {
      avail -= this.#num;
      wrap ^= 1;
    }
    return (avail | (wrap << WRAP_BIT) | (state[USED_IDX] << 16) | (state[USED_WRAP] << 31)) >>> 0;
  }

  /** Descriptors of a buffer that is inflight. */
  slotsOf(entry: number): number {
    return this.#state[this.#count + entry];
  }

  /**
   * Copies a buffer's descriptors to `words` from word `at` on, four each as in the ring. They come from the region: to be checked
   * like those of the ring.
   * @returns how many descriptors it has
   */
  descriptors(entry: number, words: Int32Array, at: number): number {
    const state = this.#state;
    const count = state[this.#count + entry];
    for (let i = 0, from = entry, to = at; i < count; i++, to += 4) {
      const desc = this.#entry(from);
      words[to] = this.#i32[(desc + DESC.addr) >> 2];
      words[to + 1] = this.#i32[(desc + DESC.addr + 4) >> 2];
      words[to + 2] = this.#i32[(desc + DESC.len) >> 2];
      words[to + 3] = this.#i32[(desc + DESC.id) >> 2];
      from = state[this.#next + from];
    }
    return count;
  }

  /** An empty region. The version makes it one, last of all. @returns false if `base` is beyond the ring */
  #initialise(base: number): boolean {
    const used = (base >>> 16) & 0x7fff;
    if (used >= this.#num) return false;
    this.#i32[(this.#off + HEAD.features) >> 2] = 0;
    this.#i32[(this.#off + HEAD.features + 4) >> 2] = 0;
    for (let i = 0; i < this.#entries; i++) {
      this.#u8[this.#entry(i) + DESC.inflight] = 0;
      this.#u16[(this.#entry(i) + DESC.next) >> 1] = i + 1;
    }
    this.#u16[(this.#off + HEAD.desc_num) >> 1] = this.#entries;
    this.#u16[(this.#off + HEAD.free_head) >> 1] = 0;
    this.#u16[(this.#off + HEAD.used_idx) >> 1] = used;
    this.#u8[this.#off + HEAD.used_wrap_counter] = base >>> 31;
    this.#storeOld(0, used, base >>> 31);
    this.#state[FREE_HEAD] = 0;
    this.#state[USED_IDX] = used;
    this.#state[USED_WRAP] = base >>> 31;
    Atomics.store(this.#u16, (this.#off + HEAD.version) >> 1, INFLIGHT_VERSION);
    return true;
  }

  /** Makes old and new values the same: commits the last batch, or rolls it back. @returns false if they are nonsense */
  #finishBatch(): boolean {
    const word = (field: number) => Atomics.load(this.#u16, (this.#off + field) >> 1);
    const bit = (field: number) => Atomics.load(this.#u8, this.#off + field) & 1;
    let [free, used, wrap] = [word(HEAD.free_head), word(HEAD.used_idx), bit(HEAD.used_wrap_counter)];
    const [oldFree, oldUsed, oldWrap] = [
      word(HEAD.old_free_head),
      word(HEAD.old_used_idx),
      bit(HEAD.old_used_wrap_counter),
    ];
    if (used >= this.#num || oldUsed >= this.#num) return false;
    const pending = used !== oldUsed || wrap !== oldWrap;
    if (pending && (free === oldFree || !this.#isAvailable(oldUsed, oldWrap))) {
      this.#storeOld(free, used, wrap);
    } else {
      // The free list last: as long as it differs from the old one, what else differs was not handed back.
      Atomics.store(this.#u8, this.#off + HEAD.used_wrap_counter, oldWrap);
      Atomics.store(this.#u16, (this.#off + HEAD.used_idx) >> 1, oldUsed);
      Atomics.store(this.#u16, (this.#off + HEAD.free_head) >> 1, oldFree);
      [free, used, wrap] = [oldFree, oldUsed, oldWrap];
    }
    this.#state[FREE_HEAD] = free;
    this.#state[USED_IDX] = used;
    this.#state[USED_WRAP] = wrap;
    return true;
  }

  #flagsAt(ringIdx: number): number {
    return (this.#ringOff + (ringIdx << RING_DESC_SHIFT) + VRING_PACKED_DESC.off.flags) >> 1;
  }

  /** §2.8.1: available in the lap that `wrap` names, and not used */
  #isAvailable(ringIdx: number, wrap: number): boolean {
    const flags = Atomics.load(this.#ring16, this.#flagsAt(ringIdx));
    return (flags & (AVAIL | USED)) === (wrap === 1 ? AVAIL : USED);
  }

  /**
   * Has the descriptors between used and avail index say "available". Their buffers are inflight: nobody reads more of them than
   * whether they are used. The first says so already.
   */
  #takeBackFlags(): void {
    const state = this.#state;
    const held = this.#entries - state[FREE_COUNT];
    for (let i = 1; i < held; i++) {
      const at = state[USED_IDX] + i;
      const wrapped = at >= this.#num;
      const available = (state[USED_WRAP] === 1) !== wrapped ? AVAIL : USED;
      Atomics.store(this.#ring16, this.#flagsAt(wrapped ? at - this.#num : at), available);
    }
  }

  /**
   * Reads the lists once into `state` and checks them: every entry is in the free list or in one buffer.
   * @returns the number of inflight buffers, in no order, or INFLIGHT_CORRUPT
   */
  #readLists(entries: Int32Array): number {
    const state = this.#state;
    const seen = new Uint8Array(this.#entries);
    for (let i = 0; i < this.#entries; i++) state[this.#next + i] = this.#u16[(this.#entry(i) + DESC.next) >> 1];

    let free = 0;
    for (let i = state[FREE_HEAD]; i !== this.#entries; i = state[this.#next + i]) {
      if (i > this.#entries || seen[i] !== 0) return INFLIGHT_CORRUPT;
      seen[i] = 1;
      free++;
      const flag = this.#entry(i) + DESC.inflight;
      if (this.#u8[flag] !== 0) this.#u8[flag] = 0;
    }
    state[FREE_COUNT] = free;

    let n = 0;
    let held = 0;
    for (let head = 0; head < this.#entries; head++) {
      if (this.#u8[this.#entry(head) + DESC.inflight] !== 1) continue;
      const count = this.#readBuffer(head, seen);
      if (count === 0) return INFLIGHT_CORRUPT;
      held += count;
      entries[n++] = head;
    }
    return held <= this.#num && free + held === this.#entries ? n : INFLIGHT_CORRUPT;
  }

  /** @returns how many entries the buffer has, 0 if they are not its own alone */
  #readBuffer(head: number, seen: Uint8Array): number {
    const state = this.#state;
    const at = this.#entry(head);
    const count = this.#u16[(at + DESC.num) >> 1];
    let last = head;
    for (let i = 0, entry = head; i < count; i++, entry = state[this.#next + entry]) {
      if (entry >= this.#entries || seen[entry] !== 0) return 0;
      seen[entry] = 1;
      last = entry;
    }
    state[this.#last + head] = last;
    state[this.#count + head] = count;
    return last === this.#u16[(at + DESC.last) >> 1] ? count : 0;
  }

  #entry(entry: number): number {
    return this.#desc + entry * DESC_SIZE;
  }
}
