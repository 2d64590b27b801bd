/**
 * A region of guest memory as it lies in windows, and the arithmetic between its addresses and those places. Maps nothing itself.
 */
import type { Chunk } from './address-map.ts';
import type { WindowHandle } from './window.ts';

const TWO_32 = 2 ** 32;

/** One piece of guest memory. */
export interface MemoryRegion {
  /** guest physical address */
  readonly guestAddr: number;
  /** bytes */
  readonly size: number;
  /** where the front end has it: ring addresses are given in this space */
  readonly frontendAddr: number;
  /** where it begins in the file, bytes */
  readonly fileOff: number;
  /** the file; the device owns it from the call on */
  readonly fd: number;
}

/** A place in guest memory: which window, and where in it. */
export interface Place {
  readonly window: number;
  readonly off: number;
}

/** Which of its two addresses a region is looked up by. */
export type RegionSpace = 'frontend' | 'guest';

/** Bytes of one file mapped in one window. */
export interface Mapping {
  readonly window: WindowHandle;
  readonly windowOff: number;
  readonly len: number;
  /** where they begin in the file */
  readonly fileOff: number;
}

export interface MappedRegion {
  readonly region: MemoryRegion;
  readonly sealed: boolean;
  readonly mappings: readonly Mapping[];
  /** ascending */
  readonly chunks: readonly Chunk[];
}

/** Guest memory that lies in one piece in a window. */
export interface GuestPiece extends Place {
  readonly guestAddr: number;
  /** bytes */
  readonly size: number;
}

/** A part of an address range and where it lies. */
export interface RangePiece extends Place {
  /** bytes of the range */
  readonly size: number;
  /** bytes of the range that can be reached from here on in the same window; those past `size` belong to the next piece, too */
  readonly reach: number;
}

export const startOf = (region: MemoryRegion, space: RegionSpace) =>
  space === 'guest' ? region.guestAddr : region.frontendAddr;

const alignDown = (n: number, to: number) => Math.floor(n / to) * to;

/**
 * The chunks of one mapping of `len` bytes from file offset `from` on: bytes up to `next` are its own, those behind can be reached
 * from them and belong to the next mapping.
 */
export function chunksOf(region: MemoryRegion, { window, windowOff, len, fileOff }: Mapping, next: number): Chunk[] {
  const chunks: Chunk[] = [];
  const regionEnd = region.guestAddr + region.size;
  const toGuest = region.guestAddr - region.fileOff;
  const first = fileOff + toGuest;
  let guestAddr = Math.max(first, region.guestAddr);
  const end = Math.min(next + toGuest, regionEnd);
  const reachEnd = Math.min(first + len, regionEnd);
  while (guestAddr < end) {
    chunks.push({
      guestAddr,
      reach: reachEnd - guestAddr,
      window: window.id,
      windowOff: windowOff + guestAddr - first,
    });
    guestAddr = alignDown(guestAddr, TWO_32) + TWO_32;
  }
  return chunks;
}

/** Which guest addresses lie where: a piece a mapping. What two mappings have in common is in both. */
export function guestPieces({ region, mappings }: MappedRegion): GuestPiece[] {
  return mappings.map(({ window, windowOff, len, fileOff }) => {
    const begin = Math.max(fileOff, region.fileOff);
    const end = Math.min(fileOff + len, region.fileOff + region.size);
    const guestAddr = region.guestAddr + begin - region.fileOff;
    return { guestAddr, size: end - begin, window: window.id, off: windowOff + begin - fileOff };
  });
}

/** Where guest addresses `from` to `to` lie, all of them in the region: piece after piece. */
export function rangePieces({ region, chunks }: MappedRegion, from: number, to: number): RangePiece[] {
  const regionEnd = region.guestAddr + region.size;
  return chunks.flatMap((chunk, i) => {
    const begin = Math.max(from, chunk.guestAddr);
    const end = Math.min(to, chunks[i + 1]?.guestAddr ?? regionEnd);
    if (begin >= end) return [];
    const reach = Math.min(to, chunk.guestAddr + chunk.reach) - begin;
    return [{ window: chunk.window, off: chunk.windowOff + begin - chunk.guestAddr, size: end - begin, reach }];
  });
}
