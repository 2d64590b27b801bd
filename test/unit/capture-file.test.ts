import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { CAPTURE_FAULT, type CaptureFaultName, MAX_BLOCK, MAX_CAPTURED } from '../../src/net/capture-fault.ts';
import { CaptureTime } from '../../src/net/capture-format.ts';
import {
  CaptureReader,
  captureBuffer,
  MIN_READ_BUFFER,
  READ_END,
  READ_FAULT,
  READ_FRAME,
} from '../../src/net/capture-reader.ts';
import { CaptureWriter, captureHeader, NO_ROOM } from '../../src/net/capture-writer.ts';
import { type Captured, Folder, Numbers, withFile } from '../kit/captures.ts';

const folder = new Folder();
after(() => folder.close());

interface Result {
  readonly frames: { hex: string; ns: bigint; wireLen: number }[];
  readonly fault: number;
  readonly at: number;
  readonly found: number;
  readonly says: string;
}

/** Reads a file to its end or first fault. */
function read(path: string, bufferBytes = MIN_READ_BUFFER): Result {
  return withFile(path, 'r', (fd) => {
    const buffer = captureBuffer(bufferBytes);
    const reader = new CaptureReader(fd, buffer);
    const time = new CaptureTime();
    const frames: Result['frames'] = [];
    let said = reader.nextFilled();
    for (; said === READ_FRAME; said = reader.nextFilled()) {
      reader.readTime(time);
      const hex = Buffer.from(buffer.u8.subarray(reader.off, reader.off + reader.len)).toString('hex');
      frames.push({ hex, ns: BigInt(time.sec) * 1_000_000_000n + BigInt(time.nsec), wireLen: reader.wireLen });
    }
    assert.equal(said, reader.fault === CAPTURE_FAULT.none ? READ_END : READ_FAULT);
    return { frames, fault: reader.fault, at: reader.faultAt, found: reader.faultFound, says: reader.describe(path) };
  });
}

const readBytes = (bytes: Uint8Array) => read(folder.file('read', bytes));
const little = new Numbers(true);
const big = new Numbers(false);

/** What `read` has to say of frames. */
const seen = (frames: readonly Captured[]) =>
  frames.map(({ bytes, ns, wireLen = bytes.length }) => ({ hex: Buffer.from(bytes).toString('hex'), ns, wireLen }));

const FRAMES: Captured[] = [
  { bytes: Buffer.from('ffffffffffff0123456789ab080045', 'hex'), ns: 1_700_000_000_123_456_789n },
  { bytes: Buffer.alloc(0), ns: 1_700_000_000_999_999_999n, wireLen: 60 },
  { bytes: Buffer.alloc(1514, 0x5a), ns: 1_700_000_001_000_000_000n },
  { bytes: Buffer.alloc(64, 1), ns: 4_294_967_295_999_999_000n, wireLen: 9000 },
];
const inMicroseconds = (frames: readonly Captured[]) => frames.map((one) => ({ ...one, ns: (one.ns / 1000n) * 1000n }));

test('capture file: pcap in both byte orders, with micro- and nanoseconds', () => {
  for (const numbers of [little, big]) {
    assert.deepEqual(readBytes(numbers.pcap(0xa1b23c4d, FRAMES)).frames, seen(FRAMES));
    assert.deepEqual(readBytes(numbers.pcap(0xa1b2c3d4, FRAMES)).frames, seen(inMicroseconds(FRAMES)));
  }
});

test('capture file: pcap as tcpdump writes it, byte for byte', () => {
  // written by hand after the draft: one ARP request at 2023-11-14 22:13:20.000001 UTC, cut to 20 bytes
  const hex = 'd4c3b2a1 0200 0400 00000000 00000000 00000400 01000000 00f15365 01000000 14000000 2a000000'
    .concat(' ffffffffffff 525400000001 0806 0001 0800 0604')
    .replaceAll(' ', '');
  assert.deepEqual(readBytes(Buffer.from(hex, 'hex')).frames, [
    { hex: 'ffffffffffff52540000000108060001080006' + '04', ns: 1_700_000_000_000_001_000n, wireLen: 42 },
  ]);
});

test('capture file: pcapng in both byte orders, several sections, interfaces and kinds of packets', () => {
  for (const n of [little, big]) {
    const file = Buffer.concat([
      n.section(n.option(4, Buffer.from('a test'))),
      n.interface(1, 100, n.option(2, Buffer.from('eth0'))),
      n.interface(1, 0, n.option(9, Uint8Array.of(9)), n.option(14, n.u64(5n)), n.option(0, Buffer.alloc(0))),
      n.interface(1, 0, n.option(9, Uint8Array.of(0x80 | 10))),
      n.interface(1, 0, n.option(9, Uint8Array.of(12)), n.option(14, n.u64(0xffffffffffffffffn))),
      n.interface(113),
      n.block(5, Buffer.alloc(40)),
      n.enhanced(
        0,
        1_700_000_000_000_001n,
        { bytes: Buffer.from('aabbcc', 'hex') },
        n.option(2, n.u32(1)),
        n.option(0, Buffer.alloc(0)),
      ),
      n.enhanced(1, 1_700_000_000_000_000_001n, { bytes: Buffer.from('01', 'hex'), wireLen: 77 }),
      n.enhanced(2, 1024n * 7n + 512n, { bytes: Buffer.from('02', 'hex') }),
      n.enhanced(3, 1_000_000_000_001_999n, { bytes: Buffer.from('03', 'hex') }),
      // the older packet block: interface and drops, 16 bits each
      n.block(2, n.u16(1, 9), n.u32(0, 42, 2, 60), Buffer.from('0405', 'hex')),
      n.block(3, n.u32(300), Buffer.alloc(100, 7)),
      n.section(),
      n.block(0x40000bad, Buffer.alloc(4)),
      n.interface(),
      n.enhanced(0, 1n, { bytes: Buffer.from('06070809', 'hex') }),
    ]);
    const { frames, fault } = readBytes(file);
    assert.equal(fault, CAPTURE_FAULT.none);
    assert.deepEqual(frames, [
      { hex: 'aabbcc', ns: 1_700_000_000_000_001_000n, wireLen: 3 },
      { hex: '01', ns: 1_700_000_005_000_000_001n, wireLen: 77 },
      { hex: '02', ns: 7_500_000_000n, wireLen: 1 },
      { hex: '03', ns: 999_000_000_001n, wireLen: 1 },
      { hex: '0405', ns: 5_000_000_042n, wireLen: 60 },
      { hex: '07'.repeat(100), ns: 0n, wireLen: 300 },
      { hex: '06070809', ns: 1000n, wireLen: 4 },
    ]);
  }
});

test('capture file: sections of both byte orders in one file', () => {
  const part = (n: Numbers, ns: bigint) => [
    n.section(),
    n.interface(),
    n.enhanced(0, ns, { bytes: Buffer.from('11', 'hex') }),
  ];
  const { frames } = readBytes(Buffer.concat([...part(little, 1n), ...part(big, 2n), ...part(little, 3n)]));
  assert.deepEqual(
    frames.map(({ ns }) => ns),
    [1000n, 2000n, 3000n],
  );
});

test('capture file: blocks of unknown kinds, larger than the buffer, are passed over', () => {
  const large = little.block(0x0bad, Buffer.alloc(3 * MIN_READ_BUFFER));
  const end = little.enhanced(0, 1n, { bytes: Buffer.from('22', 'hex') });
  const { frames, fault } = readBytes(Buffer.concat([little.section(), large, little.interface(), large, large, end]));
  assert.equal(fault, CAPTURE_FAULT.none);
  assert.deepEqual(
    frames.map(({ hex }) => hex),
    ['22'],
  );
});

/** The broken files, each with its fault, the byte at which it is found, and the number found there. */
const BROKEN: Record<string, [Buffer, CaptureFaultName, number, number]> = {
  'an empty file': [Buffer.alloc(0), 'truncated', 0, 0],
  'something else': [Buffer.from('GIF89a, and so on and so on'), 'magic', 0, 0x47494638],
  'the modified pcap': [Buffer.from('34cdb2a1', 'hex'), 'modified', 0, 0xa1b2cd34],
  'pcap 2.3': [Buffer.concat([little.u32(0xa1b2c3d4), little.u16(2, 3), Buffer.alloc(16)]), 'version', 4, 0x20003],
  'an IEEE 802.11 capture': [little.pcap(0xa1b2c3d4, [], 105), 'link_type', 20, 105],
  'pcap cut in its header': [big.pcap(0xa1b2c3d4, []).subarray(0, 20), 'truncated', 0, 20],
  'pcap cut in a frame': [big.pcap(0xa1b2c3d4, FRAMES.slice(0, 1)).subarray(0, 50), 'truncated', 24, 26],
  'a frame too long': [
    Buffer.concat([big.pcap(0xa1b2c3d4, []), big.u32(0, 0, MAX_CAPTURED + 1, 1)]),
    'too_long',
    32,
    MAX_CAPTURED + 1,
  ],
  'no byte order': [Buffer.concat([little.u32(0x0a0d0d0a, 28, 0), Buffer.alloc(16)]), 'byte_order', 8, 0],
  'pcapng 2': [
    little.block(0x0a0d0d0a, little.u32(0x1a2b3c4d), little.u16(2, 0), Buffer.alloc(8)),
    'version',
    12,
    0x20000,
  ],
  'a block too short': [Buffer.concat([little.section(), little.u32(6, 28), Buffer.alloc(20)]), 'block_length', 32, 28],
  'an odd block': [Buffer.concat([little.section(), little.u32(99, 13), Buffer.alloc(20)]), 'block_length', 32, 13],
  'a block too long': [
    Buffer.concat([little.section(), little.u32(6, MAX_BLOCK + 4, 0)]),
    'block_length',
    32,
    MAX_BLOCK + 4,
  ],
  'another length at the end of a block': [
    Buffer.concat([little.section(), little.u32(1, 20, 1, 0, 24)]),
    'trailer',
    44,
    24,
  ],
  'another length at the end of an unknown block': [
    Buffer.concat([little.section(), little.u32(99, 16, 0, 20)]),
    'trailer',
    40,
    20,
  ],
  'an unknown block cut off': [Buffer.concat([little.section(), little.u32(99, 100, 0)]), 'truncated', 124, 0],
  'a frame longer than its block': [
    Buffer.concat([little.section(), little.interface(), little.block(6, little.u32(0, 0, 0, 1, 1))]),
    'frame_length',
    68,
    1,
  ],
  'a simple packet longer than its block': [
    Buffer.concat([little.section(), little.interface(), little.block(3, little.u32(5), Buffer.alloc(4))]),
    'frame_length',
    56,
    5,
  ],
  'a packet of no interface': [
    Buffer.concat([little.section(), little.interface(), little.enhanced(1, 0n, { bytes: Buffer.alloc(1) })]),
    'interface',
    56,
    1,
  ],
  'a simple packet without interfaces': [
    Buffer.concat([little.section(), little.block(3, little.u32(0))]),
    'interface',
    28,
    0,
  ],
  'a packet that is no Ethernet frame': [
    Buffer.concat([little.section(), little.interface(113), little.enhanced(0, 0n, { bytes: Buffer.alloc(1) })]),
    'link_type',
    56,
    113,
  ],
  'an option longer than its block': [
    Buffer.concat([little.section(), little.interface(1, 0, little.u16(2, 8), Buffer.alloc(4))]),
    'options',
    44,
    8,
  ],
  'a resolution beyond reason': [
    Buffer.concat([little.section(), little.interface(1, 0, little.option(9, Uint8Array.of(20)))]),
    'resolution',
    44,
    20,
  ],
};

for (const [what, [bytes, name, at, found]] of Object.entries(BROKEN))
  test(`capture file: ${what} is a fault with its place`, () => {
    const got = readBytes(bytes);
    assert.deepEqual([got.fault, got.at, got.found], [CAPTURE_FAULT[name], at, found], got.says);
    assert.match(got.says, new RegExp(`/read: byte ${at}: .{10}`));
  });

test('capture file: a file that cannot be read is a fault', () => {
  const got = withFile(folder.path, 'r', (fd) => {
    const reader = new CaptureReader(fd, captureBuffer());
    assert.equal(reader.nextFilled(), READ_FAULT);
    assert.throws(() => reader.throwFault('x'), { code: 'BAD_CAPTURE' });
    return reader.describe(folder.path);
  });
  assert.match(got, /reading failed: illegal operation on a directory/);
});

test('capture file: what is written as pcapng, byte for byte', () => {
  const path = folder.file('golden.pcapng', captureHeader('pcapng', 'net_tap0'));
  withFile(path, 'a', (fd) => {
    const writer = new CaptureWriter(fd, 'pcapng', captureBuffer());
    assert.ok(writer.add(Buffer.from('0102030405', 'hex'), 1_700_000_000, 123_456_789, 64));
    assert.ok(writer.flush());
    assert.equal(writer.written, 1);
  });
  const hex = [
    // section: type, length, byte order, version 1.0, unknown length; "vhost-switch"
    '0a0d0d0a 30000000 4d3c2b1a 0100 0000 ffffffffffffffff 0400 0c00 76686f73 742d7377 69746368 0000 0000 30000000',
    // interface: Ethernet, snapshot length; "net_tap0"; 10^-9 s
    '01000000 2c000000 0100 0000 00000400 0200 0800 6e65745f 74617030 0900 0100 09000000 0000 0000 2c000000',
    // packet: interface 0, 0x17979cfe3d85cd15 ns, 5 bytes of 64
    '06000000 28000000 00000000 fe9c9717 15cd853d 05000000 40000000 0102030405 000000 28000000',
  ];
  assert.equal(readFileSync(path).toString('hex'), hex.join('').replaceAll(' ', ''));
});

test('capture file: what is written as pcap, byte for byte', () => {
  const path = folder.file('golden.pcap', captureHeader('pcap', 'net_tap0'));
  withFile(path, 'a', (fd) => {
    const writer = new CaptureWriter(fd, 'pcap', captureBuffer());
    assert.ok(writer.add(Buffer.from('0102030405', 'hex'), 1_700_000_000, 123_456_789, 64));
    assert.ok(writer.flush());
  });
  const hex =
    '4d3cb2a1 0200 0400 00000000 00000000 00000400 01000000 00f15365 15cd5b07 05000000 40000000 0102030405'.replaceAll(
      ' ',
      '',
    );
  assert.equal(readFileSync(path).toString('hex'), hex);
});

test('capture file: the writer takes what its buffer holds, and flushes in whole records', () => {
  const path = folder.file('full.pcapng', captureHeader('pcapng', 'x'));
  const header = readFileSync(path).length;
  withFile(path, 'a', (fd) => {
    const buffer = captureBuffer(4096);
    const writer = new CaptureWriter(fd, 'pcapng', buffer);
    assert.equal(writer.begin(4096), NO_ROOM);
    assert.equal(writer.held, 0);
    for (let i = 0; i < 42; i++) assert.notEqual(writer.begin(64), NO_ROOM);
    assert.equal(writer.begin(64), NO_ROOM);
    assert.equal(writer.held, 42 * 96);
    assert.equal(readFileSync(path).length, header);
    assert.ok(writer.flush());
    assert.deepEqual([writer.held, writer.written], [0, 42]);
    assert.equal(readFileSync(path).length, header + 42 * 96);
    assert.throws(() => writer.add(Buffer.alloc(4096), 0, 0), RangeError);
  });
  assert.equal(read(path).frames.length, 42);
});

test('capture file: a write that fails is told, and nothing more is taken', () => {
  withFile('/dev/full', 'a', (fd) => {
    const writer = new CaptureWriter(fd, 'pcap', captureBuffer(4096));
    assert.ok(writer.add(Buffer.alloc(60), 1, 2));
    assert.equal(writer.flush(), false);
    assert.deepEqual([writer.failed, writer.written, writer.held], [28, 0, 0]);
    assert.equal(writer.flush(), false);
  });
});
