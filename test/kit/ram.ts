/**
 * A guest's memory for tests: the zero pages of one window under guest addresses of one's choice. No file is mapped.
 */
import type { Chunk } from '../../src/mem/address-map.ts';
import type { Place } from '../../src/mem/guest-memory.ts';
import { openWindow, unmapFrom, type WindowHandle, WindowPool, type WindowViews } from '../../src/mem/window.ts';
import type { DeviceMemory } from '../../src/vhost/datapath.ts';

const MIB = 2 ** 20;
/** Below a multiple of 4 GiB, so that memory of more than half a MiB goes on behind it. */
const GUEST_BASE = 2 ** 32 - MIB / 2;

/** One pool a test process: window ids are unique in it. `variants.test.ts` runs whole files again with the other kind. */
export const pool = new WindowPool(process.env.WINDOW_KIND === 'view' ? 'view' : 'wasm');

/** A place in a guest's memory: guest address, and offset into the window. */
export interface RamPlace {
  readonly addr: number;
  readonly off: number;
}

export class Ram {
  readonly handle: WindowHandle;
  readonly views: WindowViews;
  readonly bytes: Buffer;
  readonly base: number;
  readonly #size: number;
  readonly #windowOff: number;
  readonly #cuts: readonly number[];
  #used = 0;

  /**
   * @param base guest address of the first byte, a multiple of 4096
   * @param cuts distances from `base` at which one chunk ends and the next begins
   */
  constructor({ base = GUEST_BASE, size = 64 * MIB, windowOff = 65536, cuts = [] as readonly number[] } = {}) {
    this.handle = pool.acquire();
    this.views = openWindow(this.handle);
    this.bytes = Buffer.from(this.views.u8.buffer, 0, 2 ** 31);
    this.base = base;
    this.#size = size;
    this.#windowOff = windowOff;
    this.#cuts = cuts;
  }

  /** The memory as chunks for an AddressMap: one from each cut to the next, and one more from a multiple of 4 GiB on. */
  get chunks(): Chunk[] {
    const from = [0, ...this.#cuts].filter((cut) => cut < this.#size).sort((a, b) => a - b);
    const to = [...from.slice(1), this.#size];
    const at4GiB = 2 ** 32 - (this.base % 2 ** 32);
    const chunk = (begin: number, end: number): Chunk => ({
      guestAddr: this.base + begin,
      reach: end - begin,
      window: this.handle.id,
      windowOff: this.#windowOff + begin,
    });
    return from.flatMap((begin, i) => [
      chunk(begin, to[i]),
      ...(begin < at4GiB && at4GiB < to[i] ? [chunk(at4GiB, to[i])] : []),
    ]);
  }

  /** The memory as a datapath gets it. */
  get memory(): DeviceMemory {
    return { chunks: this.chunks, windows: [this.handle], iotlb: false, log: undefined };
  }

  /** The first guest address behind the memory. */
  get end(): number {
    return this.base + this.#size;
  }

  /** `len` bytes that nothing else has, at a multiple of `align`. */
  alloc(len: number, align = 64): RamPlace {
    const at = Math.ceil(this.#used / align) * align;
    if (at + len > this.#size) throw new RangeError('test memory is used up');
    this.#used = at + len;
    return { addr: this.base + at, off: this.#windowOff + at };
  }

  place({ off }: RamPlace): Place {
    return { window: this.handle.id, off };
  }

  offsetOf(addr: number): number {
    return addr - this.base + this.#windowOff;
  }

  /** The window is another's next, with zero pages. */
  close(): void {
    unmapFrom(this.handle, this.#windowOff, this.#size);
    pool.release(this.handle);
  }
}
