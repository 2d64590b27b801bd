/**
 * The vhost-user protocol: message layouts, request numbers, protocol feature bits, flags and limits. Pure data.
 * All numbers are in the machine's byte order, which is little endian on every machine this package runs on.
 * @see QEMU docs/interop/vhost-user.rst "Message Specification"
 */
import { layout, packedLayout } from './layout.ts';

/** "Header": `size` counts the payload's bytes */
export const VHOST_USER_HEADER = packedLayout('vhost_user_header', { request: 'u32', flags: 'u32', size: 'u32' });
/** "A vring state description" */
export const VHOST_VRING_STATE = packedLayout('vhost_vring_state', { index: 'u32', num: 'u32' });
/** "A vring address description" */
export const VHOST_VRING_ADDR = packedLayout('vhost_vring_addr', {
  index: 'u32',
  flags: 'u32',
  desc_user_addr: 'u64',
  used_user_addr: 'u64',
  avail_user_addr: 'u64',
  log_guest_addr: 'u64',
});
/** "Memory region description" */
export const VHOST_MEMORY_REGION = packedLayout('vhost_user_memory_region', {
  guest_phys_addr: 'u64',
  memory_size: 'u64',
  userspace_addr: 'u64',
  mmap_offset: 'u64',
});
/** "Multiple memory regions description": this head, then `nregions` regions */
export const VHOST_MEMORY = packedLayout('vhost_user_memory', { nregions: 'u32', padding: 'u32' });
/** "Single memory region description": this head, then one region */
export const VHOST_MEM_REG = packedLayout('vhost_user_mem_reg', { padding: 'u64' });
/** "Log description": where the dirty log lies in the descriptor's file */
export const VHOST_USER_LOG = packedLayout('vhost_user_log', { mmap_size: 'u64', mmap_offset: 'u64' });
/** "An IOTLB message": the kernel's struct, padded to 32 bytes */
export const VHOST_IOTLB_MESSAGE = layout('vhost_iotlb_msg', {
  iova: 'u64',
  size: 'u64',
  uaddr: 'u64',
  perm: 'u8',
  type: 'u8',
});
/** "Virtio device config space": this head, then `size` bytes */
export const VHOST_USER_CONFIG = packedLayout('vhost_user_config', { offset: 'u32', size: 'u32', flags: 'u32' });
/** "Inflight description": QEMU and DPDK send the padding of the C struct along */
export const VHOST_USER_INFLIGHT = layout('vhost_user_inflight', {
  mmap_size: 'u64',
  mmap_offset: 'u64',
  num_queues: 'u16',
  queue_size: 'u16',
});
/** "Device state transfer parameters" */
export const VHOST_USER_TRANSFER = packedLayout('vhost_user_transfer_device_state', { direction: 'u32', phase: 'u32' });
/** "Vring area description": `index` is a vring with flags, as SET_VRING_KICK has it */
export const VHOST_USER_VRING_AREA = packedLayout('vhost_user_vring_area', {
  index: 'u64',
  size: 'u64',
  offset: 'u64',
});

/** Header flags: bits 0–1 are the version, always 1. */
export const VHOST_USER_VERSION_MASK = 3;
export const VHOST_USER_VERSION = 1;
export const VHOST_USER_REPLY = 4;
export const VHOST_USER_NEED_REPLY = 8;

/** Payload of SET_VRING_KICK, _CALL and _ERR: bits 0–7 are the vring's index, bit 8 says that no descriptor comes along. */
export const VHOST_USER_VRING_IDX_MASK = 0xff;
export const VHOST_USER_VRING_NOFD_MASK = 0x100;

/** Flag of SET_VRING_ADDR: writes to the used ring are logged. */
export const VHOST_VRING_F_LOG = 1;

/** "An IOTLB message": its types */
export const VHOST_IOTLB_MISS = 1;
export const VHOST_IOTLB_UPDATE = 2;
export const VHOST_IOTLB_INVALIDATE = 3;
/** and its permissions */
export const VHOST_ACCESS_RO = 1;
export const VHOST_ACCESS_WO = 2;
export const VHOST_ACCESS_RW = 3;

/** Flags of SET_CONFIG: written by the driver, or restored by live migration */
export const VHOST_SET_CONFIG_TYPE_FRONTEND = 0;
export const VHOST_SET_CONFIG_TYPE_MIGRATION = 1;

/** "Device state transfer parameters": directions, and the only phase there is */
export const VHOST_TRANSFER_STATE_DIRECTION_SAVE = 0;
export const VHOST_TRANSFER_STATE_DIRECTION_LOAD = 1;
export const VHOST_TRANSFER_STATE_PHASE_STOPPED = 0;

/** Regions, and so file descriptors, in one message. */
export const VHOST_USER_MAX_REGIONS = 8;
export const VHOST_USER_MAX_FDS = 8;
/** Regions a device may hold with CONFIGURE_MEM_SLOTS: the kernel's vhost limit, which QEMU expects at most. */
export const VHOST_USER_MAX_MEM_SLOTS = 509;
/** Vrings that an index of 8 bits can name. */
export const VHOST_USER_MAX_VRINGS = 256;
/** Bytes of config space in one message. */
export const VHOST_USER_MAX_CONFIG_SIZE = 256;
/** Bytes of payload beyond any message of the protocol; a header that claims more is an error. */
export const VHOST_USER_MAX_PAYLOAD = 4096;

export const VHOST_USER_PROTOCOL_F_MQ = 0;
export const VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1;
export const VHOST_USER_PROTOCOL_F_RARP = 2;
export const VHOST_USER_PROTOCOL_F_REPLY_ACK = 3;
export const VHOST_USER_PROTOCOL_F_MTU = 4;
export const VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5;
export const VHOST_USER_PROTOCOL_F_CROSS_ENDIAN = 6;
export const VHOST_USER_PROTOCOL_F_CRYPTO_SESSION = 7;
export const VHOST_USER_PROTOCOL_F_PAGEFAULT = 8;
export const VHOST_USER_PROTOCOL_F_CONFIG = 9;
export const VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10;
export const VHOST_USER_PROTOCOL_F_HOST_NOTIFIER = 11;
export const VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12;
export const VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13;
export const VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14;
export const VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15;
export const VHOST_USER_PROTOCOL_F_STATUS = 16;
export const VHOST_USER_PROTOCOL_F_XEN_MMAP = 17;
export const VHOST_USER_PROTOCOL_F_SHARED_OBJECT = 18;
export const VHOST_USER_PROTOCOL_F_DEVICE_STATE = 19;
export const VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT = 20;
export const VHOST_USER_PROTOCOL_F_GPA_ADDRESSES = 21;
export const VHOST_USER_PROTOCOL_F_SHMEM = 22;
export const VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN = 23;

/** "Front-end message types": the number of every request, by the name without its VHOST_USER_ prefix. */
export const REQUEST = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  CREATE_CRYPTO_SESSION: 26,
  CLOSE_CRYPTO_SESSION: 27,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  GPU_SET_SOCKET: 33,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  GET_SHARED_OBJECT: 41,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
  GET_SHMEM_CONFIG: 44,
  GET_VRING_BASE_SKIP_DRAIN: 45,
} as const;

/** "Back-end message types", which go the other way over a socket of their own */
export const BACKEND_REQUEST = {
  BACKEND_IOTLB_MSG: 1,
  BACKEND_CONFIG_CHANGE_MSG: 2,
  BACKEND_VRING_HOST_NOTIFIER_MSG: 3,
  BACKEND_VRING_CALL: 4,
  BACKEND_VRING_ERR: 5,
  BACKEND_SHARED_OBJECT_ADD: 6,
  BACKEND_SHARED_OBJECT_REMOVE: 7,
  BACKEND_SHARED_OBJECT_LOOKUP: 8,
  BACKEND_SHMEM_MAP: 9,
  BACKEND_SHMEM_UNMAP: 10,
} as const;

/** Name of a request of the protocol, without its VHOST_USER_ prefix. */
export type RequestName = keyof typeof REQUEST;

const namesOf = (numbers: Readonly<Record<string, number>>) =>
  new Map(Object.entries(numbers).map(([name, number]): [number, string] => [number, name]));
const NAMES = namesOf(REQUEST);
const BACKEND_NAMES = namesOf(BACKEND_REQUEST);

/** The name of request number `request` for messages to people, `request 99` where the protocol has none. */
export function requestName(request: number): string {
  return NAMES.get(request) ?? `request ${request}`;
}

/** The same for a back end's request. */
export function backendRequestName(request: number): string {
  return BACKEND_NAMES.get(request) ?? `back-end request ${request}`;
}

/** True if the protocol has a request of this number. */
export function isRequest(request: number): boolean {
  return NAMES.has(request);
}
