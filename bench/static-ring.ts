/**
 * A ring whose buffers lie in it once and for all: giving one back to the device takes no more than the format asks for. It relies
 * on the device using buffers in the order in which they were offered, as all do that copy, and finds out if one does not.
 *
 * Hot functions do no allocation. One process has rings of one format only, so that their calls stay monomorphic.
 */
import type { GuestRam } from '../src/port/guest-ram.ts';
import { signal } from '../src/sys/eventfd.ts';
import { VRING_AVAIL, VRING_DESC, VRING_USED_ELEM, VRING_USED_F_NO_NOTIFY } from '../src/uapi/virtio-ring.ts';
import type { DriverRing } from '../src/virtqueue/driver-ring.ts';
import { needEvent, type SplitDriver } from '../src/virtqueue/split-driver.ts';

const TWO_32 = 2 ** 32;
/** Looks without a full burst after which a smaller one will do. */
export const PATIENCE = 256;
/** What `usedLenAt` says of a buffer whose place in the order another one has taken. */
export const DISORDERED = -1;
/** And of one that an in-order device has used without naming it. */
export const NOT_NAMED = -2;

/** A ring as the hot loop sees it. Places in it are counters modulo 2¹⁶. */
export abstract class StaticRing {
  readonly i32: Int32Array;
  readonly mask: number;
  readonly kickFd: number;
  /** index into `i32` of the buffer at each place of the ring */
  readonly bufferIdx: Int32Array;
  /** the next place to be offered, and the next to be looked at */
  avail = 0;
  used = 0;
  /** buffers used by the device since the beginning, and kicks written for it */
  total = 0;
  kicks = 0;
  /** looks that found something */
  found = 0;
  /** What is taken back ends at a multiple of this, a power of two: for drivers that work in blocks. */
  block = 1;
  protected waited = 0;

  constructor(driver: DriverRing, kickFd: number) {
    this.i32 = driver.views.i32;
    this.mask = driver.size - 1;
    this.kickFd = kickFd;
    this.bufferIdx = new Int32Array(driver.size);
  }

  /** Notes where the buffer at place `at` lies, whose descriptor is at window offset `desc`. Both formats have the address there. */
  protected place(at: number, { views }: DriverRing, desc: number, ram: GuestRam): void {
    const lo = views.dv.getUint32(desc + VRING_DESC.off.addr, true);
    const addr = lo + views.dv.getUint32(desc + VRING_DESC.off.addr + 4, true) * TWO_32;
    this.bufferIdx[at] = (ram.offsetOf(addr) as number) >> 2;
  }

  /** Buffers used and not taken back. */
  abstract pending(): number;

  /** False if there are surely less than `n` of them, which is cheaper to say. */
  protected abstract mayHave(n: number): boolean;

  /** Writes for the device that the next `n` buffers are there. @returns true if it wants to be kicked for it */
  protected abstract offer(n: number): boolean;

  /** Of the used buffer at place `at`: the bytes that the device says it wrote, or DISORDERED, or NOT_NAMED. For slow phases. */
  abstract usedLenAt(at: number): number;

  /** True if the last `n` buffers taken back were used in the order in which they were offered. For slow phases. */
  abstract inOrder(n: number): boolean;

  /** Buffers that may be taken back, `burst` or more unless the device takes its time: then perhaps fewer. */
  look(burst: number): number {
    const late = ++this.waited >= PATIENCE;
    if (!late && !this.mayHave(burst)) return 0;
    const n = this.pending();
    if (n < burst && !late) return 0;
    this.waited = 0;
    const beyond = (this.used + n) & (this.block - 1);
    if (n <= beyond) return 0;
    this.found++;
    return n - beyond;
  }

  /** Gives the next `n` used buffers back to the device, and kicks it if it asks for that. */
  recycle(n: number): void {
    this.retire(n);
    this.publish(n);
  }

  /** Takes the next `n` used buffers back. */
  retire(n: number): void {
    this.used = (this.used + n) & 0xffff;
    this.total += n;
  }

  /** Offers the next `n` buffers, which are retired, and kicks the device if it asks for that. */
  publish(n: number): void {
    if (!this.offer(n)) return;
    this.kicks++;
    signal(this.kickFd);
  }
}

/** Of a split ring only the available index moves. */
export class StaticSplitRing extends StaticRing {
  readonly u16: Uint16Array;
  readonly availIdxIdx: number;
  readonly usedIdxIdx: number;
  readonly #eventIdx: boolean;
  readonly #usedFlagsIdx: number;
  readonly #availEventIdx: number;
  readonly #driver: SplitDriver;

  /**
   * Takes over a ring whose entries all hold buffers of one descriptor, of which the last `unpublished` ones are not shown to the
   * device. The driver must not be used any more.
   */
  constructor(driver: SplitDriver, ram: GuestRam, kickFd: number, unpublished: number) {
    super(driver, kickFd);
    const { views, place, size } = driver;
    this.#driver = driver;
    this.u16 = views.u16;
    this.#eventIdx = driver.eventIdx;
    this.availIdxIdx = (place.availOff + VRING_AVAIL.off.idx) >> 1;
    this.usedIdxIdx = (place.usedOff + VRING_AVAIL.off.idx) >> 1;
    this.#usedFlagsIdx = (place.usedOff + VRING_AVAIL.off.flags) >> 1;
    this.#availEventIdx = (place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * size) >> 1;
    this.avail = (driver.availIdx - unpublished) & 0xffff;
    this.used = driver.usedIdx;
    for (let at = 0; at < size; at++) this.place(at, driver, driver.descriptorOff(this.idAt(at)), ram);
  }

  /** The descriptor that entry `at` of the available ring names. */
  idAt(at: number): number {
    const { views, place } = this.#driver;
    return views.dv.getUint16(place.availOff + VRING_AVAIL.size + 2 * (at & this.mask), true);
  }

  usedLenAt(at: number): number {
    const { views, place } = this.#driver;
    const elem = place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * (at & this.mask);
    if (views.dv.getUint32(elem + VRING_USED_ELEM.off.id, true) !== this.idAt(at)) return DISORDERED;
    return views.dv.getUint32(elem + VRING_USED_ELEM.off.len, true);
  }

  pending(): number {
    return (Atomics.load(this.u16, this.usedIdxIdx) - this.used) & 0xffff;
  }

  protected mayHave(): boolean {
    return true;
  }

  protected offer(n: number): boolean {
    const old = this.avail;
    const now = (old + n) & 0xffff;
    this.avail = now;
    Atomics.store(this.u16, this.availIdxIdx, now);
    if (this.#eventIdx) return needEvent(this.u16[this.#availEventIdx], now, old);
    return (this.u16[this.#usedFlagsIdx] & VRING_USED_F_NO_NOTIFY) === 0;
  }

  /** The used ring still names them all, if `n` is not more than its size. */
  inOrder(n: number): boolean {
    for (let i = 1; i <= n; i++) if (this.usedLenAt((this.used - i) & 0xffff) < 0) return false;
    return true;
  }
}
