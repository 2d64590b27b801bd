/** Rings whose buffers are used in any order, and taken long before: driver and device of this package against each other. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { AddressMap } from '../../src/mem/address-map.ts';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { FAULT_NONE } from '../../src/virtqueue/fault.ts';
import { PackedDriver, packedRingLayout } from '../../src/virtqueue/packed-driver.ts';
import { PackedRing } from '../../src/virtqueue/packed-ring.ts';
import { SegmentList } from '../../src/virtqueue/segments.ts';
import { SplitDriver, splitLayout } from '../../src/virtqueue/split-driver.ts';
import { SplitRing } from '../../src/virtqueue/split-ring.ts';
import { UsedPosition } from '../../src/virtqueue/used-position.ts';

const views = openWindow(new WindowPool('wasm').acquire());
const RING_OFF = 65536;
const BUFFERS_OFF = 2 ** 20;
const BASE = 0x1_0000_0000;
const PIECE = 64;
const PACKED_START = 0x8000;

/** What happens next: buffers of so many descriptors are offered, one is taken, some of those taken is used, or all is begun anew. */
type Step = { kind: 'offer'; pieces: number } | { kind: 'take' } | { kind: 'use'; which: number } | { kind: 'stop' };

const steps = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant('offer' as const), pieces: fc.integer({ min: 1, max: 3 }) }),
    fc.record({ kind: fc.constant('take' as const) }),
    fc.record({ kind: fc.constant('use' as const), which: fc.nat(1000) }),
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('stop' as const) }) },
  ),
  { minLength: 50, maxLength: 400 },
);

interface Buffer {
  readonly id: number;
  readonly slots: number;
  readonly serial: number;
}

function run(packed: boolean, size: number, all: readonly Step[]): void {
  views.u8.fill(0, RING_OFF, RING_OFF + 65536);
  const layout = packed ? packedRingLayout(size) : splitLayout(size);
  const place = {
    descOff: RING_OFF + layout.descOff,
    availOff: RING_OFF + layout.availOff,
    usedOff: RING_OFF + layout.usedOff,
  };
  const driver = packed ? new PackedDriver(views, place, size, false) : new SplitDriver(views, place, size, false);
  driver.reset();
  const at = (off: number) => ({ window: views.id, off });
  const config = {
    ...{ desc: at(place.descOff), avail: at(place.availOff), used: at(place.usedOff) },
    ...{ num: size, base: packed ? PACKED_START : 0, eventIdx: false, indirect: false },
    ...{ kickFd: NO_FD, callFd: NO_FD, usedLogAddr: undefined, inflight: undefined },
    format: packed ? ('packed' as const) : ('split' as const),
  };
  const map = new AddressMap([{ guestAddr: BASE, reach: 2 ** 24, window: views.id, windowOff: BUFFERS_OFF }]);
  const windows = Array.from({ length: views.id + 1 }, () => views);
  const Ring = packed ? PackedRing : SplitRing;
  const ring = new Ring(config, map, windows, new Caller(new Int32Array(1), 0));
  const used = new UsedPosition();
  used.begin(ring);
  const offered: number[] = [];
  let taken: Buffer[] = [];
  const expected: [id: number, len: number][] = [];
  const chain = new SegmentList();
  const use = (buffer: Buffer, len: number) => {
    used.turn(ring);
    ring.putUsed(0, buffer.id, len);
    ring.publish(buffer.slots, true);
    used.turnBack(ring, buffer.slots);
    expected.push([buffer.id, len]);
  };
  const reapAll = () => {
    for (let id = driver.reap(); id >= 0; id = driver.reap()) assert.deepEqual([id, driver.usedLen], expected.shift());
    assert.equal(driver.broken, undefined);
    assert.deepEqual(expected, [], 'all that was used is seen');
  };
  for (const step of all) {
    if (step.kind === 'offer') {
      const pieces = Array.from({ length: step.pieces }, (_, i) => ({
        addr: BASE + PIECE * i,
        len: PIECE,
        write: true,
      }));
      const id = driver.nFree < step.pieces ? -1 : driver.add(pieces);
      if (id >= 0) offered.push(id);
      driver.publish();
    } else if (step.kind === 'take') {
      chain.count = 0;
      const some = ring.refresh() > 0;
      assert.equal(some, offered.length > 0, 'the ring knows what is on offer');
      if (!some) continue;
      assert.ok(ring.chainAt(0, VRING_DESC_F_WRITE, chain) > 0);
      taken.push({ id: ring.chainId, slots: ring.chainSlots, serial: used.take(ring, ring.chainSlots) });
      assert.equal(ring.chainId, offered.shift());
    } else if (step.kind === 'use') {
      if (taken.length === 0) continue;
      const [buffer] = taken.splice(step.which % taken.length, 1);
      use(buffer, 1 + (step.which % PIECE));
      reapAll();
    } else {
      // the device gives the ring up: where nothing behind has been used it takes back what it took, else it uses all
      if (taken.length > 0 && used.reaches(taken[0].serial)) {
        offered.unshift(...taken.map(({ id }) => id));
        used.untake(ring);
      } else for (const buffer of taken) use(buffer, 1);
      taken = [];
      reapAll();
      used.begin(ring);
    }
    assert.equal(ring.fault, FAULT_NONE);
  }
}

/** One buffer is held while others go round the ring again and again, until the ring stands where it was when that one was taken. */
const lapsAroundOne: Step[] = [
  ...Array.from({ length: 2 }, (): Step => ({ kind: 'offer', pieces: 1 })),
  { kind: 'take' },
  ...Array.from({ length: 2 ** 16 + 2 }, (): Step[] => [
    { kind: 'take' },
    { kind: 'use', which: 1 },
    { kind: 'offer', pieces: 1 },
  ]).flat(),
];

describe('a ring whose buffers are used in any order', () => {
  for (const packed of [false, true])
    test(`${packed ? 'packed' : 'split'}: each comes back once, and what is taken back is on offer again`, () => {
      fc.assert(
        fc.property(fc.constantFrom(...(packed ? [3, 8, 13] : [4, 8, 16])), steps, (size, all) =>
          run(packed, size, all),
        ),
        { numRuns: 300 },
      );
    });

  for (const [format, packed, laps] of [
    ['split', false, 2 ** 16],
    ['packed', true, 16],
  ] as const)
    test(`${format}: a buffer that was held for so long that its position came again is not taken back`, () => {
      for (const more of [-1, 0, 1])
        run(packed, 8, [...lapsAroundOne.slice(0, 3 + 3 * (laps + more)), { kind: 'stop' }]);
    });
});
