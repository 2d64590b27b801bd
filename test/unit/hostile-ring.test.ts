import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { createEventfd, drain } from '../../src/sys/eventfd.ts';
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { FAULTS } from '../../src/virtqueue/fault.ts';
import { badChains, type Layout } from '../kit/bad-chains.ts';
import { frame, mac } from '../kit/frames.ts';
import { Ram } from '../kit/ram.ts';
import { FORMATS } from '../kit/raw-ring.ts';
import { type GuestOptions, TestGuest, TestSwitch } from '../kit/test-switch.ts';

const HEADER = 12;
const [A, B, C] = [mac(1), mac(2), mac(3)];
const LAYOUT_BYTES = 4096;

/** Three guests that know each other; the first has memory to lay hostile chains in. */
function threeGuests(options: GuestOptions = {}, errFd?: number) {
  const on = new TestSwitch();
  const hostile = new TestGuest(on, 0, options);
  const second = new TestGuest(on, 1);
  const third = new TestGuest(on, 2);
  hostile.send(frame(B, A));
  second.send(frame(A, B));
  third.send(frame(A, C));
  on.settle();
  hostile.received();
  second.received();
  third.received();
  if (errFd !== undefined) {
    on.lcore.stopVring(0, 1);
    on.lcore.startVring(0, 1, hostile.tx.vring(true, errFd, hostile.tx.base));
  }
  on.events.length = 0;
  return { on, hostile, second, third };
}

/** Both other guests still reach each other. */
function othersWork({ on, second, third }: ReturnType<typeof threeGuests>): void {
  const there = frame(C, B, 200);
  const back = frame(B, C, 300);
  second.send(there);
  third.send(back);
  on.settle();
  assert.deepEqual(third.received(), [there]);
  assert.deepEqual(second.received(), [back]);
}

/** Where the hostile chain's pieces and table may lie. */
function layoutIn({ ram }: TestGuest): Layout {
  return { data: ram.alloc(LAYOUT_BYTES), table: ram.alloc(LAYOUT_BYTES, 16), first: ram.base, end: ram.end };
}

/** Sends another frame, unless the bad chain fills the ring, as one without an end does in a packed ring. */
function sendMore(hostile: TestGuest): void {
  if (hostile.tx.room > 0) hostile.send(frame(B, A));
  else hostile.tx.publish();
}

const faultCounters = (guest: TestGuest) => guest.nonZero('ring_fault_');

for (const jump of [65, 1000, 0xffff])
  test(`split ring: an avail index ${jump} ahead of a ring of 64 stops it`, () => {
    const guests = threeGuests({ format: 'split' });
    const { on, hostile, second } = guests;
    hostile.tx.availIdx = (hostile.tx.availIdx + jump) & 0xffff;
    hostile.tx.publish();
    on.settle();
    assert.deepEqual(on.events, ['fault 0/1 avail_jump']);
    // the receive ring's index is looked at again when all that was seen there is used up
    second.send(...Array.from({ length: 64 }, () => frame(A, B)));
    on.settle();
    hostile.rx.availIdx = (hostile.rx.usedIdx + jump) & 0xffff;
    hostile.rx.publish();
    second.send(frame(A, B));
    on.settle();
    assert.equal(on.events[1], 'fault 0/0 avail_jump');
    assert.deepEqual(faultCounters(hostile), { ring_fault_avail_jump: 2 });
    second.received();
    othersWork(guests);
  });

for (const format of FORMATS) {
  for (const { name, fault, indirect = true, build } of badChains(0, format))
    test(`${format} ring: ${name} stops only that transmit ring, by the name of ${fault}`, () => {
      const guests = threeGuests({ format, indirect });
      const { on, hostile, second } = guests;
      const good = [frame(B, A, 60), frame(B, A, 700), frame(B, A, 90)];
      const usedBefore = hostile.tx.usedIdx;
      hostile.send(...good);
      hostile.tx.offer(build(hostile.tx, layoutIn(hostile)));
      sendMore(hostile);
      on.settle();
      assert.deepEqual(second.received(), good, 'what came before is delivered, what came after is not');
      assert.equal(hostile.tx.usedIdx - usedBefore, 3);
      assert.deepEqual(faultCounters(hostile), { [`ring_fault_${fault}`]: 1 });
      assert.deepEqual(on.events, [`fault 0/1 ${fault}`]);
      sendMore(hostile);
      on.settle();
      assert.deepEqual(second.received(), [], 'the ring stays stopped');
      const toHostile = frame(A, B, 100);
      second.send(toHostile);
      on.settle();
      assert.deepEqual(hostile.received(), [toHostile], 'its receive ring goes on');
      othersWork(guests);
    });

  for (const { name, fault, indirect = true, build } of badChains(VRING_DESC_F_WRITE, format)) {
    if (fault === 'no_header') continue; // a receive buffer that short is too small, no fault
    test(`${format} ring: ${name} stops only that receive ring, by the name of ${fault}`, () => {
      const guests = threeGuests({ format, indirect, buffers: 3 });
      const { on, hostile, second } = guests;
      for (const id of [4, 5]) hostile.rx.offer(id);
      hostile.rx.publish();
      // three buffers have been offered again, two are new
      hostile.rx.offer(build(hostile.rx, layoutIn(hostile)));
      if (hostile.rx.room > 0) hostile.rx.offer(6);
      hostile.rx.publish();
      const sent = Array.from({ length: 8 }, (_, i) => frame(A, B, 64 + i));
      second.send(...sent);
      on.settle();
      assert.deepEqual(hostile.received(), sent.slice(0, 5));
      assert.deepEqual(faultCounters(hostile), { [`ring_fault_${fault}`]: 1 });
      assert.deepEqual(hostile.nonZero('rx_drop_'), { rx_drop_fault: 3 });
      assert.deepEqual(second.nonZero('tx_drop_'), { tx_drop_receiver: 3 });
      assert.deepEqual(on.events, [`fault 0/0 ${fault}`]);
      second.send(frame(A, B));
      on.settle();
      assert.deepEqual(hostile.received(), [], 'the ring stays stopped');
      assert.equal(hostile.counters.rx_drop_not_ready, 1);
      const fromHostile = frame(B, A);
      hostile.send(fromHostile);
      on.settle();
      assert.deepEqual(second.received(), [fromHostile], 'its transmit ring goes on');
      othersWork(guests);
    });
  }

  test(`${format} ring: an avail index as far ahead as the ring is long is no fault`, () => {
    const { on, hostile, second } = threeGuests({ format });
    const sent = Array.from({ length: 64 }, (_, i) => frame(B, A, 64 + i));
    hostile.send(...sent);
    on.settle();
    assert.deepEqual(second.received(), sent);
    assert.deepEqual(faultCounters(hostile), {});
  });

  test(`${format} ring: a header in pieces of one byte, and every other fair layout, is taken`, () => {
    const { on, hostile, second } = threeGuests({ format });
    const { ram, tx } = hostile;
    const { data, table } = layoutIn(hostile);
    const sent = frame(B, A, 333);
    sent.copy(ram.bytes, data.off + HEADER);
    const at = (from: number, len: number) => ({ addr: data.addr + from, len });
    const oneByOne = [...Array.from({ length: HEADER }, (_, i) => at(i, 1)), at(HEADER, 333)];
    const ids = (n: number) => Array.from({ length: n }, (_, i) => 40 + i);

    tx.chain(ids(13), oneByOne, 0);
    tx.offer(40);
    tx.publish();
    on.settle();
    // some pieces, and an indirect table for the rest; its own write flag means nothing (§2.7.5.3.2, §2.8.8)
    const direct = format === 'split' ? 2 : 0;
    const rest = oneByOne.slice(direct);
    const [one, two, three] = ids(3);
    const tableAt = [one, two, three][direct];
    tx.chain([one, two], oneByOne.slice(0, direct), 0);
    if (direct > 0) tx.describe(two, oneByOne[1], VRING_DESC_F_NEXT, three);
    tx.chain([...rest.keys()], rest, 0, table.off);
    tx.describe(tableAt, { addr: table.addr, len: rest.length * 16 }, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE);
    tx.offer(40);
    tx.publish();
    on.settle();
    assert.deepEqual(second.received(), [sent, sent]);
    assert.deepEqual(faultCounters(hostile), {});
  });

  for (const border of [2 ** 32 + 63.5 * 2 ** 20, 2 ** 32])
    test(`${format} ring: a descriptor may go from one chunk into the next window’s at 0x${border.toString(16)}`, () => {
      const ram = new Ram({ base: border - 64 * 2 ** 20 });
      const other = new Ram({ base: border, size: 2 ** 20, windowOff: 2 ** 20 });
      const { on, hostile, second } = threeGuests({ format, ram });
      const { tx } = hostile;
      on.lcore.setMemory(0, {
        ...ram.memory,
        chunks: [...ram.chunks, ...other.chunks],
        windows: [ram.handle, other.handle],
      });
      for (const before of [1, 5, HEADER, HEADER + 14, HEADER + 1000]) {
        const sent = frame(B, A, 1400);
        const bytes = Buffer.concat([Buffer.alloc(HEADER), sent]);
        bytes.copy(ram.bytes, ram.offsetOf(other.base - before), 0, before);
        bytes.copy(other.bytes, other.offsetOf(other.base), before);
        tx.describe(50, { addr: other.base - before, len: bytes.length }, 0);
        tx.offer(50);
        tx.publish();
        on.settle();
        assert.deepEqual(second.received(), [sent], `${before} bytes before the border`);
      }
      assert.deepEqual(faultCounters(hostile), {});
    });

  test(`${format} ring: an indirect table may go from one chunk into the next window’s`, () => {
    const other = new Ram({ base: new Ram().end, size: 2 ** 20 });
    const { on, hostile, second } = threeGuests({ format });
    const { ram, tx } = hostile;
    on.lcore.setMemory(0, {
      ...ram.memory,
      chunks: [...ram.chunks, ...other.chunks],
      windows: [ram.handle, other.handle],
    });
    const { data } = layoutIn(hostile);
    const sent = frame(B, A, 200);
    sent.copy(ram.bytes, data.off + HEADER);
    const first = { addr: data.addr, len: HEADER + 20 };
    tx.describe(0, first, VRING_DESC_F_NEXT, 1, ram.offsetOf(other.base - 16));
    // all of its id and flags is zero
    other.views.dv.setBigUint64(other.offsetOf(other.base), BigInt(data.addr + first.len), true);
    other.views.dv.setUint32(other.offsetOf(other.base) + 8, sent.length - 20, true);
    tx.describe(50, { addr: other.base - 16, len: 32 }, VRING_DESC_F_INDIRECT);
    tx.offer(50);
    tx.publish();
    on.settle();
    assert.deepEqual(second.received(), [sent]);
    assert.deepEqual(on.events, []);
  });

  test(`${format} ring: a header and nothing else is a runt and no fault`, () => {
    const { on, hostile } = threeGuests({ format });
    hostile.send(Buffer.alloc(0));
    on.settle();
    assert.deepEqual(faultCounters(hostile), {});
    assert.deepEqual(hostile.nonZero('tx_drop_'), { tx_drop_runt: 1 });
  });

  test(`${format} ring: chains of 256 pieces are taken even when they do not fit one burst; one of 257 stops the ring`, () => {
    const { on, hostile, second } = threeGuests({ format, num: 1024 });
    const { ram, tx } = hostile;
    const { data } = layoutIn(hostile);
    const sent = frame(B, A, 500);
    sent.copy(ram.bytes, data.off + HEADER);
    const offer = (from: number, n: number) => {
      const pieces = Array.from({ length: n }, (_, i) => ({
        addr: data.addr + i,
        len: i === n - 1 ? HEADER + 500 - i : 1,
      }));
      tx.chain(
        Array.from({ length: n }, (_, i) => from + i),
        pieces,
        0,
      );
      tx.offer(from);
    };
    offer(100, 256);
    offer(400, 256);
    offer(700, 257);
    tx.publish();
    on.settle();
    assert.deepEqual(second.received(), [sent, sent]);
    assert.deepEqual(on.events, ['fault 0/1 chain_loop']);
  });

  test(`${format} ring: a receive buffer shorter than the header is too small for any frame, and no fault`, () => {
    const { on, hostile, second } = threeGuests({ format, buffers: 2 });
    // the two buffers offered again after the greetings, then a bad one
    hostile.rx.describe(10, { addr: hostile.ram.base, len: HEADER - 1 }, VRING_DESC_F_WRITE);
    hostile.rx.offer(10);
    hostile.rx.publish();
    second.send(frame(A, B), frame(A, B), frame(A, B));
    on.settle();
    assert.equal(hostile.received().length, 2);
    assert.deepEqual(hostile.nonZero('rx_drop_'), { rx_drop_too_big: 1 });
    assert.deepEqual(on.events, []);
  });

  test(`${format} ring: after a bad chain among mergeable buffers nothing more is delivered`, () => {
    const { on, hostile, second } = threeGuests({ format, mergeable: true, buffers: 2, bufferBytes: 256 });
    hostile.rx.describe(10, { addr: 0, len: 300 }, VRING_DESC_F_WRITE);
    hostile.rx.offer(10);
    hostile.rx.publish();
    const fits = frame(A, B, 100);
    // the second frame needs the last good buffer and the bad one; the third would fit the good one
    second.send(fits, frame(A, B, 500), frame(A, B, 100));
    on.settle();
    assert.deepEqual(hostile.received(), [fits]);
    assert.deepEqual(hostile.nonZero('rx_drop_'), { rx_drop_fault: 2 });
    assert.deepEqual(on.events, ['fault 0/0 address']);
  });

  test(`${format} ring: a fault is told on the error eventfd once, and a ring that is started again goes on`, () => {
    const errFd = createEventfd();
    const { on, hostile, second } = threeGuests({ format }, errFd);
    const { tx } = hostile;
    tx.describe(50, { addr: 0, len: 200 }, 0);
    tx.offer(50);
    tx.publish();
    on.settle();
    on.settle();
    assert.equal(drain(errFd), 1);
    const base = on.lcore.stopVring(0, 1);
    assert.equal(base, tx.base);
    tx.withdraw();
    on.lcore.startVring(0, 1, tx.vring(true, errFd, base));
    const sent = frame(B, A);
    hostile.send(sent);
    on.settle();
    assert.deepEqual(second.received(), [sent]);
    assert.equal(drain(errFd), 0);
    closeSync(errFd);
  });

  // CVE-2020-10725: what a batch is made of was not checked one by one
  for (const { name, fault, piece } of [
    { name: 'of length zero', fault: 'zero_length', piece: ({ data }: Layout) => ({ addr: data.addr, len: 0 }) },
    { name: 'without memory', fault: 'address', piece: ({ end }: Layout) => ({ addr: end, len: 200 }) },
    { name: 'that leaves memory', fault: 'address', piece: ({ end }: Layout) => ({ addr: end - 64, len: 65 }) },
  ])
    test(`${format} ring: a descriptor ${name} is found wherever in a batch it stands`, () => {
      for (const before of [0, 1, 2, 3, 4, 7, 30, 31, 32, 33]) {
        const { on, hostile, second } = threeGuests({ format, buffers: 0 });
        const layout = layoutIn(hostile);
        const { rx, tx } = hostile;
        const good = Array.from({ length: before }, (_, i) => frame(B, A, 60 + i));
        hostile.send(...good);
        tx.describe(60, piece(layout), 0);
        rx.describe(60, piece(layout), VRING_DESC_F_WRITE);
        for (let i = 0; i < before; i++) rx.offer(i);
        for (const ring of [tx, rx]) {
          ring.offer(60);
          ring.publish();
        }
        for (let i = 0; i < 3; i++) sendMore(hostile);
        on.settle();
        assert.deepEqual(second.received(), good);
        const sent = Array.from({ length: before + 1 }, (_, i) => frame(A, B, 60 + i));
        second.send(...sent);
        on.settle();
        assert.deepEqual(hostile.received(), sent.slice(0, before));
        assert.deepEqual(on.events, [`fault 0/1 ${fault}`, `fault 0/0 ${fault}`], `behind ${before} good ones`);
      }
    });

  test(`${format} ring: every fault has been provoked here`, () => {
    const provoked = new Set(
      [...badChains(0, format), ...badChains(VRING_DESC_F_WRITE, format)].map(({ fault }) => fault),
    );
    assert.deepEqual(
      FAULTS.map(({ name }) => name).filter((name) => !provoked.has(name)),
      format === 'split' ? ['none', 'avail_jump'] : ['none', 'avail_jump', 'head_range', 'desc_range'],
    );
  });
}

test('packed ring: an indirect table’s entries have no flag but WRITE; others are ignored, as are ids (§2.8.7)', () => {
  const { on, hostile, second } = threeGuests({ format: 'packed' });
  const { ram, tx } = hostile;
  const { data, table } = layoutIn(hostile);
  const sent = frame(B, A, 120);
  sent.copy(ram.bytes, data.off + HEADER);
  const pieces = [HEADER, 20, 100].map((len, i) => ({ addr: data.addr + [0, HEADER, HEADER + 20][i], len }));
  for (const [i, piece] of pieces.entries())
    tx.describe(i, piece, [0xfffd, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT][i], 0, table.off);
  tx.describe(50, { addr: table.addr, len: 48 }, VRING_DESC_F_INDIRECT);
  tx.offer(50);
  tx.publish();
  on.settle();
  assert.deepEqual(second.received(), [sent]);
  assert.deepEqual(on.events, []);
});

test('packed ring: of one descriptor works, and a chain that goes on in it stops it', () => {
  const guests = threeGuests({ format: 'packed', num: 1 });
  const { on, hostile, second } = guests;
  for (let i = 0; i < 5; i++) {
    const there = frame(B, A, 64 + i);
    const back = frame(A, B, 64 + i);
    hostile.send(there);
    second.send(back);
    on.settle();
    assert.deepEqual(second.received(), [there]);
    assert.deepEqual(hostile.received(), [back]);
  }
  hostile.tx.describe(0, { addr: hostile.txSlot(0).addr, len: 100 }, VRING_DESC_F_NEXT, 0);
  hostile.tx.offer(0);
  hostile.tx.publish();
  on.settle();
  assert.deepEqual(on.events, ['fault 0/1 chain_loop']);
  othersWork(guests);
});

test('packed ring: a driver that rewrites descriptors it has got back, or keeps them available by the old lap, is not heard', () => {
  const guests = threeGuests({ format: 'packed', num: 8 });
  const { on, hostile, second } = guests;
  const { ram, tx } = hostile;
  const wrap = (tx.base >>> 31) as 0 | 1;
  const sent = Array.from({ length: 3 }, (_, i) => frame(B, A, 64 + i));
  hostile.send(...sent);
  on.settle();
  assert.deepEqual(second.received(), sent);
  const available = wrap === 1 ? 0x80 : 0x8000;
  for (let slot = 0; slot < 8; slot++) {
    ram.views.dv.setBigUint64(tx.descOff(slot), 0n, true);
    ram.views.dv.setUint32(tx.descOff(slot) + 8, 0, true);
  }
  // those of this lap are behind the device
  const at = (tx.base >>> 16) & 0x7fff;
  for (let slot = 0; slot < at; slot++) ram.views.dv.setUint16(tx.descOff(slot) + 14, available, true);
  on.settle();
  assert.deepEqual(on.events, []);
  assert.equal(hostile.counters.tx_packets, 4);
  othersWork(guests);
});

for (const base of [0xffff_ffff, 0x8041_8041, 0x0041_0041, 0x7fff_7fff])
  test(`packed ring: a base of 0x${base.toString(16)} beyond a ring of 64 harms its own ring alone`, () => {
    const guests = threeGuests({ format: 'packed' });
    const { on, hostile } = guests;
    on.lcore.stopVring(0, 1);
    on.lcore.stopVring(0, 0);
    on.lcore.startVring(0, 1, hostile.tx.vring(true, undefined, base));
    on.lcore.startVring(0, 0, hostile.rx.vring(true, undefined, base));
    const around = ram64(hostile);
    on.settle();
    othersWork(guests);
    const stopped = on.lcore.stopVring(0, 1) as number;
    assert.ok(((stopped >>> 16) & 0x7fff) < 64 && (stopped & 0x7fff) < 64);
    assert.ok(around.equals(ram64(hostile)), 'nothing is written behind the ring');
  });

/** The bytes around a guest's transmit descriptors. */
function ram64({ ram, tx }: TestGuest): Buffer {
  const from = tx.descOff(0);
  const to = tx.descOff(64);
  return Buffer.concat([ram.bytes.subarray(from - 4096, from), ram.bytes.subarray(to, to + 4)]);
}
