/**
 * A split ring of buffers that are made once: of what lies in it only the available index changes, as long as the device uses buffers
 * in order and frames have one length; what has its value already is not written again, and stays in the device's cache.
 * @see VIRTIO 1.2 §2.7
 */
import type { WindowViews } from '../mem/window.ts';
import {
  VRING_AVAIL,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC,
  VRING_DESC_F_WRITE,
  VRING_USED_ELEM,
  VRING_USED_F_NO_NOTIFY,
  vringAvailBytes,
  vringDescBytes,
  vringUsedBytes,
} from '../uapi/virtio-ring.ts';
import { needEvent, writeDescriptor } from '../virtqueue/split-driver.ts';
import { FAULT_INDEX, FAULT_NOT_ON_OFFER, FAULT_TOO_LONG } from './user-fault.ts';
import { type RingModule, takeOut, UserRing, type UserRingPlan } from './user-ring.ts';

const { size: RING_HEAD, off: HEAD } = VRING_AVAIL;
const DESC_WORDS = VRING_DESC.size >> 2;
const ELEM_WORDS = VRING_USED_ELEM.size >> 2;
const LEN_WORD = VRING_DESC.off.len >> 2;
/** With calls off, used_event is moved along after so many entries, long before the used index comes round to it. */
const REARM_AFTER = 0x4000;

export class UserSplitRing extends UserRing {
  readonly freshBase = 0;
  readonly #views: WindowViews;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #receives: boolean;
  readonly #room: number;
  // indexes into the 16-bit view
  readonly #availFlagsIdx: number;
  readonly #availIdxIdx: number;
  readonly #availRingIdx: number;
  readonly #usedEventIdx: number;
  readonly #usedFlagsIdx: number;
  readonly #usedIdxIdx: number;
  readonly #availEventIdx: number;
  // and into the 32-bit view
  readonly #descIdx: number;
  readonly #usedRingIdx: number;
  #calls = false;
  #armed = 0;

  constructor(plan: UserRingPlan, views: WindowViews, module?: RingModule) {
    super(plan, views, module);
    const { place, size } = plan;
    this.#views = views;
    this.#eventIdx = plan.eventIdx;
    this.#inOrder = plan.inOrder;
    this.#receives = plan.receives;
    this.#room = plan.room;
    this.#availFlagsIdx = (place.availOff + HEAD.flags) >> 1;
    this.#availIdxIdx = (place.availOff + HEAD.idx) >> 1;
    this.#availRingIdx = (place.availOff + RING_HEAD) >> 1;
    this.#usedEventIdx = this.#availRingIdx + size;
    this.#usedFlagsIdx = (place.usedOff + HEAD.flags) >> 1;
    this.#usedIdxIdx = (place.usedOff + HEAD.idx) >> 1;
    this.#availEventIdx = (place.usedOff + RING_HEAD + VRING_USED_ELEM.size * size) >> 1;
    this.#descIdx = place.descOff >> 2;
    this.#usedRingIdx = (place.usedOff + RING_HEAD) >> 2;
  }

  protected clear(): void {
    const { place, size, buffersOff, stride, addressDelta } = this.plan;
    const { u8 } = this.#views;
    u8.fill(0, place.descOff, place.descOff + vringDescBytes(size));
    u8.fill(0, place.availOff, place.availOff + vringAvailBytes(size));
    u8.fill(0, place.usedOff, place.usedOff + vringUsedBytes(size));
    for (let id = 0; id < size; id++) {
      const addr = buffersOff + id * stride + addressDelta;
      const flags = this.#receives ? VRING_DESC_F_WRITE : 0;
      writeDescriptor(this.#views, place.descOff + VRING_DESC.size * id, addr, this.#room, flags, 0);
    }
  }

  reap(max: number): number {
    if (this.fault !== 0) return 0;
    // Orders the index before the entries and the payload.
    const seen = Atomics.load(this.u16, this.#usedIdxIdx);
    const ready = (seen - this.used) & 0xffff;
    if (ready === 0) return 0;
    if (ready > this.onOffer) {
      this.fault = FAULT_INDEX;
      return 0;
    }
    const n = this.#reapReady(ready, max);
    if (this.fault !== 0) return 0;
    this.used = (this.used + n) & 0xffff;
    this.count += n;
    this.onOffer -= n;
    if (!this.#calls && ((this.used - this.#armed) & 0xffff) > REARM_AFTER) this.disableCalls();
    return n;
  }

  #reapReady(ready: number, max: number): number {
    const { module, size, used, head, count, lenMask } = this;
    const n = Math.min(ready, max);
    if (n <= 0) return 0;
    if (module === undefined) return this.#inOrder ? this.#reapInOrder(ready, max) : this.#reapAny(n);
    const { run, off } = module;
    const [elems, room] = [4 * this.#usedRingIdx, this.#room];
    const found = this.#inOrder
      ? run.reapSplitInOrder(off, size, elems, used, head + count, ready, max, room, lenMask)
      : run.reapSplit(off, size, elems, used, head + count, n, room, lenMask);
    return this.checked(found);
  }

  #reapAny(n: number): number {
    const { i32, posted, own, ownLen, mask, used, lenMask } = this;
    const usedRingIdx = this.#usedRingIdx;
    const room = this.#room;
    const at = this.head + this.count;
    for (let i = 0; i < n; i++) {
      const elem = usedRingIdx + ELEM_WORDS * ((used + i) & mask);
      const id = i32[elem];
      const len = i32[elem + 1] & lenMask;
      if ((id & ~mask) !== 0 || posted[id] === 0) {
        this.fault = FAULT_NOT_ON_OFFER;
        return 0;
      }
      if (len < 0 || len > room) {
        this.fault = FAULT_TOO_LONG;
        return 0;
      }
      posted[id] = 0;
      own[(at + i) & mask] = id;
      ownLen[(at + i) & mask] = len;
    }
    return n;
  }

  /** An entry tells of all buffers up to the one it names; those before that are full (§2.7.9). Buffer i is always at place i. */
  #reapInOrder(ready: number, max: number): number {
    const { i32, own, ownLen, mask, used, lenMask } = this;
    const room = this.#room;
    const at = this.head + this.count;
    let n = 0;
    while (n < ready && n < max) {
      const elem = this.#usedRingIdx + ELEM_WORDS * ((used + n) & mask);
      const id = i32[elem];
      const len = i32[elem + 1] & lenMask;
      const batch = ((id - used - n) & mask) + 1;
      if ((id & ~mask) !== 0 || batch > ready - n) {
        this.fault = FAULT_NOT_ON_OFFER;
        return 0;
      }
      if (len < 0 || len > room) {
        this.fault = FAULT_TOO_LONG;
        return 0;
      }
      for (let i = 0; i < batch; i++, n++) {
        own[(at + n) & mask] = (used + n) & mask;
        ownLen[(at + n) & mask] = room;
      }
      ownLen[(at + n - 1) & mask] = len;
    }
    return n;
  }

  post(n: number): boolean {
    if (n === 0) return false;
    const { u16, avail, module, size, head } = this;
    if (module !== undefined) {
      const offer = this.#receives ? module.run.offer : module.run.offerLengths;
      offer(module.off, size, 2 * this.#availRingIdx, 4 * this.#descIdx, avail, head, n);
    } else if (this.#receives) this.#offer(n);
    else this.#offerLengths(n);
    this.give(n);
    const now = (avail + n) & 0xffff;
    this.avail = now;
    // Orders buffers, descriptors and entries before the index, and the index before reading the device's wish below.
    Atomics.store(u16, this.#availIdxIdx, now);
    if (this.#eventIdx) return needEvent(Atomics.load(u16, this.#availEventIdx), now, avail);
    return (Atomics.load(u16, this.#usedFlagsIdx) & VRING_USED_F_NO_NOTIFY) === 0;
  }

  /** Fills the next `n` entries of the available ring. */
  #offer(n: number): void {
    const { u16, own, posted, mask, head, avail } = this;
    const availRingIdx = this.#availRingIdx;
    for (let i = 0; i < n; i++) {
      const id = own[(head + i) & mask];
      const entry = availRingIdx + ((avail + i) & mask);
      posted[id] = 1;
      if (u16[entry] !== id) u16[entry] = id;
    }
  }

  /** The same, with the descriptors' lengths. */
  #offerLengths(n: number): void {
    const { u16, i32, own, ownLen, posted, mask, head, avail } = this;
    const availRingIdx = this.#availRingIdx;
    const lenIdx = this.#descIdx + LEN_WORD;
    for (let i = 0; i < n; i++) {
      const at = (head + i) & mask;
      const id = own[at];
      const len = ownLen[at];
      const entry = availRingIdx + ((avail + i) & mask);
      const word = lenIdx + DESC_WORDS * id;
      posted[id] = 1;
      if (u16[entry] !== id) u16[entry] = id;
      if (i32[word] !== len) i32[word] = len;
    }
  }

  enableCalls(): boolean {
    this.#calls = true;
    // Orders the wish before the look at the used index: what is used after the look leads to a call.
    if (this.#eventIdx) Atomics.store(this.u16, this.#usedEventIdx, this.used);
    else Atomics.store(this.u16, this.#availFlagsIdx, 0);
    return Atomics.load(this.u16, this.#usedIdxIdx) === this.used;
  }

  disableCalls(): void {
    this.#calls = false;
    this.#armed = this.used;
    // Under EVENT_IDX the flags stay 0 (§2.7.7.1); an event index just passed is 2¹⁶ − 1 entries away.
    if (this.#eventIdx) Atomics.store(this.u16, this.#usedEventIdx, (this.used - 1) & 0xffff);
    else Atomics.store(this.u16, this.#availFlagsIdx, VRING_AVAIL_F_NO_INTERRUPT);
  }

  resumeBase(): number | undefined {
    const { u16, i32, mask, used, avail } = this;
    const seen = Atomics.load(u16, this.#usedIdxIdx);
    const ready = (seen - used) & 0xffff;
    if (this.fault !== 0 || ready > this.onOffer) return undefined;
    if (this.#inOrder) return seen;
    const left = this.posted.slice();
    for (let i = 0; i < ready; i++)
      if (!takeOut(left, i32[this.#usedRingIdx + ELEM_WORDS * ((used + i) & mask)])) return undefined;
    for (let i = seen; i !== avail; i = (i + 1) & 0xffff)
      if (!takeOut(left, u16[this.#availRingIdx + (i & mask)])) return undefined;
    return seen;
  }
}
