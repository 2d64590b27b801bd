/**
 * The ioctls of /dev/vhost-net: numbers, structs and feature bits. Structs that vhost-user has taken over unchanged are in `vhost-user.ts`.
 * @see linux/vhost.h, linux/vhost_types.h
 */
import { layout } from './layout.ts';

export const VHOST_GET_FEATURES = 0x8008af00;
export const VHOST_SET_FEATURES = 0x4008af00;
export const VHOST_SET_OWNER = 0xaf01;
export const VHOST_RESET_OWNER = 0xaf02;
export const VHOST_SET_MEM_TABLE = 0x4008af03;
export const VHOST_SET_LOG_BASE = 0x4008af04;
export const VHOST_SET_LOG_FD = 0x4004af07;
export const VHOST_SET_VRING_NUM = 0x4008af10;
export const VHOST_SET_VRING_ADDR = 0x4028af11;
export const VHOST_SET_VRING_BASE = 0x4008af12;
export const VHOST_GET_VRING_BASE = 0xc008af12;
export const VHOST_SET_VRING_KICK = 0x4008af20;
export const VHOST_SET_VRING_CALL = 0x4008af21;
export const VHOST_SET_VRING_ERR = 0x4008af22;
export const VHOST_SET_BACKEND_FEATURES = 0x4008af25;
export const VHOST_GET_BACKEND_FEATURES = 0x8008af26;
export const VHOST_NET_SET_BACKEND = 0x4008af30;

/** `fd` is −1 for none. */
export const VHOST_VRING_FILE = layout('vhost_vring_file', { index: 'u32', fd: 's32' });
/** `nregions` regions follow it. */
export const VHOST_MEMORY_TABLE = layout('vhost_memory', { nregions: 'u32', padding: 'u32' });
export const VHOST_MEMORY_TABLE_REGION = layout('vhost_memory_region', {
  guest_phys_addr: 'u64',
  memory_size: 'u64',
  userspace_addr: 'u64',
  flags_padding: 'u64',
});

/** What `fd` is to say that there is none. */
export const VHOST_FILE_UNBIND = -1;

/** vhost supplies the header of packets, since the tap beneath has none. The bit is VIRTIO_F_ANY_LAYOUT's. */
export const VHOST_NET_F_VIRTIO_NET_HDR = 27;

/** Messages of translations, which are read from the device and written to it; `padding` begins with a vhost_iotlb_msg. */
export const VHOST_MSG_V2 = layout('vhost_msg_v2', { type: 'u32', asid: 'u32', padding: ['u64', 8] });
/** Types of messages: without and with an address space's number, which had no name before. */
export const VHOST_IOTLB_MSG = 1;
export const VHOST_IOTLB_MSG_V2 = 2;
/** Feature bit of the back end: messages are of the second type. */
export const VHOST_BACKEND_F_IOTLB_MSG_V2 = 1;
