/**
 * Headers of Ethernet, IP, TCP and UDP. All numbers in them are big-endian.
 * @see linux/if_ether.h, ip.h, ipv6.h, tcp.h, udp.h, in.h, in6.h; RFC 791, 8200, 9293, 768
 */
import { layout, packedLayout } from './layout.ts';

export const ETHHDR = packedLayout('ethhdr', { h_dest: ['u8', 6], h_source: ['u8', 6], h_proto: 'u16' });

export const ETH_P_IP = 0x0800;
export const ETH_P_ARP = 0x0806;
export const ETH_P_IPV6 = 0x86dd;
/** A customer's VLAN tag, and a service's. */
export const ETH_P_8021Q = 0x8100;
export const ETH_P_8021AD = 0x88a8;

/** A VLAN tag: two bytes of tag, then the next EtherType. */
export const VLAN_HLEN = 4;

export const IPHDR = layout('iphdr', {
  version_ihl: 'u8',
  tos: 'u8',
  tot_len: 'u16',
  id: 'u16',
  frag_off: 'u16',
  ttl: 'u8',
  protocol: 'u8',
  check: 'u16',
  saddr: 'u32',
  daddr: 'u32',
});

/** In `frag_off`: more fragments follow; and where this one belongs, in units of eight bytes. */
export const IP_MF = 0x2000;
export const IP_OFFSET = 0x1fff;

/** IPv4 options: end of the list, a byte of padding, and the bit of those that every fragment has. */
export const IPOPT_END = 0;
export const IPOPT_NOOP = 1;
export const IPOPT_COPY = 0x80;

export const IPV6HDR = layout('ipv6hdr', {
  version: 'u8',
  flow_lbl: ['u8', 3],
  payload_len: 'u16',
  nexthdr: 'u8',
  hop_limit: 'u8',
  saddr: ['u32', 4],
  daddr: ['u32', 4],
});

/** What the extension headers that may be skipped begin with: their length is in units of eight bytes, without the first eight. */
export const IPV6_OPT_HDR = layout('ipv6_opt_hdr', { nexthdr: 'u8', hdrlen: 'u8' });

/** RFC 8200 §4.5. `frag_off`: the offset in bytes, a multiple of eight, and IP6_MF. */
export const IPV6_FRAG_HDR = layout('frag_hdr', {
  nexthdr: 'u8',
  reserved: 'u8',
  frag_off: 'u16',
  identification: 'u32',
});
export const IP6_MF = 1;

export const IPPROTO_HOPOPTS = 0;
export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_UDP = 17;
export const IPPROTO_ROUTING = 43;
export const IPPROTO_FRAGMENT = 44;
export const IPPROTO_DSTOPTS = 60;

export const TCPHDR = layout('tcphdr', {
  source: 'u16',
  dest: 'u16',
  seq: 'u32',
  ack_seq: 'u32',
  /** header length in units of four bytes, in the upper half */
  doff: 'u8',
  flags: 'u8',
  window: 'u16',
  check: 'u16',
  urg_ptr: 'u16',
});
export const TCP_FIN = 0x01;
export const TCP_PSH = 0x08;
/** "I have slowed down": said once, RFC 3168 §6.1.2. */
export const TCP_CWR = 0x80;

export const UDPHDR = layout('udphdr', { source: 'u16', dest: 'u16', len: 'u16', check: 'u16' });

/** What ICMP messages begin with. @see RFC 792 */
export const ICMPHDR = layout('icmphdr', { type: 'u8', code: 'u8', checksum: 'u16', rest: 'u32' });
