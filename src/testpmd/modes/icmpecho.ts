/**
 * icmpecho: answers ARP requests, whatever address they ask for, and ICMP echo requests; everything else goes nowhere. Answers leave by
 * the port that was asked.
 * @see RFC 826, RFC 792, RFC 1624
 */
import { addOnes } from '../../net/checksum.ts';
import { setIpv4Checksum } from '../../net/segment.ts';
import { ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETHHDR, ICMPHDR, IPHDR, IPPROTO_ICMP, VLAN_HLEN } from '../../uapi/ip.ts';
import { BURST_SIZE } from '../../virtio-net/burst.ts';
import type { Stream } from '../stream.ts';
import { HEADER_ROOM, type Workshop } from '../workshop.ts';
import type { Mode } from './mode.ts';

const ICMP_ECHO_REPLY = 0;
const ICMP_ECHO_REQUEST = 8;
/** An ARP packet for IPv4 over Ethernet: kinds and lengths of addresses, operation, then sender and target, each MAC and IP. */
const ARP = { operation: 6, senderMac: 8, senderIp: 14, targetMac: 18, targetIp: 24, size: 28 } as const;
const ARP_ETHERNET_IPV4 = [0x0001, 0x0800, 0x0604] as const;
const ARP_REQUEST = 1;
const ARP_REPLY = 2;
const MAC_BYTES = 6;

export class IcmpEchoMode implements Mode {
  readonly #stream: Stream;
  readonly #workshop: Workshop;
  readonly #replies = new Int32Array(BURST_SIZE);

  constructor(stream: Stream, workshop: Workshop) {
    this.#stream = stream;
    this.#workshop = workshop;
  }

  turn(): number {
    const n = this.#stream.receive();
    if (n === 0) return 0;
    const { windows, burst } = this.#workshop;
    const { first, segments } = burst;
    let replies = 0;
    for (let i = 0; i < n; i++) {
      const len = Math.min(this.#workshop.flatten(i, HEADER_ROOM), HEADER_ROOM);
      const { dv } = windows[segments.window[first[i]]];
      if (this.#answer(dv, segments.off[first[i]], len)) this.#replies[replies++] = i;
    }
    this.#stream.send(this.#replies, replies);
    this.#stream.complete();
    return n;
  }

  /** Makes an answer of the frame, of which `len` bytes are at `off`. @returns false if there is none */
  #answer(dv: DataView, off: number, len: number): boolean {
    let at = ETHHDR.size;
    if (len < at) return false;
    let type = dv.getUint16(off + ETHHDR.off.h_proto);
    if (type === ETH_P_8021Q) {
      if (at + VLAN_HLEN > len) return false;
      type = dv.getUint16(off + at + 2);
      at += VLAN_HLEN;
    }
    if (type === ETH_P_ARP) return at + ARP.size <= len && this.#answerArp(dv, off, off + at);
    return type === ETH_P_IP && answerEcho(dv, off, off + at, off + len);
  }

  #answerArp(dv: DataView, off: number, arp: number): boolean {
    for (let i = 0; i < 3; i++) if (dv.getUint16(arp + 2 * i) !== ARP_ETHERNET_IPV4[i]) return false;
    if (dv.getUint16(arp + ARP.operation) !== ARP_REQUEST) return false;
    const { own } = this.#stream.plan;
    dv.setUint16(arp + ARP.operation, ARP_REPLY);
    const asked = dv.getUint32(arp + ARP.targetIp);
    for (let i = 0; i < MAC_BYTES; i++) {
      dv.setUint8(off + ETHHDR.off.h_dest + i, dv.getUint8(off + ETHHDR.off.h_source + i));
      dv.setUint8(off + ETHHDR.off.h_source + i, own[i]);
      dv.setUint8(arp + ARP.targetMac + i, dv.getUint8(arp + ARP.senderMac + i));
      dv.setUint8(arp + ARP.senderMac + i, own[i]);
    }
    dv.setUint32(arp + ARP.targetIp, dv.getUint32(arp + ARP.senderIp));
    dv.setUint32(arp + ARP.senderIp, asked);
    return true;
  }
}

/** Makes an echo reply of the frame at `off`, whose IPv4 header is at `ip` and which is looked at up to `end`. */
function answerEcho(dv: DataView, off: number, ip: number, end: number): boolean {
  if (ip + IPHDR.size > end || dv.getUint8(ip + IPHDR.off.protocol) !== IPPROTO_ICMP) return false;
  const headerLen = 4 * (dv.getUint8(ip + IPHDR.off.version_ihl) & 0xf);
  const icmp = ip + headerLen;
  if (headerLen < IPHDR.size || icmp + ICMPHDR.size > end) return false;
  if (dv.getUint8(icmp + ICMPHDR.off.type) !== ICMP_ECHO_REQUEST || dv.getUint8(icmp + ICMPHDR.off.code) !== 0)
    return false;
  for (let i = 0; i < MAC_BYTES; i++) {
    const dest = dv.getUint8(off + ETHHDR.off.h_dest + i);
    dv.setUint8(off + ETHHDR.off.h_dest + i, dv.getUint8(off + ETHHDR.off.h_source + i));
    dv.setUint8(off + ETHHDR.off.h_source + i, dest);
  }
  const source = dv.getUint32(ip + IPHDR.off.saddr);
  const dest = dv.getUint32(ip + IPHDR.off.daddr);
  const multicast = dest >>> 28 === 0xe;
  // nobody may send from a group's address: another host of the asker's network answers
  const host = (source & 3) === 1 ? 2 : 1;
  dv.setUint32(ip + IPHDR.off.saddr, multicast ? ((source & ~3) | host) >>> 0 : dest);
  dv.setUint32(ip + IPHDR.off.daddr, source);
  if (multicast) setIpv4Checksum(dv, ip, headerLen);
  dv.setUint8(icmp + ICMPHDR.off.type, ICMP_ECHO_REPLY);
  // RFC 1624: the word of type and code became less by what the checksum becomes more by
  const before = dv.getUint16(icmp + ICMPHDR.off.checksum);
  dv.setUint16(icmp + ICMPHDR.off.checksum, addOnes(before, ICMP_ECHO_REQUEST << 8));
  return true;
}
