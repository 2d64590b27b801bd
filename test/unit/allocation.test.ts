import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { frame, mac } from '../kit/frames.ts';
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

/** Two guests whose rings hold ready descriptors for ever: only indexes move. */
function start(mergeable: boolean): { advance: () => void; delivered: () => number } {
  const on = new TestSwitch();
  const [from, to] = [0, 1].map((id) => new TestGuest(on, id, { num: NUM, mergeable }));
  to.send(frame(mac(1), mac(2)));
  on.settle();
  from.received();
  from.send(...Array.from({ length: NUM }, () => frame(mac(2), mac(1))));
  on.settle();
  const advance = () => {
    for (const ring of [from.tx, to.rx]) {
      ring.availIdx = (ring.availIdx + BURST) & 0xffff;
      ring.publish();
    }
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

for (const mergeable of [false, true])
  test(`hot path: a million packets ${mergeable ? 'into mergeable buffers ' : ''}leave the heap as it was`, () => {
    const { advance, delivered } = start(mergeable);
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
