import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  LEARN_KNOWN,
  LEARN_MOVED,
  LEARN_NEW,
  LEARN_REFUSED,
  MacTable,
  macTableBytes,
  NOT_FOUND,
} from '../../src/switch/mac-table.ts';

const AGE = 300;

test('MAC table: an address is found on the port it was last seen on', () => {
  const table = new MacTable(16, 16, 4);
  assert.equal(table.lookup(0x11223344, 0x5566), NOT_FOUND);
  assert.equal(table.learn(0x11223344, 0x5566, 2, 0), LEARN_NEW);
  assert.equal(table.learn(0x11223344, 0x5566, 2, 1), LEARN_KNOWN);
  assert.equal(table.lookup(0x11223344, 0x5566), 2);
  assert.equal(table.learn(0x11223344, 0x5566, 0, 2), LEARN_MOVED);
  assert.equal(table.lookup(0x11223344, 0x5566), 0);
  assert.equal(table.size, 1);
});

test('MAC table: every bit of an address counts', () => {
  const table = new MacTable(64, 64, 1);
  assert.equal(table.learn(0, 0, 0, 0), LEARN_NEW);
  for (let bit = 0; bit < 48; bit++) {
    const [first, last] = bit < 32 ? [1 << bit, 0] : [0, 1 << (bit - 32)];
    assert.equal(table.lookup(first, last), NOT_FOUND, `bit ${bit}`);
    assert.equal(table.learn(first, last, 0, 0), LEARN_NEW);
  }
  assert.equal(table.size, 49);
});

test('MAC table: it takes as many addresses as it was made for, and no more', () => {
  const table = new MacTable(1024, 1024, 1);
  for (let i = 0; i < 1024; i++) assert.equal(table.learn(i * 0x01000193, i, 0, 0), LEARN_NEW, `address ${i}`);
  assert.equal(table.learn(1, 0xffff, 0, 0), LEARN_REFUSED);
  assert.equal(table.lookup(1, 0xffff), NOT_FOUND);
  assert.equal(table.learn(0x01000193, 1, 0, 0), LEARN_KNOWN, 'those it has stay');
  assert.equal(table.size, 1024);
});

test('MAC table: a port at its limit gets no address, new or another port’s, until it loses one', () => {
  const table = new MacTable(16, 2, 3);
  table.learn(1, 0, 0, 0);
  table.learn(2, 0, 0, 0);
  table.learn(3, 0, 1, 0);
  assert.equal(table.learn(4, 0, 0, 0), LEARN_REFUSED);
  assert.equal(table.learn(3, 0, 0, 0), LEARN_REFUSED);
  assert.equal(table.lookup(3, 0), 1);
  assert.equal(table.learn(2, 0, 2, 0), LEARN_MOVED);
  assert.equal(table.learn(4, 0, 0, 0), LEARN_NEW);
});

test('MAC table: a refused move does not keep the old entry young', () => {
  const table = new MacTable(16, 1, 2);
  table.learn(1, 0, 0, 0);
  table.learn(2, 0, 1, AGE);
  assert.equal(table.learn(1, 0, 1, AGE), LEARN_REFUSED);
  table.age(AGE + 1, AGE);
  assert.equal(table.lookup(1, 0), NOT_FOUND);
  assert.equal(table.lookup(2, 0), 1);
});

test('MAC table: ageing forgets what was not seen for longer than the limit, and frees its place', () => {
  const table = new MacTable(2, 2, 1);
  table.learn(1, 0, 0, 0);
  table.learn(2, 0, 0, 0);
  table.learn(2, 0, 0, 1);
  table.age(AGE, AGE);
  assert.equal(table.size, 2, 'exactly the limit is not longer');
  table.age(AGE + 1, AGE);
  assert.equal(table.lookup(1, 0), NOT_FOUND);
  assert.equal(table.lookup(2, 0), 0);
  assert.equal(table.learn(3, 0, 0, AGE + 1), LEARN_NEW);
});

test('MAC table: ageing comes round to every slot of a large table', () => {
  const max = 8192;
  const table = new MacTable(max, max, 1);
  for (let i = 0; i < max; i++) table.learn(i, i >> 4, 0, 0);
  const before = table.size;
  table.age(AGE + 1, AGE);
  assert.ok(table.size < before && table.size > 0, 'a step is a part of the table');
  for (let second = 2; second < 8; second++) table.age(AGE + second, AGE);
  assert.equal(table.size, 0);
});

test('MAC table: flushing a port takes all of its addresses and none of another’s', () => {
  const table = new MacTable(512, 512, 3);
  for (let i = 0; i < 500; i++) table.learn(i, i, i % 3, 0);
  table.flushPort(1);
  for (let i = 0; i < 500; i++) assert.equal(table.lookup(i, i), i % 3 === 1 ? NOT_FOUND : i % 3, `address ${i}`);
  table.flushPort(1);
  assert.equal(table.size, 333);
});

test('MAC table: an address that is claimed is a port’s only one, and no other port’s', () => {
  const table = new MacTable(16, 16, 4, new SharedArrayBuffer(macTableBytes(16, 4)));
  assert.equal(table.claim(1, 1, 0, 0), LEARN_NEW);
  assert.equal(table.claim(1, 1, 1, 0), LEARN_REFUSED);
  assert.equal(table.lookup(1, 1), 0, 'it has not moved');
  assert.equal(table.claim(2, 2, 0, 0), LEARN_KNOWN);
  assert.equal(table.lookup(2, 2), NOT_FOUND);
  assert.equal(table.claim(2, 2, 1, 0), LEARN_NEW);
});

test('MAC table: it tells the addresses of a port', () => {
  const table = new MacTable(64, 64, 4);
  for (let n = 1; n <= 20; n++) table.learn(n * 0x01020304, n, n % 2, 0);
  table.learn(-2, 0xffff, 2, 0);
  const pairs = (words: number[]) => Array.from({ length: words.length / 2 }, (_, i) => words.slice(2 * i, 2 * i + 2));
  assert.deepEqual(
    pairs(table.addressesOf(1)).sort(([, a], [, b]) => a - b),
    Array.from({ length: 10 }, (_, i) => [(2 * i + 1) * 0x01020304, 2 * i + 1]),
  );
  assert.deepEqual(table.addressesOf(2), [-2, 0xffff]);
  assert.deepEqual(table.addressesOf(3), []);
});
