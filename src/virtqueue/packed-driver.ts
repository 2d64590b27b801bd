/**
 * The driver's side of a packed virtqueue, as a guest's kernel has it: it offers buffers and takes them back used.
 *
 * The ring lies in a window and is shared with a device in another thread or process. Who owns a descriptor is said by two bits of
 * its flags; the flags that pass it on, and the event structures, are accessed with Atomics, the rest plainly. One thread owns a
 * PackedDriver. It does not own the memory behind the buffers.
 * @see VIRTIO 1.2 §2.8
 */
import type { WindowViews } from '../mem/window.ts';
import {
  VIRTQ_MAX_SIZE,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC,
  VRING_PACKED_DESC_EVENT,
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
  VRING_PACKED_EVENT_F_WRAP_CTR,
  VRING_PACKED_EVENT_FLAG_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_PACKED_EVENT_FLAG_ENABLE,
  vringPackedDescBytes,
} from '../uapi/virtio-ring.ts';
import { alignUp, type DriverRing, LINE, type RingPlace, type Segment, type TablePlace } from './driver-ring.ts';
import { Outstanding } from './outstanding.ts';

const { size: DESC_SIZE, off: DESC } = VRING_PACKED_DESC;
const { size: EVENT_SIZE } = VRING_PACKED_DESC_EVENT;
const AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED = 1 << VRING_PACKED_DESC_F_USED;
/** The wrap counter in `off_wrap`, and in both halves of a vring base. */
const WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;
/** In all descriptors of a chain but the last, which has the buffer's id (§2.8.6): an id that no buffer has. */
const NO_ID = 0xffff;
const TWO_32 = 2 ** 32;

/** The parts of a packed ring of `size` descriptors from `base` (a multiple of 64) on, and its size in bytes. */
export function packedRingLayout(size: number, base = 0): RingPlace & { readonly bytes: number } {
  const availOff = base + alignUp(vringPackedDescBytes(size), LINE);
  const usedOff = availOff + alignUp(EVENT_SIZE, LINE);
  return { descOff: base, availOff, usedOff, bytes: usedOff + alignUp(EVENT_SIZE, LINE) - base };
}

/** Writes the descriptor at window offset `off` but for its flags, whatever the values. */
function writePackedDescriptor({ dv }: WindowViews, off: number, addr: number, len: number, id: number): void {
  dv.setUint32(off + DESC.addr, addr % TWO_32, true);
  dv.setUint32(off + DESC.addr + 4, Math.floor(addr / TWO_32), true);
  dv.setUint32(off + DESC.len, len, true);
  dv.setUint16(off + DESC.id, id, true);
}

/**
 * True if the last `n` ≤ `size` descriptors before place `next`, where the lap with wrap counter `wrap` goes on, include the one that
 * `offWrap` names: the other side asked to be told of it (§2.8.10). Exact for events from one ring's length before `next` on up to the
 * end of another one behind it; an event farther ahead may be seen too early, which costs a spurious notification.
 */
export function packedNeedEvent(offWrap: number, next: number, wrap: boolean, n: number, size: number): boolean {
  const sameLap = ((offWrap & WRAP) !== 0) === wrap;
  const event = (offWrap & (WRAP - 1)) - (sameLap ? 0 : size);
  return event < next && event >= next - n;
}

export class PackedDriver implements DriverRing {
  readonly format = 'packed';
  readonly views: WindowViews;
  readonly place: RingPlace;
  readonly size: number;
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
  usedLen = 0;
  broken: string | undefined;

  readonly #u16: Uint16Array;
  readonly #i32: Int32Array;
  readonly #dv: DataView;
  // indexes into the 32-bit view: off_wrap in the lower half, flags in the upper, so that each is read and written in one
  readonly #driverEventIdx: number;
  readonly #deviceEventIdx: number;

  readonly #outstanding: Outstanding;
  /** Free ids, a stack; with IN_ORDER ids go round instead, and `#nextId` is the next. They differ from the places in the ring. */
  readonly #freeIds: Uint16Array;
  #nFreeIds = 0;
  #nextId = 0;

  #nFree = 0;
  /** Where the next descriptor goes, and the Driver Ring Wrap Counter. */
  #next = 0;
  #wrap = true;
  /** Descriptors added and not published; the flags of the first are held back, which hides all of them (§2.8.6). */
  #nHidden = 0;
  #hiddenOff = 0;
  #hiddenFlags = 0;
  /** Where the next used descriptor is written, and the Device Ring Wrap Counter there. */
  #used = 0;
  #usedWrap = true;
  /** In-order buffers that the last used descriptor speaks of and that are not reaped, and what it said of the last of them. */
  #nBatch = 0;
  #batchLen = 0;

  /** A fresh ring of `size` ≤ 32768 descriptors at `place` in the window, which is cleared. Calls are on. */
  constructor(views: WindowViews, place: RingPlace, size: number, eventIdx: boolean, inOrder = false) {
    if (!Number.isInteger(size) || size < 1 || size > VIRTQ_MAX_SIZE)
      throw new RangeError(`ring size ${size} is not between 1 and ${VIRTQ_MAX_SIZE}`);
    this.views = views;
    this.place = place;
    this.size = size;
    this.eventIdx = eventIdx;
    this.inOrder = inOrder;
    this.#u16 = views.u16;
    this.#i32 = views.i32;
    this.#dv = views.dv;
    this.#driverEventIdx = place.availOff >> 2;
    this.#deviceEventIdx = place.usedOff >> 2;
    this.#outstanding = new Outstanding(size);
    this.#freeIds = new Uint16Array(size);
    this.reset();
  }

  reset(base = WRAP): void {
    const { u8 } = this.views;
    const { descOff, availOff, usedOff } = this.place;
    u8.fill(0, descOff, descOff + vringPackedDescBytes(this.size));
    u8.fill(0, availOff, availOff + EVENT_SIZE);
    u8.fill(0, usedOff, usedOff + EVENT_SIZE);
    this.#outstanding.reset();
    for (let i = 0; i < this.size; i++) this.#freeIds[i] = i;
    this.#nFreeIds = this.size;
    this.#nextId = this.size >> 1;
    this.#nFree = this.size;
    this.#next = this.#used = base & (WRAP - 1);
    this.#wrap = this.#usedWrap = (base & WRAP) !== 0;
    this.#nHidden = this.#nBatch = 0;
    this.usedLen = 0;
    this.broken = undefined;
    this.enableCalls();
  }

  get nFree(): number {
    return this.#nFree;
  }

  descriptorOff(i: number): number {
    return this.place.descOff + DESC_SIZE * i;
  }

  add(chain: readonly Segment[], n = chain.length): number {
    if (n === 0 || n > this.#nFree) return -1;
    const id = this.#takeId();
    for (let i = 0; i < n; i++) {
      const { addr, len, write } = chain[i];
      const more = i + 1 < n;
      const flags = (more ? VRING_DESC_F_NEXT : 0) | (write === true ? VRING_DESC_F_WRITE : 0);
      this.#put(addr, len, more ? NO_ID : id, flags);
    }
    this.#outstanding.add(id, n, chain, n);
    return id;
  }

  addIndirect(chain: readonly Segment[], table: TablePlace, n = chain.length): number {
    if (n === 0 || n > this.size || this.#nFree === 0) return -1;
    for (let i = 0; i < n; i++) {
      const { addr, len, write } = chain[i];
      const off = table.off + DESC_SIZE * i;
      writePackedDescriptor(this.views, off, addr, len, 0);
      // Here WRITE is the only flag; the table's length says where it ends (§2.8.7).
      this.#dv.setUint16(off + DESC.flags, write === true ? VRING_DESC_F_WRITE : 0, true);
    }
    const id = this.#takeId();
    this.#put(table.addr, DESC_SIZE * n, id, VRING_DESC_F_INDIRECT);
    this.#outstanding.add(id, 1, chain, n);
    return id;
  }

  #takeId(): number {
    if (!this.inOrder) return this.#freeIds[--this.#nFreeIds];
    const id = this.#nextId;
    this.#nextId = id + 1 === this.size ? 0 : id + 1;
    return id;
  }

  /** Fills the next descriptor of the ring. */
  #put(addr: number, len: number, id: number, flags: number): void {
    const off = this.descriptorOff(this.#next);
    writePackedDescriptor(this.views, off, addr, len, id);
    const marked = flags | (this.#wrap ? AVAIL : USED);
    if (this.#nHidden === 0) {
      this.#hiddenOff = off;
      this.#hiddenFlags = marked;
    } else this.#dv.setUint16(off + DESC.flags, marked, true);
    this.#nHidden++;
    this.#nFree--;
    if (++this.#next === this.size) {
      this.#next = 0;
      this.#wrap = !this.#wrap;
    }
  }

  publish(): boolean {
    const n = this.#nHidden;
    if (n === 0) return false;
    // Orders all descriptors before the flags of the first, at which a device stops, and these before reading its wish below.
    Atomics.store(this.#u16, (this.#hiddenOff + DESC.flags) >> 1, this.#hiddenFlags);
    this.#nHidden = 0;
    this.#outstanding.publish();
    // Reads the wish after the flags are out: the device writes its wish first and then looks at the ring once more.
    const event = Atomics.load(this.#i32, this.#deviceEventIdx);
    const flags = (event >>> 16) & 3;
    if (flags === VRING_PACKED_EVENT_FLAG_DISABLE) return false;
    if (flags !== VRING_PACKED_EVENT_FLAG_DESC || !this.eventIdx) return true;
    return packedNeedEvent(event & 0xffff, this.#next, this.#wrap, n, this.size);
  }

  /** The flags at place `at` if the descriptor there is used in the lap with wrap counter `wrap`, else −1. */
  #usedFlags(at: number, wrap: boolean): number {
    // Orders the flags before the descriptor and the payload.
    const flags = Atomics.load(this.#u16, (this.descriptorOff(at) + DESC.flags) >> 1);
    return (flags & (AVAIL | USED)) === (wrap ? AVAIL | USED : 0) ? flags : -1;
  }

  get ready(): boolean {
    if (this.broken !== undefined) return false;
    if (this.#nBatch > 0) return true;
    // Where nothing is on offer the place holds what was left there in an earlier lap.
    return this.#outstanding.onOffer > 0 && this.#usedFlags(this.#used, this.#usedWrap) >= 0;
  }

  reap(): number {
    if (this.broken !== undefined) return -1;
    if (this.#nBatch > 0) return this.#reapBatch();
    if (this.#outstanding.onOffer === 0) return -1;
    const flags = this.#usedFlags(this.#used, this.#usedWrap);
    if (flags < 0) return -1;
    const off = this.descriptorOff(this.#used);
    const id = this.#dv.getUint16(off + DESC.id, true);
    // Without WRITE the length means nothing (§2.8.4).
    const len = (flags & VRING_DESC_F_WRITE) === 0 ? 0 : this.#dv.getUint32(off + DESC.len, true);
    if (!this.#outstanding.has(id)) {
      this.broken = `the device used buffer ${id} at descriptor ${this.#used}, which is not on offer`;
      return -1;
    }
    const room = this.#outstanding.room(id);
    if (len > room) {
      this.broken = `the device says that it wrote ${len} bytes to buffer ${id}, which has room for ${room}`;
      return -1;
    }
    if (this.inOrder) {
      this.#nBatch = this.#outstanding.countTo(id);
      this.#batchLen = len;
      return this.#reapBatch();
    }
    this.#freeIds[this.#nFreeIds++] = id;
    this.usedLen = len;
    this.#release(id);
    return id;
  }

  /** Takes back the oldest buffer, as the used descriptor of a buffer behind it, or its own, says. */
  #reapBatch(): number {
    const id = this.#outstanding.idAt(0);
    this.#nBatch--;
    this.usedLen = this.#nBatch === 0 ? this.#batchLen : this.#outstanding.room(id);
    this.#release(id);
    return id;
  }

  /** The device skips as many places as the buffer had descriptors (§2.8.6). */
  #release(id: number): void {
    const n = this.#outstanding.remove(id);
    this.#nFree += n;
    this.#used += n;
    if (this.#used >= this.size) {
      this.#used -= this.size;
      this.#usedWrap = !this.#usedWrap;
    }
  }

  /** Both halves are equal: what was taken and not used is to be taken again. */
  get vringBase(): number {
    const { size } = this;
    const outstanding = this.#outstanding;
    let at = this.#used;
    let wrap = this.#usedWrap;
    const skip = (descriptors: number) => {
      at += descriptors;
      if (at < size) return;
      at -= size;
      wrap = !wrap;
    };
    let done = this.#nBatch;
    for (let i = 0; i < done; i++) skip(outstanding.descriptors(outstanding.idAt(i)));
    while (done < outstanding.onOffer && this.#usedFlags(at, wrap) >= 0) {
      const id = this.#dv.getUint16(this.descriptorOff(at) + DESC.id, true);
      // A device that breaks the rules is found out by `reap`.
      if (!outstanding.has(id) || (this.inOrder && outstanding.countTo(id) <= done)) break;
      const end = this.inOrder ? outstanding.countTo(id) : done + 1;
      for (; done < end; done++) skip(outstanding.descriptors(this.inOrder ? outstanding.idAt(done) : id));
    }
    const half = at | (wrap ? WRAP : 0);
    return half + half * 0x10000;
  }

  enableCalls(skip = 0): boolean {
    const at = this.#used + skip;
    const sameLap = at < this.size;
    const offWrap = (sameLap ? at : at - this.size) | (sameLap === this.#usedWrap ? WRAP : 0);
    const flags = this.eventIdx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE;
    // Orders the wish before the look at the ring: what is used after the look leads to a call.
    Atomics.store(this.#i32, this.#driverEventIdx, (flags << 16) | (this.eventIdx ? offWrap : 0));
    return !this.ready;
  }

  disableCalls(): void {
    Atomics.store(this.#i32, this.#driverEventIdx, VRING_PACKED_EVENT_FLAG_DISABLE << 16);
  }
}
