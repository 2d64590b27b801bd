/**
 * Walking a descriptor chain of any layout: the general path, for what the fast paths of dequeue and enqueue pass on.
 * Every descriptor is read once; what was read is checked, and used from the copy.
 * @see VIRTIO 1.2 §2.7.5, §2.7.5.3
 */
import type { AddressMap } from '../mem/address-map.ts';
import {
  VIRTQ_MAX_SIZE,
  VRING_DESC,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
} from '../uapi/virtio-ring.ts';
import {
  FAULT_ADDRESS,
  FAULT_CHAIN_LOOP,
  FAULT_DESC_RANGE,
  FAULT_DIRECTION,
  FAULT_INDIRECT,
  FAULT_ZERO_LENGTH,
} from './fault.ts';
import { MAX_SEGMENTS, type SegmentList } from './segments.ts';
import type { SplitRing } from './split-ring.ts';

/** The list has no room for the chain; the ring is as it was. */
export const CHAIN_FULL = -1;
/** The chain is malformed: `ring.fault` says how. */
export const CHAIN_FAULT = -2;

function fault(ring: SplitRing, code: number): number {
  ring.fault = code;
  return CHAIN_FAULT;
}

/**
 * Appends the memory of the chain that begins at descriptor `head` (in range) to `out`.
 * @param direction VRING_DESC_F_WRITE if the device writes the chain, 0 if it reads it
 * @returns its bytes, CHAIN_FULL or CHAIN_FAULT
 */
export function appendChain(ring: SplitRing, head: number, direction: number, out: SegmentList): number {
  let table = ring.descView;
  let tableOff = ring.descIdx * 4;
  let size = ring.num;
  let nested = false;
  let i = head;
  let total = 0;
  for (let steps = 1; ; steps++) {
    const at = tableOff + VRING_DESC.size * i;
    const lo = table.getInt32(at, true);
    const hi = table.getInt32(at + 4, true);
    const len = table.getInt32(at + 8, true);
    const flagsNext = table.getInt32(at + 12, true);

    if ((flagsNext & VRING_DESC_F_INDIRECT) !== 0) {
      const entries = len >>> 4;
      const wellFormed = (len & 15) === 0 && entries > 0 && entries <= VIRTQ_MAX_SIZE;
      if (nested || !ring.indirect || !wellFormed || (flagsNext & VRING_DESC_F_NEXT) !== 0)
        return fault(ring, FAULT_INDIRECT);
      if (!ring.map.select(lo, hi, len)) return fault(ring, FAULT_ADDRESS);
      table = ring.windows[ring.map.window].dv;
      tableOff = ring.map.offset(lo);
      size = entries;
      nested = true;
      i = 0;
      steps = 0;
      continue;
    }
    if ((flagsNext & VRING_DESC_F_WRITE) !== direction) return fault(ring, FAULT_DIRECTION);
    if (len === 0) return fault(ring, FAULT_ZERO_LENGTH);
    const status = appendRange(ring.map, lo, hi, len, out);
    if (status < 0) return status === CHAIN_FULL ? CHAIN_FULL : fault(ring, FAULT_ADDRESS);
    total += len;
    if (total > MAX_CHAIN_BYTES) return fault(ring, FAULT_ADDRESS);
    if ((flagsNext & VRING_DESC_F_NEXT) === 0) return total;
    if (steps >= size || steps >= MAX_SEGMENTS) return fault(ring, FAULT_CHAIN_LOOP);
    i = flagsNext >>> 16;
    if (i >= size) return fault(ring, FAULT_DESC_RANGE);
  }
}

/** A chain of more bytes than a 32-bit used length can tell is malformed (§2.7.5). */
const MAX_CHAIN_BYTES = 2 ** 31 - 1;

/** Appends guest addresses from (lo, hi) on, in as many pieces as they lie in. @returns 0, CHAIN_FULL or CHAIN_FAULT */
function appendRange(map: AddressMap, lo: number, hi: number, len: number, out: SegmentList): number {
  if (len < 0) return CHAIN_FAULT;
  while (len > 0) {
    let part = len;
    if (!map.select(lo, hi, len)) {
      if (!map.select(lo, hi, 1)) return CHAIN_FAULT;
      part = map.left(lo);
    }
    if (out.count === MAX_SEGMENTS) return CHAIN_FULL;
    out.push(map.window, map.offset(lo), part);
    const end = (lo >>> 0) + part;
    lo = end | 0;
    if (end >= 2 ** 32) hi = (hi + 1) | 0;
    len -= part;
  }
  return 0;
}
