import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { createMemfd, isLocalFile } from '../../src/sys/memory.ts';

/** Opens, asks and closes. */
function judge(fd: number): boolean {
  try {
    return isLocalFile(fd);
  } finally {
    closeSync(fd);
  }
}

test('memory files: a memfd and a file of tmpfs are local, and so is one on a disk', () => {
  const folder = mkdtempSync(join(tmpdir(), 'local-file-'));
  try {
    assert.equal(judge(createMemfd('local-file', 4096)), true);
    assert.equal(judge(openSync(join('/dev/shm', `local-file-${process.pid}`), 'w+')), true);
    assert.equal(judge(openSync(join(folder, 'file'), 'w+')), true);
  } finally {
    rmSync(folder, { recursive: true });
    rmSync(join('/dev/shm', `local-file-${process.pid}`), { force: true });
  }
});

test('memory files: what is no file of a mounted file system is not local', () => {
  assert.equal(judge(createEventfd()), false);
});
