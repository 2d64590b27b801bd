/**
 * 5tswap: swaps source and destination in every header that it knows: Ethernet, IPv4 or IPv6, TCP or UDP. No checksum changes by that.
 */
import {
  ETH_P_8021AD,
  ETH_P_8021Q,
  ETH_P_IP,
  ETH_P_IPV6,
  ETHHDR,
  IP_OFFSET,
  IPHDR,
  IPPROTO_TCP,
  IPPROTO_UDP,
  IPV6HDR,
  VLAN_HLEN,
} from '../../uapi/ip.ts';
import { HEADER_ROOM } from '../workshop.ts';
import { MacSwapMode } from './mac.ts';

/** TCP and UDP begin with the two ports, of two bytes each. */
const PORTS_BYTES = 4;

export class FiveTupleSwapMode extends MacSwapMode {
  protected override edit(): void {
    const { windows, burst } = this.workshop;
    const { first, segments, count } = burst;
    super.edit();
    for (let i = 0; i < count; i++) {
      const len = Math.min(this.workshop.flatten(i, HEADER_ROOM), HEADER_ROOM);
      const s = first[i];
      swapIp(windows[segments.window[s]].dv, segments.off[s], len);
    }
  }
}

/** Swaps two runs of `words` 32-bit words that follow each other. */
function swapWords(dv: DataView, at: number, words: number): void {
  for (let i = 0; i < words; i++) {
    const a = dv.getInt32(at + 4 * i, true);
    dv.setInt32(at + 4 * i, dv.getInt32(at + 4 * (words + i), true), true);
    dv.setInt32(at + 4 * (words + i), a, true);
  }
}

/** Swaps what lies behind the Ethernet header of a frame, of which `len` bytes are at `off`. */
function swapIp(dv: DataView, off: number, len: number): void {
  let at = ETHHDR.size;
  if (len < at) return;
  let type = dv.getUint16(off + ETHHDR.off.h_proto);
  while (type === ETH_P_8021Q || type === ETH_P_8021AD) {
    if (at + VLAN_HLEN > len) return;
    type = dv.getUint16(off + at + 2);
    at += VLAN_HLEN;
  }
  let protocol = 0;
  const ip = off + at;
  if (type === ETH_P_IP) {
    if (at + IPHDR.size > len) return;
    swapWords(dv, ip + IPHDR.off.saddr, 1);
    protocol = dv.getUint8(ip + IPHDR.off.protocol);
    at += 4 * (dv.getUint8(ip + IPHDR.off.version_ihl) & 0xf);
    // only the first fragment has ports
    if ((dv.getUint16(ip + IPHDR.off.frag_off) & IP_OFFSET) !== 0) return;
  } else if (type === ETH_P_IPV6) {
    if (at + IPV6HDR.size > len) return;
    swapWords(dv, ip + IPV6HDR.off.saddr, 4);
    protocol = dv.getUint8(ip + IPV6HDR.off.nexthdr);
    at += IPV6HDR.size;
  }
  if ((protocol !== IPPROTO_TCP && protocol !== IPPROTO_UDP) || at + PORTS_BYTES > len) return;
  const ports = dv.getUint32(off + at);
  dv.setUint32(off + at, ((ports << 16) | (ports >>> 16)) >>> 0);
}
