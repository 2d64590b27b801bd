/**
 * What a transport (vhost-user, vhost-cuse) tells a device, one method a request. The device keeps the state machine;
 * the transport only decodes, so that both feed the same one.
 *
 * Calls for one device never overlap: the transport awaits each before the next, but for `destroy`, which does not await
 * `checkState`. A method may refuse with a
 * ProtocolError; it has then closed every fd it was given and changed nothing.
 * Addresses are number, below 2⁵³; a vring index is below `maxVrings`, which the transport has checked.
 */
import type { MemoryRegion } from '../mem/guest-memory.ts';
import { NO_FD } from '../sys/eventfd.ts';

export type { MemoryRegion };

/** Where a ring's three parts lie, in the space that `setAddressSpace` says. */
export interface VringAddresses {
  /** bit 0: log writes to the used ring */
  readonly flags: number;
  readonly descAddr: number;
  readonly usedAddr: number;
  readonly availAddr: number;
  /** guest address under which used ring writes are logged */
  readonly logAddr: number;
}

export { NO_FD };

/** A piece of a file that the front end or the device shares: dirty log, inflight records. Who gets it owns the fd. */
export interface SharedArea {
  readonly fd: number;
  /** bytes */
  readonly size: number;
  /** where it begins in the file, bytes */
  readonly fileOff: number;
}

/** IOTLB entries (linux/vhost_types.h vhost_iotlb_msg). */
export const IOTLB_READ = 1;
export const IOTLB_WRITE = 2;

/** One mapping of I/O virtual addresses, as the front end updates it. */
export interface IotlbEntry {
  readonly iova: number;
  /** bytes */
  readonly size: number;
  /** in the front end's address space */
  readonly userAddr: number;
  /** IOTLB_READ | IOTLB_WRITE */
  readonly permissions: number;
}

/** What a device may ask of its front end, once it has opened a way: BACKEND_REQ. */
export interface FrontEndChannel {
  /** A translation is missing; the front end answers with an IOTLB update. */
  iotlbMiss(iova: number, permissions: number): void;
  /** The config space has changed. */
  configChanged(): void;
  /** In-band notifications: the driver is to be told of used buffers, or of an error, of the vring. */
  vringCall(vring: number): void;
  vringError(vring: number): void;
}

/** Direction of a device state's transfer (SET_DEVICE_STATE_FD). */
export type StateDirection = 'save' | 'load';

export interface VhostDevice {
  /** The virtio feature bits on offer, VHOST_USER_F_PROTOCOL_FEATURES not included. */
  readonly offeredFeatures: bigint;
  /**
   * The vhost-user protocol features that the device serves; the transport offers those that it serves too, and MQ and REPLY_ACK,
   * which are its own business.
   */
  readonly protocolFeatures: bigint;
  /** Vrings; at most 256. For a net device twice its pairs. */
  readonly maxVrings: number;
  /** What GET_QUEUE_NUM answers: queue pairs of a net device, queues of others. */
  readonly queueNum: number;
  /** Memory regions it can hold; at most 509. */
  readonly maxMemSlots: number;

  /** The features the driver accepted, a subset of those offered. `protocolFeatures`: bit 30 is acknowledged, so rings begin disabled. */
  setFeatures(features: bigint, protocolFeatures: boolean): Promise<void>;
  /** Ring addresses are guest physical (GPA_ADDRESSES was negotiated), or else the front end's own. ACCESS_PLATFORM goes before both. */
  setAddressSpace(space: 'frontend' | 'guest'): void;
  /** Replaces all memory. Ring addresses given before stay valid where the new regions cover them. */
  setMemory(regions: readonly MemoryRegion[]): Promise<void>;
  addMemory(region: MemoryRegion): Promise<void>;
  /** Removes the region with these addresses and this size; an unknown one is a ProtocolError. */
  removeMemory(guestAddr: number, size: number, frontendAddr: number): Promise<void>;

  setVringNum(vring: number, num: number): Promise<void>;
  setVringAddr(vring: number, addresses: VringAddresses): Promise<void>;
  /** An index for a split ring; all 32 bits for a packed one, as {@link getVringBase} answers. */
  setVringBase(vring: number, base: number): Promise<void>;
  /**
   * Stops the ring; resolves when nothing touches it any more, with where it stands: split, the index of the next available entry;
   * packed, avail index and wrap counter in bits 0–15, used ones in 16–31. With `drain` false, what is in flight stays so and is in
   * the inflight records (GET_VRING_BASE_SKIP_DRAIN).
   */
  getVringBase(vring: number, drain: boolean): Promise<number>;
  /** Starts the ring. The device owns `fd`, or gets NO_FD. */
  setVringKick(vring: number, fd: number): Promise<void>;
  setVringCall(vring: number, fd: number): Promise<void>;
  setVringErr(vring: number, fd: number): Promise<void>;
  setVringEnable(vring: number, enabled: boolean): Promise<void>;
  /** Legacy drivers of the other byte order: ProtocolError where the device cannot serve them. */
  setVringEndian(vring: number, bigEndian: boolean): Promise<void>;
  /** In-band notifications were negotiated: kicks come by {@link kickVring}, calls go by the channel. */
  setInBand(inBand: boolean): void;
  /** An in-band kick. It starts a stopped ring that has no eventfd, as SET_VRING_KICK does. */
  kickVring(vring: number): Promise<void>;

  /** A way to ask the front end, or undefined when it is gone. */
  setChannel(channel: FrontEndChannel | undefined): void;
  /** The dirty log, in place of what there was. The device owns the fd. */
  setLog(area: SharedArea): Promise<void>;
  /** An eventfd to signal when the log is written, or NO_FD. The device owns it. */
  setLogFd(fd: number): Promise<void>;

  /** The guest has moved here: tell the network. `mac`: 6 bytes. */
  sendRarp(mac: Uint8Array): Promise<void>;
  /** The MTU that the front end has told its driver. */
  setMtu(mtu: number): Promise<void>;

  /** Adds or replaces a translation; resolves when rings use it. */
  updateIotlb(entry: IotlbEntry): Promise<void>;
  /** Resolves when no ring uses a translation in the range any more. */
  invalidateIotlb(iova: number, size: number): Promise<void>;

  /** `size` bytes of config space from `offset` on; ProtocolError if it does not reach so far. */
  getConfig(offset: number, size: number): Uint8Array;
  /** `migration`: restored by live migration, not written by the driver. */
  setConfig(offset: number, bytes: Uint8Array, migration: boolean): Promise<void>;

  /** @returns a userfaultfd, which the transport closes when it has passed it on */
  postcopyAdvise(): Promise<number>;
  /** Memory set from now on is registered with the userfaultfd. */
  postcopyListen(): Promise<void>;
  /**
   * Where each region given last is mapped in this process, in the order given: for the front end's page faults. After `addMemory`
   * the last address is the new region's.
   */
  postcopyAddresses(): readonly bigint[];
  /** The front end has all of `postcopyAddresses`: pages may be touched. */
  postcopyReady(): Promise<void>;
  postcopyEnd(): Promise<void>;

  /** Makes memory for the inflight records of `queues` vrings of `queueSize` descriptors. The transport owns the fd and passes it on. */
  getInflight(queues: number, queueSize: number): SharedArea;
  /** Takes the records over. The device owns the fd. */
  setInflight(area: SharedArea, queues: number, queueSize: number): Promise<void>;

  /** RESET_DEVICE: as `reset`, but memory and eventfds stay. */
  resetRings(): Promise<void>;
  setStatus(status: number): Promise<void>;
  getStatus(): number;

  /**
   * Writes the device's own state to `fd`, or reads it from there until its end, in the background. The device owns `fd`.
   * `phase` 0, the only one: all vrings are stopped. The device bounds bytes and time.
   */
  transferState(direction: StateDirection, phase: number, fd: number): Promise<void>;
  /** Resolves when the transfer has ended; ProtocolError if it failed. */
  checkState(): Promise<void>;

  /** RESET_OWNER: stops every ring and forgets features and memory. */
  reset(): Promise<void>;
  /**
   * The front end is gone while a call may still be under way: nothing waits for it any more, neither a transfer nor memory that was
   * to come by postcopy. May come twice; `destroy` follows, perhaps after calls that it had made before it went.
   */
  frontEndGone?(): void;
  /** The front end is gone: releases everything; resolves when no lcore can touch its memory. */
  destroy(): Promise<void>;
}
