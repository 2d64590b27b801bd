import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { WindowViews } from '../../src/mem/window.ts';
import { flowHash } from '../../src/port/flow-hash.ts';
import { Burst } from '../../src/virtio-net/burst.ts';
import { Dice } from '../kit/naive-driver.ts';
import { Ram } from '../kit/ram.ts';

const ram = new Ram();
const windows: WindowViews[] = [];
windows[ram.handle.id] = ram.views;
const at = ram.alloc(65536);
const burst = new Burst(new ArrayBuffer(65536));
const [TCP, UDP, SCTP] = [6, 17, 132];

/** The hash of a frame that lies in pieces of these sizes; those left are one more. */
function hashOf(frame: Buffer, cuts: readonly number[] = []): number {
  const { segments } = burst;
  burst.putOne(ram.handle.id, at.off, frame);
  segments.count = 0;
  let from = 0;
  let off = at.off;
  for (const size of [...cuts, frame.length]) {
    const part = frame.subarray(from, from + size);
    if (part.length === 0) break;
    part.copy(ram.bytes, off);
    // bytes that are not the frame's follow each piece
    ram.bytes.fill(0xa5, off + part.length, off + part.length + 64);
    segments.push(ram.handle.id, off, part.length);
    from += part.length;
    off += part.length + 32;
  }
  burst.first[1] = segments.count;
  return flowHash(burst, 0, windows);
}

interface Flow {
  readonly macs: readonly [Buffer, Buffer];
  readonly tags: readonly (readonly [number, number])[];
  readonly version: 4 | 6;
  readonly addresses: readonly [Buffer, Buffer];
  readonly proto: number;
  readonly ports: readonly [number, number];
  readonly options: number;
  /** flags and offset of IPv4 */
  readonly fragment: number;
  readonly payload: number;
}

const bytes = (n: number) => fc.uint8Array({ minLength: n, maxLength: n }).map((array) => Buffer.from(array));
const flows: fc.Arbitrary<Flow> = fc.record({
  macs: fc.tuple(bytes(6), bytes(6)),
  tags: fc.array(fc.tuple(fc.constantFrom(0x8100, 0x88a8), fc.nat(0xffff)), { maxLength: 2 }),
  version: fc.constantFrom(4, 6),
  addresses: fc.tuple(bytes(16), bytes(16)),
  proto: fc.constantFrom(TCP, UDP, SCTP, 1, 47, 58),
  ports: fc.tuple(fc.nat(0xffff), fc.nat(0xffff)),
  options: fc.nat(10),
  fragment: fc.constantFrom(0, 0x4000),
  payload: fc.nat(80),
});

const swap = <T>([a, b]: readonly [T, T]): [T, T] => [b, a];
const back = (flow: Flow): Flow => ({
  ...flow,
  macs: swap(flow.macs),
  addresses: swap(flow.addresses),
  ports: swap(flow.ports),
});

const u16 = (...values: number[]) => {
  const buffer = Buffer.alloc(2 * values.length);
  for (const [i, value] of values.entries()) buffer.writeUInt16BE(value, 2 * i);
  return buffer;
};

/** A frame of the flow. `seed` makes what does not tell flows apart: lengths, ids, checksums, payload. */
function frameOf(flow: Flow, seed: number): Buffer {
  const dice = new Dice(seed);
  const noise = (n: number) => Buffer.from(Array.from({ length: n }, () => dice.int(0, 255)));
  const { macs, tags, version, addresses, proto, ports, options, fragment, payload } = flow;
  const link = [...macs, ...tags.flatMap(([type, tci]) => [u16(type, tci)]), u16(version === 4 ? 0x0800 : 0x86dd)];
  const transport = [u16(...ports), noise(16 + payload)];
  if (version === 6) {
    const head = Buffer.concat([Buffer.from([0x60]), noise(5), Buffer.from([proto]), noise(1)]);
    return Buffer.concat([...link, head, ...addresses, ...transport]);
  }
  const head = [Buffer.from([0x45 + options]), noise(5), u16(fragment), noise(1), Buffer.from([proto]), noise(2)];
  const [source, destination] = addresses.map((address) => address.subarray(0, 4));
  return Buffer.concat([...link, ...head, source, destination, noise(4 * options), ...transport]);
}

test('flow hash: both directions of a flow have the same, whatever else is in their packets', () => {
  fc.assert(
    fc.property(flows, fc.integer(), fc.integer(), (flow, one, other) => {
      const hash = hashOf(frameOf(flow, one));
      assert.equal(hashOf(frameOf(back(flow), other)), hash);
      assert.ok(Number.isInteger(hash) && hash >= 0 && hash < 2 ** 32);
    }),
    { numRuns: 500 },
  );
});

test('flow hash: ports count where there are ports, and neither MAC addresses nor tags do for IP', () => {
  fc.assert(
    fc.property(flows, bytes(6), fc.integer({ min: 1, max: 0xffff }), fc.integer(), (flow, mac, change, seed) => {
      const hash = hashOf(frameOf(flow, seed));
      assert.equal(hashOf(frameOf({ ...flow, macs: [mac, flow.macs[1]] }, seed)), hash);
      assert.equal(hashOf(frameOf({ ...flow, tags: [[0x8100, change]] }, seed)), hash);
      const other = hashOf(frameOf({ ...flow, ports: [flow.ports[0] ^ change, flow.ports[1]] }, seed));
      assert.equal(other !== hash, [TCP, UDP, SCTP].includes(flow.proto));
    }),
    { numRuns: 300 },
  );
});

test('flow hash: all fragments of a datagram have the same: the later ones have no ports', () => {
  fc.assert(
    fc.property(
      flows,
      fc.tuple(fc.nat(0xffff), fc.nat(0xffff)),
      fc.integer({ min: 1, max: 0x1fff }),
      (flow, payload, offset) => {
        const v4: Flow = { ...flow, version: 4 };
        const first = hashOf(frameOf({ ...v4, fragment: 0x2000 }, 1));
        assert.equal(hashOf(frameOf({ ...v4, fragment: 0x2000 | offset, ports: payload }, 2)), first);
        assert.equal(hashOf(frameOf({ ...v4, fragment: offset, ports: payload }, 3)), first);
      },
    ),
    { numRuns: 200 },
  );
});

test('flow hash: frames that are not IP go by their MAC addresses, both directions alike', () => {
  fc.assert(
    fc.property(bytes(6), bytes(6), fc.constantFrom(0x0806, 0x88cc, 0x8847, 0x9100), bytes(60), (a, b, type, rest) => {
      const there = hashOf(Buffer.concat([a, b, u16(type), rest]));
      assert.equal(hashOf(Buffer.concat([b, a, u16(type), rest.toReversed()])), there);
    }),
  );
});

test('flow hash: a packet in many pieces has the hash of the packet in one; what is behind its end does not count', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        flows.map((flow) => frameOf(flow, 7)),
        fc.uint8Array({ minLength: 14, maxLength: 200 }).map((array) => Buffer.from(array)),
      ),
      fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 30 }),
      fc.nat(200),
      (whole, cuts, len) => {
        const frame = whole.subarray(0, Math.max(14, len));
        assert.equal(hashOf(frame, cuts), hashOf(frame));
      },
    ),
    { numRuns: 500 },
  );
});

test('flow hash: a packet cut short anywhere still has one, alike in both directions', () => {
  fc.assert(
    fc.property(flows, (flow) => {
      const there = frameOf(flow, 1);
      const andBack = frameOf(back(flow), 1);
      for (let len = 14; len < there.length; len++)
        assert.equal(hashOf(there.subarray(0, len)), hashOf(andBack.subarray(0, len)), `of ${len} bytes`);
    }),
    { numRuns: 60 },
  );
});

/** Flows as they are met with: neighbours in address or port. */
const populations: Record<string, (i: number) => Partial<Flow>> = {
  'clients of one server': (i) => ({ ports: [32768 + i, 80] }),
  'hosts of one network': (i) => ({ addresses: [ip(10, 0, i >> 8, i), ip(10, 0, 0, 1)], ports: [5000, 5000] }),
  'hosts of IPv6': (i) => ({ version: 6, addresses: [ip6(i + 2), ip6(1)], ports: [5000, 5000] }),
  'hosts that ping': (i) => ({ proto: 1, addresses: [ip(192, 168, 1, i), ip(192, 168, 0, 1)] }),
  'tunnels by source port': (i) => ({ proto: UDP, ports: [49152 + 16 * i, 4789] }),
};
const ip = (...parts: number[]) => Buffer.concat([Buffer.from(parts), Buffer.alloc(12)]);
const ip6 = (n: number) => Buffer.concat([Buffer.from('20010db8000000000000', 'hex'), Buffer.alloc(4), u16(n)]);

test('flow hash: flows of one kind are spread fairly over 2 to 8 queues', () => {
  const base: Flow = {
    macs: [Buffer.from('525400000001', 'hex'), Buffer.from('525400000002', 'hex')],
    ...{ tags: [], version: 4, addresses: [ip(10, 0, 0, 1), ip(10, 0, 0, 2)], proto: TCP, ports: [1, 2] },
    ...{ options: 0, fragment: 0, payload: 20 },
  };
  const n = 256;
  for (const [name, flow] of Object.entries(populations))
    for (let queues = 2; queues <= 8; queues++) {
      const counts = Array<number>(queues).fill(0);
      for (let i = 0; i < n; i++) counts[hashOf(frameOf({ ...base, ...flow(i) }, i)) % queues]++;
      // a fair die's count is beyond this once in ten thousand times, and these are no dice
      const fair = n / queues;
      const bound = 4 * Math.sqrt(fair);
      for (const count of counts)
        assert.ok(Math.abs(count - fair) <= bound, `${name} over ${queues} queues: ${counts.join(' ')}`);
    }
});

test('flow hash: hosts that talk by ARP alone are spread by their MAC addresses', () => {
  const counts = [0, 0, 0, 0];
  for (let i = 0; i < 256; i++) {
    const frame = Buffer.concat([
      Buffer.from([0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 1, i]),
      u16(0x0806),
      Buffer.alloc(46),
    ]);
    counts[hashOf(frame) % 4]++;
  }
  for (const count of counts) assert.ok(count > 32 && count < 96, counts.join(' '));
});
