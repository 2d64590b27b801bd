import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { MAX_OFFLOAD_FRAMES, OFFLOAD_FULL, OFFLOAD_MALFORMED } from '../../src/virtio-net/offload-stage.ts';
import { OffloadBench } from '../kit/offload-bench.ts';
import { checksumIsRight, look, type Packet, type PacketSpec, packet, type Seen } from '../kit/packets.ts';

const bench = new OffloadBench();

const FIN = 0x01;
const PSH = 0x08;
const CWR = 0x80;
const TSO = { 4: 1, 6: 4 } as const;
const UFO = 3;
const USO = 5;
const ECN = 0x80;

/** Bytes that are told by their number, should a property fail. */
function pattern(len: number, seed: number): Uint8Array {
  const data = Uint8Array.from({ length: len }, (_, i) => i * 31 + (i >> 8) + seed);
  return Object.defineProperty(data, fc.toStringMethod, { value: () => `pattern(${len}, ${seed})` });
}
const bytes = (len: fc.Arbitrary<number>) => fc.tuple(len, fc.nat(255)).map(([n, seed]) => pattern(n, seed));
const words = (max: number) => bytes(fc.nat(max).map((n) => 4 * n));
const extension = fc.record({
  type: fc.constantFrom(43, 60),
  body: bytes(fc.nat(4).map((n) => 8 * n + 6)),
});
const extensions = fc
  .tuple(fc.boolean(), fc.array(extension, { maxLength: 3 }))
  .map(([hop, others]) => (hop ? [{ type: 0, body: Buffer.alloc(6) }, ...others] : others));
/** Mostly small payloads, for speed, and now and then the largest. */
const payload = bytes(
  fc.oneof({ weight: 8, arbitrary: fc.nat(4000) }, { weight: 1, arbitrary: fc.integer({ min: 30_000, max: 65_535 }) }),
);
const spec = (protocol: 'tcp' | 'udp') =>
  fc.record({
    version: fc.constantFrom(4 as const, 6 as const),
    protocol: fc.constant(protocol),
    payload,
    tags: fc.array(fc.constantFrom(0x8100, 0x88a8), { maxLength: 2 }),
    ipOptions: fc.nat(10).map((n) => Buffer.alloc(4 * n, 1)),
    tcpOptions: words(10),
    extensions,
    id: fc.nat(0xffff),
    seq: fc.oneof(fc.nat(0xffffffff), fc.integer({ min: 0xfffff000, max: 0xffffffff })),
    flags: fc.nat(255),
  });
const cuts = fc.array(fc.nat(70_000), { maxLength: 12 });
const gsoSize = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 1, max: 1500 }) },
  { weight: 1, arbitrary: fc.integer({ min: 1500, max: 0xffff }) },
);

const fits = (whole: Packet, { version }: PacketSpec) =>
  whole.bytes.length - whole.ipOff <= 65535 + (version === 4 ? 0 : 40);

/** Converts and looks at each frame; `undefined` if it was refused. */
function convert(
  whole: Packet,
  gsoType: number,
  size: number,
  at: readonly number[],
): { frames: Buffer[]; seen: Seen[] } | undefined {
  bench.place(whole.bytes, at);
  bench.stage.reset();
  const n = bench.convert({ gsoType, gsoSize: size, csumStart: whole.csumStart, csumOffset: whole.csumOffset });
  if (n === OFFLOAD_MALFORMED) return undefined;
  const frames = bench.frames();
  assert.equal(frames.length, n);
  return { frames, seen: frames.map(look) };
}

test('offload: TCP segments put together are the stream that was sent, each complete in itself', () => {
  fc.assert(
    fc.property(spec('tcp'), gsoSize, fc.boolean(), cuts, (what, mss, ecn, at) => {
      const whole = packet(what);
      const made = convert(whole, TSO[what.version] | (ecn ? ECN : 0), mss, at);
      const expected = Math.max(1, Math.ceil(what.payload.length / mss));
      if (expected > MAX_OFFLOAD_FRAMES || !fits(whole, what)) return assert.equal(made, undefined);
      assert.ok(made);
      assert.equal(made.seen.length, expected);
      const original = look(whole.bytes);
      const stream: Buffer[] = [];
      made.seen.forEach((seen, i) => {
        const tcp = seen.transport;
        const last = i === expected - 1;
        assert.deepEqual(seen.link, original.link);
        assert.ok(checksumIsRight(seen), `checksum of segment ${i}`);
        assert.equal(seen.fragment, undefined);
        if (what.version === 4) assert.equal(seen.id, (what.id + i) & 0xffff);
        assert.equal(tcp.readUInt32BE(4), (what.seq + i * mss) % 2 ** 32);
        const cleared = (i > 0 ? CWR : 0) | (last ? 0 : FIN | PSH);
        assert.equal(tcp[13], what.flags & ~cleared);
        const payloadLen = last ? what.payload.length - i * mss : mss;
        assert.equal(tcp.length, 20 + what.tcpOptions.length + payloadLen);
        stream.push(tcp.subarray(20 + what.tcpOptions.length));
        // All else is as it was: put back what had to change.
        const frame = Buffer.from(made.frames[i]).subarray(0, whole.payloadOff);
        const before = whole.bytes.subarray(0, whole.payloadOff);
        const { ipOff, csumStart } = whole;
        const changed = what.version === 4 ? [2, 3, 4, 5, 10, 11] : [4, 5];
        for (const off of changed) frame[ipOff + off] = before[ipOff + off];
        for (const off of [4, 5, 6, 7, 13, 16, 17]) frame[csumStart + off] = before[csumStart + off];
        assert.deepEqual(frame, before);
      });
      assert.ok(Buffer.concat(stream).equals(what.payload), 'the payload');
    }),
    { numRuns: 400 },
  );
});

test('offload: UDP segments are datagrams with the payload in order, each complete in itself', () => {
  fc.assert(
    fc.property(spec('udp'), gsoSize, cuts, (what, size, at) => {
      const whole = packet(what);
      const made = convert(whole, USO, size, at);
      const expected = Math.max(1, Math.ceil(what.payload.length / size));
      if (expected > MAX_OFFLOAD_FRAMES || !fits(whole, what)) return assert.equal(made, undefined);
      assert.ok(made);
      assert.equal(made.seen.length, expected);
      made.seen.forEach((seen, i) => {
        assert.ok(checksumIsRight(seen), `checksum of datagram ${i}`);
        assert.notEqual(seen.transport.readUInt16BE(6), 0);
        assert.equal(seen.transport.readUInt16BE(4), seen.transport.length);
        assert.equal(seen.transport.length - 8, Math.min(size, what.payload.length - i * size));
        if (what.version === 4) assert.equal(seen.id, (what.id + i) & 0xffff);
        assert.ok(made.frames[i].subarray(0, 14).equals(whole.bytes.subarray(0, 14)));
      });
      const stream = Buffer.concat(made.seen.map(({ transport }) => transport.subarray(8)));
      assert.ok(stream.equals(what.payload), 'the payload');
    }),
    { numRuns: 400 },
  );
});

test('offload: UDP fragments put together are the datagram that was sent, with its checksum', () => {
  let uncut = 0;
  let refused = 0;
  const ids = new Set<number>();
  fc.assert(
    fc.property(spec('udp'), gsoSize, cuts, (what, size, at) => {
      const whole = packet({ ...what, fragOff: 0 });
      const made = convert(whole, UFO, size, at);
      // What is cut: IPv4 all behind the header; IPv6 what is behind the last header that routers read.
      const { version, extensions: all } = what;
      const upTo = all.findLastIndex(({ type }) => type !== 60) + 1;
      const inAll = version === 4 ? 0 : all.slice(0, upTo).reduce((sum, { body }) => sum + body.length + 2, 0);
      const fragmentOff = version === 4 ? whole.csumStart : whole.ipOff + 40 + inAll;
      const cut = whole.bytes.length - fragmentOff;
      const step = cut <= size ? size : size - (size % 8);
      const tooSmall = whole.csumStart + 8 - fragmentOff > step;
      if (tooSmall || Math.ceil(cut / step) > MAX_OFFLOAD_FRAMES || !fits(whole, what)) {
        refused++;
        return assert.equal(made, undefined);
      }
      assert.ok(made);
      const original = look(whole.bytes);
      assert.equal(made.seen.length, Math.ceil(cut / step));
      if (cut <= size) {
        uncut++;
        assert.equal(made.seen[0].fragment, undefined);
        assert.ok(checksumIsRight(made.seen[0]));
        return;
      }
      const { id } = made.seen[0];
      if (version === 4) assert.equal(id, what.id);
      else {
        assert.ok(!ids.has(id as number), 'an identification of its own');
        ids.add(id as number);
      }
      const parts: Buffer[] = [];
      made.seen.forEach((seen, i) => {
        assert.equal(seen.id, id);
        assert.deepEqual(seen.fragment, { at: i * step, more: i < made.seen.length - 1 });
        const part = made.frames[i].subarray(fragmentOff + (version === 4 ? 0 : 8));
        assert.ok(part.length <= step);
        parts.push(part);
      });
      const datagram = Buffer.concat(parts).subarray(whole.csumStart - fragmentOff);
      assert.ok(checksumIsRight({ ...original, transport: datagram }), 'the checksum of the datagram');
      datagram.writeUInt16BE(original.transport.readUInt16BE(6), 6);
      assert.ok(datagram.equals(original.transport), 'the datagram');
    }),
    { numRuns: 500 },
  );
  assert.ok(uncut > 0 && refused > 0 && ids.size > 10, 'all ways were gone');
});

test('offload: a packet that needs but its checksum keeps every other byte', () => {
  const protocol = fc.constantFrom('tcp' as const, 'udp' as const);
  fc.assert(
    fc.property(protocol.chain(spec), cuts, (what, at) => {
      const whole = packet(what);
      if (!fits(whole, what)) return;
      const made = convert(whole, 0, 0xffff, at);
      assert.ok(made);
      assert.equal(made.frames.length, 1);
      assert.ok(checksumIsRight(made.seen[0]));
      const restored = Buffer.from(made.frames[0]);
      const checkAt = whole.csumStart + whole.csumOffset;
      whole.bytes.copy(restored, checkAt, checkAt, checkAt + 2);
      assert.ok(restored.equals(whole.bytes));
    }),
    { numRuns: 300 },
  );
});

test('offload: whatever a header says of whatever bytes, nothing throws, nothing is written beside the area', () => {
  const protocol = fc.constantFrom('tcp' as const, 'udp' as const);
  const u16 = fc.oneof(fc.nat(0xffff), fc.nat(80), fc.constantFrom(0, 1, 7, 8, 0xfff7, 0xffff));
  const rarely = <T>(value: fc.Arbitrary<T>) =>
    fc.oneof({ weight: 9, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: value });
  const damage = fc.array(fc.record({ at: fc.nat(120), byte: fc.nat(255) }), { maxLength: 4 });
  const wild = fc.record({
    bits: fc.oneof(fc.constant([]), damage),
    gsoType: fc.oneof(fc.constant(undefined), fc.constantFrom(0, 1, 3, 4, 5, 0x81, 0x84), fc.nat(255)),
    gsoSize: u16,
    csumStart: rarely(u16),
    csumOffset: rarely(u16),
    len: rarely(fc.nat(70_000)),
    at: cuts,
  });
  const results = [0, 0, 0];
  fc.assert(
    fc.property(
      protocol.chain(spec),
      wild,
      (what, { bits, gsoType, gsoSize: size, csumStart, csumOffset, len, at }) => {
        const whole = packet(what);
        const frame = Buffer.from(whole.bytes);
        for (const { at: where, byte } of bits) frame[where % frame.length] = byte;
        bench.place(frame, at);
        const offload = {
          gsoType: gsoType ?? (what.protocol === 'tcp' ? TSO[what.version] : USO),
          gsoSize: size,
          csumStart: csumStart ?? whole.csumStart,
          csumOffset: csumOffset ?? whole.csumOffset,
        };
        let n = bench.convert(offload, len);
        if (n === OFFLOAD_FULL) {
          results[2]++;
          bench.stage.reset();
          n = bench.convert(offload, len);
        }
        assert.ok(n === OFFLOAD_MALFORMED || (n > 0 && n <= MAX_OFFLOAD_FRAMES), `${n}`);
        results[n > 0 ? 1 : 0]++;
      },
    ),
    { numRuns: 2000 },
  );
  assert.ok(
    results.every((n) => n > 100),
    `malformed, converted, full: ${results}`,
  );
});
