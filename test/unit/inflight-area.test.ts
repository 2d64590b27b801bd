import assert from 'node:assert/strict';
import { closeSync, fstatSync, ftruncateSync } from 'node:fs';
import { test } from 'node:test';
import {
  INFLIGHT_DESC_PACKED,
  INFLIGHT_DESC_SPLIT,
  INFLIGHT_PACKED_HEAD,
  INFLIGHT_SPLIT_HEAD,
  inflightQueueBytes,
} from '../../src/uapi/inflight.ts';
import { InflightArea, makeInflightArea } from '../../src/vhost/inflight-area.ts';
import { leakless, pool, sharedArea } from '../kit/device-bench.ts';

test('inflight records: sizes and offsets are those of the structs in the vhost-user specification', () => {
  assert.deepEqual(
    [INFLIGHT_DESC_SPLIT.size, INFLIGHT_SPLIT_HEAD.size, INFLIGHT_DESC_PACKED.size, INFLIGHT_PACKED_HEAD.size],
    [16, 16, 32, 32],
  );
  assert.deepEqual(INFLIGHT_DESC_SPLIT.off, { inflight: 0, padding: 1, next: 6, counter: 8 });
  assert.deepEqual(INFLIGHT_SPLIT_HEAD.off, {
    features: 0,
    version: 8,
    desc_num: 10,
    last_batch_head: 12,
    used_idx: 14,
  });
  assert.deepEqual(INFLIGHT_DESC_PACKED.off, {
    ...{ inflight: 0, padding: 1, next: 2, last: 4, num: 6, counter: 8 },
    ...{ id: 16, flags: 18, len: 20, addr: 24 },
  });
  assert.deepEqual(INFLIGHT_PACKED_HEAD.off, {
    ...{ features: 0, version: 8, desc_num: 10, free_head: 12, old_free_head: 14, used_idx: 16, old_used_idx: 18 },
    ...{ used_wrap_counter: 20, old_used_wrap_counter: 21, padding: 22 },
  });
});

test('inflight records: a queue’s are its head and its descriptors, up to a cache line', () => {
  assert.equal(inflightQueueBytes('split', 256), 64 * 65);
  assert.equal(inflightQueueBytes('split', 3), 64);
  assert.equal(inflightQueueBytes('split', 4), 128);
  assert.equal(inflightQueueBytes('packed', 1), 64);
  assert.equal(inflightQueueBytes('packed', 256), 32 + 256 * 32 + 32);
});

test('inflight records: new ones are zeros in a file that cannot shrink', () =>
  leakless(async () => {
    const { fd, size, fileOff } = makeInflightArea('split', 3, 128, 4);
    assert.deepEqual([size, fileOff, fstatSync(fd).size], [3 * 2112, 0, 3 * 2112]);
    assert.throws(() => ftruncateSync(fd, 64), { code: 'EPERM' });
    closeSync(fd);
  }));

test('inflight records: numbers that cannot be are refused', () =>
  leakless(async () => {
    for (const [queues, queueSize, message] of [
      [0, 128, /^GET_INFLIGHT_FD: 0 queues, must be 1 to 4/],
      [5, 128, /5 queues/],
      [0xffff, 128, /65535 queues/],
      [1, 0, /0 descriptors a queue, must be 1 to 32768/],
      [1, 32769, /32769 descriptors/],
    ] as const) {
      assert.throws(() => makeInflightArea('split', queues, queueSize, 4), { code: 'BAD_SHARED_AREA', message });
      const area = sharedArea(2 ** 20);
      assert.throws(() => new InflightArea(pool, area, 'split', queues, queueSize, 4), { code: 'BAD_SHARED_AREA' });
      assert.throws(() => fstatSync(area.fd), { code: 'EBADF' });
    }
    for (const [format, size] of [
      ['split', 2 * 2112 - 1],
      ['packed', 2 * 2112],
    ] as const) {
      const area = sharedArea(size);
      const small = () => new InflightArea(pool, area, format, 2, 128, 4);
      assert.throws(small, { code: 'BAD_SHARED_AREA', message: /2 queues of 128 descriptors need \d+ bytes/ });
      assert.throws(() => fstatSync(area.fd), { code: 'EBADF' });
    }
  }));

test('inflight records: each vring has its own, and none where there are none or the format has changed', () =>
  leakless(async () => {
    const area = new InflightArea(pool, sharedArea(2 * 2112, 64), 'split', 2, 128, 4);
    const { window, off } = area.mapping;
    assert.deepEqual(area.placeOf(0, 'split'), { window, off, num: 128 });
    assert.deepEqual(area.placeOf(1, 'split'), { window, off: off + 2112, num: 128 });
    assert.equal(area.placeOf(2, 'split'), undefined);
    assert.notEqual(area.placeOf(0, 'packed'), undefined, '4160 bytes fit');
    assert.equal(area.placeOf(1, 'packed'), undefined);
    area.mapping.release();
  }));
