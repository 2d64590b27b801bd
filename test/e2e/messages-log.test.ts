/** The dirty log against what the switch does write: every page that changes is in it, and none that need not. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import type { ChainLayout } from '../../src/port/net-queue.ts';
import { DEFAULT_FEATURES } from '../../src/port/virtio-user.ts';
import { VHOST_USER_PROTOCOL_F_LOG_SHMFD, VHOST_VRING_F_LOG } from '../../src/uapi/vhost-user.ts';
import { featureMask, VHOST_F_LOG_ALL } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { firstBytes, GuestLog, Offered, PAGE, pagesOf, type Span } from '../kit/guest-log.ts';
import { waitUntil } from '../peers/process.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard, type StepCardOptions } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { frame, macOf } from './traffic.ts';

const MIB = 2 ** 20;
const PEER = macOf(1);
const LOGGED = macOf(2);
const LOG_ALL = featureMask(VHOST_F_LOG_ALL);
/** The last one ends in the middle of a byte of the log. */
const memoryOf = (mib: number) => [
  { guestAddr: 0, size: mib * MIB },
  { guestAddr: 0xc000_0000, size: mib * MIB },
  { guestAddr: 0x1_2340_0000, size: mib * MIB + 3 * PAGE },
];
const GUEST_END = 0x1_2340_0000 + 4 * MIB + 3 * PAGE;
const one: ChainLayout = { pieces: 'one', indirect: false };
const chains: ChainLayout = { pieces: 500, indirect: false };
const indirect: ChainLayout = { pieces: 700, indirect: true };
const notMergeable = DEFAULT_FEATURES & ~featureMask(VIRTIO_NET_F_MRG_RXBUF);

const CARDS: Record<string, Partial<StepCardOptions>> = {
  'one descriptor a buffer': { features: notMergeable, rxLayout: one },
  'chains of 500-byte pieces': { features: notMergeable, rxLayout: chains, txLayout: chains },
  'indirect tables': { features: notMergeable, rxLayout: indirect, txLayout: indirect },
  'mergeable buffers of 300 bytes': { bufferBytes: 300 },
  'mergeable chains': { bufferBytes: 900, rxLayout: chains },
  // indexes, entries and event areas have pages of their own then
  'a large ring from its middle on': { features: notMergeable, ringSize: 2048, memory: memoryOf(4) },
};
const MIDDLE = 1500;

/** Where a ring's parts lie in guest memory; the device area goes with what the device may write. */
function ringSpans(card: StepCard, index: number): { driver: Span[]; device: Span[] } {
  const { driver, addr } = card.ring(index);
  const { descOff, availOff, usedOff } = driver.place;
  const [avail, used] = [addr + availOff - descOff, addr + usedOff - descOff];
  if (driver.format === 'split')
    return {
      driver: [{ addr, len: used - addr }],
      device: [{ addr: used, len: 6 + 8 * driver.size }],
    };
  return {
    driver: [{ addr: avail, len: 4 }],
    device: [
      { addr, len: 16 * driver.size },
      { addr: used, len: 4 },
    ],
  };
}

const union = (...sets: readonly ReadonlySet<number>[]) => new Set(sets.flatMap((set) => [...set]));
const without = (set: ReadonlySet<number>, ...others: readonly ReadonlySet<number>[]) =>
  new Set([...set].filter((page) => !others.some((other) => other.has(page))));
const hex = (pages: ReadonlySet<number>) => [...pages].map((page) => `0x${(page * PAGE).toString(16)}`);

/** Pages in which two copies of the card's memory differ. */
function changedPages(card: StepCard, was: readonly Uint8Array[], is: readonly Uint8Array[]): Set<number> {
  const changed = new Set<number>();
  for (const [i, { guestAddr, size }] of card.ram.regions.entries())
    for (let at = 0; at < size; at += PAGE)
      if (!Buffer.from(was[i].buffer, at, PAGE).equals(Buffer.from(is[i].buffer, at, PAGE)))
        changed.add((guestAddr + at) / PAGE);
  return changed;
}

/** Sends frames and waits until the switch has taken them: then they have been delivered. */
async function sendAll(card: StepCard, frames: readonly Uint8Array[]): Promise<void> {
  const { tx } = card.pairs[0];
  for (const each of frames) assert.ok(card.send(each));
  card.flush();
  await waitUntil('the frames to be taken', () => tx.reapAll() >= 0 && tx.ring.nFree === tx.ring.size, 5000, {
    everyMs: 1,
  });
}

/** Fills the rings once more, now that they are listened to, from descriptor `base` on. */
function beginAgain(card: StepCard, base: number): void {
  const [{ rx, tx }] = card.pairs;
  for (const queue of [rx, tx]) {
    queue.reset();
    const { ring } = queue;
    ring.reset(ring.format === 'packed' ? base | 0x8000 : base);
    ring.disableCalls();
  }
  rx.fill();
  rx.ring.publish();
}

/** Turns logging on, as QEMU does. */
async function startLog(card: StepCard, log: GuestLog): Promise<void> {
  await card.frontEnd.setLogBase(log.area);
  await card.frontEnd.setFeatures(card.features | LOG_ALL);
  for (const index of card.vrings) await card.frontEnd.setVringAddr(index, card.addresses(index, VHOST_VRING_F_LOG));
}

describe('dirty log', { timeout: 60_000 }, () => {
  let running: SwitchProcess;
  before(async () => {
    running = await SwitchProcess.start(['--mergeable', '1']);
  });
  afterEach(closeStepCards);
  after(async () => {
    await running.kill();
  });

  for (const packed of [false, true])
    for (const [name, layout] of Object.entries(CARDS))
      test(`${packed ? 'packed' : 'split'}, ${name}: what changes is logged, and nothing else`, async () => {
        const peer = await StepCard.started({ path: running.socket, mac: PEER, ringSize: 256 });
        const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_LOG_SHMFD];
        const card = await StepCard.connect({
          ...{ path: running.socket, mac: LOGGED, memory: memoryOf(1), protocol, packed, ringSize: 128 },
          ...{ txLayout: one, ...layout },
        });
        const log = new GuestLog(GUEST_END);
        const [rx, tx] = card.pairs[0].rings.map(({ driver }) => new Offered(driver));
        beginAgain(card, layout.ringSize === undefined ? 0 : MIDDLE);
        await card.start();
        await sendAll(card, [frame(PEER, LOGGED)]);
        await sendAll(peer, [frame(LOGGED, PEER)]);
        assert.equal(log.take().size, 0);
        assert.ok(card.receive());
        await startLog(card, log);
        const rings = card.vrings.map((index) => ringSpans(card, index));
        const devicePages = pagesOf(rings.flatMap(({ device }) => device));

        for (let round = 0; round < 4; round++) {
          const sizes = Array.from({ length: 20 }, (_, n) => 60 + ((n * 149 + round * 31) % 1400));
          log.take();
          const was = card.snapshot();
          await sendAll(
            peer,
            sizes.map((bytes, n) => frame(LOGGED, PEER, n + 256 * round, bytes)),
          );
          const is = card.snapshot();
          const logged = log.take();
          const changed = changedPages(card, was, is);
          assert.deepEqual(hex(without(changed, logged)), [], 'changed, and not logged');
          // the driver looks only now: what it is told is what was written
          const out = new Map(rx.buffers);
          const written: Span[] = [];
          const { rx: queue } = card.pairs[0];
          for (let n = 0; n < sizes.length; n++) {
            assert.deepEqual(card.receive(), frame(LOGGED, PEER, n + 256 * round, sizes[n]));
            for (const [i, id] of queue.usedHeads.entries())
              written.push(...firstBytes(out.get(id) ?? [], queue.usedLens[i]));
          }
          assert.ok(
            written.some(({ addr }) => addr > 2 ** 32),
            'some buffers lie above 4 GiB',
          );
          assert.deepEqual(hex(without(pagesOf(written), logged)), [], 'written, and not logged');
          assert.deepEqual(hex(without(logged, pagesOf(written), devicePages)), [], 'logged, and not written');

          log.take();
          const wasTx = card.snapshot();
          await sendAll(
            card,
            sizes.map((bytes, n) => frame(PEER, LOGGED, n, bytes)),
          );
          const loggedTx = log.take();
          const changedTx = changedPages(card, wasTx, card.snapshot());
          const drivers = union(pagesOf(rings[1].driver), pagesOf(tx.all), pagesOf(tx.tables));
          assert.deepEqual(hex(without(changedTx, drivers, loggedTx)), [], 'changed by sending, and not logged');
          assert.deepEqual(hex(without(loggedTx, devicePages)), [], 'logged by sending, and none of the device’s');
          assert.ok(
            [...pagesOf(rings[1].device)].some((page) => loggedTx.has(page)),
            'the ring’s device area is logged',
          );
          while (peer.receive() !== undefined);
        }

        await card.frontEnd.setFeatures(card.features);
        log.take();
        await sendAll(peer, [frame(LOGGED, PEER)]);
        assert.equal(log.take().size, 0, 'logging is off');
        await card.close();
        await peer.close();
        log.close();
      });
});
