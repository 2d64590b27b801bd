/** Postcopy: a guest runs here while its pages still come, one by one, from where it was. The test is QEMU, and has the pages. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../../src/uapi/vhost-user.ts';
import { PageFiller } from '../kit/page-filler.ts';
import { Lane, Traffic } from './lanes.ts';
import { closeStepCards, StepCard } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { Conversation, frame, macOf } from './traffic.ts';

const MIB = 2 ** 20;
const PAGE = 4096;
const PROTOCOL = [VHOST_USER_PROTOCOL_F_MQ, VHOST_USER_PROTOCOL_F_REPLY_ACK, VHOST_USER_PROTOCOL_F_PAGEFAULT];
const MEMORY = [0, 0x1_2340_0000].map((guestAddr) => ({ guestAddr, size: MIB }));
/** So long may others wait for each other when a guest's front end dies that owes the switch a page: closing is all it takes. */
const FREED_WITHIN_MS = 1000;

const sources = new Set<Source>();

/** QEMU at the receiving end: knows what is on every page, and puts there what the switch asks for. */
class Source {
  readonly card: StepCard;
  readonly #pages: readonly Uint8Array[];
  readonly #filler: PageFiller;
  readonly #bases: readonly bigint[];
  readonly filled = new Set<bigint>();
  faults = 0;
  #running = false;
  #done: Promise<void> = Promise.resolve();

  private constructor(card: StepCard, pages: readonly Uint8Array[], filler: PageFiller, bases: readonly bigint[]) {
    this.card = card;
    this.#pages = pages;
    this.#filler = filler;
    this.#bases = bases;
    sources.add(this);
  }

  /** Brings a guest to the switch without any of its pages, serves those, and starts its rings. Its driver stands still. */
  static async bring(card: StepCard, path: string): Promise<Source> {
    const { source, stood } = await Source.offer(card, path);
    source.serve(); // a ring that starts is touched
    await card.enable();
    // the driver must not look: it has no pages either
    for (const index of card.vrings) await card.startRing(index, { base: stood[index] });
    await card.frontEnd.getFeatures();
    return source;
  }

  /** The same, up to the start of the rings; and where those stood. */
  static async offer(card: StepCard, path: string): Promise<{ source: Source; stood: number[] }> {
    const stood = await card.stop();
    const pages = card.snapshot();
    await card.moveTo(path, []);
    const { frontEnd } = card;
    const filler = new PageFiller(await frontEnd.postcopyAdvise());
    await frontEnd.postcopyListen();
    const bases = await frontEnd.setMemTablePostcopy(card.regions);
    const source = new Source(card, pages, filler, bases.map(BigInt));
    await frontEnd.postcopyReady();
    return { source, stood };
  }

  #copy(address: bigint): void {
    const i = this.#bases.findIndex((base) => address >= base && address < base + BigInt(MIB));
    assert.ok(i >= 0, `0x${address.toString(16)} is none of the guest’s pages`);
    if (this.filled.has(address)) return; // two lcores may ask for the same
    const at = Number(address - this.#bases[i]);
    this.#filler.copy(address, this.#pages[i].slice(at, at + PAGE));
    this.filled.add(address);
  }

  /** Fills pages as they are asked for, until `stop`. */
  serve(): void {
    this.#running = true;
    this.#done = (async () => {
      while (this.#running) {
        const address = this.#filler.poll();
        if (address === undefined) await sleep(1);
        else {
          this.faults++;
          this.#copy(address);
        }
      }
    })();
  }

  /** The next page that the switch waits for, and does not get. */
  owe(): Promise<bigint> {
    return this.#filler.fault();
  }

  async stop(): Promise<void> {
    this.#running = false;
    await this.#done;
  }

  /** All pages that nobody has asked for. */
  fillRest(): void {
    for (const base of this.#bases) for (let at = 0; at < MIB; at += PAGE) this.#copy(base + BigInt(at));
  }

  async close(): Promise<void> {
    if (!sources.delete(this)) return;
    await this.stop();
    this.#filler.close();
  }
}

describe('postcopy', { timeout: 60_000 }, () => {
  let running: SwitchProcess;
  before(async () => {
    running = await SwitchProcess.start(['--postcopy', '1']);
  });
  afterEach(async () => {
    await closeStepCards();
    for (const source of sources) await source.close();
  });
  after(() => running.kill());

  const guestOf = (mac: string, packed = false) =>
    StepCard.started({ path: running.socket, mac, memory: MEMORY, ringSize: 64, protocol: PROTOCOL, packed });

  for (const packed of [false, true])
    test(`${packed ? 'packed' : 'split'}: pages come as they are touched, under traffic, and nothing is lost`, async () => {
      const peer = await StepCard.started({ path: running.socket, mac: macOf(1) });
      const guest = await guestOf(macOf(2), packed);
      const first = new Traffic([new Lane(peer, guest), new Lane(guest, peer)]).start();
      await first.comeMore(100);
      await first.stop();
      // frames that are on the way when the guest leaves: their pages are far away when the switch reads them
      await guest.stop();
      const out = new Lane(guest, peer, { window: 40 });
      const into = new Lane(peer, guest, { window: 40 });
      out.fill();
      out.paused = true;
      const source = await Source.bring(guest, running.socket);
      guest.pairs[0].kick(1);
      const queued = new Traffic([out]);
      await running.until('what was queued to arrive', () => {
        for (let got = peer.receive(); got !== undefined; got = peer.receive()) out.take(got);
        return out.onTheWay === 0;
      });
      // and frames for it, while its driver still stands still
      into.fill();
      into.paused = true;
      await running.until('what was sent to it to be taken', () => {
        peer.pairs[0].tx.reapAll();
        return peer.pairs[0].tx.ring.nFree === peer.pairs[0].tx.ring.size;
      });
      assert.ok(source.faults > 20, `${source.faults} pages were asked for`);
      assert.ok(source.filled.size < (2 * MIB) / PAGE / 2, 'most pages are still far away');
      source.fillRest();
      await guest.frontEnd.postcopyEnd();
      await source.close();
      // the guest runs: its driver finds everything where it was
      guest.awake();
      const both = new Traffic([out, into]).start();
      await running.until('what was sent to it to be found', () => into.onTheWay === 0);
      both.resume();
      await both.comeMore(300);
      await both.stop();
      assert.equal(queued.lanes.length, 1);
      assert.ok(guest.pairs[0].rx.guardsIntact && guest.pairs[0].tx.guardsIntact);
    });

  test('a front end that dies while it owes a page: the device goes, and the others go on', async () => {
    const talk = await Conversation.start(running.socket);
    const peer = await StepCard.started({ path: running.socket, mac: macOf(1) });
    const files = running.mappedFiles;
    for (const kind of ['nothing', 'a frame', 'a ring'] as const) {
      const guest = await guestOf(macOf(2));
      const hello = frame(peer.mac, guest.mac);
      assert.ok(guest.send(hello));
      guest.flush();
      assert.deepEqual(await peer.waitFrame(5000), hello);
      const mark = running.mark;
      let source: Source;
      if (kind === 'a ring') {
        const offer = await Source.offer(guest, running.socket);
        source = offer.source;
        guest.startRing(1, { base: offer.stood[1] }).catch(() => {}); // who answers is gone by then
        await source.owe();
      } else source = await Source.bring(guest, running.socket);
      // the rings themselves are filled; what the switch touches next is not
      await source.stop();
      if (kind === 'a frame') {
        for (let n = 0; n < 8; n++) assert.ok(peer.send(frame(guest.mac, peer.mac, n)));
        peer.flush();
        await source.owe();
      }
      const owing = performance.now();
      const before = talk.talk.exchanged;
      await guest.close();
      await source.close();
      await running.line(/^DATA: \(\d+\) Device has been removed$/, mark);
      await talk.exchangesMore(20);
      const took = performance.now() - owing;
      assert.ok(talk.talk.exchanged > before);
      assert.ok(took < 5 * FREED_WITHIN_MS, `it took ${took} ms until the others had exchanged 20 frames`);
      await running.until('its memory to be unmapped', () => running.mappedFiles === files);
    }
    const { longestMs } = await talk.stop();
    assert.ok(longestMs < FREED_WITHIN_MS, `others waited ${longestMs} ms`);
  });

  test('postcopy out of order is refused, and memory slots do not go with it', async () => {
    const card = await StepCard.connect({ path: running.socket, mac: macOf(2), protocol: PROTOCOL });
    await assert.rejects(card.frontEnd.postcopyListen(), /POSTCOPY_LISTEN: the back end refuses/);
    await assert.rejects(card.frontEnd.postcopyEnd(), /POSTCOPY_END: the back end refuses/);
    new PageFiller(await card.frontEnd.postcopyAdvise()).close();
    await card.frontEnd.postcopyEnd();
    // a migration that failed: the guest can start as if there had been none
    const peer = await StepCard.started({ path: running.socket, mac: macOf(1) });
    await card.start();
    const traffic = new Traffic([new Lane(peer, card), new Lane(card, peer)]).start();
    await traffic.comeMore(50);
    await traffic.stop();
  });
});
