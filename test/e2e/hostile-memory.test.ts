/** Guests whose memory is not what they say, or goes away: each harms only itself, and the log says what it did. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, unlinkSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import koffi from 'koffi';
import type { VirtioUserOptions } from '../../src/port/virtio-user.ts';
import { createEventfd, signal } from '../../src/sys/eventfd.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { splitLayout } from '../../src/virtqueue/split-driver.ts';
import { freeHugepages } from '../peers/dpdk.ts';
import { reserveHugepages } from '../peers/hugepages.ts';
import { undoAtEnd } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { Conversation, connectGuest, FEEDER, frame, macOf, whileFed } from './traffic.ts';

const VICTIM = macOf(0x66);
const MIB = 2 ** 20;
const GUEST_ADDR = 0x4000_0000;

describe('memory that is hostile', { timeout: 180_000 }, () => {
  let running: SwitchProcess;
  let others: Conversation;
  before(async () => {
    running = await SwitchProcess.start();
    others = await Conversation.start(running.socket);
  });
  after(async () => {
    await others?.stop().catch(() => {}); // the last test has asked
    await running?.kill();
  });

  const connect = (options: Partial<VirtioUserOptions> = {}) =>
    connectGuest({ path: running.socket, mac: VICTIM, ...options });

  const fed = <T>(mac: string, use: () => Promise<T>) => whileFed(running.socket, mac, use);

  for (const [left, what] of [
    [0, 'all of it'],
    [32768, 'the buffers behind its rings'],
  ] as const) {
    test(`a guest that cuts off its memory in mid-traffic, ${what}, is disconnected`, async () => {
      const file = join('/dev/shm', `vhost-switch-test-${process.pid}`);
      const fd = openSync(file, 'wx+');
      unlinkSync(file);
      ftruncateSync(fd, 4 * MIB);
      const victim = await connect({ memory: [{ guestAddr: GUEST_ADDR, size: 4 * MIB, fd }] });
      victim.send(frame(FEEDER, VICTIM));
      assert.ok((await victim.waitSent(5000)) > 0);
      const mark = running.mark;
      await fed(VICTIM, async () => {
        await sleep(100);
        ftruncateSync(fd, left); // from here on the victim's memory must not be touched here either
        await running.line(
          /^VHOST_CONFIG: error: socket .*sock: device \d+: the front end truncated its memory: disconnected$/,
          mark,
        );
        await running.line(/^DATA: \(\d+\) Device has been removed$/, mark);
        await others.exchangesMore();
      });
      await victim.close();
      await others.exchangesMore();
      assert.equal(running.since(mark).match(/truncated/g)?.length, 1, 'told once');
    });
  }

  test('a guest whose memory file has holes that its full file system cannot fill is disconnected', async (t) => {
    const dir = running.path('small');
    const mem = join(dir, 'mem');
    mkdirSync(dir);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2M', 'tmpfs', dir], { stdio: 'pipe' });
    } catch (error) {
      t.skip(`no file system of 2 MiB: ${(error as Error).message}`);
      return;
    }
    const unmount = () => execFileSync('umount', ['--lazy', dir]);
    const forget = undoAtEnd(unmount);
    try {
      const fd = openSync(mem, 'w+');
      ftruncateSync(fd, 8 * MIB);
      const memory = [{ guestAddr: GUEST_ADDR, size: 8 * MIB, fd }];
      const victim = await connect({ ringSize: 64, bufferBytes: 16384, memory }); // buffers nobody has touched
      victim.send(frame(FEEDER, VICTIM));
      assert.ok((await victim.waitSent(5000)) > 0);
      assert.throws(() => writeFileSync(join(dir, 'rest'), new Uint8Array(4 * MIB)), /ENOSPC/);
      const mark = running.mark;
      await fed(VICTIM, async () => {
        await running.line(
          /device \d+: its memory file has holes, and there is no room to fill them: disconnected$/,
          mark,
        );
        await others.exchangesMore();
      });
      await victim.close();
    } finally {
      forget();
      unmount();
    }
  });

  test('so is one that gives hugepages back until none is left to fill the hole', async (t) => {
    const pages = reserveHugepages(12);
    const skipFor = (why: string) => {
      pages.release();
      t.skip(why);
    };
    if (!pages.obtained) return skipFor(pages.why);
    if (freeHugepages() > 6) return skipFor('the hugepages of other programs are not to be taken');
    const HUGE = 2 * MIB;
    const thief = createHugeMemfd('thief', 6 * HUGE);
    try {
      const fd = createHugeMemfd('huge', 4 * HUGE);
      const memory = [{ guestAddr: GUEST_ADDR, size: 4 * HUGE, fd }];
      const victim = await connect({ bufferBytes: 16384, memory });
      assert.equal(fallocate(fd, PUNCH_HOLE | KEEP_SIZE, HUGE, 3 * HUGE), 0); // all but the rings
      for (let n = 0; n < 6; n++) fallocate(thief, 0, n * HUGE, HUGE);
      const mark = running.mark;
      await fed('ff:ff:ff:ff:ff:ff', async () => {
        await running.line(
          /device \d+: its memory file has holes, and there is no room to fill them: disconnected$/,
          mark,
        );
        await others.exchangesMore();
      });
      await victim.close();
    } finally {
      closeSync(thief);
      pages.release();
    }
  });

  for (const [what, touched, kicks] of [
    ['never written', false, 0],
    ['blank where a kicked ring should be', true, 2],
  ] as const) {
    test(`private memory, a file ${what}, is refused with the region and the option to use`, async () => {
      const frontEnd = await FrontEnd.connect(running.socket);
      const eventfd = createEventfd();
      const shared = createMemfd('shared', MIB);
      const hidden = createMemfd('hidden', MIB); // what the guest writes is in a copy of its own
      try {
        const mark = running.mark;
        writeSync(shared, new Uint8Array(4096));
        if (touched) writeSync(hidden, new Uint8Array([1]), 0, 1, MIB / 2);
        await frontEnd.setOwner();
        await frontEnd.setFeatures(await frontEnd.getFeatures());
        const region = { size: MIB, fileOff: 0 };
        await frontEnd.setMemTable([
          { ...region, guestAddr: 0, frontendAddr: 0, fd: shared },
          { ...region, guestAddr: 2 ** 32, frontendAddr: 2 ** 32, fd: hidden },
        ]);
        const { descOff, availOff, usedOff } = splitLayout(256);
        await frontEnd.setVringNum(0, 256);
        const [descAddr, availAddr, usedAddr] = [descOff, availOff, usedOff].map((off) => 2 ** 32 + off);
        await frontEnd.setVringAddr(0, { flags: 0, descAddr, availAddr, usedAddr, logAddr: 0 });
        await frontEnd.setVringKick(0, eventfd);
        for (let n = 0; n < kicks; n++) signal(eventfd);
        const line = await running.line(/error: socket .*private/, mark);
        assert.match(line, /guest memory region 1 is private: start QEMU with share=on/);
        assert.equal(await frontEnd.onClose, undefined);
        await others.exchangesMore();
      } finally {
        frontEnd.close();
        for (const fd of [eventfd, shared, hidden]) closeSync(fd);
      }
    });
  }

  test('memory that is too short is refused with the region and both sizes', async () => {
    const frontEnd = await FrontEnd.connect(running.socket);
    const fd = createMemfd('short', MIB);
    try {
      const mark = running.mark;
      await frontEnd.setOwner();
      await frontEnd.setMemTable([{ guestAddr: 0, frontendAddr: 0, size: 2 * MIB, fileOff: 0, fd }]);
      const line = await running.line(/error: .*too short/, mark);
      assert.match(
        line,
        /SET_MEM_TABLE: guest memory region 0 is too short: 2097152 bytes are needed, its file has 1048576/,
      );
    } finally {
      frontEnd.close();
      closeSync(fd);
    }
  });

  test('after all that the others have not lost a frame and the switch ends cleanly', async () => {
    await others.stop();
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});

const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const libc = koffi.load(null);
const memfdCreate = libc.func('memfd_create', 'int', ['str', 'uint']);
const fallocate = libc.func('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']);

/** A file of 2 MiB pages. */
function createHugeMemfd(name: string, bytes: number): number {
  const fd = memfdCreate(name, MFD_CLOEXEC | MFD_HUGETLB | (21 << 26));
  assert.ok(fd >= 0, 'memfd_create');
  ftruncateSync(fd, bytes);
  return fd;
}
