/**
 * The device side of a virtqueue, of either format: what SplitRing and PackedRing have in common, and what is asked of both.
 *
 * Buffers are used in the order in which they were made available, always; so a ring has one position, from which available
 * buffers are taken and where used ones are put. A position is counted in *slots*: entries of a split ring's avail and used rings,
 * descriptors of a packed ring. `ahead` is a distance in slots from the position.
 * @see VIRTIO 1.2 §2.6–2.8
 */
import type { AddressMap } from '../mem/address-map.ts';
import type { DirtyLog } from '../mem/dirty-log.ts';
import type { WindowViews } from '../mem/window.ts';
import { type Caller, NO_FD } from '../sys/eventfd.ts';
import { acquire, release } from '../sys/lock.ts';
import { FAULT_INFLIGHT, FAULT_NONE } from './fault.ts';
import type { Misses } from './misses.ts';
import type { RingConfig } from './ring-config.ts';
import { RingRecords, recordsWords } from './ring-records.ts';
import type { SegmentList } from './segments.ts';

/** Words of what the lcores share of a ring that several of them use. */
const STATE_LOCK = 0;
const STATE_FAULT = 1;
const STATE_STARTED = 2;
/** and of the format's own from here on */
export const STATE_FORMAT = 3;
const STATE_WORDS = 8;

/** What lcores share of one ring; each makes a Vring of its own over it. */
export const sharedRingState = (config: RingConfig) => new SharedArrayBuffer(4 * (STATE_WORDS + recordsWords(config)));

export abstract class Vring {
  abstract readonly packed: boolean;
  /** the window that holds the ring and all its parts that fast paths use, or −1 */
  abstract readonly window: number;
  readonly num: number;
  /** the position, modulo what the format says */
  abstract next: number;
  map: AddressMap;
  /** this thread's windows, by id */
  readonly windows: readonly WindowViews[];
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  readonly kickFd: number;
  callFd: number;
  /** where writes to guest memory are recorded, while the guest is being migrated; set once the ring has been made */
  log: DirtyLog | undefined;
  /** what outlives this process, of a ring that has such records: each buffer taken is told to `begin`; `start` comes first */
  readonly records: RingRecords | undefined;
  readonly #caller: Caller;

  /** slots known to be available from the position on; a packed ring that has one says `num` */
  ready = 0;
  /** of the chain that `chainAt` walked last: what its used element must name, and the slots it takes */
  chainId = 0;
  chainSlots = 0;
  /** one of FAULT_…; a ring at fault is not touched any more */
  fault = FAULT_NONE;
  /** the halves of the I/O virtual address that `chainAt` found no translation for, and whether it was to be written */
  missLo = 0;
  missHi = 0;
  missWrite = false;
  /** while it is set, `chainAt` lists here every translation that it finds missing, and goes on without what lies there */
  misses: Misses | undefined;
  /** notifications sent, those that were not wanted, and those the call eventfd did not take */
  calls = 0;
  callsSuppressed = 0;
  callsFailed = 0;
  readonly #state: Int32Array | undefined;

  /**
   * `windows` is by window id and holds those that the config and `map` name. @param state what `sharedRingState` made, where several
   * lcores use the ring: then it may be touched between `enter` and `leave` only
   */
  constructor(
    config: RingConfig,
    map: AddressMap,
    windows: readonly WindowViews[],
    caller: Caller,
    state?: SharedArrayBuffer,
  ) {
    this.#state = state === undefined ? undefined : new Int32Array(state);
    this.num = config.num;
    this.map = map;
    this.windows = windows;
    this.eventIdx = config.eventIdx;
    this.indirect = config.indirect;
    this.kickFd = config.kickFd;
    this.callFd = config.callFd;
    this.#caller = caller;
    const recordsState = this.#state?.subarray(STATE_WORDS) ?? new Int32Array(recordsWords(config));
    this.records = config.inflight && new RingRecords(config, config.inflight, windows, recordsState);
  }

  /**
   * Takes over what a predecessor has left inflight: it comes before everything else. Once for all lcores that use the ring.
   * @returns FAULT_NONE, or the fault that this call has put the ring at
   */
  start(): number {
    const { records } = this;
    if (records === undefined) return FAULT_NONE;
    this.enter();
    let found = FAULT_NONE;
    if (!records.isRecovered) {
      const usable = records.recover(this.base) >= 0 && this.resume(records);
      if (!usable) found = this.fault = FAULT_INFLIGHT;
    }
    this.leave();
    this.setCall(this.callFd);
    return found;
  }

  /**
   * Replaces the call eventfd. With records the driver is called at once, whatever it wants: a predecessor may have ended between
   * showing a used buffer and telling of it, and a driver that has nothing else to do would wait for that for ever.
   */
  setCall(fd: number): void {
    this.callFd = fd;
    if (this.records !== undefined && fd !== NO_FD) this.#caller.call(fd);
  }

  /** Goes on behind what the records say. @returns false if that cannot be */
  protected abstract resume(records: RingRecords): boolean;

  /** Takes the ring for this lcore, and learns what the others have done to it. */
  enter(): void {
    const state = this.#state;
    if (state === undefined) return;
    acquire(state, STATE_LOCK);
    this.ready = 0;
    this.fault = state[STATE_FAULT];
    if (state[STATE_STARTED] === 1) this.load(state);
    state[STATE_STARTED] = 1;
  }

  /** Lets the others have it. */
  leave(): void {
    const state = this.#state;
    if (state === undefined) return;
    state[STATE_FAULT] = this.fault;
    this.save(state);
    release(state, STATE_LOCK);
  }

  /** Reads the position and the like from shared words, from STATE_FORMAT on. */
  protected abstract load(state: Int32Array): void;
  protected abstract save(state: Int32Array): void;

  /** Where the ring stands, as GET_VRING_BASE has it for its format. */
  abstract get base(): number;

  /**
   * Looks for available slots, and orders that before reading what is in them. @returns `ready`; 0 also when the ring is at fault
   */
  abstract refresh(): number;

  /** Looks again, and says whether `slots` slots are available, or all that the ring has if those are fewer. */
  abstract holds(slots: number): boolean;

  /**
   * Appends the memory of the chain in the slot `ahead` to `out`; its id and slots are then in `chainId` and `chainSlots`.
   * @param direction VRING_DESC_F_WRITE if the device writes the chain, 0 if it reads it
   * @returns its bytes, or one of CHAIN_…
   */
  abstract chainAt(ahead: number, direction: number, out: SegmentList): number;

  /**
   * Notes in the records that `n` buffers have been taken, one behind the other from the slot `ahead` on; to be called before any of
   * them is touched. They are handed back by `publish`, in that order.
   * @param ids the `chainId` of each
   * @param slots the `chainSlots` of each; a split ring does not look
   * @returns false if the records have no room: the ring is at fault
   */
  begin(ahead: number, ids: Int32Array, slots: Int32Array, n: number): boolean {
    const { records } = this;
    if (records === undefined || records.begin(this.next, ahead, ids, slots, n)) return true;
    this.fault = FAULT_INFLIGHT;
    return false;
  }

  /** Fills the used element `ahead`: chain `id`, of which `len` bytes were written. The driver sees it after `publish`. */
  abstract putUsed(ahead: number, id: number, len: number): void;

  /**
   * Shows the driver what was filled, and moves the position `slots` on. @param written the device wrote into the buffers: those have
   * been marked in the log @param buffers how many that is, of those that `begin` was told of: by default all
   */
  publish(slots: number, written: boolean, buffers = -1): void {
    const { log, records } = this;
    const n = records === undefined || buffers >= 0 ? buffers : records.nTaken;
    let logged = false;
    if (log !== undefined) {
      this.markUsed(log, slots);
      logged = log.flush();
    }
    if (records !== undefined) records.end(n);
    this.show(slots, written);
    if (records !== undefined) records.commit(n, slots, this.next);
    if (log !== undefined) {
      this.markShown(log);
      this.flushLog(log, logged);
    }
  }

  /** Flushes the log, and signals the front end if anything came of that. @param logged something has come before */
  protected flushLog(log: DirtyLog, logged = false): void {
    if ((log.flush() || logged) && log.callFd !== NO_FD) this.#caller.call(log.callFd);
  }

  protected abstract show(slots: number, written: boolean): void;
  /** Marks the used elements of the next `slots` slots; and what `show` and `setEvents` write, wherever in the ring. */
  protected abstract markUsed(log: DirtyLog, slots: number): void;
  protected abstract markShown(log: DirtyLog): void;

  /** Asks the driver not to kick: the ring is polled. */
  suppressKicks(): void {
    this.#askForKicks(false, 0);
  }

  /**
   * Asks the driver to kick for the next buffer. The caller then refreshes once more: what came before the wish was seen
   * would otherwise wait for ever. @param ahead slots from the position on that have been taken, and are not used yet
   */
  wantKicks(ahead = 0): void {
    this.#askForKicks(true, ahead);
  }

  #askForKicks(wanted: boolean, ahead: number): void {
    this.setEvents(wanted, ahead);
    if (this.log === undefined) return;
    this.markShown(this.log);
    this.flushLog(this.log);
  }

  protected abstract setEvents(wanted: boolean, ahead: number): void;

  /** True if the driver wants to know of what was published since it was last asked. */
  protected abstract callWanted(): boolean;

  /**
   * Notifies the driver if it wants to know of what was published since the last time. The load of its wish comes after the
   * store that published, both sequentially consistent: no notification is lost (§2.7.7, §2.7.10, §2.8.10).
   */
  notify(): void {
    // Asked even without an eventfd: one may come later, and what the driver wants is told from the last time it was asked.
    const wanted = this.callWanted();
    if (this.callFd === NO_FD || !wanted) {
      this.callsSuppressed++;
      return;
    }
    if (this.#caller.call(this.callFd)) this.calls++;
    else this.callsFailed++;
  }
}
