/** Rings whose buffers have I/O virtual addresses: what is missing is asked for, and waited for. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Chunk } from '../../src/mem/address-map.ts';
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { frame, mac } from '../kit/frames.ts';
import { Dice } from '../kit/naive-driver.ts';
import type { Ram } from '../kit/ram.ts';
import { FORMATS, type Format } from '../kit/raw-ring.ts';
import { assertCounted, type GuestOptions, TestGuest, TestSwitch } from '../kit/test-switch.ts';

const [A, B] = [mac(1), mac(2)];
const PAGE = 4096;
const HEADER = 12;
const NUM = 64;
const hex = (addr: number) => `0x${addr.toString(16)}`;
const pageOf = (addr: number) => addr - (addr % PAGE);

const pagesOf = (misses: readonly string[]) => misses.map((miss) => pageOf(Number(miss.split(' ')[2])));

/** The pages of a guest that the front end has given translations for. */
class Pages {
  readonly #on: TestSwitch;
  readonly #ram: Ram;
  readonly #port: number;
  readonly mapped = new Map<number, 'read' | 'write'>();

  constructor(on: TestSwitch, { id, ram }: TestGuest) {
    this.#on = on;
    this.#ram = ram;
    this.#port = id;
  }

  /** Maps the pages of these addresses, for reading alone or for writing too, and tells the lcore. */
  map(permission: 'read' | 'write', ...addresses: number[]): void {
    for (const addr of addresses) this.mapped.set(pageOf(addr), permission);
    this.tell();
  }

  unmap(...addresses: number[]): void {
    for (const addr of addresses) this.mapped.delete(pageOf(addr));
    this.tell();
  }

  tell(): void {
    const chunks = [...this.mapped].map(
      ([page, permission]): Chunk => ({
        guestAddr: page,
        reach: PAGE,
        window: this.#ram.handle.id,
        windowOff: this.#ram.offsetOf(page),
        writable: permission !== 'read',
      }),
    );
    this.#on.lcore.setMemory(this.#port, { ...this.#ram.memory, chunks, iotlb: true });
  }
}

/** A guest behind an IOMMU, known as A, none of whose pages is mapped; and another, known as B. */
function start(format: Format, options: GuestOptions = {}) {
  const on = new TestSwitch();
  const guest = new TestGuest(on, 0, { format, num: NUM, ...options });
  const other = new TestGuest(on, 1, { num: 256, bufferBytes: 6000 });
  guest.send(frame(B, A));
  other.send(frame(A, B));
  on.settle();
  guest.received();
  other.received();
  on.events.length = 0;
  const pages = new Pages(on, guest);
  pages.tell();
  /** what was asked for at once, before any frame */
  const asked = on.events.splice(0);
  return { on, guest, other, pages, asked };
}

for (const format of FORMATS) {
  test(`iotlb, ${format} ring: a sender waits for the page of its frame, which is asked for once, and goes on`, () => {
    const { on, guest, other, pages } = start(format);
    const sent = [frame(B, A, 100), frame(B, A, 200)];
    const at = guest.txSlot();
    guest.send(...sent);
    for (let i = 0; i < 5; i++) on.settle();
    // the second frame's slot is on another page, which is asked for as well
    const second = at.addr + 12288;
    const asked = [`miss 0/1 ${hex(at.addr)} read`, `miss 0/1 ${hex(second)} read`];
    assert.deepEqual(on.events, asked);
    assert.equal(guest.tx.usedIdx, format === 'split' ? guest.tx.availIdx - 2 : 1);
    pages.map('read', at.addr);
    on.settle();
    assert.deepEqual(other.received(), [sent[0]]);
    pages.map('read', second);
    on.settle();
    assert.deepEqual(other.received(), [sent[1]]);
    assert.deepEqual(on.events, asked);
    assert.equal(guest.vringCounters(1).iotlb_misses, 2);
    assert.deepEqual(guest.nonZero('ring_fault_'), {});
    assertCounted(guest, other);
  });

  test(`iotlb, ${format} ring: frames before the missing page in a burst are sent, those behind it wait`, () => {
    const { on, guest, other, pages } = start(format);
    const slots = Array.from({ length: 6 }, (_, i) => guest.txSlot(i + 1).addr);
    const sent = slots.map((_, i) => frame(B, A, 60 + i));
    pages.map('read', ...slots.filter((_, i) => i !== 3));
    guest.send(...sent);
    on.settle();
    assert.deepEqual(other.received(), sent.slice(0, 3));
    assert.deepEqual(on.events, [`miss 0/1 ${hex(slots[3])} read`]);
    pages.map('write', slots[3]);
    on.settle();
    assert.deepEqual(other.received(), sent.slice(3));
  });

  test(`iotlb, ${format} ring: a receiver without pages loses frames by name, and its transmit ring goes on`, () => {
    const { on, guest, other, pages, asked } = start(format, { bufferBytes: PAGE - HEADER });
    const buffer = guest.rxBuffer(1).addr;
    assert.equal(asked[0], `miss 0/0 ${hex(buffer)} write`);
    assert.equal(guest.vringCounters(0).iotlb_misses, asked.length);
    other.send(frame(A, B), frame(A, B), frame(A, B));
    on.settle();
    assert.deepEqual(guest.nonZero('rx_drop_'), { rx_drop_iotlb_miss: 3 });
    other.send(frame(A, B));
    on.settle();
    assert.deepEqual(on.events, [], 'asked for once');
    assert.equal(guest.counters.rx_drop_iotlb_miss, 4);
    const slot = guest.txSlot();
    const toB = frame(B, A, 90);
    pages.map('read', slot.addr);
    guest.send(toB);
    on.settle();
    assert.deepEqual(other.received(), [toB]);
    pages.map('write', buffer, buffer + PAGE - 1);
    const toA = frame(A, B, 91);
    other.send(toA);
    on.settle();
    assert.deepEqual(guest.received(), [toA]);
    assertCounted(guest, other);
  });

  test(`iotlb, ${format} ring: a page that may only be read is missing for writes`, () => {
    const { on, guest, other, pages, asked } = start(format, { bufferBytes: 1000 - HEADER });
    const buffer = guest.rxBuffer(1).addr;
    const all = Array.from({ length: 20 }, (_, i) => pageOf(buffer) + PAGE * i);
    pages.map('read', ...all);
    other.send(frame(A, B));
    on.settle();
    assert.deepEqual(guest.nonZero('rx_drop_'), { rx_drop_iotlb_miss: 1 });
    assert.deepEqual(on.events, []);
    on.lcore.tick(1);
    assert.deepEqual(on.events, asked, 'after a while all is asked for again');
    const before = Buffer.from(guest.ram.bytes.subarray(guest.rxBuffer(0).off, guest.rxBuffer(0).off + 20_000));
    pages.map('write', buffer, buffer + 999);
    const fits = frame(A, B, 500);
    other.send(fits);
    on.settle();
    assert.deepEqual(guest.received(), [fits]);
    const after = guest.ram.bytes.subarray(guest.rxBuffer(0).off, guest.rxBuffer(0).off + 20_000);
    for (let i = 0; i < after.length; i++)
      if (after[i] !== before[i]) assert.equal(pages.mapped.get(pageOf(guest.rxBuffer(0).addr + i)), 'write');
  });

  test(`iotlb, ${format} ring: a descriptor over several pages asks for those that are missing, each by its first byte`, () => {
    const { on, guest, other, pages } = start(format);
    const place = guest.ram.alloc(6 * PAGE, PAGE);
    const sent = frame(B, A, 4 * PAGE - 600);
    const addr = place.addr + 300;
    sent.copy(guest.ram.bytes, place.off + 300 + HEADER);
    guest.tx.describe(60, { addr, len: HEADER + sent.length }, 0);
    guest.tx.offer(60);
    guest.tx.publish();
    pages.map('read', place.addr + 2 * PAGE);
    const asked = [addr, place.addr + PAGE, place.addr + 3 * PAGE];
    for (const iova of asked) {
      on.settle();
      assert.equal(guest.counters.tx_bytes, 64);
      pages.map('read', iova);
    }
    on.settle();
    assert.deepEqual(
      on.events,
      asked.map((iova) => `miss 0/1 ${hex(iova)} read`),
    );
    assert.equal(guest.counters.tx_bytes, 64 + sent.length);
    assert.equal(guest.counters.tx_drop_too_long, 1);
    assert.equal(other.received().length, 0);
  });

  test(`iotlb, ${format} ring: an indirect table over several pages is asked for, then what it lists`, () => {
    const { on, guest, other, pages } = start(format);
    const { tx, ram } = guest;
    const table = ram.alloc(4 * PAGE, PAGE);
    const data = ram.alloc(PAGE, PAGE);
    // 300 entries would be too many pieces; entries lie from the end of one page to the begin of the next
    const entries = 200;
    const from = table.off + PAGE - 64;
    const sent = frame(B, A, 400);
    sent.copy(ram.bytes, data.off + HEADER);
    const pieces = Array.from({ length: entries }, (_, i) => ({
      addr: data.addr + (i === 0 ? 0 : HEADER + 2 * (i - 1)),
      len: i === 0 ? HEADER : i === entries - 1 ? 400 - 2 * (entries - 2) : 2,
    }));
    tx.chain([...pieces.keys()], pieces, 0, from);
    const addr = table.addr + PAGE - 64;
    tx.describe(60, { addr, len: 16 * entries }, VRING_DESC_F_INDIRECT);
    tx.offer(60);
    tx.publish();
    for (const missing of [[addr, table.addr + PAGE], [data.addr]]) {
      on.settle();
      assert.deepEqual(
        on.events.splice(0),
        missing.map((iova) => `miss 0/1 ${hex(iova)} read`),
      );
      assert.deepEqual(other.received(), []);
      pages.map('read', ...missing);
    }
    on.settle();
    assert.deepEqual(other.received(), [sent]);
    assert.deepEqual(on.events, []);
  });

  test(`iotlb, ${format} ring: a page taken away is missed again, and a ring without any memory waits`, () => {
    const { on, guest, other, pages } = start(format);
    const slot = guest.txSlot(1);
    pages.map('read', slot.addr);
    const one = frame(B, A);
    guest.send(one);
    on.settle();
    assert.deepEqual(other.received(), [one]);
    pages.unmap(slot.addr);
    guest.tx.offer(1);
    guest.tx.publish();
    on.settle();
    assert.deepEqual(on.events, [`miss 0/1 ${hex(slot.addr)} read`]);
    pages.map('read', slot.addr);
    on.settle();
    assert.deepEqual(other.received(), [one]);
  });

  test(`iotlb, ${format} ring: a frame in mergeable buffers, one of them missing, is lost and leaves them as they were`, () => {
    const { on, guest, other, pages, asked } = start(format, { mergeable: true, bufferBytes: PAGE - HEADER });
    const buffers = [1, 2, 3].map((i) => guest.rxBuffer(i).addr);
    pages.map('write', buffers[0], buffers[0] + PAGE - 1);
    other.send(frame(A, B, 9000));
    on.settle();
    assert.deepEqual(guest.nonZero('rx_drop_'), { rx_drop_iotlb_miss: 1 });
    assert.equal(guest.received().length, 0);
    assert.equal(asked[0], `miss 0/0 ${hex(buffers[0])} write`);
    assert.deepEqual(on.events, []);
    for (const addr of buffers) pages.map('write', addr, addr + PAGE - 1);
    const sent = frame(A, B, 9000);
    other.send(sent);
    on.settle();
    assert.deepEqual(guest.received(), [sent]);
  });

  test(`iotlb, ${format} ring: what receive buffers need is asked for ahead, each page once, so that no frame is lost`, () => {
    const { on, guest, other, pages, asked } = start(format, { buffers: 16, bufferBytes: PAGE - HEADER });
    // 16 buffers of a page
    const first = pageOf(guest.rxBuffer(0).addr);
    const last = pageOf(guest.rxBuffer(16).addr - 1);
    assert.deepEqual(
      pagesOf(asked).sort((a, b) => a - b),
      Array.from({ length: (last - first) / PAGE + 1 }, (_, i) => first + i * PAGE),
    );
    pages.map('write', ...pagesOf(asked));
    for (let i = 0; i < 3 * NUM; i++) {
      const sent = frame(A, B, 60 + i);
      other.send(sent);
      on.settle();
      assert.deepEqual(guest.received(), [sent]);
      // as a strict driver does: the page of a used buffer is gone, and is mapped again for it when it is posted
      const { addr } = guest.rxBuffer((i + 1) % 16);
      pages.unmap(addr);
      if (on.events.length === 0) on.lcore.prepareSleep();
      const again = pagesOf(on.events.splice(0));
      assert.deepEqual(again, [pageOf(addr)]);
      pages.map('write', ...again);
    }
    assert.deepEqual(guest.nonZero('rx_drop_'), {});
    assertCounted(guest, other);
  });

  test(`iotlb, ${format} ring: buffers posted later are asked for before the lcore sleeps`, () => {
    const { on, guest, asked } = start(format, { buffers: 4, bufferBytes: 3 * PAGE - HEADER });
    assert.ok(!asked.includes(`miss 0/0 ${hex(guest.rxBuffer(9).addr)} write`));
    guest.rx.offer(9);
    guest.rx.publish();
    on.lcore.prepareSleep();
    assert.equal(on.events.length, 3 + (guest.rxBuffer(9).addr % PAGE === 0 ? 0 : 1));
    assert.equal(on.events[0], `miss 0/0 ${hex(guest.rxBuffer(9).addr)} write`);
    on.lcore.prepareSleep();
    assert.ok(on.events.length <= 4, 'each once');
  });

  test(`iotlb, ${format} ring: a faulty chain that is seen ahead is a fault when its turn comes`, () => {
    const { on, guest, other, pages, asked } = start(format, { buffers: 2 });
    guest.rx.describe(60, { addr: 0, len: 0 }, VRING_DESC_F_WRITE);
    guest.rx.offer(60);
    guest.rx.publish();
    on.lcore.prepareSleep();
    pages.map('write', ...pagesOf(asked));
    const sent = [frame(A, B), frame(A, B, 100)];
    other.send(...sent);
    on.settle();
    assert.deepEqual(on.events, []);
    assert.deepEqual(guest.received(), sent);
    other.send(frame(A, B));
    on.settle();
    assert.deepEqual(on.events, ['fault 0/0 zero_length']);
  });

  test(`iotlb, ${format} ring: an lcore may sleep while a ring waits`, () => {
    const { on, guest, pages } = start(format);
    guest.send(frame(B, A));
    on.settle();
    assert.ok(on.lcore.prepareSleep() > 0);
    on.lcore.wake();
    pages.map('read', guest.txSlot(1).addr);
    assert.equal(on.lcore.prepareSleep(), 0, 'there is work again');
  });

  test(`iotlb, ${format} ring: a fault is one still`, () => {
    const { on, guest } = start(format);
    guest.tx.describe(60, { addr: 0, len: 0 }, 0);
    guest.tx.offer(60);
    guest.tx.publish();
    on.settle();
    assert.deepEqual(on.events, ['fault 0/1 zero_length']);
  });

  test(`iotlb, ${format} ring: with pages mapped as they are missed everything arrives, and none is asked for in vain`, () => {
    fc.assert(
      fc.property(fc.noShrink(fc.integer()), fc.integer({ min: 200, max: 3000 }), (seed, bufferBytes) => {
        const dice = new Dice(seed);
        const { on, guest, other, pages } = start(format, { bufferBytes, mergeable: true });
        const there: Buffer[] = [];
        const back: Buffer[] = [];
        const due = { there: [] as Buffer[], back: [] as Buffer[] };
        for (let round = 0; round < 30; round++) {
          if (dice.chance(15)) pages.unmap(...[...pages.mapped.keys()].filter(() => dice.chance(30)));
          const out = Array.from({ length: dice.int(0, 6) }, () => frame(B, A, dice.int(60, 5000)));
          due.there.push(...out);
          for (const [n, bytes] of out.entries()) offerInPieces(guest, n, bytes, dice);
          const lost = guest.counters.rx_drop_iotlb_miss;
          const inward = frame(A, B, dice.int(60, 1500));
          other.send(inward);
          answer(on, pages);
          if (guest.counters.rx_drop_iotlb_miss === lost) due.back.push(inward);
          there.push(...other.received());
          back.push(...guest.received());
        }
        assertFrames(there, due.there);
        assertFrames(back, due.back);
        for (const vring of [0, 1]) assert.ok(guest.vringCounters(vring).iotlb_misses > 0);
        assert.deepEqual(guest.nonZero('ring_fault_'), {});
        assertCounted(guest, other);
      }),
      { numRuns: 15 },
    );
  });
}

/** Offers frame `n` of a round in two descriptors, somewhere in a slot. */
function offerInPieces(guest: TestGuest, n: number, bytes: Buffer, dice: Dice): void {
  const { tx, ram } = guest;
  const slot = guest.txSlot(n);
  const from = dice.int(0, 5000);
  const whole = Buffer.concat([Buffer.alloc(HEADER), bytes]);
  whole.copy(ram.bytes, slot.off + from);
  const cut = dice.int(1, whole.length - 1);
  const addr = slot.addr + from;
  const pieces = [
    { addr, len: cut },
    { addr: addr + cut, len: whole.length - cut },
  ];
  tx.chain([2 * n, 2 * n + 1], pieces, 0);
  tx.offer(2 * n);
  tx.publish();
}

/** Compares without showing: the frames are long. */
function assertFrames(actual: readonly Buffer[], expected: readonly Buffer[]): void {
  assert.equal(actual.length, expected.length);
  for (const [i, bytes] of expected.entries()) assert.ok(bytes.equals(actual[i]), `frame ${i} is whole`);
}

/** Maps what is missed until nothing is any more, and sees to it that it was not there before. */
function answer(on: TestSwitch, pages: Pages): void {
  for (let turns = 0; ; turns++) {
    assert.ok(turns < 200, 'it comes to an end');
    on.settle();
    if (on.events.length === 0) return;
    // several may be asked for at once, and one page for both
    const there = new Map(pages.mapped);
    const events = on.events.splice(0);
    for (const event of events) {
      const [, iova, permission] = /^miss 0\/[01] (0x[0-9a-f]+) (read|write)$/.exec(event) ?? assert.fail(event);
      const page = pageOf(Number(iova));
      const before = there.get(page);
      assert.ok(before === undefined || (before === 'read' && permission === 'write'), `${event}: it is there`);
      if (pages.mapped.get(page) !== 'write') pages.map(permission as 'read' | 'write', page);
    }
  }
}
