/**
 * A vring of a net device that has been started: the ring, what packets look like on it, and what is counted.
 */
import { VRING_SLOTS } from '../stats/counters.ts';
import { ETHHDR } from '../uapi/ip.ts';
import { hasFeature, VIRTIO_F_IN_ORDER } from '../uapi/virtio.ts';
import {
  netHeaderSize,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_MRG_RXBUF,
} from '../uapi/virtio-net.ts';
import type { Vring } from '../virtqueue/vring.ts';
import {
  BAD_OFFLOAD,
  type Burst,
  FRONT_BYTES,
  HEADER_BYTES,
  TALLY_BROADCAST,
  TALLY_BYTES,
  TALLY_GROUP,
} from './burst.ts';
import { acceptsOf, maySendOf, NEEDS_MALFORMED, needsOf } from './offload.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;
const ETHER_TYPE = ETHHDR.off.h_proto;

/** True for the vrings that the guest transmits by: 2n + 1 of pair n; vring 2n receives (VIRTIO 1.2 §5.1.2). */
export const isTransmit = (vring: number) => vring % 2 === 1;

export class NetVring {
  readonly ring: Vring;
  /** bytes of virtio_net_hdr in front of every packet */
  readonly headerLen: number;
  /** RX: a packet may take several chains */
  readonly mergeable: boolean;
  /** RX: what the driver takes undone; TX: what it may leave so. NEED_… of `offload.ts` */
  readonly accepts: number;
  /** a used element may stand for all buffers made available before its own, too */
  readonly inOrder: boolean;
  readonly #maySend: number;
  /** a block of VRING_SLOTS */
  readonly counters: Float64Array;
  /** TX: the ring waits for a translation, until its memory changes */
  waiting = false;
  /** packets and bytes of the last burst that was counted */
  packets = 0;
  bytes = 0;

  /** @param features the features that the driver has accepted */
  constructor(ring: Vring, features: bigint, counters: Float64Array) {
    this.ring = ring;
    this.headerLen = netHeaderSize(features);
    this.mergeable = hasFeature(features, VIRTIO_NET_F_MRG_RXBUF);
    this.accepts = acceptsOf(features);
    this.inOrder = hasFeature(features, VIRTIO_F_IN_ORDER);
    this.#maySend = maySendOf(features);
    this.counters = counters;
  }

  /** Says what packet `i` needs of its receiver, from its header, which is in the burst; one that makes no sense becomes BAD_OFFLOAD. */
  readHeader(burst: Burst, i: number): void {
    const { header, frontBytes, len } = burst;
    const at = HEADER_BYTES * i;
    const flags = header.getUint8(at + HDR.flags);
    const gsoType = header.getUint8(at + HDR.gso_type);
    // without CSUM the header's words mean nothing, and drivers do not care what is in them
    if (this.#maySend === 0 || ((flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) | gsoType) === 0) return;
    const needs = needsOf(
      flags,
      gsoType,
      header.getUint16(at + HDR.gso_size, true),
      header.getUint16(at + HDR.csum_start, true),
      header.getUint16(at + HDR.csum_offset, true),
      len[i],
      (frontBytes[FRONT_BYTES * i + ETHER_TYPE] << 8) | frontBytes[FRONT_BYTES * i + ETHER_TYPE + 1],
      this.#maySend,
    );
    if (needs === NEEDS_MALFORMED) len[i] = BAD_OFFLOAD;
    else {
      burst.needs[i] = needs;
      burst.offloads = true;
    }
  }

  /** Adds a burst's tally to the counters and clears it. */
  count(tally: Int32Array): void {
    const { counters } = this;
    let packets = 0;
    for (let size = 0; size < TALLY_GROUP; size++) {
      const n = tally[size];
      if (n === 0) continue;
      counters[size] += n;
      packets += n;
      tally[size] = 0;
    }
    const bytes = tally[TALLY_BYTES];
    this.packets = packets;
    this.bytes = bytes;
    if (packets === 0) return;
    counters[VRING_SLOTS.good_packets] += packets;
    counters[VRING_SLOTS.good_bytes] += bytes;
    tally[TALLY_BYTES] = 0;
    if (tally[TALLY_GROUP] === 0) return;
    counters[VRING_SLOTS.multicast_packets] += tally[TALLY_GROUP] - tally[TALLY_BROADCAST];
    counters[VRING_SLOTS.broadcast_packets] += tally[TALLY_BROADCAST];
    tally[TALLY_GROUP] = 0;
    tally[TALLY_BROADCAST] = 0;
  }
}

if (VRING_SLOTS.undersize_packets !== 0 || VRING_SLOTS.size_1519_max_packets !== TALLY_GROUP - 1)
  throw new RangeError('the tally counts on the order of these counters');
