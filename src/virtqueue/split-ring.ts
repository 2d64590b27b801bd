/**
 * The device side of a split virtqueue: where its parts lie, its indexes, and notifications both ways.
 * @see VIRTIO 1.2 §2.7
 */
import type { AddressMap } from '../mem/address-map.ts';
import type { DirtyLog } from '../mem/dirty-log.ts';
import type { WindowViews } from '../mem/window.ts';
import type { Caller } from '../sys/eventfd.ts';
import {
  VRING_AVAIL,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_USED_ELEM,
  VRING_USED_F_NO_NOTIFY,
} from '../uapi/virtio-ring.ts';
import { appendBuffer, appendIndirect, CHAIN_NONE, chainFault, MAX_CHAIN_BYTES } from './chain.ts';
import {
  FAULT_ADDRESS,
  FAULT_AVAIL_JUMP,
  FAULT_CHAIN_LOOP,
  FAULT_DESC_RANGE,
  FAULT_HEAD_RANGE,
  FAULT_INDIRECT,
} from './fault.ts';
import type { RingConfig } from './ring-config.ts';
import type { RingRecords } from './ring-records.ts';
import { MAX_SEGMENTS, type SegmentList } from './segments.ts';
import { STATE_FORMAT, Vring } from './vring.ts';

export class SplitRing extends Vring {
  readonly packed = false;
  readonly mask: number;

  /** the window that holds all parts of the ring, or −1 if there is none; and their offsets in it, of the rings without their heads */
  readonly window: number;
  readonly descOff: number;
  readonly availRingOff: number;
  readonly usedRingOff: number;
  /** the descriptor table: four 32-bit words an entry */
  readonly desc: Int32Array;
  readonly descIdx: number;
  readonly #descView: DataView;
  /** the driver area: flags, idx, ring, used_event */
  readonly avail: Uint16Array;
  readonly availIdx: number;
  /** the device area: flags and idx as u16, ring as u32 pairs, avail_event */
  readonly used16: Uint16Array;
  readonly usedIdx16: number;
  readonly used32: Int32Array;
  readonly usedRingIdx: number;
  readonly #usedWindow: number;
  readonly #usedLogAddr: number | undefined;

  /** the position: next entry of the avail ring to take and of the used ring to fill; runs freely modulo 2¹⁶ */
  next: number;
  /** the used index at the last notification */
  #signalled: number;
  #signalledValid = false;

  /**
   * The ring goes on behind the last used entry: a back end hands every buffer back before it stops, so what is available behind
   * it has not been done, whoever stopped how.
   */
  constructor(
    config: RingConfig,
    map: AddressMap,
    windows: readonly WindowViews[],
    caller: Caller,
    state?: SharedArrayBuffer,
  ) {
    super(config, map, windows, caller, state);
    this.mask = config.num - 1;
    const { desc, avail, used } = config;
    this.window = desc.window === avail.window && desc.window === used.window ? desc.window : -1;
    this.descOff = desc.off;
    this.availRingOff = avail.off + VRING_AVAIL.size;
    this.usedRingOff = used.off + VRING_AVAIL.size;
    this.desc = windows[desc.window].i32;
    this.descIdx = desc.off >> 2;
    this.#descView = windows[desc.window].dv;
    this.avail = windows[avail.window].u16;
    this.availIdx = avail.off >> 1;
    this.#usedWindow = used.window;
    this.#usedLogAddr = config.usedLogAddr;
    this.used16 = windows[used.window].u16;
    this.usedIdx16 = used.off >> 1;
    this.used32 = windows[used.window].i32;
    this.usedRingIdx = (used.off >> 2) + 1;
    this.next = Atomics.load(this.used16, this.usedIdx16 + 1);
    this.#signalled = this.next;
    this.suppressKicks();
  }

  protected load(state: Int32Array): void {
    this.next = state[STATE_FORMAT];
    this.#signalled = state[STATE_FORMAT + 1];
    this.#signalledValid = state[STATE_FORMAT + 2] === 1;
  }

  protected save(state: Int32Array): void {
    state[STATE_FORMAT] = this.next;
    state[STATE_FORMAT + 1] = this.#signalled;
    state[STATE_FORMAT + 2] = this.#signalledValid ? 1 : 0;
  }

  get base(): number {
    return this.next;
  }

  /** Orders the read of the index before those of the entries and descriptors behind it (§2.7.13.3). */
  refresh(): number {
    const ready = (Atomics.load(this.avail, this.availIdx + 1) - this.next) & 0xffff;
    if (ready > this.num) {
      this.fault = FAULT_AVAIL_JUMP;
      this.ready = 0;
      return 0;
    }
    this.ready = ready;
    return ready;
  }

  holds(slots: number): boolean {
    return this.refresh() >= Math.min(slots, this.num);
  }

  /** What was taken and not used lies between the used and the avail index. */
  protected resume(records: RingRecords): boolean {
    return records.pending <= ((Atomics.load(this.avail, this.availIdx + 1) - this.next) & 0xffff);
  }

  chainAt(ahead: number, direction: number, out: SegmentList): number {
    if (ahead >= this.ready) return CHAIN_NONE;
    const { records } = this;
    const head =
      records !== undefined && ahead < records.pending
        ? records.pendingAt(ahead)
        : this.avail[this.availIdx + 2 + ((this.next + ahead) & this.mask)];
    if (head >= this.num) return chainFault(this, FAULT_HEAD_RANGE);
    this.chainId = head;
    this.chainSlots = 1;
    return this.#appendChain(head, direction, out);
  }

  #appendChain(head: number, direction: number, out: SegmentList): number {
    const table = this.#descView;
    let i = head;
    let total = 0;
    for (let steps = 1; ; steps++) {
      const at = this.descOff + VRING_DESC.size * i;
      const lo = table.getInt32(at, true);
      const hi = table.getInt32(at + 4, true);
      const len = table.getInt32(at + 8, true);
      const flagsNext = table.getInt32(at + 12, true);
      const indirect = (flagsNext & VRING_DESC_F_INDIRECT) !== 0;
      if (indirect && (flagsNext & VRING_DESC_F_NEXT) !== 0) return chainFault(this, FAULT_INDIRECT);
      const bytes = indirect
        ? appendIndirect(this, lo, hi, len, true, direction, out)
        : appendBuffer(this, lo, hi, len, flagsNext, direction, out);
      if (bytes < 0) return bytes;
      total += bytes;
      if (total > MAX_CHAIN_BYTES) return chainFault(this, FAULT_ADDRESS);
      if ((flagsNext & VRING_DESC_F_NEXT) === 0) return total;
      if (steps >= this.num || steps >= MAX_SEGMENTS) return chainFault(this, FAULT_CHAIN_LOOP);
      i = flagsNext >>> 16;
      if (i >= this.num) return chainFault(this, FAULT_DESC_RANGE);
    }
  }

  putUsed(ahead: number, id: number, len: number): void {
    const at = this.usedRingIdx + 2 * ((this.next + ahead) & this.mask);
    this.used32[at] = id;
    this.used32[at + 1] = len;
  }

  /** Orders the used entries, and the data they speak of, before the index (§2.7.8.2). */
  protected show(slots: number): void {
    this.next = (this.next + slots) & 0xffff;
    this.ready -= slots;
    Atomics.store(this.used16, this.usedIdx16 + 1, this.next);
  }

  protected callWanted(): boolean {
    if (!this.eventIdx) return (Atomics.load(this.avail, this.availIdx) & VRING_AVAIL_F_NO_INTERRUPT) === 0;
    const event = Atomics.load(this.avail, this.availIdx + 2 + this.num);
    const before = this.#signalled;
    const first = !this.#signalledValid;
    this.#signalled = this.next;
    this.#signalledValid = true;
    return first || crossed(event, this.next, before);
  }

  /** With event index a stale avail_event does as much as the flag. */
  protected setEvents(wanted: boolean, ahead: number): void {
    if (!this.eventIdx) Atomics.store(this.used16, this.usedIdx16, wanted ? 0 : VRING_USED_F_NO_NOTIFY);
    else if (wanted) Atomics.store(this.used16, this.usedIdx16 + 2 + 4 * this.num, this.next + ahead);
  }

  protected markUsed(log: DirtyLog, slots: number): void {
    const from = this.next & this.mask;
    const first = Math.min(slots, this.num - from);
    this.#mark(log, VRING_AVAIL.size + VRING_USED_ELEM.size * from, VRING_USED_ELEM.size * first);
    this.#mark(log, VRING_AVAIL.size, VRING_USED_ELEM.size * (slots - first));
  }

  /** Flags and index, and avail_event. */
  protected markShown(log: DirtyLog): void {
    this.#mark(log, 0, VRING_AVAIL.size);
    this.#mark(log, VRING_AVAIL.size + VRING_USED_ELEM.size * this.num, 2);
  }

  /** Marks `len` bytes at `off` of the used ring. */
  #mark(log: DirtyLog, off: number, len: number): void {
    if (this.#usedLogAddr === undefined) log.mark(this.#usedWindow, this.usedRingOff - VRING_AVAIL.size + off, len);
    else log.markGuest(this.#usedLogAddr + off, len);
  }
}

/** True if going from index `before` to `now` passed `event`: vring_need_event of linux/virtio_ring.h. */
export function crossed(event: number, now: number, before: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
}
