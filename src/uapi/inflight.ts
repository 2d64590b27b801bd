/**
 * The records of inflight descriptors that a back end shares with its front end, so that its successor can go on.
 * @see QEMU docs/interop/vhost-user.rst "Inflight I/O tracking"
 */
import { layout } from './layout.ts';

/** QueueRegionSplit: this head, then one INFLIGHT_DESC_SPLIT a descriptor */
export const INFLIGHT_SPLIT_HEAD = layout('QueueRegionSplit', {
  features: 'u64',
  version: 'u16',
  desc_num: 'u16',
  last_batch_head: 'u16',
  used_idx: 'u16',
});
/** DescStateSplit */
export const INFLIGHT_DESC_SPLIT = layout('DescStateSplit', {
  inflight: 'u8',
  padding: ['u8', 5],
  next: 'u16',
  counter: 'u64',
});
/** QueueRegionPacked: this head, then one INFLIGHT_DESC_PACKED a descriptor */
export const INFLIGHT_PACKED_HEAD = layout('QueueRegionPacked', {
  features: 'u64',
  version: 'u16',
  desc_num: 'u16',
  free_head: 'u16',
  old_free_head: 'u16',
  used_idx: 'u16',
  old_used_idx: 'u16',
  used_wrap_counter: 'u8',
  old_used_wrap_counter: 'u8',
  padding: ['u8', 7],
});
/** DescStatePacked */
export const INFLIGHT_DESC_PACKED = layout('DescStatePacked', {
  inflight: 'u8',
  padding: 'u8',
  next: 'u16',
  last: 'u16',
  num: 'u16',
  counter: 'u64',
  id: 'u16',
  flags: 'u16',
  len: 'u32',
  addr: 'u64',
});

/** `version` of a region in use; 0 means that nothing is in it yet. */
export const INFLIGHT_VERSION = 1;
/** Other back ends begin each queue's region at a multiple of this many bytes; a successor may be one of them. */
export const INFLIGHT_ALIGN = 64;

/** Bytes of one queue's region with its padding. The spec leaves the distance of two regions open. */
export function inflightQueueBytes(format: 'split' | 'packed', num: number): number {
  const [head, desc] =
    format === 'split' ? [INFLIGHT_SPLIT_HEAD, INFLIGHT_DESC_SPLIT] : [INFLIGHT_PACKED_HEAD, INFLIGHT_DESC_PACKED];
  return Math.ceil((head.size + num * desc.size) / INFLIGHT_ALIGN) * INFLIGHT_ALIGN;
}
