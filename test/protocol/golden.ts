/**
 * Every message of the protocol as bytes, with what it means on both sides. The hex is written by hand from the
 * specification: request, flags, size; payload.
 */
import { closeSync } from 'node:fs';
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
  /** descriptors that come with the answer */
  readonly answerFds?: number;
  /** descriptors that the front end's method makes itself */
  readonly ownFds?: number;
  /** our front end asks for an answer by the header's flag too */
  readonly askedFlags?: boolean;
  /** what the front end's method gets from it */
  readonly value?: unknown;
  /** how the front end says it */
  readonly call: (frontEnd: FrontEnd, fds: readonly number[]) => Promise<unknown>;
  /** what the device is told; undefined where the back end answers by itself */
  readonly told?: Call;
  /** protocol features it needs, a mask */
  readonly needs?: number;
  /** virtio features it needs */
  readonly features?: bigint;
  /** requests that must go before, and what they tell the device */
  readonly before?: readonly Golden[];
  /** what has to come behind it before anything else may */
  readonly after?: readonly { readonly request: string; readonly told: Call }[];
  /** a failure is told by an answer of its own; `asked` when the front end asks for an acknowledgement */
  readonly failure?: (asked: boolean) => string | undefined;
}

export const REPLY_ACK = 1 << 3;
const SLOTS = 1 << 15;
const PAGEFAULT = 1 << 8;
const IN_BAND = (1 << 14) | (1 << 5) | REPLY_ACK;
const INFLIGHT = 1 << 12;
const SKIP_DRAIN = (1 << 23) | (1 << 20) | INFLIGHT;
const CONFIG = 1 << 9;
const STATUS = 1 << 16;
const STATE = 1 << 19;
/** All that our back end serves. */
export const ALL_SERVED = 0xb9_ff7f;

/** Closes what a method has answered with. */
async function shownFd(fd: number | Promise<number>): Promise<'fd'> {
  closeSync(await fd);
  return 'fd';
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

const BASIC_REQUESTS: readonly Golden[] = [
  {
    name: 'GET_FEATURES',
    request: '01000000 01000000 00000000',
    answer: '01000000 05000000 08000000 0080004003000000',
    value: 0x3_4000_8000n,
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
    told: ['getVringBase', 2, true],
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
    answer: '0f000000 05000000 08000000 7fffb90000000000',
    value: 0xb9_ff7fn,
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
    answer: '11000000 05000000 08000000 0300000000000000',
    value: 3,
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
    needs: SLOTS,
  },
  {
    name: 'ADD_MEM_REG',
    request: `25000000 01000000 28000000 0000000000000000
      0000000001000000 0000008000000000 00000000227f0000 0010000000000000`,
    fds: (box) => [box.memfd()],
    call: (f, [fd]) => f.addMemReg({ ...high, fd }),
    told: ['addMemory', { ...high, fd: 'fd' }],
    needs: SLOTS,
  },
  {
    name: 'REM_MEM_REG',
    request: `26000000 01000000 28000000 0000000000000000
      0000000001000000 0000008000000000 00000000227f0000 0000000000000000`,
    call: (f) => f.remMemReg(high),
    told: ['removeMemory', high.guestAddr, high.size, high.frontendAddr],
    needs: SLOTS,
  },
];

const ADVISE: Golden = {
  name: 'POSTCOPY_ADVISE',
  request: '1c000000 01000000 00000000',
  answer: '1c000000 05000000 00000000',
  answerFds: 1,
  value: 'fd',
  call: (f) => shownFd(f.postcopyAdvise()),
  told: ['postcopyAdvise'],
  needs: PAGEFAULT,
  failure: () => '1c000000 05000000 00000000',
};
const LISTEN: Golden = {
  name: 'POSTCOPY_LISTEN',
  request: '1d000000 01000000 00000000',
  call: (f) => f.postcopyListen(),
  told: ['postcopyListen'],
  needs: PAGEFAULT,
  before: [ADVISE],
};
const inflightArea = { size: 0x2000, fileOff: 0x1000 };

/** Requests of single protocol features. */
const FEATURE_REQUESTS: readonly Golden[] = [
  {
    name: 'SET_LOG_BASE',
    request: '06000000 01000000 10000000 0000100000000000 0020000000000000',
    fds: (box) => [box.memfd(0x10_2000)],
    answer: '06000000 05000000 08000000 0000000000000000',
    call: (f, [fd]) => f.setLogBase({ fd, size: 0x10_0000, fileOff: 0x2000 }),
    told: ['setLog', { fd: 'fd', size: 0x10_0000, fileOff: 0x2000 }],
    needs: 1 << 1,
    failure: (asked) => (asked ? '06000000 05000000 08000000 0100000000000000' : undefined),
  },
  {
    name: 'SET_LOG_FD',
    request: '07000000 01000000 00000000',
    fds: (box) => [box.eventfd()],
    call: (f, [fd]) => f.setLogFd(fd),
    told: ['setLogFd', 'fd'],
  },
  {
    name: 'SEND_RARP',
    request: '13000000 01000000 08000000 525400123456 0000',
    call: (f) => f.sendRarp(0x5634_1200_5452n),
    told: ['sendRarp', '525400123456'],
    needs: 1 << 2,
  },
  {
    name: 'NET_SET_MTU',
    request: '14000000 01000000 08000000 dc05000000000000',
    call: (f) => f.netSetMtu(1500),
    told: ['setMtu', 1500],
    needs: 1 << 4,
  },
  {
    name: 'SET_BACKEND_REQ_FD',
    request: '15000000 01000000 00000000',
    fds: (box) => [box.pair()[0]],
    call: (f) => f.openChannel({}),
    ownFds: 1,
    told: ['setChannel', 'channel'],
    needs: 1 << 5,
  },
  {
    name: 'IOTLB_MSG, update',
    request: `16000000 01000000 20000000
      0010000001000000 0020000000000000 00705634127f0000 03 02 000000000000`,
    answer: '16000000 05000000 08000000 0000000000000000',
    call: (f) => f.updateIotlb({ iova: 0x1_0000_1000, size: 0x2000, userAddr: 0x7f12_3456_7000, permissions: 3 }),
    askedFlags: true,
    told: ['updateIotlb', { iova: 0x1_0000_1000, size: 0x2000, userAddr: 0x7f12_3456_7000, permissions: 3 }],
    features: 1n << 33n,
    failure: () => '16000000 05000000 08000000 0100000000000000',
  },
  {
    name: 'IOTLB_MSG, invalidate',
    request: `16000000 01000000 20000000
      0010000001000000 0020000000000000 0000000000000000 00 03 000000000000`,
    answer: '16000000 05000000 08000000 0000000000000000',
    call: (f) => f.invalidateIotlb(0x1_0000_1000n, 0x2000n),
    askedFlags: true,
    told: ['invalidateIotlb', 0x1_0000_1000, 0x2000],
    features: 1n << 33n,
    failure: () => '16000000 05000000 08000000 0100000000000000',
  },
  {
    name: 'SET_VRING_ENDIAN',
    request: '17000000 01000000 08000000 02000000 01000000',
    call: (f) => f.setVringEndian(2, true),
    told: ['setVringEndian', 2, true],
    needs: 1 << 6,
  },
  {
    name: 'GET_CONFIG',
    request: '18000000 01000000 10000000 06000000 04000000 00000000 00000000',
    answer: '18000000 05000000 10000000 06000000 04000000 00000000 0708090a',
    value: Uint8Array.of(7, 8, 9, 10),
    call: (f) => f.getConfig(6, 4),
    told: ['getConfig', 6, 4],
    needs: CONFIG,
    failure: () => '18000000 05000000 00000000',
  },
  {
    name: 'SET_CONFIG',
    request: '19000000 01000000 0f000000 02000000 03000000 00000000 aabbcc',
    call: (f) => f.setConfig(2, Uint8Array.of(0xaa, 0xbb, 0xcc)),
    told: ['setConfig', 2, [0xaa, 0xbb, 0xcc], false],
    needs: CONFIG,
  },
  {
    name: 'SET_CONFIG in live migration',
    request: '19000000 01000000 0d000000 02000000 01000000 01000000 aa',
    call: (f) => f.setConfig(2, Uint8Array.of(0xaa), true),
    told: ['setConfig', 2, [0xaa], true],
    needs: CONFIG,
  },
  ADVISE,
  LISTEN,
  {
    name: 'SET_MEM_TABLE in postcopy',
    request: `05000000 01000000 48000000 02000000 00000000
      0000000000000000 00000a0000000000 00705634127f0000 0000000000000000
      0000000001000000 0000008000000000 00000000227f0000 0010000000000000`,
    fds: (box) => [box.memfd(), box.memfd()],
    answer: `05000000 05000000 48000000 02000000 00000000
      0000000000000000 00000a0000000000 0000000000700000 0000000000000000
      0000000001000000 0000008000000000 0000000001700000 0010000000000000`,
    value: [0x7000_0000_0000, 0x7001_0000_0000],
    call: (f, fds) => f.setMemTablePostcopy([low, high].map((region, i) => ({ ...region, fd: fds[i] }))),
    told: ['setMemory', [low, high].map((region) => ({ ...region, fd: 'fd' }))],
    before: [ADVISE, LISTEN],
    needs: PAGEFAULT,
    after: [{ request: '05000000 01000000 08000000 0000000000000000', told: ['postcopyReady'] }],
    failure: (asked) => (asked ? '05000000 05000000 08000000 0100000000000000' : undefined),
  },
  {
    name: 'POSTCOPY_END',
    request: '1e000000 01000000 00000000',
    answer: '1e000000 05000000 08000000 0000000000000000',
    call: (f) => f.postcopyEnd(),
    told: ['postcopyEnd'],
    needs: PAGEFAULT,
    before: [ADVISE, LISTEN],
    failure: () => '1e000000 05000000 08000000 0100000000000000',
  },
  {
    name: 'GET_INFLIGHT_FD',
    request: '1f000000 01000000 18000000 0000000000000000 0000000000000000 0400 0001 00000000',
    answer: '1f000000 05000000 18000000 0020000000000000 0010000000000000 0400 0001 00000000',
    answerFds: 1,
    value: { ...inflightArea, fd: 'fd' },
    call: async (f) => {
      const { fd, ...area } = await f.getInflightFd(4, 256);
      return { ...area, fd: await shownFd(fd) };
    },
    told: ['getInflight', 4, 256],
    needs: INFLIGHT,
    failure: () => '1f000000 05000000 18000000 0000000000000000 0000000000000000 0000 0000 00000000',
  },
  {
    name: 'SET_INFLIGHT_FD',
    request: '20000000 01000000 18000000 0020000000000000 0010000000000000 0200 8000 00000000',
    fds: (box) => [box.memfd(0x3000)],
    call: (f, [fd]) => f.setInflightFd({ ...inflightArea, fd }, 2, 128),
    told: ['setInflight', { ...inflightArea, fd: 'fd' }, 2, 128],
    needs: INFLIGHT,
  },
  {
    name: 'RESET_DEVICE',
    request: '22000000 01000000 00000000',
    call: (f) => f.resetDevice(),
    told: ['resetRings'],
    needs: 1 << 13,
  },
  {
    name: 'VRING_KICK',
    request: '23000000 01000000 08000000 03000000 00000000',
    call: (f) => f.kickVring(3),
    told: ['kickVring', 3],
    needs: IN_BAND,
  },
  {
    name: 'SET_STATUS',
    request: '27000000 01000000 08000000 0f00000000000000',
    call: (f) => f.setStatus(15),
    told: ['setStatus', 15],
    needs: STATUS,
  },
  {
    name: 'GET_STATUS',
    request: '28000000 01000000 00000000',
    answer: '28000000 05000000 08000000 0000000000000000',
    value: 0,
    call: (f) => f.getStatus(),
    needs: STATUS,
  },
  {
    name: 'SET_DEVICE_STATE_FD, save',
    request: '2a000000 01000000 08000000 00000000 00000000',
    fds: (box) => [box.pipe()[1]],
    answer: '2a000000 05000000 08000000 0001000000000000',
    call: (f, [fd]) => f.setDeviceStateFd('save', fd),
    told: ['transferState', 'save', 0, 'fd'],
    needs: STATE,
    failure: () => '2a000000 05000000 08000000 0101000000000000',
  },
  {
    name: 'SET_DEVICE_STATE_FD, load',
    request: '2a000000 01000000 08000000 01000000 00000000',
    fds: (box) => [box.pipe()[0]],
    answer: '2a000000 05000000 08000000 0001000000000000',
    call: (f, [fd]) => f.setDeviceStateFd('load', fd),
    told: ['transferState', 'load', 0, 'fd'],
    needs: STATE,
    failure: () => '2a000000 05000000 08000000 0101000000000000',
  },
  {
    name: 'CHECK_DEVICE_STATE',
    request: '2b000000 01000000 00000000',
    answer: '2b000000 05000000 08000000 0000000000000000',
    call: (f) => f.checkDeviceState(),
    told: ['checkState'],
    needs: STATE,
    failure: () => '2b000000 05000000 08000000 0100000000000000',
  },
  {
    name: 'GET_VRING_BASE_SKIP_DRAIN',
    request: '2d000000 01000000 08000000 02000000 00000000',
    answer: '2d000000 05000000 08000000 02000000 34120000',
    value: 0x1234,
    call: (f) => f.getVringBaseSkipDrain(2),
    told: ['getVringBase', 2, false],
    needs: SKIP_DRAIN,
  },
];

/** Every request that our back end serves. */
export const GOLDEN: readonly Golden[] = [...BASIC_REQUESTS, ...FEATURE_REQUESTS];

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

/** SET_PROTOCOL_FEATURES with `bits`. */
export const setProtocolFeatures = (bits = SLOTS | REPLY_ACK): string =>
  altered('10000000 01000000 00000000', { size: 8 }).replace(/0{16}$/, `${littleEndian64(BigInt(bits))}`);

/** SET_FEATURES with VERSION_1, bit 30 and `features`. */
export const setFeatures = (features = 0n): string =>
  `020000000100000008000000${littleEndian64((1n << 32n) | (1n << 30n) | features)}`;

/** 16 hex digits. */
export function littleEndian64(value: bigint): string {
  const data = Buffer.alloc(8);
  data.writeBigUInt64LE(value);
  return data.toString('hex');
}
