/**
 * What fits an uplink's MTU.
 */
import { ETHHDR, TCPHDR, UDPHDR, VLAN_HLEN } from '../uapi/ip.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { type Burst, HEADER_BYTES } from '../virtio-net/burst.ts';
import { NEED_CSUM, NEED_TSO4, NEED_TSO6, NEED_UFO } from '../virtio-net/offload.ts';
import { typeOf } from './egress.ts';
import { isTagType } from './port-vlans.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;

/**
 * Keeps those of packets list[from] … list[from + n − 1] whose bytes behind Ethernet header and tag are not more than `mtu`, in their
 * order. A packet to be cut must not become longer pieces, as far as its header tells: without options of TCP. @returns how many are kept
 */
export function keepFitting(burst: Burst, list: Int32Array, from: number, n: number, mtu: number): number {
  let kept = 0;
  for (let k = from; k < from + n; k++) {
    const i = list[k];
    const link = ETHHDR.size + (isTagType(typeOf(burst, i)) ? VLAN_HLEN : 0);
    const bytes = (burst.needs[i] & ~NEED_CSUM) === 0 ? burst.len[i] : pieceBytes(burst, i);
    if (bytes - link <= mtu) list[from + kept++] = i;
  }
  return kept;
}

/** The longest frame that packet `i` may be cut into. */
function pieceBytes({ header, needs }: Burst, i: number): number {
  const size = header.getUint16(HEADER_BYTES * i + HDR.gso_size, true);
  const transport = header.getUint16(HEADER_BYTES * i + HDR.csum_start, true);
  if ((needs[i] & (NEED_TSO4 | NEED_TSO6)) !== 0) return transport + TCPHDR.size + size;
  // fragments have what the IP packet carries, its UDP header included
  return (needs[i] & NEED_UFO) !== 0 ? transport + size : transport + UDPHDR.size + size;
}
