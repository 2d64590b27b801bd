/**
 * Guest memory in pieces, as the descriptors of a request list it: to be read and written as if it were one.
 * The guest may write it at any time: what is checked must be a copy, as `read` makes.
 */

export class GuestBuffer {
  /** views of guest memory, in order, none empty: for calls that gather and scatter, such as fs.readv and fs.writev */
  readonly pieces: readonly Uint8Array[];
  /** bytes of all pieces together */
  readonly length: number;

  /** A buffer of these pieces, which stay where they are. */
  constructor(pieces: readonly Uint8Array[]) {
    this.pieces = pieces;
    this.length = pieces.reduce((sum, { length }) => sum + length, 0);
  }

  /** A copy of the bytes `from` to `to`. Throws RangeError where there are not as many. */
  read(from = 0, to = this.length): Uint8Array<ArrayBuffer> {
    const copy = new Uint8Array(this.#checked(from, to));
    let at = 0;
    for (const piece of this.#between(from, to)) {
      copy.set(piece, at);
      at += piece.length;
    }
    return copy;
  }

  /** Copies `bytes` into guest memory, from `at` on. Throws RangeError where there is no room for them. */
  write(bytes: Uint8Array, at = 0): void {
    this.#checked(at, at + bytes.length);
    let from = 0;
    for (const piece of this.#between(at, at + bytes.length)) {
      piece.set(bytes.subarray(from, from + piece.length));
      from += piece.length;
    }
  }

  /** The bytes `from` to `to` as a buffer of their own, in the same memory. Throws RangeError where there are not as many. */
  slice(from: number, to = this.length): GuestBuffer {
    this.#checked(from, to);
    return new GuestBuffer(this.#between(from, to));
  }

  /** @returns how many bytes there are from `from` to `to` */
  #checked(from: number, to: number): number {
    if (from >= 0 && to >= from && to <= this.length) return to - from;
    throw new RangeError(`bytes ${from} to ${to} of a buffer of ${this.length}`);
  }

  #between(from: number, to: number): Uint8Array[] {
    const parts: Uint8Array[] = [];
    let begin = 0;
    for (const piece of this.pieces) {
      const first = Math.max(from, begin);
      const last = Math.min(to, begin + piece.length);
      if (first < last) parts.push(piece.subarray(first - begin, last - begin));
      begin += piece.length;
    }
    return parts;
  }
}
