/**
 * The plain packets' way in WebAssembly against its TypeScript twin: the same ring, the same memory, and every word that comes out.
 */
import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import fc from 'fast-check';
import { AddressMap } from '../../src/mem/address-map.ts';
import { openWindow, WindowPool, type WindowViews } from '../../src/mem/window.ts';
import { counterBlock, VRING_SLOTS } from '../../src/stats/counters.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { BURST_SIZE } from '../../src/virtio-net/burst.ts';
import { NetVring } from '../../src/virtio-net/net-vring.ts';
import { completePlain, fillPlain, takePlain } from '../../src/virtio-net/plain.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { SplitRing } from '../../src/virtqueue/split-ring.ts';

const DESC_OFF = 0x10000;
const AVAIL_OFF = 0x14000;
const USED_OFF = 0x15000;
const BUFFERS_OFF = 0x20000;
const END_OFF = 0x40000;
const LAST_WORD = 1 << 16;

const pool = new WindowPool('wasm');
const windows: WindowViews[] = [openWindow(pool.acquire()), openWindow(pool.acquire())];
const [srcWindow, dstWindow] = windows;
const caller = new Caller(new Int32Array(1), 0);

/** A descriptor: mostly a plain one in memory, seldom anything. `at`: its distance from the chunk's first address. */
const descriptor = fc.record({
  at: fc.oneof({ weight: 8, arbitrary: fc.nat(0x1e000) }, { weight: 1, arbitrary: fc.integer() }),
  hi: fc.oneof({ weight: 12, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.constantFrom(1, -1) }),
  len: fc.oneof(
    { weight: 8, arbitrary: fc.integer({ min: 26, max: 3000 }) },
    { weight: 2, arbitrary: fc.constantFrom(0, 1, 10, 12, 27, 28, 0x20000, 0x7fffffff, -1) },
  ),
  flags: fc.oneof(
    { weight: 12, arbitrary: fc.constant(0) },
    { weight: 1, arbitrary: fc.constantFrom(VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT, 0x8000) },
  ),
  next: fc.nat(0xffff),
});
const rings = fc.record({
  log2: fc.nat(7),
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

/** Writes the ring into a window; the descriptors of a receive ring are write-only where those of a transmit ring are not. */
function makeRing(window: WindowViews, spec: RingSpec, write: number): { ring: SplitRing; net: NetVring } {
  const num = 2 ** spec.log2;
  window.u8.fill(0, DESC_OFF, END_OFF);
  for (let i = 0; i < END_OFF - BUFFERS_OFF; i += 4)
    window.dv.setInt32(BUFFERS_OFF + i, Math.imul(i + spec.seed, 0x9e3779b1));
  for (const [i, { at, hi, len, flags, next }] of spec.descriptors.slice(0, num).entries()) {
    const off = DESC_OFF + 16 * i;
    window.dv.setInt32(off, (spec.mapLo + at) | 0, true);
    window.dv.setInt32(off + 4, spec.mapHi + hi, true);
    window.dv.setInt32(off + 8, len, true);
    window.dv.setInt32(off + 12, (next << 16) | (flags ^ write), true);
  }
  for (const [i, head] of spec.heads.slice(0, num).entries())
    window.dv.setUint16(AVAIL_OFF + 4 + 2 * i, head < 128 ? head % num : head, true);
  window.dv.setUint16(AVAIL_OFF + 2, (spec.start + num) & 0xffff, true);
  window.dv.setUint16(USED_OFF + 2, spec.start, true);
  const place = (off: number) => ({ window: window.id, off });
  const guestAddr = spec.mapHi * 2 ** 32 + spec.mapLo;
  const map = new AddressMap([{ guestAddr, reach: spec.reach, window: window.id, windowOff: BUFFERS_OFF }]);
  const config = {
    format: 'split' as const,
    num,
    base: 0,
    inOrder: false,
    desc: place(DESC_OFF),
    avail: place(AVAIL_OFF),
    used: place(USED_OFF),
    eventIdx: false,
    indirect: false,
    kickFd: NO_FD,
    callFd: NO_FD,
  };
  const ring = new SplitRing(config, map, windows, caller);
  ring.refresh();
  const features = spec.headerLen === 12 ? featureMask(VIRTIO_F_VERSION_1) : 0n;
  return { ring, net: new NetVring(ring, features, new Float64Array(counterBlock(VRING_SLOTS))) };
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
