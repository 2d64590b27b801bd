/**
 * The feature bits that do not depend on a device's type: what the rings and the transport can do.
 * @see VIRTIO 1.2 §6
 */
import {
  featureMask,
  VHOST_F_LOG_ALL,
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../uapi/virtio.ts';

/**
 * On offer by every device, whatever its type. RING_RESET is not among them, though rings may be stopped and started singly: QEMU 7.2
 * passes the bit on to the driver, and tells a vhost-user back end nothing of a queue's reset.
 */
export const RING_FEATURES = featureMask(
  VHOST_F_LOG_ALL,
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_NOTIFICATION_DATA,
);
