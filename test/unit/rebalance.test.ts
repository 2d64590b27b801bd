import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Rebalancer } from '../../src/control/rebalancer.ts';
import { chooseMove } from '../../src/lcore/rebalance.ts';
import { counterBlock, LCORE_SLOTS, readCounters, VRING_SLOTS } from '../../src/stats/counters.ts';
import { waitUntil } from '../peers/process.ts';

const load = (queue: string, at: number, load: number) => ({ queue, at, load });

test('rebalance: of two queues on a busy lcore one goes to the lcore with the most time, and the better one', () => {
  const queues = [load('a', 1, 60), load('b', 1, 40), load('c', 0, 900)];
  assert.deepEqual(chooseMove([0.3, 1, 0.1], queues), { queue: 'b', to: 2 });
  assert.deepEqual(chooseMove([0.3, 1, 0], [load('a', 1, 52), load('b', 1, 24), load('c', 1, 24)]), {
    queue: 'a',
    to: 2,
  });
  assert.deepEqual(chooseMove([0.3, 1, 0.25], [load('a', 1, 80), load('b', 1, 20)]), { queue: 'b', to: 2 });
});

test('rebalance: nothing moves where nobody is busy, where all are, or where one queue is all the load', () => {
  assert.equal(chooseMove([0.4, 0], [load('a', 0, 1), load('b', 0, 1)]), undefined);
  assert.equal(chooseMove([1, 0.95], [load('a', 0, 1), load('b', 0, 1)]), undefined);
  assert.equal(chooseMove([1, 0], [load('a', 0, 1), load('b', 0, 0)]), undefined);
  assert.equal(chooseMove([1, 0], []), undefined);
  assert.equal(chooseMove([1, 0], [load('a', 0, 0), load('b', 0, 0)]), undefined);
});

test('rebalance: moves come to an end, and each leaves the busiest lcore less to do', () => {
  const share = fc.double({ min: 0, max: 1, noNaN: true });
  const queue = fc.record({ at: fc.nat(3), load: fc.double({ min: 0, max: 0.5, noNaN: true }) });
  fc.assert(
    fc.property(fc.array(queue, { maxLength: 12 }), fc.array(share, { minLength: 4, maxLength: 4 }), (queues, rest) => {
      const all = queues.map((one, i) => ({ ...one, queue: i }));
      const scale = 1 / Math.max(1, ...rest.map((own, i) => own * 0.1 + sumAt(i)));
      function sumAt(i: number) {
        return all.filter(({ at }) => at === i).reduce((sum, one) => sum + one.load, 0);
      }
      const busy = () => [0, 1, 2, 3].map((i) => scale * sumAt(i));
      for (let moves = 0; ; moves++) {
        assert.ok(moves <= 100, 'no end');
        const before = busy();
        const move = chooseMove(before, all);
        if (move === undefined) return;
        const from = before.indexOf(Math.max(...before));
        assert.equal(all[move.queue].at, from);
        all[move.queue].at = move.to;
        const after = busy();
        assert.ok(Math.max(after[from], after[move.to]) < before[from]);
      }
    }),
  );
});

test('rebalance: what lcores and queues did since the last look decides, and not what they did before', async () => {
  const blocks = [0, 1].map(() => new Float64Array(counterBlock(LCORE_SLOTS)));
  const rings = new Map([0, 1].map((port) => [port, new Float64Array(counterBlock(VRING_SLOTS))]));
  const block = (port: number) => rings.get(port) as Float64Array;
  const at = [0, 0];
  const moves: string[] = [];
  // long ago: device 1 has sent all there was, on lcore 1
  blocks[1][LCORE_SLOTS.busy_us] = 1e12;
  block(1)[VRING_SLOTS.good_packets] = 1e12;
  const group = {
    get lcoreCounters() {
      return blocks.map((one, lcore) => ({ lcore, counters: readCounters(LCORE_SLOTS, one) }));
    },
    get transmitQueues() {
      return at.map((lcore, port) => ({ port, pair: 0, vring: 1, at: lcore }));
    },
    vringCounters: (port: number) => [undefined, block(port)],
    moveQueue: async (port: number, _pair: number, to: number) => {
      at[port] = to;
      return true;
    },
  };
  const rebalancer = new Rebalancer(group, 0.01, {
    onMove: ({ port }, to) => moves.push(`${port} to ${to}`),
    onFailure: (error) => assert.fail(error),
  });
  await waitUntil(
    'the first look',
    () => {
      // both queues are at work on lcore 0, all the time
      blocks[0][LCORE_SLOTS.busy_us] += 1e9;
      block(0)[VRING_SLOTS.good_packets] += 1000;
      block(1)[VRING_SLOTS.good_packets] += 900;
      return moves.length > 0;
    },
    10_000,
  );
  await rebalancer.close();
  assert.equal(moves.length, 1);
  assert.match(moves[0], /^[01] to 1$/);
});
