/**
 * What the driver's sides of all ring formats have in common: a network card works with any of them.
 * One thread owns a ring. It does not own the memory behind the buffers.
 * @see VIRTIO 1.2 §2.6
 */
import type { WindowViews } from '../mem/window.ts';

/** Where a ring's parts lie: byte offsets into a window, or relative to the ring's beginning. §2.6 */
export interface RingPlace {
  /** descriptor area: descriptor table, or packed descriptor ring */
  readonly descOff: number;
  /** driver area: available ring, or driver event suppression */
  readonly availOff: number;
  /** device area: used ring, or device event suppression */
  readonly usedOff: number;
}

/** One buffer of a chain. */
export interface Segment {
  /** guest address */
  readonly addr: number;
  /** bytes */
  readonly len: number;
  /** the device writes it; such segments come last in a chain */
  readonly write?: boolean;
}

/** Where an indirect table goes: its guest address, and the same place as an offset into the ring's window. */
export interface TablePlace {
  readonly addr: number;
  readonly off: number;
}

export interface DriverRing {
  readonly format: 'split' | 'packed';
  readonly views: WindowViews;
  readonly place: RingPlace;
  /** descriptors */
  readonly size: number;
  readonly eventIdx: boolean;
  /** IN_ORDER was negotiated: the device may tell of several buffers by naming the last one */
  readonly inOrder: boolean;
  /**
   * Bytes that the device wrote into the buffer that `reap` returned last, as the device says. For a buffer that an in-order device
   * does not name, all that it has room for (§2.7.9, §2.8.8): such a device has filled it.
   */
  readonly usedLen: number;
  /** What the device did wrong; the ring gives nothing back from then on. */
  readonly broken: string | undefined;
  /** Free descriptors. */
  readonly nFree: number;
  /** True if the device has used something that is not reaped yet. */
  readonly ready: boolean;
  /**
   * What SET_VRING_BASE has to say so that a device goes on behind the last buffer used, reaped or not: all of it for a device that
   * uses buffers in order, whatever became of the one before.
   */
  readonly vringBase: number;

  /**
   * Begins anew, as a driver that is loaded again: an empty ring with calls on. No device may be using it.
   * @param base where both sides begin, as the lower 16 bits of SET_VRING_BASE have it; by default at the ring's beginning.
   */
  reset(base?: number): void;
  /** Adds the first `n` segments as a chain, unpublished. @returns the buffer's id, below `size`, or −1 if not enough descriptors are free. */
  add(chain: readonly Segment[], n?: number): number;
  /**
   * Adds a chain that lies in an indirect table, which this writes at `table` (16 bytes a segment; it must stay until the chain is
   * used). INDIRECT_DESC must be negotiated. @returns the buffer's id, or −1 if no descriptor is free or the chain is longer than the ring.
   */
  addIndirect(chain: readonly Segment[], table: TablePlace, n?: number): number;
  /** Shows the device what was added since. @returns true if it wants to be kicked for it. */
  publish(): boolean;
  /** Takes back the next used buffer; its bytes written are in `usedLen`. @returns its id, or −1 if there is none. */
  reap(): number;
  /**
   * Asks for a call at the next used buffer; under EVENT_IDX, after `skip` more than that: buffers of a split ring, descriptors of a
   * packed one. @returns true if nothing is waiting to be reaped, so that the caller may sleep; else look first.
   */
  enableCalls(skip?: number): boolean;
  /** Asks for no calls. A hint: one may still come. */
  disableCalls(): void;
  /** Window offset of descriptor `i`. */
  descriptorOff(i: number): number;
}

/** Bytes of a cache line, on which driver area and device area begin. */
export const LINE = 64;

export const alignUp = (n: number, to: number): number => Math.ceil(n / to) * to;
