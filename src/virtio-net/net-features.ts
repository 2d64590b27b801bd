/**
 * The feature bits that the network device offers.
 * @see VIRTIO 1.2 §5.1.3, §6
 */
import { featureMask, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_RESET } from '../uapi/virtio.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GSO,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
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
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
} from '../uapi/virtio-net.ts';
import { RING_FEATURES } from '../vhost/ring-features.ts';

/** What decides the offer. */
export interface NetFeatureOptions {
  /** a packet may take several receive buffers */
  readonly mergeable: boolean;
  /** queue pairs */
  readonly pairs: number;
  /** checksums may be left to who receives */
  readonly txCsum: boolean;
  /** packets may be larger than the MTU, to be cut by who sends them on; includes `txCsum`, without which it cannot be (§5.1.3.1) */
  readonly tso: boolean;
  /** addresses may be those of the guest's IOMMU */
  readonly iommu: boolean;
  /** queues may be reset singly; default false, since QEMU 7.2 does not tell of that */
  readonly ringReset?: boolean | undefined;
  /** the config space says the device's address */
  readonly mac?: Uint8Array | undefined;
}

const ALWAYS = RING_FEATURES | featureMask(VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MTU);
const CHECKSUM = featureMask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM);
const SEGMENTATION = featureMask(
  VIRTIO_NET_F_GSO,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_UFO,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_UFO,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
);

/**
 * What a driver may leave undone where it writes its headers for a tap, which takes all of it: the front end of such a driver does not
 * tell what was agreed on.
 */
export const TAP_FEATURES = featureMask(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_UFO,
  VIRTIO_NET_F_HOST_USO,
);

export function offeredNetFeatures({
  mergeable,
  pairs,
  txCsum,
  tso,
  iommu,
  ringReset = false,
  mac,
}: NetFeatureOptions): bigint {
  const sets: [bigint, boolean][] = [
    [featureMask(VIRTIO_NET_F_MRG_RXBUF), mergeable],
    [featureMask(VIRTIO_NET_F_MQ), pairs > 1],
    [featureMask(VIRTIO_F_ACCESS_PLATFORM), iommu],
    [featureMask(VIRTIO_F_RING_RESET), ringReset],
    [featureMask(VIRTIO_NET_F_MAC), mac !== undefined],
    [CHECKSUM, txCsum || tso],
    [SEGMENTATION, tso],
  ];
  return sets.reduce((features, [set, has]) => (has ? features | set : features), ALWAYS);
}
