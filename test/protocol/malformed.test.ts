/** Messages that are wrong: each costs its sender the connection or is refused, is logged, and leaks nothing. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VHOST_USER_MAX_PAYLOAD } from '../../src/uapi/vhost-user.ts';
import { ALL_SERVED, altered, GOLDEN, type Golden, littleEndian64, payloadSize, REPLY_ACK } from './golden.ts';
import { FdBox, openFds, TestServer, until } from './harness.ts';
import { type Preparation, prepare, settle } from './prepare.ts';

interface Wrong extends Preparation {
  request: string;
  fds?: (box: FdBox) => number[];
  /** what the log line says, behind `error device 0: ` */
  says: RegExp;
  /** it has an answer, so that an acknowledgement cannot tell the failure */
  answers?: boolean;
  /** the answer that tells it */
  failure?: Golden['failure'];
  /** it costs the connection although an acknowledgement is asked for */
  closes?: boolean;
}

/** The answer that tells a request's failure, if one does. */
function refusalOf({ request, answers, failure, closes }: Wrong, asked: boolean): string | undefined {
  if (closes) return undefined;
  const ack = `${altered(request, {}).slice(0, 8)}0500000008000000${littleEndian64(1n)}`;
  return failure?.(asked)?.replaceAll(/\s/g, '') ?? (asked && !answers ? ack : undefined);
}

/** Sends it with and without REPLY_ACK: refused or closed; told to the device in neither case. */
async function check(wrong: Wrong): Promise<void> {
  const before = openFds();
  for (const asked of [false, true]) {
    const server = new TestServer();
    const box = new FdBox();
    const { peer, device } = await server.connect();
    await prepare(peer, device, { ...wrong, more: asked ? REPLY_ACK : 0 });
    const flags = Number.parseInt(altered(wrong.request, {}).slice(8, 10), 16);
    peer.send(altered(wrong.request, { flags: asked ? flags | 8 : flags }), wrong.fds?.(box));
    const refusal = refusalOf(wrong, asked);
    if (refusal !== undefined) {
      assert.equal(await peer.read(refusal.length / 2), refusal);
      await settle(peer);
      assert.deepEqual(device.calls, []);
    } else {
      await peer.untilClosed();
      await until(() => device.destroyed, 'the device is destroyed');
      assert.deepEqual(device.calls, [['destroy']]);
    }
    const problems = server.problems();
    assert.equal(problems.length, 1, problems.join('\n'));
    assert.match(problems[0], wrong.says);
    assert.match(problems[0], /^error device 0: /);
    box.close();
    await server.close();
  }
  assert.equal(openFds(), before);
}

const nameOf = (golden: Golden) => golden.name.split(/[ ,]/)[0];

/** A golden request made wrong. */
function spoilt(golden: Golden, change: Partial<Wrong> & Pick<Wrong, 'says'>): Wrong {
  const { request, fds, needs, features, before, failure } = golden;
  const preparation = { ...(needs && { needs }), ...(features && { features }), ...(before && { before }) };
  const answers = golden.answer !== undefined;
  return { request, ...preparation, ...(fds && { fds }), ...(failure && { failure }), answers, ...change };
}

for (const golden of GOLDEN) {
  const { request, fds } = golden;
  const size = payloadSize(request);
  const name = nameOf(golden);

  if (size > 0) {
    test(`${golden.name}, payload one byte short: is refused`, async () => {
      const says = new RegExp(`${name}: payload is ${size - 1} bytes, must be`);
      await check(spoilt(golden, { request: altered(request, { size: size - 1 }), says }));
    });
  }

  test(`${golden.name}, payload eight bytes long: is refused`, async () => {
    const says = new RegExp(`${name}: payload is ${size + 8} bytes, (must be|there must be none)`);
    await check(spoilt(golden, { request: altered(request, { size: size + 8 }), says }));
  });

  test(`${golden.name}, eight descriptors: is refused (CVE-2019-14818)`, async () => {
    const says = new RegExp(`${name}: .*8 file descriptors, (there )?must be`);
    await check(spoilt(golden, { fds: (box) => box.many(8), says }));
  });

  if (fds !== undefined) {
    test(`${golden.name} without its descriptors: is refused`, async () => {
      const says = new RegExp(`${name}: .*(0|no) file descriptors?, must be`);
      await check(spoilt(golden, { fds: () => [], says }));
    });

    test(`${golden.name} with a descriptor of the wrong kind: is refused`, async () => {
      const says = new RegExp(`${name}: the file descriptor .*(is not|is neither) `);
      await check(spoilt(golden, { fds: (box) => fds(box).map(() => box.devNull()), says }));
    });
  }

  if ((golden.needs ?? 0) !== 0 && golden.before === undefined) {
    test(`${golden.name} without its protocol feature: is refused`, async () => {
      const says = new RegExp(`${name}: protocol feature bit \\d+ was not negotiated`);
      await check(spoilt(golden, { needs: 0, says }));
    });
  }
}

const state = (request: number, index: number, num: number) =>
  altered('00000000 01000000 00000000', { request, size: 8 }).slice(0, 24) +
  littleEndian64((BigInt(num) << 32n) | BigInt(index));
const u64 = (request: number, value: bigint) =>
  altered('00000000 01000000 00000000', { request, size: 8 }).slice(0, 24) + littleEndian64(value);

for (const index of [4, 0x1_0000, 0x1_0001, 0xffff_ffff]) {
  for (const [name, request] of [
    ['SET_VRING_NUM', 8],
    ['SET_VRING_BASE', 10],
    ['SET_VRING_ENABLE', 18],
    ['SET_VRING_ENDIAN', 23],
    ['VRING_KICK', 35],
  ] as const) {
    test(`${name} for vring ${index} of 4: is refused (CVE-2020-10723)`, async () => {
      const says = new RegExp(`${name}: vring ${index}, must be below 4`);
      await check({ request: state(request, index, 0), says, needs: ALL_SERVED });
    });
  }
  for (const [name, request] of [
    ['GET_VRING_BASE', 11],
    ['GET_VRING_BASE_SKIP_DRAIN', 45],
  ] as const) {
    test(`${name} for vring ${index} of 4: closes, for its answer cannot tell`, async () => {
      const says = new RegExp(`${name}: vring \\d+, must be below 4`);
      await check({ request: state(request, index, 0), says, answers: true, needs: ALL_SERVED });
    });
  }
  test(`SET_VRING_ADDR for vring ${index} of 4: is refused`, async () => {
    const addr = altered('09000000 01000000 00000000', { size: 40 });
    const request = addr.slice(0, 24) + littleEndian64(BigInt(index)) + addr.slice(40);
    await check({ request, says: /SET_VRING_ADDR: vring \d+, must be below 4/ });
  });
}

const one: (box: FdBox) => number[] = (box) => [box.eventfd()];
const WRONG: Record<string, Wrong> = {
  'a vring of 8 bits beyond the device': {
    request: u64(12, 0xffn),
    fds: one,
    says: /SET_VRING_KICK: vring 255, must be below 4/,
  },
  'reserved bits beside the vring': {
    request: u64(13, 0x1_0000n),
    fds: one,
    says: /SET_VRING_CALL: 0x10000 has bits above bit 8/,
  },
  'a descriptor that is said not to come': {
    request: u64(12, 0x100n),
    fds: one,
    says: /SET_VRING_KICK: 1 file descriptors, must be 0/,
  },
  'a kick that is a file': {
    request: u64(12, 0n),
    fds: (box) => [box.memfd()],
    says: /SET_VRING_KICK: .* not an eventfd/,
  },
  'a call that is a device': {
    request: u64(13, 0n),
    fds: (box) => [box.devNull()],
    says: /SET_VRING_CALL: .* not an eventfd/,
  },
  'a ring too large': {
    request: state(8, 0, 32769),
    says: /SET_VRING_NUM: a ring of 32769 descriptors, must be at most 32768/,
  },
  'enabling by 2': { request: state(18, 0, 2), says: /SET_VRING_ENABLE: num is 2, must be 0 or 1/ },
  'features not offered': {
    request: u64(2, (1n << 34n) | (1n << 26n) | (1n << 15n)),
    says: /SET_FEATURES: feature bits that were not offered: 26, 34/,
  },
  'protocol features of other devices': {
    request: u64(16, (1n << 7n) | (1n << 17n) | (1n << 18n) | (1n << 22n) | (1n << 63n)),
    says: /SET_PROTOCOL_FEATURES: .* not offered: 7, 17, 18, 22, 63/,
  },
  'in-band notifications without a channel': {
    request: u64(16, (1n << 14n) | (1n << 3n)),
    says: /SET_PROTOCOL_FEATURES: in-band notifications \(bit 14\) need bits 5 too; connection closed/,
    closes: true,
  },
  'in-band notifications without acknowledgements': {
    request: u64(16, (1n << 14n) | (1n << 5n)),
    says: /SET_PROTOCOL_FEATURES: in-band notifications \(bit 14\) need bits 3 too; connection closed/,
    closes: true,
  },
  'skipping the drain without records': {
    request: u64(16, 1n << 23n),
    says: /SET_PROTOCOL_FEATURES: bit 23 needs bits 20 and 12 too/,
  },
  'a request with the reply flag': {
    request: altered('03000000 01000000 00000000', { flags: 5 }),
    says: /SET_OWNER: a request must not have the reply flag/,
  },
  'an address of 2^53': {
    request: `${altered('09000000 01000000 00000000', { size: 40 }).slice(0, 40)}${littleEndian64(1n << 53n)}${'00'.repeat(24)}`,
    says: /SET_VRING_ADDR: descriptor table at 0x20000000000000 is not below 2\^53/,
  },
};

type Numbers = readonly [guestAddr: bigint, size: bigint, frontendAddr: bigint, fileOff: bigint];

function memTable(regions: readonly Numbers[], nregions = regions.length): string {
  const payload = littleEndian64(BigInt(nregions)) + regions.flat().map(littleEndian64).join('');
  return altered('05000000 01000000 00000000', { size: payload.length / 2 }).slice(0, 24) + payload;
}
const memfds = (n: number) => (box: FdBox) => Array.from({ length: n }, () => box.memfd());
const K4 = 0x1000n;

Object.assign(WRONG, {
  'no region at all': { request: memTable([]), says: /SET_MEM_TABLE: no region; guest memory must be shared/ },
  'nine regions': { request: memTable([], 9), says: /SET_MEM_TABLE: 9 regions, must be at most 8/ },
  '2^32 - 1 regions': { request: memTable([], 0xffff_ffff), says: /SET_MEM_TABLE: 4294967295 regions/ },
  'fewer descriptors than regions': {
    request: memTable([
      [0n, K4, 0n, 0n],
      [K4, K4, K4, 0n],
    ]),
    fds: memfds(1),
    says: /SET_MEM_TABLE: 2 regions with 1 file descriptors, must be one each/,
  },
  'an empty region': { request: memTable([[0n, 0n, 0n, 0n]]), fds: memfds(1), says: /SET_MEM_TABLE: .* is empty/ },
  'a region that wraps around': {
    request: memTable([[K4, (1n << 53n) - 1n, 0n, 0n]]),
    fds: memfds(1),
    says: /SET_MEM_TABLE: .* ends beyond 2\^53/,
  },
  'a region of 2^64 - 4096': {
    request: memTable([[0n, (1n << 64n) - K4, 0n, 0n]]),
    fds: memfds(1),
    says: /SET_MEM_TABLE: region size 0xfffffffffffff000 is not below 2\^53/,
  },
  'guest addresses that overlap': {
    request: memTable([
      [0n, 2n * K4, 0n, 0n],
      [K4, K4, 8n * K4, 0n],
    ]),
    fds: memfds(2),
    says: /SET_MEM_TABLE: regions overlap in their guest addresses/,
  },
  'user addresses that overlap': {
    request: memTable([
      [0n, 2n * K4, 0n, 0n],
      [8n * K4, K4, K4, 0n],
    ]),
    fds: memfds(2),
    says: /SET_MEM_TABLE: regions overlap in their user addresses/,
  },
  'memory that is an eventfd': {
    request: memTable([[0n, K4, 0n, 0n]]),
    fds: one,
    says: /SET_MEM_TABLE: the file descriptor of the region at guest address 0x0 is not a memory file/,
  },
});

const LOG_REFUSED = (asked: boolean) => (asked ? u64(6, 1n).replace(/^(.{8})01/, '$105') : undefined);
const logBase = (size: bigint, offset: bigint) =>
  `060000000100000010000000${littleEndian64(size)}${littleEndian64(offset)}`;
const log = (size: bigint, offset: bigint, says: RegExp): Wrong => ({
  request: logBase(size, offset),
  fds: (box) => [box.memfd(0x2000)],
  needs: 1 << 1,
  answers: true,
  failure: LOG_REFUSED,
  says,
});

const iotlb = (fields: { iova?: bigint; size?: bigint; userAddr?: bigint; rest?: string }, says: RegExp): Wrong => {
  const { iova = 0n, size = 0x1000n, userAddr = 0n, rest = '0302' } = fields;
  const payload = [iova, size, userAddr].map(littleEndian64).join('') + rest.padEnd(16, '0');
  return {
    request: `160000000100000020000000${payload}`,
    features: 1n << 33n,
    answers: true,
    failure: () => u64(22, 1n).replace(/^(.{8})01/, '$105'),
    says,
  };
};

const u16 = (value: number) => littleEndian64(BigInt(value)).slice(0, 4);
const inflight = (
  request: number,
  numbers: { size?: bigint; queues?: number; queueSize?: number },
  says: RegExp,
): Wrong => {
  const { size = 0x2000n, queues = 2, queueSize = 128 } = numbers;
  const payload = `${littleEndian64(size)}${littleEndian64(0n)}${u16(queues)}${u16(queueSize)}00000000`;
  const head = (reply: number) => `${u16(request)}0000${u16(reply)}000018000000`;
  return {
    request: head(1) + payload,
    ...(request === 32 && { fds: (box: FdBox) => [box.memfd(0x2000)] }),
    needs: 1 << 12,
    ...(request === 31 && { answers: true, failure: () => head(5) + '00'.repeat(24) }),
    says,
  };
};

const config = (
  request: number,
  numbers: { offset?: number; size?: number; flags?: number; bytes?: number },
  says: RegExp,
): Wrong => {
  const { offset = 0, size = 4, flags = 0, bytes = size } = numbers;
  const words = [request, 1, 12 + bytes, offset, size, flags].map((n) => littleEndian64(BigInt(n)).slice(0, 8));
  return {
    request: words.join('') + '00'.repeat(bytes),
    needs: 1 << 9,
    ...(request === 24 && { answers: true, failure: () => '180000000500000000000000' }),
    says,
  };
};

const transfer = (direction: number, phase: number, says: RegExp): Wrong => ({
  request: state(42, direction, phase),
  fds: (box) => [box.pipe()[0]],
  needs: 1 << 19,
  answers: true,
  failure: () => u64(42, 0x101n).replace(/^(.{8})01/, '$105'),
  says,
});

Object.assign(WRONG, {
  'a log whose size and offset overflow (CVE-2020-10722)': log(
    (1n << 64n) - K4,
    0x2000n,
    /SET_LOG_BASE: log size 0xfffffffffffff000 is not below 2\^53/,
  ),
  'a log that ends beyond 2^53': log(
    (1n << 53n) - 1n,
    K4,
    /SET_LOG_BASE: log of \d+ bytes from 4096 on ends beyond 2\^53/,
  ),
  'a log longer than its file': log(
    0x2000n,
    K4,
    /SET_LOG_BASE: the log ends at byte 12288, beyond the 8192 bytes of its file/,
  ),
  'an empty log': log(0n, 0n, /SET_LOG_BASE: the log is empty/),
  'a log that is an eventfd': {
    ...log(K4, 0n, /SET_LOG_BASE: the file descriptor of the log is not a memory file/),
    fds: one,
  },
  'a log fd that is a pipe': {
    request: altered('07000000 01000000 00000000', {}),
    fds: (box) => [box.pipe()[1]],
    says: /SET_LOG_FD: .* not an eventfd/,
  },
  'a channel that is a pipe': {
    request: altered('15000000 01000000 00000000', {}),
    fds: (box) => [box.pipe()[1]],
    needs: 1 << 5,
    says: /SET_BACKEND_REQ_FD: the file descriptor is not a Unix stream socket/,
  },
  'an MTU of 17 bits': {
    request: u64(20, 0x1_0000n),
    needs: 1 << 4,
    says: /NET_SET_MTU: MTU 65536, must be at most 65535/,
  },
  'a status of 9 bits': {
    request: u64(39, 0x100n),
    needs: 1 << 16,
    says: /SET_STATUS: status 256, must be at most 255/,
  },
  'a byte order of 2': { request: state(23, 0, 2), needs: 1 << 6, says: /SET_VRING_ENDIAN: num is 2, must be 0 or 1/ },
  'an in-band kick with a number': {
    request: state(35, 0, 1),
    needs: ALL_SERVED,
    says: /VRING_KICK: num is 1, must be 0/,
  },
  'skipping the drain with a number': {
    request: state(45, 0, 1),
    needs: ALL_SERVED,
    answers: true,
    says: /GET_VRING_BASE_SKIP_DRAIN: num is 1, must be 0/,
  },
  'a translation without ACCESS_PLATFORM': {
    ...iotlb({}, /IOTLB_MSG: ACCESS_PLATFORM was not negotiated/),
    features: 0n,
  },
  'a translation of nothing': iotlb({ size: 0n }, /IOTLB_MSG: 0x0 bytes at 0x0.* must not be empty/),
  'a translation that wraps around': iotlb(
    { iova: (1n << 64n) - K4, size: 2n * K4 },
    /IOTLB_MSG: 0x2000 bytes at 0xfffffffffffff000.* nor end beyond 2\^53/,
  ),
  'a translation to where nothing is': iotlb(
    { userAddr: (1n << 53n) - K4, size: 2n * K4 },
    /IOTLB_MSG: .* at 0x1ffffffffff000 for the front end: .* nor end beyond 2\^53/,
  ),
  'a translation with permissions of 3 bits': iotlb({ rest: '0402' }, /IOTLB_MSG: permissions 4, must be at most 3/),
  'a miss from the front end': iotlb({ rest: '0301' }, /IOTLB_MSG: type 1, must be 2 \(update\) or 3/),
  'an IOTLB message of type 255': iotlb({ rest: '03ff' }, /IOTLB_MSG: type 255, must be 2/),
  'records of 65535 vrings (CVE-2021-3839)': inflight(
    32,
    { queues: 0xffff },
    /SET_INFLIGHT_FD: 65535 vrings, must be 1 to 4/,
  ),
  'records of no vring': inflight(32, { queues: 0 }, /SET_INFLIGHT_FD: 0 vrings, must be 1 to 4/),
  'records of no descriptor': inflight(
    32,
    { queueSize: 0 },
    /SET_INFLIGHT_FD: vrings of 0 descriptors, must be 1 to 32768/,
  ),
  'records of 65535 descriptors': inflight(32, { queueSize: 0xffff }, /SET_INFLIGHT_FD: vrings of 65535 descriptors/),
  'records that do not fit (CVE-2021-3839)': inflight(
    32,
    { size: 0x100fn, queues: 1, queueSize: 256 },
    /SET_INFLIGHT_FD: 4111 bytes for 1 vrings of 256 descriptors, must be at least 4112/,
  ),
  'records longer than their file': inflight(
    32,
    { size: 0x3000n },
    /SET_INFLIGHT_FD: the inflight area ends at byte 12288, beyond/,
  ),
  'records of 2^64 - 4096 bytes': inflight(
    32,
    { size: (1n << 64n) - K4 },
    /SET_INFLIGHT_FD: inflight area size 0xf+000 is not below/,
  ),
  'two descriptors with records (CVE-2022-0669)': {
    ...inflight(32, {}, /SET_INFLIGHT_FD: 2 file descriptors, must be at most 1/),
    fds: (box) => [box.memfd(0x2000), box.memfd(0x2000)],
  },
  'a descriptor with the question for records (CVE-2022-0669)': {
    ...inflight(31, {}, /GET_INFLIGHT_FD: 1 file descriptors, there must be none/),
    fds: (box) => [box.memfd(0x2000)],
  },
  'the question for records of 65535 vrings': inflight(
    31,
    { queues: 0xffff },
    /GET_INFLIGHT_FD: 65535 vrings, must be 1 to 4/,
  ),
  'the question for records of no descriptor': inflight(
    31,
    { queueSize: 0 },
    /GET_INFLIGHT_FD: vrings of 0 descriptors/,
  ),
  'config space of no byte': config(24, { size: 0 }, /GET_CONFIG: 0 bytes of config space, must be 1 to 256/),
  'config space of 257 bytes': config(24, { size: 257 }, /GET_CONFIG: 257 bytes of config space, must be 1 to 256/),
  'config space of 2^32 - 1 bytes': config(
    24,
    { size: 0xffff_ffff, bytes: 4 },
    /GET_CONFIG: 4294967295 bytes of config/,
  ),
  'config space shorter than it says': config(25, { size: 8, bytes: 4 }, /SET_CONFIG: payload is 16 bytes, must be 20/),
  'config space with unknown flags': config(25, { flags: 2 }, /SET_CONFIG: flags 2, must be at most 1/),
  'a state transfer in no direction': transfer(2, 0, /SET_DEVICE_STATE_FD: direction 2, must be 0 or 1/),
  'a state transfer in another phase': transfer(0, 1, /SET_DEVICE_STATE_FD: phase 1, must be 0/),
  'a state transfer over an eventfd': {
    ...transfer(0, 0, /SET_DEVICE_STATE_FD: the file descriptor is neither a pipe nor a file/),
    fds: one,
  },
  'a state transfer over a socket': {
    ...transfer(0, 0, /SET_DEVICE_STATE_FD: the file descriptor is neither a pipe nor a file/),
    fds: (box) => [box.pair()[0]],
  },
  'listening for postcopy unadvised': {
    request: altered('1d000000 01000000 00000000', {}),
    needs: 1 << 8,
    failure: (asked) => (asked ? u64(29, 1n).replace(/^(.{8})01/, '$105') : undefined),
    says: /POSTCOPY_LISTEN: postcopy is off, must be advised/,
  },
  'ending a postcopy that was not': {
    request: altered('1e000000 01000000 00000000', {}),
    needs: 1 << 8,
    answers: true,
    failure: () => u64(30, 1n).replace(/^(.{8})01/, '$105'),
    says: /POSTCOPY_END: postcopy is off, must be advised or listening/,
  },
  'a user address beside the guest address with GPA_ADDRESSES': {
    request: memTable([[0n, K4, K4, 0n]]),
    fds: memfds(1),
    needs: 1 << 21,
    says: /SET_MEM_TABLE: the region at guest address 0x0 has another user address, must be the same: GPA_ADDRESSES/,
  },
} satisfies Record<string, Wrong>);

for (const [what, wrong] of Object.entries(WRONG)) {
  test(`${what}: is refused`, () => check(wrong));
}

for (const [name, request] of [
  ['CREATE_CRYPTO_SESSION', 26],
  ['CLOSE_CRYPTO_SESSION', 27],
  ['GPU_SET_SOCKET', 33],
  ['GET_SHARED_OBJECT', 41],
  ['GET_SHMEM_CONFIG', 44],
  ['request 0', 0],
  ['request 46', 46],
  ['request 4294967295', 0xffff_ffff],
] as const) {
  test(`${name} is not served: an error by name, and the connection closes`, async () => {
    const says = new RegExp(
      `${name}: (belongs to a feature that was not offered|not a vhost-user request); connection closed`,
    );
    await check({ request: altered('00000000 01000000 00000000', { request }), fds: one, says, closes: true });
  });
}

for (const [what, hex, says] of [
  ['version 0', altered('03000000 00000000 00000000', {}), /SET_OWNER: version 0 in the header, must be 1/],
  ['version 2', altered('03000000 02000000 00000000', {}), /SET_OWNER: version 2 in the header/],
  [
    'a payload of 2^32 - 1 bytes',
    '0200000001000000ffffffff',
    new RegExp(`SET_FEATURES: a payload of 4294967295 bytes, must be at most ${VHOST_USER_MAX_PAYLOAD}`),
  ],
] as const) {
  test(`a header with ${what}: closes at once`, async () => {
    const before = openFds();
    const server = new TestServer();
    const box = new FdBox();
    const { peer } = await server.connect();
    peer.send(hex, box.many(3));
    await peer.untilClosed();
    assert.match(server.problems()[0], says);
    box.close();
    await server.close();
    assert.equal(openFds(), before);
  });
}
