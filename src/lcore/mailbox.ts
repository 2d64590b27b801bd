/**
 * What the main thread and an lcore tell each other (posted-thread.ts): commands one way, answers and news the other. An answer carries
 * its command's number, the epoch: when it comes, the lcore has left every burst that it had begun before the command.
 */
import type { WindowHandle } from '../mem/window.ts';
import type { DeviceRecipe } from '../port/devices.ts';
import type { SharedSwitchState } from '../switch/learner.ts';
import type { PortVlan, SwitchConfig } from '../switch/switch-config.ts';
import type { PackedMemory, VringConfig } from '../vhost/datapath.ts';
import type { GuestAddress } from '../virtio-net/net-state.ts';
import type { PollConfig } from './poll-pace.ts';
import { type BasicSetup, CONTROL_POSTED } from './posted-thread.ts';

/** Word of the control block: the eventfd that the lcore is signalling at this moment, or −1. */
export const CONTROL_CALLING = CONTROL_POSTED + 1;
export const CONTROL_WORDS = CONTROL_CALLING + 1;

export type Command =
  | {
      readonly type: 'addPort';
      readonly port: number;
      readonly counters: SharedArrayBuffer;
      readonly vlan: PortVlan | undefined;
    }
  /** a port that is no guest */
  | {
      readonly type: 'addDevice';
      readonly port: number;
      readonly counters: SharedArrayBuffer;
      readonly recipe: DeviceRecipe;
    }
  | { readonly type: 'removePort'; readonly port: number }
  | { readonly type: 'setMemory'; readonly port: number; readonly memory: PackedMemory }
  | {
      readonly type: 'startVring';
      readonly port: number;
      readonly vring: number;
      readonly config: VringConfig;
      /** VRING_SLOTS */
      readonly counters: SharedArrayBuffer;
      /** what lcores share of a ring that several of them use */
      readonly state: SharedArrayBuffer | undefined;
    }
  | { readonly type: 'stopVring'; readonly port: number; readonly vring: number }
  | { readonly type: 'enableVring'; readonly port: number; readonly vring: number; readonly enabled: boolean }
  | { readonly type: 'setCall'; readonly port: number; readonly vring: number; readonly fd: number }
  | { readonly type: 'inject'; readonly port: number; readonly frame: Uint8Array }
  /** the MTU of an uplink is another */
  | { readonly type: 'setMtu'; readonly port: number; readonly mtu: number }
  /** addresses to be learned on a port; and what is answered with those that are known there */
  | { readonly type: 'learn'; readonly port: number; readonly addresses: readonly GuestAddress[] }
  | { readonly type: 'known'; readonly port: number }
  | { readonly type: 'stop' };

/** What a command is answered with: `stopVring` with a base, `known` with addresses. */
export type Answer = number | readonly GuestAddress[] | undefined;

/** What an lcore tells beside that. */
export type News =
  | { readonly type: 'registered' | 'duplicate'; readonly port: number; readonly first: number; readonly last: number }
  | { readonly type: 'fault'; readonly port: number; readonly vring: number; readonly fault: number }
  | {
      readonly type: 'miss';
      readonly port: number;
      readonly vring: number;
      readonly iova: number;
      readonly write: boolean;
    };

/** What a worker is started with. */
export interface LcoreSetup extends BasicSetup {
  readonly counters: SharedArrayBuffer;
  /** CPUs to run on, or none for any */
  readonly cpus: readonly number[];
  readonly poll: PollConfig;
  readonly config: SwitchConfig;
  /** memory of the lcore's own */
  readonly bounce: WindowHandle;
  /** what the lcores of one switch share, where there are several */
  readonly shared: SharedSwitchState | undefined;
}
