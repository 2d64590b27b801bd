/** The pure parts of the benchmarks at a rate: what is due when, how a rate is looked for, and what a trial is worth. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { bestOf, searchRate, type Verdict } from '../../bench/rate-search.ts';
import { TokenBucket } from '../../bench/token-bucket.ts';
import { type PacedResult, verdictOf } from '../../bench/trials.ts';

/** ns */
const MS = 1e6;

describe('token bucket', () => {
  test('frames are due at the rate, and what is due is all there is', () => {
    const bucket = new TokenBucket(1000, 8);
    assert.equal(bucket.advance(0.5 * MS), 0);
    assert.equal(bucket.advance(0.5 * MS), 1);
    bucket.take(1);
    assert.equal(bucket.advance(3 * MS), 3);
    bucket.take(3);
    assert.deepEqual([bucket.due, bucket.missed, bucket.refused], [4, 0, 0]);
  });

  test('who sends comes too late: what the bucket does not hold is missed', () => {
    const bucket = new TokenBucket(1000, 8);
    assert.equal(bucket.advance(20 * MS), 8);
    assert.deepEqual([bucket.due, bucket.missed, bucket.refused, bucket.stalls], [20, 12, 0, 1]);
  });

  test('what waited for room is refused, the rest is missed', () => {
    const bucket = new TokenBucket(1000, 8);
    bucket.advance(6 * MS);
    assert.equal(bucket.advance(5 * MS), 8);
    assert.deepEqual([bucket.missed, bucket.refused], [0, 3]);
    bucket.advance(20 * MS);
    assert.deepEqual([bucket.missed, bucket.refused], [12, 11]);
    bucket.reset();
    assert.deepEqual([bucket.due, bucket.missed, bucket.refused], [0, 0, 0]);
    assert.equal(bucket.advance(0), 8);
  });

  test('no bucket is without rate or depth', () => {
    for (const [rate, depth] of [
      [0, 8],
      [Number.NaN, 8],
      [1000, 0],
    ])
      assert.throws(() => new TokenBucket(rate, depth), RangeError);
  });

  test('each frame that was due is sent, missed, refused, or still in the bucket', () => {
    const turn = fc.record({ ms: fc.double({ min: 0, max: 50, noNaN: true }), room: fc.nat(70) });
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1e6 }),
        fc.integer({ min: 1, max: 64 }),
        fc.array(turn),
        (rate, depth, turns) => {
          const bucket = new TokenBucket(rate, depth);
          let sent = 0;
          let left = 0;
          for (const { ms, room } of turns) {
            const due = bucket.advance(Math.round(ms * MS));
            assert.ok(due <= depth);
            const n = Math.min(due, room);
            bucket.take(n);
            sent += n;
            left = due - n;
          }
          const rest = bucket.due - sent - bucket.missed - bucket.refused;
          assert.ok(rest > left - 1e-3 && rest < left + 1 + 1e-3, `${rest} of ${bucket.due}, ${left} known`);
          if (turns.every(({ room }) => room >= depth)) assert.ok(bucket.refused === 0);
        },
      ),
    );
  });
});

describe('search of a throughput', () => {
  const limits = { top: 1024, steps: 20, percent: 1 };
  const under =
    (limit: number, above: Verdict = 'loss') =>
    async (rate: number) =>
      rate <= limit ? 'pass' : above;

  test('the top passes: it is the first and only trial', async () => {
    const { rate, bound, steps } = await searchRate(limits, under(2000));
    assert.deepEqual([rate, bound, steps.length], [1024, 'top', 1]);
  });

  test('it is found as finely as was asked for, from below', async () => {
    await fc.assert(
      fc.asyncProperty(fc.double({ min: 16, max: 1023, noNaN: true }), async (limit) => {
        const { rate, bound, steps } = await searchRate(limits, under(limit));
        assert.equal(bound, 'loss');
        assert.ok(rate <= limit && rate >= limit * 0.97, `${rate} for ${limit}`);
        assert.ok(steps.length <= limits.steps);
        assert.equal(rate, Math.max(...steps.filter(({ verdict }) => verdict === 'pass').map((step) => step.rate)));
      }),
    );
  });

  test('it ends after so many steps, with nothing if nothing passed', async () => {
    const { rate, bound, steps } = await searchRate({ ...limits, steps: 4 }, under(0));
    assert.deepEqual([rate, bound, steps.map((step) => step.rate)], [0, 'loss', [1024, 512, 256, 128]]);
  });

  test('what is unclear is not passed, and is told', async () => {
    const { rate, bound } = await searchRate(limits, under(500, 'unclear'));
    assert.equal(bound, 'unclear');
    assert.ok(rate <= 500 && rate > 480);
  });

  test('a trial is repeated until one passes, and not more often than said', async () => {
    const given = (verdicts: readonly Verdict[]) => {
      let n = 0;
      return { trial: async () => verdicts[n++] as Verdict, count: () => n };
    };
    for (const [tries, verdicts, result, trials] of [
      [3, ['loss', 'pass', 'loss'], 'pass', 2],
      [2, ['loss', 'unclear', 'pass'], 'loss', 2],
      [3, ['unclear', 'unclear', 'unclear'], 'unclear', 3],
    ] as const) {
      const { trial, count } = given(verdicts);
      assert.equal(await bestOf(tries, trial), result);
      assert.equal(count(), trials);
    }
  });
});

describe('what a trial says', () => {
  const nothing = { kept: true, lossPercent: 0, lost: 0, refused: 0, missed: 0, stalls: 0, ring: 256 };
  const says = (figures: Partial<PacedResult>, tolerate = 0) =>
    verdictOf({ ...nothing, ...figures } as PacedResult, tolerate);

  test('nothing is lost, or no more than is tolerated', () => {
    assert.equal(says({}), 'pass');
    assert.equal(says({ missed: 3, stalls: 1 }), 'pass');
    assert.equal(says({ lost: 5, lossPercent: 0.01 }), 'loss');
    assert.equal(says({ refused: 5, lossPercent: 0.01 }), 'loss');
    assert.equal(says({ lost: 5, lossPercent: 0.01 }, 0.02), 'pass');
  });

  test('a generator that was not there may have cost a ring of frames, each time', () => {
    assert.equal(says({ lost: 512, lossPercent: 1, stalls: 2 }), 'unclear');
    assert.equal(says({ lost: 512, refused: 1, lossPercent: 1, stalls: 2 }), 'loss');
    assert.equal(says({ kept: false }), 'unclear');
  });
});
