/** A DHCP server on a card of ours, for one guest whose firmware boots from the network. @see RFC 2131 */
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { type Address, ETHERTYPE, IP_PROTOCOL, ipBytes, L4_END, udpFrame } from './ip-packets.ts';

const PORT = { server: 67, client: 68 } as const;
const AT = { op: 0, xid: 4, yourIp: 16, serverIp: 20, mac: 28, file: 108, magic: 236, options: 240 } as const;
const MAGIC = [99, 130, 83, 99];
const OPTION = { mask: 1, lease: 51, messageType: 53, serverId: 54, end: 255 } as const;
const MESSAGE = { discover: 1, offer: 2, request: 3, acknowledge: 5 } as const;
const BOOT_REPLY = 2;
const ANYBODY = '255.255.255.255';
/** What the guest is told to load. Nobody has it, so it asks on and on. */
const BOOT_FILE = 'boot';

interface Question {
  readonly type: number;
  readonly message: Buffer;
}

/** What a guest asks in a frame, or undefined if that is something else. */
function questionIn(frame: Uint8Array): Question | undefined {
  const bytes = Buffer.from(frame);
  const isUdp = bytes.readUInt16BE(12) === ETHERTYPE.ipv4 && bytes[23] === IP_PROTOCOL.udp;
  if (!isUdp || bytes.readUInt16BE(36) !== PORT.server) return undefined;
  const message = bytes.subarray(L4_END);
  for (let at: number = AT.options; at + 2 < message.length && message[at] !== OPTION.end; at += 2 + message[at + 1])
    if (message[at] === OPTION.messageType) return { type: message[at + 2], message };
  return undefined;
}

function answerTo({ type, message }: Question, ip: Address, own: Address): Buffer {
  const options = [
    ...[OPTION.messageType, 1, type === MESSAGE.discover ? MESSAGE.offer : MESSAGE.acknowledge],
    ...[OPTION.serverId, 4, ...own, OPTION.lease, 4, 0, 0, 255, 255, OPTION.mask, 4, 255, 255, 255, 0, OPTION.end],
  ];
  const answer = Buffer.alloc(AT.options + 64);
  message.copy(answer, 0, 0, AT.magic);
  answer[AT.op] = BOOT_REPLY;
  answer.set(ip, AT.yourIp);
  answer.set(own, AT.serverIp);
  answer.write(BOOT_FILE, AT.file);
  answer.set(MAGIC, AT.magic);
  answer.set(options, AT.options);
  return answer;
}

/** Gives the first guest that asks the address `ip`. @returns its MAC address. Rejects after `ms` */
export async function leaseTo(card: VirtioUser, ip: string, ownIp: string, ms: number): Promise<string> {
  const own = ipBytes(ownIp);
  const giveUpAt = performance.now() + ms;
  for (;;) {
    const left = giveUpAt - performance.now();
    if (left <= 0) throw new Error(`no guest has taken ${ip} within ${ms} ms`);
    const frame = await card.waitFrame(left);
    const question = frame && questionIn(frame);
    if (question === undefined) continue;
    const mac = question.message.subarray(AT.mac, AT.mac + 6);
    const ends = { dstMac: mac, srcMac: card.macBytes, dstIp: ipBytes(ANYBODY), srcIp: own };
    card.send(udpFrame(ends, { dst: PORT.client, src: PORT.server }, answerTo(question, ipBytes(ip), own)));
    card.flush();
    if (question.type === MESSAGE.request) return mac.toString('hex').replaceAll(/(..)(?!$)/g, '$1:');
  }
}
