/** Postcopy with real page faults: a thread of ours touches what is not there yet, and the test is the front end. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readdirSync, rmdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { SysError } from '../../src/errors.ts';
import { mapInto, unmapFrom } from '../../src/mem/window.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import type { AddressRange } from '../../src/sys/userfaultfd.ts';
import { UserfaultPostcopy } from '../../src/vhost/postcopy.ts';
import { PageFiller } from '../kit/page-filler.ts';
import { pool } from '../kit/ram.ts';
import { Toucher } from '../kit/toucher.ts';
import { reserveHugepages } from '../peers/hugepages.ts';

const PAGE = 4096;
const PAGES = 16;
const OFF = 65536;
const MIB = 2 ** 20;

const window = pool.acquire();
const thread = new Toucher(window);
thread.touch(0);
await thread.done(); // it has opened what descriptors a thread takes
after(() => thread.stop());

const range: AddressRange = { address: window.address + BigInt(OFF), size: PAGES * PAGE };
const pageAt = (n: number) => range.address + BigInt(n * PAGE);
const offAt = (n: number, within = 7) => OFF + n * PAGE + within;
const fds = () => readdirSync('/proc/self/fd').length;

/** Guest memory without a page, mapped, and registered where the front end hears of it. Undoes everything after the test. */
function start(t: TestContext): { postcopy: UserfaultPostcopy; frontEnd: PageFiller; memfd: number } {
  const before = fds();
  const memfd = createMemfd('test', PAGES * PAGE);
  mapInto(window, OFF, PAGES * PAGE, memfd, 0);
  const postcopy = new UserfaultPostcopy();
  const frontEnd = new PageFiller(postcopy.shareFd());
  postcopy.register([range]);
  t.after(async () => {
    postcopy.close();
    await thread.done();
    frontEnd.close();
    unmapFrom(window, OFF, PAGES * PAGE);
    closeSync(memfd);
    assert.equal(fds(), before, 'open descriptors');
  });
  return { postcopy, frontEnd, memfd };
}

/** Has the thread touch page `n` and wait. */
async function touchMissing(frontEnd: PageFiller, n: number, write?: number): Promise<void> {
  thread.touch(offAt(n), write);
  assert.equal(await frontEnd.fault(), pageAt(n));
  await sleep(20);
  assert.ok(thread.waiting, 'the thread waits for its page');
}

test('postcopy: who touches a missing page waits until the front end has put it there', async (t) => {
  const { frontEnd } = start(t);
  await touchMissing(frontEnd, 3);
  frontEnd.copy(pageAt(3), Buffer.alloc(PAGE, 0x5a));
  assert.equal(await thread.done(), 0x5a);

  thread.touch(offAt(3, 4000));
  assert.equal(await thread.done(), 0x5a, 'it is there from now on');
  assert.equal(frontEnd.poll(), undefined);

  await touchMissing(frontEnd, 4, 0x77);
  frontEnd.copy(pageAt(4), Buffer.alloc(PAGE, 0x5b));
  assert.equal(await thread.done(), 0x77);
  thread.touch(offAt(4, 8));
  assert.equal(await thread.done(), 0x5b, 'around what was written is the page that came');
});

test('postcopy: as QEMU does it, the page comes by the file and the thread is woken', async (t) => {
  const { frontEnd, memfd } = start(t);
  await touchMissing(frontEnd, 5);
  writeSync(memfd, Buffer.alloc(PAGE, 0x21), 0, PAGE, 5 * PAGE);
  frontEnd.wake(pageAt(5));
  assert.equal(await thread.done(), 0x21);

  writeSync(memfd, Buffer.alloc(PAGE, 0x22), 0, PAGE, 6 * PAGE);
  thread.touch(offAt(6));
  assert.equal(await thread.done(), 0x22, 'a page that came before it was touched makes nobody wait');
  assert.equal(frontEnd.poll(), undefined);
});

test('postcopy: after its end missing pages are zeros and nobody waits', async (t) => {
  const { postcopy, frontEnd } = start(t);
  await touchMissing(frontEnd, 0);
  frontEnd.copy(pageAt(0), Buffer.alloc(PAGE, 1));
  await thread.done();
  postcopy.close();
  thread.touch(offAt(0));
  assert.equal(await thread.done(), 1);
  thread.touch(offAt(1));
  assert.equal(await thread.done(), 0);
  assert.equal(frontEnd.poll(), undefined);
});

test('postcopy: closing frees a thread that waits, though the front end keeps its descriptor and fills nothing', async (t) => {
  const { postcopy, frontEnd } = start(t);
  await touchMissing(frontEnd, 2);
  postcopy.close();
  assert.equal(await thread.done(), 0);
});

test('postcopy: a front end that dies frees nobody: our close does', async (t) => {
  const before = fds();
  const memfd = createMemfd('test', PAGES * PAGE);
  mapInto(window, OFF, PAGES * PAGE, memfd, 0);
  const postcopy = new UserfaultPostcopy();
  const frontEnd = new PageFiller(postcopy.shareFd());
  t.after(async () => {
    postcopy.close();
    await thread.done();
    unmapFrom(window, OFF, PAGES * PAGE);
    closeSync(memfd);
    assert.equal(fds(), before, 'open descriptors');
  });
  postcopy.register([range]);
  await touchMissing(frontEnd, 2);
  frontEnd.close();
  await sleep(50);
  assert.ok(thread.waiting);
  postcopy.close();
  assert.equal(await thread.done(), 0);
});

test('postcopy: memory that is unregistered frees its thread, and other memory may be registered then', async (t) => {
  const { postcopy, frontEnd } = start(t);
  await touchMissing(frontEnd, 1);
  postcopy.unregister();
  assert.equal(await thread.done(), 0);
  const rest = { address: pageAt(PAGES / 2), size: range.size / 2 };
  postcopy.register([rest]);
  thread.touch(offAt(2));
  assert.equal(await thread.done(), 0);
  await touchMissing(frontEnd, PAGES / 2);
  frontEnd.copy(pageAt(PAGES / 2), Buffer.alloc(PAGE, 9));
  assert.equal(await thread.done(), 9);
});

test('postcopy: a thread that waits in memory which was taken away from under it is freed too', async (t) => {
  const { postcopy, frontEnd } = start(t);
  await touchMissing(frontEnd, 2);
  unmapFrom(window, OFF, PAGES * PAGE);
  await sleep(50);
  assert.ok(thread.waiting, 'the kernel does not wake it by itself');
  postcopy.close();
  assert.equal(await thread.done(), 0);
});

test('postcopy: a front end that cuts off the page a thread waits for harms itself only', async (t) => {
  const { postcopy, frontEnd, memfd } = start(t);
  await touchMissing(frontEnd, 2);
  ftruncateSync(memfd, PAGE);
  unmapFrom(window, OFF, PAGES * PAGE); // as GuestMemory.coverTruncated
  postcopy.close();
  assert.equal(await thread.done(), 0);
});

test('postcopy: ranges are registered all or none', async (t) => {
  const { postcopy, frontEnd } = start(t);
  postcopy.unregister();
  const good = { address: range.address, size: PAGE };
  const bad = { address: range.address + BigInt(PAGE), size: 100 };
  assert.throws(
    () => postcopy.register([good, bad]),
    (error) => error instanceof SysError && error.code === 'EINVAL' && error.message.includes(bad.address.toString(16)),
  );
  thread.touch(offAt(0));
  assert.equal(await thread.done(), 0);
  assert.equal(frontEnd.poll(), undefined);
});

test('postcopy: closing what is closed does nothing, and nothing stays open', () => {
  const before = fds();
  const postcopy = new UserfaultPostcopy();
  closeSync(postcopy.shareFd());
  postcopy.close();
  postcopy.close();
  assert.equal(fds(), before);
});

test('postcopy: a hugepage comes as a whole', async (t) => {
  const pages = reserveHugepages(8);
  if (!pages.obtained) return t.skip(pages.why);
  const dir = mkdtempSync(join(tmpdir(), 'vhost-switch-postcopy-'));
  const { status, stderr } = spawnSync('mount', ['-t', 'hugetlbfs', '-o', 'pagesize=2M', 'none', dir]);
  t.after(() => {
    if (status === 0) spawnSync('umount', [dir]);
    rmdirSync(dir);
    pages.release();
  });
  if (status !== 0) return t.skip(`no hugetlbfs: ${stderr}`);
  const size = 2 * MIB;
  const path = join(dir, 'memory');
  const fd = openSync(path, 'wx+');
  rmSync(path);
  ftruncateSync(fd, 2 * size);
  const off = 2 * size - Number(window.address % BigInt(size));
  mapInto(window, off, 2 * size, fd, 0);
  const address = window.address + BigInt(off);
  const postcopy = new UserfaultPostcopy();
  const frontEnd = new PageFiller(postcopy.shareFd());
  try {
    postcopy.register([{ address, size: 2 * size }]);
    thread.touch(off + size + 12345);
    assert.equal(await frontEnd.fault(), address + BigInt(size));
    frontEnd.copy(address + BigInt(size), Buffer.alloc(size, 0x66));
    assert.equal(await thread.done(), 0x66);
    thread.touch(off + 1);
    assert.equal(await frontEnd.fault(), address);
  } finally {
    postcopy.close();
    await thread.done();
    frontEnd.close();
    unmapFrom(window, off, 2 * size);
    closeSync(fd);
  }
  assert.equal(await thread.done(), 0);
});
