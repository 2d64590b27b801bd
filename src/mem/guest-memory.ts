/**
 * A guest's memory on the main thread: its regions mapped into windows, and the chunks that lcores translate with.
 * The main thread maps but never reads or writes guest memory.
 */
import { closeSync, fstatSync, readSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import { hasHoleWithoutRoom, pageSize, sealAgainstShrinking } from '../sys/memory.ts';
import type { Chunk } from './address-map.ts';
import {
  chunksOf,
  type GuestPiece,
  guestPieces,
  type MappedRegion,
  type Mapping,
  type MemoryRegion,
  type Place,
  type RangePiece,
  type RegionSpace,
  rangePieces,
  startOf,
} from './mapped-region.ts';
import { firstOffset, mapInto, unmapFrom, WINDOW_USABLE_BYTES, type WindowHandle, type WindowPool } from './window.ts';

export type { GuestPiece, MemoryRegion, Place };

/** How far one window's mapping goes on into what the next window begins with: no frame and no ring straddles. */
const OVERLAP_BYTES = 2 ** 21;
/** A window takes far more address space than it shows: a guest may not have all of the process's. */
const MAX_GUEST_BYTES = 2 ** 40;

/** Bytes of this process's address space, whole pages. */
export interface MemoryRange {
  readonly address: bigint;
  readonly size: number;
}

/** Whole pages of a file, and where they lie in windows. */
export interface MappedFile {
  readonly fd: number;
  /** bytes of a page */
  readonly page: number;
  /** where they begin in the file, bytes */
  readonly from: number;
  readonly len: number;
  /** ascending; what two of them have in common is in both */
  readonly mappings: readonly Mapping[];
}

const alignDown = (n: number, to: number) => Math.floor(n / to) * to;
const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;

/** The regions of one guest. Owns their fds and mappings. */
export class GuestMemory {
  readonly #pool: WindowPool;
  #regions: MappedRegion[] = [];
  /** The last window and how far it is filled: regions share windows where they fit. */
  #open: { window: WindowHandle; used: number } | undefined;
  readonly #windows: WindowHandle[] = [];

  constructor(pool: WindowPool) {
    this.#pool = pool;
  }

  get regions(): readonly MemoryRegion[] {
    return this.#regions.map((r) => r.region);
  }

  /** All chunks, for AddressMap. */
  get chunks(): Chunk[] {
    return this.#regions.flatMap((r) => r.chunks);
  }

  /** The windows that the chunks name. */
  get windows(): readonly WindowHandle[] {
    return this.#windows;
  }

  /**
   * Maps a region and takes its fd over, also on failure.
   * @throws ProtocolError naming region number `index`: too short a file, memory that cannot be shared, overlap.
   */
  add(region: MemoryRegion, index: number, request: string): void {
    try {
      this.#check(region, index, request);
      this.#regions.push(this.#map(region, index, request));
    } catch (error) {
      closeSync(region.fd);
      throw error;
    }
  }

  #check(region: MemoryRegion, index: number, request: string): void {
    const fail = (problem: string) => {
      throw new ProtocolError('BAD_MEMORY', request, `guest memory region ${index} ${problem}`);
    };
    const stat = fstatSync(region.fd);
    if (!stat.isFile()) fail('is not a memory file: start QEMU with -object memory-backend-memfd,share=on');
    const need = region.fileOff + region.size;
    if (stat.size < need) fail(`is too short: ${need} bytes are needed, its file has ${stat.size}`);
    const total = this.#regions.reduce((sum, { region: r }) => sum + r.size, region.size);
    if (total > MAX_GUEST_BYTES) fail(`makes the guest larger than ${MAX_GUEST_BYTES / 2 ** 40} TiB`);
    for (const { region: other } of this.#regions) {
      if (region.guestAddr < other.guestAddr + other.size && other.guestAddr < region.guestAddr + region.size)
        fail(`overlaps the region at guest address 0x${other.guestAddr.toString(16)}`);
    }
  }

  #map(region: MemoryRegion, index: number, request: string): MappedRegion {
    const page = pageSize(region.fd);
    const mappings: Mapping[] = [];
    const chunks: Chunk[] = [];
    const fileEnd = alignUp(region.fileOff + region.size, page);
    try {
      for (let from = alignDown(region.fileOff, page); from < fileEnd; ) {
        const { window, off, room } = this.#place(page, fileEnd - from);
        const len = Math.min(fileEnd - from, room);
        mapInto(window, off, len, region.fd, from);
        const mapping: Mapping = { window, windowOff: off, len, fileOff: from };
        mappings.push(mapping);
        const more = from + len < fileEnd;
        const next = more ? from + len - (page <= OVERLAP_BYTES ? OVERLAP_BYTES : 0) : fileEnd;
        chunks.push(...chunksOf(region, mapping, next));
        from = next;
      }
    } catch (error) {
      this.#unmap(mappings);
      const why = error instanceof Error ? error.message : String(error);
      throw new ProtocolError('BAD_MEMORY', request, `guest memory region ${index} cannot be mapped: ${why}`);
    }
    return { region, sealed: sealAgainstShrinking(region.fd), mappings, chunks };
  }

  /** Room for up to `wanted` bytes in pages of `page` bytes: in the open window where all of it fits, else in a new one. */
  #place(page: number, wanted: number): { window: WindowHandle; off: number; room: number } {
    for (;;) {
      if (this.#open === undefined) {
        const window = this.#pool.acquire();
        this.#windows.push(window);
        this.#open = { window, used: 0 };
      }
      const { window, used } = this.#open;
      const first = firstOffset(window, page);
      const off = first + alignUp(Math.max(0, used - first), page);
      const room = alignDown(WINDOW_USABLE_BYTES - off, page);
      if (room >= wanted || (used === 0 && room > OVERLAP_BYTES)) {
        this.#open.used = off + Math.min(room, wanted);
        return { window, off, room };
      }
      if (used === 0) throw new RangeError(`no room for a page of ${page} bytes in a window`);
      this.#open = undefined;
    }
  }

  /**
   * Takes a region out of `regions` and `chunks`. @returns what unmaps it, to be called when no lcore uses it any more; undefined
   * if there is no such region.
   */
  detach(guestAddr: number, size: number, frontendAddr: number): (() => void) | undefined {
    const i = this.#regions.findIndex(
      ({ region: r }) => r.guestAddr === guestAddr && r.size === size && r.frontendAddr === frontendAddr,
    );
    if (i < 0) return undefined;
    const [detached] = this.#regions.splice(i, 1);
    return () => {
      this.#close(detached);
      for (const { window } of detached.mappings) this.#releaseIfEmpty(window);
    };
  }

  /** Gives a window back in which nothing is mapped any more: adding and removing regions must not use up address space. */
  #releaseIfEmpty(window: WindowHandle): void {
    const at = this.#windows.indexOf(window);
    if (at < 0 || this.#regions.some(({ mappings }) => mappings.some((m) => m.window === window))) return;
    this.#windows.splice(at, 1);
    if (this.#open?.window === window) this.#open = undefined;
    this.#pool.release(window);
  }

  #unmap(mappings: readonly Mapping[]): void {
    for (const { window, windowOff, len } of mappings) unmapFrom(window, windowOff, len);
  }

  #close({ region, mappings }: MappedRegion): void {
    this.#unmap(mappings);
    closeSync(region.fd);
  }

  /** Unmaps everything and gives the windows back. No lcore may use them any more. */
  clear(): void {
    for (const region of this.#regions) this.#close(region);
    for (const window of this.#windows) this.#pool.release(window);
    this.#regions = [];
    this.#windows.length = 0;
    this.#open = undefined;
  }

  /** Which guest addresses lie where in the windows, for the dirty log. */
  get guestPieces(): GuestPiece[] {
    return this.#regions.flatMap(guestPieces);
  }

  /** The first guest address behind all regions. */
  get guestEnd(): number {
    return this.#regions.reduce((end, { region: r }) => Math.max(end, r.guestAddr + r.size), 0);
  }

  /** What of this process's memory belongs to each region, a range of whole pages for each window it takes. */
  get ranges(): MemoryRange[][] {
    return this.#regions.map(({ mappings }) =>
      mappings.map(({ window, windowOff, len }) => ({ address: window.address + BigInt(windowOff), size: len })),
    );
  }

  /** The files behind the regions: whole pages of them, and where those are mapped. The fds stay this object's. */
  get files(): MappedFile[] {
    return this.#regions.map(({ region: { fd, fileOff, size }, mappings }) => {
      const page = pageSize(fd);
      const from = alignDown(fileOff, page);
      return { fd, page, from, len: alignUp(fileOff + size, page) - from, mappings };
    });
  }

  /** Where each region's first byte is mapped in this process. What follows is in one piece if the region has one range only. */
  get firstBytes(): bigint[] {
    return this.#regions.map(({ region, mappings: [{ window, windowOff, fileOff }] }) => {
      return window.address + BigInt(windowOff + region.fileOff - fileOff);
    });
  }

  /** Where `len` bytes at an address lie, or undefined if no mapping holds them all. */
  placeOf(addr: number, len: number, space: RegionSpace = 'frontend'): Place | undefined {
    for (const { region, chunks } of this.#regions) {
      const start = startOf(region, space);
      if (addr < start || addr + len > start + region.size) continue;
      const guestAddr = addr - start + region.guestAddr;
      const chunk = chunks.find((c) => guestAddr >= c.guestAddr && guestAddr + len <= c.guestAddr + c.reach);
      if (chunk !== undefined) return { window: chunk.window, off: chunk.windowOff + guestAddr - chunk.guestAddr };
    }
    return undefined;
  }

  /** Where `len` bytes at an address lie, piece after piece, or undefined if some of them lie in no region. */
  piecesOf(addr: number, len: number, space: RegionSpace = 'frontend'): RangePiece[] | undefined {
    const pieces: RangePiece[] = [];
    for (let done = 0; done < len; ) {
      const mapped = this.#regions[this.regionAt(addr + done, space)];
      if (mapped === undefined) return undefined;
      const { region } = mapped;
      const from = addr + done - startOf(region, space) + region.guestAddr;
      const to = Math.min(from + len - done, region.guestAddr + region.size);
      pieces.push(...rangePieces(mapped, from, to));
      done += to - from;
    }
    return pieces;
  }

  /** The number of the region at an address, −1 if there is none. */
  regionAt(addr: number, space: RegionSpace = 'frontend'): number {
    return this.#regions.findIndex(({ region: r }) => {
      const start = startOf(r, space);
      return addr >= start && addr < start + r.size;
    });
  }

  /**
   * The number of the region at an address if its file holds not one page although the guest uses it: the front end has mapped it
   * privately, and we would see zeros. −1 otherwise.
   */
  findPrivate(addr: number, space: RegionSpace = 'frontend'): number {
    const at = this.regionAt(addr, space);
    return at >= 0 && fstatSync(this.#regions[at].region.fd).blocks === 0 ? at : -1;
  }

  /** True if the file behind `len` bytes at an address holds nothing but zeros there. Never throws. */
  isBlank(addr: number, len: number, space: RegionSpace = 'frontend'): boolean {
    const found = this.#regions[this.regionAt(addr, space)]?.region;
    if (found === undefined) return false;
    const bytes = new Uint8Array(len);
    try {
      const read = readSync(found.fd, bytes, 0, len, addr - startOf(found, space) + found.fileOff);
      return read === len && bytes.every((byte) => byte === 0);
    } catch {
      return false;
    }
  }

  /**
   * Puts zero pages over what a front end has cut off its files, so that no access faults. Unsealed files only.
   * @returns true if something was cut.
   */
  coverTruncated(): boolean {
    return this.#cover(({ sealed, region: r }) => !sealed && fstatSync(r.fd).size < r.fileOff + r.size);
  }

  /**
   * Puts zero pages over memory whose file has holes that its file system has no room to fill: it is full, or the hugepages are used
   * up. @returns true if there was such a file.
   */
  coverHoles(): boolean {
    return this.#cover(({ region: r }) => hasHoleWithoutRoom(r.fd, r.fileOff, r.size));
  }

  #cover(isLost: (mapped: MappedRegion) => boolean): boolean {
    let some = false;
    for (const mapped of this.#regions) {
      if (!isLost(mapped)) continue;
      this.#unmap(mapped.mappings);
      some = true;
    }
    return some;
  }
}
