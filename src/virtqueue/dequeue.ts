/**
 * Stage 1 of a packet's way: takes what the driver has made available and lists where its bytes lie.
 */
import { BURST_SIZE, type Burst } from './burst.ts';
import { appendChain, CHAIN_FULL } from './chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_HEAD_RANGE, FAULT_NO_HEADER } from './fault.ts';
import type { SplitRing } from './split-ring.ts';

/**
 * Fills the burst from the ring, without the device headers. A malformed chain sets `ring.fault` and ends the burst before it.
 * The heads stay the device's until `completeBurst`.
 * @returns packets taken, 0 to 32
 */
export function dequeueBurst(ring: SplitRing, burst: Burst): number {
  const segments = burst.segments;
  segments.count = 0;
  burst.count = 0;
  let n = ring.refresh();
  if (n === 0) return 0;
  if (n > BURST_SIZE) n = BURST_SIZE;
  for (let i = 0; i < n; i++) burst.head[i] = ring.headAt(i);

  const { desc, descIdx, map, headerLen, num } = ring;
  let i = 0;
  for (; i < n; i++) {
    const head = burst.head[i];
    if (head >= num) {
      ring.fault = FAULT_HEAD_RANGE;
      break;
    }
    const at = descIdx + 4 * head;
    const lo = desc[at];
    const hi = desc[at + 1];
    const len = desc[at + 2];
    const from = segments.count;
    burst.first[i] = from;
    if ((desc[at + 3] & 0xffff) === 0 && len > headerLen) {
      const chunk = map.find(lo, hi, len);
      if (chunk >= 0) {
        segments.push(map.window(chunk), map.offset(chunk, lo) + headerLen, len - headerLen);
        burst.len[i] = len - headerLen;
        continue;
      }
    }
    const total = appendChain(ring, head, 0, segments);
    if (total < headerLen) {
      if (total >= 0) ring.fault = FAULT_NO_HEADER;
      else if (total === CHAIN_FULL && i === 0) ring.fault = FAULT_CHAIN_LOOP;
      segments.count = from;
      break;
    }
    skipHeader(burst, from, headerLen);
    burst.len[i] = total - headerLen;
  }
  burst.first[i] = segments.count;
  burst.count = i;
  ring.take(i);
  return i;
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
export function completeBurst(ring: SplitRing, burst: Burst): void {
  const n = burst.count;
  for (let i = 0; i < n; i++) ring.putUsed(i, burst.head[i], 0);
  ring.publish(n);
  ring.notify();
}
