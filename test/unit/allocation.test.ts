import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { frame, mac } from '../kit/frames.ts';
import type { Format } from '../kit/raw-ring.ts';
import { TestGuest, TestSwitch } from '../kit/test-switch.ts';

const NUM = 256;
const BURST = 32;
const PACKETS = 1_000_000;
/** The heap is looked at so often: before a collection of garbage can hide anything. */
const STEP = 50_000;
/** What looking takes, and the like: far less than a byte a packet, or 8 a burst. */
const TOLERANCE = 200_000;
/** Times a million packets until the compiler has settled; code it has not optimised yet allocates numbers. */
const ROUNDS = 20;

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

interface Case {
  readonly format: Format;
  readonly mergeable: boolean;
  /** queue pairs of the receiver */
  readonly pairs: number;
}

/** Two guests whose rings hold ready descriptors for ever: a packed ring's are written again, in a split one only indexes move. */
function start({ format, mergeable, pairs }: Case): { advance: () => void; delivered: () => number } {
  const on = new TestSwitch();
  const from = new TestGuest(on, 0, { format, num: NUM, mergeable });
  const to = new TestGuest(on, 1, { format, num: NUM, mergeable, pairs });
  to.send(frame(mac(1), mac(2)));
  on.settle();
  from.received();
  // every burst has the same flows
  const burst = Array.from({ length: BURST }, () => frame(mac(2), mac(1)));
  from.send(...Array.from({ length: NUM }, (_, i) => burst[i % BURST]));
  on.settle();
  to.received();
  const before = to.pairs.map(({ rx }) => rx.usedIdx);
  from.tx.repeat(BURST);
  on.lcore.poll();
  const shares = to.pairs.map(({ rx }, i) => (rx.usedIdx - before[i]) & 0xffff);
  assert.ok(
    shares.every((share) => share > 0),
    'all queues have some',
  );
  const advance = () => {
    from.tx.repeat(BURST);
    for (let pair = 0; pair < shares.length; pair++) to.pairs[pair].rx.repeat(shares[pair]);
    on.lcore.poll();
  };
  return { advance, delivered: () => to.counters.rx_packets };
}

function heapUsed(): number {
  for (let i = 0; i < 3; i++) collectGarbage();
  return process.memoryUsage().heapUsed;
}

/** Switches a million packets. @returns bytes allocated on the way */
function round(advance: () => void): number {
  let allocated = 0;
  for (let n = 0; n < PACKETS; n += STEP) {
    const before = process.memoryUsage().heapUsed;
    for (let m = 0; m < STEP; m += BURST) advance();
    allocated += Math.max(0, process.memoryUsage().heapUsed - before);
  }
  return allocated;
}

const cases: Case[] = [
  { format: 'split', mergeable: false, pairs: 1 },
  { format: 'split', mergeable: true, pairs: 1 },
  { format: 'split', mergeable: false, pairs: 4 },
  { format: 'packed', mergeable: false, pairs: 1 },
  { format: 'packed', mergeable: true, pairs: 1 },
  { format: 'packed', mergeable: true, pairs: 4 },
];

for (const { format, mergeable, pairs } of cases) {
  const into = `${mergeable ? 'mergeable ' : ''}buffers of ${pairs === 1 ? 'one pair' : `${pairs} pairs`}`;
  test(`hot path, ${format} rings: a million packets into ${into} leave the heap as it was`, () => {
    const { advance, delivered } = start({ format, mergeable, pairs });
    round(advance);
    const before = heapUsed();
    const deliveredBefore = delivered();
    let least = Number.POSITIVE_INFINITY;
    let rounds = 0;
    while (least >= TOLERANCE && rounds < ROUNDS) {
      least = Math.min(least, round(advance));
      rounds++;
    }
    assert.ok(delivered() - deliveredBefore >= rounds * PACKETS, 'the packets were switched');
    assert.ok(least < TOLERANCE, `a million packets allocate ${least} bytes`);
    const kept = heapUsed() - before;
    assert.ok(kept < TOLERANCE, `${kept} bytes are kept`);
  });
}
