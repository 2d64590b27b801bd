/**
 * The fields of capture files, pcap and pcapng, and the way between their time stamps and seconds and nanoseconds.
 * @see draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng
 */

/** First word of a pcap file, by the resolution of its times; swapped where it was written in the other byte order. */
export const PCAP_MICROSECONDS = 0xa1b2c3d4;
export const PCAP_NANOSECONDS = 0xa1b23c4d;
/** A variant with longer packet headers. */
export const PCAP_MODIFIED = 0xa1b2cd34;

/** Of the file, and of every packet. */
export const PCAP_HEADER_BYTES = 24;
export const PCAP_RECORD_BYTES = 16;

/** pcapng: kinds of blocks. */
export const BLOCK_SECTION = 0x0a0d0d0a;
export const BLOCK_INTERFACE = 1;
/** an older form of BLOCK_ENHANCED_PACKET */
export const BLOCK_PACKET = 2;
export const BLOCK_SIMPLE_PACKET = 3;
export const BLOCK_ENHANCED_PACKET = 6;

export const BYTE_ORDER_MAGIC = 0x1a2b3c4d;

/** Bytes of the smallest block, and of those with fixed fields: with type and both lengths, without options and frame. */
export const BLOCK_BYTES = 12;
export const SECTION_BYTES = 28;
export const INTERFACE_BYTES = 20;
export const SIMPLE_PACKET_BYTES = 16;
export const ENHANCED_PACKET_BYTES = 32;
/** Where the frame is in its block. */
export const SIMPLE_PACKET_DATA = 12;
export const ENHANCED_PACKET_DATA = 28;

export const OPTION_END = 0;
export const OPTION_IF_NAME = 2;
export const OPTION_USER_APPLICATION = 4;
export const OPTION_IF_TSRESOL = 9;
export const OPTION_IF_TSOFFSET = 14;

export const LINK_ETHERNET = 1;

/** Bytes up to the next multiple of 4. */
export const padded = (len: number) => (len + 3) & ~3;

/** Units a second that `if_tsresol` says, or 0 for more than can be reckoned with here. */
export function unitsPerSecond(resolution: number): number {
  const exponent = resolution & 0x7f;
  if ((resolution & 0x80) !== 0) return exponent <= 52 ? 2 ** exponent : 0;
  return exponent <= 15 ? 10 ** exponent : 0;
}

/** A time in seconds and nanoseconds since 1970, and the 64-bit numbers that stand for it; filled again and again. */
export class CaptureTime {
  sec = 0;
  nsec = 0;

  /** From seconds and a fraction in units of `nsPerUnit` ns. */
  setParts(sec: number, fraction: number, nsPerUnit: number): void {
    const ns = fraction * nsPerUnit;
    const carried = Math.floor(ns / 1e9);
    this.sec = sec + carried;
    this.nsec = ns - 1e9 * carried;
  }

  /**
   * From a 64-bit count of units, in two halves. Division digit by digit: no intermediate number passes 2⁵³.
   * @param units a second, from {@link unitsPerSecond}
   */
  setUnits(hi: number, lo: number, units: number): void {
    const bits = units <= 2 ** 37 ? 16 : units <= 2 ** 49 ? 4 : 1;
    const base = 2 ** bits;
    let sec = 0;
    let rest = 0;
    for (let left = 64 - bits; left >= 0; left -= bits) {
      const digit = left >= 32 ? (hi >>> (left - 32)) & (base - 1) : (lo >>> left) & (base - 1);
      const value = rest * base + digit;
      let quotient = Math.floor(value / units);
      rest = value - quotient * units;
      if (rest < 0) {
        quotient--;
        rest += units;
      }
      sec = sec * base + quotient;
    }
    this.sec = sec;
    // One of the two factors is whole for every power of ten; a power of two loses less than a nanosecond.
    const ns = units <= 1e9 ? rest * (1e9 / units) : rest / (units / 1e9);
    this.nsec = Math.min(Math.floor(ns), 999_999_999);
  }
}

/** Nanoseconds since 1970 as 64 bits in two halves, once a burst. */
export class NanosecondStamp {
  hi = 0;
  lo = 0;

  /** @param sec below 2³² */
  set(sec: number, nsec: number): void {
    // sec = high · 2¹⁶ + low; no product passes 2⁵³
    const high = Math.floor(sec / 65536) * 1e9;
    const low = (sec % 65536) * 1e9 + nsec;
    const sum = (high % 65536) * 65536 + low;
    this.hi = Math.floor(high / 65536) + Math.floor(sum / 2 ** 32);
    this.lo = sum % 2 ** 32;
  }
}
