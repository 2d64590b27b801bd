/** The bytes that go between the kernel and the character device, written out. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CuseBench } from '../kit/cuse-bench.ts';
import { FakeDevice } from './fake-device.ts';
import { bytes, openFds } from './harness.ts';

/** A request: its length, opcode, number, and what follows the header. The caller's thread is the one of this process. */
function request(len: string, opcode: string, unique: string, body: string): Uint8Array {
  const pid = Buffer.alloc(4);
  pid.writeUInt32LE(process.pid);
  const nobody = '0000000000000000 00000000 00000000';
  return bytes(`${len} ${opcode} ${unique} ${nobody} ${pid.toString('hex')} 00000000 ${body}`);
}
const plain = (hex: string) => hex.replaceAll(/\s/g, '');

const FH = '0100000000000000';
const ARG = '0010fc7f00000000';
/** handle, flags (unrestricted), command, argument, bytes in, bytes out */
const ioctl = (cmd: string, inSize: string, outSize: string, data = '') =>
  `${FH} 02000000 ${cmd} ${ARG} ${inSize} ${outSize} ${data}`;
/** result, flags, pieces in, pieces out */
const DONE = '00000000 00000000 00000000 00000000';
const retry = (ins: string, outs: string) => `00000000 04000000 ${ins} ${outs}`;
const piece = (len: string) => `${ARG} ${len} 00000000`;

/** Names, requests and answers; an answer of undefined does not come. */
const EXCHANGES: readonly (readonly [name: string, Uint8Array, string | undefined])[] = [
  [
    'OPEN',
    request('30000000', '0e000000', '0400000000000000', '02800000 00000000'),
    `20000000 00000000 0400000000000000 ${FH} 04000000 00000000`,
  ],
  [
    'GET_FEATURES asks for room to answer',
    request('48000000', '27000000', '0600000000000000', ioctl('00af0880', '00000000', '00000000')),
    `30000000 00000000 0600000000000000 ${retry('00000000', '01000000')} ${piece('08000000')}`,
  ],
  [
    'GET_FEATURES: VERSION_1, ACCESS_PLATFORM, MRG_RXBUF, and the header bit',
    request('48000000', '27000000', '0800000000000000', ioctl('00af0880', '00000000', '08000000')),
    `28000000 00000000 0800000000000000 ${DONE} 0080000803000000`,
  ],
  [
    'SET_OWNER',
    request('48000000', '27000000', '0a00000000000000', ioctl('01af0000', '00000000', '00000000')),
    `20000000 00000000 0a00000000000000 ${DONE}`,
  ],
  [
    'SET_VRING_NUM asks for its argument',
    request('48000000', '27000000', '0c00000000000000', ioctl('10af0840', '00000000', '00000000')),
    `30000000 00000000 0c00000000000000 ${retry('01000000', '00000000')} ${piece('08000000')}`,
  ],
  [
    'SET_VRING_NUM: vring 1, 256 descriptors',
    request('50000000', '27000000', '0e00000000000000', ioctl('10af0840', '08000000', '00000000', '01000000 00010000')),
    `20000000 00000000 0e00000000000000 ${DONE}`,
  ],
  [
    'SET_VRING_ADDR: vring 1, logged',
    request(
      '70000000',
      '27000000',
      '1000000000000000',
      ioctl(
        '11af2840',
        '28000000',
        '00000000',
        '01000000 01000000 0010000000000000 0030000000000000 0020000000000000 0040000000000000',
      ),
    ),
    `20000000 00000000 1000000000000000 ${DONE}`,
  ],
  [
    'GET_VRING_BASE asks for its argument and for room',
    request('48000000', '27000000', '1200000000000000', ioctl('12af08c0', '00000000', '00000000')),
    `40000000 00000000 1200000000000000 ${retry('01000000', '01000000')} ${piece('08000000')} ${piece('08000000')}`,
  ],
  [
    'GET_VRING_BASE: vring 1 stands at 7',
    request('50000000', '27000000', '1400000000000000', ioctl('12af08c0', '08000000', '08000000', '01000000 00000000')),
    `28000000 00000000 1400000000000000 ${DONE} 01000000 07000000`,
  ],
  [
    'SET_MEM_TABLE asks for its head',
    request('48000000', '27000000', '1600000000000000', ioctl('03af0840', '00000000', '00000000')),
    `30000000 00000000 1600000000000000 ${retry('01000000', '00000000')} ${piece('08000000')}`,
  ],
  [
    'SET_MEM_TABLE: 2 regions, so asks for all of it',
    request('50000000', '27000000', '1800000000000000', ioctl('03af0840', '08000000', '00000000', '02000000 00000000')),
    `30000000 00000000 1800000000000000 ${retry('01000000', '00000000')} ${piece('48000000')}`,
  ],
  [
    'SET_MEM_TABLE without a region',
    request('50000000', '27000000', '1a00000000000000', ioctl('03af0840', '08000000', '00000000', '00000000 00000000')),
    `20000000 00000000 1a00000000000000 ${DONE}`,
  ],
  [
    'NET_SET_BACKEND: vring 0, none',
    request('50000000', '27000000', '1c00000000000000', ioctl('30af0840', '08000000', '00000000', '00000000 ffffffff')),
    `20000000 00000000 1c00000000000000 ${DONE}`,
  ],
  [
    'an ioctl that vhost-net has not: ENOTTY',
    request('48000000', '27000000', '1e00000000000000', ioctl('40af0840', '00000000', '00000000')),
    '10000000 e7ffffff 1e00000000000000',
  ],
  [
    'a vring that is not there: ENOBUFS',
    request('50000000', '27000000', '2000000000000000', ioctl('12af0840', '08000000', '00000000', '04000000 00000000')),
    '10000000 97ffffff 2000000000000000',
  ],
  [
    'SET_FEATURES: VERSION_1 and ACCESS_PLATFORM',
    request('50000000', '27000000', '3000000000000000', ioctl('00af0840', '08000000', '00000000', '0000000003000000')),
    `20000000 00000000 3000000000000000 ${DONE}`,
  ],
  [
    'SET_BACKEND_FEATURES: messages of the second kind',
    request('50000000', '27000000', '3200000000000000', ioctl('25af0840', '08000000', '00000000', '0200000000000000')),
    `20000000 00000000 3200000000000000 ${DONE}`,
  ],
  [
    'WRITE: what is at 0x5000 of the device is at 0x7f0000005000, to be written',
    request(
      '98000000',
      '10000000',
      '3400000000000000',
      `${FH} 0000000000000000 48000000 00000000 0000000000000000 02800000 00000000 02000000 00000000` +
        '0050000000000000 0010000000000000 0050000000 7f0000 03 02 000000000000' +
        '00'.repeat(32),
    ),
    '18000000 00000000 3400000000000000 48000000 00000000',
  ],
  [
    'READ: nothing is asked for: EAGAIN',
    request(
      '50000000',
      '0f000000',
      '3600000000000000',
      `${FH} 0000000000000000 48000000 00000000 0000000000000000 02800000 00000000`,
    ),
    '10000000 f5ffffff 3600000000000000',
  ],
  [
    'POLL: nothing to read',
    request('40000000', '28000000', '2200000000000000', `${FH} 0500000000000000 01000000 05000000`),
    '18000000 00000000 2200000000000000 00000000 00000000',
  ],
  [
    'FLUSH, which character devices have not: ENOSYS',
    request('40000000', '19000000', '2800000000000000', `${FH} 0000000000000000 0000000000000000`),
    '10000000 daffffff 2800000000000000',
  ],
  ['INTERRUPT', request('30000000', '24000000', '2b00000000000000', '2200000000000000'), undefined],
  [
    'RELEASE',
    request('40000000', '12000000', '2c00000000000000', `${FH} 02800000 00000000 0000000000000000`),
    '10000000 00000000 2c00000000000000',
  ],
  [
    'POLL of what is closed: EBADF',
    request('40000000', '28000000', '2e00000000000000', `${FH} 0500000000000000 01000000 05000000`),
    '10000000 f7ffffff 2e00000000000000',
  ],
];

test('cuse: golden bytes of a device from CUSE_INIT to RELEASE', async () => {
  const before = openFds();
  const device = new FakeDevice();
  device.vringBase = 7;
  const bench = new CuseBench({ createDevice: () => device });
  const init = request('38000000', '00100000', '0200000000000000', '07000000 26000000 00000000 01000000');
  const made =
    '6a000000 00000000 0200000000000000' +
    '07000000 26000000 00000000 01000000 00100000 00100000 00000000 00000000' +
    '00'.repeat(40) +
    Buffer.from('DEVNAME=usvhost-1\0').toString('hex');
  assert.equal(await bench.kernel.exchange(init), plain(made));
  await bench.server.ready;
  for (const [name, asked, answer] of EXCHANGES) {
    if (answer === undefined) bench.kernel.sendRaw(asked);
    else assert.equal(await bench.kernel.exchange(asked), plain(answer), name);
  }
  assert.deepEqual(device.calls, [
    ['setVringNum', 1, 256],
    ['setVringAddr', 1, { flags: 1, descAddr: 0x1000, usedAddr: 0x3000, availAddr: 0x2000, logAddr: 0x4000 }],
    ['getVringBase', 1, true],
    ['setMemory', []],
    ['getVringBase', 0, true],
    ['setChannel', 'channel'],
    ['setFeatures', 0x3_0000_0000n, false],
    ['updateIotlb', { iova: 0x5000, size: 0x1000, userAddr: 0x7f00_0000_5000, permissions: 3 }],
    ['destroy'],
  ]);
  await bench.close();
  assert.equal(openFds(), before);
});

test('cuse: a request cut short is refused with EINVAL, and nothing else happens', async () => {
  const device = new FakeDevice();
  const bench = await CuseBench.start({ createDevice: () => device });
  await bench.kernel.open();
  for (const [name, asked] of EXCHANGES.filter(([title]) => !/INTERRUPT|FLUSH|closed|^OPEN/.test(title))) {
    for (const len of [44, asked.length - 1]) {
      const short = asked.slice(0, len);
      new DataView(short.buffer).setUint32(0, len, true);
      const unique = Buffer.from(short.subarray(8, 16)).toString('hex');
      assert.equal(await bench.kernel.exchange(short), `10000000eaffffff${unique}`, `${name}, ${len} bytes`);
    }
  }
  assert.deepEqual(device.calls, []);
  await bench.close();
});
