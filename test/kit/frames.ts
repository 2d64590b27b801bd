/**
 * Ethernet frames for tests.
 */

export const BROADCAST = Buffer.from('ffffffffffff', 'hex');

/** A unicast address that is told from others by `n`. */
export const mac = (n: number): Buffer => Buffer.from([0x52, 0x54, n >>> 24, n >>> 16, n >>> 8, n]);

/** The frame with a VLAN tag behind its addresses. */
export function tagged(bytes: Buffer, tci: number, tpid = 0x8100): Buffer {
  const tag = Buffer.alloc(4);
  tag.writeUInt16BE(tpid, 0);
  tag.writeUInt16BE(tci, 2);
  return Buffer.concat([bytes.subarray(0, 12), tag, bytes.subarray(12)]);
}

let serial = 0;

/** A frame of `len` bytes (at least 12) from `src` to `dst`; no two have the same payload from 22 bytes on. */
export function frame(dst: Buffer, src: Buffer, len = 64): Buffer {
  const bytes = Buffer.alloc(Math.max(len, 22));
  dst.copy(bytes, 0);
  src.copy(bytes, 6);
  bytes.writeUInt16BE(0x0800, 12);
  bytes.writeUInt32LE(serial, 14);
  bytes.writeUInt32LE(len, 18);
  for (let i = 22; i < len; i++) bytes[i] = i * 7 + serial;
  serial++;
  return bytes.subarray(0, len);
}
