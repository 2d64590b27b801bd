/**
 * The driver's side of a virtqueue whose buffers are made once and for all: one descriptor each, of one size, side by side. That is
 * what a network card needs that polls, and it leaves little to be written for a packet.
 *
 * A buffer belongs to the device, or to us: then it is in the list `own`, in the order in which it came back. What the device says is
 * read once, and checked against memory of our own, which lies in the ring's `state`: there another thread, or this one later, finds
 * where the ring stands.
 *
 * One thread at a time has a ring. It does not own the memory of ring and buffers. Hot functions allocate nothing.
 * @see VIRTIO 1.2 §2.7, §2.8; for chains of any layout split-driver.ts and packed-driver.ts
 */
import type { WindowViews } from '../mem/window.ts';
import { VIRTQ_MAX_SIZE } from '../uapi/virtio-ring.ts';
import type { RingPlace } from '../virtqueue/driver-ring.ts';
import { FAULT_ABANDONED } from './user-fault.ts';
import type { UserExports } from './user-module.ts';

/** Where the parts of a ring lie, and what it is: the same on every thread. Survives postMessage. */
export interface UserRingPlan {
  readonly format: 'split' | 'packed';
  /** window offsets */
  readonly place: RingPlace;
  /** descriptors, and buffers: a power of two */
  readonly size: number;
  /** EVENT_IDX, IN_ORDER are negotiated */
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
  /** the device writes the buffers: a receive ring */
  readonly receives: boolean;
  /** window offset of buffer 0; buffer i lies i times `stride` behind it */
  readonly buffersOff: number;
  /** bytes, a multiple of 64 */
  readonly stride: number;
  /** bytes of a buffer that are used, packet header included */
  readonly room: number;
  /** add this to a window offset for the guest address */
  readonly addressDelta: number;
  /** see {@link userRingState} */
  readonly state: SharedArrayBuffer;
}

const WORDS = 8;
const S_AVAIL = 0;
const S_USED = 1;
const S_ON_OFFER = 2;
const S_HEAD = 3;
const S_COUNT = 4;
const S_FAULT = 5;

/** Of the state of a ring of `size` buffers, behind its 8 words: lengths, ids, ids by place, and who has which buffer. */
export const stateBytes = (size: number) => 4 * size + 2 * size + 2 * size + size;
export const userRingState = (size: number) => new SharedArrayBuffer(4 * WORDS + stateBytes(size));

/** The thread that had the ring has gone and left no state that is right: the ring can only begin anew. */
export function abandonState(state: SharedArrayBuffer): void {
  new Int32Array(state, 0, WORDS)[S_FAULT] = FAULT_ABANDONED;
}

/** What runs a ring in WebAssembly, in place of the loops in TypeScript: the functions, and where its state lies for them. */
export interface RingModule {
  readonly run: UserExports;
  /** private memory of the thread's, and the offset in it of `stateBytes` bytes */
  readonly memory: ArrayBuffer;
  readonly off: number;
}

/** Takes a buffer out of a set of them, by id. @returns false if it is not there */
export function takeOut(set: Uint8Array, id: number): boolean {
  if (set[id] !== 1) return false;
  set[id] = 0;
  return true;
}

export abstract class UserRing {
  readonly plan: UserRingPlan;
  readonly size: number;
  readonly mask: number;
  readonly u16: Uint16Array;
  readonly i32: Int32Array;
  readonly buffersOff: number;
  readonly stride: number;
  /** Our buffers: own[(head + i) & mask] for i from 0 to count − 1, oldest first. */
  readonly own: Uint16Array;
  /** At the same places: bytes that the device wrote there; or those to be sent, which `post` tells the device. */
  readonly ownLen: Int32Array;
  head = 0;
  count = 0;
  /** one of USER_FAULTS: then the ring gives nothing back any more */
  fault = 0;
  /** the next entry to be filled, and the next one to be taken back */
  protected avail = 0;
  protected used = 0;
  /** buffers that the device has */
  protected onOffer = 0;
  /** by id: 1 if the device has it */
  protected readonly posted: Uint8Array;
  /** packed: the id at each place of the ring */
  protected readonly order: Uint16Array;
  /** receive rings: −1, so that lengths count; others: 0, as the device writes nothing */
  protected readonly lenMask: number;
  /** what runs the ring; undefined: TypeScript does */
  readonly module: RingModule | undefined;
  readonly #words: Int32Array;
  /** the plan's state behind its words, and the module's copy of it */
  readonly #kept: Uint8Array;
  readonly #worked: Uint8Array;

  /** The ring as its state has it: see `load`. */
  constructor(plan: UserRingPlan, views: WindowViews, module?: RingModule) {
    const { size, state } = plan;
    if (size < 1 || size > VIRTQ_MAX_SIZE || (size & (size - 1)) !== 0)
      throw new RangeError(`ring size ${size} is not a power of two up to ${VIRTQ_MAX_SIZE}`);
    this.plan = plan;
    this.size = size;
    this.mask = size - 1;
    this.u16 = views.u16;
    this.i32 = views.i32;
    this.buffersOff = plan.buffersOff;
    this.stride = plan.stride;
    this.lenMask = plan.receives ? -1 : 0;
    this.#words = new Int32Array(state, 0, WORDS);
    const { memory, off } = module ?? { memory: state, off: 4 * WORDS };
    this.module = module;
    this.#kept = new Uint8Array(state, 4 * WORDS);
    this.#worked = new Uint8Array(memory, off, stateBytes(size));
    this.ownLen = new Int32Array(memory, off, size);
    this.own = new Uint16Array(memory, off + 4 * size, size);
    this.order = new Uint16Array(memory, off + 6 * size, size);
    this.posted = new Uint8Array(memory, off + 8 * size, size);
  }

  /** Takes the ring over from whoever has saved it. */
  load(): void {
    const words = this.#words;
    this.avail = words[S_AVAIL];
    this.used = words[S_USED];
    this.onOffer = words[S_ON_OFFER];
    this.head = words[S_HEAD];
    this.count = words[S_COUNT];
    this.fault = words[S_FAULT];
    if (this.module !== undefined) this.#worked.set(this.#kept);
  }

  /** Leaves the ring to whoever loads it next. */
  save(): void {
    const words = this.#words;
    words[S_AVAIL] = this.avail;
    words[S_USED] = this.used;
    words[S_ON_OFFER] = this.onOffer;
    words[S_HEAD] = this.head;
    words[S_COUNT] = this.count;
    words[S_FAULT] = this.fault;
    if (this.module !== undefined) this.#kept.set(this.#worked);
  }

  /** Takes over what a function of the module has found. @returns buffers, 0 after a fault */
  protected checked(found: number): number {
    if (found >= 0) return found;
    this.fault = -found;
    return 0;
  }

  /** Begins anew, with all buffers on offer in a receive ring and none in another. No device may be using it. Saved. */
  reset(): void {
    this.avail = this.used = this.onOffer = this.head = 0;
    this.fault = 0;
    this.posted.fill(0);
    for (let id = 0; id < this.size; id++) this.own[id] = id;
    this.count = this.size;
    this.clear();
    if (this.plan.receives) this.post(this.size);
    this.disableCalls();
    this.save();
  }

  /** Takes `n` buffers off the front of `own`: they are the device's. */
  protected give(n: number): void {
    this.head = (this.head + n) & this.mask;
    this.count -= n;
    this.onOffer += n;
  }

  /** Empties the ring's memory, and writes what stays. */
  protected abstract clear(): void;
  /**
   * Takes back used buffers, `max` or a little more, to the end of `own`. Sets `fault` where the device breaks a rule; then nothing is
   * taken. @returns how many
   */
  abstract reap(max: number): number;
  /** Gives the first `n` of `own` to the device, and shows them to it. @returns true if it wants to be kicked */
  abstract post(n: number): boolean;
  /** Asks for a call at the next used buffer. @returns true if none is waiting, so that the caller may sleep */
  abstract enableCalls(): boolean;
  /** Asks for no calls; one may still come. */
  abstract disableCalls(): void;
  /**
   * What SET_VRING_BASE has to say so that another device goes on behind what this one has used; undefined if it has not used all
   * buffers before that: then the ring can only begin anew. The ring is not changed.
   */
  abstract resumeBase(): number | undefined;
  /** The base of a ring that has been reset. */
  abstract readonly freshBase: number;
}
