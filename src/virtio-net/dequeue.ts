/**
 * Stage 1 of a packet's way: takes what the driver has made available and lists where its bytes lie; and stage 4, which gives it
 * back.
 */

import { appendChain, CHAIN_FULL } from '../virtqueue/chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_HEAD_RANGE, FAULT_NO_HEADER } from '../virtqueue/fault.ts';
import type { SplitRing } from '../virtqueue/split-ring.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES } from './burst.ts';
import type { RingStage } from './ring-stage.ts';

/**
 * Fills the stage's burst from the ring, without the device headers. A malformed chain sets `ring.fault` and ends the burst
 * before it. The heads stay the device's until `completeBurst`.
 * @returns packets taken, 0 to 32
 */
export function dequeueBurst(ring: SplitRing, stage: RingStage): number {
  const { burst } = stage;
  burst.segments.count = 0;
  burst.count = 0;
  const ready = ring.refresh();
  if (ready === 0) return 0;
  const n = Math.min(ready, BURST_SIZE);
  let i = stage.take(ring, 0, n);
  while (i < n && takeAny(ring, burst, i)) i = i + 1 < n ? stage.take(ring, i + 1, n) : n;
  burst.first[i] = burst.segments.count;
  burst.count = i;
  ring.take(i);
  return i;
}

/** Takes packet `i`, whose head has been read, whatever its layout. @returns false if the burst ends before it */
function takeAny(ring: SplitRing, burst: Burst, i: number): boolean {
  const { segments } = burst;
  const from = segments.count;
  if (burst.head[i] >= ring.num) {
    ring.fault = FAULT_HEAD_RANGE;
    return false;
  }
  const total = appendChain(ring, burst.head[i], 0, segments);
  if (total < ring.headerLen) {
    if (total >= 0) ring.fault = FAULT_NO_HEADER;
    else if (total === CHAIN_FULL && i === 0) ring.fault = FAULT_CHAIN_LOOP;
    segments.count = from;
    return false;
  }
  skipHeader(burst, from, ring.headerLen);
  burst.first[i] = from;
  burst.len[i] = total - ring.headerLen;
  gatherFront(ring, burst, i);
  return true;
}

/** The front of packet `i`, the last in the burst so far, from however many segments it lies in. */
function gatherFront({ windows }: SplitRing, { segments, first, frontBytes }: Burst, i: number): void {
  const end = FRONT_BYTES * (i + 1);
  let at = FRONT_BYTES * i;
  for (let s = first[i]; s < segments.count && at < end; s++) {
    const { u8 } = windows[segments.window[s]];
    const n = Math.min(segments.len[s], end - at);
    for (let k = 0; k < n; k++) frontBytes[at++] = u8[segments.off[s] + k];
  }
  while (at < end) frontBytes[at++] = 0;
}

/** Takes `headerLen` bytes off the front of the packet whose segments begin at `from`; some may become empty and are closed up. */
function skipHeader(burst: Burst, from: number, headerLen: number): void {
  const { segments } = burst;
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
export function completeBurst(ring: SplitRing, stage: RingStage): void {
  stage.complete(ring);
  ring.publish(stage.burst.count);
  ring.notify();
}
