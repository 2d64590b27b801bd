/**
 * TCP and UDP packets for tests, made and read by plain arithmetic: nothing here is shared with `src/net`.
 */
import { mac } from './frames.ts';

/** The ones' complement sum, word by word as RFC 1071 says it. */
export function naiveSum(...parts: readonly Uint8Array[]): number {
  const bytes = Buffer.concat(parts);
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += bytes[i] * 256 + (i + 1 < bytes.length ? bytes[i + 1] : 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

const be16 = (n: number) => Buffer.from([(n >> 8) & 0xff, n & 0xff]);
const be32 = (n: number) => Buffer.concat([be16(Math.floor(n / 65536)), be16(n % 65536)]);

export interface PacketSpec {
  readonly version: 4 | 6;
  readonly protocol: 'tcp' | 'udp';
  readonly payload: Uint8Array;
  /** TPIDs of VLAN tags, the outer first */
  readonly tags?: readonly number[];
  /** IPv4 options or TCP options: bytes, a multiple of four */
  readonly ipOptions?: Uint8Array;
  readonly tcpOptions?: Uint8Array;
  /** IPv6 extension headers: number, and bytes behind the first two, 6 more than a multiple of eight */
  readonly extensions?: readonly { readonly type: number; readonly body: Uint8Array }[];
  readonly id?: number;
  readonly seq?: number;
  readonly flags?: number;
  /** IPv4 frag_off */
  readonly fragOff?: number;
}

export interface Packet {
  readonly bytes: Buffer;
  readonly ipOff: number;
  readonly csumStart: number;
  readonly csumOffset: number;
  readonly payloadOff: number;
}

const SRC6 = Buffer.from('20010db8000000000000000000000001', 'hex');
const DST6 = Buffer.from('20010db80000000000000000deadbeef', 'hex');
const SRC4 = Buffer.from([10, 1, 2, 3]);
const DST4 = Buffer.from([192, 168, 77, 254]);

export const PROTOCOL = { tcp: 6, udp: 17 } as const;

/** A packet as a driver leaves it: its checksum field has the sum of the pseudo header. */
export function packet(spec: PacketSpec): Packet {
  const { version, protocol, payload, tags = [], extensions = [] } = spec;
  const ipOptions = spec.ipOptions ?? Buffer.alloc(0);
  const tcpOptions = spec.tcpOptions ?? Buffer.alloc(0);
  const transportLen = (protocol === 'tcp' ? 20 + tcpOptions.length : 8) + payload.length;
  const etherType = version === 4 ? 0x0800 : 0x86dd;
  const ethernet = Buffer.concat([
    mac(2),
    mac(1),
    ...tags.flatMap((tpid, i) => [be16(tpid), be16(100 + i)]),
    be16(etherType),
  ]);
  const pseudo =
    version === 4
      ? naiveSum(SRC4, DST4, be16(PROTOCOL[protocol]), be16(transportLen))
      : naiveSum(SRC6, DST6, be32(transportLen), be32(PROTOCOL[protocol]));
  const ports = Buffer.concat([be16(40000), be16(5001)]);
  const transport =
    protocol === 'udp'
      ? Buffer.concat([ports, be16(transportLen), be16(pseudo)])
      : Buffer.concat([
          ...[
            ports,
            be32(spec.seq ?? 1000),
            be32(77),
            Buffer.from([(20 + tcpOptions.length) << 2, spec.flags ?? 0x18]),
          ],
          ...[be16(512), be16(pseudo), be16(0), tcpOptions],
        ]);
  const extension = extensions.map(({ body }, i) =>
    Buffer.concat([Buffer.from([extensions[i + 1]?.type ?? PROTOCOL[protocol], (body.length - 6) / 8]), body]),
  );
  const ip =
    version === 4
      ? Buffer.concat([
          Buffer.from([0x40 | ((20 + ipOptions.length) / 4), 0]),
          ...[be16(20 + ipOptions.length + transportLen), be16(spec.id ?? 7), be16(spec.fragOff ?? 0x4000)],
          ...[Buffer.from([64, PROTOCOL[protocol]]), be16(0), SRC4, DST4, ipOptions],
        ])
      : Buffer.concat([
          Buffer.from([0x60, 0, 0, 0]),
          be16(extension.reduce((sum, { length }) => sum + length, transportLen)),
          Buffer.from([extensions[0]?.type ?? PROTOCOL[protocol], 64]),
          ...[SRC6, DST6, ...extension],
        ]);
  if (version === 4) be16(0xffff - naiveSum(ip)).copy(ip, 10);
  const headers = Buffer.concat([ethernet, ip, transport]);
  return {
    bytes: Buffer.concat([headers, payload]),
    ipOff: ethernet.length,
    csumStart: ethernet.length + ip.length,
    csumOffset: protocol === 'tcp' ? 16 : 6,
    payloadOff: headers.length,
  };
}

/** A frame as its receiver sees it. */
export interface Seen {
  /** Ethernet header and tags */
  readonly link: Buffer;
  readonly version: number;
  /** of an IPv4 header, or of an IPv6 fragment header */
  readonly id: number | undefined;
  /** offset in bytes and "more follow", of a fragment */
  readonly fragment: { readonly at: number; readonly more: boolean } | undefined;
  /** IPv4 options */
  readonly options: Buffer;
  readonly protocol: number;
  /** what the IP packet carries behind all headers that were understood */
  readonly transport: Buffer;
  readonly source: Buffer;
  readonly dest: Buffer;
}

/** Reads a frame, whose lengths and IPv4 checksum must be right. Throws otherwise. */
export function look(frame: Buffer): Seen {
  let at = 12;
  while ([0x8100, 0x88a8].includes(frame.readUInt16BE(at))) at += 4;
  const type = frame.readUInt16BE(at);
  const link = frame.subarray(0, at + 2);
  const ip = frame.subarray(at + 2);
  if (type === 0x0800) {
    const headerLen = 4 * (ip[0] & 0xf);
    if (ip[0] >> 4 !== 4 || naiveSum(ip.subarray(0, headerLen)) !== 0xffff) throw new Error('bad IPv4 header');
    if (ip.readUInt16BE(2) !== ip.length) throw new Error(`total length ${ip.readUInt16BE(2)}, not ${ip.length}`);
    const frag = ip.readUInt16BE(6);
    return {
      link,
      version: 4,
      id: ip.readUInt16BE(4),
      fragment: (frag & 0x3fff) === 0 ? undefined : { at: 8 * (frag & 0x1fff), more: (frag & 0x2000) !== 0 },
      options: ip.subarray(20, headerLen),
      protocol: ip[9],
      transport: ip.subarray(headerLen),
      source: ip.subarray(12, 16),
      dest: ip.subarray(16, 20),
    };
  }
  if (type !== 0x86dd || ip[0] >> 4 !== 6) throw new Error('no IP packet');
  if (ip.readUInt16BE(4) + 40 !== ip.length)
    throw new Error(`payload length ${ip.readUInt16BE(4)} of ${ip.length - 40}`);
  let next = ip[6];
  let off = 40;
  let id: number | undefined;
  let fragment: Seen['fragment'];
  while ([0, 43, 60, 44].includes(next) && !(fragment !== undefined && fragment.at > 0)) {
    const kind = next;
    next = ip[off];
    if (kind === 44) {
      id = ip.readUInt32BE(off + 4);
      fragment = { at: ip.readUInt16BE(off + 2) & 0xfff8, more: (ip[off + 3] & 1) === 1 };
      off += 8;
      break;
    }
    off += 8 + 8 * ip[off + 1];
  }
  return {
    link,
    version: 6,
    id,
    fragment,
    options: Buffer.alloc(0),
    protocol: next,
    transport: ip.subarray(off),
    source: ip.subarray(8, 24),
    dest: ip.subarray(24, 40),
  };
}

/** True if the transport checksum is right, as a receiver counts it. */
export function checksumIsRight({ version, source, dest, transport, protocol }: Seen): boolean {
  const pseudo = [source, dest, version === 4 ? be16(protocol) : be32(protocol), be32(transport.length)];
  return naiveSum(...pseudo, transport) === 0xffff;
}
