import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BROADCAST, mac } from '../kit/frames.ts';
import { Dice } from '../kit/naive-driver.ts';
import { FORMATS } from '../kit/raw-ring.ts';
import { type GuestOptions, TestGuest, TestSwitch } from '../kit/test-switch.ts';

const [A, B] = [mac(1), mac(2)];
const UDP_HEADERS = 42;

/** The n-th frame of a UDP flow. */
function flowFrame(dst: Buffer, src: Buffer, flow: number, n: number, len = 64): Buffer {
  const bytes = Buffer.alloc(Math.max(len, UDP_HEADERS + 8));
  dst.copy(bytes, 0);
  src.copy(bytes, 6);
  bytes.writeUInt16BE(0x0800, 12);
  bytes[14] = 0x45;
  bytes[23] = 17;
  bytes.writeUInt32BE(0x0a000001, 26);
  bytes.writeUInt32BE(0x0a000002, 30);
  bytes.writeUInt16BE(20000 + flow, 34);
  bytes.writeUInt16BE(4000, 36);
  bytes.writeUInt32BE(flow, UDP_HEADERS);
  bytes.writeUInt32BE(n, UDP_HEADERS + 4);
  return bytes;
}

/** By flow, what has come, pair by pair. */
function byFlow(pairs: readonly Buffer[][]): Map<number, { pairs: Set<number>; numbers: number[] }> {
  const flows = new Map<number, { pairs: Set<number>; numbers: number[] }>();
  for (const [pair, frames] of pairs.entries())
    for (const frame of frames) {
      const flow = frame.readUInt32BE(UDP_HEADERS);
      const seen = flows.get(flow) ?? { pairs: new Set(), numbers: [] };
      flows.set(flow, seen);
      seen.pairs.add(pair);
      seen.numbers.push(frame.readUInt32BE(UDP_HEADERS + 4));
    }
  return flows;
}

/** A sender of one queue, known as A, and a receiver of several, known as B. */
function start(options: GuestOptions): { on: TestSwitch; a: TestGuest; b: TestGuest } {
  const on = new TestSwitch();
  const a = new TestGuest(on, 0, { num: 256 });
  const b = new TestGuest(on, 1, { num: 256, ...options });
  b.send(flowFrame(BROADCAST, B, 0, 0));
  a.send(flowFrame(B, A, 0, 0));
  on.settle();
  a.received();
  b.received();
  return { on, a, b };
}

const receivedByPair = (guest: TestGuest) => guest.pairs.map((pair) => pair.received());

for (const format of FORMATS) {
  for (let pairs = 1; pairs <= 8; pairs++)
    test(`multiqueue, ${format} rings: over ${pairs} pairs each flow keeps its queue and its order, and all queues are used`, () => {
      const { on, a, b } = start({ format, pairs });
      const dice = new Dice(pairs);
      const next = Array<number>(64).fill(0);
      const seen = new Map<number, number>();
      const used = new Set<number>();
      for (let round = 0; round < 20; round++) {
        const frames = Array.from({ length: dice.int(1, 100) }, () => {
          const flow = dice.int(0, 63);
          return flowFrame(B, A, flow, next[flow]++, dice.int(60, 1500));
        });
        a.send(...frames);
        on.settle();
        for (const [flow, { pairs: at, numbers }] of byFlow(receivedByPair(b))) {
          assert.equal(at.size, 1, `flow ${flow} in one queue`);
          const [pair] = at;
          assert.equal(seen.get(flow) ?? pair, pair, `flow ${flow} in the same queue`);
          seen.set(flow, pair);
          used.add(pair);
          const first = next[flow] - numbers.length;
          assert.deepEqual(
            numbers,
            numbers.map((_, i) => first + i),
            `flow ${flow} in order and whole`,
          );
        }
      }
      assert.equal(used.size, pairs);
    });

  test(`multiqueue, ${format} rings: what any pair sends is switched, a burst from each in turn`, () => {
    const { on, a, b } = start({ format, pairs: 4 });
    for (let pair = 0; pair < 4; pair++)
      b.sendOn(pair, ...Array.from({ length: 20 }, (_, n) => flowFrame(A, B, pair, n)));
    on.lcore.poll();
    const flows = byFlow([a.received()]);
    assert.deepEqual(
      [...flows].map(([flow, { numbers }]) => [flow, numbers.length]),
      [0, 1, 2, 3].map((pair) => [pair, 20]),
    );
    for (let pair = 0; pair < 4; pair++) assert.equal(b.pairs[pair].tx.usedIdx, pair === 0 ? 21 : 20);
  });

  test(`multiqueue, ${format} rings: pairs come and go in mid-traffic, and nothing is lost or doubled`, () => {
    const { on, a, b } = start({ format, pairs: 4 });
    const dice = new Dice(5);
    const next = Array<number>(32).fill(0);
    const got = Array.from({ length: 32 }, (): number[] => []);
    const enabled = [true, true, true, true];
    for (let round = 0; round < 60; round++) {
      const pair = dice.int(0, 3);
      if (enabled.filter(Boolean).length > 1 || !enabled[pair]) {
        enabled[pair] = !enabled[pair];
        on.lcore.enableVring(1, 2 * pair, enabled[pair]);
      }
      a.send(
        ...Array.from({ length: 40 }, () => {
          const flow = dice.int(0, 31);
          return flowFrame(B, A, flow, next[flow]++);
        }),
      );
      on.settle();
      for (const [i, frames] of receivedByPair(b).entries()) {
        assert.ok(enabled[i] || frames.length === 0, 'a disabled queue gets nothing');
        for (const frame of frames) got[frame.readUInt32BE(UDP_HEADERS)].push(frame.readUInt32BE(UDP_HEADERS + 4));
      }
    }
    for (const [flow, numbers] of got.entries()) assert.deepEqual(numbers, [...Array(next[flow]).keys()]);
    assert.deepEqual(b.nonZero('rx_drop'), {});
  });

  test(`multiqueue, ${format} rings: a pair that sends while disabled is thrown away, the others go on`, () => {
    const { on, a, b } = start({ format, pairs: 3 });
    on.lcore.enableVring(1, 3, false);
    for (let pair = 0; pair < 3; pair++)
      b.sendOn(pair, ...Array.from({ length: 10 }, (_, n) => flowFrame(A, B, pair, n)));
    on.settle();
    assert.deepEqual([...byFlow([a.received()]).keys()], [0, 2]);
    assert.equal(b.counters.tx_drop_disabled, 10);
    assert.equal(b.pairs[1].tx.usedIdx, 10);
  });

  test(`multiqueue, ${format} rings: a pair at fault stops alone, and its flows go to the others`, () => {
    const { on, a, b } = start({ format, pairs: 2 });
    for (const ring of [b.pairs[1].rx, b.pairs[1].tx]) {
      ring.withdraw();
      ring.describe(0, { addr: 0, len: 100 }, ring === b.pairs[1].rx ? 2 : 0);
      ring.offer(0);
      ring.publish();
    }
    on.events.length = 0;
    // the receive ring looks for buffers again when those are used that it has seen
    const flows = Array.from({ length: 64 }, (_, flow) => flowFrame(B, A, flow, 0));
    a.send(...flows);
    on.settle();
    assert.deepEqual(on.events.toSorted(), ['fault 1/2 address', 'fault 1/3 address']);
    const before = receivedByPair(b);
    assert.ok(before[0].length > 10 && before[0].length < 54);
    assert.equal(before[1].length, 0);
    a.send(...flows);
    on.settle();
    assert.equal(receivedByPair(b)[0].length, 64);
    b.send(flowFrame(A, B, 0, 0));
    on.settle();
    assert.equal(a.received().length, 1);
  });

  test(`multiqueue, ${format} rings: pairs may be started in any order, and one be left out`, () => {
    for (const order of [[2], [1, 0], [3, 1], [2, 3, 0, 1]]) {
      const on = new TestSwitch();
      const a = new TestGuest(on, 0);
      const b = new TestGuest(on, 1, { format, pairs: 4, stopped: true });
      for (const pair of order) b.startPair(pair);
      for (const [i, pair] of order.entries()) {
        for (let n = 0; n < 3; n++) b.sendOn(pair, flowFrame(A, B, i, n));
        on.settle();
        assert.equal(a.received().length, 3, `pair ${pair} of ${order} sends`);
        assert.equal(b.pairs[pair].tx.usedIdx, 3);
      }
      a.send(...Array.from({ length: 40 }, (_, flow) => flowFrame(B, A, flow, 0)));
      on.settle();
      const got = receivedByPair(b).map((frames) => frames.length);
      assert.equal(
        got.reduce((x, y) => x + y),
        40,
      );
      for (const [pair, n] of got.entries())
        assert.equal(n > 0, order.includes(pair), `pair ${pair} of ${order} receives`);
    }
  });
}
