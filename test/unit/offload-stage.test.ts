import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openWindow, type WindowViews } from '../../src/mem/window.ts';
import {
  MAX_GSO_BYTES,
  MAX_OFFLOAD_FRAMES,
  MIN_BOUNCE_BYTES,
  OFFLOAD_FULL,
  OFFLOAD_MALFORMED,
  OffloadStage,
} from '../../src/virtio-net/offload-stage.ts';
import { OffloadBench } from '../kit/offload-bench.ts';
import { checksumIsRight, look, naiveSum, type Packet, type PacketSpec, packet } from '../kit/packets.ts';
import { pool } from '../kit/ram.ts';

const bench = new OffloadBench();

const counted = (len: number) => Uint8Array.from({ length: len }, (_, i) => i);
const offload = ({ csumStart, csumOffset }: Packet, gsoType: number, gsoSize: number) => ({
  ...{ csumStart, csumOffset },
  ...{ gsoType, gsoSize },
});

function convert(spec: PacketSpec, gsoType: number, gsoSize: number): Buffer[] {
  const whole = packet(spec);
  bench.place(whole.bytes);
  bench.stage.reset();
  bench.convert(offload(whole, gsoType, gsoSize));
  return bench.frames();
}

test('offload stage: a known TCP packet becomes known segments, byte for byte', () => {
  // 10.0.0.1:1 → 10.0.0.2:2, id 0xffff, seq 0xfffffffe, CWR ECE ACK PSH FIN. The checksum field is the sum of 0a00 0001 0a00
  // 0002 0006 0019; the checksums of the segments come from another program.
  const whole = Buffer.from(
    [
      '020000000002020000000001' + '0800',
      '4502' + '002d' + 'ffff' + '4000' + '4006' + 'beef' + '0a000001' + '0a000002',
      '0001' + '0002' + 'fffffffe' + '00000003' + '50d9' + '0100' + '1422' + '0000',
      '6162636465',
    ].join(''),
    'hex',
  );
  bench.place(whole);
  bench.stage.reset();
  assert.equal(bench.convert({ gsoType: 0x81, gsoSize: 2, csumStart: 34, csumOffset: 16 }), 3);
  const segment = (ip: string, tcp: string) => `0200000000020200000000010800${ip}0a0000010a000002${tcp}`;
  assert.deepEqual(
    bench.frames().map((frame) => frame.toString('hex')),
    [
      segment('4502002affff4000400626ca', '00010002fffffffe0000000350d0010038a90000' + '6162'),
      segment('4502002a00004000400626ca', '00010002000000000000000350500100' + '37260000' + '6364'),
      segment('4502002900014000400626ca', '00010002000000020000000350590100' + '35800000' + '65'),
    ],
  );
});

test('offload stage: IPv4 options that are not copied are in the first fragment alone', () => {
  // NOP, record route (7, not copied) of 7 bytes, security (130, copied) of 3, end.
  const ipOptions = Buffer.from('0107070400000000' + '820304' + '00', 'hex');
  const frames = convert({ version: 4, protocol: 'udp', payload: counted(100), ipOptions }, 3, 64).map(look);
  assert.equal(frames.length, 2);
  assert.equal(frames[0].options.toString('hex'), '010707040000000082030400');
  assert.equal(frames[1].options.toString('hex'), '010101010101010182030400');
});

test('offload stage: malformed IPv4 options stay as they are', () => {
  for (const hex of ['07ff0400', '07010400', '01010107', '07000000']) {
    const frames = convert(
      { version: 4, protocol: 'udp', payload: counted(100), ipOptions: Buffer.from(hex, 'hex') },
      3,
      64,
    );
    assert.equal(look(frames[1]).options.toString('hex'), hex);
  }
});

test("offload stage: with source routing the sender's pseudo header counts, not the addresses in the packet", () => {
  for (const [protocol, type] of [
    ['tcp', 4],
    ['udp', 5],
  ] as const) {
    const routing = { type: 43, body: Buffer.alloc(22, 9) };
    const whole = packet({ version: 6, protocol, payload: counted(3000), extensions: [routing] });
    // The final address is another by 0x1111 in its last word.
    const check = whole.csumStart + whole.csumOffset;
    const sum = whole.bytes.readUInt16BE(check) + 0x1111;
    whole.bytes.writeUInt16BE(sum > 0xffff ? sum - 0xffff : sum, check);
    bench.place(whole.bytes);
    bench.stage.reset();
    assert.equal(bench.convert(offload(whole, type, 1400)), 3);
    for (const frame of bench.frames()) {
      const seen = look(frame);
      assert.ok(!checksumIsRight(seen));
      const dest = Buffer.from(seen.dest);
      dest.writeUInt16BE(dest.readUInt16BE(14) + 0x1111, 14);
      assert.ok(checksumIsRight({ ...seen, dest }));
    }
  }
});

test('offload stage: a UDP checksum that comes out as zero is sent as 0xffff', () => {
  const whole = packet({ version: 4, protocol: 'udp', payload: Buffer.alloc(2) });
  const transport = whole.bytes.subarray(whole.csumStart);
  whole.bytes.writeUInt16BE(0xffff - naiveSum(transport), whole.payloadOff);
  for (const type of [0, 3, 5]) {
    bench.place(whole.bytes);
    bench.stage.reset();
    assert.equal(bench.convert(offload(whole, type, 100)), 1);
    assert.equal(bench.frames()[0].readUInt16BE(whole.csumStart + 6), 0xffff);
  }
});

test('offload stage: a packet that fits one segment is sent whole', () => {
  for (const [protocol, type] of [
    ['tcp', 1],
    ['udp', 3],
    ['udp', 5],
  ] as const)
    for (const len of [0, 1, 999, 1000]) {
      const frames = convert(
        { version: 4, protocol, payload: counted(len), flags: 0xff },
        type,
        protocol === 'udp' ? 1008 : 1000,
      );
      assert.equal(frames.length, 1);
      const seen = look(frames[0]);
      assert.ok(checksumIsRight(seen));
      assert.equal(seen.fragment, undefined);
      if (protocol === 'tcp') assert.equal(seen.transport[13], 0xff);
    }
});

test('offload stage: as many frames as there may be, and not one more', () => {
  const whole = (n: number) => ({ version: 4, protocol: 'tcp', payload: counted(n) }) as const;
  assert.equal(convert(whole(MAX_OFFLOAD_FRAMES * 4), 1, 4).length, MAX_OFFLOAD_FRAMES);
  assert.equal(convert(whole(MAX_OFFLOAD_FRAMES * 4 + 1), 1, 4).length, 0);
});

test('offload stage: the largest packets, with the longest headers, fit an empty stage', () => {
  const tags = [0x88a8, 0x8100];
  const extensions = [{ type: 60, body: Buffer.alloc(366) }];
  const tcpOptions = Buffer.alloc(40, 1);
  const payload = counted(65535 - 368 - 60);
  const whole = packet({ version: 6, protocol: 'tcp', payload, tags, extensions, tcpOptions });
  assert.equal(whole.bytes.length, MAX_GSO_BYTES);
  assert.ok(whole.payloadOff > 480);
  for (const mss of [255, 256, 300, 1460, 40000, 65535]) {
    bench.place(whole.bytes, [1, 200, 700, 66_000]);
    bench.stage.reset();
    const n = Math.ceil(payload.length / mss);
    assert.equal(bench.convert(offload(whole, 4, mss)), n > MAX_OFFLOAD_FRAMES ? OFFLOAD_MALFORMED : n);
    for (const frame of bench.frames()) assert.ok(checksumIsRight(look(frame)));
  }
  bench.stage.reset();
  assert.equal(bench.convert(offload(whole, 0, 0)), 1);
  bench.place(Buffer.concat([whole.bytes, Buffer.alloc(1)]));
  bench.stage.reset();
  for (const type of [0, 4]) assert.equal(bench.convert(offload(whole, type, 1460)), OFFLOAD_MALFORMED);
});

test('offload stage: packets add up until there is no room, and none is lost or changed by that', () => {
  const whole = packet({ version: 4, protocol: 'tcp', payload: counted(20_000) });
  bench.place(whole.bytes);
  bench.stage.reset();
  let packets = 0;
  for (;;) {
    const n = bench.convert(offload(whole, 1, 1448));
    if (n === OFFLOAD_FULL) break;
    assert.equal(n, 14);
    packets++;
  }
  assert.ok(packets > 4, `${packets} packets`);
  const frames = bench.frames();
  assert.equal(frames.length, 14 * packets);
  const stream = Buffer.concat(frames.map((frame) => look(frame).transport.subarray(20)));
  for (let i = 0; i < packets; i++) assert.ok(stream.subarray(20_000 * i, 20_000 * (i + 1)).equals(counted(20_000)));
  assert.equal(bench.convert(offload(whole, 1, 1448)), OFFLOAD_FULL);
  const small = packet({ version: 4, protocol: 'udp', payload: counted(10) });
  bench.stage.reset();
  bench.place(small.bytes);
  for (let i = 0; i < MAX_OFFLOAD_FRAMES; i++) assert.equal(bench.convert(offload(small, 0, 0)), 1);
  assert.equal(bench.convert(offload(small, 0, 0)), OFFLOAD_FULL);
  assert.equal(bench.convert(offload(small, 5, 4)), OFFLOAD_FULL);
  bench.stage.reset();
  assert.equal(bench.convert(offload(small, 0, 0)), 1);
});

test('offload stage: a packet shorter than it is said to be is malformed, and adds nothing', () => {
  const whole = packet({ version: 4, protocol: 'tcp', payload: counted(4000) });
  for (const [type, len] of [
    [0, 4055],
    [1, 4055],
    [1, 70_000],
  ] as const) {
    bench.place(whole.bytes, [60, 3000]);
    bench.stage.reset();
    assert.equal(bench.convert(offload(whole, type, 1448), len), OFFLOAD_MALFORMED);
    bench.place(whole.bytes, [60, 3000]);
    assert.equal(bench.convert(offload(whole, 1, 1448)), 3);
    assert.equal(Buffer.concat(bench.frames().map((f) => look(f).transport.subarray(20))).compare(counted(4000)), 0);
  }
});

test('offload stage: what the packet is has to be what the header says', () => {
  const tcp4: PacketSpec = { version: 4, protocol: 'tcp', payload: counted(4000) };
  const udp6: PacketSpec = { version: 6, protocol: 'udp', payload: counted(4000) };
  const refused = (spec: PacketSpec, change: (offload: ReturnType<typeof convertible>) => object, why: string) => {
    const whole = packet(spec);
    bench.place(whole.bytes);
    bench.stage.reset();
    const right = convertible(whole, spec);
    assert.ok(bench.convert(right) > 0);
    assert.equal(bench.convert({ ...right, ...change(right) }), OFFLOAD_MALFORMED, why);
  };
  const convertible = (whole: Packet, { version, protocol }: PacketSpec) =>
    offload(whole, protocol === 'udp' ? 5 : version === 4 ? 1 : 4, 1400);
  refused(tcp4, () => ({ gsoType: 4 }), 'TCPv6 in IPv4');
  refused(tcp4, () => ({ gsoType: 5 }), 'UDP in a TCP packet');
  refused(tcp4, () => ({ gsoType: 3 }), 'UDP fragments of a TCP packet');
  refused(tcp4, () => ({ gsoType: 2 }), 'no such type');
  refused(tcp4, () => ({ gsoType: 0x80 }), 'ECN alone');
  refused(tcp4, () => ({ gsoSize: 0 }), 'size 0');
  refused(tcp4, ({ csumStart }) => ({ csumStart: csumStart + 4 }), 'another csum_start');
  refused(tcp4, () => ({ csumOffset: 6 }), 'another csum_offset');
  refused(tcp4, () => ({ gsoType: 0, csumStart: 33 }), 'a checksum within the addresses');
  refused(tcp4, ({ csumStart }) => ({ gsoType: 0, csumOffset: 4054 - csumStart - 1 }), 'a checksum behind the packet');
  refused(udp6, () => ({ gsoType: 0x85 }), 'ECN with UDP');
  refused(udp6, () => ({ gsoType: 0x83 }), 'ECN with fragments');
  refused(udp6, () => ({ gsoType: 1 }), 'TCP in a UDP packet');
  refused(udp6, () => ({ gsoType: 3, gsoSize: 7 }), 'fragments below their unit');
});

/** A window whose memory counts how often each byte is read, and shows another byte the second time. */
class FickleWindow implements WindowViews {
  readonly id = 60_000;
  readonly memory = undefined;
  readonly reads: Uint8Array;
  readonly u8: Uint8Array;
  readonly u16 = new Uint16Array(0);
  readonly i32 = new Int32Array(0);
  readonly dv: DataView;

  constructor(bytes: Uint8Array) {
    this.reads = new Uint8Array(bytes.length);
    const read = (at: number) => (this.reads[at]++ === 0 ? bytes[at] : 0xff - bytes[at]);
    this.u8 = new Proxy(bytes, { get: (_, at) => read(Number(at)) });
    const word = (at: number) => read(at) | (read(at + 1) << 8) | (read(at + 2) << 16) | (read(at + 3) << 24);
    this.dv = { getInt32: word } as unknown as DataView;
  }
}

test('offload stage: each byte of the guest is read once, whatever becomes of the packet', () => {
  const specs: [PacketSpec, number, number][] = [
    [{ version: 4, protocol: 'tcp', payload: counted(9001), tags: [0x8100] }, 1, 1447],
    [{ version: 6, protocol: 'tcp', payload: counted(9001) }, 4, 100],
    [{ version: 6, protocol: 'udp', payload: counted(9001) }, 5, 1400],
    [{ version: 4, protocol: 'udp', payload: counted(9001) }, 3, 1480],
    [{ version: 4, protocol: 'tcp', payload: counted(1400) }, 0, 0],
  ];
  for (const [spec, type, size] of specs) {
    const whole = packet(spec);
    const fickle = new FickleWindow(whole.bytes);
    bench.windows[fickle.id] = fickle;
    bench.segments.count = 0;
    bench.segments.push(fickle.id, 0, 301);
    bench.segments.push(fickle.id, 301, whole.bytes.length - 301);
    bench.stage.reset();
    assert.ok(bench.convert(offload(whole, type, size)) > 0);
    assert.deepEqual(fickle.reads, new Uint8Array(whole.bytes.length).fill(1));
    const once = bench.frames();
    bench.place(whole.bytes);
    bench.stage.reset();
    bench.convert(offload(whole, type, size));
    assert.deepEqual(once, bench.frames());
  }
});

test('offload stage: nothing of a refused packet is read later, when its memory may be gone', () => {
  const whole = packet({ version: 4, protocol: 'tcp', payload: counted(4000) });
  for (const type of [0, 1]) {
    const fickle = new FickleWindow(whole.bytes);
    bench.windows[fickle.id] = fickle;
    bench.segments.count = 0;
    bench.segments.push(fickle.id, 0, whole.bytes.length);
    bench.stage.reset();
    assert.equal(bench.convert(offload(whole, type, 1448), whole.bytes.length + 1), OFFLOAD_MALFORMED);
    const before = Uint8Array.from(fickle.reads);
    bench.place(whole.bytes);
    assert.ok(bench.convert(offload(whole, type, 1448)) > 0);
    assert.deepEqual(fickle.reads, before);
  }
});

test('offload stage: too little bounce memory is refused when it is made', () => {
  const window = openWindow(pool.acquire());
  assert.throws(() => new OffloadStage(window, 65536, MIN_BOUNCE_BYTES), RangeError);
});
