/**
 * Walking descriptor chains of any layout: the general path, for what the fast paths of the devices pass on.
 * Every descriptor is read once; what was read is checked, and used from the copy.
 * @see VIRTIO 1.2 §2.7.5, §2.8.6–2.8.8
 */
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
import type { Vring } from './vring.ts';

/** The list has no room for the chain; the ring is as it was. */
export const CHAIN_FULL = -1;
/** The chain is malformed: `ring.fault` says how. */
export const CHAIN_FAULT = -2;
/** There is no chain in that slot yet. */
export const CHAIN_NONE = -3;
/** A translation is missing, and may come: `ring.missLo` and `missHi` say which. */
export const CHAIN_MISS = -4;

/** A chain of more bytes than a 32-bit used length can tell is malformed (§2.7.5). */
export const MAX_CHAIN_BYTES = 2 ** 31 - 1;

/**
 * A direction for `Vring.chainAt`, beside VRING_DESC_F_WRITE and 0: first what the device reads, then what it writes, either of which
 * may be missing (§2.7.4.2, §2.8.6). The list, empty and with `writableFrom` −1 before, tells where the one goes over into the other.
 */
export const READ_THEN_WRITE = -1;

export function chainFault(ring: Vring, code: number): number {
  ring.fault = code;
  return CHAIN_FAULT;
}

/** Pages of an IOMMU are of this size at least. */
const PAGE = 4096;

const pageLeft = (lo: number) => PAGE - (lo & (PAGE - 1));

/** What an address without memory comes to: 0 if the walk is to go on behind that page. */
function noMemory(ring: Vring, lo: number, hi: number, write: boolean): number {
  if (!ring.map.iotlb) return chainFault(ring, FAULT_ADDRESS);
  if (ring.misses?.add(lo, hi, write) === true) return 0;
  ring.missLo = lo;
  ring.missHi = hi;
  ring.missWrite = write;
  return CHAIN_MISS;
}

/** Notes where the writable part of a chain begins. @returns false for a descriptor to be read behind one to be written */
function inOrder(out: SegmentList, write: boolean): boolean {
  if (!write) return out.writableFrom < 0;
  if (out.writableFrom < 0) out.writableFrom = out.count;
  return true;
}

/**
 * Appends the memory of one descriptor, in as many pieces as it lies in. @param flags its flags
 * @returns its bytes, those included that are only listed in `ring.misses`; CHAIN_FULL, CHAIN_FAULT or CHAIN_MISS
 */
export function appendBuffer(
  ring: Vring,
  lo: number,
  hi: number,
  len: number,
  flags: number,
  direction: number,
  out: SegmentList,
): number {
  const write = (flags & VRING_DESC_F_WRITE) !== 0;
  if (direction === READ_THEN_WRITE ? !inOrder(out, write) : (flags & VRING_DESC_F_WRITE) !== direction)
    return chainFault(ring, FAULT_DIRECTION);
  if (len === 0) return chainFault(ring, FAULT_ZERO_LENGTH);
  if (len < 0) return chainFault(ring, FAULT_ADDRESS);
  const { map } = ring;
  let left = len;
  while (left > 0) {
    let part = left;
    let there = map.select(lo, hi, left, write);
    if (!there) {
      there = map.select(lo, hi, 1, write);
      const status = there ? 0 : noMemory(ring, lo, hi, write);
      if (status < 0) return status;
      part = there ? map.left(lo) : Math.min(left, pageLeft(lo));
    }
    if (there) {
      if (out.count === MAX_SEGMENTS) return CHAIN_FULL;
      out.push(map.window, map.offset(lo), part);
    }
    const end = (lo >>> 0) + part;
    lo = end | 0;
    if (end >= 2 ** 32) hi = (hi + 1) | 0;
    left -= part;
  }
  return len;
}

/**
 * Appends the memory that an indirect table of `len` bytes lists. @param linked its entries are a chain, as in a split ring; or
 * else they follow one another
 * @returns its bytes, or as {@link appendBuffer}
 */
export function appendIndirect(
  ring: Vring,
  lo: number,
  hi: number,
  len: number,
  linked: boolean,
  direction: number,
  out: SegmentList,
): number {
  const entries = len >>> 4;
  const wellFormed = (len & 15) === 0 && entries > 0 && entries <= VIRTQ_MAX_SIZE;
  if (!ring.indirect || !wellFormed) return chainFault(ring, FAULT_INDIRECT);
  const { map } = ring;
  let table: DataView = gathered;
  let tableOff = 0;
  if (map.select(lo, hi, len, false)) {
    table = ring.windows[map.window].dv;
    tableOff = map.offset(lo);
  } else {
    const status = gatherTable(ring, lo, hi, len);
    if (status < 0) return status;
  }
  let i = 0;
  let total = 0;
  for (let steps = 1; ; steps++) {
    const at = tableOff + VRING_DESC.size * i;
    const addrLo = table.getInt32(at, true);
    const addrHi = table.getInt32(at + 4, true);
    const size = table.getInt32(at + 8, true);
    const last = table.getInt32(at + 12, true);
    const flags = linked ? last & 0xffff : last >>> 16;
    if (linked && (flags & VRING_DESC_F_INDIRECT) !== 0) return chainFault(ring, FAULT_INDIRECT);
    const bytes = appendBuffer(ring, addrLo, addrHi, size, flags, direction, out);
    if (bytes < 0) return bytes;
    total += bytes;
    if (total > MAX_CHAIN_BYTES) return chainFault(ring, FAULT_ADDRESS);
    if (linked ? (flags & VRING_DESC_F_NEXT) === 0 : steps === entries) return total;
    if (steps >= entries || steps >= MAX_SEGMENTS) return chainFault(ring, FAULT_CHAIN_LOOP);
    i = linked ? last >>> 16 : steps;
    if (i >= entries) return chainFault(ring, FAULT_DESC_RANGE);
  }
}

/** A table that lies in several pieces is read from here; longer ones are refused. */
const MAX_GATHERED = 65536;
const gathered = new DataView(new ArrayBuffer(MAX_GATHERED));

/** Copies a table together. @returns 0, CHAIN_FAULT or CHAIN_MISS */
function gatherTable(ring: Vring, lo: number, hi: number, len: number): number {
  const { map } = ring;
  if (len > MAX_GATHERED) return chainFault(ring, FAULT_INDIRECT);
  if (ring.misses?.mayCopy(len) === false) return CHAIN_FULL;
  let whole = true;
  for (let done = 0; done < len; ) {
    const from = (lo >>> 0) + done;
    const fromHi = from >= 2 ** 32 ? (hi + 1) | 0 : hi;
    if (!map.select(from | 0, fromHi, 1, false)) {
      const status = noMemory(ring, from | 0, fromHi, false);
      if (status < 0) return status;
      whole = false;
      done += pageLeft(from | 0);
      continue;
    }
    const part = Math.min(len - done, map.left(from | 0));
    const { u8 } = ring.windows[map.window];
    const off = map.offset(from | 0);
    for (let i = 0; i < part; i++) gathered.setUint8(done + i, u8[off + i]);
    done += part;
  }
  return whole ? 0 : CHAIN_MISS;
}
