/**
 * Guest address → (window, offset), for the packet path: integer arithmetic on the address's two 32-bit halves.
 *
 * Guest memory is held as chunks: runs of guest addresses that share their upper half and lie in one window.
 */

/** One chunk as the main thread describes it. */
export interface Chunk {
  /** guest address of the first byte */
  readonly guestAddr: number;
  /** bytes that can be reached from an address in this chunk on; those past the chunk proper may belong to the next one */
  readonly reach: number;
  /** id of the window */
  readonly window: number;
  /** where in the window */
  readonly windowOff: number;
}

const TWO_32 = 2 ** 32;

export class AddressMap {
  readonly #n: number;
  readonly #hi: Int32Array;
  readonly #lo: Int32Array;
  readonly #reach: Int32Array;
  readonly #window: Int32Array;
  readonly #off: Int32Array;
  #last = 0;

  /** `chunks` in any order; none crosses a multiple of 4 GiB with its first address, each reach is below 2³¹. */
  constructor(chunks: readonly Chunk[]) {
    this.#n = chunks.length;
    this.#hi = Int32Array.from(chunks, (c) => Math.floor(c.guestAddr / TWO_32));
    this.#lo = Int32Array.from(chunks, (c) => c.guestAddr % TWO_32);
    this.#reach = Int32Array.from(chunks, (c) => c.reach);
    this.#window = Int32Array.from(chunks, (c) => c.window);
    this.#off = Int32Array.from(chunks, (c) => c.windowOff);
  }

  /**
   * The chunk that holds all `len` bytes from the address on, or −1. `lo` and `hi` are the address's halves as int32,
   * `len` is an unsigned 32-bit number as int32 or not.
   */
  find(lo: number, hi: number, len: number): number {
    const last = this.#last;
    if (last < this.#n && this.#holds(last, lo, hi, len)) return last;
    for (let i = 0; i < this.#n; i++) {
      if (this.#holds(i, lo, hi, len)) {
        this.#last = i;
        return i;
      }
    }
    return -1;
  }

  #holds(i: number, lo: number, hi: number, len: number): boolean {
    return this.#hi[i] === hi && ((lo - this.#lo[i]) >>> 0) + (len >>> 0) <= this.#reach[i];
  }

  /** Bytes that chunk `i` holds from the address on. */
  left(i: number, lo: number): number {
    return this.#reach[i] - ((lo - this.#lo[i]) >>> 0);
  }

  /** The window of chunk `i`. */
  window(i: number): number {
    return this.#window[i];
  }

  /** Where in chunk `i`'s window an address lies that `find` has put there. */
  offset(i: number, lo: number): number {
    return (this.#off[i] + (lo - this.#lo[i])) | 0;
  }
}
