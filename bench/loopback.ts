/**
 * A device that does nothing but mark buffers used: what the generator reaches with it is the generator's own ceiling.
 * It moves no payload, but words of it that it is told to, and runs on the generator's thread, so its cost counts against the ceiling.
 */
import {
  VRING_AVAIL,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_USED_ELEM,
  VRING_USED_F_NO_NOTIFY,
} from '../src/uapi/virtio-ring.ts';
import type { DriverRing } from '../src/virtqueue/driver-ring.ts';
import { AVAIL, AVAIL_USED, USED } from '../src/virtqueue/packed-ring.ts';
import type { SplitDriver } from '../src/virtqueue/split-driver.ts';
import type { StaticPort } from './static-port.ts';
import { type StaticRing, StaticSplitRing } from './static-ring.ts';

/** Frames a turn, as the switches take them. */
const BURST = 32;

/** The device's end of a ring. */
interface End {
  /** Marks up to `max` offered buffers used. @returns how many. */
  use(max: number): number;
}

export class Loopback {
  readonly #rx: readonly End[];
  readonly #tx: readonly End[];
  readonly #ports: readonly StaticPort[];
  readonly #words: readonly number[];
  /** the next place of each port's rings */
  readonly #rxAt: number[];
  readonly #txAt: number[];

  /**
   * Port i's frames "arrive" at port i + 1. `frameLen`: bytes, header included, that used buffers tell. `words`: 32-bit words of a
   * buffer that do arrive.
   */
  constructor(
    ports: readonly StaticPort[],
    drivers: readonly DriverRing[],
    frameLen: number,
    words: readonly number[] = [],
  ) {
    this.#ports = ports;
    this.#words = words;
    this.#rxAt = ports.map(({ rx }) => rx.used);
    this.#txAt = ports.map(({ tx }) => tx.used);
    this.#rx = ports.map(({ rx }, i) => endOf(rx, drivers[2 * i], frameLen));
    this.#tx = ports.map(({ tx }, i) => endOf(tx, drivers[2 * i + 1], 0));
  }

  /** One turn: takes up to a burst of what each port sends, and fills as many receive buffers next door. */
  poll(): void {
    const tx = this.#tx;
    const rx = this.#rx;
    for (let i = 0; i < tx.length; i++) {
      const n = tx[i].use(BURST);
      if (n === 0) continue;
      const to = i + 1 < tx.length ? i + 1 : 0;
      const m = rx[to].use(n);
      if (this.#words.length > 0) this.#carry(i, n, to, m);
    }
  }

  /** Of `n` frames from port `from`, `m` go to port `to`. */
  #carry(from: number, n: number, to: number, m: number): void {
    const { tx } = this.#ports[from];
    const { rx } = this.#ports[to];
    for (let k = 0; k < m; k++) {
      const source = tx.bufferIdx[(this.#txAt[from] + k) & tx.mask];
      const target = rx.bufferIdx[(this.#rxAt[to] + k) & rx.mask];
      for (const word of this.#words) rx.i32[target + word] = tx.i32[source + word];
    }
    this.#txAt[from] += n;
    this.#rxAt[to] += m;
  }
}

/** `len`: bytes that used buffers tell; 0 for a transmit ring. */
function endOf(ring: StaticRing, driver: DriverRing, len: number): End {
  if (ring instanceof StaticSplitRing) return new SplitEnd(ring, driver as SplitDriver, len);
  return new PackedEnd(ring, driver, len);
}

class SplitEnd implements End {
  readonly #ring: StaticSplitRing;

  /** Writes all used entries once: in the order of the available ring they are always right. */
  constructor(ring: StaticSplitRing, { views, place }: SplitDriver, len: number) {
    this.#ring = ring;
    for (let i = 0; i <= ring.mask; i++) {
      const elem = place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * i;
      views.dv.setUint32(elem + VRING_USED_ELEM.off.id, ring.idAt(i), true);
      views.dv.setUint32(elem + VRING_USED_ELEM.off.len, len, true);
    }
    views.dv.setUint16(place.usedOff + VRING_AVAIL.off.flags, VRING_USED_F_NO_NOTIFY, true);
  }

  use(max: number): number {
    const { u16, availIdxIdx, usedIdxIdx } = this.#ring;
    const used = u16[usedIdxIdx];
    const offered = (Atomics.load(u16, availIdxIdx) - used) & 0xffff;
    const n = Math.min(offered, max);
    if (n > 0) Atomics.store(u16, usedIdxIdx, (used + n) & 0xffff);
    return n;
  }
}

class PackedEnd implements End {
  readonly #i32: Int32Array;
  /** index of the first descriptor's length, which is followed by id and flags */
  readonly #lenIdx: number;
  readonly #size: number;
  readonly #len: number;
  readonly #write: number;
  /** the next place, counted as the ring's are */
  #at: number;

  constructor(ring: StaticRing, { views, place, size }: DriverRing, len: number) {
    this.#i32 = views.i32;
    this.#lenIdx = (place.descOff + VRING_PACKED_DESC.off.len) >> 2;
    this.#size = size;
    this.#len = len;
    this.#write = len > 0 ? VRING_DESC_F_WRITE : 0;
    this.#at = ring.used;
    views.i32[place.usedOff >> 2] = VRING_PACKED_EVENT_FLAG_DISABLE << 16;
  }

  use(max: number): number {
    const i32 = this.#i32;
    const size = this.#size;
    for (let n = 0; n < max; n++) {
      const firstLap = (this.#at & size) === 0;
      const idx = this.#lenIdx + (this.#at & (size - 1)) * (VRING_PACKED_DESC.size >> 2);
      const word = i32[idx + 1];
      if (((word >>> 16) & AVAIL_USED) !== (firstLap ? AVAIL : USED)) return n;
      i32[idx] = this.#len;
      i32[idx + 1] = (word & 0xffff) | (((firstLap ? AVAIL_USED : 0) | this.#write) << 16);
      this.#at = (this.#at + 1) & 0xffff;
    }
    return max;
  }
}
