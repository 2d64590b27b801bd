/** What is counted for each vring, under DPDK's names, against a naive count. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { VRING_SLOTS, type VringCounter } from '../../src/stats/counters.ts';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { BROADCAST, frame, mac } from '../kit/frames.ts';
import { FORMATS } from '../kit/raw-ring.ts';
import { TestGuest, TestSwitch } from '../kit/test-switch.ts';

const [A, B] = [mac(1), mac(2)];
const MULTICAST = Buffer.from('333300000001', 'hex');
/** Begins like the broadcast address, and ends otherwise; and the other way round. */
const NEARLY = ['ffffffffff7f', 'ffffffff7fff', 'ff7fffffffff', '7fffffffffff', 'fffffffffffe'].map((hex) =>
  Buffer.from(hex, 'hex'),
);
/** Bytes of the sizes' names, where one ends and the next begins. */
const BORDERS = [64, 65, 127, 128, 255, 256, 511, 512, 1023, 1024, 1518, 1519];
const HEADER = 12;

type Counts = Partial<Record<VringCounter, number>>;

function add(counts: Counts, name: VringCounter, n = 1): void {
  counts[name] = (counts[name] ?? 0) + n;
}

function count(counts: Counts, sent: Buffer): void {
  const { length } = sent;
  add(counts, 'good_packets');
  add(counts, 'good_bytes', length);
  if (length < 64) add(counts, 'undersize_packets');
  else if (length === 64) add(counts, 'size_64_packets');
  else if (length <= 127) add(counts, 'size_65_127_packets');
  else if (length <= 255) add(counts, 'size_128_255_packets');
  else if (length <= 511) add(counts, 'size_256_511_packets');
  else if (length <= 1023) add(counts, 'size_512_1023_packets');
  else if (length <= 1518) add(counts, 'size_1024_1518_packets');
  else add(counts, 'size_1519_max_packets');
  const dst = sent.subarray(0, 6);
  if (dst.equals(BROADCAST)) add(counts, 'broadcast_packets');
  else if (length > 0 && (dst[0] & 1) === 1) add(counts, 'multicast_packets');
}

/** The counters that are not zero, but those of notifications. */
const counted = (guest: TestGuest, vring: number): Counts =>
  Object.fromEntries(
    Object.entries(guest.vringCounters(vring)).filter(([name, n]) => n > 0 && !name.startsWith('guest_')),
  );

const frames = fc.array(
  fc.record({
    dst: fc.constantFrom(B, B, B, BROADCAST, MULTICAST, ...NEARLY),
    len: fc.oneof(fc.constantFrom(...BORDERS), fc.integer({ min: 14, max: 2500 }), fc.integer({ min: 14, max: 80 })),
    pieces: fc.constantFrom(1, 1, 1, 2, 3),
    pair: fc.nat(1),
  }),
  { minLength: 1, maxLength: 60, size: 'max' },
);

for (const format of FORMATS)
  test(`vring counters, ${format} rings: sizes, multicast and broadcast frames are counted exactly, on both sides`, () => {
    fc.assert(
      fc.property(frames, fc.boolean(), (specs, mergeable) => {
        const on = new TestSwitch();
        const a = new TestGuest(on, 0, { format, mergeable, pairs: 2 });
        const b = new TestGuest(on, 1, { format, mergeable, bufferBytes: mergeable ? 900 : 3000, num: 256 });
        b.send(frame(A, B));
        on.settle();
        a.received();
        const expected: Counts[] = [{}, {}];
        const sent: Buffer[] = [];
        for (const { dst, len, pieces, pair } of specs) {
          const bytes = frame(dst, A, len);
          const { tx } = a.pairs[pair];
          // in pieces the next descriptors are used as well, all of one slot's memory
          const slot = a.pairs[pair].txSlot(0);
          bytes.copy(a.ram.bytes, slot.off + HEADER);
          a.ram.bytes.fill(0, slot.off, slot.off + HEADER);
          const cut = Math.min(HEADER + 7, HEADER + len - 1);
          const sizes = [[HEADER + len], [HEADER, len], [5, cut - 5, HEADER + len - cut]][pieces - 1];
          let from = 0;
          const parts = sizes.map((size) => {
            const part = { addr: slot.addr + from, len: size };
            from += size;
            return part;
          });
          tx.chain(
            parts.map((_, i) => i),
            parts,
            0,
          );
          tx.offer(0);
          tx.publish();
          on.settle();
          count(expected[pair], bytes);
          sent.push(bytes);
        }
        assert.deepEqual(counted(a, 1), expected[0]);
        assert.deepEqual(counted(a, 3), expected[1]);
        const all: Counts = {};
        for (const bytes of sent) count(all, bytes);
        assert.deepEqual(counted(b, 0), all);
        assert.deepEqual(b.received(), sent);
        assert.equal(b.counters.rx_bytes, all.good_bytes);
        assert.equal(a.counters.tx_packets, sent.length);
      }),
      { numRuns: 60 },
    );
  });

for (const format of FORMATS)
  test(`vring counters, ${format} rings: bursts of all sizes at once, over two receive queues`, () => {
    fc.assert(
      fc.property(frames, (specs) => {
        const on = new TestSwitch();
        const a = new TestGuest(on, 0, { format, num: 64 });
        const b = new TestGuest(on, 1, { format, pairs: 2, bufferBytes: 3000, num: 64 });
        b.send(frame(A, B));
        on.settle();
        a.received();
        const sent = specs.map(({ dst, len }) => frame(dst, A, len));
        a.send(...sent);
        on.settle();
        const expected: Counts = {};
        for (const bytes of sent) count(expected, bytes);
        assert.deepEqual(counted(a, 1), expected);
        for (const [pair, { length }] of b.pairs.map((one) => one.received()).entries())
          assert.equal(b.vringCounters(2 * pair).good_packets, length);
        for (const name of Object.keys(VRING_SLOTS) as VringCounter[]) {
          if (name.startsWith('guest_')) continue;
          assert.equal(b.vringCounters(0)[name] + b.vringCounters(2)[name], expected[name] ?? 0, name);
        }
      }),
      { numRuns: 60 },
    );
  });

for (const format of FORMATS)
  test(`vring counters, ${format} rings: notifications are counted at the vring that sends them`, () => {
    const callFd = createEventfd();
    const on = new TestSwitch();
    const a = new TestGuest(on, 0, { format, callFd });
    const b = new TestGuest(on, 1, { format, pairs: 2 });
    b.send(frame(A, B));
    a.send(frame(B, A));
    on.settle();
    const tellings = (guest: TestGuest, vring: number) => {
      const { guest_notifications, guest_notifications_suppressed, guest_notifications_error } =
        guest.vringCounters(vring);
      return [guest_notifications, guest_notifications_suppressed, guest_notifications_error];
    };
    assert.deepEqual(
      [tellings(a, 0), tellings(a, 1)],
      [
        [1, 0, 0],
        [1, 0, 0],
      ],
    );
    a.tx.noInterrupt = true;
    a.send(frame(B, A));
    on.settle();
    assert.deepEqual(tellings(a, 1), [1, 1, 0]);
    assert.deepEqual(tellings(b, 1), [0, 1, 0], 'without an eventfd nothing can be sent');
    assert.deepEqual(tellings(b, 3), [0, 0, 0], 'a vring that nothing comes from');
    closeSync(callFd);
    a.tx.noInterrupt = false;
    a.send(frame(B, A));
    on.settle();
    assert.deepEqual(tellings(a, 1), [1, 1, 1], 'a closed eventfd takes nothing');
    assert.equal(a.counters.calls_failed, 1);
  });
