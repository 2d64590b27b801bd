/**
 * The plain packets' way through the rings in TypeScript: for windows of kind 'view' and for rings that lie elsewhere than their
 * buffers, and the oracle of `ring-module.ts` in the tests.
 *
 * Loops of their own without a call in them: so the compiler keeps what it knows of the arrays in registers.
 */
import { copySegments } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import { MAX_SEGMENTS } from '../virtqueue/segments.ts';
import type { SplitRing } from '../virtqueue/split-ring.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES, FRONT_WORDS } from './burst.ts';

/** As `take` of the module. */
export function takePlain(ring: SplitRing, burst: Burst, from: number, n: number): number {
  const { desc, descIdx, avail, availIdx, nextAvail, mask, headerLen, num, map } = ring;
  const { hi: mapHi, lo: mapLo, reach, window: mapWindow, base } = map;
  const { first, head: heads, len: lens, front, segments } = burst;
  const { window, off: offs, len: pieceLens } = segments;
  const { dv } = ring.windows[mapWindow];
  let count = segments.count;
  let i = from;
  for (; i < n; i++) {
    const head = avail[availIdx + 2 + ((nextAvail + i) & mask)];
    heads[i] = head;
    if (head >= num) break;
    const at = descIdx + 4 * head;
    const distance = (desc[at] - mapLo) >>> 0;
    const hi = desc[at + 1];
    const len = desc[at + 2];
    if ((desc[at + 3] & 0xffff) !== 0 || hi !== mapHi || len < headerLen + FRONT_BYTES || distance + len > reach) break;
    if (count >= MAX_SEGMENTS) break;
    const off = base + distance + headerLen;
    for (let word = 0; word < FRONT_WORDS; word++) front[FRONT_WORDS * i + word] = dv.getInt32(off + 4 * word, true);
    first[i] = count;
    window[count] = mapWindow;
    offs[count] = off;
    pieceLens[count] = len - headerLen;
    lens[i] = len - headerLen;
    count++;
  }
  return i;
}

const copies = new Int32Array(3 * BURST_SIZE);

/** As `fill` of the module; `src` is the window that packet list[from] lies in. */
export function fillPlain(
  ring: SplitRing,
  burst: Burst,
  src: WindowViews,
  lastWord: number,
  from: number,
  end: number,
  filledBefore: number,
): number {
  const { desc, descIdx, map, headerLen, num, mask, avail, availIdx, nextAvail, used32, usedRingIdx, nextUsed } = ring;
  const { hi: mapHi, lo: mapLo, reach, window: mapWindow, base } = map;
  const { first, len: lens, delivered, list, segments } = burst;
  const { window: srcWindows, off: srcOffs } = segments;
  const dst = ring.windows[mapWindow];
  const { dv } = dst;
  let filled = filledBefore;
  let bytes = 0;
  let i = from;
  for (; i < end; i++) {
    const packet = list[i];
    const piece = first[packet];
    if (first[packet + 1] - piece !== 1 || srcWindows[piece] !== src.id) break;
    const head = avail[availIdx + 2 + ((nextAvail + filled) & mask)];
    if (head >= num) break;
    const entry = descIdx + 4 * head;
    const distance = (desc[entry] - mapLo) >>> 0;
    const hi = desc[entry + 1];
    const buffer = desc[entry + 2];
    const len = lens[packet];
    if ((desc[entry + 3] & 0xffff) !== VRING_DESC_F_WRITE || buffer < len + headerLen) break;
    if (hi !== mapHi || distance + buffer > reach) break;
    const off = base + distance;
    dv.setInt32(off, 0, true);
    dv.setInt32(off + 4, 0, true);
    dv.setInt32(off + headerLen - 4, lastWord, true);
    const at = 3 * (i - from);
    copies[at] = srcOffs[piece];
    copies[at + 1] = off + headerLen;
    copies[at + 2] = len;
    const used = usedRingIdx + 2 * ((nextUsed + filled) & mask);
    used32[used] = head;
    used32[used + 1] = len + headerLen;
    delivered[packet]++;
    bytes += len;
    filled++;
  }
  burst.bytes[0] = bytes;
  copySegments(copies, i - from, src, dst);
  return i;
}

/** As `complete` of the module, for the whole burst. */
export function completePlain({ used32, usedRingIdx, nextUsed, mask }: SplitRing, { head, count }: Burst): void {
  for (let i = 0; i < count; i++) {
    const at = usedRingIdx + 2 * ((nextUsed + i) & mask);
    used32[at] = head[i];
    used32[at + 1] = 0;
  }
}
