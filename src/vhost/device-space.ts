/**
 * Everything of a guest's memory that a device can reach, and by which addresses: regions, translations, dirty log, inflight records.
 * It owns their mappings; what the datapath has been told of them is up to the caller.
 */
import { ProtocolError } from '../errors.ts';
import { GuestMemory, type MemoryRegion, type Place } from '../mem/guest-memory.ts';
import type { RegionSpace } from '../mem/mapped-region.ts';
import type { SharedMapping } from '../mem/shared-mapping.ts';
import type { WindowPool } from '../mem/window.ts';
import type { DeviceMemory } from './datapath.ts';
import type { InflightArea } from './inflight-area.ts';
import { Iotlb } from './iotlb.ts';
import { checkLogCovers } from './log-area.ts';
import { IOTLB_READ, IOTLB_WRITE, type IotlbEntry, NO_FD } from './vhost-device.ts';
import type { RingPart } from './vring.ts';

/** Where a part of a ring lies, or why it is nowhere. */
export type Located =
  | { readonly place: Place }
  /** `missing`: the address whose translation is to be asked for */
  | { readonly place: undefined; readonly problem: string; readonly missing?: number };

export class DeviceSpace {
  readonly pool: WindowPool;
  readonly memory: GuestMemory;
  readonly iotlb = new Iotlb();
  /** what ring addresses are, unless they are translated */
  ringSpace: RegionSpace = 'frontend';
  /** ACCESS_PLATFORM was negotiated: all addresses are I/O virtual ones */
  translated = false;
  /** LOG_ALL was negotiated */
  logging = false;
  log: SharedMapping | undefined;
  /** eventfd that hears of writes to the log, or NO_FD */
  logFd = NO_FD;
  inflight: InflightArea | undefined;

  constructor(pool: WindowPool) {
    this.pool = pool;
    this.memory = new GuestMemory(pool);
  }

  get isEmpty(): boolean {
    return this.memory.regions.length === 0;
  }

  /** What the datapath is to know. */
  get deviceMemory(): DeviceMemory {
    const { memory, log, logFd, inflight, translated } = this;
    const windows = [...memory.windows];
    if (inflight !== undefined) windows.push(inflight.mapping.handle);
    if (log !== undefined && this.logging) windows.push(log.handle);
    return {
      chunks: translated ? this.iotlb.chunks : memory.chunks,
      windows,
      iotlb: translated,
      log:
        log === undefined || !this.logging
          ? undefined
          : { window: log.window, off: log.off, size: log.size, pages: memory.guestPieces, callFd: logFd },
    };
  }

  /** Fails if the guest's memory goes on behind what a log in use can tell of. `more`: regions that are to come. */
  checkLog(request: string, { logging = this.logging, more = [] as readonly MemoryRegion[] } = {}): void {
    if (this.log === undefined || !logging) return;
    const end = more.reduce((most, { guestAddr, size }) => Math.max(most, guestAddr + size), this.memory.guestEnd);
    checkLogCovers(this.log.size, end, request);
  }

  /** Where a part of a ring lies. */
  locate({ what, addr, len, align, write }: RingPart): Located {
    const { iotlb } = this;
    const permissions = write ? IOTLB_READ | IOTLB_WRITE : IOTLB_READ;
    const missing = this.translated ? iotlb.missing(addr, len, permissions) : undefined;
    const place = this.translated ? iotlb.placeOf(addr, len, write) : this.memory.placeOf(addr, len, this.ringSpace);
    const fail = (problem: string): Located => {
      const text = `its ${what} at 0x${addr.toString(16)} ${problem}`;
      return { place: undefined, problem: text, ...(missing === undefined ? {} : { missing }) };
    };
    if (missing !== undefined) return fail('has no translation');
    if (place === undefined)
      return fail(this.translated ? 'is not in one piece, as it must be' : 'lies outside guest memory');
    return place.off % align === 0 ? { place } : fail(`is not aligned to ${align} bytes`);
  }

  /** The guest physical address of a place, or undefined where it lies in no region. */
  guestAddrOf({ window, off }: Place): number | undefined {
    const piece = this.memory.guestPieces.find((p) => p.window === window && off >= p.off && off < p.off + p.size);
    return piece && piece.guestAddr + (off - piece.off);
  }

  /** The region that holds a ring's address if it is not shared after all (GuestMemory.findPrivate), −1 otherwise. */
  findPrivate(addr: number): number {
    const at = this.#memoryAddr(addr);
    return at === undefined ? -1 : this.memory.findPrivate(at, this.ringSpace);
  }

  /** GuestMemory.isBlank by a ring's address. */
  isBlank(addr: number, len: number): boolean {
    const at = this.#memoryAddr(addr);
    return at !== undefined && this.memory.isBlank(at, len, this.ringSpace);
  }

  /** GuestMemory.regionAt by a ring's address. */
  regionAt(addr: number): number {
    const at = this.#memoryAddr(addr);
    return at === undefined ? -1 : this.memory.regionAt(at, this.ringSpace);
  }

  #memoryAddr(addr: number): number | undefined {
    return this.translated ? this.iotlb.translate(addr) : addr;
  }

  updateIotlb(entry: IotlbEntry): void {
    if (this.iotlb.update(entry, this.#find)) return;
    const range = `${entry.size} bytes at 0x${entry.userAddr.toString(16)}`;
    throw new ProtocolError('BAD_IOTLB', 'IOTLB_MSG', `${range} lie outside guest memory`);
  }

  /** Regions have come or gone: translations follow. */
  refreshIotlb(): void {
    this.iotlb.refresh(this.#find);
  }

  /** userAddr is a guest address where GPA_ADDRESSES was negotiated. */
  readonly #find = (userAddr: number, len: number) => this.memory.piecesOf(userAddr, len, this.ringSpace);

  /** As GuestMemory's, for all that is mapped. */
  coverTruncated(): boolean {
    return this.#cover((one) => one.coverTruncated());
  }

  /** As GuestMemory's, for all that is mapped. */
  coverHoles(): boolean {
    return this.#cover((one) => one.coverHoles());
  }

  #cover(cover: (one: GuestMemory | SharedMapping) => boolean): boolean {
    const mapped = [this.memory, this.log, this.inflight?.mapping].filter((one) => one !== undefined);
    // each of them, also behind one that is lost
    return mapped.map(cover).some((lost) => lost);
  }
}
