import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { HISTOGRAM_BYTES, LatencyHistogram } from '../../src/testpmd/traffic/latency-histogram.ts';

const times = fc.oneof(fc.nat(300), fc.nat(100_000), fc.nat(2 ** 31 - 1));

test('latency histogram: percentiles are those of all times, at most one percent above', () => {
  fc.assert(
    fc.property(fc.array(times, { minLength: 1, maxLength: 500 }), (all) => {
      const histogram = new LatencyHistogram();
      for (const ns of all) histogram.record(ns);
      const sorted = all.toSorted((a, b) => a - b);
      for (const percent of [0, 1, 50, 90, 99, 99.9, 100]) {
        const exact = sorted[Math.max(0, Math.ceil((percent * sorted.length) / 100) - 1)];
        const said = histogram.percentile(percent);
        assert.ok(said >= exact && said <= exact * 1.01, `p${percent} is ${exact}, said ${said}`);
      }
      assert.deepEqual([histogram.count, histogram.min, histogram.max], [all.length, sorted[0], sorted.at(-1)]);
      const sum = all.reduce((total, ns) => total + ns, 0);
      assert.ok(Math.abs(histogram.mean * all.length - sum) <= sum * 1e-9);
      assert.equal(histogram.percentile(100), histogram.max);
    }),
    { numRuns: 500 },
  );
});

test('latency histogram: every time is in the row that it belongs to', () => {
  fc.assert(
    fc.property(fc.array(times, { maxLength: 100 }), (all) => {
      const histogram = new LatencyHistogram();
      for (const ns of all) histogram.record(ns);
      const rows = histogram.rows();
      for (const { from, to, count } of rows) assert.equal(count, all.filter((ns) => ns >= from && ns < to).length);
      assert.equal(
        rows.reduce((sum, { count }) => sum + count, 0),
        all.length,
      );
      for (let i = 1; i < rows.length; i++) assert.equal(rows[i].from, rows[i - 1].to);
    }),
    { numRuns: 300 },
  );
});

test('latency histogram: times beyond its range, and below zero', () => {
  const shared = new SharedArrayBuffer(HISTOGRAM_BYTES);
  const histogram = new LatencyHistogram(shared);
  assert.deepEqual([histogram.percentile(50), histogram.mean, histogram.rows()], [0, 0, []]);
  histogram.record(2 ** 31 - 1);
  histogram.record(2 ** 31);
  histogram.record(2 ** 40);
  histogram.record(-5);
  const reader = new LatencyHistogram(shared);
  assert.deepEqual([reader.count, reader.min, reader.max, reader.impossible], [3, 2 ** 31 - 1, 2 ** 40, 1]);
  assert.equal(reader.percentile(99), 2 ** 40);
  assert.equal(reader.percentile(33), 2 ** 31 - 1);
  assert.deepEqual(
    reader.rows().map(({ count }) => count),
    [1, 2],
  );
  histogram.clear();
  assert.deepEqual([reader.count, reader.max, reader.rows()], [0, 0, []]);
});
