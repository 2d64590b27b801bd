import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GuestSteering, queueOf } from '../../src/control/guest-steering.ts';
import type { Steering } from '../../src/port/steering.ts';
import { mac } from '../kit/frames.ts';

/** What the kernel's table would have, by text. */
class Table {
  readonly queues: number;
  readonly entries = new Map<string, number>();
  readonly room: number;

  constructor(queues: number, room = 1000) {
    this.queues = queues;
    this.room = room;
  }

  add(address: Uint8Array, vlan: number, queue: number): boolean {
    const key = `${address} ${vlan}`;
    if (!this.entries.has(key) && this.entries.size === this.room) return false;
    this.entries.set(key, queue);
    return true;
  }

  remove(address: Uint8Array, vlan: number): boolean {
    return this.entries.delete(`${address} ${vlan}`);
  }

  queueOf(n: number, vlan = 0): number | undefined {
    return this.entries.get(`${mac(n)} ${vlan}`);
  }
}

const asSteering = (table: Table) => table as unknown as Steering;
const notFull = () => assert.fail('a table is full');

test('guest steering: a guest has a queue of its own lcore, and guests of one lcore take its queues in turn', () => {
  for (const lcores of [1, 2, 3, 5]) {
    for (const queues of [1, 2, 3, 4, 8, 13]) {
      for (let lcore = 0; lcore < lcores; lcore++) {
        const given = new Set<number>();
        for (let turn = 0; turn < 30; turn++) {
          const queue = queueOf(turn, lcore, lcores, queues);
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

test('guest steering: every table has all guests, those that came before it too, until they go', () => {
  const guests = new GuestSteering(2, notFull);
  const first = new Table(4);
  const second = new Table(4);
  guests.addTable(asSteering(first));
  for (let id = 0; id < 4; id++) guests.add(id, mac(id), [0, 1000 + id], id % 2);
  guests.addTable(asSteering(second));
  assert.deepEqual(first.entries, second.entries);
  assert.deepEqual(
    [0, 1, 2, 3].map((id) => first.queueOf(id)),
    [0, 1, 2, 3],
  );
  assert.equal(first.queueOf(2, 1002), 2);

  guests.remove(2);
  guests.remove(2);
  assert.deepEqual([first.entries.size, first.queueOf(2), first.queueOf(2, 1002)], [6, undefined, undefined]);
  // who comes next has the queue that has become free
  guests.add(7, mac(7), [0], 0);
  assert.equal(second.queueOf(7), 2);
  // with another address it has no entries for the old one
  guests.add(7, mac(8), [0], 0);
  assert.deepEqual([second.queueOf(7), second.queueOf(8)], [undefined, 2]);

  guests.removeTable(asSteering(first));
  guests.remove(0);
  assert.equal(first.queueOf(0), 0);
  assert.equal(second.queueOf(0), undefined);
});

test('guest steering: an address that has moved to another device stays when the first one goes', () => {
  const guests = new GuestSteering(1, notFull);
  const table = new Table(3);
  guests.addTable(asSteering(table));
  guests.add(0, mac(1), [0, 1000], 0);
  guests.add(1, mac(1), [0, 1001], 0);
  assert.equal(table.queueOf(1), 1);
  guests.remove(0);
  assert.deepEqual([table.queueOf(1), table.queueOf(1, 1000), table.queueOf(1, 1001)], [1, undefined, 1]);
});

test('guest steering: what a full table has no room for is told once, and the rest goes on', () => {
  let told = 0;
  const guests = new GuestSteering(1, () => told++);
  const table = new Table(2, 5);
  guests.addTable(asSteering(table));
  guests.add(0, mac(1), [0, 10, 20, 30], 0);
  assert.equal(told, 0);
  guests.add(1, mac(2), [0, 10, 20], 0);
  guests.add(2, mac(3), [0], 0);
  assert.deepEqual([told, table.entries.size], [1, 5]);
  guests.remove(0);
  guests.add(3, mac(4), [0], 0);
  assert.equal(table.queueOf(4), 0);
});
