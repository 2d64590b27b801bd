/**
 * A virtqueue as a driver writes it, by hand and without scruples: any descriptor, any index, any flag. What both formats share.
 */
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { VRING_DESC_F_NEXT } from '../../src/uapi/virtio-ring.ts';
import type { VringConfig } from '../../src/vhost/datapath.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { RingConfig } from '../../src/virtqueue/ring-config.ts';
import type { Ram, RamPlace } from './ram.ts';

export type Format = RingConfig['format'];
export const FORMATS: readonly Format[] = ['split', 'packed'];

/** One descriptor of a chain. An address may be a bigint: 64 bits of anything. */
export interface Piece {
  readonly addr: number | bigint;
  readonly len: number;
}

export type RingOptions = Partial<Omit<RingConfig, 'num' | 'desc' | 'avail' | 'used'>> & {
  /** a split ring's indexes at the start; a packed ring's slot, and in bit 15 its wrap counter */
  readonly start?: number;
  readonly headerLen?: 10 | 12;
  readonly mergeable?: boolean;
  /** features beside those that the others say */
  readonly more?: bigint;
  /** the driver keeps its descriptors in order, as with IN_ORDER; the device always does */
  readonly inOrder?: boolean;
  /** memory for the ring, where it does not lie with its buffers; and for driver and device area, where they do not lie with it */
  readonly ringRam?: Ram | undefined;
  readonly areas?: Ram | undefined;
};

/** Where a ring's parts lie. */
export interface RingParts {
  readonly desc: RamPlace;
  readonly avail: RamPlace;
  readonly used: RamPlace;
}

export abstract class RawRing {
  /** memory of buffers and indirect tables; of the descriptors; of driver and device area */
  readonly ram: Ram;
  readonly ringRam: Ram;
  readonly areas: Ram;
  readonly num: number;
  readonly config: RingConfig;
  /** what the driver has accepted, as far as it says how packets look */
  readonly features: bigint;
  readonly headerLen: 10 | 12;
  readonly inOrder: boolean;
  protected readonly parts: RingParts;
  /** chains offered, modulo 2¹⁶, counted on from the start */
  availIdx: number;

  protected constructor(
    ram: Ram,
    num: number,
    parts: RingParts,
    base: number,
    {
      start = 0,
      headerLen = 12,
      mergeable = false,
      inOrder = false,
      ringRam = ram,
      areas = ringRam,
      more: moreFeatures = 0n,
      ...more
    }: RingOptions,
  ) {
    this.ram = ram;
    this.ringRam = ringRam;
    this.areas = areas;
    this.num = num;
    this.parts = parts;
    this.availIdx = start;
    this.inOrder = inOrder;
    this.headerLen = mergeable ? 12 : headerLen;
    this.features =
      (headerLen === 12 ? featureMask(VIRTIO_F_VERSION_1) : 0n) |
      (mergeable ? featureMask(VIRTIO_NET_F_MRG_RXBUF) : 0n) |
      moreFeatures;
    this.config = {
      format: 'split',
      num,
      desc: ringRam.place(parts.desc),
      avail: areas.place(parts.avail),
      used: areas.place(parts.used),
      ...{ base, eventIdx: false, indirect: true, kickFd: NO_FD, callFd: NO_FD },
      ...more,
    };
  }

  vring(enabled = true, errFd = NO_FD, base = this.config.base): VringConfig {
    return { ring: { ...this.config, base }, features: this.features, enabled, errFd };
  }

  /**
   * Describes descriptor `i` of the driver's, or of the indirect table at window offset `table`. `next` is what a chain goes on to:
   * entries of a packed ring's indirect table follow one another instead.
   */
  abstract describe(i: number, piece: Piece, flags: number, next?: number, table?: number): void;

  /** Describes a chain over descriptors `ids`, one a piece; every one has `flags`, all but the last NEXT as well. */
  chain(ids: readonly number[], pieces: readonly Piece[], flags: number, table?: number): void {
    pieces.forEach((piece, i) => {
      const more = i + 1 < pieces.length;
      this.describe(ids[i], piece, flags | (more ? VRING_DESC_F_NEXT : 0), more ? ids[i + 1] : 0, table);
    });
  }

  /** Changes a descriptor that has been offered as the first of its chain; the chain's others stay. */
  abstract redescribe(head: number, piece: Piece, flags: number): void;

  /** Window offset of what the device reads of descriptor `i` of the table, or of slot `i` of a packed ring. */
  descOff(i: number): number {
    return this.parts.desc.off + 16 * i;
  }

  /** Descriptors that are free to be offered. */
  abstract get room(): number;

  /** Makes the chain that begins with `head` available, unpublished. */
  abstract offer(head: number): void;

  abstract publish(): void;

  /** Makes the next `n` slots available and publishes them, as they were when they were offered: one descriptor each. */
  abstract repeat(n: number): void;

  /** Takes back what the device has not used. */
  abstract withdraw(): void;

  /** Chains used, modulo 2¹⁶, counted on from the start. */
  abstract get usedIdx(): number;

  /** Used element `index`, counted as `usedIdx` counts: of the last 2¹⁶. */
  abstract used(index: number): { id: number; len: number };

  /** Where a device that has used `usedIdx` chains stands, as GET_VRING_BASE has it. */
  abstract get base(): number;

  /** True if the driver has to kick after it has made one more buffer available. */
  abstract get kicksWanted(): boolean;

  /** Asks for no notifications, or for all. */
  abstract set noInterrupt(on: boolean);

  /** Asks to hear of the next chain used, and of no other. Needs EVENT_IDX. */
  abstract askForNext(): void;

  /** Checks that the device has written nothing into the ring but what it may. */
  abstract assertIntact(): void;
}
