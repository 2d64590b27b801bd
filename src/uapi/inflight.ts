/**
 * The records of requests in flight, in memory that outlives the back end. Pure data.
 * A vring's records are a queue region: its head, then as many descriptor states as the queue has descriptors.
 * @see QEMU docs/interop/vhost-user.rst "Inflight I/O tracking"
 */
import { layout } from './layout.ts';

/** "DescStateSplit" */
export const INFLIGHT_DESC_SPLIT = layout('DescStateSplit', {
  inflight: 'u8',
  padding: ['u8', 5],
  next: 'u16',
  counter: 'u64',
});
/** "QueueRegionSplit", up to its descriptor states */
export const INFLIGHT_SPLIT = layout('QueueRegionSplit', {
  features: 'u64',
  version: 'u16',
  desc_num: 'u16',
  last_batch_head: 'u16',
  used_idx: 'u16',
});

/** "DescStatePacked" */
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
/** "QueueRegionPacked", up to its descriptor states */
export const INFLIGHT_PACKED = layout('QueueRegionPacked', {
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

/** `version` of a region in use; 0 is one that nobody has initialized. */
export const INFLIGHT_VERSION = 1;

/** Each queue's region begins at a multiple of this, bytes: no cache line belongs to two. */
export const INFLIGHT_ALIGN = 64;

/** Bytes of the records of one vring of `num` descriptors, the next one's alignment included. */
export function inflightQueueBytes(format: 'split' | 'packed', num: number): number {
  const [head, desc] =
    format === 'split' ? [INFLIGHT_SPLIT, INFLIGHT_DESC_SPLIT] : [INFLIGHT_PACKED, INFLIGHT_DESC_PACKED];
  return Math.ceil((head.size + num * desc.size) / INFLIGHT_ALIGN) * INFLIGHT_ALIGN;
}
