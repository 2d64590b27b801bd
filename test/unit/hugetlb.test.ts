import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { ftruncateSync, mkdtempSync, openSync, rmdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { GuestMemory } from '../../src/mem/guest-memory.ts';
import { openWindow, WindowPool, type WindowViews } from '../../src/mem/window.ts';
import { createMemfd, pageSize } from '../../src/sys/memory.ts';
import { reserveHugepages } from '../peers/hugepages.ts';

const MIB = 2 ** 20;
const PAGE = 2 * MIB;

/** Mounts a hugetlbfs for the time of a test. @returns its folder, or why there is none */
function mountHugetlbfs(t: TestContext): { dir: string } | { why: string } {
  const pages = reserveHugepages(12);
  if (!pages.obtained) return { why: pages.why };
  const dir = mkdtempSync(join(tmpdir(), 'vhost-switch-huge-'));
  const { status, stderr } = spawnSync('mount', ['-t', 'hugetlbfs', '-o', 'pagesize=2M', 'none', dir]);
  t.after(() => {
    if (status === 0) spawnSync('umount', [dir]);
    rmdirSync(dir);
    pages.release();
  });
  return status === 0 ? { dir } : { why: `no hugetlbfs: ${stderr?.toString().trim()}` };
}

test('guest memory: regions of 2 MB pages lie at suitable addresses beside ordinary ones', (t) => {
  const mounted = mountHugetlbfs(t);
  if ('why' in mounted) return t.skip(mounted.why);
  const path = join(mounted.dir, 'memory');
  const fd = openSync(path, 'wx+');
  ftruncateSync(fd, 4 * PAGE);
  assert.equal(pageSize(fd), PAGE);
  const small = createMemfd('test', 5 * 4096);
  const memory = new GuestMemory(new WindowPool('wasm'));
  const region = (guestAddr: number, size: number, fileOff: number, file: number) => ({
    ...{ guestAddr, size, fileOff, frontendAddr: guestAddr },
    fd: file,
  });
  memory.add(region(0, 5 * 4096, 0, small), 0, 'SET_MEM_TABLE');
  memory.add(region(2 ** 32, 2 * PAGE, PAGE, fd), 1, 'SET_MEM_TABLE');
  memory.add(region(2 ** 33, PAGE, 0x3000, openSync(path, 'r+')), 2, 'SET_MEM_TABLE');
  const views = new Map<number, WindowViews>(memory.windows.map((window) => [window.id, openWindow(window)]));
  const at = (addr: number) => {
    const place = memory.placeOf(addr, 4)!;
    return { dv: views.get(place.window)!.dv, off: place.off };
  };
  const write = (addr: number, word: number) => at(addr).dv.setUint32(at(addr).off, word, true);
  const read = (addr: number) => at(addr).dv.getUint32(at(addr).off, true);
  write(0, 1);
  write(2 ** 32, 2);
  write(2 ** 32 + 2 * PAGE - 4, 3);
  // the third region shows the same file from 0x3000 on
  assert.equal(read(2 ** 33 + PAGE - 0x3000), 2);
  write(2 ** 33, 4);
  assert.deepEqual([0, 2 ** 32, 2 ** 32 + 2 * PAGE - 4, 2 ** 33].map(read), [1, 2, 3, 4]);
  assert.equal(memory.findPrivate(2 ** 32), -1);
  const { dv, off } = at(2 ** 32);
  memory.clear();
  assert.equal(dv.getUint32(off, true), 0, 'unmapped pages read zero');
  rmSync(path);
});
