/**
 * Stage 1 of a packet's way: takes what the driver has made available and lists where its bytes lie; and stage 4, which gives it
 * back.
 */

import type { WindowViews } from '../mem/window.ts';
import { CHAIN_FULL, CHAIN_MISS } from '../virtqueue/chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_NO_HEADER } from '../virtqueue/fault.ts';
import type { SegmentList } from '../virtqueue/segments.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES, HEADER_BYTES } from './burst.ts';
import type { NetVring } from './net-vring.ts';
import type { RingStage } from './ring-stage.ts';
import { tallyPacket } from './tally.ts';

/**
 * Fills the stage's burst from the vring, without the device headers. A malformed chain sets `ring.fault` and ends the burst
 * before it; one with a translation missing ends it too, and `vring.waiting` is set. The chains stay the device's until
 * `completeBurst`.
 * @param limit packets at most, up to 32
 * @returns packets taken
 */
export function dequeueBurst(vring: NetVring, stage: RingStage, limit = BURST_SIZE): number {
  const { ring } = vring;
  const { burst } = stage;
  burst.segments.count = 0;
  burst.count = 0;
  if (burst.offloads) {
    burst.needs.fill(0);
    burst.offloads = false;
  }
  burst.tagged = false;
  const ready = ring.refresh();
  if (ready === 0) return 0;
  const n = Math.min(ready, limit);
  const plain = stage.take(vring, 0, n, 0);
  let i = plain;
  let ahead = i;
  while (i < n && takeAny(vring, burst, i, ahead)) {
    ahead += ring.chainSlots;
    const from = ++i;
    if (from < n) i = stage.take(vring, from, n, ahead);
    ahead += i - from;
  }
  if (ring.records !== undefined && !ring.begin(0, burst.id, burst.slots, i)) {
    burst.tally.fill(0);
    return 0;
  }
  burst.first[i] = burst.segments.count;
  burst.count = i;
  burst.uniform = i === plain && burst.alike;
  burst.slotCount = ahead;
  vring.count(burst.tally);
  return i;
}

/** Takes packet `i`, whatever its layout, from the slot `ahead`. @returns false if the burst ends before it */
function takeAny(vring: NetVring, burst: Burst, i: number, ahead: number): boolean {
  const { ring, headerLen } = vring;
  const { segments } = burst;
  const from = segments.count;
  const total = ring.chainAt(ahead, 0, segments);
  if (total < headerLen) {
    if (total >= 0) ring.fault = FAULT_NO_HEADER;
    else if (total === CHAIN_FULL && i === 0) ring.fault = FAULT_CHAIN_LOOP;
    else if (total === CHAIN_MISS) vring.waiting = i === 0;
    segments.count = from;
    return false;
  }
  burst.id[i] = ring.chainId;
  burst.slots[i] = ring.chainSlots;
  gather(ring.windows, segments, from, burst.headerBytes, HEADER_BYTES * i, headerLen);
  skipHeader(segments, from, headerLen);
  burst.first[i] = from;
  burst.len[i] = total - headerLen;
  gather(ring.windows, segments, from, burst.frontBytes, FRONT_BYTES * i, FRONT_BYTES);
  tallyPacket(burst, i, total - headerLen);
  vring.readHeader(burst, i);
  return true;
}

/** Copies the first `len` bytes of the last packet, whose segments begin at `from`, to `out` at `at`; what it lacks is zero. */
function gather(
  windows: readonly WindowViews[],
  segments: SegmentList,
  from: number,
  out: Uint8Array,
  at: number,
  len: number,
): void {
  const end = at + len;
  for (let s = from; s < segments.count && at < end; s++) {
    const { u8 } = windows[segments.window[s]];
    const off = segments.off[s];
    const n = Math.min(segments.len[s], end - at);
    for (let k = 0; k < n; k++) out[at++] = u8[off + k];
  }
  while (at < end) out[at++] = 0;
}

/** Takes `headerLen` bytes off the front of the packet whose segments begin at `from`; some may become empty and are closed up. */
function skipHeader(segments: SegmentList, from: number, headerLen: number): void {
  let left = headerLen;
  let empty = 0;
  while (from + empty < segments.count && left >= segments.len[from + empty]) {
    left -= segments.len[from + empty];
    empty++;
  }
  if (left > 0) {
    segments.off[from + empty] += left;
    segments.len[from + empty] -= left;
  }
  if (empty === 0) return;
  segments.count -= empty;
  for (let s = from; s < segments.count; s++) {
    segments.window[s] = segments.window[s + empty];
    segments.off[s] = segments.off[s + empty];
    segments.len[s] = segments.len[s + empty];
  }
}

/** Stage 4: gives all of the burst's chains back to the driver, in order, and notifies it once. */
export function completeBurst(vring: NetVring, stage: RingStage): void {
  const { ring } = vring;
  stage.complete(vring);
  ring.publish(stage.burst.slotCount, false);
  ring.notify();
}
