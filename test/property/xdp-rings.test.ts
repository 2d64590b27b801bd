/**
 * The rings of AF_XDP sockets against a kernel of a few lines: two threads' ports share a queue's memory, and whatever they and the
 * kernel do in whichever order, each chunk is in one place, and each frame comes out as it went in.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { openWindow } from '../../src/mem/window.ts';
import {
  groupState,
  XdpGroup,
  type XdpGroupPlace,
  XdpReceiveRing,
  type XdpRingPlace,
  XdpTransmitRing,
} from '../../src/port/xdp-rings.ts';
import { XDP_RING_NEED_WAKEUP } from '../../src/uapi/xdp.ts';
import { pool } from '../kit/ram.ts';

const CHUNK = 2048;
const RX = 8;
const TX = 4;
const SENDERS = 2;
const UMEM_OFF = 2 ** 20;
const HEADROOM = 256;

const views = openWindow(pool.acquire());
const { i32 } = views;

let nextOff = 65536;
function ringAt(size: number): XdpRingPlace {
  const off = nextOff;
  nextOff += 4096;
  // as Linux lays it out: indexes on cache lines of their own
  return { producerOff: off, consumerOff: off + 64, flagsOff: off + 128, descOff: off + 192, size };
}

const FILL = ringAt(RX);
const COMPLETION = ringAt(TX * SENDERS);
const RECEIVE = ringAt(RX);
const TRANSMIT = [ringAt(TX), ringAt(TX)];

/** The other side of a ring. */
const kernel = {
  has: ({ producerOff, consumerOff }: XdpRingPlace) => (i32[producerOff >> 2] - i32[consumerOff >> 2]) | 0,
  /** the next element's first `words` words */
  take({ consumerOff, descOff, size }: XdpRingPlace, words: number): number[] {
    const at = i32[consumerOff >> 2]++;
    const word = (descOff >> 2) + words * (at & (size - 1));
    return Array.from(i32.subarray(word, word + words));
  },
  put({ producerOff, descOff, size }: XdpRingPlace, element: readonly number[]): void {
    const at = i32[producerOff >> 2]++;
    i32.set(element, (descOff >> 2) + element.length * (at & (size - 1)));
  },
};

function setUp(start: number): { group: XdpGroup; place: XdpGroupPlace } {
  for (const ring of [FILL, COMPLETION, RECEIVE, ...TRANSMIT]) {
    i32.fill(0, ring.producerOff >> 2, (ring.producerOff >> 2) + 1024);
    i32[ring.producerOff >> 2] = start;
    i32[ring.consumerOff >> 2] = start;
  }
  const sizes = { rxChunks: RX, txChunks: TX, chunk: CHUNK };
  const state = groupState(SENDERS, sizes);
  const place = { umemOff: UMEM_OFF, ...sizes, fill: FILL, completion: COMPLETION, state, shared: true };
  return { group: new XdpGroup(views, place), place };
}

/** Where the indexes begin: they pass the end of signed and of unsigned numbers on their way. */
const starts = fc.constantFrom(0, 0x7ffffffa | 0, 0xfffffffa | 0);

test('XDP rings: a frame is received where the kernel has put it, and its chunk goes back', () => {
  fc.assert(
    fc.property(starts, fc.array(fc.nat(), { maxLength: 60 }), (start, steps) => {
      const { group } = setUp(start);
      const ring = new XdpReceiveRing(views, RECEIVE);
      group.refill(
        Int32Array.from({ length: RX }, (_, i) => i * CHUNK),
        RX,
      );
      const expected: [address: number, len: number][] = [];
      const held: number[] = [];
      for (const step of steps) {
        const n = 1 + ((step >> 2) % 5);
        if ((step & 3) < 2) {
          for (let i = 0; i < n && kernel.has(FILL) > 0; i++) {
            const [lo, hi] = kernel.take(FILL, 2);
            assert.equal(hi, 0);
            const frame: [number, number] = [lo + HEADROOM, 60 + ((step + i) % 1400)];
            kernel.put(RECEIVE, [frame[0], 0, frame[1], 0]);
            expected.push(frame);
          }
        } else if ((step & 3) === 2) {
          const ready = Math.min(n, ring.ready);
          assert.equal(ring.ready, expected.length);
          for (let i = 0; i < ready; i++) {
            assert.deepEqual([ring.address(i), ring.len(i)], expected[i]);
            held.push(ring.address(i) & -CHUNK);
          }
          expected.splice(0, ready);
          ring.advance(ready);
        } else {
          const back = Int32Array.from(held.splice(0, n));
          group.refill(back, back.length);
        }
        // each chunk is with the kernel, on its way to us, or with us
        assert.equal(kernel.has(FILL) + expected.length + held.length, RX);
      }
    }),
  );
});

test('XDP rings: of two senders each gets its own chunks back, in whichever order they have been sent', () => {
  fc.assert(
    fc.property(starts, fc.array(fc.nat(), { maxLength: 100 }), (start, steps) => {
      const { place } = setUp(start);
      // as two threads have it
      const groups = [new XdpGroup(views, place), new XdpGroup(views, place)];
      const rings = TRANSMIT.map((one) => new XdpTransmitRing(views, one));
      const own = [0, 1].map((sender) => new Set(Array.from({ length: TX }, (_, i) => (RX + sender * TX + i) * CHUNK)));
      const free = own.map((chunks) => new Set(chunks));
      const shown: [address: number, len: number][][] = [[], []];
      const inKernel: number[] = [];
      for (const step of steps) {
        const sender = (step >> 2) & 1;
        const n = 1 + ((step >> 3) % TX);
        if ((step & 3) < 2) {
          const chunks = new Int32Array(TX);
          const got = groups[sender].take(sender, chunks, n);
          assert.equal(got, Math.min(n, free[sender].size));
          const used = step % (got + 1);
          for (let i = 0; i < got; i++) {
            assert.ok(free[sender].delete(chunks[i]), 'a chunk of its own, which is free');
            if (i < used) {
              rings[sender].put(chunks[i], 60 + i);
              shown[sender].push([chunks[i], 60 + i]);
            } else free[sender].add(chunks[i]);
          }
          groups[sender].untake(sender, chunks, used, got);
          assert.equal(kernel.has(TRANSMIT[sender]), shown[sender].length - used, 'not shown yet');
          rings[sender].publish();
          assert.equal(rings[sender].waiting, shown[sender].length);
        } else if ((step & 3) === 2) {
          for (let i = 0; i < n && shown[sender].length > 0; i++) {
            const [address, len] = shown[sender].shift() as [number, number];
            assert.deepEqual(kernel.take(TRANSMIT[sender], 4), [address, 0, len, 0]);
            inKernel.push(address);
          }
        } else {
          for (let i = 0; i < n && inKernel.length > 0; i++) {
            const [address] = inKernel.splice(step % inKernel.length, 1);
            kernel.put(COMPLETION, [address, 0]);
            free[own.findIndex((chunks) => chunks.has(address))].add(address);
          }
        }
      }
    }),
  );
});

test('XDP rings: the kernel says by a flag whether it must be told', () => {
  const { group } = setUp(0);
  const [ring] = TRANSMIT.map((one) => new XdpTransmitRing(views, one));
  assert.deepEqual([group.fillNeedsKick, ring.needsKick], [false, false]);
  i32[FILL.flagsOff >> 2] = XDP_RING_NEED_WAKEUP;
  i32[TRANSMIT[0].flagsOff >> 2] = XDP_RING_NEED_WAKEUP;
  assert.deepEqual([group.fillNeedsKick, ring.needsKick], [true, true]);
});
