/**
 * Makes IP fragments out of one large packet: what has to change in each copy of its headers. The checksum of what is within
 * has been completed: it covers the whole packet.
 * @see RFC 791 §3.2, RFC 8200 §4.5
 */
import {
  IP_MF,
  IP6_MF,
  IPHDR,
  IPOPT_COPY,
  IPOPT_END,
  IPOPT_NOOP,
  IPPROTO_FRAGMENT,
  IPV6_FRAG_HDR,
  IPV6HDR,
} from '../uapi/ip.ts';
import type { FrameHeaders } from './headers.ts';
import { setIpv4Checksum } from './segment.ts';

/** All fragments but the last have a multiple of so many bytes. */
export const FRAGMENT_UNIT = 8;

/**
 * Finishes a fragment: the `len` bytes at `off` are the large packet's headers up to `headers.fragmentOff`, with IPv6 eight bytes of
 * room for the fragment header, and what the packet has from byte `at` on, counted from `fragmentOff`.
 * @param last no fragment comes behind it
 * @param id IPv6: the same in all of a packet's fragments, and in no other's between the two addresses for a long time
 */
export function finishFragment(
  dv: DataView,
  off: number,
  len: number,
  headers: FrameHeaders,
  at: number,
  last: boolean,
  id: number,
): void {
  const ipAt = off + headers.ipOff;
  if (headers.ipVersion === 6) {
    dv.setUint16(ipAt + IPV6HDR.off.payload_len, len - headers.ipOff - IPV6HDR.size);
    const fragmentAt = off + headers.fragmentOff;
    dv.setUint8(fragmentAt + IPV6_FRAG_HDR.off.nexthdr, dv.getUint8(off + headers.nextHeaderOff));
    dv.setUint8(fragmentAt + IPV6_FRAG_HDR.off.reserved, 0);
    dv.setUint16(fragmentAt + IPV6_FRAG_HDR.off.frag_off, at | (last ? 0 : IP6_MF));
    dv.setUint32(fragmentAt + IPV6_FRAG_HDR.off.identification, id);
    dv.setUint8(off + headers.nextHeaderOff, IPPROTO_FRAGMENT);
    return;
  }
  const headerLen = headers.fragmentOff - headers.ipOff;
  dv.setUint16(ipAt + IPHDR.off.tot_len, len - headers.ipOff);
  // Without "don't fragment": whoever asks for fragments has changed their mind.
  dv.setUint16(ipAt + IPHDR.off.frag_off, at / FRAGMENT_UNIT + (last ? 0 : IP_MF));
  if (at > 0) blankUncopiedOptions(dv, ipAt + IPHDR.size, ipAt + headerLen);
  setIpv4Checksum(dv, ipAt, headerLen);
}

/** Puts padding in the place of options that only the first fragment has. Stops at an option that is malformed. */
function blankUncopiedOptions(dv: DataView, from: number, end: number): void {
  let at = from;
  while (at < end) {
    const option = dv.getUint8(at);
    if (option === IPOPT_END) return;
    let len = 1;
    if (option !== IPOPT_NOOP) {
      if (at + 2 > end) return;
      len = dv.getUint8(at + 1);
      if (len < 2 || at + len > end) return;
    }
    if ((option & IPOPT_COPY) === 0) for (let i = 0; i < len; i++) dv.setUint8(at + i, IPOPT_NOOP);
    at += len;
  }
}
