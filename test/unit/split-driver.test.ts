import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import type { Segment } from '../../src/virtqueue/driver-ring.ts';
import { needEvent, SplitDriver, splitLayout } from '../../src/virtqueue/split-driver.ts';
import { NaiveSplitDevice } from '../property/naive-split-device.ts';

const SIZE = 8;
const RING_OFF = 65536;
const TABLE = { addr: 2 ** 40 + 2 ** 20, off: 2 ** 20 };
const views = openWindow(new WindowPool('wasm').acquire());
const place = splitLayout(SIZE, RING_OFF);

const buffer = (n: number, write = false): Segment => ({ addr: 0x1_0000_0000 + n * 4096, len: 100 + n, write });

let driver: SplitDriver;
let device: NaiveSplitDevice;

function fresh(eventIdx: boolean, start = 0): void {
  driver = new SplitDriver(views, place, SIZE, eventIdx);
  driver.reset(start);
  device = new NaiveSplitDevice(views, place, SIZE, { start, base: TABLE.addr - TABLE.off });
}

describe('split driver', () => {
  beforeEach(() => fresh(true));

  test('the parts of a ring keep their alignments and do not overlap', () => {
    for (let size = 1; size <= 32768; size *= 2) {
      const { descOff, availOff, usedOff, bytes } = splitLayout(size, 4096);
      assert.equal(descOff % 16, 0);
      assert.ok(availOff % 2 === 0 && availOff >= descOff + 16 * size);
      assert.ok(usedOff % 4 === 0 && usedOff >= availOff + 6 + 2 * size);
      assert.ok(4096 + bytes >= usedOff + 6 + 8 * size);
    }
  });

  test('sizes that are no power of two up to 32768 are refused', () => {
    for (const size of [0, 3, 257, 65536, -8]) {
      assert.throws(() => new SplitDriver(views, place, size, true), RangeError);
    }
  });

  test('the device sees a chain only after publish, with its addresses, lengths and directions', () => {
    const chain = [buffer(1), { ...buffer(2), addr: 2 ** 52 + 4096 }, buffer(3, true)];
    const head = driver.add(chain);
    assert.equal(device.take(), undefined);
    driver.publish();
    const segments = chain.map(({ addr, len, write }) => ({ addr, len, write: write === true }));
    assert.deepEqual(device.take(), { head, segments });
    assert.equal(device.take(), undefined);
  });

  test('an indirect table takes one descriptor, however long the chain', () => {
    const chain = Array.from({ length: SIZE }, (_, n) => buffer(n, n > 3));
    const head = driver.addIndirect(chain, TABLE);
    driver.publish();
    assert.equal(driver.nFree, SIZE - 1);
    assert.deepEqual(device.take()?.segments.length, SIZE);
    device.use(head, 5);
    assert.equal(driver.reap(), head);
    assert.equal(driver.nFree, SIZE);
    assert.equal(driver.addIndirect([...chain, buffer(9)], TABLE), -1, 'no chain is longer than the ring (§2.7.5.3.1)');
  });

  test('a full ring takes no more, and takes again what was reaped', () => {
    assert.equal(driver.add([]), -1);
    assert.equal(driver.add(Array.from({ length: SIZE + 1 }, (_, n) => buffer(n))), -1);
    const a = driver.add([buffer(0), buffer(1), buffer(2)]);
    const b = driver.add(Array.from({ length: SIZE - 3 }, (_, n) => buffer(n)));
    assert.ok(a >= 0 && b >= 0);
    assert.equal(driver.add([buffer(9)]), -1);
    driver.publish();
    device.use(b, 0); // devices may give buffers back in any order
    assert.equal(driver.reap(), b);
    assert.equal(driver.nFree, SIZE - 3);
    assert.notEqual(driver.add([buffer(9)]), -1);
  });

  test('reap gives used chains in the used order with the bytes written', () => {
    const heads = [0, 1, 2].map((n) => driver.add([buffer(n, true)]));
    driver.publish();
    assert.equal(driver.reap(), -1);
    device.use(heads[2], 7);
    device.use(heads[0], 0xffff_ffff);
    assert.ok(driver.ready);
    assert.equal(driver.reap(), heads[2]);
    assert.equal(driver.usedLen, 7);
    assert.equal(driver.reap(), heads[0]);
    assert.equal(driver.usedLen, 0xffff_ffff);
    assert.equal(driver.reap(), -1);
    assert.ok(!driver.ready);
  });

  for (const start of [0, 65530]) {
    test(`200000 buffers pass a ring of 8 that begins at index ${start}, each once and in order`, () => {
      fresh(false, start);
      let added = 0;
      let reaped = 0;
      while (reaped < 200_000) {
        while (driver.add([buffer(added % 1000)]) >= 0) added++;
        driver.publish();
        for (let n = 0; n < 5; n++) {
          const { head, segments } = device.take() ?? assert.fail('nothing available');
          device.use(head, segments[0].len);
        }
        for (; driver.reap() >= 0; reaped++) assert.equal(driver.usedLen, 100 + (reaped % 1000));
      }
    });
  }

  test('a device that uses what was not offered breaks the ring, and the ring says how', () => {
    const head = driver.add([buffer(0)]);
    driver.publish();
    for (const bad of [SIZE, 0xffff_ffff, head + 1]) {
      fresh(true);
      assert.equal(driver.add([buffer(0), buffer(1)]), head);
      driver.add([buffer(2)]);
      driver.publish();
      device.use(bad, 0);
      assert.equal(driver.reap(), -1);
      assert.match(driver.broken ?? '', /no buffer on offer has for a head/);
      assert.equal(driver.reap(), -1);
    }
    fresh(true);
    driver.add([buffer(0)]);
    driver.publish();
    device.forceUsedIdx(2);
    assert.equal(driver.reap(), -1);
    assert.match(driver.broken ?? '', /used index went from 0 to 2/);
    driver.reset();
    assert.equal(driver.broken, undefined);
  });
});

describe('split driver: devices that keep the order', () => {
  beforeEach(() => {
    driver = new SplitDriver(views, place, SIZE, true, true);
    device = new NaiveSplitDevice(views, place, SIZE, { base: TABLE.addr - TABLE.off });
  });

  test('descriptors are taken in the order of the table, round and round', () => {
    let next = 0;
    for (let lap = 0; lap < 20; lap++) {
      for (const n of [3, 1, 2]) {
        const head = driver.add(Array.from({ length: n }, (_, i) => buffer(i)));
        assert.equal(head, next);
        driver.publish();
        for (let i = 0; i + 1 < n; i++) {
          const link = views.dv.getUint16(driver.descriptorOff((head + i) % SIZE) + 14, true);
          assert.equal(link, (head + i + 1) % SIZE);
        }
        next = (next + n) % SIZE;
        device.use(device.take()?.head ?? assert.fail('nothing is available'), 0);
        assert.equal(driver.reap(), head);
      }
    }
  });

  test('one used entry gives back all buffers up to the one that it names, and the index tells how many', () => {
    const ids = [
      driver.add([buffer(0, true), buffer(1, true)]),
      driver.add([buffer(2, true)]),
      driver.add([buffer(3, true)]),
    ];
    driver.publish();
    device.use(ids[1], 9);
    assert.equal(driver.reap(), -1, 'the index has not come to the one named');
    assert.match(driver.broken ?? '', /used 2, number 2 in order, and the used index tells of 1/);
    driver.reset();
    device = new NaiveSplitDevice(views, place, SIZE);
    for (const n of [0, 1, 2]) driver.add([buffer(n, true)]);
    driver.publish();
    device.used = 1;
    device.use(0xdead, 0); // entry 1 means nothing
    views.dv.setUint32(place.usedOff + 4, 1, true);
    views.dv.setUint32(place.usedOff + 8, 9, true);
    assert.ok(driver.ready);
    assert.equal(driver.vringBase, 2);
    assert.equal(driver.reap(), 0);
    assert.equal(driver.usedLen, 100, 'a buffer that is not named was filled');
    assert.ok(driver.ready);
    assert.equal(driver.reap(), 1);
    assert.equal(driver.usedLen, 9);
    assert.ok(!driver.ready);
    device.use(2, 5);
    assert.equal(driver.reap(), 2);
    assert.equal(driver.usedLen, 5);
    assert.equal(driver.nFree, SIZE);
  });

  test('200000 buffers pass in batches of any size, each once and in order', () => {
    let added = 0;
    let reaped = 0;
    for (let round = 0; reaped < 200_000; round++) {
      while (driver.add([buffer(added % 1000, true)]) >= 0) added++;
      driver.publish();
      const n = 1 + (round % SIZE);
      const heads = Array.from({ length: n }, () => device.take()?.head ?? assert.fail('nothing is available'));
      const entry = place.usedOff + 4 + 8 * (device.used % SIZE);
      views.dv.setUint32(entry, heads[n - 1], true);
      views.dv.setUint32(entry + 4, 7, true);
      device.used = (device.used + n) % 65536;
      device.forceUsedIdx(device.used);
      for (let i = 0; i < n; i++, reaped++) {
        assert.equal(driver.reap(), heads[i]);
        assert.equal(driver.usedLen, i + 1 < n ? 100 + (reaped % 1000) : 7);
      }
      assert.equal(driver.reap(), -1);
    }
  });
});

describe('split driver: kicks and calls', () => {
  test('needEvent asks whether the index passed the event, across the wrap', () => {
    assert.ok(needEvent(5, 6, 5));
    assert.ok(!needEvent(5, 5, 4));
    assert.ok(!needEvent(5, 7, 6));
    assert.ok(needEvent(65535, 0, 65535));
    assert.ok(needEvent(65535, 3, 65530));
    assert.ok(!needEvent(3, 3, 65530));
    assert.ok(needEvent(0, 1, 65535));
  });

  test('with EVENT_IDX a kick is due when avail_event is passed, the flag notwithstanding', () => {
    fresh(true, 65534);
    device.flags = 1;
    const publishOne = () => {
      driver.add([buffer(0)]);
      return driver.publish();
    };
    device.availEvent = 65535;
    assert.ok(!publishOne());
    assert.ok(publishOne());
    assert.ok(!publishOne(), 'only once');
    device.availEvent = 2;
    assert.ok(!publishOne());
    assert.ok(publishOne());
    assert.ok(!driver.publish(), 'nothing new, no kick');
  });

  test('without EVENT_IDX the device flag decides', () => {
    fresh(false);
    device.availEvent = 7;
    driver.add([buffer(0)]);
    assert.ok(driver.publish());
    device.flags = 1;
    driver.add([buffer(0)]);
    assert.ok(!driver.publish());
  });

  test('with EVENT_IDX calls are asked for by used_event, and the flags stay 0', () => {
    fresh(true, 65535);
    assert.equal(device.usedEvent, 65535, 'a fresh ring asks for the first');
    const [a, b] = [driver.add([buffer(0)]), driver.add([buffer(1)])];
    driver.publish();
    driver.disableCalls();
    assert.equal(device.usedEvent, 65534);
    device.use(a, 0);
    assert.ok(!driver.enableCalls(), 'something is there already: no sleep');
    assert.equal(driver.reap(), a);
    assert.ok(driver.enableCalls());
    assert.equal(device.usedEvent, 0);
    driver.enableCalls(3);
    assert.equal(device.usedEvent, 3);
    device.use(b, 0);
    assert.ok(driver.ready);
    assert.equal(device.availFlags, 0);
  });

  test('without EVENT_IDX calls are asked for by the flag', () => {
    fresh(false);
    assert.equal(device.availFlags, 0);
    driver.disableCalls();
    assert.equal(device.availFlags, 1);
    assert.ok(driver.enableCalls());
    assert.equal(device.availFlags, 0);
  });

  test('with calls off, no call comes round with the index', () => {
    fresh(true);
    driver.disableCalls();
    for (let n = 0; n < 200_000; n++) {
      const head = driver.add([buffer(0)]);
      driver.publish();
      assert.notEqual(device.usedEvent, device.used, 'a device would call for this entry');
      device.use(head, 0);
      assert.equal(driver.reap(), head);
    }
  });
});
