/** Kicks and calls: every case of a packed ring's arithmetic on small rings, every interleaving, and both sides asleep in turns. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { openWindow, WindowPool } from '../../src/mem/window.ts';
import type { DriverRing } from '../../src/virtqueue/driver-ring.ts';
import { PackedDriver, packedNeedEvent, packedRingLayout } from '../../src/virtqueue/packed-driver.ts';
import { SplitDriver, splitLayout } from '../../src/virtqueue/split-driver.ts';
import { interleave } from '../kit/interleave.ts';
import { NaivePackedDevice, type SeenBuffer } from '../property/naive-packed-device.ts';
import { NaiveSplitDevice, passes } from '../property/naive-split-device.ts';

const RING_OFF = 65536;
const pool = new WindowPool('wasm');
const window = pool.acquire();
const views = openWindow(window);
const BUFFER = { addr: 0x1000, len: 64 };
const INDIRECT = { addr: 2 ** 20, off: 2 ** 20 };

function ring(size: number, eventIdx: boolean, start: { at: number; wrap: 0 | 1 } = { at: 0, wrap: 1 }) {
  const place = packedRingLayout(size, RING_OFF);
  const driver = new PackedDriver(views, place, size, eventIdx);
  driver.reset(start.at | (start.wrap << 15));
  return { driver, device: new NaivePackedDevice(views, place, size, { start }) };
}

/** Place and wrap counter of a descriptor that is the `n`th since lap 0, whose wrap counter is 0. */
const cursor = (n: number, size: number) => ({ at: n % size, wrap: (Math.floor(n / size) % 2) as 0 | 1 });

describe('packed driver: kicks', () => {
  test('a kick is due exactly when the batch passes the event: every event, batch and place of rings of 1 to 9', () => {
    let cases = 0;
    for (let size = 1; size <= 9; size++) {
      for (let next = 2 * size; next < 4 * size; next++) {
        for (let n = 1; n <= size; n++) {
          for (let event = next - size; event < next + size; event++) {
            const { at, wrap } = cursor(event, size);
            const now = cursor(next, size);
            const due = event >= next - n && event < next;
            const message = `ring of ${size}: ${n} added up to ${next}, event ${event}`;
            assert.equal(packedNeedEvent(at | (wrap << 15), now.at, now.wrap === 1, n, size), due, message);
            cases++;
          }
        }
      }
    }
    assert.equal(cases, 2 * 2 * [1, 2, 3, 4, 5, 6, 7, 8, 9].reduce((sum, size) => sum + size ** 3, 0));
  });

  test('the driver asks so with the same answers: every place, batch and event of rings of 1 to 4', () => {
    for (let size = 1; size <= 4; size++) {
      for (let from = 0; from < 2 * size; from++) {
        for (let n = 1; n <= size; n++) {
          for (let event = from + n - size; event < from + n + size; event++) {
            const { driver, device } = ring(size, true, cursor(from, size));
            device.wantKicks(2, cursor(event + 2 * size, size));
            for (let i = 0; i < n; i++) driver.add([BUFFER]);
            assert.equal(
              driver.publish(),
              event >= from && event < from + n,
              `ring of ${size}: ${from} + ${n}, ${event}`,
            );
            assert.ok(!driver.publish(), 'nothing new, no kick');
          }
        }
      }
    }
  });

  test('the flags ENABLE and DISABLE decide, and what is reserved or not negotiated asks for kicks', () => {
    for (const eventIdx of [false, true]) {
      const { driver, device } = ring(8, eventIdx);
      const publishOne = () => {
        driver.add([BUFFER]);
        return driver.publish();
      };
      assert.ok(publishOne(), 'a fresh ring wants kicks');
      device.wantKicks(1);
      assert.ok(!publishOne());
      device.wantKicks(0);
      assert.ok(publishOne());
      device.wantKicks(3);
      assert.ok(publishOne());
      device.wantKicks(2, { at: 7, wrap: 0 });
      assert.equal(publishOne(), !eventIdx);
    }
  });
});

describe('packed driver: calls', () => {
  test('without EVENT_IDX they are asked for by the flags', () => {
    const { driver, device } = ring(3, false);
    assert.deepEqual(device.callsWanted, { flags: 0, at: 0, wrap: 0 }, 'a fresh ring asks');
    driver.disableCalls();
    assert.equal(device.callsWanted.flags, 1);
    assert.ok(driver.enableCalls());
    assert.equal(device.callsWanted.flags, 0);
  });

  test('with EVENT_IDX they are asked for by descriptor, and none is due while they are off', () => {
    const { driver, device } = ring(3, true, { at: 2, wrap: 0 });
    assert.deepEqual(device.callsWanted, { flags: 2, at: 2, wrap: 0 });
    driver.disableCalls();
    assert.equal(device.callsWanted.flags, 1);
    const a = driver.add([BUFFER]);
    driver.add([BUFFER, BUFFER]);
    driver.publish();
    const [first, second] = [device.take(), device.take()] as [SeenBuffer, SeenBuffer];
    device.use(first, 0);
    assert.ok(!driver.enableCalls(), 'something is there already: no sleep');
    assert.equal(driver.reap(), a);
    assert.ok(driver.enableCalls());
    assert.deepEqual(device.callsWanted, { flags: 2, at: 0, wrap: 1 });
    assert.ok(device.callDue(device.used, second.descriptors));
    driver.enableCalls(1);
    assert.deepEqual(device.callsWanted, { flags: 2, at: 1, wrap: 1 });
    assert.ok(device.callDue(device.used, second.descriptors), 'the event lies within the list');
    driver.enableCalls(2);
    assert.deepEqual(device.callsWanted, { flags: 2, at: 2, wrap: 1 });
    assert.ok(!device.callDue(device.used, second.descriptors));
    driver.enableCalls(3);
    assert.deepEqual(device.callsWanted, { flags: 2, at: 0, wrap: 0 });
  });
});

/** A ring and its device, of either format, as the interleavings need them. */
const formats: Record<string, (eventIdx: boolean) => Parties> = {
  packed: (eventIdx) => {
    const { driver, device } = ring(4, eventIdx);
    device.wantKicks(1);
    return {
      driver,
      wish: () => device.wantKicks(eventIdx ? 2 : 0, device.avail),
      take: () => device.take() !== undefined,
      use: () => device.use(device.take() ?? assert.fail('nothing is available'), 0),
      callDue: () => device.callDue({ at: 0, wrap: 1 }, 1),
    };
  },
  split: (eventIdx) => {
    const place = splitLayout(4, RING_OFF);
    const driver = new SplitDriver(views, place, 4, eventIdx);
    const device = new NaiveSplitDevice(views, place, 4);
    device.flags = 1;
    device.availEvent = 65535;
    return {
      driver,
      wish: () => {
        device.flags = 0;
        device.availEvent = device.avail;
      },
      take: () => device.take() !== undefined,
      use: () => device.use(device.take()?.head ?? assert.fail('nothing is available'), 0),
      callDue: () => (eventIdx ? passes(device.usedEvent, 0, 1) : device.availFlags === 0),
    };
  },
};

interface Parties {
  readonly driver: DriverRing;
  /** the device asks for the next kick, looks for a buffer, uses one, and looks whether it is to call for that one */
  wish(): void;
  take(): boolean;
  use(): void;
  callDue(): boolean;
}

for (const [format, make] of Object.entries(formats)) {
  for (const eventIdx of [false, true]) {
    describe(`${format} driver${eventIdx ? ' with EVENT_IDX' : ''}: between any two accesses`, () => {
      test('a device that asks for kicks and looks once more is kicked, or has found the buffer', () => {
        const ways = interleave(() => {
          const { driver, wish, take } = make(eventIdx);
          driver.add([BUFFER]);
          let kicked = false;
          let found = false;
          return {
            body: () => {
              kicked = driver.publish();
            },
            first: wish,
            second: () => {
              found = take();
            },
            check: (when) => assert.ok(kicked || found, `both go to sleep: ${when}`),
          };
        });
        assert.equal(ways, 6, 'two accesses, and three points for two steps');
      });

      test('a driver that asks for calls and looks once more is called, or has found the buffer', () => {
        const ways = interleave(() => {
          const { driver, use, callDue } = make(eventIdx);
          driver.add([BUFFER]);
          driver.publish();
          driver.disableCalls();
          let asleep = false;
          let called = false;
          return {
            body: () => {
              asleep = driver.enableCalls();
            },
            first: use,
            second: () => {
              called = callDue();
            },
            check: (when) => assert.ok(called || !asleep, `both go to sleep: ${when}`),
          };
        });
        assert.ok(ways >= 6);
      });
    });
  }
}

describe('packed driver: both sides asleep in turns', () => {
  const ROUNDS = 40_000;
  for (const [size, eventIdx] of [
    [1, true],
    [3, true],
    [3, false],
    [256, true],
  ] as const) {
    test(`no kick and no call is lost: ring of ${size}${eventIdx ? ' with EVENT_IDX' : ''}`, {
      timeout: 60_000,
    }, async () => {
      const words = new Int32Array(new SharedArrayBuffer(8)); // kicks, calls
      const [KICKS, CALLS] = [0, 1];
      const { driver } = ring(size, eventIdx);
      const device = new Worker(new URL('../kit/packed-device-worker.ts', import.meta.url), {
        workerData: { window, place: driver.place, size, eventIdx, words, rounds: ROUNDS },
      });
      const ended = new Promise<number>((resolve, reject) => {
        device.once('error', reject);
        device.once('exit', resolve);
      });
      let added = 0;
      let reaped = 0;
      while (reaped < ROUNDS) {
        const burst = 1 + ((added * 7) % 5);
        for (let i = 0; i < burst && added < ROUNDS; i++) {
          const id = added % 3 === 0 && size > 2 ? driver.addIndirect([BUFFER], INDIRECT) : driver.add([BUFFER]);
          if (id < 0) break;
          added++;
        }
        if (driver.publish()) {
          Atomics.add(words, KICKS, 1);
          Atomics.notify(words, KICKS);
        }
        while (driver.reap() >= 0) reaped++;
        assert.equal(driver.broken, undefined);
        if (reaped === ROUNDS || (added < ROUNDS && driver.nFree > 0)) continue;
        const calls = Atomics.load(words, CALLS);
        if (driver.enableCalls() && Atomics.wait(words, CALLS, calls, 10_000) === 'timed-out')
          assert.fail(`asleep for 10 s with ${added} added and ${reaped} reaped`);
        driver.disableCalls();
      }
      assert.equal(await ended, 0);
    });
  }
});
