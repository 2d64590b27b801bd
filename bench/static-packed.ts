/**
 * A packed ring of static buffers: what a device overwrites of a descriptor, its length, id and flags, is put back by one store;
 * the address stays.
 * @see VIRTIO 1.2 §2.8
 */
import type { GuestRam } from '../src/port/guest-ram.ts';
import {
  VRING_PACKED_DESC,
  VRING_PACKED_EVENT_F_WRAP_CTR,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
} from '../src/uapi/virtio-ring.ts';
import { type PackedDriver, packedNeedEvent } from '../src/virtqueue/packed-driver.ts';
import { AVAIL, AVAIL_USED, USED } from '../src/virtqueue/packed-ring.ts';
import { DISORDER_WORD, entryOff, type PackedLoop, packedLoop, SKIPPED_WORD } from './packed-loop.ts';
import { DISORDERED, NOT_NAMED, StaticRing } from './static-ring.ts';

const { size: DESC_SIZE, off: DESC } = VRING_PACKED_DESC;
const WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;

export class StaticPackedRing extends StaticRing {
  readonly #driver: PackedDriver;
  readonly #size: number;
  readonly #u16: Uint16Array;
  readonly #loop: PackedLoop;
  readonly #desc: number;
  readonly #flagsIdx: number;
  readonly #inOrder: number;
  readonly #eventIdx: boolean;
  /** of the device area, in which the off_wrap is the lower half and flags the upper */
  readonly #eventIdxIdx: number;
  /** Buffers found used and not taken back: of several an in-order device names the last in the place of the first, once. */
  #ahead = 0;
  /** The device names the last buffer of several only: then the place where the next descriptor is used must be looked at. */
  #skips = false;

  /**
   * Takes over a ring full of buffers of one descriptor: on offer, or all `unpublished`. The driver must not be used any more.
   * The ring's size is a power of two.
   */
  constructor(driver: PackedDriver, ram: GuestRam, kickFd: number, unpublished: number) {
    super(driver, kickFd);
    const { views, place, size, eventIdx, inOrder, vringBase } = driver;
    if ((size & (size - 1)) !== 0) throw new RangeError(`ring size ${size} is not a power of two`);
    this.#driver = driver;
    this.#size = size;
    this.#u16 = views.u16;
    this.#loop = packedLoop(views);
    this.#desc = place.descOff;
    this.#flagsIdx = (place.descOff + DESC.flags) >> 1;
    this.#inOrder = inOrder ? 1 : 0;
    this.#eventIdx = eventIdx;
    this.#eventIdxIdx = place.usedOff >> 2;
    // counters run with the laps: those with wrap counter 1 come first
    this.used = (vringBase & (WRAP - 1)) + ((vringBase & WRAP) === 0 ? size : 0);
    this.avail = (this.used + size - unpublished) & 0xffff;
    for (let at = 0; at < size; at++) {
      const desc = driver.descriptorOff(at);
      this.place(at, driver, desc, ram);
      this.#remember(at, desc);
    }
    for (let i = 0; i < unpublished; i++) this.#hide(this.used + i);
  }

  /** Puts what the driver wrote at place `at` into the table, for laps of both kinds. */
  #remember(at: number, desc: number): void {
    const { dv } = this.#driver.views;
    const { table } = this.#loop;
    const flags = dv.getUint16(desc + DESC.flags, true) & ~AVAIL_USED;
    for (const [place, mark] of [
      [at, AVAIL],
      [at + this.#size, USED],
    ]) {
      const entry = entryOff(place);
      table.setUint32(entry, dv.getUint32(desc + DESC.len, true), true);
      table.setUint16(entry + DESC.id - DESC.len, dv.getUint16(desc + DESC.id, true), true);
      table.setUint16(entry + DESC.flags - DESC.len, flags | mark, true);
    }
  }

  /** Has the descriptor at a place not yet offered look as one that was used in the lap before. */
  #hide(at: number): void {
    const flags = (at & this.#size) === 0 ? 0 : AVAIL_USED;
    this.#driver.views.dv.setUint16(this.#descAt(at) + DESC.flags, flags, true);
  }

  #descAt(at: number): number {
    return this.#driver.descriptorOff(at & this.mask);
  }

  /** True if the descriptor at place `at` is used; its contents come through the loop, which orders them behind the flags. */
  #usedAt(at: number): boolean {
    const flags = this.#u16[this.#flagsIdx + (DESC_SIZE >> 1) * (at & this.mask)];
    return (flags & AVAIL_USED) === ((at & this.#size) === 0 ? AVAIL_USED : 0);
  }

  usedLenAt(at: number): number {
    const { dv } = this.#driver.views;
    const desc = this.#descAt(at);
    const id = dv.getUint16(desc + DESC.id, true);
    const own = this.#loop.table.getUint16(entryOff(at & this.mask) + DESC.id - DESC.len, true);
    if (this.#usedAt(at) && id === own) return dv.getUint32(desc + DESC.len, true);
    return this.#inOrder === 1 ? NOT_NAMED : DISORDERED;
  }

  pending(): number {
    const loop = this.#loop;
    const { used } = this;
    const end = used + ((this.avail - used) & 0xffff);
    const seen = loop.usedTo(this.#desc, this.mask, used + this.#ahead, end, this.#inOrder);
    this.#ahead = seen - used;
    if (this.#inOrder === 1 && !this.#skips) this.#skips = loop.table.getUint32(4 * SKIPPED_WORD, true) > 0;
    return this.#ahead;
  }

  override retire(n: number): void {
    super.retire(n);
    this.#ahead -= n;
  }

  /** Looks at the last one only: the first one is what the device writes last of a burst, and its line is better left alone. */
  protected mayHave(n: number): boolean {
    return this.#skips || this.#usedAt(this.used + n - 1);
  }

  protected offer(n: number): boolean {
    if (n === 0) return false;
    this.#loop.offer(this.#desc, this.mask, this.avail, this.avail + n);
    const next = (this.avail + n) & 0xffff;
    this.avail = next;
    const event = this.i32[this.#eventIdxIdx];
    const flags = (event >>> 16) & 3;
    if (flags === VRING_PACKED_EVENT_FLAG_DISABLE) return false;
    if (flags !== VRING_PACKED_EVENT_FLAG_DESC || !this.#eventIdx) return true;
    return packedNeedEvent(event & 0xffff, next & this.mask, (next & this.#size) === 0, n, this.#size);
  }

  /** Each one was compared when it was found. */
  inOrder(): boolean {
    return this.#loop.table.getUint32(4 * DISORDER_WORD, true) === 0;
  }
}
