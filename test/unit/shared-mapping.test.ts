import assert from 'node:assert/strict';
import { closeSync, fstatSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { SharedMapping } from '../../src/mem/shared-mapping.ts';
import { openWindow } from '../../src/mem/window.ts';
import { createPipe } from '../../src/sys/pipe.ts';
import { leakless, pool, sharedArea } from '../kit/device-bench.ts';

const map = (area: { fd: number; size: number; fileOff: number }) =>
  new SharedMapping(pool, area, 'the dirty log', 'SET_LOG_BASE');

for (const [fileOff, size] of [
  [0, 1],
  [0, 4096],
  [8, 4096],
  [4088, 16],
  [5 * 4096 + 24, 100_000],
])
  test(`shared mapping: ${size} bytes from offset ${fileOff} on are where it says`, () =>
    leakless(async () => {
      const area = sharedArea(size, fileOff, 0x5a);
      writeSync(area.fd, Uint8Array.of(0xa5), 0, 1, fileOff + size - 1);
      const mapping = map(area);
      const { u8 } = openWindow(mapping.handle);
      assert.equal(u8[mapping.off + size - 1], 0xa5);
      if (size > 1) assert.equal(u8[mapping.off], 0x5a);
      assert.equal(mapping.size, size);
      u8[mapping.off] = 0x77;
      mapping.release();
      assert.equal(u8[mapping.off], 0, 'and zeros are there afterwards');
      assert.throws(() => fstatSync(area.fd), { code: 'EBADF' });
    }));

test('shared mapping: what cannot be mapped is refused with its reason, closed, and leaves no window behind', () =>
  leakless(async () => {
    const pipe = createPipe();
    closeSync(pipe.writeFd);
    const short = sharedArea(4096, 4096);
    for (const [area, reason] of [
      [{ fd: pipe.readFd, size: 4096, fileOff: 0 }, /^SET_LOG_BASE: the dirty log is not a memory file$/],
      [{ ...sharedArea(4096), size: 0 }, /the dirty log has 0 bytes from offset 0 on/],
      [{ ...sharedArea(8192), fileOff: 4 }, /offset 4 on: there must be some, from a multiple of 8 on/],
      [{ ...sharedArea(4096), size: 4097 }, /too short: 4097 bytes from offset 0 on, its file has 4096/],
      [{ ...short, fileOff: 8192 }, /too short: 4096 bytes from offset 8192 on, its file has 8192/],
      [{ ...sharedArea(4096), size: 2 ** 53 - 4096, fileOff: 8192 }, /too short/],
      [{ ...sharedArea(4096), size: 2 ** 53 - 1, fileOff: 2 ** 53 - 8 }, /too short/],
      [sharedArea(2 ** 31), /the dirty log has 2147483648 bytes, which is too much/],
    ] as const) {
      assert.throws(() => map(area), { code: 'BAD_SHARED_AREA', message: reason });
      assert.throws(() => fstatSync(area.fd), { code: 'EBADF' });
    }
  }));

test('shared mapping: a file that can be truncated is covered when it is; a memfd cannot be any more', () =>
  leakless(async () => {
    const sealed = sharedArea(8192);
    const kept = map(sealed);
    assert.throws(() => ftruncateSync(sealed.fd, 0), { code: 'EPERM' });
    assert.deepEqual([kept.coverTruncated(), kept.coverHoles()], [false, false]);
    kept.release();

    const dir = mkdtempSync('/dev/shm/vhost-switch-');
    const fd = openSync(join(dir, 'log'), 'wx+');
    writeSync(fd, new Uint8Array(8192).fill(9));
    const cut = map({ fd, size: 8192, fileOff: 0 });
    assert.equal(cut.coverTruncated(), false);
    ftruncateSync(fd, 4096);
    assert.equal(cut.coverTruncated(), true);
    assert.equal(openWindow(cut.handle).u8[cut.off + 8191], 0);
    cut.release();
    rmSync(dir, { recursive: true });
  }));
