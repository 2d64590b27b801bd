/**
 * A device, not ours, that takes buffers of a ring with inflight records and goes away in the middle of it: it uses buffers in any order,
 * and counts as it likes.
 */
import assert from 'node:assert/strict';
import type { WindowViews } from '../../src/mem/window.ts';
import {
  INFLIGHT_DESC_PACKED,
  INFLIGHT_DESC_SPLIT,
  INFLIGHT_PACKED_HEAD,
  INFLIGHT_SPLIT_HEAD,
} from '../../src/uapi/inflight.ts';
import { VRING_AVAIL } from '../../src/uapi/virtio-ring.ts';
import { SPLIT_INFLIGHT_WORDS, SplitInflight } from '../../src/virtqueue/inflight.ts';
import { PackedInflight, packedInflightWords } from '../../src/virtqueue/packed-inflight.ts';
import type { InflightPlace, RingConfig } from '../../src/virtqueue/ring-config.ts';

/** The counter that the records say of the `i`th buffer. */
export type CounterOf = (i: number) => number;

const USED_BOTH = 0x8080;
const WRAP = 0x8000;
const INDEX_MASK = WRAP - 1;

const tableOf = (views: WindowViews) => {
  const windows: WindowViews[] = [];
  windows[views.id] = views;
  return windows;
};

/**
 * Takes the first `n` buffers behind the ring's base, and uses those with the numbers `used`, one after the other. In a packed ring each
 * buffer has two descriptors. @returns the buffers' ids, by number
 */
export function leaveInflight(
  views: WindowViews,
  config: RingConfig,
  n: number,
  used: readonly number[],
  counterOf: CounterOf,
): number[] {
  const leave = config.format === 'split' ? leaveSplit : leavePacked;
  return leave(views, config, n, used, counterOf);
}

function leaveSplit(
  views: WindowViews,
  { num, avail, used: usedRing, inflight }: RingConfig,
  n: number,
  used: readonly number[],
  counterOf: CounterOf,
): number[] {
  const place = inflight as InflightPlace;
  const { u16, i32, dv } = views;
  const usedIdx = (usedRing.off + VRING_AVAIL.off.idx) >> 1;
  const start = u16[usedIdx];
  const at = (i: number) => (start + i) & (num - 1);
  const heads = Array.from({ length: n }, (_, i) => u16[(avail.off + VRING_AVAIL.size + 2 * at(i)) >> 1]);
  const records = new SplitInflight(place, num, tableOf(views), new Int32Array(SPLIT_INFLIGHT_WORDS));
  assert.equal(records.recover(start, new Int32Array(num)), 0);
  records.begin(Int32Array.from(heads), n);
  for (const [i, head] of heads.entries()) {
    const entry = place.off + INFLIGHT_SPLIT_HEAD.size + head * INFLIGHT_DESC_SPLIT.size;
    dv.setBigUint64(entry + INFLIGHT_DESC_SPLIT.off.counter, BigInt(counterOf(i)), true);
  }
  const done = Int32Array.from(used, (i) => heads[i]);
  for (const [i, head] of done.entries()) i32.set([head, 0], (usedRing.off + VRING_AVAIL.size + 8 * at(i)) >> 2);
  records.end(done, done.length);
  u16[usedIdx] = start + done.length;
  records.commit(done, done.length, u16[usedIdx]);
  return heads;
}

function leavePacked(
  views: WindowViews,
  { num, desc, base, inflight }: RingConfig,
  n: number,
  used: readonly number[],
  counterOf: CounterOf,
): number[] {
  const place = inflight as InflightPlace;
  const { u16, dv } = views;
  const first = base & INDEX_MASK;
  let at = first;
  let wrap = base & WRAP;
  const descOff = () => desc.off + 16 * at;
  const forward = (by: number) => {
    at += by;
    if (at < num) return;
    at -= num;
    wrap ^= WRAP;
  };
  const ids = Array.from({ length: n }, () => {
    forward(1);
    const id = u16[(descOff() + 12) >> 1]; // the last descriptor has it
    forward(1);
    return id;
  });
  const records = new PackedInflight(place, desc, num, tableOf(views), new Int32Array(packedInflightWords(place.num)));
  assert.equal(records.recover(base, new Int32Array(num)), 0);
  const entries = new Int32Array(n);
  assert.equal(records.begin(first, new Int32Array(n).fill(2), n, entries), n);
  for (const [i, entry] of entries.entries()) {
    const copy = place.off + INFLIGHT_PACKED_HEAD.size + entry * INFLIGHT_DESC_PACKED.size;
    dv.setBigUint64(copy + INFLIGHT_DESC_PACKED.off.counter, BigInt(counterOf(i)), true);
  }
  const done = Int32Array.from(used, (i) => entries[i]);
  records.end(done, done.length);
  at = first;
  wrap = base & WRAP;
  for (const i of used) {
    dv.setUint32(descOff() + 8, 0, true);
    dv.setUint16(descOff() + 12, ids[i], true);
    dv.setUint16(descOff() + 14, wrap === 0 ? 0 : USED_BOTH, true);
    forward(2);
  }
  records.commit(done, done.length);
  return ids;
}
