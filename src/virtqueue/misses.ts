/**
 * The translations that a look at chains has found missing: with such a list, a ring's walk goes on behind a missing page.
 */

/** Translations that a list holds. */
export const MAX_MISSES = 128;
/** Bytes of indirect tables in several pieces that one look copies together at most. */
const MAX_COPIED = 65536;
const PAGE_SHIFT = 12;

export class Misses {
  count = 0;
  #copied = 0;
  /** halves of the I/O virtual addresses: the first byte needed of each page */
  readonly lo = new Int32Array(MAX_MISSES);
  readonly hi = new Int32Array(MAX_MISSES);
  /** 1: to be written */
  readonly write = new Uint8Array(MAX_MISSES);

  clear(): void {
    this.count = 0;
    this.#copied = 0;
  }

  /** Lists the page, unless it is the last one of the list. @returns false if the list is full */
  add(lo: number, hi: number, write: boolean): boolean {
    const last = this.count - 1;
    const samePage = last >= 0 && this.hi[last] === hi && this.lo[last] >>> PAGE_SHIFT === lo >>> PAGE_SHIFT;
    if (samePage && (this.write[last] === 1) === write) return true;
    if (this.count === MAX_MISSES) return false;
    const at = this.count++;
    this.lo[at] = lo;
    this.hi[at] = hi;
    this.write[at] = write ? 1 : 0;
    return true;
  }

  /** Notes that `len` bytes are about to be copied. @returns false if this look has copied enough */
  mayCopy(len: number): boolean {
    this.#copied += len;
    return this.#copied <= MAX_COPIED;
  }
}
