/**
 * csum: gives frames the addresses of mac, and makes the checksums of IPv4, TCP and UDP right; those that were wrong are counted. Of
 * fragments only the IPv4 header is looked at, and a UDP datagram without a checksum keeps none.
 */
import { addOnes, checksumOf, onesSum } from '../../net/checksum.ts';
import { FrameHeaders } from '../../net/headers.ts';
import { setIpv4Checksum } from '../../net/segment.ts';
import { ETH_P_IP, ETHHDR, IPHDR, IPPROTO_UDP, IPV6HDR, TCPHDR, UDPHDR } from '../../uapi/ip.ts';
import { STREAM_SLOTS } from '../stream.ts';
import { MacMode } from './mac.ts';

/** The ones' complement sum of something right, its checksum included. */
const RIGHT = 0xffff;

export class CsumMode extends MacMode {
  readonly #headers = new FrameHeaders();

  protected override edit(): void {
    const { workshop } = this;
    const { windows, burst } = workshop;
    const { first, len: lens, needs, segments, count } = burst;
    super.edit();
    for (let i = 0; i < count; i++) {
      // what is left to who receives is no fault
      if (needs[i] !== 0) continue;
      if (lens[i] < ETHHDR.size || workshop.flatten(i, lens[i]) < lens[i]) continue;
      const { dv } = windows[segments.window[first[i]]];
      this.#check(dv, segments.off[first[i]], lens[i]);
    }
  }

  #check(dv: DataView, off: number, len: number): void {
    const headers = this.#headers;
    const { counters } = this.stream;
    const whole = headers.parse(dv, off, len);
    const ip = off + headers.ipOff;
    if (headers.ipOff + IPHDR.size <= len && dv.getUint16(ip - 2) === ETH_P_IP) {
      const headerLen = 4 * (dv.getUint8(ip) & 0xf);
      if (headerLen < IPHDR.size || headers.ipOff + headerLen > len) return;
      if (onesSum(dv, ip, headerLen) !== RIGHT) {
        counters[STREAM_SLOTS.bad_ip_checksum]++;
        setIpv4Checksum(dv, ip, headerLen);
      }
    }
    if (whole) this.#checkTransport(dv, off, len);
  }

  #checkTransport(dv: DataView, off: number, len: number): void {
    const { ipOff, ipVersion, protocol, transportOff } = this.#headers;
    const ip = off + ipOff;
    const ipLen =
      ipVersion === 4
        ? dv.getUint16(ip + IPHDR.off.tot_len)
        : IPV6HDR.size + dv.getUint16(ip + IPV6HDR.off.payload_len);
    const udp = protocol === IPPROTO_UDP;
    const bytes = ipOff + ipLen - transportOff;
    if (bytes < (udp ? UDPHDR.size : TCPHDR.size) || transportOff + bytes > len) return;
    const at = off + transportOff;
    const check = at + (udp ? UDPHDR.off.check : TCPHDR.off.check);
    if (udp && ipVersion === 4 && dv.getUint16(check) === 0) return;
    const addresses = ipVersion === 4 ? onesSum(dv, ip + IPHDR.off.saddr, 8) : onesSum(dv, ip + IPV6HDR.off.saddr, 32);
    const pseudo = addOnes(addresses, protocol + bytes);
    if (addOnes(pseudo, onesSum(dv, at, bytes)) === RIGHT) return;
    this.stream.counters[STREAM_SLOTS.bad_l4_checksum]++;
    dv.setUint16(check, 0);
    dv.setUint16(check, checksumOf(addOnes(pseudo, onesSum(dv, at, bytes))));
  }
}
