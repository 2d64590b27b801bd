/**
 * A queue pair of a virtio-user port, between the main thread, which speaks with the back end, and the thread that moves its packets:
 * what they tell each other in shared memory, so that either may come and go.
 *
 * The main thread says which connection the rings may be used on, `wanted`; the thread that has the pair says which one it uses them
 * on, `used`. Before the rings are given to another back end, the main thread wants none and waits until the thread uses none.
 */
import type { WindowHandle, WindowViews } from '../mem/window.ts';
import type { DeviceSpec } from './device-port.ts';
import { UserPackedRing } from './user-packed-ring.ts';
import type { RingModule, UserRing, UserRingPlan } from './user-ring.ts';
import { UserSplitRing } from './user-split-ring.ts';

/** Words of a pair's control block. The connection's number that is wanted, 0 for none. */
export const PAIR_WANTED = 0;
/** The one that is used; 0: none; PAIR_ABSENT: no thread has the pair. */
export const PAIR_USED = 1;
/** What the back end did wrong: one of USER_FAULTS; and in which ring, 0 receive, 1 transmit. */
export const PAIR_FAULT = 2;
export const PAIR_FAULT_RING = 3;
/** The kick eventfd that is being written at this moment, or −1. */
export const PAIR_KICKING = 4;
/** Counts what the thread does, so that one can see whether it goes on. */
export const PAIR_TURNS = 5;
const PAIR_WORDS = 6;

export const PAIR_ABSENT = -1;

export function pairControl(): Int32Array {
  const control = new Int32Array(new SharedArrayBuffer(4 * PAIR_WORDS));
  control[PAIR_USED] = PAIR_ABSENT;
  control[PAIR_KICKING] = -1;
  return control;
}

/** What a thread makes a pair from. Survives postMessage. */
export interface UserPairPlan {
  readonly control: SharedArrayBuffer;
  readonly rx: UserRingPlan;
  readonly tx: UserRingPlan;
  /** eventfds of the main thread's */
  readonly rxKickFd: number;
  readonly rxCallFd: number;
  readonly txKickFd: number;
}

/** What a thread makes a virtio-user port from. Survives postMessage. */
export interface VirtioUserSpec extends DeviceSpec {
  /** the window of the card's memory */
  readonly windows: readonly [WindowHandle];
  /** bytes of the packet header, 10 or 12 */
  readonly headerLen: 10 | 12;
  /** MRG_RXBUF is negotiated */
  readonly mergeable: boolean;
  /** what the back end may leave undone in what it delivers, and we in what we send: NEED_… of `offload.ts` */
  readonly accepts: number;
  readonly maySend: number;
  /** bytes of the longest frame that is sent; absent: as long as a buffer */
  readonly maxFrame?: number;
  readonly pairs: readonly UserPairPlan[];
}

/** @param module what runs the ring; default: TypeScript */
export function makeUserRing(plan: UserRingPlan, views: WindowViews, module?: RingModule): UserRing {
  return plan.format === 'packed' ? new UserPackedRing(plan, views, module) : new UserSplitRing(plan, views, module);
}
