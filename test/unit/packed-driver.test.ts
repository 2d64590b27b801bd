import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import type { Segment } from '../../src/virtqueue/driver-ring.ts';
import { PackedDriver, packedRingLayout } from '../../src/virtqueue/packed-driver.ts';
import { NaivePackedDevice, type SeenBuffer } from '../property/naive-packed-device.ts';

const SIZE = 5;
const RING_OFF = 65536;
const TABLE = { addr: 2 ** 40 + 2 ** 20, off: 2 ** 20 };
const BASE = TABLE.addr - TABLE.off;
const views = openWindow(new WindowPool('wasm').acquire());

const buffer = (n: number, write = false): Segment => ({ addr: 0x1_0000_0000 + n * 4096, len: 100 + n, write });
const buffers = (n: number, write = false) => Array.from({ length: n }, (_, i) => buffer(i, write));

let driver: PackedDriver;
let device: NaivePackedDevice;

function fresh({ size = SIZE, eventIdx = true, inOrder = false, at = 0, wrap = 1 as 0 | 1 } = {}): void {
  const place = packedRingLayout(size, RING_OFF);
  driver = new PackedDriver(views, place, size, eventIdx, inOrder);
  driver.reset(at | (wrap << 15));
  device = new NaivePackedDevice(views, place, size, { start: { at, wrap }, base: BASE });
}

/** The bytes of descriptor `i` of the ring. */
const descriptor = (i: number) =>
  Buffer.from(views.u8.slice(driver.descriptorOff(i), driver.descriptorOff(i) + 16)).toString('hex');
/** What is compared with it, field by field. */
const hex = (...fields: string[]) => fields.join('');
const id16 = (id: number) => Buffer.from([id & 0xff, id >> 8]).toString('hex');
const take = (): SeenBuffer => device.take() ?? assert.fail('nothing is available');

describe('packed driver', () => {
  beforeEach(() => fresh());

  test('the parts of a ring keep their alignments and do not overlap', () => {
    for (const size of [1, 2, 3, 5, 7, 256, 1000, 32768]) {
      const { descOff, availOff, usedOff, bytes } = packedRingLayout(size, 4096);
      assert.equal(descOff % 16, 0);
      assert.ok(availOff % 4 === 0 && availOff >= descOff + 16 * size);
      assert.ok(usedOff % 4 === 0 && usedOff >= availOff + 4);
      assert.ok(4096 + bytes >= usedOff + 4);
    }
  });

  test('any size from 1 to 32768 will do, and no other', () => {
    for (const size of [1, 3, 1000, 32768])
      assert.equal(new PackedDriver(views, packedRingLayout(size, RING_OFF), size, true).nFree, size);
    for (const size of [0, 32769, 2.5, -8]) {
      assert.throws(() => new PackedDriver(views, packedRingLayout(8, RING_OFF), size, true), RangeError);
    }
  });

  test('a chain is in the ring byte for byte as §2.8.13 has it, in this lap and the next', () => {
    const chain = [
      { addr: 0x1122_3344_5566, len: 0x0102_0304 },
      { addr: 0x1000, len: 64, write: true },
    ];
    const id = driver.add(chain);
    driver.publish();

    // address, length, id (in the last descriptor), flags: AVAIL with NEXT, AVAIL with WRITE
    assert.equal(descriptor(0), hex('6655443322110000', '04030201', 'ffff', '8100'));
    assert.equal(descriptor(1), hex('0010000000000000', '40000000', id16(id), '8200'));
    device.use(take(), 64);
    assert.equal(descriptor(0), hex('6655443322110000', '40000000', id16(id), '8280'), 'used: AVAIL, USED and WRITE');
    assert.equal(driver.reap(), id);
    assert.equal(driver.usedLen, 64);
    const ids = [driver.add(buffers(3)), driver.add([buffer(9)])];
    driver.publish();
    assert.equal(descriptor(2).slice(24), hex('ffff', '8100'));
    assert.equal(descriptor(4).slice(24), hex(id16(ids[0]), '8000'));
    // the wrap counter is 0 now: USED without AVAIL
    assert.equal(descriptor(0).slice(24), hex(id16(ids[1]), '0080'));
  });

  test('an indirect table has WRITE for its only flag, and no ids', () => {
    const id = driver.addIndirect([buffer(1), buffer(2, true)], TABLE);
    driver.publish();
    assert.equal(descriptor(0), hex('0000100000010000', '20000000', id16(id), '8400'));
    assert.equal(
      Buffer.from(views.u8.slice(TABLE.off, TABLE.off + 32)).toString('hex'),
      [...['0010000001000000', '65000000', '0000', '0000'], ...['0020000001000000', '66000000', '0000', '0200']].join(
        '',
      ),
    );
    assert.equal(driver.nFree, SIZE - 1);
    device.use(take(), 102);
    assert.equal(driver.reap(), id);
    assert.equal(driver.addIndirect(buffers(SIZE + 1), TABLE), -1, 'no list is longer than the ring (§2.8.17)');
    assert.notEqual(driver.addIndirect(buffers(SIZE), TABLE), -1);
  });

  test('nothing of what was added shows before publish', () => {
    for (let lap = 0; lap < 8; lap++) {
      const added = [
        driver.add([buffer(0), buffer(1)]),
        driver.add([buffer(2)]),
        driver.addIndirect([buffer(3)], TABLE),
      ];
      assert.equal(device.take(), undefined);
      driver.publish();
      const seen = added.map(() => take());
      assert.deepEqual(
        seen.map(({ id }) => id),
        added,
      );
      for (const one of seen) device.use(one, 0);
      for (const id of added) assert.equal(driver.reap(), id);
    }
  });

  test('ids are not the places of their descriptors', () => {
    let different = 0;
    for (let n = 0; n < 100; n++) {
      const place = device.avail.at;
      const id = driver.add([buffer(0)]);
      assert.ok(id >= 0 && id < SIZE);
      if (id !== place) different++;
      driver.publish();
      device.use(take(), 0);
      driver.reap();
    }
    assert.ok(different > 50);
  });

  test('a full ring takes no more, and takes again what was reaped, in any order', () => {
    assert.equal(driver.add([]), -1);
    assert.equal(driver.add(buffers(SIZE + 1)), -1);
    const a = driver.add(buffers(2));
    const b = driver.add(buffers(3));
    assert.equal(driver.add([buffer(9)]), -1);
    driver.publish();
    const [seenA, seenB] = [take(), take()];
    device.use(seenB, 0); // in the first place, although it was available in the third
    assert.equal(driver.reap(), b);
    assert.equal(driver.nFree, 3);
    const c = driver.add(buffers(3));
    assert.ok(c >= 0 && c !== a);
    driver.publish();
    device.use(seenA, 0);
    assert.equal(driver.reap(), a);
    assert.deepEqual(
      take().segments.map(({ addr }) => addr),
      buffers(3).map(({ addr }) => addr),
    );
  });

  test('without WRITE in the used descriptor the length means nothing', () => {
    driver.add([buffer(0, true)]);
    driver.publish();
    device.write(take().id, 77, 0);
    assert.notEqual(driver.reap(), -1);
    assert.equal(driver.usedLen, 0);
  });

  const crimes: Record<string, [RegExp, (seen: SeenBuffer) => void]> = {
    'an id beyond the ring': [/used buffer 5 at descriptor 0/, () => device.write(SIZE, 0, 0)],
    'the id 65535': [/used buffer 65535/, () => device.write(0xffff, 0, 0)],
    'an id that is not on offer': [/not on offer/, ({ id }) => device.write((id + 1) % SIZE, 0, 0)],
    'an id that is added and not published': [/not on offer/, () => device.write(driver.add([buffer(3)]), 0, 0)],
    'more bytes than there is room for': [
      /wrote 102 bytes to buffer \d, which has room for 101/,
      ({ id }) => device.write(id, 102, 2),
    ],
  };
  for (const [crime, [problem, commit]] of Object.entries(crimes)) {
    for (const inOrder of [false, true]) {
      test(`${inOrder ? 'an in-order device' : 'a device'} that uses ${crime} breaks the ring, and the ring says how`, () => {
        fresh({ inOrder });
        driver.add([buffer(0), buffer(1, true)]);
        driver.publish();
        commit(take());
        assert.equal(driver.reap(), -1);
        assert.match(driver.broken ?? '', problem);
        assert.equal(driver.reap(), -1);
        assert.ok(!driver.ready);
        driver.reset();
        assert.equal(driver.broken, undefined);
        assert.equal(driver.nFree, SIZE);
      });
    }
  }

  test('a device that uses one buffer twice breaks the ring', () => {
    driver.add([buffer(0)]);
    driver.add([buffer(1)]);
    driver.publish();
    const seen = take();
    device.use(seen, 0);
    device.use(seen, 0);
    assert.equal(driver.reap(), seen.id);
    assert.equal(driver.reap(), -1);
    assert.match(driver.broken ?? '', /not on offer/);
  });

  test('an empty ring has nothing used, whatever its descriptors hold', () => {
    device.write(0, 0, 0);
    assert.ok(!driver.ready);
    assert.equal(driver.reap(), -1);
    assert.equal(driver.broken, undefined);
    assert.equal(driver.vringBase, 0x8000_8000);
  });
});

describe('packed driver: devices that keep the order', () => {
  test('one used descriptor gives back all buffers up to the one that it names', () => {
    fresh({ inOrder: true });
    const ids = [
      driver.add(buffers(2, true)),
      driver.add([buffer(5, true)]),
      driver.add([buffer(6, true)]),
      driver.add([buffer(7)]),
    ];
    driver.publish();
    const seen = ids.map(() => take());
    device.useBatch(seen.slice(0, 3), 9);
    assert.ok(driver.ready);
    assert.equal(driver.reap(), ids[0]);
    assert.equal(driver.usedLen, 201, 'a buffer that is not named was filled');
    assert.equal(driver.reap(), ids[1]);
    assert.equal(driver.usedLen, 105);
    assert.ok(driver.ready);
    assert.equal(driver.reap(), ids[2]);
    assert.equal(driver.usedLen, 9);
    assert.ok(!driver.ready);
    assert.equal(driver.reap(), -1);
    assert.equal(driver.nFree, SIZE - 1);
    device.use(seen[3], 0);
    assert.equal(driver.reap(), ids[3]);
  });

  test('ids go round in order', () => {
    fresh({ inOrder: true });
    const first = driver.add([buffer(0)]);
    driver.publish();
    device.use(take(), 0);
    driver.reap();
    for (let n = 1; n < 3 * SIZE; n++) {
      assert.equal(driver.add([buffer(0)]), (first + n) % SIZE);
      driver.publish();
      device.use(take(), 0);
      driver.reap();
    }
  });

  test('requests of several buffers show only when their first one is used', () => {
    fresh();
    const ids = [0, 1, 2].map((n) => driver.add([buffer(n, true)]));
    driver.publish();
    const seen = ids.map(() => take());
    const { at, wrap } = device.used;
    device.used.at = 1;
    device.useTogether(seen.slice(1), [50, 60]);
    assert.equal(driver.reap(), -1);
    device.write(seen[0].id, 40, 2, { at, wrap });
    assert.deepEqual(
      ids.map(() => [driver.reap(), driver.usedLen]),
      ids.map((id, i) => [id, 40 + 10 * i]),
    );
  });
});

describe('packed driver: vringBase', () => {
  const base = (at: number, wrap: number) => (at | (wrap << 15)) + (at | (wrap << 15)) * 65536;

  test('a fresh ring begins at 0 with both wrap counters 1', () => {
    fresh();
    assert.equal(driver.vringBase, 0x8000_8000);
    driver.add(buffers(3));
    driver.publish();
    assert.equal(driver.vringBase, 0x8000_8000, 'what is only offered is to be taken yet');
  });

  for (const inOrder of [false, true]) {
    test(`it goes on behind what was used, reaped or not, across the wrap${inOrder ? ', in order' : ''}`, () => {
      fresh({ inOrder, at: 3, wrap: 0 });
      driver.add([buffer(0)]);
      driver.add(buffers(3));
      driver.add([buffer(1)]);
      driver.publish();
      const seen = [take(), take(), take()];
      assert.equal(driver.vringBase, base(3, 0));
      if (inOrder) device.useBatch(seen.slice(0, 2), 0);
      else for (const one of seen.slice(0, 2)) device.use(one, 0);
      assert.equal(driver.vringBase, base(2, 1));
      driver.reap();
      assert.equal(driver.vringBase, base(2, 1));
      driver.reap();
      assert.equal(driver.vringBase, base(2, 1));
      // a device that begins there takes what the other had not done
      const heir = new NaivePackedDevice(views, driver.place, SIZE, { start: { at: 2, wrap: 1 }, base: BASE });
      const again = heir.take() ?? assert.fail('nothing is available');
      assert.deepEqual(again, seen[2]);
      heir.use(again, 0);
      assert.equal(driver.reap(), again.id);
    });

    test(`a hostile ring is walked no farther than it goes${inOrder ? ', in order' : ''}`, () => {
      fresh({ inOrder });
      const ids = [driver.add([buffer(0)]), driver.add([buffer(1)])];
      driver.publish();
      for (let at = 0; at < SIZE; at++) device.write(ids[0], 0, 0, { at, wrap: 1 });
      assert.equal(driver.vringBase, inOrder ? base(1, 1) : base(2, 1));
      device.write((ids[0] + 2) % SIZE, 0, 0, { at: 0, wrap: 1 });
      assert.equal(driver.vringBase, base(0, 1));
      assert.equal(driver.reap(), -1);
    });
  }
});
