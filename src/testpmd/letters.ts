/**
 * What the engine's main thread and a forwarding thread tell each other (posted-thread.ts): commands one way, answers the other.
 */
import { type BasicSetup, CONTROL_POSTED } from '../lcore/posted-thread.ts';
import type { WindowHandle } from '../mem/window.ts';
import type { Vdev } from '../port/vdev.ts';
import type { ModeSettings } from './modes/mode.ts';
import type { Retry, StreamPlan } from './stream.ts';

/** A port of a thread. */
export interface PortPlan {
  /** its number */
  readonly id: number;
  /** `net_virtio_user` */
  readonly kind: Vdev['kind'];
  /** what the port is made from: see port-kinds.ts */
  readonly spec: unknown;
  /** PORT_SLOTS */
  readonly counters: SharedArrayBuffer;
}

/** What a thread forwards from `prepare` to `stop`. */
export interface RunPlan {
  readonly ports: readonly PortPlan[];
  readonly streams: readonly StreamPlan[];
  readonly settings: ModeSettings;
  readonly retry: Retry | undefined;
}

export type Command =
  /** Makes the ports; with `flush` what waits in them is thrown away. */
  | { readonly type: 'prepare'; readonly plan: RunPlan; readonly flush: boolean }
  /** Sends so many bursts on every stream. */
  | { readonly type: 'first'; readonly bursts: number }
  | { readonly type: 'go' }
  /** Shows packets, at this level: see packet-dump.ts. 0: none. */
  | { readonly type: 'verbose'; readonly level: number }
  /** Closes the ports. */
  | { readonly type: 'stop' }
  | { readonly type: 'end' };

/** What it tells beside that a command is done: an error that nobody has foreseen has ended what it forwarded, for the reason. */
export interface Failed {
  readonly type: 'failed';
  readonly reason: string;
}

/** Lines about packets. The main thread counts those that it has shown in the control block. */
export interface Dumped {
  readonly type: 'dumped';
  readonly text: string;
}

/** Words of the control block, behind those of every thread that commands are posted to. */
export const CONTROL_SHOWN = CONTROL_POSTED + 1;
export const CONTROL_WORDS = CONTROL_SHOWN + 1;

export interface ForwardSetup extends BasicSetup {
  /** CPUs to run on, or none for any */
  readonly cpus: readonly number[];
  readonly poll: 'adaptive' | 'busy';
  /** memory of the thread's own */
  readonly window: WindowHandle;
}
