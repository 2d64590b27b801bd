/**
 * Guest address → (window, offset), for the packet path: integer arithmetic on the address's two 32-bit halves.
 *
 * Guest memory is held as chunks: runs of guest addresses that share their upper half and lie in one window.
 */

/** One chunk as the main thread describes it. */
export interface Chunk {
  /** guest address of the first byte, or its I/O virtual address */
  readonly guestAddr: number;
  /** bytes that can be reached from an address in this chunk on; those past the chunk proper may belong to the next one */
  readonly reach: number;
  /** id of the window */
  readonly window: number;
  /** where in the window */
  readonly windowOff: number;
  /** false: what is here may be read only, as the guest's IOMMU has it. For who writes it is not there. */
  readonly writable?: boolean;
}

const TWO_32 = 2 ** 32;

export class AddressMap {
  /** by address */
  readonly #chunks: readonly Chunk[];
  readonly #starts: Float64Array;
  /** what is missing may still come: addresses are I/O virtual */
  readonly iotlb: boolean;
  /** every chunk may be written, and there is one: the chunk at hand is good for reads and writes alike */
  readonly writable: boolean;
  /**
   * The chunk at hand, as flat numbers that hot loops keep in registers: guest addresses whose upper half is `hi` lie in it from
   * `lo` on, for `reach` bytes, and in `window` at `base` plus their distance from `lo`. The halves are int32.
   */
  hi = 0;
  lo = 0;
  reach = 0;
  window = 0;
  base = 0;
  #readOnly = false;

  /**
   * `chunks` in any order; no two begin at the same address, none crosses a multiple of 4 GiB with its first address, each
   * reach is below 2³¹. Of two that overlap the later one reaches at least as far.
   */
  constructor(chunks: readonly Chunk[], iotlb = false) {
    this.#chunks = chunks.toSorted((a, b) => a.guestAddr - b.guestAddr);
    this.#starts = Float64Array.from(this.#chunks, ({ guestAddr }) => guestAddr);
    this.iotlb = iotlb;
    this.writable = chunks.length > 0 && chunks.every(({ writable }) => writable !== false);
    if (chunks.length > 0) this.#take(chunks[0]);
  }

  /** True if the chunk at hand holds all `len` bytes (int32 ≥ 0) from the address on. Hot loops write this out. */
  holds(lo: number, hi: number, len: number): boolean {
    return hi === this.hi && ((lo - this.lo) >>> 0) + len <= this.reach;
  }

  /** Where in its window an address lies that the chunk at hand holds. */
  offset(lo: number): number {
    return (this.base + (lo - this.lo)) | 0;
  }

  /** Bytes that the chunk at hand holds from the address on. */
  left(lo: number): number {
    return this.reach - ((lo - this.lo) >>> 0);
  }

  /** Takes the chunk in hand that holds all `len` bytes from the address on, and may be written if `write`. @returns false if there is none */
  select(lo: number, hi: number, len: number, write = false): boolean {
    if (len < 0) return false;
    if (this.holds(lo, hi, len)) return !(write && this.#readOnly);
    const at = this.#lastBefore((hi >>> 0) * TWO_32 + (lo >>> 0));
    if (at < 0) return false;
    const chunk = this.#chunks[at];
    const distance = (hi >>> 0) * TWO_32 + (lo >>> 0) - chunk.guestAddr;
    const sameHalf = Math.floor(chunk.guestAddr / TWO_32) === hi >>> 0;
    if (!sameHalf || distance + len > chunk.reach || (write && chunk.writable === false)) return false;
    this.#take(chunk);
    return true;
  }

  /** The last chunk that begins at or before `addr`, −1 if there is none. */
  #lastBefore(addr: number): number {
    let from = 0;
    let to = this.#starts.length;
    while (from < to) {
      const middle = (from + to) >>> 1;
      if (this.#starts[middle] <= addr) from = middle + 1;
      else to = middle;
    }
    return from - 1;
  }

  #take(chunk: Chunk): void {
    this.hi = Math.floor(chunk.guestAddr / TWO_32) | 0;
    this.lo = (chunk.guestAddr % TWO_32) | 0;
    // Not past the half's end: there lo − this.lo would begin anew, and a low address would seem to lie in a chunk that goes on there.
    this.reach = Math.min(chunk.reach, TWO_32 - (chunk.guestAddr % TWO_32));
    this.window = chunk.window;
    this.base = chunk.windowOff;
    this.#readOnly = chunk.writable === false;
  }
}
