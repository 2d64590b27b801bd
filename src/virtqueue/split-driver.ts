/**
 * The driver's side of a split virtqueue, as a guest's kernel has it: it offers buffers and takes them back used.
 *
 * The ring lies in a window and is shared with a device in another thread or process. Indexes and event words are accessed with
 * Atomics, the rest plainly: the index orders it. One thread owns a SplitDriver. It does not own the memory behind the buffers.
 * @see VIRTIO 1.2 §2.7
 */
import type { WindowViews } from '../mem/window.ts';
import {
  VIRTQ_MAX_SIZE,
  VRING_AVAIL,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_USED_ELEM,
  VRING_USED_F_NO_NOTIFY,
  vringAvailBytes,
  vringDescBytes,
  vringUsedBytes,
} from '../uapi/virtio-ring.ts';
import { alignUp, type DriverRing, LINE, type RingPlace, type Segment, type TablePlace } from './driver-ring.ts';
import { Outstanding } from './outstanding.ts';

const { size: DESC_SIZE, off: DESC } = VRING_DESC;
const { size: RING_HEAD, off: HEAD } = VRING_AVAIL;
const { size: ELEM_SIZE, off: ELEM } = VRING_USED_ELEM;
const TWO_32 = 2 ** 32;
/** With calls off, used_event is moved along after so many entries, long before the used index comes round to it. */
const REARM_AFTER = 0x4000;

/** The parts of a split ring of `size` descriptors from `base` (a multiple of 64) on, and its size in bytes. */
export function splitLayout(size: number, base = 0): RingPlace & { readonly bytes: number } {
  const availOff = base + alignUp(vringDescBytes(size), LINE);
  const usedOff = alignUp(availOff + vringAvailBytes(size), LINE);
  return { descOff: base, availOff, usedOff, bytes: alignUp(usedOff + vringUsedBytes(size), LINE) - base };
}

/** Writes the descriptor at window offset `descOff`, whatever the values. */
export function writeDescriptor(
  views: WindowViews,
  descOff: number,
  addr: number,
  len: number,
  flags: number,
  next: number,
): void {
  const { dv } = views;
  dv.setUint32(descOff + DESC.addr, addr % TWO_32, true);
  dv.setUint32(descOff + DESC.addr + 4, Math.floor(addr / TWO_32), true);
  dv.setUint32(descOff + DESC.len, len, true);
  dv.setUint16(descOff + DESC.flags, flags, true);
  dv.setUint16(descOff + DESC.next, next, true);
}

/** True if going from index `old` to `now` passes `event`: the other side asked to be told. §2.7.7.2, all modulo 2¹⁶ */
export function needEvent(event: number, now: number, old: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
}

/** The ring's split driver, for what only split rings have. Throws TypeError for another format. */
export function asSplit(ring: DriverRing): SplitDriver {
  if (ring instanceof SplitDriver) return ring;
  throw new TypeError(`a ${ring.format} ring where only a split one will do`);
}

export class SplitDriver implements DriverRing {
  readonly format = 'split';
  readonly views: WindowViews;
  readonly place: RingPlace;
  readonly size: number;
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
  usedLen = 0;
  broken: string | undefined;

  readonly #u16: Uint16Array;
  readonly #dv: DataView;
  readonly #mask: number;
  // indexes into the 16-bit view of the words both sides share
  readonly #availFlagsIdx: number;
  readonly #availIdxIdx: number;
  readonly #usedEventIdx: number;
  readonly #usedFlagsIdx: number;
  readonly #usedIdxIdx: number;
  readonly #availEventIdx: number;

  /** The free descriptors are a list in memory of our own, which no device can spoil. With IN_ORDER it is the ring itself (§2.7.5). */
  readonly #next: Uint16Array;
  /** A buffer's id is its first descriptor's. */
  readonly #outstanding: Outstanding;
  #freeHead = 0;
  #nFree = 0;
  #avail = 0;
  #published = 0;
  #used = 0;
  #usedSeen = 0;
  #calls = true;
  #armed = 0;
  /** In-order buffers that the last used entry speaks of and that are not reaped, and what it said of the last of them. */
  #nBatch = 0;
  #batchLen = 0;

  /** A fresh ring of `size` descriptors (a power of two ≤ 32768) at `place` in the window, which is cleared. Calls are on. */
  constructor(views: WindowViews, place: RingPlace, size: number, eventIdx: boolean, inOrder = false) {
    if (size < 1 || size > VIRTQ_MAX_SIZE || (size & (size - 1)) !== 0)
      throw new RangeError(`split ring size ${size} is not a power of two up to ${VIRTQ_MAX_SIZE}`);
    this.views = views;
    this.place = place;
    this.size = size;
    this.eventIdx = eventIdx;
    this.inOrder = inOrder;
    this.#u16 = views.u16;
    this.#dv = views.dv;
    this.#mask = size - 1;
    this.#availFlagsIdx = (place.availOff + HEAD.flags) >> 1;
    this.#availIdxIdx = (place.availOff + HEAD.idx) >> 1;
    this.#usedEventIdx = (place.availOff + RING_HEAD + 2 * size) >> 1;
    this.#usedFlagsIdx = (place.usedOff + HEAD.flags) >> 1;
    this.#usedIdxIdx = (place.usedOff + HEAD.idx) >> 1;
    this.#availEventIdx = (place.usedOff + RING_HEAD + ELEM_SIZE * size) >> 1;
    this.#next = new Uint16Array(size);
    this.#outstanding = new Outstanding(size);
    this.reset();
  }

  reset(base = 0): void {
    const { u8 } = this.views;
    const { descOff, availOff, usedOff } = this.place;
    u8.fill(0, descOff, descOff + vringDescBytes(this.size));
    u8.fill(0, availOff, availOff + vringAvailBytes(this.size));
    u8.fill(0, usedOff, usedOff + vringUsedBytes(this.size));
    for (let i = 0; i < this.size; i++) this.#next[i] = (i + 1) & this.#mask;
    this.#outstanding.reset();
    this.#nBatch = 0;
    this.#freeHead = 0;
    this.#nFree = this.size;
    this.#avail = this.#published = this.#used = this.#usedSeen = this.#armed = base & 0xffff;
    this.#u16[this.#availIdxIdx] = this.#u16[this.#usedIdxIdx] = this.#avail;
    this.usedLen = 0;
    this.broken = undefined;
    this.enableCalls();
  }

  get nFree(): number {
    return this.#nFree;
  }

  /** The next entry of the available ring to be filled, modulo 2¹⁶. */
  get availIdx(): number {
    return this.#avail;
  }

  /** The next entry of the used ring to be reaped, modulo 2¹⁶. */
  get usedIdx(): number {
    return this.#used;
  }

  /** The used index in shared memory: what the device has used so far, reaped or not. */
  get sharedUsedIdx(): number {
    return Atomics.load(this.#u16, this.#usedIdxIdx);
  }

  /** A device that uses buffers in order has done all before the used index; what it had taken beyond, it takes again. */
  get vringBase(): number {
    return this.sharedUsedIdx;
  }

  descriptorOff(id: number): number {
    return this.place.descOff + DESC_SIZE * id;
  }

  add(chain: readonly Segment[], n = chain.length): number {
    if (n === 0 || n > this.#nFree) return -1;
    const head = this.#freeHead;
    let id = head;
    for (let i = 0; i < n; i++) {
      const { addr, len, write } = chain[i];
      const next = this.#next[id];
      const more = i + 1 < n;
      const flags = (more ? VRING_DESC_F_NEXT : 0) | (write === true ? VRING_DESC_F_WRITE : 0);
      writeDescriptor(this.views, this.descriptorOff(id), addr, len, flags, more ? next : 0);
      id = next;
    }
    this.#outstanding.add(head, n, chain, n);
    this.#take(head, n, id);
    return head;
  }

  addIndirect(chain: readonly Segment[], table: TablePlace, n = chain.length): number {
    if (n === 0 || n > this.size || this.#nFree === 0) return -1;
    for (let i = 0; i < n; i++) {
      const { addr, len, write } = chain[i];
      const more = i + 1 < n;
      const flags = (more ? VRING_DESC_F_NEXT : 0) | (write === true ? VRING_DESC_F_WRITE : 0);
      writeDescriptor(this.views, table.off + DESC_SIZE * i, addr, len, flags, more ? i + 1 : 0);
    }
    const head = this.#freeHead;
    writeDescriptor(this.views, this.descriptorOff(head), table.addr, DESC_SIZE * n, VRING_DESC_F_INDIRECT, 0);
    this.#outstanding.add(head, 1, chain, n);
    this.#take(head, 1, this.#next[head]);
    return head;
  }

  /** Takes `n` descriptors from `head` on off the free list, which goes on with `rest`, and offers them. */
  #take(head: number, n: number, rest: number): void {
    this.#freeHead = rest;
    this.#nFree -= n;
    this.offer(head);
  }

  /** Puts any 16-bit value into the next entry of the available ring, unpublished. */
  offer(head: number): void {
    this.#dv.setUint16(this.place.availOff + RING_HEAD + 2 * (this.#avail & this.#mask), head, true);
    this.#avail = (this.#avail + 1) & 0xffff;
  }

  publish(): boolean {
    const old = this.#published;
    const now = this.#avail;
    if (old === now) return false;
    // Orders descriptors and entries before the index, and the index before reading the device's wish below.
    Atomics.store(this.#u16, this.#availIdxIdx, now);
    this.#published = now;
    this.#outstanding.publish();
    // Reads the wish after the index is out: the device writes its wish first and then looks at the index once more.
    if (this.eventIdx) return needEvent(Atomics.load(this.#u16, this.#availEventIdx), now, old);
    return (Atomics.load(this.#u16, this.#usedFlagsIdx) & VRING_USED_F_NO_NOTIFY) === 0;
  }

  reap(): number {
    if (this.#nBatch > 0) return this.#reapBatch();
    if (this.#used === this.#usedSeen && !this.#look()) return -1;
    const at = this.place.usedOff + RING_HEAD + ELEM_SIZE * (this.#used & this.#mask);
    const id = this.#dv.getUint32(at + ELEM.id, true);
    const len = this.#dv.getUint32(at + ELEM.len, true);
    if (!this.#outstanding.has(id))
      return this.#break(`the device used ${id}, which no buffer on offer has for a head`);
    if (this.inOrder) {
      // The entries of the buffers before this one are not written, but the index counts them (§2.7.9).
      const n = this.#outstanding.countTo(id);
      const seen = (this.#usedSeen - this.#used) & 0xffff;
      if (n > seen)
        return this.#break(`the device used ${id}, number ${n} in order, and the used index tells of ${seen}`);
      this.#nBatch = n;
      this.#batchLen = len;
      return this.#reapBatch();
    }
    this.usedLen = len;
    this.#release(id);
    return id;
  }

  /** Takes back the oldest buffer, as the used entry of a buffer behind it, or its own, says. */
  #reapBatch(): number {
    const id = this.#outstanding.idAt(0);
    this.#nBatch--;
    this.usedLen = this.#nBatch === 0 ? this.#batchLen : this.#outstanding.room(id);
    this.#release(id);
    return id;
  }

  #break(problem: string): number {
    this.broken = problem;
    this.#usedSeen = this.#used;
    return -1;
  }

  /** Looks whether the device has used more. */
  #look(): boolean {
    if (this.broken !== undefined) return false;
    // Orders the index before the entries and the payload.
    const seen = Atomics.load(this.#u16, this.#usedIdxIdx);
    if (((seen - this.#used) & 0xffff) > ((this.#published - this.#used) & 0xffff)) {
      this.broken = `the used index went from ${this.#used} to ${seen}, past the ${this.#published} on offer`;
      return false;
    }
    this.#usedSeen = seen;
    if (!this.#calls && ((this.#used - this.#armed) & 0xffff) > REARM_AFTER) this.disableCalls();
    return seen !== this.#used;
  }

  #release(head: number): void {
    this.#used = (this.#used + 1) & 0xffff;
    const n = this.#outstanding.remove(head);
    this.#nFree += n;
    if (this.inOrder) return;
    let last = head;
    for (let i = 1; i < n; i++) last = this.#next[last];
    this.#next[last] = this.#freeHead;
    this.#freeHead = head;
  }

  get ready(): boolean {
    return this.#used !== this.#usedSeen || this.#look();
  }

  enableCalls(skip = 0): boolean {
    this.#calls = true;
    // Orders the wish before the look at the used index: what is used after the look leads to a call.
    if (this.eventIdx) Atomics.store(this.#u16, this.#usedEventIdx, (this.#used + skip) & 0xffff);
    else Atomics.store(this.#u16, this.#availFlagsIdx, 0);
    return !this.ready;
  }

  disableCalls(): void {
    this.#calls = false;
    this.#armed = this.#used;
    // Under EVENT_IDX the flags stay 0 (§2.7.7.1); an event index just passed is 2¹⁶ − 1 entries away.
    if (this.eventIdx) Atomics.store(this.#u16, this.#usedEventIdx, (this.#used - 1) & 0xffff);
    else Atomics.store(this.#u16, this.#availFlagsIdx, VRING_AVAIL_F_NO_INTERRUPT);
  }

  /** Writes the shared available index, whatever its value, for tests of devices. */
  forceAvailIdx(idx: number): void {
    this.#avail = this.#published = idx & 0xffff;
    Atomics.store(this.#u16, this.#availIdxIdx, this.#avail);
  }
}
