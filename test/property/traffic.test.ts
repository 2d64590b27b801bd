import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { WINDOW } from '../../src/testpmd/traffic/flow-verifier.ts';
import { CLEAN, TrafficBench } from '../kit/traffic.ts';

/** The rules, by sets and sorting: what a verifier that forgets nothing within its window has to say of numbers of one flow. */
function naive(numbers: readonly number[]) {
  const result = { received: 0, lost: 0, reordered: 0, duplicated: 0, late: 0 };
  const came = new Set<number>();
  let highest = -1;
  for (const number of numbers) {
    if (number > highest) highest = number;
    else if (number <= highest - WINDOW) {
      result.late++;
      continue;
    } else if (came.has(number)) {
      result.duplicated++;
      continue;
    } else result.reordered++;
    came.add(number);
    result.received++;
  }
  result.lost = highest + 1 - came.size;
  return result;
}

const FRAMES = 3 * WINDOW;

test('traffic: the verifier counts as sets would, for any loss, order and repetition', () => {
  const bench = new TrafficBench({ flows: 2, sizes: { list: [60] } });
  const frames = bench.make(2 * FRAMES);
  bench.close();
  // steps ahead and back from where the flow is, mostly small ones
  const step = fc.oneof(
    { weight: 6, arbitrary: fc.constant(1) },
    { weight: 2, arbitrary: fc.integer({ min: -8, max: 8 }) },
    { weight: 1, arbitrary: fc.integer({ min: -WINDOW - 40, max: WINDOW + 40 }) },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
      const numbers: number[] = [];
      let at = -1;
      for (const by of steps) {
        at = Math.min(FRAMES - 1, Math.max(0, at + by));
        numbers.push(at);
      }
      const other = new TrafficBench({ flows: 2, sizes: { list: [60] } });
      // flow 1 comes in between, whole and in order
      other.verify(numbers.flatMap((number, i) => [frames[2 * number], ...(i < FRAMES ? [frames[2 * i + 1]] : [])]));
      const { counters } = other;
      const got = naive(numbers);
      for (const name of Object.keys(got) as (keyof typeof got)[]) assert.equal(counters.of(0, name), got[name], name);
      const { received, lost, reordered, duplicated, late } = other.totals;
      const clean = Math.min(numbers.length, FRAMES);
      assert.deepEqual(
        { ...CLEAN, received, lost, reordered, duplicated, late },
        { ...CLEAN, ...got, received: got.received + clean },
      );
      other.close();
    }),
    { numRuns: 150 },
  );
});

test('traffic: any bytes are looked at without harm, and nothing that is not ours counts as received', () => {
  const bench = new TrafficBench({ flows: 8, sizes: { list: [64] } });
  const [ours] = bench.make(1);
  const frame = fc.oneof(
    fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
    // ours, with bytes changed somewhere and cut off anywhere
    fc
      .tuple(fc.array(fc.tuple(fc.nat(63), fc.nat(255)), { minLength: 1, maxLength: 4 }), fc.nat(64))
      .map(([changes, len]) => {
        const bytes = Buffer.from(ours);
        for (const [at, value] of changes) bytes[at] = value;
        return bytes.subarray(0, len);
      }),
  );
  let seen = 0;
  fc.assert(
    fc.property(
      fc.array(frame, { minLength: 1, maxLength: 32 }),
      fc.integer({ min: 20, max: 100 }),
      (frames, piece) => {
        bench.verify(frames, piece);
        seen += frames.length;
        const { received, duplicated, late, damaged, foreign, unknown } = bench.totals;
        assert.equal(received + duplicated + late + damaged + foreign + unknown, seen);
      },
    ),
    { numRuns: 300 },
  );
  bench.close();
});
