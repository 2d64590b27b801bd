/**
 * Makes TCP segments and UDP datagrams out of one large packet: what has to change in each copy of its headers.
 *
 * A segment is a copy of the large packet's headers, with its part of the payload behind them. Here they get what is theirs:
 * lengths, IPv4 identification, sequence number, flags, checksums.
 * @see RFC 9293 §3.1, RFC 3168 §6.1.2, RFC 6864
 */
import { IPHDR, IPPROTO_TCP, IPV6HDR, TCP_CWR, TCP_FIN, TCP_PSH, TCPHDR, UDPHDR } from '../uapi/ip.ts';
import { addOnes, completeChecksum, onesSum, subtractOnes } from './checksum.ts';
import type { FrameHeaders } from './headers.ts';

/**
 * The sum of the pseudo header without the length, from a packet whose checksum field has the sum of all of it. The sender's sum
 * is used, not the addresses: with source routing, the pseudo header has others than the packet.
 * @param len the packet's bytes from `off` on. The length in a UDP packet's pseudo header is the one that its header has.
 */
export function pseudoSumWithoutLength(dv: DataView, off: number, len: number, headers: FrameHeaders): number {
  const at = off + headers.transportOff;
  if (headers.protocol === IPPROTO_TCP)
    return subtractOnes(dv.getUint16(at + TCPHDR.off.check), len - headers.transportOff);
  return subtractOnes(dv.getUint16(at + UDPHDR.off.check), dv.getUint16(at + UDPHDR.off.len));
}

/** Writes what the IPv4 header's checksum has to be. */
export function setIpv4Checksum(dv: DataView, ipAt: number, headerLen: number): void {
  dv.setUint16(ipAt + IPHDR.off.check, 0);
  dv.setUint16(ipAt + IPHDR.off.check, 0xffff - onesSum(dv, ipAt, headerLen));
}

/** Writes into the IP header of packet `index` how long it is, and a number of its own. */
function finishIp(dv: DataView, off: number, len: number, headers: FrameHeaders, index: number): void {
  const { ipOff, transportOff } = headers;
  const ipAt = off + ipOff;
  if (headers.ipVersion === 6) {
    dv.setUint16(ipAt + IPV6HDR.off.payload_len, len - ipOff - IPV6HDR.size);
    return;
  }
  dv.setUint16(ipAt + IPHDR.off.tot_len, len - ipOff);
  dv.setUint16(ipAt + IPHDR.off.id, dv.getUint16(ipAt + IPHDR.off.id) + index);
  setIpv4Checksum(dv, ipAt, transportOff - ipOff);
}

/**
 * Finishes TCP segment `index` of a large packet: the `len` bytes at `off` are the packet's headers as they were, and the payload
 * from byte `index` × `mss` on.
 * @param last it is the packet's last segment
 * @param pseudoSum from {@link pseudoSumWithoutLength}
 */
export function finishTcpSegment(
  dv: DataView,
  off: number,
  len: number,
  headers: FrameHeaders,
  pseudoSum: number,
  index: number,
  mss: number,
  last: boolean,
): void {
  finishIp(dv, off, len, headers, index);
  const at = off + headers.transportOff;
  dv.setUint32(at + TCPHDR.off.seq, dv.getUint32(at + TCPHDR.off.seq) + index * mss);
  let flags = dv.getUint8(at + TCPHDR.off.flags);
  if (index > 0) flags &= ~TCP_CWR;
  if (!last) flags &= ~(TCP_FIN | TCP_PSH);
  dv.setUint8(at + TCPHDR.off.flags, flags);
  const tcpLen = len - headers.transportOff;
  dv.setUint16(at + TCPHDR.off.check, addOnes(pseudoSum, tcpLen));
  completeChecksum(dv, at, tcpLen, TCPHDR.off.check);
}

/** Finishes UDP datagram `index` of a large packet, as {@link finishTcpSegment} does a TCP segment. */
export function finishUdpSegment(
  dv: DataView,
  off: number,
  len: number,
  headers: FrameHeaders,
  pseudoSum: number,
  index: number,
): void {
  finishIp(dv, off, len, headers, index);
  const at = off + headers.transportOff;
  const udpLen = len - headers.transportOff;
  dv.setUint16(at + UDPHDR.off.len, udpLen);
  dv.setUint16(at + UDPHDR.off.check, addOnes(pseudoSum, udpLen));
  completeChecksum(dv, at, udpLen, UDPHDR.off.check);
}
