/** Messages that are wrong: each costs its sender the connection or is refused, is logged, and leaks nothing. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VHOST_USER_MAX_PAYLOAD } from '../../src/uapi/vhost-user.ts';
import { altered, GOLDEN, type Golden, littleEndian64, payloadSize, setProtocolFeatures } from './golden.ts';
import { FdBox, openFds, TestServer, until } from './harness.ts';

interface Wrong {
  request: string;
  fds?: (box: FdBox) => number[];
  slots?: boolean | undefined;
  /** what the log line says, behind `error device 0: ` */
  says: RegExp;
}

/** Sends it with and without REPLY_ACK: closed in one case, refused or closed in the other; told to the device in neither. */
async function check({ request, fds, slots, says }: Wrong, refusable = true): Promise<void> {
  const before = openFds();
  for (const acknowledged of [false, true]) {
    const server = new TestServer();
    const box = new FdBox();
    const { peer, device } = await server.connect();
    if (slots || acknowledged) peer.send(setProtocolFeatures(acknowledged ? 0x8009 : 0x8001));
    const flags = Number.parseInt(altered(request, {}).slice(8, 10), 16);
    peer.send(acknowledged ? altered(request, { flags: flags | 8 }) : altered(request, {}), fds?.(box));
    if (acknowledged && refusable) {
      const number = altered(request, {}).slice(0, 8);
      assert.equal(await peer.read(20), `${number}0500000008000000${littleEndian64(1n)}`);
      peer.send(GOLDEN[0].request);
      assert.equal((await peer.read(20)).slice(0, 8), '01000000', 'the connection lives on');
      assert.deepEqual(device.calls, []);
    } else {
      await peer.untilClosed();
      await until(() => device.destroyed, 'the device is destroyed');
      assert.deepEqual(device.calls, [['destroy']]);
    }
    const problems = server.problems();
    assert.equal(problems.length, 1, problems.join('\n'));
    assert.match(problems[0], says);
    assert.match(problems[0], /^error device 0: /);
    box.close();
    await server.close();
  }
  assert.equal(openFds(), before);
}

const answers = (golden: Golden) => golden.answer !== undefined;
const nameOf = (golden: Golden) => golden.name.split(' ')[0];

for (const golden of GOLDEN) {
  const { request, fds, slots } = golden;
  const size = payloadSize(request);
  const name = nameOf(golden);

  if (size > 0) {
    test(`${golden.name}, payload one byte short: is refused`, async () => {
      const short = altered(request, { size: size - 1 });
      const says = new RegExp(`${name}: payload is ${size - 1} bytes, must be`);
      await check({ request: short, ...(fds && { fds }), slots, says }, !answers(golden));
    });
  }

  test(`${golden.name}, payload eight bytes long: is refused`, async () => {
    const long = altered(request, { size: size + 8 });
    const says = new RegExp(`${name}: payload is ${size + 8} bytes, (must be|there must be none)`);
    await check({ request: long, ...(fds && { fds }), slots, says }, !answers(golden));
  });

  test(`${golden.name}, eight descriptors: is refused`, async () => {
    await check(
      {
        request,
        fds: (box) => box.many(8),
        slots,
        says: new RegExp(`${name}: .*8 file descriptors, (there )?must be`),
      },
      !answers(golden),
    );
  });

  if (fds !== undefined) {
    test(`${golden.name} without its descriptors: is refused`, async () => {
      await check({ request, slots, says: new RegExp(`${name}: .*(0|no) file descriptors?, must be`) });
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
  ] as const) {
    test(`${name} for vring ${index} of 4: is refused (CVE-2020-10723)`, async () => {
      const says = new RegExp(`${name}: vring ${index}, must be below 4`);
      await check({ request: state(request, index, 1), says });
    });
  }
  test(`GET_VRING_BASE for vring ${index} of 4: closes, for its answer cannot tell`, async () => {
    await check({ request: state(11, index, 0), says: /GET_VRING_BASE: vring \d+, must be below 4/ }, false);
  });
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
  'protocol features not offered': { request: u64(16, 2n), says: /SET_PROTOCOL_FEATURES: .* not offered: 1/ },
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

for (const [what, wrong] of Object.entries(WRONG)) {
  test(`${what}: is refused`, () => check(wrong));
}

for (const [name, request] of [
  ['SET_LOG_BASE', 6],
  ['SET_LOG_FD', 7],
  ['SEND_RARP', 19],
  ['NET_SET_MTU', 20],
  ['SET_BACKEND_REQ_FD', 21],
  ['CREATE_CRYPTO_SESSION', 26],
  ['GET_INFLIGHT_FD', 31],
  ['GET_VRING_BASE_SKIP_DRAIN', 45],
  ['request 0', 0],
  ['request 46', 46],
  ['request 4294967295', 0xffff_ffff],
] as const) {
  test(`${name} is not served: an error by name, and the connection closes`, async () => {
    const says = new RegExp(
      `${name}: (belongs to a feature that was not offered|not a vhost-user request); connection closed`,
    );
    await check({ request: altered('00000000 01000000 00000000', { request }), fds: one, says }, false);
  });
}

test('memory slots without CONFIGURE_MEM_SLOTS: an error', async () => {
  const server = new TestServer();
  const { peer } = await server.connect();
  peer.send(altered('24000000 01000000 00000000', {}));
  await peer.untilClosed();
  assert.match(
    server.problems()[0],
    /GET_MAX_MEM_SLOTS: protocol feature bit 15 was not negotiated; connection closed/,
  );
  await server.close();
});

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
