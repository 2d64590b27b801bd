/**
 * `set verbose`: a line for each packet that is received or sent, as DPDK's testpmd has it; what only mbufs have is left out. Made for
 * reading: what the main thread does not keep up with is counted, and not shown.
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
  IPPROTO_TCP,
  IPPROTO_UDP,
  IPV6HDR,
  TCPHDR,
  UDPHDR,
  VLAN_HLEN,
} from '../uapi/ip.ts';
import { type BurstWatch, HEADER_ROOM, type Workshop } from './workshop.ts';

/** Bursts that may wait to be shown. */
const MAX_WAITING = 64;
const IPPROTO_SCTP = 132;
const SCTP_HEADER = 12;

/** What is shown at which level: 1 what is received, 2 what is sent, above both. */
const RECEIVES = (level: number) => level !== 2;
const SENDS = (level: number) => level >= 2;

const FLAGS = {
  received: [
    ...['RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN', 'RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN', 'RTE_MBUF_F_RX_OUTER_L4_CKSUM_UNKNOWN'],
  ],
  sent: ['RTE_MBUF_F_TX_L4_NO_CKSUM'],
} as const;

export class PacketDump implements BurstWatch {
  readonly #level: number;
  readonly #waiting: () => number;
  readonly #show: (text: string) => void;
  #missed = 0;

  /** @param waiting texts that have been handed to `show`, and not been shown */
  constructor(level: number, waiting: () => number, show: (text: string) => void) {
    this.#level = level;
    this.#waiting = waiting;
    this.#show = show;
  }

  received(workshop: Workshop, port: number, queue: number): void {
    const { all, count } = workshop.burst;
    if (RECEIVES(this.#level)) this.#tell(workshop, 'received', port, queue, all, count);
  }

  sent(workshop: Workshop, port: number, queue: number, list: Int32Array, n: number): void {
    if (SENDS(this.#level)) this.#tell(workshop, 'sent', port, queue, list, n);
  }

  // biome-ignore format: one line
  #tell(workshop: Workshop, what: keyof typeof FLAGS, port: number, queue: number, list: Int32Array, n: number): void {
    if (n === 0) return;
    if (this.#waiting() >= MAX_WAITING) {
      this.#missed += n;
      return;
    }
    const lines = [`port ${port}/queue ${queue}: ${what} ${n} packets`];
    const end = `${what === 'sent' ? 'Send' : 'Receive'} queue=0x${queue.toString(16)}`;
    for (let i = 0; i < n; i++)
      lines.push(`  ${packetLine(workshop, list[i])} - ${end}`, `  ol_flags: ${FLAGS[what].join(' ')} `);
    if (this.#missed > 0) lines.unshift(`${this.#missed} packets came too fast to be shown`);
    this.#missed = 0;
    this.#show(lines.join('\n'));
  }
}

const mac = (dv: DataView, off: number) =>
  Array.from({ length: 6 }, (_, i) =>
    dv
      .getUint8(off + i)
      .toString(16)
      .padStart(2, '0'),
  )
    .join(':')
    .toUpperCase();

/** One packet of the burst. */
function packetLine(workshop: Workshop, packet: number): string {
  const { first, len, segments } = workshop.burst;
  const pieces = first[packet + 1] - first[packet];
  const bytes = Math.min(workshop.flatten(packet, HEADER_ROOM), HEADER_ROOM);
  const off = segments.off[first[packet]];
  const { dv } = workshop.windows[segments.window[first[packet]]];
  const length = `length=${len[packet]} - nb_segs=${pieces}`;
  if (bytes < ETHHDR.size) return length;
  const type = dv
    .getUint16(off + ETHHDR.off.h_proto)
    .toString(16)
    .padStart(4, '0');
  const addresses = `src=${mac(dv, off + ETHHDR.off.h_source)} - dst=${mac(dv, off + ETHHDR.off.h_dest)}`;
  return `${addresses} - type=0x${type} - ${length} - ${headersText(dv, off, bytes)}`;
}

/** The headers of a frame, of which `bytes` bytes are at `off`, with their lengths. */
function headersText(dv: DataView, off: number, bytes: number): string {
  const names: string[] = [];
  const lens: string[] = [];
  const told = () => `sw ptype: ${names.join(' ')}  - ${lens.join(' - ')}`;
  let at = ETHHDR.size;
  let type = dv.getUint16(off + ETHHDR.off.h_proto);
  const outer = type;
  while ((type === ETH_P_8021Q || type === ETH_P_8021AD) && at + VLAN_HLEN <= bytes) {
    type = dv.getUint16(off + at + 2);
    at += VLAN_HLEN;
  }
  names.push(outer === ETH_P_8021AD ? 'L2_ETHER_QINQ' : outer === ETH_P_8021Q ? 'L2_ETHER_VLAN' : 'L2_ETHER');
  lens.push(`l2_len=${at}`);
  let protocol = -1;
  if (type === ETH_P_IP && at + IPHDR.size <= bytes) {
    const headerLen = 4 * (dv.getUint8(off + at + IPHDR.off.version_ihl) & 0xf);
    names.push(headerLen > IPHDR.size ? 'L3_IPV4_EXT' : 'L3_IPV4');
    lens.push(`l3_len=${headerLen}`);
    protocol = dv.getUint8(off + at + IPHDR.off.protocol);
    const fragment = (dv.getUint16(off + at + IPHDR.off.frag_off) & (IP_MF | IP_OFFSET)) !== 0;
    at += headerLen;
    if (fragment) {
      names.push('L4_FRAG');
      lens.push('l4_len=0');
      return told();
    }
  } else if (type === ETH_P_IPV6 && at + IPV6HDR.size <= bytes) {
    names.push('L3_IPV6');
    lens.push(`l3_len=${IPV6HDR.size}`);
    protocol = dv.getUint8(off + at + IPV6HDR.off.nexthdr);
    at += IPV6HDR.size;
  }
  if (protocol === IPPROTO_UDP) names.push('L4_UDP');
  if (protocol === IPPROTO_TCP) names.push('L4_TCP');
  if (protocol === IPPROTO_SCTP) names.push('L4_SCTP');
  if (protocol === IPPROTO_UDP) lens.push(`l4_len=${UDPHDR.size}`);
  if (protocol === IPPROTO_SCTP) lens.push(`l4_len=${SCTP_HEADER}`);
  if (protocol === IPPROTO_TCP && at + TCPHDR.size <= bytes)
    lens.push(`l4_len=${(dv.getUint8(off + at + 12) >> 4) * 4}`);
  return told();
}
