/**
 * The protocol features that a device of a type can serve. What its transport can serve is the transport's to say.
 */
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN,
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../uapi/vhost-user.ts';
import { featureMask } from '../uapi/virtio.ts';
import type { DeviceModel } from './device-model.ts';

/** CROSS_ENDIAN is not among them: who negotiates it must handle both byte orders. */
const ALL_TYPES = featureMask(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN,
);

/** What the methods that the model has stand for, beside what every device can do. */
export function protocolFeaturesOf(model: DeviceModel, postcopy: boolean): bigint {
  const bits: [number, boolean][] = [
    [VHOST_USER_PROTOCOL_F_CONFIG, model.configOnOffer],
    [VHOST_USER_PROTOCOL_F_RARP, model.sendRarp !== undefined],
    [VHOST_USER_PROTOCOL_F_MTU, model.setMtu !== undefined],
    [VHOST_USER_PROTOCOL_F_DEVICE_STATE, model.save !== undefined && model.load !== undefined],
    [VHOST_USER_PROTOCOL_F_PAGEFAULT, postcopy],
  ];
  return ALL_TYPES | featureMask(...bits.filter(([, has]) => has).map(([bit]) => bit));
}
