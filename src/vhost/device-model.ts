/**
 * What makes a device one of its type: VirtioDevice is told by this, and does all that every type has in common.
 */
import type { MemoryRange } from '../mem/guest-memory.ts';

/** A device's type. Its methods run on the main thread and refuse with a ProtocolError, having changed nothing. */
export interface DeviceModel {
  /** virtio feature bits on offer */
  readonly offeredFeatures: bigint;
  /** vrings; at most 256 */
  readonly maxVrings: number;
  /** what GET_QUEUE_NUM answers */
  readonly queueNum: number;
  /** the vrings that must run for the device to be of use; the driver fills the first of them before it kicks */
  readonly readyVrings: readonly number[];
  /** The front end may ask for the config space: false for devices whose front ends have it from elsewhere, and say so aloud. */
  readonly configOnOffer: boolean;
  /** The config space as it is now; not to be changed by who gets it. */
  configSpace(): Uint8Array;
  /**
   * Writes to config space; refuses fields that are read-only, unless `migration` restores them. Without this method all is
   * read-only. `bytes` lies within the config space. `features`: those the driver has accepted.
   */
  setConfig?(offset: number, bytes: Uint8Array, migration: boolean, features: bigint): void;
  /** SEND_RARP, if the device has that. `mac`: 6 bytes. */
  sendRarp?(mac: Uint8Array): Promise<void> | void;
  /** NET_SET_MTU, if the device has that. */
  setMtu?(mtu: number): void;
  /** The device's own state for a migration, at most MAX_STATE_BYTES. */
  save?(): Promise<Uint8Array> | Uint8Array;
  /** Takes over the state that another back end, perhaps of another version, has saved. */
  load?(state: Uint8Array): Promise<void> | void;
}

/** Postcopy migration of one guest: its memory comes page by page, through a userfaultfd. Made by POSTCOPY_ADVISE. */
export interface Postcopy {
  /** @returns a descriptor of the userfaultfd for the front end. The caller owns it; the original stays here. */
  shareFd(): number;
  /** From now on who touches a page of these that is not there waits for the front end. Whole pages. Throws SysError. */
  register(ranges: readonly MemoryRange[]): void;
  /** What was registered is ordinary memory again, before it is unmapped: who waits goes on, and reads zeros. */
  unregister(): void;
  /** As `unregister`, and closes the userfaultfd. */
  close(): void;
}
