/**
 * Memory of a guest that lives in this process: memory files with the guest addresses of one's choice, mapped into one window.
 * It is what virtio-user shares with a back end. Nothing is ever given back to the allocator.
 */
import { closeSync } from 'node:fs';
import { chooseWindowKind } from '../mem/selftest.ts';
import {
  mapInto,
  openWindow,
  unmapFrom,
  WINDOW_USABLE_BYTES,
  type WindowHandle,
  WindowPool,
  type WindowViews,
} from '../mem/window.ts';
import { createMemfd, pageSize } from '../sys/memory.ts';
import type { MemoryRegion } from '../vhost/vhost-device.ts';

/** Offsets in the window begin here: a zero offset is a mistake. */
const FIRST_OFF = 65536;
/** Front-end addresses are guest addresses plus this, unless asked otherwise: a back end that mixes the two spaces is found out. */
const FRONTEND_BASE = 0x7f00_0000_0000;

/** Bytes of a region. */
export interface MemorySlice {
  /** from the region's beginning on */
  readonly off: number;
  /** bytes */
  readonly size: number;
}

/** A region of guest memory. Addresses and sizes are multiples of the file's page size. */
export interface RamRegion {
  /** guest physical address of its first byte */
  readonly guestAddr: number;
  /** bytes */
  readonly size: number;
  /** The region's address in the space of SET_VRING_ADDR; DPDK's virtio-user has it equal to `guestAddr`. */
  readonly frontendAddr?: number;
  /** The file behind the region, from `fileOff` on; GuestRam owns it from then on. Default: a memfd of its own. */
  readonly fd?: number;
  /** Where the region begins in its file, bytes. Default 0. */
  readonly fileOff?: number;
  /** The `size` bytes of the region from `off` on that are mapped and used here; the whole region unless it is too large for the window. */
  readonly slice?: MemorySlice;
}

/** A place in guest memory in both spaces: guest address, and offset into the window. */
export interface RamPlace {
  readonly addr: number;
  readonly off: number;
}

interface MappedSlice {
  readonly addr: number;
  readonly off: number;
  readonly size: number;
  used: number;
}

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;

let ownPool: WindowPool | undefined;

export class GuestRam {
  /** The regions as a mem table has them. The fds stay ours. */
  readonly regions: readonly MemoryRegion[];
  /** The window as this thread sees it. */
  readonly views: WindowViews;
  readonly #window: WindowHandle;
  readonly #pool: WindowPool;
  readonly #slices: MappedSlice[] = [];
  #turn = 0;

  /**
   * Creates and maps the regions. Throws RangeError if they do not fit one window.
   * @param pool where the window comes from; by default a pool that all such memory shares
   */
  constructor(regions: readonly RamRegion[], pool?: WindowPool) {
    if (pool === undefined) ownPool ??= new WindowPool(chooseWindowKind().kind);
    this.#pool = pool ?? (ownPool as WindowPool);
    this.#window = this.#pool.acquire();
    this.regions = regions.map((r) => ({
      guestAddr: r.guestAddr,
      size: r.size,
      frontendAddr: r.frontendAddr ?? FRONTEND_BASE + r.guestAddr,
      fileOff: r.fileOff ?? 0,
      fd: r.fd ?? createMemfd('virtio-user', (r.fileOff ?? 0) + r.size),
    }));
    try {
      let at = FIRST_OFF;
      for (const [i, { slice }] of regions.entries()) at = this.#map(this.regions[i], at, slice);
    } catch (error) {
      this.close();
      throw error;
    }
    this.views = openWindow(this.#window);
  }

  /** Maps the slice at the first suitable offset from `from` on. @returns the offset behind it. */
  #map(region: MemoryRegion, from: number, slice = { off: 0, size: region.size }): number {
    const page = pageSize(region.fd);
    const misfit = Number((this.#window.address + BigInt(from)) % BigInt(page));
    const off = from + (misfit === 0 ? 0 : page - misfit);
    const len = alignUp(slice.size, page);
    if (off + len > WINDOW_USABLE_BYTES) throw new RangeError('guest memory does not fit a window: use a slice of it');
    mapInto(this.#window, off, len, region.fd, region.fileOff + slice.off);
    this.#slices.push({ addr: region.guestAddr + slice.off, off, size: slice.size, used: 0 });
    return off + len;
  }

  /** The window, for other threads. */
  get window(): WindowHandle {
    return this.#window;
  }

  /**
   * `len` bytes of zeros at a multiple of `align` (a power of two) in region `region`, or else in the regions by turns, so that
   * what is shared lies in all of them. Throws RangeError when memory is used up.
   */
  alloc(len: number, align = 64, region?: number): RamPlace {
    for (let tries = 0; tries < this.#slices.length; tries++) {
      const slice = this.#slices[region ?? this.#turn++ % this.#slices.length];
      const at = alignUp(slice.used, align);
      if (at + len > slice.size) continue;
      slice.used = at + len;
      return { addr: slice.addr + at, off: slice.off + at };
    }
    throw new RangeError(`guest memory is used up: no room for ${len} bytes`);
  }

  /** The window offset of a guest address, or undefined where this process has not mapped it. */
  offsetOf(guestAddr: number): number | undefined {
    const slice = this.#slices.find(({ addr, size }) => guestAddr >= addr && guestAddr < addr + size);
    return slice && slice.off + guestAddr - slice.addr;
  }

  /** The front-end address of a guest address, as rings are given to the back end. */
  frontendAddrOf(guestAddr: number): number {
    const region = this.regions.find((r) => guestAddr >= r.guestAddr && guestAddr < r.guestAddr + r.size);
    if (region === undefined) throw new RangeError(`no memory at guest address 0x${guestAddr.toString(16)}`);
    return guestAddr - region.guestAddr + region.frontendAddr;
  }

  /** Unmaps everything and closes the files. */
  close(): void {
    for (const { off, size } of this.#slices) unmapFrom(this.#window, off, alignUp(size, 4096));
    for (const { fd } of this.regions) closeSync(fd);
    this.#slices.length = 0;
    this.#pool.release(this.#window);
  }
}
