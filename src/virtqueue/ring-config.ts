/**
 * What a ring needs to start; survives postMessage.
 */
import type { Place } from '../mem/guest-memory.ts';

/** The main thread has checked alignment and bounds. */
export interface RingConfig {
  /** RING_PACKED was negotiated, or not */
  readonly format: 'split' | 'packed';
  /** descriptors: for a split ring a power of two; at most 32768 */
  readonly num: number;
  /** the descriptor table, or the packed descriptor ring */
  readonly desc: Place;
  /** the driver area: avail ring, or driver event suppression */
  readonly avail: Place;
  /** the device area: used ring, or device event suppression */
  readonly used: Place;
  /**
   * Where to go on, as SET_VRING_BASE has it. A split ring's is the index of the next available entry, which counts only where the
   * used index in memory does not say better; a packed ring's holds avail index and wrap counter in bits 0–15, used ones in 16–31,
   * or 0 there where they are not told.
   */
  readonly base: number;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  /** eventfds, or NO_FD; they stay the device's */
  readonly kickFd: number;
  readonly callFd: number;
  /**
   * the guest physical address that writes to a split ring's used ring are logged under (SET_VRING_ADDR's `log`); undefined for where
   * the used ring lies
   */
  readonly usedLogAddr?: number | undefined;
  /** the inflight records of this ring (vhost-user "Inflight I/O tracking"), if the front end wants them */
  readonly inflight?: InflightPlace | undefined;
}

/** Where a ring's inflight records lie, and how many descriptors they are for. */
export interface InflightPlace extends Place {
  /** descriptors: the front end's "queue size" */
  readonly num: number;
}
