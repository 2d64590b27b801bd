/**
 * What the user wants of packets that tell what became of them, and of capture files: plain values, on all threads the same.
 */
import type { TrafficPlan } from './traffic-plan.ts';

export interface TrafficSettings {
  /** what txonly and flowgen make; absent: packets as DPDK's are */
  readonly plan?: TrafficPlan;
  /** rxonly and flowgen look for such packets, of that many flows at least; absent: they do not look */
  readonly verify?: { readonly flows: number; readonly fromFirst: boolean };
  /** what txonly sends instead */
  readonly replay?: { readonly path: string; readonly gaps: boolean; readonly loop: boolean };
  /** file of what is received */
  readonly recordTo?: string;
}

/** Files as they are while packets are forwarded. */
export interface TrafficFiles {
  /** regular file to replay; the main thread's */
  readonly replayFd?: number;
  /** file to record to, opened for appending, with its header: an interface for each port. The main thread's. */
  readonly recordFd?: number;
}

/** What a thread is told. */
export interface ThreadTraffic extends TrafficSettings, TrafficFiles {
  /** tells the packets of this start from those of the last */
  readonly run: number;
}
