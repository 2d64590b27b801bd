/**
 * Which flow a packet belongs to: a hash that both directions share, so that one flow stays in one queue.
 */
import type { WindowViews } from '../mem/window.ts';
import { type Burst, FRONT_WORDS } from '../virtio-net/burst.ts';

const ETHERNET = 14;
const TYPE_OFF = 12;
const VLAN_TAG = 4;
const MAX_TAGS = 2;
const TYPE_IPV4 = 0x0800;
const TYPE_IPV6 = 0x86dd;
const TYPE_VLAN = 0x8100;
const TYPE_QINQ = 0x88a8;
const IPV4_MIN = 20;
const IPV6 = 40;
const PROTO_TCP = 6;
const PROTO_UDP = 17;
const PROTO_SCTP = 132;
/** IPv4: more fragments, or not the first */
const FRAGMENT_MASK = 0x3fff;

/** Bytes looked at: Ethernet, two tags, the longest IPv4 header, ports. */
const LOOK_BYTES = ETHERNET + MAX_TAGS * VLAN_TAG + 60 + 4;
const gathered = new DataView(new ArrayBuffer(LOOK_BYTES));

/** Packet `i`'s flow as a number from 0 to 2³¹ − 1, which V8 need not allocate. By addresses and ports of IP; by MAC addresses of other packets. */
export function flowHash(burst: Burst, i: number, windows: readonly WindowViews[]): number {
  const { segments, first, len, front } = burst;
  const segment = first[i];
  const end = Math.min(len[i], LOOK_BYTES);
  let dv = windows[segments.window[segment]].dv;
  let off = segments.off[segment];
  if (segments.len[segment] < end) {
    gather(burst, i, windows, end);
    dv = gathered;
    off = 0;
  }
  let at = TYPE_OFF;
  for (let tags = 0; tags < MAX_TAGS && at + VLAN_TAG + 2 <= end; tags++) {
    const type = dv.getUint16(off + at);
    if (type !== TYPE_VLAN && type !== TYPE_QINQ) break;
    at += VLAN_TAG;
  }
  const word = FRONT_WORDS * i;
  // destination and source: their first four bytes, and their last two
  let hash = front[word] ^ ((front[word + 1] >>> 16) | (front[word + 2] << 16));
  hash ^= (front[word + 1] ^ (front[word + 2] >>> 16)) & 0xffff;
  const type = at + 2 <= end ? dv.getUint16(off + at) : 0;
  at += 2;
  if (type === TYPE_IPV4 && at + IPV4_MIN <= end) hash = ipv4(dv, off, at, end);
  else if (type === TYPE_IPV6 && at + IPV6 <= end) hash = ipv6(dv, off, at, end);
  return mix(hash);
}

function ipv4(dv: DataView, off: number, at: number, end: number): number {
  const addresses = dv.getInt32(off + at + 12) ^ dv.getInt32(off + at + 16);
  const proto = dv.getUint8(off + at + 9);
  const fragment = (dv.getUint16(off + at + 6) & FRAGMENT_MASK) !== 0;
  const payload = at + 4 * (dv.getUint8(off + at) & 15);
  return addresses ^ proto ^ (fragment ? 0 : ports(dv, off, payload, end, proto));
}

function ipv6(dv: DataView, off: number, at: number, end: number): number {
  let addresses = 0;
  for (let word = 8; word < IPV6; word += 4) addresses ^= dv.getInt32(off + at + word);
  const proto = dv.getUint8(off + at + 6);
  return addresses ^ proto ^ ports(dv, off, at + IPV6, end, proto);
}

function ports(dv: DataView, off: number, at: number, end: number, proto: number): number {
  if ((proto !== PROTO_TCP && proto !== PROTO_UDP && proto !== PROTO_SCTP) || at + 4 > end) return 0;
  return (dv.getUint16(off + at) ^ dv.getUint16(off + at + 2)) << 8;
}

function mix(hash: number): number {
  let h = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 1;
}

/** Copies the packet's first `end` bytes together. */
function gather({ segments, first }: Burst, i: number, windows: readonly WindowViews[], end: number): void {
  let at = 0;
  for (let s = first[i]; s < first[i + 1] && at < end; s++) {
    const { u8 } = windows[segments.window[s]];
    const n = Math.min(segments.len[s], end - at);
    for (let k = 0; k < n; k++) gathered.setUint8(at++, u8[segments.off[s] + k]);
  }
}
