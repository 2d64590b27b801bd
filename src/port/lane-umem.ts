/**
 * Where in a lane's UMEM a byte of a window lies. One thread; the piece at hand is mostly the right one.
 */
import type { UmemPiece } from './lane-spec.ts';

export class UmemMap {
  readonly #pieces: readonly UmemPiece[];
  #at: UmemPiece;

  /** @param pieces one at least */
  constructor(pieces: readonly UmemPiece[]) {
    this.#pieces = pieces;
    this.#at = pieces[0];
  }

  /** Where `len` bytes at `off` of a window begin in the UMEM, or −1 if they are not all there in one piece. */
  find(window: number, off: number, len: number): number {
    const at = this.#at;
    if (window === at.window && off >= at.off && off + len <= at.off + at.len) return at.umemOff + (off - at.off);
    return this.#search(window, off, len);
  }

  #search(window: number, off: number, len: number): number {
    const pieces = this.#pieces;
    for (let i = 0; i < pieces.length; i++) {
      const piece = pieces[i];
      if (window !== piece.window || off < piece.off || off + len > piece.off + piece.len) continue;
      this.#at = piece;
      return piece.umemOff + (off - piece.off);
    }
    return -1;
  }
}
