/** Guests without eventfds: kicks and calls as messages, these over the channel of SET_BACKEND_REQ_FD, and rings that are polled. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { signal } from '../../src/sys/eventfd.ts';
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
} from '../../src/uapi/vhost-user.ts';
import { featureMask, hasFeature, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { asSplit } from '../../src/virtqueue/split-driver.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard, type StepCardOptions } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, frame, macOf } from './traffic.ts';

/** Longer than the switch polls before it sleeps, and shorter than it sleeps at the longest. */
const IDLE_MS = 200;
const PROMPT_MS = 400;
const IN_BAND = [VHOST_USER_PROTOCOL_F_BACKEND_REQ, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS];

/** A card without an eventfd of its own, and what goes over its channel. */
async function inBandCard(options: Partial<StepCardOptions> & { path: string; mac: string }) {
  const card = await StepCard.connect({ protocol: [...BASIC_PROTOCOL, ...IN_BAND], ...options });
  const counts = { kicks: 0, calls: 0, errors: [] as number[] };
  const failures: unknown[] = [];
  for (const [n, pair] of card.pairs.entries())
    pair.kick = (ring) => {
      counts.kicks++;
      card.frontEnd.kickVring(2 * n + ring).catch((error) => failures.push(error));
    };
  await card.frontEnd.openChannel({
    onVringCall: (vring) => {
      counts.calls++;
      signal(card.ring(vring).callFd); // it never leaves this process
    },
    onVringError: (vring) => void counts.errors.push(vring),
  });
  await card.frontEnd.setMemTable(card.regions);
  await card.enable();
  for (const index of card.vrings) {
    await card.frontEnd.setVringNum(index, card.ring(index).driver.size);
    await card.frontEnd.setVringBase(index, card.ring(index).driver.vringBase);
    await card.frontEnd.setVringAddr(index, card.addresses(index));
  }
  card.awake(); // the first kick starts a ring
  return { card, counts, failures };
}

const frames = (from: string, to: string, n: number) =>
  Array.from({ length: n }, (_, i) => frame(to, from, i, 60 + ((i * 37) % 1455)));

describe('notifications', { timeout: 60_000 }, () => {
  let running: SwitchProcess;
  before(async () => {
    running = await SwitchProcess.start();
  });
  afterEach(closeStepCards);
  after(() => running.kill());

  /** Sends a frame when all have been idle for a while. @returns how long it took to arrive, ms */
  async function afterIdle(from: StepCard, to: StepCard): Promise<number> {
    await sleep(IDLE_MS);
    const sent = frame(to.mac, from.mac, 77);
    const began = performance.now();
    assert.ok(from.send(sent));
    from.flush();
    assert.deepEqual(await to.waitFrame(5000), sent);
    return performance.now() - began;
  }

  const kinds: Record<string, Partial<StepCardOptions>> = {
    split: {},
    'split, without EVENT_IDX': { features: featureMask(VIRTIO_F_VERSION_1) },
    packed: { packed: true },
  };
  for (const [name, options] of Object.entries(kinds))
    test(`in-band, ${name}: frames pass both ways without an eventfd, and wake a switch that sleeps`, async () => {
      const path = running.socket;
      const peer = await StepCard.started({ path, mac: macOf(1) });
      const before = running.openFds;
      const { card, counts, failures } = await inBandCard({ path, mac: macOf(2), ...options });
      assert.ok(hasFeature(card.protocolFeatures, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS));
      await assertDelivered(card, peer, frames(card.mac, peer.mac, 300));
      await assertDelivered(peer, card, frames(peer.mac, card.mac, 300));
      assert.ok(counts.calls > 0);
      for (let n = 0; n < 3; n++) {
        const { kicks } = counts;
        assert.ok((await afterIdle(card, peer)) < PROMPT_MS);
        assert.ok(counts.kicks > kicks, 'it was kicked');
        assert.ok((await afterIdle(peer, card)) < PROMPT_MS);
      }
      // rings stop and start by messages as well
      const bases = await card.stop();
      assert.equal(bases.length, 2);
      for (const index of card.vrings) await card.frontEnd.setVringBase(index, card.ring(index).driver.vringBase);
      card.awake();
      await assertDelivered(card, peer, frames(card.mac, peer.mac, 50));
      await assertDelivered(peer, card, frames(peer.mac, card.mac, 50));
      assert.deepEqual([failures, counts.errors], [[], []]);
      await card.close();
      await running.until('its descriptors to be closed', () => running.openFds === before);
    });

  test('in-band: a ring that breaks the rules is told by VRING_ERR', async () => {
    const { card, counts } = await inBandCard({ path: running.socket, mac: macOf(2) });
    await card.frontEnd.getFeatures();
    const tx = asSplit(card.ring(1).driver);
    const { views, place } = tx;
    Atomics.store(views.u16, (place.availOff + 2) >> 1, 0x4000);
    card.pairs[0].kick(1);
    await running.until('the error', () => counts.errors.length > 0);
    assert.deepEqual(counts.errors, [1]);
  });

  test('rings without a kick eventfd are polled: what nobody kicks for is soon taken', async () => {
    const path = running.socket;
    const peer = await StepCard.started({ path, mac: macOf(1) });
    const card = await StepCard.connect({ path, mac: macOf(2) });
    await card.start({ kick: false });
    for (const pair of card.pairs) pair.kick = () => {};
    await assertDelivered(card, peer, frames(card.mac, peer.mac, 50));
    await assertDelivered(peer, card, frames(peer.mac, card.mac, 50));
    for (let n = 0; n < 5; n++) {
      const took = await afterIdle(card, peer);
      assert.ok(took < PROMPT_MS, `it took ${took} ms`);
    }
  });

  test('rings without a call eventfd are not called, and work', async () => {
    const path = running.socket;
    const peer = await StepCard.started({ path, mac: macOf(1) });
    const card = await StepCard.connect({ path, mac: macOf(2) });
    await card.start({ call: false });
    for (let n = 0; n < 3; n++) {
      await sleep(IDLE_MS);
      const [there, back] = [frame(peer.mac, card.mac, n), frame(card.mac, peer.mac, n)];
      assert.ok(card.send(there));
      card.flush();
      assert.deepEqual(await peer.waitFrame(5000), there);
      assert.ok(peer.send(back));
      peer.flush();
      await running.until('the frame', () => card.ring(0).driver.ready);
      assert.deepEqual(card.receive(), back);
    }
    assert.equal(card.pairs[0].calls, 0);
  });
});
