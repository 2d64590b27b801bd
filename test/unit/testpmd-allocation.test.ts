import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { openWindow } from '../../src/mem/window.ts';
import type { ForwardMode } from '../../src/testpmd/engine.ts';
import { DEFAULT_MADE } from '../../src/testpmd/engine.ts';
import { Forwarding } from '../../src/testpmd/forwarding.ts';
import { streamCounters } from '../../src/testpmd/stream.ts';
import { Workshop } from '../../src/testpmd/workshop.ts';
import { packet } from '../kit/packets.ts';
import { pool } from '../kit/ram.ts';
import { UserBench, type UserBenchOptions } from '../kit/user-bench.ts';

const BURST = 32;
const PACKETS = 500_000;
/** The heap is looked at so often: before a collection of garbage can hide anything. */
const STEP = 50_000;
/** What looking takes, and the like: less than a byte a packet. */
const TOLERANCE = 200_000;
/** Times so many packets until the compiler has settled; code it has not optimised yet allocates numbers. */
const ROUNDS = 30;

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

/** A port whose frames come back to it: the back end sends it what it sends. */
function start(mode: ForwardMode, options: UserBenchOptions): { turn: () => void; packets: () => number } {
  const bench = new UserBench({ size: 256, ...options });
  bench.connect();
  const own = pool.acquire();
  bench.windows[own.id] = openWindow(own);
  const workshop = new Workshop(bench.windows, bench.windows[own.id], bench.burst);
  const mac = new Uint8Array(6);
  const forwarding = new Forwarding([bench.port], workshop, {
    streams: [{ rxPort: 0, txPort: 0, rxQueue: 0, txQueue: 0, peer: mac, own: mac, counters: streamCounters() }],
    settings: {
      ...{ mode, burst: BURST, txpkts: [64] },
      ...{ made: DEFAULT_MADE, recordBursts: true, recordCycles: false },
      noisy: { bufferPackets: 0, flushMs: 0, memoryMiB: 1, writes: 1, reads: 1, readWrites: 1 },
    },
    retry: { delay: 0, times: 1 },
  });
  const { bytes } = packet({ version: 4, protocol: 'udp', payload: Buffer.alloc(100) });
  bench.send(...Array.from({ length: BURST }, () => bytes));
  const all = Int32Array.from({ length: BURST }, (_, i) => i);
  const { device } = bench;
  const turn = () => {
    const n = device.receive(0);
    device.transmit(all, 0, n);
    device.complete(0);
    forwarding.turn();
  };
  return { turn, packets: () => bench.counters.tx_packets };
}

function heapUsed(): number {
  for (let i = 0; i < 3; i++) collectGarbage();
  return process.memoryUsage().heapUsed;
}

/** @returns bytes allocated on the way */
function round(turn: () => void): number {
  let allocated = 0;
  for (let n = 0; n < PACKETS; n += STEP) {
    const before = process.memoryUsage().heapUsed;
    for (let m = 0; m < STEP; m += BURST) turn();
    allocated += Math.max(0, process.memoryUsage().heapUsed - before);
  }
  return allocated;
}

const CASES: readonly (readonly [ForwardMode, UserBenchOptions])[] = [
  ['io', { format: 'split' }],
  ['mac', { format: 'split', inOrder: true, mergeable: true }],
  ['macswap', { format: 'packed' }],
  ['csum', { format: 'packed', inOrder: true, mergeable: true }],
  ['5tswap', { format: 'split', mergeable: true }],
  ['flowgen', { format: 'split' }],
  ['noisy', { format: 'split' }],
];

for (const [mode, options] of CASES)
  test(`testpmd, ${mode} on rings ${JSON.stringify(options)}: half a million packets leave the heap as it was`, () => {
    const { turn, packets } = start(mode, options);
    round(turn);
    const packetsBefore = packets();
    let least = Number.POSITIVE_INFINITY;
    let rounds = 0;
    while (least >= TOLERANCE && rounds < ROUNDS) {
      least = Math.min(least, round(turn));
      rounds++;
    }
    assert.ok(packets() - packetsBefore >= (rounds * PACKETS) / 2, 'the packets were forwarded');
    assert.ok(least < TOLERANCE, `half a million packets allocate ${least} bytes`);
    // in a round of its own: what the compiler has learned before is no leak
    const before = heapUsed();
    round(turn);
    const kept = heapUsed() - before;
    assert.ok(kept < TOLERANCE, `${kept} bytes are kept`);
  });
