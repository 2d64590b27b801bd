/**
 * Finds its way through the headers of a frame: Ethernet, VLAN tags, IPv4 or IPv6, TCP or UDP.
 *
 * Of addresses, lengths and checksums in them nothing is read: whoever asks knows how long the frame is.
 */
import {
  ETH_P_8021AD,
  ETH_P_8021Q,
  ETH_P_IP,
  ETH_P_IPV6,
  ETHHDR,
  IP_MF,
  IP_OFFSET,
  IPHDR,
  IPPROTO_DSTOPTS,
  IPPROTO_HOPOPTS,
  IPPROTO_ROUTING,
  IPPROTO_TCP,
  IPPROTO_UDP,
  IPV6_OPT_HDR,
  IPV6HDR,
  TCPHDR,
  UDPHDR,
  VLAN_HLEN,
} from '../uapi/ip.ts';

/** VLAN tags that a frame may have. */
export const MAX_VLAN_TAGS = 2;
/** Extension headers that an IPv6 packet may have before TCP or UDP. */
export const MAX_EXTENSION_HEADERS = 8;

/** Where the headers of a frame lie, in bytes from its beginning, once `parse` has said true. */
export class FrameHeaders {
  /** 4 or 6 */
  ipVersion = 0;
  ipOff = 0;
  /** IPPROTO_TCP or IPPROTO_UDP */
  protocol = 0;
  transportOff = 0;
  /** behind the TCP or UDP header */
  payloadOff = 0;
  /** what every fragment begins with goes up to here: for IPv6, up to where the fragment header would be (RFC 8200 §4.5) */
  fragmentOff = 0;
  /** IPv6: the field that says what is at `fragmentOff` */
  nextHeaderOff = 0;

  /**
   * Reads the headers of a frame at `off`, of which `len` bytes are there. @returns true if it is a whole IP packet with a TCP or
   * UDP header, and all headers lie in these bytes. A fragment is no whole packet.
   */
  parse(dv: DataView, off: number, len: number): boolean {
    let at = ETHHDR.size;
    if (len < at) return false;
    let type = dv.getUint16(off + ETHHDR.off.h_proto);
    for (let tags = 0; type === ETH_P_8021Q || type === ETH_P_8021AD; tags++) {
      if (tags === MAX_VLAN_TAGS || at + VLAN_HLEN > len) return false;
      type = dv.getUint16(off + at + 2);
      at += VLAN_HLEN;
    }
    this.ipOff = at;
    if (type === ETH_P_IP) return this.#parseIpv4(dv, off, len) && this.#parseTransport(dv, off, len);
    return type === ETH_P_IPV6 && this.#parseIpv6(dv, off, len) && this.#parseTransport(dv, off, len);
  }

  #parseIpv4(dv: DataView, off: number, len: number): boolean {
    const { ipOff } = this;
    if (ipOff + IPHDR.size > len) return false;
    const versionIhl = dv.getUint8(off + ipOff);
    const headerLen = 4 * (versionIhl & 0xf);
    if (versionIhl >> 4 !== 4 || headerLen < IPHDR.size) return false;
    if ((dv.getUint16(off + ipOff + IPHDR.off.frag_off) & (IP_MF | IP_OFFSET)) !== 0) return false;
    this.ipVersion = 4;
    this.protocol = dv.getUint8(off + ipOff + IPHDR.off.protocol);
    this.transportOff = ipOff + headerLen;
    this.fragmentOff = this.transportOff;
    this.nextHeaderOff = 0;
    return true;
  }

  #parseIpv6(dv: DataView, off: number, len: number): boolean {
    const { ipOff } = this;
    if (ipOff + IPV6HDR.size > len || dv.getUint8(off + ipOff) >> 4 !== 6) return false;
    this.ipVersion = 6;
    this.nextHeaderOff = ipOff + IPV6HDR.off.nexthdr;
    let at = ipOff + IPV6HDR.size;
    this.fragmentOff = at;
    let next = dv.getUint8(off + this.nextHeaderOff);
    for (let n = 0; next === IPPROTO_HOPOPTS || next === IPPROTO_ROUTING || next === IPPROTO_DSTOPTS; n++) {
      if (n === MAX_EXTENSION_HEADERS || at + IPV6_OPT_HDR.size > len) return false;
      if (next === IPPROTO_HOPOPTS && n > 0) return false;
      const end = at + 8 * (1 + dv.getUint8(off + at + IPV6_OPT_HDR.off.hdrlen));
      if (end > len) return false;
      // Routers on the way read these two, and what stands before them: it is in every fragment.
      if (next !== IPPROTO_DSTOPTS) {
        this.nextHeaderOff = at + IPV6_OPT_HDR.off.nexthdr;
        this.fragmentOff = end;
      }
      next = dv.getUint8(off + at + IPV6_OPT_HDR.off.nexthdr);
      at = end;
    }
    this.protocol = next;
    this.transportOff = at;
    return true;
  }

  #parseTransport(dv: DataView, off: number, len: number): boolean {
    const at = this.transportOff;
    if (this.protocol === IPPROTO_UDP) {
      this.payloadOff = at + UDPHDR.size;
      return this.payloadOff <= len;
    }
    if (this.protocol !== IPPROTO_TCP || at + TCPHDR.size > len) return false;
    const headerLen = 4 * (dv.getUint8(off + at + TCPHDR.off.doff) >> 4);
    this.payloadOff = at + headerLen;
    return headerLen >= TCPHDR.size && this.payloadOff <= len;
  }
}
