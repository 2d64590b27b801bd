/**
 * What a transport (vhost-user, vhost-cuse) tells a device, one method a request. The device keeps the state machine;
 * the transport only decodes, so that both feed the same one.
 *
 * Calls for one device never overlap: the transport awaits each before the next. A method may refuse with a
 * ProtocolError; it has then closed every fd it was given and changed nothing.
 * Addresses are number, below 2⁵³; a vring index is below `maxVrings`, which the transport has checked.
 */
import type { MemoryRegion } from '../mem/guest-memory.ts';

export type { MemoryRegion };

/** Where a ring's three parts lie, in the front end's address space. */
export interface VringAddresses {
  /** bit 0: log writes to the used ring */
  readonly flags: number;
  readonly descAddr: number;
  readonly usedAddr: number;
  readonly availAddr: number;
  /** guest address under which used ring writes are logged */
  readonly logAddr: number;
}

/** `fd` when the front end passes none: the ring is polled, or the event is not wanted. */
export const NO_FD = -1;

export interface VhostDevice {
  /** The virtio feature bits on offer, VHOST_USER_F_PROTOCOL_FEATURES not included. */
  readonly offeredFeatures: bigint;
  /** Vrings, not pairs; at most 256. */
  readonly maxVrings: number;
  /** Memory regions it can hold; at most 509. */
  readonly maxMemSlots: number;

  /** The features the driver accepted, a subset of those offered. `protocolFeatures`: bit 30 is acknowledged, so rings begin disabled. */
  setFeatures(features: bigint, protocolFeatures: boolean): Promise<void>;
  /** Replaces all memory. Ring addresses given before stay valid where the new regions cover them. */
  setMemory(regions: readonly MemoryRegion[]): Promise<void>;
  addMemory(region: MemoryRegion): Promise<void>;
  /** Removes the region with these addresses and this size; an unknown one is a ProtocolError. */
  removeMemory(guestAddr: number, size: number, frontendAddr: number): Promise<void>;

  setVringNum(vring: number, num: number): Promise<void>;
  setVringAddr(vring: number, addresses: VringAddresses): Promise<void>;
  setVringBase(vring: number, base: number): Promise<void>;
  /** Stops the ring; resolves when nothing touches it any more, with the index of the next available entry. */
  getVringBase(vring: number): Promise<number>;
  /** Starts the ring. The device owns `fd`, or gets NO_FD. */
  setVringKick(vring: number, fd: number): Promise<void>;
  setVringCall(vring: number, fd: number): Promise<void>;
  setVringErr(vring: number, fd: number): Promise<void>;
  setVringEnable(vring: number, enabled: boolean): Promise<void>;

  /** RESET_OWNER, RESET_DEVICE: stops every ring and forgets features and memory. */
  reset(): Promise<void>;
  /** The front end is gone: releases everything; resolves when no lcore can touch its memory. */
  destroy(): Promise<void>;
}
