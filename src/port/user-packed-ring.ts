/**
 * A packed ring of buffers that are made once.
 * @see VIRTIO 1.2 §2.8
 */
import type { WindowViews } from '../mem/window.ts';
import {
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
import { packedNeedEvent } from '../virtqueue/packed-driver.ts';
import { FAULT_NOT_ON_OFFER, FAULT_TOO_LONG } from './user-fault.ts';
import { type RingModule, takeOut, UserRing, type UserRingPlan } from './user-ring.ts';

const DESC_WORDS = VRING_PACKED_DESC.size >> 2;
const LEN_WORD = VRING_PACKED_DESC.off.len >> 2;
/** id in the lower half, flags in the upper: each is read and written with the other */
const FLAGS_WORD = VRING_PACKED_DESC.off.id >> 2;
const AVAIL = 1 << (16 + VRING_PACKED_DESC_F_AVAIL);
const USED = 1 << (16 + VRING_PACKED_DESC_F_USED);
const WRITE = VRING_DESC_F_WRITE << 16;
const WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;

/** Positions are counted modulo twice the size: the upper bit is the lap's, whose wrap counter is 1 where it is 0. */
export class UserPackedRing extends UserRing {
  readonly freshBase = WRAP + WRAP * 0x10000;
  readonly #views: WindowViews;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #receives: boolean;
  readonly #room: number;
  // indexes into the 32-bit view: off_wrap of an event structure in the lower half, flags in the upper
  readonly #descIdx: number;
  readonly #driverEventIdx: number;
  readonly #deviceEventIdx: number;

  constructor(plan: UserRingPlan, views: WindowViews, module?: RingModule) {
    super(plan, views, module);
    const { place } = plan;
    this.#views = views;
    this.#eventIdx = plan.eventIdx;
    this.#inOrder = plan.inOrder;
    this.#receives = plan.receives;
    this.#room = plan.room;
    this.#descIdx = place.descOff >> 2;
    this.#driverEventIdx = place.availOff >> 2;
    this.#deviceEventIdx = place.usedOff >> 2;
  }

  protected clear(): void {
    const { place, size } = this.plan;
    const { u8 } = this.#views;
    u8.fill(0, place.descOff, place.descOff + vringPackedDescBytes(size));
    u8.fill(0, place.availOff, place.availOff + VRING_PACKED_DESC_EVENT.size);
    u8.fill(0, place.usedOff, place.usedOff + VRING_PACKED_DESC_EVENT.size);
  }

  /** Flags of a descriptor that is used in the lap of position `at`. */
  #usedFlags(at: number): number {
    return (at & this.size) === 0 ? AVAIL | USED : 0;
  }

  reap(max: number): number {
    const most = Math.min(max, this.onOffer);
    if (this.fault !== 0 || most <= 0) return 0;
    const n = this.module === undefined ? this.#reap(most) : this.#reapBy(this.module, most);
    if (this.fault !== 0) return 0;
    this.used = (this.used + n) & (2 * this.size - 1);
    this.count += n;
    this.onOffer -= n;
    return n;
  }

  #reapBy({ run, off }: RingModule, most: number): number {
    const { size, used, head, count, onOffer, lenMask } = this;
    const reap = this.#inOrder ? run.reapPackedInOrder : run.reapPacked;
    return this.checked(reap(off, size, 4 * this.#descIdx, used, head + count, most, onOffer, this.#room, lenMask));
  }

  #reap(most: number): number {
    const { i32, posted, own, ownLen, mask, lenMask, onOffer } = this;
    const descIdx = this.#descIdx;
    const room = this.#room;
    const at = this.head + this.count;
    let used = this.used;
    let n = 0;
    while (n < most) {
      const desc = descIdx + DESC_WORDS * (used & mask);
      // Orders the flags before the descriptor and the payload.
      const word = Atomics.load(i32, desc + FLAGS_WORD);
      if ((word & (AVAIL | USED)) !== this.#usedFlags(used)) break;
      const id = word & 0xffff;
      // Without WRITE the length means nothing (§2.8.4).
      const len = (word & WRITE) === 0 ? 0 : i32[desc + LEN_WORD] & lenMask;
      if (id > mask || posted[id] === 0) {
        this.fault = FAULT_NOT_ON_OFFER;
        return 0;
      }
      if (len < 0 || len > room) {
        this.fault = FAULT_TOO_LONG;
        return 0;
      }
      // In order, a descriptor tells of all buffers up to the one it names; those before that are full (§2.8.8).
      const batch = this.#inOrder ? ((id - used) & mask) + 1 : 1;
      if (batch > onOffer - n) {
        this.fault = FAULT_NOT_ON_OFFER;
        return 0;
      }
      for (let i = 0; i < batch; i++, n++) {
        const taken = this.#inOrder ? (used + i) & mask : id;
        posted[taken] = 0;
        own[(at + n) & mask] = taken;
        ownLen[(at + n) & mask] = room;
      }
      ownLen[(at + n - 1) & mask] = len;
      used += batch;
    }
    return n;
  }

  post(n: number): boolean {
    if (n === 0) return false;
    const { i32, own, mask, size, head, avail, module } = this;
    const descIdx = this.#descIdx;
    if (module === undefined) this.#describe(n);
    else {
      const { stride, buffersOff, plan } = this;
      const address = buffersOff + plan.addressDelta;
      const receives = this.#receives ? 1 : 0;
      module.run.postPacked(module.off, size, 4 * descIdx, avail, head, n, address, stride, receives, this.#room);
    }
    const kind = this.#receives ? WRITE : 0;
    const word = own[head] | kind | ((avail & size) === 0 ? AVAIL : USED);
    // The first one last: at its flags a device stops (§2.8.6). Orders all descriptors before them, and them before reading the
    // device's wish below.
    Atomics.store(i32, descIdx + DESC_WORDS * (avail & mask) + FLAGS_WORD, word);
    this.give(n);
    const next = (avail + n) & (2 * size - 1);
    this.avail = next;
    const event = Atomics.load(i32, this.#deviceEventIdx);
    const flags = (event >>> 16) & 3;
    if (flags === VRING_PACKED_EVENT_FLAG_DISABLE) return false;
    if (flags !== VRING_PACKED_EVENT_FLAG_DESC || !this.#eventIdx) return true;
    return packedNeedEvent(event & 0xffff, next & mask, (next & size) === 0, n, size);
  }

  /** Makes descriptors of the first `n` of our own buffers, the first of them without id and flags. */
  #describe(n: number): void {
    const { i32, own, ownLen, order, posted, mask, size, head, avail, buffersOff, stride } = this;
    const { addressDelta } = this.plan;
    const descIdx = this.#descIdx;
    const receives = this.#receives;
    const kind = receives ? WRITE : 0;
    const room = this.#room;
    for (let i = 0; i < n; i++) {
      const at = (head + i) & mask;
      const place = (avail + i) & mask;
      const id = own[at];
      const desc = descIdx + DESC_WORDS * place;
      posted[id] = 1;
      order[place] = id;
      i32[desc] = buffersOff + id * stride + addressDelta;
      i32[desc + 1] = 0;
      i32[desc + LEN_WORD] = receives ? room : ownLen[at];
      if (i > 0) i32[desc + FLAGS_WORD] = id | kind | (((avail + i) & size) === 0 ? AVAIL : USED);
    }
  }

  /** Nothing that is used waits to be taken back. */
  #idle(): boolean {
    const word = Atomics.load(this.i32, this.#descIdx + DESC_WORDS * (this.used & this.mask) + FLAGS_WORD);
    return this.onOffer === 0 || (word & (AVAIL | USED)) !== this.#usedFlags(this.used);
  }

  enableCalls(): boolean {
    const offWrap = (this.used & this.mask) | ((this.used & this.size) === 0 ? WRAP : 0);
    const flags = this.#eventIdx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE;
    // Orders the wish before the look at the ring: what is used after the look leads to a call.
    Atomics.store(this.i32, this.#driverEventIdx, (flags << 16) | (this.#eventIdx ? offWrap : 0));
    return this.#idle();
  }

  disableCalls(): void {
    Atomics.store(this.i32, this.#driverEventIdx, VRING_PACKED_EVENT_FLAG_DISABLE << 16);
  }

  resumeBase(): number | undefined {
    if (this.fault !== 0) return undefined;
    const { i32, mask, size, order, avail } = this;
    const positions = 2 * size - 1;
    const left = this.posted.slice();
    let at = this.used;
    for (let n = this.onOffer; n > 0; ) {
      const word = i32[this.#descIdx + DESC_WORDS * (at & mask) + FLAGS_WORD];
      if ((word & (AVAIL | USED)) !== this.#usedFlags(at)) break;
      const id = word & 0xffff;
      const batch = this.#inOrder ? ((id - at) & mask) + 1 : 1;
      if (batch > n || (!this.#inOrder && !takeOut(left, id))) return undefined;
      at = (at + batch) & positions;
      n -= batch;
    }
    const half = (at & mask) | ((at & size) === 0 ? WRAP : 0);
    for (; at !== avail && !this.#inOrder; at = (at + 1) & positions)
      if (!takeOut(left, order[at & mask])) return undefined;
    return half + half * 0x10000;
  }
}
