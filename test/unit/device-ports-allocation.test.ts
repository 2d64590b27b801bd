import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { NullPort, openNull } from '../../src/port/null-port.ts';
import { openCaptures } from '../../src/port/pcap-files.ts';
import { PcapPort } from '../../src/port/pcap-port.ts';
import { openRing, RingPort } from '../../src/port/ring-port.ts';
import { Folder, Numbers } from '../kit/captures.ts';
import { opening, TestThread, vdevOf } from '../kit/device-ports.ts';
import { frame, mac } from '../kit/frames.ts';
import { TrafficBench } from '../kit/traffic.ts';

const BURSTS = 15_000;
/** The heap is looked at so often: before a collection of garbage can hide anything. */
const STEP = 1500;
/** A reading of the clock may take 48 bytes, two a burst: less than 4 a packet. A number in the heap for each packet would be 16. */
const TOLERANCE = 128 * BURSTS;
const ROUNDS = 15;

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;
const folder = new Folder();
after(() => folder.close());

function heapUsed(): number {
  for (let i = 0; i < 3; i++) collectGarbage();
  return process.memoryUsage().heapUsed;
}

/** Bytes that `BURSTS` bursts allocate, from one look at the heap to the next. */
function allocated(burst: () => void): number {
  let sum = 0;
  for (let done = 0; done < BURSTS; done += STEP) {
    const before = heapUsed();
    const used = process.memoryUsage().heapUsed - before;
    for (let i = 0; i < STEP; i++) burst();
    sum += Math.max(0, process.memoryUsage().heapUsed - before - used);
  }
  return sum;
}

function expectNone(burst: () => void): void {
  let least = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS && least > TOLERANCE; round++) least = Math.min(least, allocated(burst));
  assert.ok(least <= TOLERANCE, `${least} bytes in ${BURSTS} bursts`);
}

test('allocation: making and verifying packets', () => {
  const bench = new TrafficBench({ flows: 512, sizes: { min: 64, max: 1514 } });
  expectNone(() => {
    bench.maker.make(32);
    bench.verifier.verify(bench.thread.burst, bench.thread.windows);
  });
  assert.equal(bench.totals.damaged, 0);
  bench.close();
});

test('allocation: net_null to net_ring to net_pcap', async () => {
  const thread = new TestThread();
  const endless = openNull(vdevOf('net_null', 'net_null0,copy=1'), opening());
  const ring = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const sink = openCaptures({ name: 'net_pcap0', rxFiles: [], txFiles: ['/dev/null'], infinite: false }, opening());
  const from = thread.port(endless, (...args) => new NullPort(...args));
  const between = thread.port(ring, (...args) => new RingPort(...args));
  const to = thread.port(sink, (...args) => new PcapPort(...args));
  expectNone(() => {
    thread.forward(from, between);
    thread.forward(between, to);
    to.drain();
  });
  for (const opened of [endless, ring, sink]) await opened.close();
  thread.close();
});

test('allocation: net_pcap with infinite_rx and gaps', async () => {
  const thread = new TestThread();
  const frames = Array.from({ length: 5000 }, () => ({ bytes: frame(mac(1), mac(2)), ns: 1n }));
  const numbers = new Numbers(true);
  const path = folder.file(
    'many',
    Buffer.concat([numbers.section(), numbers.interface(), ...frames.map((one) => numbers.enhanced(0, 5n, one))]),
  );
  const options = { name: 'net_pcap0', rxFiles: [path], txFiles: [], infinite: true, gaps: true };
  const opened = openCaptures(options, opening());
  const port = thread.port(opened, (...args) => new PcapPort(...args));
  expectNone(() => {
    port.receive(0);
    port.complete();
  });
  await opened.close();
  thread.close();
});
