import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import fc from 'fast-check';
import { PollPace } from '../../src/lcore/poll-pace.ts';
import { counterBlock, LCORE_SLOTS, readCounters } from '../../src/stats/counters.ts';

const ADAPTIVE = { mode: 'adaptive', spinUs: 200, spinShare: 0.5 } as const;
const LOOK_MS = 2 ** -8;

let counters: Float64Array;
let now: number;
beforeEach(() => {
  counters = new Float64Array(counterBlock(LCORE_SLOTS));
  now = 1000;
});

const start = (config: ConstructorParameters<typeof PollPace>[0] = ADAPTIVE) => new PollPace(config, counters, now);

function work(pace: PollPace, ms: number): void {
  now += ms;
  pace.worked(now);
}

/** Looks on, for `ms` at most. @returns for how long until it was time to sleep, or undefined */
function lookOn(pace: PollPace, ms: number): number | undefined {
  const from = now;
  while (now - from < ms) {
    now += LOOK_MS;
    if (pace.lookedInVain(now)) return now - from;
  }
  return undefined;
}

function sleep(pace: PollPace, ms: number): void {
  now += ms;
  pace.slept(now);
}

test('pace: after much work an lcore looks on for as long as it may, after little for a share of that', () => {
  const pace = start();
  work(pace, 100);
  const long = lookOn(pace, 10) ?? Number.NaN;
  assert.ok(long >= 0.2 && long < 0.2 + 2 * LOOK_MS, `${long}`);
  sleep(pace, 5);
  work(pace, 0.1);
  const short = lookOn(pace, 10) ?? Number.NaN;
  assert.ok(short >= 0.05 && short < 0.05 + 2 * LOOK_MS, `${short}`);
});

test('pace: after a brief sleep it looks on for as long as a sleep costs, until that was in vain', () => {
  const pace = start();
  assert.equal(lookOn(pace, 1), LOOK_MS);
  sleep(pace, 0.02);
  work(pace, 0.001);
  assert.equal(lookOn(pace, 0.03), undefined, 'the next packets come within the time of a sleep');
  work(pace, 0.001);
  const vain = lookOn(pace, 1) ?? Number.NaN;
  assert.ok(vain >= 0.05 && vain < 0.06, `${vain}`);
  sleep(pace, 1);
  work(pace, 0.001);
  assert.equal(lookOn(pace, 1), LOOK_MS);
});

test('pace: a busy lcore never sleeps, and one without patience at once', () => {
  const busy = start({ ...ADAPTIVE, mode: 'busy' });
  assert.equal(lookOn(busy, 100), undefined);
  const hasty = start({ ...ADAPTIVE, spinUs: 0 });
  work(hasty, 100);
  assert.equal(lookOn(hasty, 1), LOOK_MS);
  sleep(hasty, 0.001);
  assert.equal(lookOn(hasty, 1), LOOK_MS);
});

test('pace: all time is accounted for, and looking in vain stays within its share of work and of sleeps', () => {
  const step = fc.tuple(fc.constantFrom('work', 'gap'), fc.double({ min: 0.001, max: 2, noNaN: true }));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      counters.fill(0);
      const from = now;
      const pace = start();
      let sleeps = 0;
      for (const [what, ms] of steps) {
        if (what === 'work') {
          work(pace, ms);
          continue;
        }
        const left = ms - (lookOn(pace, ms) ?? ms);
        if (left <= 0) continue;
        sleeps++;
        sleep(pace, left);
      }
      const { busy_us, idle_us, sleep_us } = readCounters(LCORE_SLOTS, counters);
      assert.ok(Math.abs(busy_us + idle_us + sleep_us - 1000 * (now - from)) < 1);
      const looks = steps.length + sleeps;
      assert.ok(idle_us <= 0.5 * busy_us + 50 * sleeps + 1000 * LOOK_MS * looks + 50, `${idle_us} of ${busy_us}`);
    }),
  );
});
