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
  /** false: what is here may be read only, as the guest's IOMMU has it. For who writes it is not there. */
  readonly writable?: boolean;
}

const TWO_32 = 2 ** 32;

export class AddressMap {
  readonly #chunks: readonly Chunk[];
  /**
   * The chunk at hand, as flat numbers that hot loops keep in registers: guest addresses whose upper half is `hi` lie in it from
   * `lo` on, for `reach` bytes, and in `window` at `base` plus their distance from `lo`. The halves are int32.
   */
  hi = 0;
  lo = 0;
  reach = 0;
  window = 0;
  base = 0;

  /** `chunks` in any order; none crosses a multiple of 4 GiB with its first address, each reach is below 2³¹. */
  constructor(chunks: readonly Chunk[]) {
    this.#chunks = chunks;
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

  /** Takes the chunk in hand that holds all `len` bytes from the address on. @returns false if there is none */
  select(lo: number, hi: number, len: number): boolean {
    if (len < 0) return false;
    if (this.holds(lo, hi, len)) return true;
    const addr = (hi >>> 0) * TWO_32 + (lo >>> 0);
    for (const chunk of this.#chunks) {
      const distance = addr - chunk.guestAddr;
      const sameHalf = Math.floor(chunk.guestAddr / TWO_32) === hi >>> 0;
      if (!sameHalf || distance < 0 || distance + len > chunk.reach) continue;
      this.#take(chunk);
      return true;
    }
    return false;
  }

  #take(chunk: Chunk): void {
    this.hi = Math.floor(chunk.guestAddr / TWO_32) | 0;
    this.lo = (chunk.guestAddr % TWO_32) | 0;
    // Not past the half's end: there lo − this.lo would begin anew, and a low address would seem to lie in a chunk that goes on there.
    this.reach = Math.min(chunk.reach, TWO_32 - (chunk.guestAddr % TWO_32));
    this.window = chunk.window;
    this.base = chunk.windowOff;
  }
}
