/**
 * Every message of the protocol as bytes, with what it means on both sides. The hex is written by hand from the
 * specification: request, flags, size; payload.
 */
import type { FrontEnd } from '../../src/vhost-user/front-end.ts';
import type { Call } from './fake-device.ts';
import type { FdBox } from './harness.ts';

/** One request. */
export interface Golden {
  readonly name: string;
  /** header and payload without flags for an acknowledgement */
  readonly request: string;
  /** the descriptors that go along */
  readonly fds?: (box: FdBox) => number[];
  /** the answer, where the request has one */
  readonly answer?: string;
  /** what the front end's method gets from it */
  readonly value?: unknown;
  /** how the front end says it */
  readonly call: (frontEnd: FrontEnd, fds: readonly number[]) => Promise<unknown>;
  /** what the device is told; undefined where the back end answers by itself */
  readonly told?: Call;
  /** needs CONFIGURE_MEM_SLOTS */
  readonly slots?: boolean;
}

const low = { guestAddr: 0, size: 0xa_0000, frontendAddr: 0x7f12_3456_7000, fileOff: 0 };
const high = { guestAddr: 0x1_0000_0000, size: 0x8000_0000, frontendAddr: 0x7f22_0000_0000, fileOff: 0x1000 };
const addresses = {
  flags: 1,
  descAddr: 0x7f12_3456_7000,
  usedAddr: 0x7f12_3456_9000,
  availAddr: 0x7f12_3456_8000,
  logAddr: 0x1_2345_6000,
};

export const GOLDEN: readonly Golden[] = [
  {
    name: 'GET_FEATURES',
    request: '01000000 01000000 00000000',
    answer: '01000000 05000000 08000000 0080004001000000',
    value: 0x1_4000_8000n,
    call: (f) => f.getFeatures(),
  },
  {
    name: 'SET_FEATURES',
    request: '02000000 01000000 08000000 0080004001000000',
    call: (f) => f.setFeatures(0x1_4000_8000n),
    told: ['setFeatures', 0x1_0000_8000n, true],
  },
  {
    name: 'SET_OWNER',
    request: '03000000 01000000 00000000',
    call: (f) => f.setOwner(),
  },
  {
    name: 'RESET_OWNER',
    request: '04000000 01000000 00000000',
    call: (f) => f.resetOwner(),
    told: ['reset'],
  },
  {
    name: 'SET_MEM_TABLE',
    request: `05000000 01000000 48000000 02000000 00000000
      0000000000000000 00000a0000000000 00705634127f0000 0000000000000000
      0000000001000000 0000008000000000 00000000227f0000 0010000000000000`,
    fds: (box) => [box.memfd(), box.memfd()],
    call: (f, fds) => f.setMemTable([low, high].map((region, i) => ({ ...region, fd: fds[i] }))),
    told: ['setMemory', [low, high].map((region) => ({ ...region, fd: 'fd' }))],
  },
  {
    name: 'SET_VRING_NUM',
    request: '08000000 01000000 08000000 03000000 00010000',
    call: (f) => f.setVringNum(3, 256),
    told: ['setVringNum', 3, 256],
  },
  {
    name: 'SET_VRING_ADDR',
    request: `09000000 01000000 28000000 01000000 01000000
      00705634127f0000 00905634127f0000 00805634127f0000 0060452301000000`,
    call: (f) => f.setVringAddr(1, addresses),
    told: ['setVringAddr', 1, addresses],
  },
  {
    name: 'SET_VRING_BASE',
    request: '0a000000 01000000 08000000 02000000 ffff0000',
    call: (f) => f.setVringBase(2, 0xffff),
    told: ['setVringBase', 2, 0xffff],
  },
  {
    name: 'GET_VRING_BASE',
    request: '0b000000 01000000 08000000 02000000 00000000',
    answer: '0b000000 05000000 08000000 02000000 34120000',
    value: 0x1234,
    call: (f) => f.getVringBase(2),
    told: ['getVringBase', 2],
  },
  {
    name: 'SET_VRING_KICK',
    request: '0c000000 01000000 08000000 0100000000000000',
    fds: (box) => [box.eventfd()],
    call: (f, fds) => f.setVringKick(1, fds[0]),
    told: ['setVringKick', 1, 'fd'],
  },
  {
    name: 'SET_VRING_KICK without a descriptor',
    request: '0c000000 01000000 08000000 0101000000000000',
    call: (f) => f.setVringKick(1, -1),
    told: ['setVringKick', 1, 'NO_FD'],
  },
  {
    name: 'SET_VRING_CALL',
    request: '0d000000 01000000 08000000 0200000000000000',
    fds: (box) => [box.eventfd()],
    call: (f, fds) => f.setVringCall(2, fds[0]),
    told: ['setVringCall', 2, 'fd'],
  },
  {
    name: 'SET_VRING_CALL without a descriptor',
    request: '0d000000 01000000 08000000 0201000000000000',
    call: (f) => f.setVringCall(2, -1),
    told: ['setVringCall', 2, 'NO_FD'],
  },
  {
    name: 'SET_VRING_ERR',
    request: '0e000000 01000000 08000000 0000000000000000',
    fds: (box) => [box.eventfd()],
    call: (f, fds) => f.setVringErr(0, fds[0]),
    told: ['setVringErr', 0, 'fd'],
  },
  {
    name: 'SET_VRING_ERR without a descriptor',
    request: '0e000000 01000000 08000000 0001000000000000',
    call: (f) => f.setVringErr(0, -1),
    told: ['setVringErr', 0, 'NO_FD'],
  },
  {
    name: 'GET_PROTOCOL_FEATURES',
    request: '0f000000 01000000 00000000',
    answer: '0f000000 05000000 08000000 0980000000000000',
    value: 0x8009n,
    call: (f) => f.getProtocolFeatures(),
  },
  {
    name: 'SET_PROTOCOL_FEATURES',
    request: '10000000 01000000 08000000 0180000000000000',
    call: (f) => f.setProtocolFeatures(0x8001n),
  },
  {
    name: 'GET_QUEUE_NUM',
    request: '11000000 01000000 00000000',
    answer: '11000000 05000000 08000000 0200000000000000',
    value: 2,
    call: (f) => f.getQueueNum(),
  },
  {
    name: 'SET_VRING_ENABLE',
    request: '12000000 01000000 08000000 03000000 01000000',
    call: (f) => f.setVringEnable(3, true),
    told: ['setVringEnable', 3, true],
  },
  {
    name: 'GET_MAX_MEM_SLOTS',
    request: '24000000 01000000 00000000',
    answer: '24000000 05000000 08000000 fd01000000000000',
    value: 509,
    call: (f) => f.getMaxMemSlots(),
    slots: true,
  },
  {
    name: 'ADD_MEM_REG',
    request: `25000000 01000000 28000000 0000000000000000
      0000000001000000 0000008000000000 00000000227f0000 0010000000000000`,
    fds: (box) => [box.memfd()],
    call: (f, [fd]) => f.addMemReg({ ...high, fd }),
    told: ['addMemory', { ...high, fd: 'fd' }],
    slots: true,
  },
  {
    name: 'REM_MEM_REG',
    request: `26000000 01000000 28000000 0000000000000000
      0000000001000000 0000008000000000 00000000227f0000 0000000000000000`,
    call: (f) => f.remMemReg(high),
    told: ['removeMemory', high.guestAddr, high.size, high.frontendAddr],
    slots: true,
  },
];

/** Requests our front end can send and our back end does not serve yet. */
export const GOLDEN_FRONT_END_ONLY: readonly Golden[] = [
  {
    name: 'SET_LOG_BASE',
    request: '06000000 01000000 10000000 0000100000000000 0020000000000000',
    fds: (box) => [box.memfd()],
    call: (f, [fd]) => f.setLogBase(0x10_0000n, 0x2000n, fd),
  },
  {
    name: 'SET_LOG_FD',
    request: '07000000 01000000 00000000',
    fds: (box) => [box.eventfd()],
    call: (f, [fd]) => f.setLogFd(fd),
  },
  {
    name: 'SEND_RARP',
    request: '13000000 01000000 08000000 525400123456 0000',
    call: (f) => f.sendRarp(0x5634_1200_5452n),
  },
  {
    name: 'NET_SET_MTU',
    request: '14000000 01000000 08000000 dc05000000000000',
    call: (f) => f.netSetMtu(1500),
  },
];

/** Message bytes with other header fields: `size` also cuts or pads the payload with zeros. */
export function altered(hex: string, change: { size?: number; flags?: number; request?: number }): string {
  const data = Buffer.from(hex.replaceAll(/\s/g, ''), 'hex');
  const size = change.size ?? data.readUInt32LE(8);
  const out = Buffer.alloc(12 + size);
  data.copy(out);
  out.writeUInt32LE(change.request ?? data.readUInt32LE(0), 0);
  out.writeUInt32LE(change.flags ?? data.readUInt32LE(4), 4);
  out.writeUInt32LE(size, 8);
  return out.toString('hex');
}

/** Bytes of payload its header claims. */
export const payloadSize = (hex: string): number => Buffer.from(hex.replaceAll(/\s/g, ''), 'hex').readUInt32LE(8);

/** SET_PROTOCOL_FEATURES with all that is offered, or with `bits`. */
export const setProtocolFeatures = (bits = 0x8009): string =>
  altered('10000000 01000000 00000000', { size: 8 }).replace(/0{16}$/, `${littleEndian64(BigInt(bits))}`);

/** 16 hex digits. */
export function littleEndian64(value: bigint): string {
  const data = Buffer.alloc(8);
  data.writeBigUInt64LE(value);
  return data.toString('hex');
}
