/** ARP, IPv4, ICMP and UDP packets in Ethernet frames, as far as tests need them. Not a network stack. */

export const ETHERTYPE = { ipv4: 0x0800, arp: 0x0806, rarp: 0x8035 } as const;
export const IP_PROTOCOL = { icmp: 1, udp: 17 } as const;
export const ICMP = { echoReply: 0, echoRequest: 8 } as const;

/** Bytes before the payload: Ethernet and IPv4; these and UDP's or ICMP's. */
export const IP_END = 34;
export const L4_END = 42;
/** A frame without the frame check. */
const MIN_FRAME = 60;

export type Address = Uint8Array;

/** Who an IPv4 packet is from and to. */
export interface Ends {
  readonly dstMac: Address;
  readonly srcMac: Address;
  readonly dstIp: Address;
  readonly srcIp: Address;
}

export const macBytes = (mac: string): Address => Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));
export const ipBytes = (ip: string): Address => Uint8Array.from(ip.split('.'), Number);

/** The Internet checksum (RFC 1071). */
export function internetChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) sum += i % 2 === 0 ? bytes[i] << 8 : bytes[i];
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** A frame with an IPv4 header and room for `payloadLen` bytes behind 8 more of UDP or ICMP, all of them zero. */
function ipv4Frame(ends: Ends, protocol: number, payloadLen: number): Buffer {
  const frame = Buffer.alloc(Math.max(L4_END + payloadLen, MIN_FRAME));
  frame.set(ends.dstMac, 0);
  frame.set(ends.srcMac, 6);
  frame.writeUInt16BE(ETHERTYPE.ipv4, 12);
  frame.set([0x45, 0], 14);
  frame.writeUInt16BE(28 + payloadLen, 16);
  frame.set([64, protocol], 22);
  frame.set(ends.srcIp, 26);
  frame.set(ends.dstIp, 30);
  frame.writeUInt16BE(internetChecksum(frame.subarray(14, IP_END)), 24);
  return frame;
}

/** A UDP datagram without a checksum, so that nobody on its way notices damage but who looks at the payload. */
export function udpFrame(ends: Ends, ports: { dst: number; src: number }, payload: Uint8Array): Buffer {
  const frame = ipv4Frame(ends, IP_PROTOCOL.udp, payload.length);
  frame.writeUInt16BE(ports.src, IP_END);
  frame.writeUInt16BE(ports.dst, IP_END + 2);
  frame.writeUInt16BE(8 + payload.length, IP_END + 4);
  frame.set(payload, L4_END);
  return frame;
}

/** An ICMP echo request or reply. */
export function echoFrame(ends: Ends, type: number, id: number, seq: number, payload: Uint8Array): Buffer {
  const frame = ipv4Frame(ends, IP_PROTOCOL.icmp, payload.length);
  frame[IP_END] = type;
  frame.writeUInt16BE(id, IP_END + 4);
  frame.writeUInt16BE(seq & 0xffff, IP_END + 6);
  frame.set(payload, L4_END);
  const message = frame.subarray(IP_END, L4_END + payload.length);
  frame.writeUInt16BE(internetChecksum(message), IP_END + 2);
  return frame;
}

/** The answer to an ARP request for `ip`, from `mac`. */
export function arpReply(request: Uint8Array, mac: Address, ip: Address): Buffer {
  const frame = Buffer.alloc(MIN_FRAME);
  frame.set(request.subarray(22, 28), 0);
  frame.set(mac, 6);
  frame.writeUInt16BE(ETHERTYPE.arp, 12);
  frame.set([0, 1, 8, 0, 6, 4, 0, 2], 14);
  frame.set(mac, 22);
  frame.set(ip, 28);
  frame.set(request.subarray(22, 32), 32);
  return frame;
}

/** The address that an ARP request asks for, or undefined if the frame is none. */
export function arpTarget(frame: Uint8Array): Address | undefined {
  const isRequest = frame.length >= 42 && frame[20] === 0 && frame[21] === 1;
  return isRequest ? frame.subarray(38, 42) : undefined;
}
