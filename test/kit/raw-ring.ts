/**
 * A split virtqueue as a driver writes it, by hand and without scruples: any descriptor, any index, any flag.
 */

import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import {
  VRING_DESC,
  VRING_DESC_F_NEXT,
  vringAvailBytes,
  vringDescBytes,
  vringUsedBytes,
} from '../../src/uapi/virtio-ring.ts';
import type { VringConfig } from '../../src/vhost/datapath.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { RingConfig } from '../../src/virtqueue/ring-config.ts';
import type { Ram, RamPlace } from './ram.ts';

/** One descriptor of a chain. An address may be a bigint: 64 bits of anything. */
export interface Piece {
  readonly addr: number | bigint;
  readonly len: number;
}

export type RingOptions = Partial<Omit<RingConfig, 'format' | 'num' | 'desc' | 'avail' | 'used'>> & {
  /** both indexes at the start */
  readonly start?: number;
  readonly headerLen?: 10 | 12;
  readonly mergeable?: boolean;
};

export class RawRing {
  readonly ram: Ram;
  readonly num: number;
  readonly config: RingConfig;
  /** what the driver has accepted, as far as it says how packets look */
  readonly features: bigint;
  readonly headerLen: 10 | 12;
  readonly #desc: RamPlace;
  readonly #avail: RamPlace;
  readonly #used: RamPlace;
  /** the avail index, free running modulo 2¹⁶; published by `publish` */
  availIdx: number;

  constructor(ram: Ram, num: number, { start = 0, headerLen = 12, mergeable = false, ...more }: RingOptions = {}) {
    this.ram = ram;
    this.num = num;
    // with room behind the table for one descriptor too many
    this.#desc = ram.alloc(vringDescBytes(num) + VRING_DESC.size);
    this.#avail = ram.alloc(vringAvailBytes(num));
    this.#used = ram.alloc(vringUsedBytes(num));
    this.availIdx = start;
    this.headerLen = mergeable ? 12 : headerLen;
    this.features =
      (headerLen === 12 ? featureMask(VIRTIO_F_VERSION_1) : 0n) |
      (mergeable ? featureMask(VIRTIO_NET_F_MRG_RXBUF) : 0n);
    this.config = {
      format: 'split',
      num,
      desc: ram.place(this.#desc),
      avail: ram.place(this.#avail),
      used: ram.place(this.#used),
      ...{ base: start, eventIdx: false, indirect: true, inOrder: false, kickFd: NO_FD, callFd: NO_FD },
      ...more,
    };
    ram.views.dv.setUint16(this.#used.off + 2, start, true);
    this.publish();
  }

  vring(enabled = true, errFd = NO_FD): VringConfig {
    return { ring: this.config, features: this.features, enabled, errFd };
  }

  /** Writes descriptor `i` of the table, or of the indirect table at window offset `table`. */
  describe(i: number, { addr, len }: Piece, flags: number, next = 0, table = this.#desc.off): void {
    const { dv } = this.ram.views;
    const at = table + VRING_DESC.size * i;
    dv.setBigUint64(at, BigInt.asUintN(64, BigInt(addr)), true);
    dv.setUint32(at + 8, len, true);
    dv.setUint16(at + 12, flags, true);
    dv.setUint16(at + 14, next, true);
  }

  /** Writes a chain over descriptors `ids`, one a piece; every one has `flags`, all but the last NEXT as well. */
  chain(ids: readonly number[], pieces: readonly Piece[], flags: number, table = this.#desc.off): void {
    pieces.forEach((piece, i) => {
      const more = i + 1 < pieces.length;
      this.describe(ids[i], piece, flags | (more ? VRING_DESC_F_NEXT : 0), more ? ids[i + 1] : 0, table);
    });
  }

  /** Window offset of descriptor `i`. */
  descOff(i: number): number {
    return this.#desc.off + VRING_DESC.size * i;
  }

  /** Makes `head` available, unpublished. */
  offer(head: number): void {
    this.ram.views.dv.setUint16(this.#avail.off + 4 + 2 * (this.availIdx & (this.num - 1)), head, true);
    this.availIdx = (this.availIdx + 1) & 0xffff;
  }

  publish(): void {
    Atomics.store(this.ram.views.u16, (this.#avail.off + 2) >> 1, this.availIdx);
  }

  /** Sets the flag that asks for no notifications. */
  set noInterrupt(on: boolean) {
    this.ram.views.u16[this.#avail.off >> 1] = on ? 1 : 0;
  }

  set usedEvent(index: number) {
    this.ram.views.u16[(this.#avail.off + 4 + 2 * this.num) >> 1] = index;
  }

  get availEvent(): number {
    return this.ram.views.u16[(this.#used.off + 4 + 8 * this.num) >> 1];
  }

  /** The used ring's flags: 1 asks for no kicks. */
  get usedFlags(): number {
    return this.ram.views.u16[this.#used.off >> 1];
  }

  get usedIdx(): number {
    return Atomics.load(this.ram.views.u16, (this.#used.off + 2) >> 1);
  }

  /** Entry `index` (modulo the size) of the used ring. */
  used(index: number): { id: number; len: number } {
    const { dv } = this.ram.views;
    const at = this.#used.off + 4 + 8 * (index & (this.num - 1));
    return { id: dv.getUint32(at, true), len: dv.getUint32(at + 4, true) };
  }
}
