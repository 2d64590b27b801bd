/**
 * What a packet leaves to be done, and who may leave it or takes it so: checksums and segmentation, as small bit masks.
 *
 * A packet goes on as it is where `(needs & ~accepts) === 0`, with the header's offload fields as they were sent; for any other
 * receiver `OffloadStage` does what is left.
 * @see VIRTIO 1.2 §5.1.3.1, §5.1.6.2
 */
import { ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, ETHHDR, IPHDR, IPV6HDR, TCPHDR, UDPHDR } from '../uapi/ip.ts';
import { hasFeature } from '../uapi/virtio.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GSO,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_UFO,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_UFO,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_ECN,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_HDR_GSO_TCPV6,
  VIRTIO_NET_HDR_GSO_UDP,
  VIRTIO_NET_HDR_GSO_UDP_L4,
} from '../uapi/virtio-net.ts';

export const NEED_CSUM = 1;
export const NEED_TSO4 = 2;
export const NEED_TSO6 = 4;
/** Beside one of the two above: its first segment alone may have CWR. */
export const NEED_ECN = 8;
export const NEED_UFO = 16;
export const NEED_USO4 = 32;
export const NEED_USO6 = 64;

/** In place of a mask: the header is malformed, or asks for what was not negotiated. */
export const NEEDS_MALFORMED = -1;

/** The transport header cannot begin before this: what a checksum is written to lies behind all that the switch looks at. */
const MIN_CSUM_START = ETHHDR.size + IPHDR.size;

/** What a driver with these features takes undone. */
export function acceptsOf(features: bigint): number {
  if (!hasFeature(features, VIRTIO_NET_F_GUEST_CSUM)) return 0;
  const of = (bit: number, need: number) => (hasFeature(features, bit) ? need : 0);
  const tso = of(VIRTIO_NET_F_GUEST_TSO4, NEED_TSO4) | of(VIRTIO_NET_F_GUEST_TSO6, NEED_TSO6);
  const udp =
    of(VIRTIO_NET_F_GUEST_UFO, NEED_UFO) |
    of(VIRTIO_NET_F_GUEST_USO4, NEED_USO4) |
    of(VIRTIO_NET_F_GUEST_USO6, NEED_USO6);
  return NEED_CSUM | tso | udp | (tso === 0 ? 0 : of(VIRTIO_NET_F_GUEST_ECN, NEED_ECN));
}

/** What a driver with these features may leave undone. The legacy GSO bit stands for all that there was in its time. */
export function maySendOf(features: bigint): number {
  if (!hasFeature(features, VIRTIO_NET_F_CSUM)) return 0;
  const of = (bit: number, needs: number) => (hasFeature(features, bit) ? needs : 0);
  const legacy = of(VIRTIO_NET_F_GSO, NEED_TSO4 | NEED_TSO6 | NEED_ECN | NEED_UFO);
  const tso = of(VIRTIO_NET_F_HOST_TSO4, NEED_TSO4) | of(VIRTIO_NET_F_HOST_TSO6, NEED_TSO6);
  const udp = of(VIRTIO_NET_F_HOST_UFO, NEED_UFO) | of(VIRTIO_NET_F_HOST_USO, NEED_USO4 | NEED_USO6);
  return NEED_CSUM | legacy | tso | udp | (tso === 0 ? 0 : of(VIRTIO_NET_F_HOST_ECN, NEED_ECN));
}

/**
 * What a packet leaves undone, from the header that its driver wrote, or NEEDS_MALFORMED. `hdr_len` is not asked for: it is but a hint.
 * The headers within a packet that is passed on are for its receiver to check, as in any other packet.
 * @param len the packet's bytes, without the device header
 * @param etherType bytes 12 and 13 of the packet, big-endian
 * @param maySend the sender's, from {@link maySendOf}
 */
export function needsOf(
  flags: number,
  gsoType: number,
  gsoSize: number,
  csumStart: number,
  csumOffset: number,
  len: number,
  etherType: number,
  maySend: number,
): number {
  if ((flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) === 0) return gsoType === VIRTIO_NET_HDR_GSO_NONE ? 0 : NEEDS_MALFORMED;
  if (csumStart < MIN_CSUM_START || csumStart + csumOffset + 2 > len) return NEEDS_MALFORMED;
  let needs = NEED_CSUM;
  if (gsoType !== VIRTIO_NET_HDR_GSO_NONE) {
    const gso = gsoNeeds(gsoType, etherType);
    if (gso === 0 || gsoSize === 0) return NEEDS_MALFORMED;
    const tcp = (gso & (NEED_TSO4 | NEED_TSO6)) !== 0;
    const checkOff = tcp ? TCPHDR.off.check : UDPHDR.off.check;
    const transportLen = tcp ? TCPHDR.size : UDPHDR.size;
    if (csumOffset !== checkOff || csumStart + transportLen > len) return NEEDS_MALFORMED;
    if (etherType === ETH_P_IPV6 && csumStart < ETHHDR.size + IPV6HDR.size) return NEEDS_MALFORMED;
    needs |= gso;
  }
  return (needs & ~maySend) === 0 ? needs : NEEDS_MALFORMED;
}

/** The NEED_ bits of a `gso_type`, or 0 if there is none such for packets of this EtherType. */
function gsoNeeds(gsoType: number, etherType: number): number {
  const tagged = etherType === ETH_P_8021Q || etherType === ETH_P_8021AD;
  const ip4 = etherType === ETH_P_IP || tagged;
  const ip6 = etherType === ETH_P_IPV6 || tagged;
  const ecn = (gsoType & VIRTIO_NET_HDR_GSO_ECN) !== 0 ? NEED_ECN : 0;
  const type = gsoType & ~VIRTIO_NET_HDR_GSO_ECN;
  if (type === VIRTIO_NET_HDR_GSO_TCPV4) return ip4 ? NEED_TSO4 | ecn : 0;
  if (type === VIRTIO_NET_HDR_GSO_TCPV6) return ip6 ? NEED_TSO6 | ecn : 0;
  if (ecn !== 0) return 0;
  if (type === VIRTIO_NET_HDR_GSO_UDP) return ip4 || ip6 ? NEED_UFO : 0;
  // Behind a tag it may be either: then only who takes both gets it as it is.
  if (type === VIRTIO_NET_HDR_GSO_UDP_L4) return (ip4 ? NEED_USO4 : 0) | (ip6 ? NEED_USO6 : 0);
  return 0;
}
