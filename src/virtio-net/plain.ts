/**
 * The plain packets' way through split rings in TypeScript: for windows of kind 'view' and for rings that lie elsewhere than their
 * buffers, and the oracle of `split-module.ts` in the tests.
 *
 * Loops of their own without a call in them: so the compiler keeps what it knows of the arrays in registers.
 */
import { copySegments } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import { MAX_SEGMENTS } from '../virtqueue/segments.ts';
import type { SplitRing } from '../virtqueue/split-ring.ts';
import type { Vring } from '../virtqueue/vring.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES, FRONT_WORDS } from './burst.ts';
import { tallyPacket } from './tally.ts';

/** As `takeSplit` of the module. */
export function takePlain(ring: SplitRing, headerLen: number, burst: Burst, from: number, n: number): number {
  const { desc, descIdx, avail, availIdx, next, mask, num, map } = ring;
  const { hi: mapHi, lo: mapLo, reach, window: mapWindow, base } = map;
  const { first, id: ids, len: lens, front, segments } = burst;
  const { window, off: offs, len: pieceLens } = segments;
  const { dv } = ring.windows[mapWindow];
  let count = segments.count;
  let i = from;
  for (; i < n; i++) {
    const head = avail[availIdx + 2 + ((next + i) & mask)];
    if (head >= num) break;
    const at = descIdx + 4 * head;
    const distance = (desc[at] - mapLo) >>> 0;
    const hi = desc[at + 1];
    const len = desc[at + 2];
    if ((desc[at + 3] & 0xffff) !== 0 || hi !== mapHi || len < headerLen + FRONT_BYTES || distance + len > reach) break;
    if (count >= MAX_SEGMENTS) break;
    if (dv.getUint16(base + distance, true) !== 0) break;
    const off = base + distance + headerLen;
    ids[i] = head;
    for (let word = 0; word < FRONT_WORDS; word++) front[FRONT_WORDS * i + word] = dv.getInt32(off + 4 * word, true);
    first[i] = count;
    window[count] = mapWindow;
    offs[count] = off;
    pieceLens[count] = len - headerLen;
    lens[i] = len - headerLen;
    count++;
  }
  for (let k = from; k < i; k++) tallyPacket(burst, k);
  burst.spread[0] = -1; // not looked at
  return i;
}

const copies = new Int32Array(3 * BURST_SIZE);

/** As `fillSplit` of the module; `src` is the window that packet order[from] lies in. */
export function fillPlain(
  ring: SplitRing,
  headerLen: number,
  burst: Burst,
  src: WindowViews,
  lastWord: number,
  from: number,
  end: number,
  filledBefore: number,
): number {
  const { desc, descIdx, map, num, mask, avail, availIdx, next, used32, usedRingIdx } = ring;
  const { hi: mapHi, lo: mapLo, reach, window: mapWindow, base } = map;
  const { first, len: lens, needs, delivered, order, segments } = burst;
  const { window: srcWindows, off: srcOffs } = segments;
  const dst = ring.windows[mapWindow];
  const { dv } = dst;
  let filled = filledBefore;
  let i = from;
  for (; i < end; i++) {
    const packet = order[i];
    const piece = first[packet];
    if (needs[packet] !== 0 || first[packet + 1] - piece !== 1 || srcWindows[piece] !== src.id) break;
    const head = avail[availIdx + 2 + ((next + filled) & mask)];
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
    const used = usedRingIdx + 2 * ((next + filled) & mask);
    used32[used] = head;
    used32[used + 1] = len + headerLen;
    delivered[packet]++;
    filled++;
  }
  for (let k = from; k < i; k++) tallyPacket(burst, order[k]);
  copySegments(copies, i - from, src, dst);
  return i;
}

/** Fills used elements of length 0 for the whole burst, which came from `ring`. */
export function completePlain(ring: Vring, { id, slots, count }: Burst): void {
  let ahead = 0;
  for (let i = 0; i < count; i++) {
    ring.putUsed(ahead, id[i], 0);
    ahead += ring.packed ? slots[i] : 1;
  }
}
