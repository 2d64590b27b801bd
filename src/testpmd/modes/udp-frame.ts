/**
 * The frames that testpmd makes: Ethernet, IPv4 without options, UDP without a checksum, zeros.
 */
import { checksumOf, onesSum } from '../../net/checksum.ts';
import { ETH_P_IP, ETHHDR, IPHDR, IPPROTO_UDP, UDPHDR } from '../../uapi/ip.ts';
import type { Ipv4Flow } from '../engine.ts';

const VERSION_IHL = 0x45;
const TTL = 64;
const IP_OFF = ETHHDR.size;
const UDP_OFF = ETHHDR.size + IPHDR.size;

/** Writes the headers of a frame of `len` ≥ 42 bytes at `off`. */
export function putUdpFrame(
  dv: DataView,
  off: number,
  len: number,
  dest: Uint8Array,
  source: Uint8Array,
  flow: Ipv4Flow,
): void {
  for (let i = 0; i < 6; i++) {
    dv.setUint8(off + ETHHDR.off.h_dest + i, dest[i]);
    dv.setUint8(off + ETHHDR.off.h_source + i, source[i]);
  }
  dv.setUint16(off + ETHHDR.off.h_proto, ETH_P_IP);
  const ip = off + IP_OFF;
  dv.setUint8(ip + IPHDR.off.version_ihl, VERSION_IHL);
  dv.setUint8(ip + IPHDR.off.tos, 0);
  dv.setUint16(ip + IPHDR.off.tot_len, len - IP_OFF);
  dv.setUint16(ip + IPHDR.off.id, 0);
  dv.setUint16(ip + IPHDR.off.frag_off, 0);
  dv.setUint8(ip + IPHDR.off.ttl, TTL);
  dv.setUint8(ip + IPHDR.off.protocol, IPPROTO_UDP);
  dv.setUint32(ip + IPHDR.off.saddr, flow.source);
  setDestination(dv, off, flow.dest);
  const udp = off + UDP_OFF;
  dv.setUint16(udp + UDPHDR.off.source, flow.sourcePort);
  dv.setUint16(udp + UDPHDR.off.dest, flow.destPort);
  dv.setUint16(udp + UDPHDR.off.len, len - UDP_OFF);
  dv.setUint16(udp + UDPHDR.off.check, 0);
}

/** Writes the destination address of the IPv4 header of a frame at `off`, and the header's checksum. */
export function setDestination(dv: DataView, off: number, dest: number): void {
  const ip = off + IP_OFF;
  dv.setUint32(ip + IPHDR.off.daddr, dest);
  dv.setUint16(ip + IPHDR.off.check, 0);
  dv.setUint16(ip + IPHDR.off.check, checksumOf(onesSum(dv, ip, IPHDR.size)));
}
