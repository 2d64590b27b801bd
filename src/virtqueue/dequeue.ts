/**
 * Stage 1 of a packet's way: takes what the driver has made available and lists where its bytes lie.
 */
import { BURST_SIZE, type Burst, MAX_SEGMENTS } from './burst.ts';
import { appendChain, CHAIN_FULL } from './chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_HEAD_RANGE, FAULT_NO_HEADER } from './fault.ts';
import type { SplitRing } from './split-ring.ts';

/**
 * Fills the burst from the ring, without the device headers. A malformed chain sets `ring.fault` and ends the burst before it.
 * The heads stay the device's until `completeBurst`.
 * @returns packets taken, 0 to 32
 */
export function dequeueBurst(ring: SplitRing, burst: Burst): number {
  burst.segments.count = 0;
  burst.count = 0;
  const ready = ring.refresh();
  if (ready === 0) return 0;
  const n = Math.min(ready, BURST_SIZE);
  readHeads(ring, burst, n);
  let i = takePlain(ring, burst, 0, n);
  while (i < n && takeAny(ring, burst, i)) i = takePlain(ring, burst, i + 1, n);
  burst.first[i] = burst.segments.count;
  burst.count = i;
  ring.take(i);
  return i;
}

function readHeads({ avail, availIdx, nextAvail, mask }: SplitRing, { head }: Burst, n: number): void {
  const at = availIdx + 2;
  for (let i = 0; i < n; i++) head[i] = avail[at + ((nextAvail + i) & mask)];
}

/**
 * Takes packets `from` to `n` − 1 as long as each is one plain descriptor in the memory chunk at hand. A loop of its own without
 * a call in it: so the compiler keeps what it knows of the arrays in registers.
 * @returns the first packet that is something else, or `n`
 */
function takePlain(ring: SplitRing, burst: Burst, from: number, n: number): number {
  const { desc, descIdx, headerLen, num, map } = ring;
  const { hi: mapHi, lo: mapLo, reach, window: mapWindow, base } = map;
  const { first, head, len: lens, segments } = burst;
  const { window, off, len: pieceLens } = segments;
  let count = segments.count;
  let i = from;
  for (; i < n && count < MAX_SEGMENTS; i++) {
    if (head[i] >= num) break;
    const at = descIdx + 4 * head[i];
    const distance = (desc[at] - mapLo) >>> 0;
    const hi = desc[at + 1];
    const len = desc[at + 2];
    if ((desc[at + 3] & 0xffff) !== 0 || len <= headerLen || hi !== mapHi || distance + len > reach) break;
    first[i] = count;
    window[count] = mapWindow;
    off[count] = base + distance + headerLen;
    pieceLens[count] = len - headerLen;
    lens[i] = len - headerLen;
    count++;
  }
  segments.count = count;
  return i;
}

/** Takes packet `i`, whatever its layout. @returns false if the burst ends before it, `ring.fault` says whether in disgrace */
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
  return true;
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
  const { count, head } = burst;
  const { used32, usedRingIdx, nextUsed, mask } = ring;
  for (let i = 0; i < count; i++) {
    const at = usedRingIdx + 2 * ((nextUsed + i) & mask);
    used32[at] = head[i];
    used32[at + 1] = 0;
  }
  ring.publish(count);
  ring.notify();
}
