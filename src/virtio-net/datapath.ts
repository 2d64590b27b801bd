/**
 * What a device asks of the thread that moves its packets. What is a promise resolves once that thread has
 * done it, what is not is done on return: after that it touches what was taken away no more.
 */
import type { Chunk } from '../mem/address-map.ts';
import type { WindowHandle } from '../mem/window.ts';
import type { VringConfig } from '../virtqueue/split-ring.ts';

export interface Datapath {
  /** Makes port `port`, which counts into `counters` (PORT_SLOTS). */
  addPort(port: number, counters: SharedArrayBuffer): Promise<void> | void;
  /** Takes the port and its addresses out of the switch. */
  removePort(port: number): Promise<void> | void;
  /** Gives the port its guest's memory, in place of what it had. Started rings keep their places. */
  setMemory(port: number, chunks: readonly Chunk[], windows: readonly WindowHandle[]): Promise<void> | void;
  startVring(port: number, vring: number, config: VringConfig): Promise<void> | void;
  /** @returns the index of the next available entry, or undefined if the vring was not started */
  stopVring(port: number, vring: number): Promise<number | undefined> | number | undefined;
  enableVring(port: number, vring: number, enabled: boolean): Promise<void> | void;
  /** The old call eventfd may be closed afterwards. */
  setCall(port: number, vring: number, fd: number): Promise<void> | void;
}
