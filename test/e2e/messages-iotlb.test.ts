/** Guests behind an IOMMU: translations on demand, taken back under traffic, refused, and far more than anyone needs. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ChainLayout } from '../../src/port/net-queue.ts';
import {
  VHOST_ACCESS_RO,
  VHOST_ACCESS_RW,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../../src/uapi/vhost-user.ts';
import { hasFeature, VIRTIO_F_ACCESS_PLATFORM } from '../../src/uapi/virtio.ts';
import { IommuGuest, type IommuOptions } from './iommu-guest.ts';
import { Lane, Traffic } from './lanes.ts';
import { closeStepCards, StepCard } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { Conversation, macOf } from './traffic.ts';

const WITH_ACK = [VHOST_USER_PROTOCOL_F_MQ, VHOST_USER_PROTOCOL_F_REPLY_ACK];
const indirect: ChainLayout = { pieces: 700, indirect: true };
/** Others may wait so long for each other while a guest keeps the switch busy. */
const NOT_LONG_MS = 1000;

const GUESTS: Record<string, Partial<IommuOptions>> = {
  'split, with REPLY_ACK': { protocol: WITH_ACK },
  'split, without REPLY_ACK': { protocol: [VHOST_USER_PROTOCOL_F_MQ] },
  'packed, with REPLY_ACK': { protocol: WITH_ACK, packed: true },
  'packed, without REPLY_ACK': { protocol: [VHOST_USER_PROTOCOL_F_MQ], packed: true },
  'split, indirect tables': { protocol: WITH_ACK, rxLayout: indirect, txLayout: indirect },
};

describe('IOTLB_MSG', { timeout: 120_000 }, () => {
  let running: SwitchProcess;
  before(async () => {
    running = await SwitchProcess.start(['--iommu', '1', '--mergeable', '1']);
  });
  afterEach(closeStepCards);
  after(() => running.kill());

  async function start(options: Partial<IommuOptions>) {
    const path = running.socket;
    const peer = await StepCard.started({ path, mac: macOf(1) });
    const guest = await IommuGuest.connect({ path, mac: macOf(2), ringSize: 64, ...options });
    assert.ok(hasFeature(guest.card.features, VIRTIO_F_ACCESS_PLATFORM));
    await guest.card.start();
    const lanes = [new Lane(peer, guest.card, { lossy: true, window: 32 }), new Lane(guest.card, peer, { window: 32 })];
    return { peer, guest, lanes, traffic: new Traffic(lanes).start() };
  }

  for (const [name, options] of Object.entries(GUESTS))
    test(`${name}: given on demand; and what is taken back under traffic is not touched any more`, async () => {
      const { guest, traffic } = await start(options);
      await traffic.comeMore(300);
      assert.ok(guest.misses >= 40, `${guest.misses} translations were asked for`);
      const { ringPages } = guest;
      for (let turn = 0; turn < 40; turn++) {
        // all buffers, one after the other, and sometimes the rings
        const page = ringPages + ((turn * 7) % 90);
        await traffic.whileHeld(() => guest.remap(page));
        if (turn % 20 === 10) await traffic.whileHeld(() => guest.remap(1, ringPages));
        if (turn % 10 === 0) await traffic.comeMore(10);
      }
      await traffic.comeMore(200);
      await guest.forget();
      await traffic.comeMore(200);
      assert.ok(guest.assertRetired() > 40);
      await traffic.stop();
    });

  test('what may only be read is not written; what nobody answers holds up nobody else', async () => {
    const talk = await Conversation.start(running.socket);
    const { peer, guest, traffic, lanes } = await start({ protocol: WITH_ACK, allow: () => VHOST_ACCESS_RW });
    await traffic.comeMore(100);
    const { ringPages } = guest;
    // from now on buffers may be read only: the guest can send, and receives nothing
    guest.allow = (page) => (page < ringPages ? VHOST_ACCESS_RW : VHOST_ACCESS_RO);
    await traffic.whileHeld(() => guest.forget());
    lanes[0].paused = true;
    await traffic.comeMore(200);
    lanes[0].paused = false;
    const [came, held] = [lanes[0].came, guest.card.snapshot()];
    await talk.exchangesMore(100);
    assert.ok(lanes[0].came - came <= 64, 'frames that were there before');
    // of the buffers the device may have read, none has been written since
    lanes[1].paused = true;
    await sleep(150);
    await traffic.whileHeld(async () => {
      const was = guest.card.snapshot();
      await sleep(150);
      const from = 0x1000 * ringPages;
      assert.ok(Buffer.from(was[0].subarray(from)).equals(guest.card.snapshot()[0].subarray(from)));
      assert.equal(held.length, was.length);
    });
    lanes[1].paused = false;
    // now nothing is answered at all
    guest.allow = () => 0;
    await traffic.whileHeld(() => guest.forget());
    const asked = guest.misses;
    await talk.exchangesMore(100);
    assert.ok(guest.misses - asked < 20, `the same was asked for ${guest.misses - asked} times`);
    // and then all of it, again: the switch asks again in a while
    guest.allow = () => VHOST_ACCESS_RW;
    await traffic.comeMore(100);
    await traffic.stop();
    const { longestMs } = await talk.stop();
    assert.ok(longestMs < NOT_LONG_MS, `others waited ${longestMs} ms`);
    await peer.close();
  });

  test('thousands of translations that nobody needs cost the others little, and the guest finds its own again', async () => {
    const talk = await Conversation.start(running.socket);
    const { guest, traffic } = await start({ protocol: WITH_ACK });
    await traffic.comeMore(100);
    for (let page = 0; page < 3000; page += 50)
      await Promise.all(Array.from({ length: 50 }, (_, i) => guest.mapOther(page + i)));
    const { misses } = guest;
    await traffic.comeMore(200);
    await traffic.stop();
    const { longestMs } = await talk.stop();
    assert.ok(guest.misses > misses, 'those that were in use had to give way');
    assert.ok(longestMs < NOT_LONG_MS, `others waited ${longestMs} ms`);
  });
});
