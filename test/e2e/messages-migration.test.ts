/** Live migration as QEMU does it, played by the test: dirty pages are copied until the guest stops, and it goes on elsewhere. */
import assert from 'node:assert/strict';
import { closeSync, readSync, writeSync } from 'node:fs';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ChainLayout } from '../../src/port/net-queue.ts';
import { createPipe } from '../../src/sys/pipe.ts';
import {
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_VRING_F_LOG,
} from '../../src/uapi/vhost-user.ts';
import { featureMask, VHOST_F_LOG_ALL } from '../../src/uapi/virtio.ts';
import { GuestLog, Offered, PAGE, pagesOf } from '../kit/guest-log.ts';
import { Lane, Traffic } from './lanes.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard, type StepCardOptions } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { macOf } from './traffic.ts';

const MIB = 2 ** 20;
const HIGH = 0x1_2340_0000;
const MEMORY = [
  { guestAddr: 0, size: MIB },
  { guestAddr: 0xc000_0000, size: MIB },
  { guestAddr: HIGH, size: 2 * MIB },
];
const ROUNDS = 4;
const CHECKS = 3;
const one: ChainLayout = { pieces: 'one', indirect: false };
const indirect: ChainLayout = { pieces: 700, indirect: true };

/** A guest that is being migrated: the copy that grows elsewhere, and how far it is behind. */
class Migration {
  readonly card: StepCard;
  readonly log = new GuestLog(HIGH + 2 * MIB);
  readonly copy: Uint8Array[];
  /** pages that the guest itself writes: who migrates it knows them from elsewhere */
  readonly #drivers: () => ReadonlySet<number>;
  copied = 0;

  private constructor(card: StepCard, drivers: () => ReadonlySet<number>) {
    this.card = card;
    this.#drivers = drivers;
    this.copy = card.snapshot();
  }

  static async begin(card: StepCard, drivers: () => ReadonlySet<number>): Promise<Migration> {
    const { frontEnd, features } = card;
    const migration = new Migration(card, drivers);
    await frontEnd.setLogBase(migration.log.area);
    await frontEnd.setFeatures(features | featureMask(VHOST_F_LOG_ALL));
    for (const index of card.vrings) await frontEnd.setVringAddr(index, card.addresses(index, VHOST_VRING_F_LOG));
    migration.copy.splice(0, migration.copy.length, ...card.snapshot()); // all pages, once more
    return migration;
  }

  #copyPages(pages: Iterable<number>): void {
    const { ram } = this.card;
    for (const page of pages) {
      const at = page * PAGE;
      const i = ram.regions.findIndex(({ guestAddr, size }) => at >= guestAddr && at < guestAddr + size);
      assert.ok(i >= 0, `page 0x${at.toString(16)} is dirty, and no memory`);
      const off = ram.offsetOf(at) as number;
      this.copy[i].set(ram.views.u8.subarray(off, off + PAGE), at - ram.regions[i].guestAddr);
      this.copied++;
    }
  }

  /** One round: what has become dirty since the last one. */
  round(): void {
    this.#copyPages(this.log.take());
  }

  /** With nothing under way: the copy is the memory, byte by byte. */
  assertSame(when: string): void {
    this.round();
    this.#copyPages(this.#drivers());
    for (const [i, bytes] of this.card.snapshot().entries()) {
      const at = Buffer.from(bytes).equals(this.copy[i]) ? -1 : bytes.findIndex((byte, k) => byte !== this.copy[i][k]);
      const addr = (this.card.ram.regions[i].guestAddr + at).toString(16);
      assert.equal(at, -1, `${when}: the copy differs at 0x${addr}, whose page was not logged`);
    }
  }
}

/** Moves the device's own state from one back end to another through a pipe, as front ends do. */
async function saveState(card: StepCard): Promise<Buffer> {
  const { readFd, writeFd } = createPipe();
  assert.equal(await card.frontEnd.setDeviceStateFd('save', writeFd), undefined);
  closeSync(writeFd);
  const state = Buffer.alloc(65536);
  let len = 0;
  for (let n = -1; n !== 0; ) {
    try {
      n = readSync(readFd, state, len, state.length - len, null);
      len += n;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      await sleep(1);
    }
  }
  closeSync(readFd);
  await card.frontEnd.checkDeviceState();
  return state.subarray(0, len);
}

async function loadState(card: StepCard, state: Uint8Array): Promise<void> {
  const { readFd, writeFd } = createPipe();
  assert.equal(await card.frontEnd.setDeviceStateFd('load', readFd), undefined);
  closeSync(readFd);
  writeSync(writeFd, state);
  closeSync(writeFd);
  await card.frontEnd.checkDeviceState();
}

const CARDS: Record<string, Partial<StepCardOptions>> = {
  'split rings': { txLayout: one },
  'split rings, small mergeable buffers, indirect tables': { bufferBytes: 400, txLayout: indirect, rxLayout: indirect },
  'packed rings': { packed: true },
  'packed rings, chains': { packed: true, rxLayout: { pieces: 600, indirect: false } },
};

describe('live migration', { timeout: 60_000 }, () => {
  let switches: SwitchProcess[];
  before(async () => {
    switches = await Promise.all([0, 1].map(() => SwitchProcess.start(['--mergeable', '1'])));
  });
  afterEach(closeStepCards);
  after(async () => {
    for (const one of switches) await one.kill();
  });

  for (const [name, options] of Object.entries(CARDS))
    test(`${name}: twice in a row, under traffic, no page is lost and the guest goes on`, async () => {
      const peers = await Promise.all(
        switches.map(({ socket: path }, i) => StepCard.started({ path, mac: macOf(0x10 + i) })),
      );
      const guest = await StepCard.connect({
        ...{ path: switches[0].socket, mac: macOf(2), memory: MEMORY, ringSize: 128, ...options },
        protocol: [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_LOG_SHMFD, VHOST_USER_PROTOCOL_F_DEVICE_STATE],
      });
      const [rx, tx] = guest.pairs[0].rings.map(({ driver }) => new Offered(driver));
      guest.pairs[0].reset();
      await guest.start();
      const windows = { window: 16 };
      for (const [turn, here] of [0, 1].entries()) {
        const peer = peers[here];
        const traffic = new Traffic([new Lane(peer, guest, windows), new Lane(guest, peer, windows)]).start();
        await traffic.comeMore(200);
        const drivers = () =>
          pagesOf([
            ...[...tx.all, ...tx.tables, ...rx.tables],
            ...guest.vrings.flatMap((index) => driverSpans(guest, index)),
          ]);
        const migration = await traffic.whileHeld(() => Migration.begin(guest, drivers));
        for (let check = 0; check < CHECKS; check++) {
          for (let round = 0; round < ROUNDS; round++) {
            await traffic.comeMore(40);
            migration.round();
          }
          await traffic.settle();
          migration.assertSame(`check ${check}`);
          traffic.resume();
        }
        await traffic.comeMore(100);
        await traffic.settle();
        await traffic.stop();
        // frames that are under way when the guest stops stay so: they go on at the other end
        const late = new Lane(guest, peers[1 - here], { ...windows, lossy: true });
        late.fill();
        late.paused = true;
        await guest.stop();
        migration.assertSame('the end');
        assert.ok(migration.copied > 100, `${migration.copied} pages were copied`);
        const state = await saveState(guest);
        await guest.moveTo(switches[1 - here].socket, migration.copy);
        await loadState(guest, state);
        migration.log.close();
        // the guest has sent nothing here yet, and is known all the same: nothing is flooded
        await guest.start();
        const bystander = await StepCard.started({ path: switches[1 - here].socket, mac: macOf(0x20 + turn) });
        const after = new Traffic([late, new Lane(peers[1 - here], guest, windows)]).start();
        await after.comeMore(100);
        await after.stop();
        assert.equal(bystander.receive(), undefined, 'the guest’s address came with it');
        await bystander.close();
      }
      await guest.close();
      for (const peer of peers) await peer.close();
    });
});

function driverSpans(card: StepCard, index: number) {
  const { driver, addr } = card.ring(index);
  const { descOff, availOff, usedOff } = driver.place;
  if (driver.format === 'split') return [{ addr, len: usedOff - descOff }];
  return [{ addr, len: availOff - descOff + 4 }];
}
