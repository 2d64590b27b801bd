/**
 * What the engine's main thread and a forwarding thread tell each other: commands one way, answers the other. The thread looks at one
 * shared word a round; commands themselves come through a MessagePort.
 */
import type { WindowHandle } from '../mem/window.ts';
import type { Vdev } from '../port/vdev.ts';
import type { ModeSettings } from './modes/mode.ts';
import type { Retry, StreamPlan } from './stream.ts';

/** Word of the control block: commands posted so far. */
export const CONTROL_POSTED = 0;
export const CONTROL_WORDS = 1;

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
  /** Closes the ports. */
  | { readonly type: 'stop' }
  | { readonly type: 'end' };

export interface Letter {
  readonly number: number;
  readonly command: Command;
}

export type Report =
  | { readonly type: 'ready' }
  | { readonly type: 'done'; readonly number: number; readonly error?: Error };

export interface ForwardSetup {
  readonly control: SharedArrayBuffer;
  /** eventfd that wakes the thread; the main thread's */
  readonly wakeFd: number;
  /** CPUs to run on, or none for any */
  readonly cpus: readonly number[];
  readonly poll: 'adaptive' | 'busy';
  /** memory of the thread's own */
  readonly window: WindowHandle;
}
