import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LatencyHistogram } from '../../src/testpmd/traffic/latency-histogram.ts';
import { latencyReport, shortTime, trafficReport } from '../../src/testpmd/traffic/traffic-report.ts';
import { frame, mac } from '../kit/frames.ts';
import { TrafficBench } from '../kit/traffic.ts';

test('traffic report: times are short', () => {
  const times = [0, 7, 999, 1000, 12_345, 123_456, 1e6, 45.6e6, 1e9, 12e9];
  assert.deepEqual(times.map(shortTime), [
    ...['0 ns', '7 ns', '999 ns', '1.00 us', '12.3 us', '123 us', '1.00 ms', '45.6 ms', '1.00 s', '12.0 s'],
  ]);
});

test('traffic report: figures of latency and a bar for each octave', () => {
  const histogram = new LatencyHistogram();
  assert.deepEqual(latencyReport(histogram), []);
  for (let i = 0; i < 98; i++) histogram.record(1500);
  histogram.record(3000);
  histogram.record(9000);
  histogram.record(-1);
  assert.deepEqual(latencyReport(histogram), [
    '  1 packets seem to come from the future',
    'latency: min 1.50 us, mean 1.59 us, p50 1.50 us, p99 3.01 us, p99.9 9.00 us, max 9.00 us',
    `   1.02 us -  2.05 us ${'#'.repeat(40)} 98`,
    `   2.05 us -  4.10 us #${' '.repeat(39)} 1`,
    `   4.10 us -  8.19 us ${' '.repeat(40)} 0`,
    `   8.19 us -  16.4 us #${' '.repeat(39)} 1`,
  ]);
});

test('traffic report: totals, faulty flows, and what is not ours', () => {
  const bench = new TrafficBench({ flows: 20 });
  const frames = bench.make(100);
  assert.deepEqual(trafficReport(bench.counters), [
    'verified: 0 packets, 0 bytes',
    '  lost 0, out of order 0, duplicated 0, too late to tell 0, damaged 0',
  ]);
  bench.verify([...frames.filter((_, i) => i !== 23), frames[0], frame(mac(1), mac(2))]);
  const report = trafficReport(bench.counters, 100);
  assert.deepEqual(report.slice(0, 6), [
    'verified: 99 packets, 6336 bytes',
    '  lost 1 (1.00 %), out of order 0, duplicated 1, too late to tell 0, damaged 0',
    '  sent 100, missing at the end 1 (1.00 %)',
    '  not ours 1, ours of a flow that is not expected 0',
    '  flow 0: received 5, duplicated 1',
    '  flow 3: received 4, lost 1',
  ]);
  assert.match(report[6], /^latency: min /);
  bench.verify(frames);
  const lines = trafficReport(bench.counters).filter((line) => line.startsWith('  flow '));
  assert.equal(lines.length, 10);
  assert.ok(trafficReport(bench.counters).includes('  and 10 more flows with faults'));
  bench.close();
});
