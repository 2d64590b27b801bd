/**
 * The dirty log of a live migration: a bitmap, shared with the front end, of the pages of guest physical memory that the device has
 * written. The front end keeps taking bits and sends their pages again.
 *
 * The order that loses no page (vhost-user "Migration" asks only for atomic operations; the rest follows from what the front end does):
 * 1. Write the bytes, then mark them, then flush. A bit that is there before its bytes may be taken too early: the old page is sent,
 *    and nothing tells of the new one.
 * 2. Buffers and used entries are flushed before they are published (used index, or flags of the packed descriptor). Migration itself
 *    would bear it later. But if this process dies in between, its successor does not know what the guest has been given unlogged.
 * 3. What publishing wrote is marked after it, and flushed before the thread turns to other things: at the latest before the vring's
 *    stop is acknowledged, and before this object is let go. The front end takes the last bits when all vrings are stopped.
 *
 * Each thread has a log of its own over the same bitmap.
 * @see vhost-user "Migration", "Log description"
 */

import { NO_FD } from '../sys/eventfd.ts';
import type { GuestPiece, Place } from './guest-memory.ts';
import { WINDOW_BYTES, type WindowViews } from './window.ts';

/** Bytes of guest physical memory behind one bit. */
export const VHOST_LOG_PAGE = 0x1000;
const PAGE_SHIFT = 12;
/** Guest memory behind one byte of the bitmap. */
const BYTE_SPAN = 8 * VHOST_LOG_PAGE;

/** Bytes of the bitmap that are held back; a power of two. A burst into random pages touches as many as it has packets. */
const SLOTS = 64;
const FREE = -1;

/** The dirty log as the front end has given it: one bit a page of 4096 bytes of guest physical memory. */
export interface DirtyLogPlace extends Place {
  /** bytes */
  readonly size: number;
  /** which guest physical addresses lie where in the windows: pieces of regions, which do not overlap in their windows */
  readonly pages: readonly GuestPiece[];
  /** eventfd to signal when something was logged, if the front end wants that (SET_LOG_FD); it stays the device's */
  readonly callFd?: number | undefined;
}

export class DirtyLog {
  /** eventfd to signal when `flush` has changed the bitmap, or −1 */
  readonly callFd: number;
  readonly #bitmap: Uint8Array;
  readonly #bitmapOff: number;
  readonly #size: number;

  /** The pieces by window and offset. A piece begins `rest` bytes behind the first page of byte `base` of the bitmap. */
  readonly #pieces: number;
  readonly #window: Int32Array;
  readonly #from: Int32Array;
  readonly #to: Int32Array;
  readonly #base: Int32Array;
  readonly #rest: Int32Array;
  #last = 0;

  /** Bits not in the bitmap yet: slot → byte of the bitmap or FREE, and its bits; and which slots are taken, in any order. */
  readonly #slotByte = new Int32Array(SLOTS).fill(FREE);
  readonly #slotBits = new Int32Array(SLOTS);
  readonly #taken = new Int32Array(SLOTS);
  #nTaken = 0;

  /** Writes, or pages of them, that are in no piece or beyond the end of the bitmap: the front end does not want to know of them. */
  strays = 0;

  /**
   * @param windows by window id, among them those that `place` and its pieces name
   * @throws RangeError if the bitmap or a piece does not fit its window: the main thread has made both
   */
  constructor(place: DirtyLogPlace, windows: readonly WindowViews[]) {
    const { window, off, size } = place;
    for (const { off: at, size: bytes } of [place, ...place.pages]) {
      if (at < 0 || bytes < 0 || at + bytes >= WINDOW_BYTES) throw new RangeError('dirty log: outside its window');
    }
    this.callFd = place.callFd ?? NO_FD;
    this.#bitmap = windows[window].u8;
    this.#bitmapOff = off;
    this.#size = size;
    const pieces = place.pages
      .filter((piece) => piece.size > 0 && piece.guestAddr < size * BYTE_SPAN)
      .sort((a, b) => a.window - b.window || a.off - b.off);
    this.#pieces = pieces.length;
    this.#window = Int32Array.from(pieces, (piece) => piece.window);
    this.#from = Int32Array.from(pieces, (piece) => piece.off);
    this.#to = Int32Array.from(pieces, (piece) => piece.off + piece.size);
    this.#base = Int32Array.from(pieces, (piece) => Math.floor(piece.guestAddr / BYTE_SPAN));
    this.#rest = Int32Array.from(pieces, (piece) => piece.guestAddr % BYTE_SPAN);
  }

  /** Notes that the device has written the `len` bytes at `off` of a window. They are written already. */
  mark(window: number, off: number, len: number): void {
    if (len <= 0) return;
    const end = off + len;
    let piece = this.#last;
    if (!this.#holds(piece, window, off)) piece = this.#find(window, off);
    let at = off;
    for (; piece < this.#pieces && this.#window[piece] === window && this.#from[piece] < end; piece++) {
      if (this.#from[piece] > at) this.strays++;
      const from = Math.max(at, this.#from[piece]);
      at = Math.min(end, this.#to[piece]);
      this.#markPiece(piece, from, at);
      this.#last = piece;
    }
    if (at < end) this.strays++;
  }

  /**
   * As `mark`, by guest physical address (below 2⁵³): for the used ring, which is logged under an address of its own
   * (SET_VRING_ADDR's `log`) that may lie in no region.
   */
  markGuest(guestAddr: number, len: number): void {
    if (len <= 0) return;
    const last = Math.floor((guestAddr + len - 1) / VHOST_LOG_PAGE);
    for (let page = Math.floor(guestAddr / VHOST_LOG_PAGE); page <= last; page++) {
      if (page >= this.#size * 8) {
        this.strays++;
        return;
      }
      this.#note(Math.floor(page / 8), 1 << (page % 8));
    }
  }

  /**
   * Puts the noted bits into the bitmap. Orders every write before it, whatever wrote the bytes, before the bits.
   * @returns true if there were any: the front end may want a signal (SET_LOG_FD)
   */
  flush(): boolean {
    const n = this.#nTaken;
    for (let i = 0; i < n; i++) {
      const slot = this.#taken[i];
      this.#put(slot);
      this.#slotByte[slot] = FREE;
    }
    this.#nTaken = 0;
    return n > 0;
  }

  #holds(piece: number, window: number, off: number): boolean {
    return piece < this.#pieces && this.#window[piece] === window && off >= this.#from[piece] && off < this.#to[piece];
  }

  /** The first piece of the window that ends behind `off`, or the one behind all such. */
  #find(window: number, off: number): number {
    let low = 0;
    let high = this.#pieces;
    while (low < high) {
      const middle = (low + high) >> 1;
      const before = this.#window[middle] < window || (this.#window[middle] === window && this.#to[middle] <= off);
      if (before) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #markPiece(piece: number, from: number, to: number): void {
    const start = this.#rest[piece] - this.#from[piece];
    const base = this.#base[piece];
    const last = (to - 1 + start) >>> PAGE_SHIFT;
    for (let page = (from + start) >>> PAGE_SHIFT; page <= last; page++)
      this.#note(base + (page >>> 3), 1 << (page & 7));
  }

  #note(byte: number, bit: number): void {
    if (byte >= this.#size) {
      this.strays++;
      return;
    }
    const slot = byte & (SLOTS - 1);
    const held = this.#slotByte[slot];
    if (held === byte) {
      this.#slotBits[slot] |= bit;
      return;
    }
    if (held === FREE) this.#taken[this.#nTaken++] = slot;
    else this.#put(slot); // early is not too early: its bytes have been written
    this.#slotByte[slot] = byte;
    this.#slotBits[slot] = bit;
  }

  /**
   * Always writes, even where the bits seem to be set: only a locked operation keeps the bytes' writes from passing it, and without
   * that the front end might take the bit that was seen, and send the page, before they arrive.
   */
  #put(slot: number): void {
    Atomics.or(this.#bitmap, this.#bitmapOff + this.#slotByte[slot], this.#slotBits[slot]);
  }
}
