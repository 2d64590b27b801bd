/** Guests whose rings or eventfds are hostile: each harms only itself, and the log says what it did. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { DrivenRing } from '../../src/port/net-pair.ts';
import type { VirtioUserOptions } from '../../src/port/virtio-user.ts';
import { createEventfd, signal } from '../../src/sys/eventfd.ts';
import { connectUnix } from '../../src/sys/unix-socket.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { FAULTS } from '../../src/virtqueue/fault.ts';
import { asSplit, writeDescriptor } from '../../src/virtqueue/split-driver.ts';
import { fillAndBlock } from '../kit/full-eventfd.ts';
import { SwitchProcess } from './switch-process.ts';
import { Conversation, connectGuest, FEEDER, frame, macOf, whileFed } from './traffic.ts';

const VICTIM = macOf(0x66);
const GUEST_ADDR = 0x4000_0000;

describe('rings and eventfds that are hostile', { timeout: 180_000 }, () => {
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

  /** Those that a ring alone can have: `inflight` is one of the records beside it, in `test/unit/inflight-rings.test.ts`. */
  const faults = FAULTS.slice(1).filter(({ name }) => name !== 'inflight');

  /** Puts a malformed chain, or index, into an empty ring; `way` is WRITE for a ring that the switch writes to. */
  type Poison = (ring: DrivenRing, way: number) => void;
  const describe0 = (ring: DrivenRing, i: number, addr: number, len: number, flags: number, next = 0) =>
    writeDescriptor(ring.driver.views, ring.driver.descriptorOff(i), addr, len, flags, next);
  const single =
    (addr: number, len: number, more: number, next = 0): Poison =>
    (ring, way) => {
      describe0(ring, 0, addr, len, way ^ more, next);
      asSplit(ring.driver).offer(0);
    };
  const poisons: Record<string, Poison> = {
    avail_jump: (ring) => {
      const driver = asSplit(ring.driver);
      driver.forceAvailIdx(driver.availIdx + driver.size + 1);
    },
    head_range: ({ driver }) => asSplit(driver).offer(0xffff),
    desc_range: single(GUEST_ADDR, 64, VRING_DESC_F_NEXT, 256),
    chain_loop: single(GUEST_ADDR, 64, VRING_DESC_F_NEXT, 0),
    address: single(0x1234_0000_0000, 1514, 0),
    zero_length: single(GUEST_ADDR, 0, 0),
    direction: single(GUEST_ADDR, 64, VRING_DESC_F_WRITE),
    indirect: single(GUEST_ADDR, 17, VRING_DESC_F_INDIRECT),
    no_header: single(GUEST_ADDR, 5, 0),
  };
  test('every fault of a ring has a guest that commits it', () => {
    assert.deepEqual(
      Object.keys(poisons),
      faults.map(({ name }) => name),
    );
  });

  for (const [vring, kind] of ['receive', 'transmit'].entries()) {
    for (const { name, text } of faults) {
      if (vring === 0 && name === 'no_header') continue; // a receive buffer that short is too small for a frame: no fault
      test(`a ${kind} ring with the fault ${name} is stopped and named, and nothing else is`, async () => {
        const mark = running.mark;
        const victim = await connect();
        try {
          await victim.stop();
          const ring = victim.ring(vring);
          ring.driver.reset();
          poisons[name](ring, vring === 0 ? VRING_DESC_F_WRITE : 0);
          ring.driver.publish();
          await victim.restart();
          const told = () => running.line(/vring \d stopped/, mark);
          const line = vring === 0 ? await fed('ff:ff:ff:ff:ff:ff', told) : await told();
          assert.match(
            line,
            new RegExp(`^VHOST_CONFIG: error: socket .*sock: device \\d+: vring ${vring} stopped: ${text}$`),
          );
          await others.exchangesMore(5);
          assert.equal(running.since(mark).match(/vring \d stopped/g)?.length, 1, running.since(mark));
          assert.ok(victim.connected);
          // a driver that is loaded again begins with sound rings
          await victim.restart({ reset: true });
          assert.deepEqual(await fed(VICTIM, () => victim.waitFrame(5000)).then((got) => got?.length), 1400);
        } finally {
          await victim.close();
        }
      });
    }
  }

  test('kicks and calls that are no eventfds are refused by name', async () => {
    const file = join(running.dir, 'fifo');
    execFileSync('mkfifo', [file]);
    const fds = [
      openSync(file, 'r+'),
      openSync('/dev/null', 'r+'),
      openSync(join(running.dir, 'file'), 'w+'),
      connectUnix(running.socket),
    ];
    try {
      for (const request of ['setVringKick', 'setVringCall', 'setVringErr'] as const) {
        for (const fd of fds) {
          const mark = running.mark;
          const frontEnd = await FrontEnd.connect(running.socket);
          await frontEnd[request](1, fd);
          const name = request.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
          await running.line(new RegExp(`${name}: the file descriptor is not an eventfd; connection closed$`), mark);
          assert.equal(await frontEnd.onClose, undefined);
        }
      }
      await others.exchangesMore();
    } finally {
      for (const fd of fds) closeSync(fd);
    }
  });

  test('a call eventfd that is full is not waited for', async () => {
    const victim = await connect();
    writeSync(victim.ring(0).callFd, new BigUint64Array([2n ** 64n - 2n]));
    await fed(VICTIM, () => others.exchangesMore(50));
    await victim.close();
    await others.exchangesMore();
  });

  test('a call eventfd that is full and made to block holds nobody up but its guest, which is disconnected', async () => {
    const victim = await connect({ features: featureMask(VIRTIO_F_VERSION_1) }); // without EVENT_IDX: a call a burst
    const { callFd, driver } = victim.ring(0);
    driver.enableCalls();
    fillAndBlock(callFd);
    victim.send(frame(FEEDER, VICTIM));
    victim.flush();
    const mark = running.mark;
    await fed(VICTIM, async () => {
      await running.line(/^VHOST_CONFIG: error: .*: its call eventfd is full and blocking: disconnected$/, mark);
      await others.exchangesMore(20);
    });
    assert.equal(victim.connected, false);
    await victim.close();
  });

  test('nor does an error eventfd that is full and made to block when its ring is stopped', async () => {
    const victim = await connect();
    const errFd = createEventfd();
    await victim.frontEnd.setVringErr(1, errFd);
    fillAndBlock(errFd);
    const mark = running.mark;
    const { driver, kickFd } = victim.ring(1);
    asSplit(driver).offer(0xffff);
    driver.publish();
    signal(kickFd);
    await running.line(/vring 1 stopped: the avail ring names a descriptor beyond the table|eventfd is full/, mark);
    await others.exchangesMore(20);
    await victim.close();
    closeSync(errFd);
  });

  test('after all that the others have not lost a frame and the switch ends cleanly', async () => {
    await others.stop();
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});
