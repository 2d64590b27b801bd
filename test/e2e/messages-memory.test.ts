/** Memory that comes and goes under traffic, and the announcement of a guest that has come. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { VHOST_USER_PROTOCOL_F_RARP } from '../../src/uapi/vhost-user.ts';
import type { DriverRing } from '../../src/virtqueue/driver-ring.ts';
import { Lane, type Talker, Traffic } from './lanes.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { frame, macOf } from './traffic.ts';

const MIB = 2 ** 20;
const SLOT = 2048;
const HEADER = 12;
const CANARY = 0xc7;

/** A card whose buffers are in the region of the day: one descriptor each, taken from there and given back there. */
class MovingCard implements Talker {
  readonly card: StepCard;
  readonly mac: string;
  readonly macBytes: Uint8Array;
  readonly #rx: DriverRing;
  readonly #tx: DriverRing;
  /** by region, offsets in it */
  readonly #free = new Map<number, number[]>();
  /** by ring and buffer id */
  readonly #out = [new Map<number, Slot>(), new Map<number, Slot>()] as const;
  region: number;

  constructor(card: StepCard, region: number) {
    this.card = card;
    this.mac = card.mac;
    this.macBytes = card.macBytes;
    const [rx, tx] = card.pairs[0].rings;
    this.#rx = rx.driver;
    this.#tx = tx.driver;
    this.region = region;
    for (const [n, { size }] of card.ram.regions.entries())
      this.#free.set(
        n,
        Array.from({ length: size / SLOT }, (_, i) => i * SLOT),
      );
    for (const ring of [this.#rx, this.#tx]) {
      ring.reset();
      ring.disableCalls();
    }
    this.#offerAll();
  }

  #offer(ring: DriverRing, bytes: number, write: boolean, fill?: (off: number) => void): boolean {
    if (ring.nFree === 0) return false;
    const { ram } = this.card;
    const at = this.#free.get(this.region)?.pop();
    assert.ok(at !== undefined, 'the region is used up');
    const addr = ram.regions[this.region].guestAddr + at;
    fill?.(ram.offsetOf(addr) as number);
    const id = ring.add([{ addr, len: bytes, write }]);
    assert.ok(id >= 0);
    this.#out[write ? 0 : 1].set(id, { region: this.region, at, off: ram.offsetOf(addr) as number });
    return true;
  }

  #offerAll(): void {
    while (this.#offer(this.#rx, SLOT, true));
    if (this.#rx.publish()) this.card.pairs[0].kick(0);
  }

  #reap(ring: DriverRing, which: 0 | 1): Slot | undefined {
    const id = ring.reap();
    assert.equal(ring.broken, undefined);
    const slot = this.#out[which].get(id);
    if (slot === undefined) return undefined;
    this.#out[which].delete(id);
    this.#free.get(slot.region)?.push(slot.at);
    return slot;
  }

  send(bytes: Uint8Array): boolean {
    while (this.#reap(this.#tx, 1) !== undefined);
    return this.#offer(this.#tx, HEADER + bytes.length, false, (off) => {
      this.card.ram.views.u8.fill(0, off, off + HEADER);
      this.card.ram.views.u8.set(bytes, off + HEADER);
    });
  }

  flush(): void {
    if (this.#tx.publish()) this.card.pairs[0].kick(1);
  }

  receive(): Uint8Array | undefined {
    const slot = this.#reap(this.#rx, 0);
    if (slot === undefined) return undefined;
    const frame = this.card.ram.views.u8.slice(slot.off + HEADER, slot.off + this.#rx.usedLen);
    this.#offerAll();
    return frame;
  }

  /** Buffers of a region that the device has. */
  out(region: number): number {
    while (this.#reap(this.#tx, 1) !== undefined);
    return this.#out.flatMap((map) => [...map.values()]).filter((slot) => slot.region === region).length;
  }
}

interface Slot {
  readonly region: number;
  readonly at: number;
  readonly off: number;
}

describe('memory and announcements', { timeout: 60_000 }, () => {
  let running: SwitchProcess;
  before(async () => {
    running = await SwitchProcess.start();
  });
  afterEach(closeStepCards);
  after(() => running.kill());

  for (const packed of [false, true])
    test(`${packed ? 'packed' : 'split'}: buffers move from region to region, which come and go, and no frame is lost`, async () => {
      const path = running.socket;
      const peer = await StepCard.started({ path, mac: macOf(1) });
      await running.until('the peer alone', () => running.mappedFiles === 1);
      // the rings, and two places for buffers, of which one at a time is there
      const memory = [
        { guestAddr: 0, size: 2 * MIB },
        { guestAddr: 2 ** 30, size: 2 * MIB },
        { guestAddr: 5 * 2 ** 30, size: 2 * MIB },
      ];
      const card = await StepCard.connect({ path, mac: macOf(2), memory, packed, ringSize: 128 });
      const { frontEnd, ram } = card;
      const [rings, ...places] = ram.regions;
      const moving = new MovingCard(card, 1);
      await frontEnd.addMemReg(rings);
      await frontEnd.addMemReg(places[0]);
      await card.enable();
      for (const index of card.vrings) await card.startRing(index);
      card.awake();
      const traffic = new Traffic([new Lane(peer, moving), new Lane(moving, peer)]).start();
      await traffic.comeMore(200);
      const before = { fds: running.openFds, files: running.mappedFiles };
      assert.equal(before.files, 3);

      for (let turn = 0; turn < 8; turn++) {
        const [old, next] = turn % 2 === 0 ? [1, 2] : [2, 1];
        await frontEnd.addMemReg(ram.regions[next]);
        assert.equal(running.mappedFiles, 4);
        moving.region = next;
        for (let tries = 0; moving.out(old) > 0; tries++) {
          assert.ok(tries < 2000, `${moving.out(old)} buffers of the old region are not given back`);
          await sleep(1);
        }
        await frontEnd.remMemReg(ram.regions[old]);
        const off = ram.offsetOf(ram.regions[old].guestAddr) as number;
        ram.views.u8.fill(CANARY, off, off + 2 * MIB);
        assert.deepEqual({ fds: running.openFds, files: running.mappedFiles }, before);
        await traffic.comeMore(100);
        const there = ram.views.u8.subarray(off, off + 2 * MIB);
        assert.ok(
          there.every((byte) => byte === CANARY),
          'the region that was removed has been written to',
        );
      }
      await traffic.stop();
      await card.close();
      await running.until('its memory to be unmapped', () => running.mappedFiles === 1);
      await peer.close();
    });

  test('the region of running rings can be removed and given again: they stand still meanwhile', async () => {
    const path = running.socket;
    const peer = await StepCard.started({ path, mac: macOf(1) });
    const memory = [0, 2 ** 30].map((guestAddr) => ({ guestAddr, size: 2 * MIB }));
    const card = await StepCard.connect({ path, mac: macOf(2), memory, ringSize: 128 });
    const { frontEnd, ram } = card;
    for (const region of ram.regions) await frontEnd.addMemReg(region);
    await card.enable();
    for (const index of card.vrings) await card.startRing(index);
    card.awake();
    const traffic = new Traffic([new Lane(peer, card, { lossy: true }), new Lane(card, peer)]).start();
    for (let turn = 0; turn < 5; turn++) {
      await traffic.comeMore(50);
      await frontEnd.remMemReg(ram.regions[0]);
      const off = ram.offsetOf(0) as number;
      await traffic.whileHeld(async () => {
        const held = Buffer.from(ram.views.u8.slice(off, off + 2 * MIB));
        await sleep(10);
        assert.ok(held.equals(ram.views.u8.subarray(off, off + 2 * MIB)), 'nobody writes to what was removed');
      });
      await frontEnd.addMemReg(ram.regions[0]);
      card.awake();
    }
    await traffic.comeMore(50);
    await traffic.stop();
  });

  test('SEND_RARP: all others hear of the guest’s new place, and the switch sends its frames there', async () => {
    const path = running.socket;
    const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_RARP];
    const [old, other, bystander] = await Promise.all(
      [2, 3, 4].map((n) => StepCard.started({ path, mac: macOf(n), protocol })),
    );
    const said = frame(other.mac, old.mac);
    for (const card of [old, other]) {
      assert.ok(card.send(frame(card === old ? other.mac : old.mac, card.mac)));
      card.flush();
    }
    assert.deepEqual(await other.waitFrame(5000), said);
    assert.ok(await old.waitFrame(5000));
    while (bystander.receive() !== undefined);

    // the guest has moved: another card has its address now, and its driver has not sent a thing
    const moved = await StepCard.started({ path, mac: old.mac, protocol });
    const mac = moved.macBytes.reduceRight((word, byte) => (word << 8n) | BigInt(byte), 0n);
    await moved.frontEnd.sendRarp(mac | (0xabcdn << 48n)); // what is behind the six bytes does not matter
    for (const card of [old, other, bystander]) {
      const heard = Buffer.from((await card.waitFrame(5000)) ?? []);
      assert.equal(heard.length, 60);
      const hex = moved.mac.replaceAll(':', '');
      const rarp = `ffffffffffff${hex}80350001080006040003${hex}00000000${hex}00000000`;
      assert.equal(heard.toString('hex'), rarp.padEnd(120, '0'));
    }
    assert.equal(moved.receive(), undefined, 'who announces itself does not hear that');
    const late = frame(moved.mac, other.mac, 7);
    assert.ok(other.send(late));
    other.flush();
    assert.deepEqual(await moved.waitFrame(5000), late);
    await sleep(20);
    for (const card of [old, bystander]) assert.equal(card.receive(), undefined, 'it went to the new place alone');
  });
});
