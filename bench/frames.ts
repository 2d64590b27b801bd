/** The frames of the benchmark: port i is 52:54:00:00:00:(i + 1). */

/** IEEE 802 "local experimental" EtherType: no switch looks into it. */
const ETHERTYPE = [0x88, 0xb5];
/** Bytes of the two addresses: forwarders may rewrite them. */
export const ADDRESSES_LEN = 12;

/** The address of port `i`, as text. */
export const macOf = (i: number) => `52:54:00:00:00:${(i + 1).toString(16).padStart(2, '0')}`;

/** A frame of `size` bytes (without FCS) from one port to another, with a payload that only number `n` has. */
export function frameOf(from: number, to: number, size: number, n: number): Uint8Array {
  const frame = Uint8Array.from({ length: size }, (_, i) => (i * 31 + n * 7 + from * 101) & 0xff);
  frame.set([0x52, 0x54, 0, 0, 0, to + 1, 0x52, 0x54, 0, 0, 0, from + 1, ...ETHERTYPE, n >> 8, n & 0xff]);
  return frame;
}
