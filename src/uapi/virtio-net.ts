/**
 * Feature bits, packet header and config space of the network device.
 * @see VIRTIO 1.2 §5.1; linux/virtio_net.h
 */
import { layout } from './layout.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from './virtio.ts';

export const VIRTIO_NET_F_CSUM = 0;
export const VIRTIO_NET_F_GUEST_CSUM = 1;
export const VIRTIO_NET_F_MTU = 3;
export const VIRTIO_NET_F_MAC = 5;
/** Legacy: all of HOST_TSO4, TSO6 and ECN (§5.1.3.2). */
export const VIRTIO_NET_F_GSO = 6;
export const VIRTIO_NET_F_GUEST_TSO4 = 7;
export const VIRTIO_NET_F_GUEST_TSO6 = 8;
export const VIRTIO_NET_F_GUEST_ECN = 9;
export const VIRTIO_NET_F_GUEST_UFO = 10;
export const VIRTIO_NET_F_HOST_TSO4 = 11;
export const VIRTIO_NET_F_HOST_TSO6 = 12;
export const VIRTIO_NET_F_HOST_ECN = 13;
export const VIRTIO_NET_F_HOST_UFO = 14;
export const VIRTIO_NET_F_MRG_RXBUF = 15;
export const VIRTIO_NET_F_STATUS = 16;
export const VIRTIO_NET_F_CTRL_VQ = 17;
export const VIRTIO_NET_F_GUEST_ANNOUNCE = 21;
export const VIRTIO_NET_F_MQ = 22;
export const VIRTIO_NET_F_GUEST_USO4 = 54;
export const VIRTIO_NET_F_GUEST_USO6 = 55;
export const VIRTIO_NET_F_HOST_USO = 56;
export const VIRTIO_NET_F_SPEED_DUPLEX = 63;

/** §5.1.6: with VERSION_1 or MRG_RXBUF 12 bytes; a legacy device without MRG_RXBUF has no num_buffers, 10 bytes. */
export const VIRTIO_NET_HDR_MRG_RXBUF = layout('virtio_net_hdr_mrg_rxbuf', {
  flags: 'u8',
  gso_type: 'u8',
  hdr_len: 'u16',
  gso_size: 'u16',
  csum_start: 'u16',
  csum_offset: 'u16',
  num_buffers: 'u16',
});

/** `flags`: the checksum from csum_start on is to be completed; or it has been checked. */
export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
export const VIRTIO_NET_HDR_F_DATA_VALID = 2;

/** `gso_type`; the ECN bit may stand beside a TCP type. */
export const VIRTIO_NET_HDR_GSO_NONE = 0;
export const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
export const VIRTIO_NET_HDR_GSO_UDP = 3;
export const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
export const VIRTIO_NET_HDR_GSO_UDP_L4 = 5;
export const VIRTIO_NET_HDR_GSO_ECN = 0x80;

/** §5.1.4 Device configuration layout, as far as this device has it. */
export const VIRTIO_NET_CONFIG = layout('virtio_net_config', {
  mac: ['u8', 6],
  status: 'u16',
  max_virtqueue_pairs: 'u16',
  mtu: 'u16',
  speed: 'u32',
  duplex: 'u8',
});

export const VIRTIO_NET_S_LINK_UP = 1;

/** Queue pairs that a device may have (§5.1.5). The vhost-user protocol's vring indexes end at 128 pairs. */
export const VIRTIO_NET_MAX_PAIRS = 128;

/** Bytes of the header in front of every frame under the negotiated `features`. */
export function netHeaderSize(features: bigint): 10 | 12 {
  return hasFeature(features, VIRTIO_F_VERSION_1) || hasFeature(features, VIRTIO_NET_F_MRG_RXBUF) ? 12 : 10;
}
