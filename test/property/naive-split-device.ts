/** A device's side of a split ring written down from the specification, slow and plain: what drivers are tested against. */
import type { WindowViews } from '../../src/mem/window.ts';
import type { RingPlace } from '../../src/virtqueue/driver-ring.ts';

export interface SeenSegment {
  addr: number;
  len: number;
  write: boolean;
}

export interface SeenChain {
  head: number;
  segments: SeenSegment[];
}

/** Guest addresses equal window offsets plus `base`. */
export class NaiveSplitDevice {
  avail: number;
  used: number;
  readonly #dv: DataView;
  readonly #place: RingPlace;
  readonly #size: number;
  readonly #base: number;

  constructor(views: WindowViews, place: RingPlace, size: number, { start = 0, base = 0 } = {}) {
    this.#dv = views.dv;
    this.#place = place;
    this.#size = size;
    this.#base = base;
    this.avail = this.used = start;
  }

  #u16(off: number): number {
    return this.#dv.getUint16(off, true);
  }

  /** The next available chain, or undefined. */
  take(): SeenChain | undefined {
    const { availOff, descOff } = this.#place;
    if (this.#u16(availOff + 2) === this.avail) return undefined;
    const head = this.#u16(availOff + 4 + 2 * (this.avail % this.#size));
    this.avail = (this.avail + 1) % 65536;
    if ((this.#u16(descOff + 16 * head + 12) & 4) === 0)
      return { head, segments: this.#walk(descOff, head, this.#size) };
    const table = this.#addr(descOff + 16 * head) - this.#base;
    const n = this.#dv.getUint32(descOff + 16 * head + 8, true) / 16;
    return { head, segments: this.#walk(table, 0, n) };
  }

  #addr(descOff: number): number {
    return Number(this.#dv.getBigUint64(descOff, true));
  }

  #walk(table: number, first: number, n: number): SeenSegment[] {
    const segments: SeenSegment[] = [];
    for (let i = first; ; ) {
      if (segments.length >= n) throw new Error('a chain longer than its table');
      const at = table + 16 * i;
      const flags = this.#u16(at + 12);
      segments.push({ addr: this.#addr(at), len: this.#dv.getUint32(at + 8, true), write: (flags & 2) !== 0 });
      if ((flags & 1) === 0) return segments;
      i = this.#u16(at + 14);
    }
  }

  /** Gives a chain back, with `len` bytes written. */
  use(head: number, len: number): void {
    const at = this.#place.usedOff + 4 + 8 * (this.used % this.#size);
    this.#dv.setUint32(at, head, true);
    this.#dv.setUint32(at + 4, len, true);
    this.used = (this.used + 1) % 65536;
    this.forceUsedIdx(this.used);
  }

  forceUsedIdx(idx: number): void {
    this.#dv.setUint16(this.#place.usedOff + 2, idx, true);
  }

  set flags(flags: number) {
    this.#dv.setUint16(this.#place.usedOff, flags, true);
  }

  set availEvent(idx: number) {
    this.#dv.setUint16(this.#place.usedOff + 4 + 8 * this.#size, idx, true);
  }

  get usedEvent(): number {
    return this.#u16(this.#place.availOff + 4 + 2 * this.#size);
  }

  get availFlags(): number {
    return this.#u16(this.#place.availOff);
  }
}

/** Whether an index that went from `old` to `now` step by step stood at `event` before one of the steps. */
export function passes(event: number, old: number, now: number): boolean {
  for (let i = old; i !== now; i = (i + 1) % 65536) if (i === event) return true;
  return false;
}
