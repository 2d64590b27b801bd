/**
 * The translations of I/O virtual addresses that the front end has told, and those it was asked for. A cache: what is forgotten is
 * asked for again.
 * @see QEMU docs/interop/vhost-user.rst "IOMMU support"
 */
import type { Chunk } from '../mem/address-map.ts';
import type { Place, RangePiece } from '../mem/mapped-region.ts';
import { IOTLB_READ, IOTLB_WRITE, type IotlbEntry } from './vhost-device.ts';

const TWO_32 = 2 ** 32;
/** Entries held; the oldest gives way. */
export const IOTLB_MAX_ENTRIES = 2048;
/** Pieces of windows that all entries together may have: an entry may be as large as the guest. */
const MAX_PIECES = 8192;
/** Questions that await their answer; the oldest is forgotten. */
const MAX_ASKED = 256;
/** A front end does not answer what the guest has not mapped. The guest may map it later, so ask again, but not at once. */
const ASK_AGAIN_MS = 1000;
const PAGE = 4096;

/** Finds where `len` bytes at a front end's address lie, or undefined if some are nowhere. */
export type FindPieces = (userAddr: number, len: number) => RangePiece[] | undefined;

interface Held {
  readonly entry: IotlbEntry;
  pieces: readonly RangePiece[];
}

/** I/O virtual addresses that lie in one piece. */
interface Run {
  readonly iova: number;
  size: number;
  reach: number;
  readonly window: number;
  readonly off: number;
  readonly writable: boolean;
}

const allows = (entry: IotlbEntry, permissions: number) => (entry.permissions & permissions) === permissions;

export class Iotlb {
  /** by their first address, the oldest first */
  readonly #held = new Map<number, Held>();
  /** the same by address; no two overlap */
  readonly #sorted: Held[] = [];
  #pieces = 0;
  #chunks: readonly Chunk[] | undefined;
  /** page × 4 + permissions → when it was asked for */
  readonly #asked = new Map<number, number>();

  get size(): number {
    return this.#held.size;
  }

  /** What is mapped, by I/O virtual address, for AddressMap: neighbours that lie together are one chunk. */
  get chunks(): readonly Chunk[] {
    this.#chunks ??= chunksOf(runsOf(this.#sorted));
    return this.#chunks;
  }

  /** Puts the entry in place of those it overlaps. @returns false if some of what it maps lies nowhere; then nothing has changed */
  update(entry: IotlbEntry, find: FindPieces): boolean {
    const pieces = find(entry.userAddr, entry.size);
    if (pieces === undefined || pieces.length > MAX_PIECES) return false;
    this.invalidate(entry.iova, entry.size);
    const held = { entry, pieces };
    this.#held.set(entry.iova, held);
    this.#sorted.splice(this.#firstBehind(entry.iova), 0, held);
    this.#pieces += pieces.length;
    for (const oldest of this.#held.values()) {
      if (this.#held.size <= IOTLB_MAX_ENTRIES && this.#pieces <= MAX_PIECES) break;
      this.#forget(oldest);
    }
    return true;
  }

  /** Forgets every entry that has an address of the range, and every question for one. */
  invalidate(iova: number, size: number): void {
    const from = this.#firstBehind(iova);
    let to = from;
    while (to < this.#sorted.length && this.#sorted[to].entry.iova < iova + size) to++;
    for (const held of this.#sorted.splice(from, to - from)) this.#drop(held);
    for (const key of this.#asked.keys()) {
      const page = Math.floor(key / 4) * PAGE;
      if (page < iova + size && iova < page + PAGE) this.#asked.delete(key);
    }
    this.#chunks = undefined;
  }

  /** Guest memory has changed: entries for memory that is no more are forgotten. */
  refresh(find: FindPieces): void {
    for (const held of this.#held.values()) {
      const pieces = find(held.entry.userAddr, held.entry.size);
      if (pieces === undefined || pieces.length - held.pieces.length + this.#pieces > MAX_PIECES) this.#forget(held);
      else {
        this.#pieces += pieces.length - held.pieces.length;
        held.pieces = pieces;
      }
    }
    this.#chunks = undefined;
  }

  clear(): void {
    this.#held.clear();
    this.#sorted.length = 0;
    this.#asked.clear();
    this.#pieces = 0;
    this.#chunks = undefined;
  }

  #forget(held: Held): void {
    this.#sorted.splice(this.#firstBehind(held.entry.iova), 1);
    this.#drop(held);
  }

  /** What is left to do for one that is no longer in `#sorted`. */
  #drop({ entry, pieces }: Held): void {
    this.#held.delete(entry.iova);
    this.#pieces -= pieces.length;
    this.#chunks = undefined;
  }

  /** Where in `#sorted` the first is that ends behind `iova`. */
  #firstBehind(iova: number): number {
    let from = 0;
    let to = this.#sorted.length;
    while (from < to) {
      const middle = (from + to) >>> 1;
      const { entry } = this.#sorted[middle];
      if (entry.iova + entry.size <= iova) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  #at(iova: number): IotlbEntry | undefined {
    const entry = this.#sorted[this.#firstBehind(iova)]?.entry;
    return entry !== undefined && entry.iova <= iova ? entry : undefined;
  }

  /** The front end's address for an I/O virtual address, or undefined. */
  translate(iova: number): number | undefined {
    const entry = this.#at(iova);
    return entry && entry.userAddr + iova - entry.iova;
  }

  /** Where `len` bytes lie, or undefined if no piece holds them all, or they must not be written. */
  placeOf(iova: number, len: number, write: boolean): Place | undefined {
    for (const { guestAddr, reach, window, windowOff, writable } of this.chunks) {
      if (iova < guestAddr || iova + len > guestAddr + reach || (write && writable === false)) continue;
      return { window, off: windowOff + iova - guestAddr };
    }
    return undefined;
  }

  /** The first of `len` addresses for which there is no translation with these permissions, or undefined if there is none. */
  missing(iova: number, len: number, permissions: number): number | undefined {
    for (let at = iova; at < iova + len; ) {
      const entry = this.#at(at);
      if (entry === undefined || !allows(entry, permissions)) return at;
      at = entry.iova + entry.size;
    }
    return undefined;
  }

  /**
   * Notes that a translation is asked for. @returns false if it was a moment ago, so that there is nothing to send
   * @param now milliseconds
   */
  ask(iova: number, permissions: number, now: number): boolean {
    const key = Math.floor(iova / PAGE) * 4 + permissions;
    const before = this.#asked.get(key);
    if (before !== undefined && now - before < ASK_AGAIN_MS) return false;
    this.#asked.delete(key);
    for (const oldest of this.#asked.keys()) {
      if (this.#asked.size < MAX_ASKED) break;
      this.#asked.delete(oldest);
    }
    this.#asked.set(key, now);
    return true;
  }
}

/** The pieces of entries that are in order of address; those that go on where the one before ends are joined with it. */
function runsOf(held: readonly Held[]): Run[] {
  const runs: Run[] = [];
  for (const { entry, pieces } of held) {
    if ((entry.permissions & (IOTLB_READ | IOTLB_WRITE)) === 0) continue;
    const writable = allows(entry, IOTLB_WRITE);
    let { iova } = entry;
    for (const { window, off, size, reach } of pieces) {
      const last = runs.at(-1);
      const goesOn =
        last?.window === window &&
        last.writable === writable &&
        last.iova + last.size === iova &&
        last.off + last.size === off;
      if (goesOn) {
        last.reach = last.size + reach;
        last.size += size;
      } else runs.push({ iova, size, reach, window, off, writable });
      iova += size;
    }
  }
  return runs;
}

/** Runs as chunks: a chunk's first address and all that have it for their first share their upper half. */
function chunksOf(runs: readonly Run[]): Chunk[] {
  const chunks: Chunk[] = [];
  for (const { iova, size, reach, window, off, writable } of runs) {
    for (let at = iova; at < iova + size; at = (Math.floor(at / TWO_32) + 1) * TWO_32)
      chunks.push({ guestAddr: at, reach: iova + reach - at, window, windowOff: off + at - iova, writable });
  }
  return chunks;
}
