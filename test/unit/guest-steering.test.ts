import assert from 'node:assert/strict';
import { test } from 'node:test';
import { queueOf } from '../../src/control/guest-steering.ts';

test('guest steering: a guest has a queue of its own lcore, and guests of one lcore take its queues in turn', () => {
  for (const lcores of [1, 2, 3, 5]) {
    for (const queues of [1, 2, 3, 4, 8, 13]) {
      for (let lcore = 0; lcore < lcores; lcore++) {
        const given = new Set<number>();
        for (let id = 0; id < 30; id++) {
          const queue = queueOf(id, lcore, lcores, queues);
          assert.ok(Number.isInteger(queue) && queue >= 0 && queue < queues);
          if (lcore < queues) assert.equal(queue % lcores, lcore);
          given.add(queue);
        }
        const own = Array.from({ length: queues }, (_, queue) => queue).filter((queue) => queue % lcores === lcore);
        assert.equal(given.size, own.length || queues);
      }
    }
  }
});
