/**
 * The virtqueue's memory layout.
 * @see VIRTIO 1.2 §2.7 (split virtqueues), §2.8 (packed virtqueues); linux/virtio_ring.h
 */
import { layout } from './layout.ts';

/** §2.7.5 The virtqueue descriptor table */
export const VRING_DESC = layout('vring_desc', { addr: 'u64', len: 'u32', flags: 'u16', next: 'u16' });
/** §2.7.6, §2.7.8: the fixed head of both rings; the entries follow, then used_event or avail_event */
export const VRING_AVAIL = layout('vring_avail', { flags: 'u16', idx: 'u16' });
export const VRING_USED_ELEM = layout('vring_used_elem', { id: 'u32', len: 'u32' });

export const VRING_DESC_F_NEXT = 1;
export const VRING_DESC_F_WRITE = 2;
export const VRING_DESC_F_INDIRECT = 4;

export const VRING_USED_F_NO_NOTIFY = 1;
export const VRING_AVAIL_F_NO_INTERRUPT = 1;

/** §2.7, §2.8.10.1: a ring holds at most this many descriptors; a split ring's number is a power of two */
export const VIRTQ_MAX_SIZE = 32768;

/** Alignment of the ring's three parts, bytes (§2.7). */
export const VRING_DESC_ALIGN = 16;
export const VRING_AVAIL_ALIGN = 2;
export const VRING_USED_ALIGN = 4;

/** Bytes of a ring's descriptor table. */
export const vringDescBytes = (num: number) => num * VRING_DESC.size;
/** Bytes of the driver area, used_event included. */
export const vringAvailBytes = (num: number) => VRING_AVAIL.size + 2 * num + 2;
/** Bytes of the device area, avail_event included. */
export const vringUsedBytes = (num: number) => VRING_AVAIL.size + VRING_USED_ELEM.size * num + 2;

/** §2.8.13 The packed descriptor, of the ring and of indirect tables alike; a used one has id, len and flags only */
export const VRING_PACKED_DESC = layout('vring_packed_desc', { addr: 'u64', len: 'u32', id: 'u16', flags: 'u16' });
/** §2.8.14 Event suppression structure, one written by the driver and one by the device */
export const VRING_PACKED_DESC_EVENT = layout('vring_packed_desc_event', { off_wrap: 'u16', flags: 'u16' });

/** Bit numbers in a packed descriptor's flags (§2.8.1), beside the VRING_DESC_F_ values, which are the split ring's. */
export const VRING_PACKED_DESC_F_AVAIL = 7;
export const VRING_PACKED_DESC_F_USED = 15;

/** `flags` of the event suppression structure; DESC needs EVENT_IDX (§2.8.10). */
export const VRING_PACKED_EVENT_FLAG_ENABLE = 0;
export const VRING_PACKED_EVENT_FLAG_DISABLE = 1;
export const VRING_PACKED_EVENT_FLAG_DESC = 2;
/** Bit number of the wrap counter in `off_wrap`; the bits below are the descriptor's place in the ring. */
export const VRING_PACKED_EVENT_F_WRAP_CTR = 15;

/** Alignment of the packed ring's three parts, bytes (§2.8.10.1): descriptor ring, and the two event structures. */
export const VRING_PACKED_DESC_ALIGN = 16;
export const VRING_PACKED_EVENT_ALIGN = 4;

/** Bytes of a packed ring's descriptor ring. Driver and device area are a VRING_PACKED_DESC_EVENT each. */
export const vringPackedDescBytes = (num: number) => num * VRING_PACKED_DESC.size;
