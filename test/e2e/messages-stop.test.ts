/** Rings that stop and go on: with and without draining, with inflight records, by a reset owner; and the eventfds beside kick and call. */
import assert from 'node:assert/strict';
import { closeSync, writeSync } from 'node:fs';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createEventfd, drain } from '../../src/sys/eventfd.ts';
import { createPipe } from '../../src/sys/pipe.ts';
import {
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
} from '../../src/uapi/vhost-user.ts';
import { featureMask, VHOST_F_LOG_ALL } from '../../src/uapi/virtio.ts';
import { asSplit } from '../../src/virtqueue/split-driver.ts';
import { GuestLog } from '../kit/guest-log.ts';
import { Lane, Traffic } from './lanes.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, frame, macOf } from './traffic.ts';

const INFLIGHT = [
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN,
];

describe('stopping', { timeout: 60_000 }, () => {
  let running: SwitchProcess;
  before(async () => {
    running = await SwitchProcess.start();
  });
  afterEach(closeStepCards);
  after(() => running.kill());

  const peerOf = () => StepCard.started({ path: running.socket, mac: macOf(1) });

  for (const packed of [false, true])
    for (const skip of [false, true])
      test(`${packed ? 'packed' : 'split'}: rings stop ${skip ? 'without draining ' : ''}under traffic, and go on where they say`, async () => {
        const peer = await peerOf();
        const protocol = [...BASIC_PROTOCOL, ...INFLIGHT];
        const card = await StepCard.connect({ path: running.socket, mac: macOf(2), protocol, packed, ringSize: 64 });
        const { frontEnd } = card;
        const area = await frontEnd.getInflightFd(2, 64);
        assert.ok(area.size > 0);
        await frontEnd.setInflightFd(area, 2, 64);
        await card.start();
        const incoming = new Lane(peer, card, { lossy: true, window: 32 });
        const traffic = new Traffic([incoming, new Lane(card, peer, { window: 32 })]).start();
        for (let turn = 0; turn < 10; turn++) {
          await traffic.comeMore(30);
          const index = turn % 2;
          const base = await (skip ? frontEnd.getVringBaseSkipDrain(index) : frontEnd.getVringBase(index));
          await traffic.whileHeld(async () => {
            const { driver } = card.ring(index);
            const held = card.snapshot();
            await sleep(5);
            const { addr } = card.ring(index);
            const off = addr - card.ram.regions[0].guestAddr;
            const bytes = driver.place.usedOff - driver.place.descOff + 8 * driver.size + 6;
            const part = (memory: Uint8Array[]) => Buffer.from(memory[0].subarray(off, off + bytes));
            assert.ok(part(held).equals(part(card.snapshot())), 'a ring that is stopped is not written');
            await frontEnd.setVringBase(index, base);
            await frontEnd.setVringKick(index, card.ring(index).kickFd);
            await frontEnd.setVringCall(index, card.ring(index).callFd);
          });
        }
        await traffic.comeMore(30);
        await traffic.stop();
        closeSync(area.fd);
      });

  test('RESET_OWNER disables the rings, and nothing else', async () => {
    const peer = await peerOf();
    const card = await StepCard.started({ path: running.socket, mac: macOf(2) });
    await assertDelivered(card, peer, [frame(peer.mac, card.mac)]);
    await card.frontEnd.resetOwner();
    assert.ok(card.send(frame(peer.mac, card.mac, 1)));
    await card.waitSent(5000);
    assert.ok(peer.send(frame(card.mac, peer.mac)));
    await peer.waitSent(5000);
    await sleep(20);
    assert.deepEqual([peer.receive(), card.receive()], [undefined, undefined]);
    await card.enable();
    await assertDelivered(card, peer, [frame(peer.mac, card.mac, 2)]);
    await assertDelivered(peer, card, [frame(card.mac, peer.mac, 3)]);
  });

  test('SET_VRING_ERR: the eventfd hears of a ring that breaks the rules', async () => {
    const card = await StepCard.started({ path: running.socket, mac: macOf(2) });
    const errFd = createEventfd();
    await card.frontEnd.setVringErr(1, errFd);
    const tx = asSplit(card.ring(1).driver);
    Atomics.store(tx.views.u16, (tx.place.availOff + 2) >> 1, 0x4000);
    card.pairs[0].kick(1);
    await running.until('the error', () => drain(errFd) > 0);
    closeSync(errFd);
  });

  test('SET_LOG_FD: the eventfd hears of what is logged', async () => {
    const peer = await peerOf();
    const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_LOG_SHMFD];
    const card = await StepCard.started({ path: running.socket, mac: macOf(2), protocol });
    const log = new GuestLog(2 ** 30 + 4 * 2 ** 20);
    const logFd = createEventfd();
    await card.frontEnd.setLogFd(logFd);
    await card.frontEnd.setLogBase(log.area);
    await assertDelivered(peer, card, [frame(card.mac, peer.mac)]);
    assert.deepEqual([drain(logFd), log.take().size], [0, 0], 'not before LOG_ALL');
    await card.frontEnd.setFeatures(card.features | featureMask(VHOST_F_LOG_ALL));
    drain(logFd);
    log.take();
    await assertDelivered(peer, card, [frame(card.mac, peer.mac, 1)]);
    await running.until('the signal', () => drain(logFd) > 0);
    assert.ok(log.take().size > 0);
    await card.frontEnd.setFeatures(card.features);
    drain(logFd);
    await assertDelivered(peer, card, [frame(card.mac, peer.mac, 2)]);
    assert.equal(drain(logFd), 0);
    closeSync(logFd);
    log.close();
  });

  test('device state: refused while a ring runs; nonsense is told by CHECK_DEVICE_STATE, and the device goes on', async () => {
    const peer = await peerOf();
    const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_DEVICE_STATE];
    const card = await StepCard.started({ path: running.socket, mac: macOf(2), protocol });
    const { frontEnd } = card;
    const give = async (direction: 'save' | 'load', bytes: Uint8Array) => {
      const { readFd, writeFd } = createPipe();
      writeSync(writeFd, bytes);
      try {
        await frontEnd.setDeviceStateFd(direction, direction === 'load' ? readFd : writeFd);
      } finally {
        closeSync(readFd);
        closeSync(writeFd);
      }
    };
    const before = running.openFds;
    await assert.rejects(give('load', Buffer.from('x')), /SET_DEVICE_STATE_FD: the back end refuses/);
    await assert.rejects(frontEnd.checkDeviceState(), /CHECK_DEVICE_STATE: the back end refuses/);
    await card.stop();
    await give('load', Buffer.from('nonsense of some length'));
    await assert.rejects(frontEnd.checkDeviceState(), /CHECK_DEVICE_STATE: the back end refuses/);
    await card.start();
    assert.equal(running.openFds, before);
    await assertDelivered(card, peer, [frame(peer.mac, card.mac)]);
    assert.equal(await frontEnd.getQueueNum(), 128);
    assert.equal(await frontEnd.getMaxMemSlots(), 509);
  });
});
