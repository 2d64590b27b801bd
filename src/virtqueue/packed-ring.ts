/**
 * The device side of a packed virtqueue: one ring of descriptors that both sides write, told apart by two flags and the wrap
 * counter, and an event suppression structure each way.
 * @see VIRTIO 1.2 §2.8
 */
import type { AddressMap } from '../mem/address-map.ts';
import type { DirtyLog } from '../mem/dirty-log.ts';
import type { WindowViews } from '../mem/window.ts';
import type { Caller } from '../sys/eventfd.ts';
import {
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
} from '../uapi/virtio-ring.ts';
import { appendBuffer, appendIndirect, CHAIN_NONE, chainFault, MAX_CHAIN_BYTES } from './chain.ts';
import { FAULT_ADDRESS, FAULT_CHAIN_LOOP, FAULT_INDIRECT, FAULT_INFLIGHT } from './fault.ts';
import type { RingConfig } from './ring-config.ts';
import type { RingRecords } from './ring-records.ts';
import { MAX_SEGMENTS, type SegmentList } from './segments.ts';
import { STATE_FORMAT, Vring } from './vring.ts';

/** An available descriptor has the one of these flags that its lap's wrap counter says; a used one both or neither (§2.8.1). */
export const AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL;
export const USED = 1 << VRING_PACKED_DESC_F_USED;
export const AVAIL_USED = AVAIL | USED;
const INDEX_MASK = (1 << VRING_PACKED_EVENT_F_WRAP_CTR) - 1;

const { off: DESC } = VRING_PACKED_DESC;

/** The descriptors of a chain that a predecessor has left. */
const copied = new DataView(new ArrayBuffer(VRING_PACKED_DESC.size * MAX_SEGMENTS));
const copiedWords = new Int32Array(copied.buffer);

export class PackedRing extends Vring {
  readonly packed = true;
  /** the window of the descriptor ring, and where it begins there */
  readonly window: number;
  readonly descOff: number;
  readonly #u16: Uint16Array;
  readonly #dv: DataView;
  readonly #driverEvent: Uint16Array;
  /** off_wrap; the flags follow */
  readonly #driverIdx: number;
  readonly #deviceEvent: Uint16Array;
  readonly #deviceIdx: number;
  readonly #deviceWindow: number;
  /** the slot that `markUsed` began with */
  #first = 0;

  /** the position: a descriptor, and the wrap counter in this lap of the ring */
  next: number;
  wrap: number;
  /** slots published since the driver was last asked whether it wants to be notified; 0 for none, at most `num` */
  #unsignalled = 0;
  #signalledValid = false;

  /**
   * The ring goes on at the used position of its base: a back end hands every buffer back before it stops, so what is available
   * behind it has not been done. Where the base has none, zero, the avail position counts: DPDK's virtio-user gives no more than
   * that, and its vhost library answers no more, which then comes to us when the guest migrates.
   */
  constructor(
    config: RingConfig,
    map: AddressMap,
    windows: readonly WindowViews[],
    caller: Caller,
    state?: SharedArrayBuffer,
  ) {
    super(config, map, windows, caller, state);
    const { desc, avail, used } = config;
    const base = config.base >>> 16 || config.base & 0xffff;
    this.window = desc.window;
    this.descOff = desc.off;
    this.#u16 = windows[desc.window].u16;
    this.#dv = windows[desc.window].dv;
    this.#driverEvent = windows[avail.window].u16;
    this.#driverIdx = avail.off >> 1;
    this.#deviceEvent = windows[used.window].u16;
    this.#deviceIdx = used.off >> 1;
    this.#deviceWindow = used.window;
    // a base beyond the ring is the front end's mistake, and its alone
    this.next = (base & INDEX_MASK) % config.num;
    this.wrap = base >>> VRING_PACKED_EVENT_F_WRAP_CTR;
    this.suppressKicks();
  }

  protected load(state: Int32Array): void {
    this.next = state[STATE_FORMAT];
    this.wrap = state[STATE_FORMAT + 1];
    this.#unsignalled = state[STATE_FORMAT + 2];
    this.#signalledValid = state[STATE_FORMAT + 3] === 1;
  }

  protected save(state: Int32Array): void {
    state[STATE_FORMAT] = this.next;
    state[STATE_FORMAT + 1] = this.wrap;
    state[STATE_FORMAT + 2] = this.#unsignalled;
    state[STATE_FORMAT + 3] = this.#signalledValid ? 1 : 0;
  }

  get base(): number {
    const position = this.#offWrap(this.next, this.wrap);
    return ((position << 16) | position) >>> 0;
  }

  #offWrap(slot: number, wrap: number): number {
    return slot | (wrap << VRING_PACKED_EVENT_F_WRAP_CTR);
  }

  /** The descriptor `ahead` of the position, at most a lap; and the wrap counter there. */
  slotAt(ahead: number): number {
    const slot = this.next + ahead;
    return slot < this.num ? slot : slot - this.num;
  }

  wrapAt(ahead: number): number {
    return this.next + ahead < this.num ? this.wrap : this.wrap ^ 1;
  }

  /** True if the driver has made the slot `ahead` available. Orders that before reading what is in it. */
  #available(ahead: number): boolean {
    const flags = Atomics.load(
      this.#u16,
      (this.descOff + VRING_PACKED_DESC.size * this.slotAt(ahead) + DESC.flags) >> 1,
    );
    return (flags & AVAIL_USED) === (this.wrapAt(ahead) === 1 ? AVAIL : USED);
  }

  refresh(): number {
    this.ready = this.#available(0) ? this.num : 0;
    return this.ready;
  }

  /** A driver makes slots available in order. */
  holds(slots: number): boolean {
    return this.refresh() > 0 && this.#available(Math.min(slots, this.num) - 1);
  }

  /**
   * At the used index of the records, which know better than the base where the predecessor stopped. What it had taken and not used
   * is available there.
   */
  protected resume(records: RingRecords): boolean {
    const { packedBase } = records;
    this.next = (packedBase >>> 16) & INDEX_MASK;
    this.wrap = packedBase >>> 31;
    if (this.log !== undefined) {
      // recovery has set flags there
      this.markUsed(this.log, records.pending);
      this.flushLog(this.log);
    }
    return records.pending === 0 || this.#available(0);
  }

  chainAt(ahead: number, direction: number, out: SegmentList): number {
    if (ahead >= this.num) return CHAIN_NONE;
    const { records } = this;
    if (records !== undefined && ahead < records.pending)
      return this.#pendingChain(records, records.pendingAt(ahead), direction, out);
    if (!this.#available(ahead)) return CHAIN_NONE;
    return this.#chain(this.#dv, this.descOff, this.slotAt(ahead), this.num - ahead, direction, out);
  }

  /** A chain that a predecessor has left: what stands in the ring may be used elements already. */
  #pendingChain(records: RingRecords, entry: number, direction: number, out: SegmentList): number {
    const slots = records.slotsOf(entry);
    if (slots > MAX_SEGMENTS) return chainFault(this, FAULT_CHAIN_LOOP);
    records.descriptors(entry, copiedWords);
    const total = this.#chain(copied, 0, 0, slots, direction, out);
    return total < 0 || this.chainSlots === slots ? total : chainFault(this, FAULT_INFLIGHT);
  }

  /** Appends the chain that begins with descriptor `first` of the ring at `off` in `dv`, and has `limit` descriptors at most. */
  #chain(dv: DataView, off: number, first: number, limit: number, direction: number, out: SegmentList): number {
    let total = 0;
    for (let steps = 1; ; steps++) {
      if (steps > limit || steps > MAX_SEGMENTS) return chainFault(this, FAULT_CHAIN_LOOP);
      const slot = first + steps - 1;
      const at = off + VRING_PACKED_DESC.size * (slot < this.num ? slot : slot - this.num);
      const lo = dv.getInt32(at, true);
      const hi = dv.getInt32(at + 4, true);
      const len = dv.getInt32(at + DESC.len, true);
      const idFlags = dv.getInt32(at + DESC.id, true);
      const flags = idFlags >>> 16;
      const indirect = (flags & VRING_DESC_F_INDIRECT) !== 0;
      // §2.8.19: an indirect descriptor is a chain of its own
      if (indirect && (steps > 1 || (flags & VRING_DESC_F_NEXT) !== 0)) return chainFault(this, FAULT_INDIRECT);
      this.chainSlots = steps;
      const bytes = indirect
        ? appendIndirect(this, lo, hi, len, false, direction, out)
        : appendBuffer(this, lo, hi, len, flags, direction, out);
      if (bytes < 0) return bytes;
      total += bytes;
      if (total > MAX_CHAIN_BYTES) return chainFault(this, FAULT_ADDRESS);
      if ((flags & VRING_DESC_F_NEXT) !== 0) continue;
      this.chainId = idFlags & 0xffff;
      return total;
    }
  }

  /**
   * All but the element at the position become visible at once, which does not matter: the driver looks at them after that one
   * (§2.8.9), which `publish` shows.
   */
  putUsed(ahead: number, id: number, len: number): void {
    const at = this.descOff + VRING_PACKED_DESC.size * this.slotAt(ahead);
    this.#dv.setInt32(at + DESC.len, len, true);
    this.#dv.setUint16(at + DESC.id, id, true);
    if (ahead > 0) this.#dv.setUint16(at + DESC.flags, this.usedFlags(ahead, len > 0), true);
  }

  /** The flags of a used element (§2.8.1, §2.8.13). */
  usedFlags(ahead: number, written: boolean): number {
    return (this.wrapAt(ahead) === 1 ? AVAIL_USED : 0) | (written ? VRING_DESC_F_WRITE : 0);
  }

  /** Orders the used elements, and the data they speak of, before the first one's flags. */
  protected show(slots: number, written: boolean): void {
    const at = this.descOff + VRING_PACKED_DESC.size * this.next;
    Atomics.store(this.#u16, (at + DESC.flags) >> 1, this.usedFlags(0, written));
    this.wrap = this.wrapAt(slots);
    this.next = this.slotAt(slots);
    this.ready = 0;
    this.#unsignalled = Math.min(this.num, this.#unsignalled + slots);
  }

  protected callWanted(): boolean {
    const published = this.#unsignalled;
    this.#unsignalled = 0;
    const flags = Atomics.load(this.#driverEvent, this.#driverIdx + 1) & 3;
    if (flags === VRING_PACKED_EVENT_FLAG_DISABLE) return false;
    const first = !this.#signalledValid;
    this.#signalledValid = true;
    if (flags !== VRING_PACKED_EVENT_FLAG_DESC || !this.eventIdx || first) return true;
    const offWrap = Atomics.load(this.#driverEvent, this.#driverIdx);
    return this.#passed(offWrap & INDEX_MASK, offWrap >> VRING_PACKED_EVENT_F_WRAP_CTR, published);
  }

  /** True if the slot in that lap is one of the `published` ones before the position. */
  #passed(slot: number, wrap: number, published: number): boolean {
    const distance = this.next - slot + (wrap === this.wrap ? 0 : this.num);
    return distance > 0 && distance <= published;
  }

  protected setEvents(wanted: boolean, ahead: number): void {
    if (!wanted) {
      Atomics.store(this.#deviceEvent, this.#deviceIdx + 1, VRING_PACKED_EVENT_FLAG_DISABLE);
      return;
    }
    if (this.eventIdx) {
      const position = this.#offWrap(this.slotAt(ahead), this.wrapAt(ahead));
      Atomics.store(this.#deviceEvent, this.#deviceIdx, position);
    }
    const flags = this.eventIdx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE;
    Atomics.store(this.#deviceEvent, this.#deviceIdx + 1, flags);
  }

  /** The last slots of chains lie in between, and are marked too. */
  protected markUsed(log: DirtyLog, slots: number): void {
    const first = Math.min(slots, this.num - this.next);
    log.mark(this.window, this.descOff + VRING_PACKED_DESC.size * this.next, VRING_PACKED_DESC.size * first);
    log.mark(this.window, this.descOff, VRING_PACKED_DESC.size * (slots - first));
    this.#first = this.next;
  }

  /** The flags of the first used element, and the device area. */
  protected markShown(log: DirtyLog): void {
    log.mark(this.window, this.descOff + VRING_PACKED_DESC.size * this.#first, VRING_PACKED_DESC.size);
    log.mark(this.#deviceWindow, 2 * this.#deviceIdx, VRING_PACKED_DESC_EVENT.size);
  }
}
