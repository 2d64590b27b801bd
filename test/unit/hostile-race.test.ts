import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
} from '../../src/uapi/virtio-ring.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { type Flip, Flipper } from '../kit/flipper.ts';
import { frame, mac } from '../kit/frames.ts';
import { Ram } from '../kit/ram.ts';
import { FORMATS, type RawRing } from '../kit/raw-ring.ts';
import { assertCounted, TestGuest, TestSwitch } from '../kit/test-switch.ts';

const ROUNDS = 20_000;
const MIB = 2 ** 20;
const SIZE = 2 * MIB;
const WINDOW_OFF = MIB;
const CANARY = 0x5c;
/** What no guest has in its own memory. */
const OUTSIDE = Buffer.alloc(16, CANARY);
const [A, B] = [mac(1), mac(2)];
const RX = 0;
const TX = 1;

/** A guest's memory in the midst of bytes that are not its own. */
class Fenced {
  readonly ram = new Ram({ base: 16 * MIB, size: SIZE, windowOff: WINDOW_OFF });
  readonly #fence: Buffer;

  constructor() {
    this.ram.bytes.fill(CANARY, 0, WINDOW_OFF);
    this.ram.bytes.fill(CANARY, WINDOW_OFF + SIZE, WINDOW_OFF + SIZE + 16 * MIB);
    this.#fence = Buffer.alloc(16 * MIB, CANARY);
  }

  assertIntact(): void {
    const { bytes } = this.ram;
    assert.ok(bytes.subarray(0, WINDOW_OFF).equals(this.#fence.subarray(0, WINDOW_OFF)), 'below guest memory');
    assert.ok(
      bytes.subarray(WINDOW_OFF + SIZE, WINDOW_OFF + SIZE + 16 * MIB).equals(this.#fence),
      'above guest memory',
    );
  }
}

/** Values for the words of descriptors 0 … n − 1: fair, or in some way bad. Every word changes on its own. */
function flips(ring: RawRing, n: number, addr: (i: number) => number, len: number, flags: number): Flip[] {
  const end = ring.ram.end;
  return Array.from({ length: n }, (_, i) => {
    const at = ring.descOff(i);
    const fair = addr(i) | 0;
    return [
      { off: at, values: [fair, fair, end - 20, fair, fair, end - 2048, end, 0, fair, end - 1] },
      { off: at + 4, values: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, -1] },
      { off: at + 8, values: [len, len, 64, len, 9000, len, 0x7fffffff, -1, len, 0, 11, 13] },
      { off: at + 12, values: ring.config.format === 'split' ? splitFlags(flags, (i + 1) % n) : packedFlags(flags) },
    ];
  }).flat();
}

const layouts = (flags: number) => [flags, flags, flags, flags | VRING_DESC_F_NEXT, flags];
const badLayouts = (flags: number) => [flags ^ VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT];

/** Flags and next. */
const splitFlags = (flags: number, next: number) =>
  [...layouts(flags), ...badLayouts(flags)].map((value) =>
    (value & VRING_DESC_F_NEXT) !== 0 ? value | (next << 16) : value,
  );

/** Id and flags: available in this lap or the next one, or used in either, and any layout. */
function packedFlags(flags: number): number[] {
  const [avail, used] = [1 << VRING_PACKED_DESC_F_AVAIL, 1 << VRING_PACKED_DESC_F_USED];
  const laps = [avail, used, avail, used, avail | used, avail, used, 0];
  return Array.from({ length: 29 }, (_, i) => {
    const all = i % 9 < 7 ? layouts(flags) : badLayouts(flags);
    return ((all[i % all.length] | laps[i % laps.length]) << 16) | ((i * 0x9e37) & 0xffff);
  });
}

/** Makes 16 descriptors available, whatever is in them; in a packed ring the flipper does so. */
function offerAnything(ring: RawRing): void {
  if (ring.config.format === 'packed') return;
  ring.availIdx = (ring.usedIdx + 16) & 0xffff;
  ring.publish();
}

/** Starts a vring again that has been stopped for a fault. @returns true if it had to */
function revive(on: TestSwitch, guest: TestGuest, vring: number): boolean {
  if (on.events.length === 0) return false;
  on.events.length = 0;
  const base = on.lcore.stopVring(guest.id, vring);
  const ring = vring === RX ? guest.rx : guest.tx;
  on.lcore.startVring(guest.id, vring, ring.vring(true, NO_FD, base));
  return true;
}

for (const format of FORMATS) {
  test(`${format} ring: a sender that changes its descriptors while they are read does no harm`, async () => {
    const fenced = new Fenced();
    const receiverFenced = new Fenced();
    const on = new TestSwitch();
    const hostile = new TestGuest(on, 0, { format, ram: fenced.ram, num: 32 });
    const victim = new TestGuest(on, 1, { ram: receiverFenced.ram, num: 64 });
    hostile.send(frame(B, A));
    victim.send(frame(A, B));
    on.settle();
    hostile.received();
    victim.received();
    hostile.send(...Array.from({ length: 32 }, () => frame(B, A, 200)));
    on.settle();
    on.events.length = 0;

    const flipper = new Flipper(
      fenced.ram.views.memory!,
      flips(hostile.tx, 32, (i) => hostile.txSlot(i).addr, 212, 0),
    );
    await flipper.started();
    const { tx } = hostile;
    let faults = 0;
    let got = 0;
    for (let i = 0; i < ROUNDS || faults === 0 || got === 0; i++) {
      for (const bytes of victim.received()) {
        got++;
        assert.ok(!bytes.includes(OUTSIDE), 'the victim sees what the sender has no right to');
      }
      offerAnything(tx);
      on.lcore.poll();
      if (revive(on, hostile, TX)) faults++;
    }
    await flipper.stop();
    fenced.assertIntact();
    receiverFenced.assertIntact();
    assertCounted(hostile, victim);
  });

  for (const mergeable of [false, true])
    test(`${format} ring: a receiver that changes its ${mergeable ? 'mergeable ' : ''}descriptors while they are filled is alone harmed`, async () => {
      const fenced = new Fenced();
      const senderFenced = new Fenced();
      const on = new TestSwitch();
      const hostile = new TestGuest(on, 0, { format, ram: fenced.ram, num: 32, bufferBytes: 1500, mergeable });
      const sender = new TestGuest(on, 1, { ram: senderFenced.ram, num: 32, mergeable });
      hostile.send(frame(B, A));
      on.settle();
      const buffers = Array.from({ length: 32 }, (_, i) => fenced.ram.views.dv.getUint32(hostile.rx.descOff(i), true));
      sender.send(...[60, 1500, 300, 2000].map((len) => frame(A, B, len)));
      on.settle();
      on.events.length = 0;

      const flipper = new Flipper(
        fenced.ram.views.memory!,
        flips(hostile.rx, 32, (i) => buffers[i], 1512, VRING_DESC_F_WRITE),
      );
      await flipper.started();
      const { rx } = hostile;
      const { tx } = sender;
      let faults = 0;
      const before = hostile.counters.rx_packets;
      for (let i = 0; i < ROUNDS || faults === 0 || hostile.counters.rx_packets === before; i++) {
        offerAnything(rx);
        // the four frames again, from the slots they lie in
        for (let slot = 0; slot < 4; slot++) tx.offer(slot);
        tx.publish();
        on.lcore.poll();
        if (revive(on, hostile, RX)) faults++;
      }
      await flipper.stop();
      fenced.assertIntact();
      senderFenced.assertIntact();
      assertCounted(hostile, sender);
    });
}
