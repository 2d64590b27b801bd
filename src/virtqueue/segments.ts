/**
 * Lists of pieces of memory in windows: what descriptor chains come down to.
 */

/** Pieces that the packets of a burst, or one chain, may have. */
export const MAX_SEGMENTS = 256;

/** Pieces of memory in windows, in order. */
export class SegmentList {
  /** pieces in the list */
  count = 0;
  /** of a chain that was walked READ_THEN_WRITE: the first piece that the device writes; none yet: −1 */
  writableFrom = -1;
  /** id of each one's window */
  readonly window: Int32Array;
  /** where it begins there, bytes */
  readonly off: Int32Array;
  /** bytes */
  readonly len: Int32Array;

  /** The arrays are the caller's, with room for MAX_SEGMENTS each; fresh ones by default. */
  constructor(
    window = new Int32Array(MAX_SEGMENTS),
    off = new Int32Array(MAX_SEGMENTS),
    len = new Int32Array(MAX_SEGMENTS),
  ) {
    this.window = window;
    this.off = off;
    this.len = len;
  }

  /** The caller has seen to it that there is room. */
  push(window: number, off: number, len: number): void {
    const at = this.count++;
    this.window[at] = window;
    this.off[at] = off;
    this.len[at] = len;
  }
}
