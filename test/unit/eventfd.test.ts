/** eventfds as their counts are seen from outside. */
import assert from 'node:assert/strict';
import { closeSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { createEventfd, drainNow, eventfdCount, eventfdFull, signal } from '../../src/sys/eventfd.ts';

const MOST = 2n ** 64n - 2n;

test('an eventfd is full when one more would have to wait, and not before', () => {
  const fd = createEventfd();
  try {
    const add = (count: bigint) => writeSync(fd, new BigUint64Array([count]));
    assert.equal(eventfdFull(fd), false, 'empty');
    assert.equal(signal(fd), true);
    assert.equal(eventfdFull(fd), false, 'signalled once');
    add(2n ** 63n);
    assert.equal(eventfdFull(fd), false, 'half full');
    add(MOST - 2n ** 63n - 1n);
    assert.equal(eventfdFull(fd), true);
    assert.equal(signal(fd), false, 'full indeed');
    drainNow(fd);
    assert.equal(eventfdCount(fd), 0);
    assert.equal(eventfdFull(fd), false, 'drained');
  } finally {
    closeSync(fd);
  }
});
