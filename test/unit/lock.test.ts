import assert from 'node:assert/strict';
import { test } from 'node:test';
import { acquire, release } from '../../src/sys/lock.ts';
import { addUnderLock } from '../kit/lock-worker.ts';

test('lock: three threads, one at a time, and none sleeps for ever', async () => {
  const words = new Int32Array(new SharedArrayBuffer(20));
  const [times, of] = [30_000, 3];
  await Promise.all(Array.from({ length: of }, () => addUnderLock({ words, times, of, dawdle: 500 })));
  assert.deepEqual([...words.subarray(0, 4)], [0, of * times, of * times, 0]);
});

test('lock: it is free after a release, whoever waited', () => {
  const words = new Int32Array(new SharedArrayBuffer(4));
  for (let n = 0; n < 3; n++) {
    acquire(words, 0);
    assert.notEqual(words[0], 0);
    release(words, 0);
    assert.equal(words[0], 0);
  }
});
