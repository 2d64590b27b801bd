/** A device's side of a packed ring written down from the specification, slow and plain: what drivers are tested against. */
import type { WindowViews } from '../../src/mem/window.ts';
import type { RingPlace } from '../../src/virtqueue/driver-ring.ts';
import type { SeenSegment } from './naive-split-device.ts';

/** A buffer as the device finds it in the ring. */
export interface SeenBuffer {
  id: number;
  /** how many places of the ring it takes */
  descriptors: number;
  segments: SeenSegment[];
}

/** A place in the ring of a device or driver that never stops counting: the place is its remainder, and the wrap counter its lap's parity. */
export interface Cursor {
  at: number;
  wrap: 0 | 1;
}

const AVAIL = 1 << 7;
const USED = 1 << 15;
const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

/** Guest addresses equal window offsets plus `base`. */
export class NaivePackedDevice {
  readonly avail: Cursor;
  readonly used: Cursor;
  readonly #dv: DataView;
  readonly #place: RingPlace;
  readonly #size: number;
  readonly #base: number;

  constructor(
    views: WindowViews,
    place: RingPlace,
    size: number,
    { start = { at: 0, wrap: 1 } as Cursor, base = 0 } = {},
  ) {
    this.#dv = views.dv;
    this.#place = place;
    this.#size = size;
    this.#base = base;
    this.avail = { ...start };
    this.used = { ...start };
  }

  #forward(cursor: Cursor, n: number): void {
    for (let i = 0; i < n; i++) {
      cursor.at++;
      if (cursor.at === this.#size) {
        cursor.at = 0;
        cursor.wrap = cursor.wrap === 1 ? 0 : 1;
      }
    }
  }

  #off(at: number): number {
    return this.#place.descOff + 16 * at;
  }

  #flags(at: number): number {
    return this.#dv.getUint16(this.#off(at) + 14, true);
  }

  /** §2.8.1: the AVAIL bit equals the wrap counter, the USED bit does not. */
  #isAvailable({ at, wrap }: Cursor): boolean {
    const flags = this.#flags(at);
    const avail = (flags & AVAIL) !== 0 ? 1 : 0;
    const used = (flags & USED) !== 0 ? 1 : 0;
    return avail === wrap && used !== wrap;
  }

  #segment(off: number): SeenSegment {
    return {
      addr: Number(this.#dv.getBigUint64(off, true)),
      len: this.#dv.getUint32(off + 8, true),
      write: (this.#dv.getUint16(off + 14, true) & WRITE) !== 0,
    };
  }

  /** The next available buffer, or undefined. All its descriptors must be available, each with flags of its own. */
  take(): SeenBuffer | undefined {
    if (!this.#isAvailable(this.avail)) return undefined;
    const segments: SeenSegment[] = [];
    for (let descriptors = 1; ; descriptors++) {
      if (descriptors > this.#size) throw new Error('a list longer than the ring');
      if (!this.#isAvailable(this.avail)) throw new Error(`descriptor ${this.avail.at} within a list is not available`);
      const off = this.#off(this.avail.at);
      const flags = this.#flags(this.avail.at);
      const id = this.#dv.getUint16(off + 12, true);
      this.#forward(this.avail, 1);
      if ((flags & INDIRECT) !== 0) {
        if ((flags & NEXT) !== 0 || descriptors > 1) throw new Error('a list with a table within');
        return { id, descriptors: 1, segments: this.#table(off) };
      }
      segments.push(this.#segment(off));
      if ((flags & NEXT) === 0) return { id, descriptors, segments };
    }
  }

  /** §2.8.7: the descriptors of a table follow one another; WRITE is their only flag. */
  #table(off: number): SeenSegment[] {
    const at = Number(this.#dv.getBigUint64(off, true)) - this.#base;
    const bytes = this.#dv.getUint32(off + 8, true);
    if (bytes % 16 !== 0 || bytes === 0) throw new Error(`a table of ${bytes} bytes`);
    return Array.from({ length: bytes / 16 }, (_, i) => {
      const flags = this.#dv.getUint16(at + 16 * i + 14, true);
      if ((flags & ~WRITE) !== 0) throw new Error(`flags ${flags} in an indirect table`);
      return this.#segment(at + 16 * i);
    });
  }

  /** Gives a buffer back with `len` bytes written. */
  use(buffer: SeenBuffer, len: number): void {
    this.useBatch([buffer], len);
  }

  /** §2.8.8, in-order devices: gives buffers back by naming the last one only, with `len` bytes written to that. */
  useBatch(buffers: readonly SeenBuffer[], len: number): void {
    this.write(buffers[buffers.length - 1].id, len, len > 0 ? WRITE : 0);
    for (const { descriptors } of buffers) this.#forward(this.used, descriptors);
  }

  /** §2.8.9, requests of several buffers: marks the first one used last. */
  useTogether(buffers: readonly SeenBuffer[], lens: readonly number[]): void {
    const places = buffers.map(({ descriptors }) => {
      const { at, wrap } = this.used;
      this.#forward(this.used, descriptors);
      return { at, wrap };
    });
    for (let i = buffers.length - 1; i >= 0; i--)
      this.write(buffers[i].id, lens[i], lens[i] > 0 ? WRITE : 0, places[i]);
  }

  /** Writes a used descriptor, whatever the values, and does not go on. */
  write(id: number, len: number, flags: number, { at, wrap } = this.used): void {
    const off = this.#off(at);
    this.#dv.setUint32(off + 8, len, true);
    this.#dv.setUint16(off + 12, id, true);
    this.#dv.setUint16(off + 14, flags | (wrap === 1 ? AVAIL | USED : 0), true);
  }

  /** The device event structure: which kicks it wants. */
  wantKicks(flags: 0 | 1 | 2 | 3, { at, wrap }: Cursor = { at: 0, wrap: 0 }): void {
    this.#dv.setUint16(this.#place.usedOff, at | (wrap << 15), true);
    this.#dv.setUint16(this.#place.usedOff + 2, flags, true);
  }

  /** The driver event structure: which calls the driver wants. */
  get callsWanted(): { flags: number } & Cursor {
    const offWrap = this.#dv.getUint16(this.#place.availOff, true);
    return {
      flags: this.#dv.getUint16(this.#place.availOff + 2, true),
      at: offWrap & 0x7fff,
      wrap: (offWrap >> 15) as 0 | 1,
    };
  }

  /** Whether using `n` descriptors from `from` on calls for a notification of the driver. */
  callDue(from: Cursor, n: number): boolean {
    const wish = this.callsWanted;
    if (wish.flags !== 2) return wish.flags === 0;
    const cursor = { ...from };
    for (let i = 0; i < n; i++) {
      if (cursor.at === wish.at && cursor.wrap === wish.wrap) return true;
      this.#forward(cursor, 1);
    }
    return false;
  }
}
