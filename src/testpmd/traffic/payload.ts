/**
 * What a packet of testpmd's own says about itself, in the first bytes of its UDP payload, so that whoever gets it can tell which
 * flow it is of, which number it has there, when it was made, and whether it is whole. All numbers are big-endian.
 *
 *   0  u16  magic            8  u8   run: another number each time the flows begin anew
 *   2  u16  checksum         9  u24  flow
 *   4  u32  number          12  u48  when, ns of CLOCK_MONOTONIC modulo 2⁴⁸ (78 hours)
 *
 * Behind it are bytes that are the same in every packet. The checksum covers all of the payload but itself, and its length.
 */

export const MAGIC = 0x5653;
export const OFF_CHECK = 2;
export const OFF_NUMBER = 4;
export const OFF_FLOW = 8;
export const OFF_TIME_HI = 12;
export const OFF_TIME_LO = 14;
/** Bytes that a payload has at least. */
export const HEAD_BYTES = 18;

/** Flows that have a number. */
export const MAX_FLOWS = 2 ** 20;
export const FLOW_MASK = 0xffffff;
/** Runs are told apart by their number modulo this. */
export const RUNS = 256;
/** Times are told modulo 2⁴⁸ ns: this many of the higher word. */
export const TIME_HI_MASK = 0xffff;

const PRIME_A = 0x9e3779b1;
const PRIME_B = 0x85ebca77;
const PRIME_C = 0xc2b2ae3d;

/**
 * A hash of `len` bytes, which every changed byte changes, and mostly every other damage. Four words at a time: four
 * multiplications go on at once.
 */
export function hashTail(dv: DataView, off: number, len: number): number {
  const end = off + len;
  let at = off;
  let a = len;
  let b = PRIME_A | 0;
  let c = PRIME_B | 0;
  let d = PRIME_C | 0;
  for (; at + 16 <= end; at += 16) {
    a = Math.imul(a ^ dv.getInt32(at, true), PRIME_A);
    b = Math.imul(b ^ dv.getInt32(at + 4, true), PRIME_A);
    c = Math.imul(c ^ dv.getInt32(at + 8, true), PRIME_A);
    d = Math.imul(d ^ dv.getInt32(at + 12, true), PRIME_A);
  }
  let hash = mixed(mixed(mixed(a, b), c), d);
  for (; at + 4 <= end; at += 4) hash = mixed(hash, dv.getInt32(at, true));
  for (; at < end; at++) hash = mixed(hash, dv.getUint8(at));
  return hash;
}

function mixed(hash: number, word: number): number {
  const product = Math.imul(hash ^ word, PRIME_B);
  return product ^ (product >>> 15);
}

/** The checksum of a payload: of what `hashTail` says of the bytes behind the head, and of the head's fields, as signed words. */
export function checkOf(tail: number, number: number, flowWord: number, timeHi: number, timeLo: number): number {
  const hash = mixed(mixed(mixed(mixed(tail, number), flowWord), timeHi), timeLo);
  return (hash ^ (hash >>> 16)) & 0xffff;
}

/** Fills what is behind the head of a payload that begins at `off`: up to `len` bytes of payload. */
export function fillTail(dv: DataView, off: number, len: number): void {
  let state = PRIME_C | 0;
  for (let at = HEAD_BYTES; at < len; at++) {
    state = Math.imul(state ^ at, PRIME_A) + PRIME_B;
    dv.setUint8(off + at, state >>> 24);
  }
}
