/**
 * What a device asks of the thread or threads that serve its rings. What is a promise resolves once all of them have
 * done it, what is not is done on return: after that they touch what was taken away no more.
 */
import type { Chunk } from '../mem/address-map.ts';
import type { DirtyLogPlace } from '../mem/dirty-log.ts';
import type { WindowHandle } from '../mem/window.ts';
import type { RingConfig } from '../virtqueue/ring-config.ts';

export type { DirtyLogPlace };

/** Memory that a device's rings may use; survives postMessage. */
export interface DeviceMemory {
  /**
   * By guest address; with `iotlb` by I/O virtual address, and then what is missing may still come: the ring waits for it after
   * onIotlbMiss.
   */
  readonly chunks: readonly Chunk[];
  /** every window that chunks, rings, log and inflight records name */
  readonly windows: readonly WindowHandle[];
  /** ACCESS_PLATFORM was negotiated */
  readonly iotlb: boolean;
  /** where writes to guest memory are recorded, while the guest is being migrated */
  readonly log: DirtyLogPlace | undefined;
}

/** The same as threads pass it on: `chunks` are packed (mem/address-map.ts). */
export interface PackedMemory extends Omit<DeviceMemory, 'chunks'> {
  readonly chunks: Float64Array;
}

/** What a vring needs besides its own configuration; survives postMessage. */
export interface VringConfig {
  readonly ring: RingConfig;
  /** the features that the driver has accepted */
  readonly features: bigint;
  readonly enabled: boolean;
  /** eventfd that hears of faults, or NO_FD; it stays the device's */
  readonly errFd: number;
}

export interface Datapath {
  /** Takes the device out; its vrings have been stopped. */
  removePort(port: number): Promise<void> | void;
  /** Gives the device its guest's memory, in place of what it had. Started rings keep their places. */
  setMemory(port: number, memory: DeviceMemory): Promise<void> | void;
  startVring(port: number, vring: number, config: VringConfig): Promise<void> | void;
  /**
   * @param drain false: what is in flight stays so and is in the inflight records; else it is done first
   * @returns where the next start goes on, as GET_VRING_BASE has it, or undefined if the vring was not started
   */
  stopVring(port: number, vring: number, drain: boolean): Promise<number | undefined> | number | undefined;
  enableVring(port: number, vring: number, enabled: boolean): Promise<void> | void;
  /** The old call eventfd may be closed afterwards. */
  setCall(port: number, vring: number, fd: number): Promise<void> | void;
}
