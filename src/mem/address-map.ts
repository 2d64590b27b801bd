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

/** Numbers of a packed chunk, in the order of `Chunk`; `writable` is 0 or 1. */
const WORDS = 5;
const REACH = 1;
const WINDOW = 2;
const OFF = 3;
const WRITABLE = 4;

/**
 * Chunks as numbers, by address: a guest behind an IOMMU has thousands that change all the time, and as objects they take milliseconds
 * to pass to another thread.
 */
export function packChunks(chunks: readonly Chunk[]): Float64Array<ArrayBuffer> {
  const packed = new Float64Array(WORDS * chunks.length);
  const byAddress = (a: Chunk, b: Chunk) => a.guestAddr - b.guestAddr;
  for (const [i, { guestAddr, reach, window, windowOff, writable }] of chunks.toSorted(byAddress).entries())
    packed.set([guestAddr, reach, window, windowOff, writable === false ? 0 : 1], WORDS * i);
  return packed;
}

export class AddressMap {
  readonly #chunks: Float64Array;
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
   * `chunks` in any order, or packed; no two begin at the same address, none crosses a multiple of 4 GiB with its first address, each
   * reach is below 2³¹. Of two that overlap the later one reaches at least as far.
   */
  constructor(chunks: readonly Chunk[] | Float64Array, iotlb = false) {
    this.#chunks = chunks instanceof Float64Array ? chunks : packChunks(chunks);
    this.iotlb = iotlb;
    this.writable = chunks.length > 0 && this.#chunks.every((value, at) => at % WORDS !== WRITABLE || value === 1);
    if (chunks.length > 0) this.#take(0);
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
    const chunks = this.#chunks;
    const distance = (hi >>> 0) * TWO_32 + (lo >>> 0) - chunks[at];
    const sameHalf = Math.floor(chunks[at] / TWO_32) === hi >>> 0;
    if (!sameHalf || distance + len > chunks[at + REACH] || (write && chunks[at + WRITABLE] === 0)) return false;
    this.#take(at);
    return true;
  }

  /** Where in `#chunks` the last chunk is that begins at or before `addr`, negative if there is none. */
  #lastBefore(addr: number): number {
    const chunks = this.#chunks;
    let from = 0;
    let to = chunks.length / WORDS;
    while (from < to) {
      const middle = (from + to) >>> 1;
      if (chunks[WORDS * middle] <= addr) from = middle + 1;
      else to = middle;
    }
    return WORDS * (from - 1);
  }

  #take(at: number): void {
    const chunks = this.#chunks;
    const guestAddr = chunks[at];
    this.hi = Math.floor(guestAddr / TWO_32) | 0;
    this.lo = (guestAddr % TWO_32) | 0;
    // Not past the half's end: there lo − this.lo would begin anew, and a low address would seem to lie in a chunk that goes on there.
    // All are below 2³¹: kept as small integers, so that nobody who reads them allocates a number.
    this.reach = Math.min(chunks[at + REACH], TWO_32 - (guestAddr % TWO_32)) | 0;
    this.window = chunks[at + WINDOW] | 0;
    this.base = chunks[at + OFF] | 0;
    this.#readOnly = chunks[at + WRITABLE] === 0;
  }
}
