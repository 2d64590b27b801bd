/**
 * The plain packets' way in WebAssembly against what else there is: for split rings its TypeScript twin, for both formats the general
 * way. The same ring, the same memory, and every word that comes out.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { suite, test } from 'node:test';
import fc from 'fast-check';
import { AddressMap, type Chunk } from '../../src/mem/address-map.ts';
import { openWindow, WindowPool, type WindowViews } from '../../src/mem/window.ts';
import { counterBlock, VRING_SLOTS } from '../../src/stats/counters.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { featureMask, VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { BURST_SIZE, FRONT_BYTES, FRONT_WORDS } from '../../src/virtio-net/burst.ts';
import { completeBurst, dequeueBurst } from '../../src/virtio-net/dequeue.ts';
import { Enqueuer } from '../../src/virtio-net/enqueue.ts';
import { NetVring } from '../../src/virtio-net/net-vring.ts';
import { OffloadStage } from '../../src/virtio-net/offload-stage.ts';
import { completePlain, fillPlain, takePlain } from '../../src/virtio-net/plain.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { PackedRing } from '../../src/virtqueue/packed-ring.ts';
import { SplitRing } from '../../src/virtqueue/split-ring.ts';
import { FORMATS, type Format } from '../kit/raw-ring.ts';

const DESC_OFF = 0x10000;
const AVAIL_OFF = 0x14000;
const USED_OFF = 0x15000;
const BUFFERS_OFF = 0x20000;
const END_OFF = 0x40000;
const LAST_WORD = 1 << 16;

const pool = new WindowPool('wasm');
const windows: WindowViews[] = [0, 1, 2].map(() => openWindow(pool.acquire()));
const [srcWindow, dstWindow, bounce] = windows;
const caller = new Caller(new Int32Array(1), 0);

/** A descriptor: mostly a plain one in memory, seldom anything. `at`: its distance from the chunk's first address. */
const descriptor = fc.record({
  at: fc.oneof({ weight: 20, arbitrary: fc.nat(0x1e000) }, { weight: 1, arbitrary: fc.integer() }),
  hi: fc.oneof({ weight: 30, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.constantFrom(1, -1) }),
  len: fc.oneof(
    { weight: 30, arbitrary: fc.noBias(fc.integer({ min: 26, max: 3000 })) },
    { weight: 2, arbitrary: fc.constantFrom(0, 1, 10, 12, 27, 28, 0x20000, 0x7fffffff, -1) },
  ),
  flags: fc.oneof(
    { weight: 30, arbitrary: fc.constant(0) },
    { weight: 1, arbitrary: fc.constantFrom(VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT, 0x8000) },
  ),
  next: fc.nat(0xffff),
});
const rings = fc.record({
  log2: fc.nat(7),
  /** a packed ring's size, the wrap counter at its position, and how many descriptors from there on are available */
  num: fc.integer({ min: 1, max: 128 }),
  wrap: fc.nat(1),
  available: fc.integer({ min: 1, max: 128 }),
  descriptors: fc.array(descriptor, { minLength: 128, maxLength: 128 }),
  heads: fc.array(fc.oneof({ weight: 30, arbitrary: fc.nat(127) }, { weight: 1, arbitrary: fc.nat(0xffff) }), {
    minLength: 128,
    maxLength: 128,
  }),
  start: fc.nat(0xffff),
  mapLo: fc.constantFrom(0, 0x4000_0000, 0xffff_f000),
  mapHi: fc.constantFrom(0, 1, 0x7fff),
  headerLen: fc.constantFrom(10, 12),
  reach: fc.constantFrom(0x20000, 0x1f000),
  seed: fc.integer(),
});
type RingSpec = typeof rings extends fc.Arbitrary<infer T> ? T : never;

/** Fills the window's buffers with bytes of no meaning. */
function fillBuffers(window: WindowViews, seed: number): void {
  window.u8.fill(0, DESC_OFF, END_OFF);
  for (let i = 0; i < END_OFF - BUFFERS_OFF; i += 4)
    window.dv.setInt32(BUFFERS_OFF + i, Math.imul(i + seed, 0x9e3779b1));
}

/** Writes an address, length, and the last word; the addresses are in memory where `at` is. */
function putDescriptor(window: WindowViews, i: number, spec: RingSpec, last: number): void {
  const { at, hi, len } = spec.descriptors[i];
  const off = DESC_OFF + 16 * i;
  window.dv.setInt32(off, (spec.mapLo + at) | 0, true);
  window.dv.setInt32(off + 4, spec.mapHi + hi, true);
  window.dv.setInt32(off + 8, len, true);
  window.dv.setInt32(off + 12, last, true);
  // most headers ask for nothing
  if (at >= 0 && at < END_OFF - BUFFERS_OFF - 16 && (at + spec.seed) % 16 !== 0)
    window.u8.fill(0, BUFFERS_OFF + at, BUFFERS_OFF + at + 12);
}

function writeSplit(window: WindowViews, spec: RingSpec, write: number): number {
  const num = 2 ** spec.log2;
  for (const [i, { flags, next }] of spec.descriptors.slice(0, num).entries())
    putDescriptor(window, i, spec, (next << 16) | (flags ^ write));
  for (const [i, head] of spec.heads.slice(0, num).entries())
    window.dv.setUint16(AVAIL_OFF + 4 + 2 * i, head < 128 ? head % num : head, true);
  window.dv.setUint16(AVAIL_OFF + 2, (spec.start + num) & 0xffff, true);
  window.dv.setUint16(USED_OFF + 2, spec.start, true);
  return num;
}

/** The descriptors from the position on are available, but for those at the end. */
function writePacked(window: WindowViews, spec: RingSpec, write: number): number {
  const { num } = spec;
  const position = spec.start % num;
  for (const [i, { flags, next }] of spec.descriptors.slice(0, num).entries()) {
    const wrap = i < position ? spec.wrap ^ 1 : spec.wrap;
    const ahead = (i - position + num) % num;
    const available = wrap === 1 ? 0x80 : 0x8000;
    // those that are not are so in any way: used, or available by the other lap
    const others = [0, 0x80, 0x8000, 0x8080].filter((value) => value !== available);
    // often the last one is just before the wrap
    const count = spec.available % 3 === 0 ? num - position : spec.available;
    const lap = ahead < count ? available : others[next % 3];
    putDescriptor(window, i, spec, (((flags & 0x7fff) ^ write ^ lap) << 16) | next);
  }
  return num;
}

/** Writes the ring into a window; the descriptors of a receive ring are write-only where those of a transmit ring are not. */
function makeNet(
  format: Format,
  window: WindowViews,
  spec: RingSpec,
  write: number,
  more: readonly Chunk[],
  inOrder = false,
): NetVring {
  fillBuffers(window, spec.seed);
  const num = format === 'packed' ? writePacked(window, spec, write) : writeSplit(window, spec, write);
  const position = (spec.start % num) | (spec.wrap << 15);
  const place = (off: number) => ({ window: window.id, off });
  const guestAddr = spec.mapHi * 2 ** 32 + spec.mapLo;
  const memory = { guestAddr, reach: spec.reach, window: window.id, windowOff: BUFFERS_OFF };
  const config = {
    format,
    num,
    base: ((position << 16) | position) >>> 0,
    desc: place(DESC_OFF),
    avail: place(AVAIL_OFF),
    used: place(USED_OFF),
    eventIdx: false,
    indirect: false,
    kickFd: NO_FD,
    callFd: NO_FD,
  };
  const Ring = format === 'packed' ? PackedRing : SplitRing;
  const ring = new Ring(config, new AddressMap([memory, ...more]), windows, caller);
  ring.refresh();
  const bits = [...(spec.headerLen === 12 ? [VIRTIO_F_VERSION_1] : []), ...(inOrder ? [VIRTIO_F_IN_ORDER] : [])];
  return new NetVring(ring, featureMask(...bits), new Float64Array(counterBlock(VRING_SLOTS)));
}

function makeRing(window: WindowViews, spec: RingSpec, write: number): { ring: SplitRing; net: NetVring } {
  const net = makeNet('split', window, spec, write, []);
  return { ring: net.ring as SplitRing, net };
}

/** All that a burst holds. */
const wordsOf = ({ burst }: RingStage) => [
  ...[burst.first, burst.len, burst.front, burst.id, burst.needs, burst.tally, burst.delivered].map((words) => [
    ...words,
  ]),
  ...[burst.segments.window, burst.segments.off, burst.segments.len].map((words) => [...words.subarray(0, 64)]),
];

suite('the WebAssembly ring functions do what the TypeScript ones do', () => {
  test('take: the same packets, fronts, segments and end', () => {
    fc.assert(
      fc.property(rings, fc.nat(8), (spec, from) => {
        const { ring, net } = makeRing(srcWindow, spec, 0);
        const n = Math.min(ring.num, BURST_SIZE);
        fc.pre(from < n);
        const [wasm, twin] = [new RingStage(), new RingStage()];
        wasm.burst.segments.count = twin.burst.segments.count = 3;
        const { headerLen } = spec;
        const to = wasm.take(net, from, n, from);
        assert.equal(to, takePlain(ring, headerLen, twin.burst, from, n));
        twin.burst.segments.count += to - from;
        assert.deepEqual(wordsOf(wasm), wordsOf(twin));
      }),
      { numRuns: 300 },
    );
  });

  test('fill: the same buffers, headers, used entries and bytes, and nothing else written', () => {
    const packets = fc.array(
      fc.record({
        off: fc.nat(0x10000),
        len: fc.integer({ min: 14, max: 3000 }),
        pieces: fc.constantFrom(1, 1, 1, 1, 1, 1, 2),
      }),
      {
        minLength: 1,
        maxLength: BURST_SIZE,
      },
    );
    fc.assert(
      fc.property(rings, packets, fc.nat(3), (spec, frames, filled) => {
        const outcome = (plain: boolean) => {
          for (let i = BUFFERS_OFF; i < END_OFF; i += 4) srcWindow.dv.setInt32(i, Math.imul(i, 0x85ebca77));
          const { ring, net } = makeRing(dstWindow, spec, VRING_DESC_F_WRITE);
          const stage = new RingStage();
          const { burst } = stage;
          for (const [i, { off, len, pieces }] of frames.entries()) {
            burst.first[i] = burst.segments.count;
            for (let p = 0; p < pieces; p++) burst.segments.push(srcWindow.id, BUFFERS_OFF + off, len / pieces);
            burst.len[i] = len;
            burst.list[i] = frames.length - 1 - i;
          }
          burst.first[frames.length] = burst.segments.count;
          const end = Math.min(frames.length, ring.ready - filled);
          if (end <= 0) return undefined;
          const last = spec.headerLen === 12 ? LAST_WORD : 0;
          const to = plain
            ? fillPlain(ring, spec.headerLen, burst, srcWindow, last, 0, end, filled)
            : stage.fill(net, srcWindow, 0, end, filled);
          return [
            to,
            [...burst.tally],
            [...burst.delivered],
            Buffer.from(dstWindow.u8.slice(DESC_OFF, END_OFF)).toString('base64'),
          ];
        };
        assert.deepEqual(outcome(false), outcome(true));
      }),
      { numRuns: 200 },
    );
  });

  test('complete: the same used entries', () => {
    fc.assert(
      fc.property(rings, fc.array(fc.nat(0xffff), { minLength: 1, maxLength: BURST_SIZE }), (spec, heads) => {
        const outcome = (plain: boolean) => {
          const { ring, net } = makeRing(srcWindow, spec, 0);
          const stage = new RingStage();
          stage.burst.id.set(heads);
          stage.burst.count = Math.min(heads.length, ring.num);
          if (plain) completePlain(ring, stage.burst);
          else stage.complete(net);
          return Buffer.from(srcWindow.u8.slice(DESC_OFF, END_OFF)).toString('base64');
        };
        assert.equal(outcome(false), outcome(true));
      }),
      { numRuns: 100 },
    );
  });
});

/** Buffers that do not overlap: which packet's bytes come last in one that does is nobody's business. */
const ROOM = 960;
const apart = ({ descriptors, heads, ...spec }: RingSpec): RingSpec => ({
  ...spec,
  heads: heads.map((head, i) => (head < 128 ? (5 * i + 3) % 128 : head)),
  descriptors: descriptors.map(({ at, len, ...rest }, i) => ({
    ...rest,
    at: at >= 0 && at <= 0x1e000 ? ROOM * i + (at % 64) : at,
    // most hold any of the frames: one that does not is in the way of all that follow
    len: len < 26 || len > 3000 ? len : len % 16 === 3 ? 28 + (len % 700) : 720 + (len % 160),
  })),
});

/** With memory somewhere that may not be written, no packet goes the plain way. */
const READ_ONLY: Chunk = { guestAddr: 2 ** 52, reach: 4096, window: srcWindow.id, windowOff: 0, writable: false };
/** The ring's descriptors, and a hash of all its memory. */
const ringBytes = ({ u8 }: WindowViews) => [
  Buffer.from(u8.slice(DESC_OFF, DESC_OFF + 16 * 128))
    .toString('hex')
    .match(/.{32}/g),
  createHash('sha1').update(u8.slice(DESC_OFF, END_OFF)).digest('hex'),
];

/** What a burst says of its packets. */
const packetsOf = ({ burst }: RingStage) =>
  Array.from({ length: burst.count }, (_, i) => ({
    id: burst.id[i],
    slots: burst.slots[i],
    len: burst.len[i],
    needs: burst.needs[i],
    front: [...burst.front.subarray(FRONT_WORDS * i, FRONT_WORDS * (i + 1))],
    pieces: Array.from({ length: burst.first[i + 1] - burst.first[i] }, (_, s) => {
      const { window, off, len } = burst.segments;
      return [window, off, len].map((words) => words[burst.first[i] + s]);
    }),
  }));

for (const format of FORMATS)
  suite(`${format} rings: the WebAssembly functions do what the general way does`, () => {
    test('take and complete: the same packets, counts, used elements and fault, and nothing else written', () => {
      let plain = 0;
      fc.assert(
        fc.property(rings, (spec) => {
          const outcome = (more: readonly Chunk[]) => {
            const net = makeNet(format, srcWindow, spec, 0, more);
            const { ring } = net;
            const stage = new RingStage();
            const bursts: unknown[] = [];
            while (dequeueBurst(net, stage) > 0) {
              const slots = format === 'packed' ? stage.burst.slotCount : stage.burst.count;
              bursts.push(packetsOf(stage).map((packet) => (format === 'packed' ? packet : { ...packet, slots: 1 })));
              if (more.length === 0) plain += stage.burst.count;
              bursts.push([slots, net.bytes, net.packets]);
              if (more.length === 0) completeBurst(net, stage);
              else {
                completePlain(ring, stage.burst);
                ring.publish(stage.burst.slotCount, false);
              }
            }
            return {
              bursts,
              fault: ring.fault,
              base: ring.base,
              counters: [...net.counters],
              ring: ringBytes(srcWindow),
            };
          };
          assert.deepEqual(outcome([]), outcome([READ_ONLY]));
        }),
        { numRuns: 300 },
      );
      assert.ok(plain > 300, `${plain} packets have been taken`);
    });

    test('fill: the same buffers, counts, used elements, drops and fault, and nothing else written', () => {
      const frames = fc.array(
        fc.record({
          off: fc.nat(0x10000),
          len: fc.integer({ min: 14, max: 3000 }),
          pieces: fc.constantFrom(1, 1, 1, 1, 2),
        }),
        { minLength: 1, maxLength: BURST_SIZE },
      );
      let delivered = 0;
      fc.assert(
        fc.property(rings, frames, fc.integer({ min: 1, max: 3 }), (spec, packets, calls) => {
          const outcome = (more: readonly Chunk[]) => {
            const net = makeNet(format, dstWindow, apart(spec), VRING_DESC_F_WRITE, more);
            for (let i = BUFFERS_OFF; i < END_OFF; i += 4) srcWindow.dv.setInt32(i, Math.imul(i, 0x85ebca77));
            const stage = new RingStage();
            const { burst } = stage;
            for (const [i, { off, len, pieces }] of packets.entries()) {
              burst.first[i] = burst.segments.count;
              const cut = len >> 1;
              if (pieces === 2) burst.segments.push(srcWindow.id, BUFFERS_OFF + off, cut);
              const from = pieces === 2 ? cut : 0;
              burst.segments.push(srcWindow.id, BUFFERS_OFF + off + from, len - from);
              burst.len[i] = len;
              for (let word = 0; word < FRONT_WORDS; word++)
                burst.front[FRONT_WORDS * i + word] = srcWindow.dv.getInt32(BUFFERS_OFF + off + 4 * word, true);
            }
            burst.first[packets.length] = burst.segments.count;
            const enqueuer = new Enqueuer(stage, new OffloadStage(bounce, 65536, 2 ** 20), windows);
            const list = Int32Array.from(packets, (_, i) => packets.length - 1 - i);
            const results = Array.from({ length: calls }, () => [
              enqueuer.enqueue(net, list, 0, list.length),
              ...enqueuer.drops,
              net.bytes,
            ]);
            if (more.length === 0) delivered += results.reduce((sum, [n]) => sum + n, 0);
            const { fault, base } = net.ring;
            return {
              ...{ results, fault, base, counters: [...net.counters], delivered: [...burst.delivered] },
              ring: ringBytes(dstWindow),
            };
          };
          assert.deepEqual(outcome([]), outcome([READ_ONLY]));
        }),
        { numRuns: 200 },
      );
      assert.ok(delivered > 150, `${delivered} packets have been delivered`);
    });
  });

/** Bytes of a front that packets of one kind share: both addresses and the type. */
const KIND_BYTES = 14;
/** Plain buffers that do not overlap, with the same bytes everywhere but for some bytes of some fronts. */
const alikes = fc.record({
  lens: fc.array(fc.integer({ min: 28, max: 900 }), { minLength: 1, maxLength: BURST_SIZE }),
  odd: fc.array(fc.record({ packet: fc.nat(BURST_SIZE), byte: fc.nat(20), bit: fc.nat(7) }), { maxLength: 2 }),
  headerLen: fc.constantFrom(10 as const, 12 as const),
});

for (const format of FORMATS)
  test(`${format} rings: a burst is uniform if its packets are of one kind, and then delivered as any other`, () => {
    let uniform = 0;
    fc.assert(
      fc.property(alikes, ({ lens, odd, headerLen }) => {
        const ringOf = (window: WindowViews, write: number) =>
          makeNet(
            format,
            window,
            {
              ...{ log2: 7, num: 128, wrap: 1, available: BURST_SIZE, start: 0, mapLo: 0, mapHi: 0, headerLen },
              ...{ reach: 0x20000, seed: 1, heads: Array.from({ length: 128 }, (_, i) => i) },
              descriptors: Array.from({ length: 128 }, (_, i) => {
                const len = write === 0 ? lens[i % lens.length] : ROOM;
                return { at: ROOM * i, hi: 0, len, flags: 0, next: i };
              }),
            },
            write,
            [],
          );
        const source = ringOf(srcWindow, 0);
        srcWindow.u8.fill(0, BUFFERS_OFF, END_OFF);
        for (const { packet, byte, bit } of odd)
          srcWindow.u8[BUFFERS_OFF + ROOM * packet + headerLen + byte] ^= 1 << bit;
        const stage = new RingStage();
        const { burst } = stage;
        const n = dequeueBurst(source, stage);
        assert.equal(n, BURST_SIZE);
        const kind = (i: number) => Buffer.from(burst.frontBytes.slice(FRONT_BYTES * i, FRONT_BYTES * i + KIND_BYTES));
        const alike = Array.from({ length: n }, (_, i) => kind(i)).every((front) => front.equals(kind(0)));
        assert.equal(burst.uniform, alike);
        if (!burst.uniform) return;
        uniform++;
        const outcome = (only: number) => {
          burst.only = only;
          const net = ringOf(dstWindow, VRING_DESC_F_WRITE);
          dstWindow.u8.fill(0x5a, BUFFERS_OFF, END_OFF);
          const enqueuer = new Enqueuer(stage, new OffloadStage(bounce, 65536, 2 ** 20), windows);
          const delivered = enqueuer.enqueue(net, burst.all, 0, n);
          return [delivered, [...net.counters], net.ring.base, ringBytes(dstWindow)];
        };
        assert.deepEqual(outcome(0), outcome(-1));
      }),
      { numRuns: 200 },
    );
    assert.ok(uniform > 20, `${uniform} bursts were uniform`);
  });

test('packed rings used in order: one used element, with the id of the last buffer, stands for a whole burst, also across the wrap', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 60 }), fc.nat(59), fc.nat(1), (num, start, wrap) => {
      const spec: RingSpec = {
        ...{
          log2: 7,
          num,
          wrap,
          available: num,
          start: start % num,
          mapLo: 0,
          mapHi: 0,
          headerLen: 12,
          reach: 0x20000,
        },
        ...{ seed: 1, heads: [] },
        descriptors: Array.from({ length: 128 }, (_, i) => ({
          at: ROOM * i,
          hi: 0,
          len: 100,
          flags: 0,
          next: 500 + i,
        })),
      };
      const net = makeNet('packed', srcWindow, { ...spec, available: num + (num % 3 === 0 ? 1 : 0) }, 0, [], true);
      const before = srcWindow.u8.slice(DESC_OFF, DESC_OFF + 16 * num);
      const stage = new RingStage();
      const n = dequeueBurst(net, stage);
      assert.equal(n, Math.min(num, BURST_SIZE));
      completeBurst(net, stage);
      const expected = Buffer.from(before);
      const position = start % num;
      expected.writeUInt32LE(0, 16 * position + 8);
      expected.writeUInt16LE(500 + ((position + n - 1) % num), 16 * position + 12);
      expected.writeUInt16LE(wrap === 1 ? 0x8080 : 0, 16 * position + 14);
      assert.deepEqual(Buffer.from(srcWindow.u8.slice(DESC_OFF, DESC_OFF + 16 * num)), expected);
      const next = position + n;
      assert.equal(net.ring.base & 0xffff, (next % num) | ((next < num ? wrap : wrap ^ 1) << 15));
    }),
  );
});

test('packed rings: no more than a lap is taken or filled, whatever the driver makes of descriptors it has not got back', () => {
  const spec: RingSpec = {
    ...{
      log2: 0,
      num: 3,
      wrap: 1,
      available: 1,
      start: 0,
      mapLo: 0,
      mapHi: 0,
      headerLen: 12,
      reach: 0x20000,
      seed: 1,
    },
    ...{ heads: [], descriptors: [0, 1, 2].map((i) => ({ at: 2048 * i, hi: 0, len: 100, flags: 0, next: i })) },
  };
  // two slots have been taken before; the first of them shows up again as if it were the next lap's
  const flags = (window: WindowViews, write: number) => {
    for (const [slot, available] of [0x8000, 0, 0x80].entries())
      window.dv.setUint16(DESC_OFF + 16 * slot + 14, available | write, true);
  };
  const source = makeNet('packed', srcWindow, spec, 0, []);
  flags(srcWindow, 0);
  const stage = new RingStage();
  assert.equal(stage.take(source, 1, BURST_SIZE, 2), 2);
  const sink = makeNet('packed', dstWindow, spec, VRING_DESC_F_WRITE, []);
  flags(dstWindow, VRING_DESC_F_WRITE);
  const { burst } = stage;
  burst.segments.count = 0;
  for (let i = 0; i < 4; i++) {
    burst.first[i] = i;
    burst.len[i] = 64;
    burst.list[i] = i;
    burst.segments.push(srcWindow.id, BUFFERS_OFF, 64);
  }
  burst.first[4] = 4;
  assert.equal(stage.fill(sink, srcWindow, 0, 4, 2), 1);
});
