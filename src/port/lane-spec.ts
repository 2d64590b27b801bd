/**
 * What an lcore makes a lane from: a guest's way to the uplink and back without a copy, an AF_XDP socket over the guest's own memory.
 */
import type { WindowHandle } from '../mem/window.ts';
import { USED_POSITION_WORDS } from '../virtqueue/used-position.ts';
import type { XdpRingPlace } from './xdp-rings.ts';

/** Memory of the UMEM as it lies in a window. */
export interface UmemPiece {
  /** id of the window */
  readonly window: number;
  readonly off: number;
  /** bytes */
  readonly len: number;
  /** where it begins in the UMEM, bytes */
  readonly umemOff: number;
}

/** What the lcores and the main thread share of a guest's lane, for as long as the guest has its port: see LANE_…. */
export const LANE_WORDS = 2 + USED_POSITION_WORDS;
/** 1 while the lane's lcore takes the guest's receive buffers ahead of their use */
export const LANE_OPEN = 0;
/** 1 while frames may leave by the uplink */
export const LANE_LINK = 1;
/** where the guest's first receive ring is used, USED_POSITION_WORDS */
export const LANE_USED = 2;

export const laneWords = (): SharedArrayBuffer => new SharedArrayBuffer(4 * LANE_WORDS);

/** A lane as its lcore is told of it. Survives postMessage; the descriptors stay the main thread's. */
export interface LaneSpec {
  /** port number of the uplink */
  readonly uplink: number;
  readonly fd: number;
  /** memory of the lane's own: the rings, and what it writes itself */
  readonly window: WindowHandle;
  readonly rx: XdpRingPlace;
  readonly tx: XdpRingPlace;
  readonly fill: XdpRingPlace;
  readonly completion: XdpRingPlace;
  /** the guest's memory, and the lane's own that is part of the UMEM */
  readonly pieces: readonly UmemPiece[];
  /** bytes of the UMEM, and of a chunk */
  readonly umemBytes: number;
  readonly chunk: number;
  /** in the window: `chunk` bytes for each frame that may be on its way out */
  readonly scratchOff: number;
  /** in the window: how many frames the program has dropped for their length, 8 bytes */
  readonly droppedOff: number;
  /** bytes of the longest frame that may come */
  readonly maxFrame: number;
  /** guest buffers that the kernel may have at a time, powers of two */
  readonly rxBuffers: number;
  readonly txBuffers: number;
}
