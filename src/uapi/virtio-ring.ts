/**
 * The virtqueue's memory layout.
 * @see VIRTIO 1.2 §2.7 (split virtqueues); linux/virtio_ring.h
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

/** §2.7: a split ring holds at most this many descriptors, a power of two */
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
