/**
 * The Internet checksum: ones' complement sums of 16-bit words.
 *
 * Such a sum is the same whichever way round the bytes of all its words are read, but for the order of its own two bytes: so
 * memory is read in words of 32 bits, little-endian, and the sum is turned at the end.
 * @see RFC 1071, RFC 1624
 */

/** Adds two ones' complement sums of 16 bits, or what has few bits more. */
export function addOnes(a: number, b: number): number {
  let sum = a + b;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return sum;
}

/** Takes `b` off the ones' complement sum `a`, both of 16 bits. */
export function subtractOnes(a: number, b: number): number {
  return addOnes(a, 0xffff - b);
}

/** The ones' complement sum of `len` bytes from `off` on, at any alignment; an odd last byte counts as if a zero followed. */
export function onesSum(dv: DataView, off: number, len: number): number {
  const end = off + len;
  let at = off;
  // The halves apart: neither passes 31 bits within 128 KiB, beyond which V8 would only take more time.
  let even = 0;
  let odd = 0;
  for (; at + 16 <= end; at += 16) {
    const a = dv.getInt32(at, true);
    const b = dv.getInt32(at + 4, true);
    const c = dv.getInt32(at + 8, true);
    const d = dv.getInt32(at + 12, true);
    even += (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff);
    odd += (a >>> 16) + (b >>> 16) + (c >>> 16) + (d >>> 16);
  }
  for (; at + 2 <= end; at += 2) even += dv.getUint16(at, true);
  if (at < end) even += dv.getUint8(at);
  const sum = addOnes(addOnes(even & 0xffff, Math.floor(even / 65536)), addOnes(odd & 0xffff, Math.floor(odd / 65536)));
  return ((sum & 0xff) << 8) | (sum >> 8);
}

/** What is stored for a sum in TCP or UDP. Never 0, which in UDP says that there is no checksum; 0xffff is the same number. */
export function checksumOf(sum: number): number {
  return sum === 0xffff ? 0xffff : 0xffff - sum;
}

/**
 * Completes a checksum that covers `len` bytes from `off` on and is `at` bytes behind `off`, where the sum of what else it
 * covers, a pseudo header, is now.
 */
export function completeChecksum(dv: DataView, off: number, len: number, at: number): void {
  dv.setUint16(off + at, checksumOf(onesSum(dv, off, len)));
}
