/**
 * The device side of a split virtqueue: where its parts lie, its indexes, and notifications both ways.
 * Walking descriptors is in `chain.ts`, the two directions are in `dequeue.ts` and `enqueue.ts`.
 * @see VIRTIO 1.2 §2.7
 */
import type { AddressMap } from '../mem/address-map.ts';
import type { Place } from '../mem/guest-memory.ts';
import type { WindowViews } from '../mem/window.ts';
import type { Caller } from '../sys/eventfd.ts';
import { VRING_AVAIL, VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY } from '../uapi/virtio-ring.ts';
import { NO_FD } from '../vhost/vhost-device.ts';
import { FAULT_AVAIL_JUMP, FAULT_NONE } from './fault.ts';

/** Everything a ring needs to start; survives postMessage. The main thread has checked alignment and bounds. */
export interface SplitRingConfig {
  /** descriptors, a power of two */
  readonly num: number;
  readonly desc: Place;
  readonly avail: Place;
  readonly used: Place;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  /** eventfds, or NO_FD; they stay the device's */
  readonly kickFd: number;
  readonly callFd: number;
  /** bytes of device header in front of every packet */
  readonly headerLen: number;
  /** RX: a packet may take several chains */
  readonly mergeable: boolean;
}

/** What a ring needs besides its own configuration. */
export interface VringConfig {
  readonly ring: SplitRingConfig;
  readonly enabled: boolean;
  /** eventfd that hears of faults, or NO_FD; it stays the device's */
  readonly errFd: number;
}

export class SplitRing {
  readonly num: number;
  readonly mask: number;
  map: AddressMap;
  readonly windows: readonly WindowViews[];
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  readonly headerLen: number;
  readonly mergeable: boolean;
  readonly kickFd: number;
  callFd: number;

  /** the window that holds all parts of the ring, or −1 if there is none; and their offsets in it, of the rings without their heads */
  readonly window: number;
  readonly descOff: number;
  readonly availRingOff: number;
  readonly usedRingOff: number;
  /** the descriptor table: four 32-bit words an entry */
  readonly desc: Int32Array;
  readonly descIdx: number;
  readonly descView: DataView;
  /** the driver area: flags, idx, ring, used_event */
  readonly avail: Uint16Array;
  readonly availIdx: number;
  /** the device area: flags and idx as u16, ring as u32 pairs, avail_event */
  readonly used16: Uint16Array;
  readonly usedIdx16: number;
  readonly used32: Int32Array;
  readonly usedRingIdx: number;

  /** next entry of the avail ring to take, next of the used ring to fill; both run freely modulo 2¹⁶ */
  nextAvail: number;
  nextUsed: number;
  /** avail entries known to be there, from `nextAvail` on */
  ready = 0;
  readonly #caller: Caller;
  /** the used index at the last notification */
  #signalled: number;
  #signalledValid = false;
  /** one of FAULT_…; a ring at fault is not touched any more */
  fault = FAULT_NONE;
  /** notifications asked for and held back, and those the call eventfd did not take */
  calls = 0;
  callsSuppressed = 0;
  callsFailed = 0;

  /**
   * `windows` is by window id and holds those that the config and `map` name. The ring goes on behind the last used entry: a
   * back end hands every buffer back before it stops, so what is available behind it has not been done, whoever stopped how.
   */
  constructor(config: SplitRingConfig, map: AddressMap, windows: readonly WindowViews[], caller: Caller) {
    this.#caller = caller;
    this.num = config.num;
    this.mask = config.num - 1;
    this.map = map;
    this.windows = windows;
    this.eventIdx = config.eventIdx;
    this.indirect = config.indirect;
    this.headerLen = config.headerLen;
    this.mergeable = config.mergeable;
    this.kickFd = config.kickFd;
    this.callFd = config.callFd;
    const { desc, avail, used } = config;
    this.window = desc.window === avail.window && desc.window === used.window ? desc.window : -1;
    this.descOff = desc.off;
    this.availRingOff = avail.off + VRING_AVAIL.size;
    this.usedRingOff = used.off + VRING_AVAIL.size;
    this.desc = windows[config.desc.window].i32;
    this.descIdx = config.desc.off >> 2;
    this.descView = windows[config.desc.window].dv;
    this.avail = windows[config.avail.window].u16;
    this.availIdx = config.avail.off >> 1;
    this.used16 = windows[config.used.window].u16;
    this.usedIdx16 = config.used.off >> 1;
    this.used32 = windows[config.used.window].i32;
    this.usedRingIdx = (config.used.off >> 2) + 1;
    this.nextUsed = Atomics.load(this.used16, this.usedIdx16 + 1);
    this.nextAvail = this.nextUsed;
    this.#signalled = this.nextUsed;
    this.suppressKicks();
  }

  /**
   * Looks for new avail entries. Orders the read of the index before those of the entries and descriptors behind it (§2.7.13.3).
   * @returns entries ready; 0 also when the ring is at fault
   */
  refresh(): number {
    const ready = (Atomics.load(this.avail, this.availIdx + 1) - this.nextAvail) & 0xffff;
    if (ready > this.num) {
      this.fault = FAULT_AVAIL_JUMP;
      this.ready = 0;
      return 0;
    }
    this.ready = ready;
    return ready;
  }

  /** The descriptor head in the avail ring, `ahead` entries from `nextAvail`; not checked yet. */
  headAt(ahead: number): number {
    return this.avail[this.availIdx + 2 + ((this.nextAvail + ahead) & this.mask)];
  }

  /** Passes `n` avail entries. */
  take(n: number): void {
    this.nextAvail = (this.nextAvail + n) & 0xffff;
    this.ready -= n;
  }

  /** Fills the used entry `ahead` of those published: chain `head`, of which `len` bytes were written. */
  putUsed(ahead: number, head: number, len: number): void {
    const at = this.usedRingIdx + 2 * ((this.nextUsed + ahead) & this.mask);
    this.used32[at] = head;
    this.used32[at + 1] = len;
  }

  /** Publishes `n` filled used entries: orders them, and the data they speak of, before the index (§2.7.8.2). */
  publish(n: number): void {
    this.nextUsed = (this.nextUsed + n) & 0xffff;
    Atomics.store(this.used16, this.usedIdx16 + 1, this.nextUsed);
  }

  /**
   * Notifies the driver if it wants to know of what was published since the last time. The load of its wish comes after the
   * store of the index, both sequentially consistent: no notification is lost (§2.7.7, §2.7.10).
   */
  notify(): void {
    // Asked even without an eventfd: one may come later, and what the driver wants is told from the last time it was asked.
    const wanted = this.#callWanted();
    if (this.callFd === NO_FD || !wanted) {
      this.callsSuppressed++;
      return;
    }
    this.calls++;
    if (!this.#caller.call(this.callFd)) this.callsFailed++;
  }

  #callWanted(): boolean {
    if (!this.eventIdx) return (Atomics.load(this.avail, this.availIdx) & VRING_AVAIL_F_NO_INTERRUPT) === 0;
    const event = Atomics.load(this.avail, this.availIdx + 2 + this.num);
    const before = this.#signalled;
    const first = !this.#signalledValid;
    this.#signalled = this.nextUsed;
    this.#signalledValid = true;
    return first || crossed(event, this.nextUsed, before);
  }

  /** Asks the driver not to kick: the ring is polled. With event index a stale avail_event does as much. */
  suppressKicks(): void {
    if (!this.eventIdx) Atomics.store(this.used16, this.usedIdx16, VRING_USED_F_NO_NOTIFY);
  }

  /**
   * Asks the driver to kick for the next entry. The caller then refreshes once more: what came before the wish was seen
   * would otherwise wait for ever.
   */
  wantKicks(): void {
    if (this.eventIdx) Atomics.store(this.used16, this.usedIdx16 + 2 + 4 * this.num, this.nextAvail);
    else Atomics.store(this.used16, this.usedIdx16, 0);
  }
}

/** True if going from index `before` to `now` passed `event`: vring_need_event of linux/virtio_ring.h. */
export function crossed(event: number, now: number, before: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
}
