/** Rings that go on with the inflight records of another device, which need not have kept to the order of the ring. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { AddressMap } from '../../src/mem/address-map.ts';
import type { WindowViews } from '../../src/mem/window.ts';
import { PORT_SLOTS } from '../../src/stats/counters.ts';
import { Caller, createEventfd, drain } from '../../src/sys/eventfd.ts';
import { INFLIGHT_PACKED_HEAD, INFLIGHT_SPLIT_HEAD } from '../../src/uapi/inflight.ts';
import { VRING_AVAIL } from '../../src/uapi/virtio-ring.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { FAULT_INFLIGHT, FAULT_NONE } from '../../src/virtqueue/fault.ts';
import { PackedRing } from '../../src/virtqueue/packed-ring.ts';
import type { InflightPlace } from '../../src/virtqueue/ring-config.ts';
import { sharedRingState } from '../../src/virtqueue/vring.ts';
import { dirtyPages } from '../kit/dirty-pages.ts';
import { type CounterOf, leaveInflight } from '../kit/foreign-device.ts';
import { RecordedDevice, RecordedGuests, type RecordedOptions, RX, TX } from '../kit/recorded-device.ts';

const ONE = { pieces: 'one', indirect: false } as const;
const HEADER_APART = { pieces: 'header', indirect: false } as const;

const bench = (options: Partial<RecordedOptions> & Pick<RecordedOptions, 'format'>) =>
  new RecordedGuests({
    ...{ txNum: 128, rxNum: 128, start: options.format === 'packed' ? 0x8000 | 100 : 0xfff0 },
    ...{ mergeable: false, inOrder: false, txLayout: HEADER_APART, rxLayout: HEADER_APART, lcores: 1, ...options },
  });

type Guests = RecordedGuests;
type Which = 'tx' | 'rx';

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

const foreign = ({ ram, ...guests }: Guests, which: Which, n: number, used: readonly number[], counterOf: CounterOf) =>
  leaveInflight(ram.views, guests[which].config, n, used, counterOf);

function withGuests(options: Parameters<typeof bench>[0], use: (guests: Guests) => void): void {
  const guests = bench(options);
  try {
    use(guests);
  } finally {
    guests.close();
  }
}

for (const format of ['split', 'packed'] as const) {
  test(`${format} ring: what a device has left that went by an order of its own is sent first, by its counters`, () => {
    withGuests({ format }, (guests) => {
      guests.offer(60);
      const used = [30, 0, 7];
      foreign(guests, 'tx', 50, used, (i) => 2 ** 33 - i);
      const device = new RecordedDevice(guests, false);
      device.start();
      guests.allowRepeats(100);
      assert.equal(guests.outstanding, 2 * 60);
      while (device.poll() > 0) guests.collect();
      const left = range(0, 50).filter((i) => !used.includes(i));
      assert.deepEqual(guests.arrived, [...left.reverse(), ...range(50, 60)]);
      assert.deepEqual([guests.outstanding, guests.dropped, device.faults], [0, 0, []]);
      guests.offer(3);
      device.poll();
      guests.collect();
      assert.deepEqual(guests.arrived.slice(-3), [60, 61, 62]);
    });
  });

  for (const lcores of [1, 2]) {
    test(`${format} ring: buffers that a device has left are filled first, by its counters, by ${lcores === 1 ? 'one lcore' : 'two lcores in turn'}`, () => {
      withGuests({ format, lcores }, (guests) => {
        const ids = foreign(guests, 'rx', 50, [], (i) => 1000 - (i ^ 1));
        const device = new RecordedDevice(guests, false);
        device.start();
        for (let i = 0; i < 60; i++) {
          guests.offer(1);
          assert.equal(device.poll(), 1);
          guests.collect();
        }
        assert.deepEqual(guests.arrived, range(0, 60));
        const expected = range(0, 50).map((i) => ids[49 - (i ^ 1)]);
        assert.deepEqual(guests.usedHeads.slice(0, 50), expected);
        guests.assertWhole(() => device.poll());
      });
    });
  }

  test(`${format} ring: a predecessor that has done everything leaves nothing to do`, () => {
    withGuests({ format }, (guests) => {
      guests.offer(10);
      foreign(guests, 'tx', 10, [3, 1, 2, 0, 4, 6, 5, 9, 8, 7], (i) => i);
      const device = new RecordedDevice(guests, false);
      device.start();
      assert.equal(device.poll(), 0);
      guests.collect();
      assert.deepEqual([guests.arrived, guests.outstanding], [[], 0]);
    });
  });
}

test('split ring: what a device has left is not taken for what stands in the avail ring, where buffers are plain', () => {
  withGuests({ format: 'split', txLayout: ONE }, (guests) => {
    guests.offer(60);
    foreign(guests, 'tx', 50, [20, 3], (i) => 100 - i);
    const device = new RecordedDevice(guests, false);
    device.start();
    guests.allowRepeats(100);
    while (device.poll() > 0) guests.collect();
    const left = range(0, 50).filter((i) => i !== 20 && i !== 3);
    assert.deepEqual(guests.arrived, [...left.reverse(), ...range(50, 60)]);
    assert.equal(guests.outstanding, 0);
  });
});

const versionAt = ({ inflight }: { inflight?: InflightPlace | undefined }) =>
  ((inflight as InflightPlace).off + INFLIGHT_SPLIT_HEAD.off.version) >> 1;

/** How records come to be of no use, by format. */
const UNUSABLE: readonly [string, RecordedOptions['format'], (guests: Guests, which: Which) => void][] = [
  [
    'of another version',
    'split',
    ({ ram, ...guests }, which) => {
      ram.views.u16[versionAt(guests[which].config)] = 2;
    },
  ],
  [
    'of another version',
    'packed',
    ({ ram, ...guests }, which) => {
      ram.views.u16[versionAt(guests[which].config)] = 2;
    },
  ],
  [
    'that are broken',
    'split',
    ({ ram, ...guests }, which) => {
      const { inflight } = guests[which].config;
      ram.views.u16[versionAt({ inflight })] = 1;
      const { off } = inflight as InflightPlace;
      ram.views.u16[(off + INFLIGHT_SPLIT_HEAD.off.last_batch_head) >> 1] = 500;
      ram.views.u16[(off + INFLIGHT_SPLIT_HEAD.off.used_idx) >> 1] = 0xffef;
    },
  ],
  [
    'that are broken',
    'packed',
    ({ ram, ...guests }, which) => {
      const { inflight } = guests[which].config;
      ram.views.u16[versionAt({ inflight })] = 1;
      ram.views.u16[((inflight as InflightPlace).off + INFLIGHT_PACKED_HEAD.off.old_used_idx) >> 1] = 500;
    },
  ],
  [
    'of a ring that had more on offer',
    'packed',
    (guests, which) => {
      const { desc, base } = guests[which].config;
      foreign(guests, which, 10, [], (i) => i);
      guests.ram.views.u16[(desc.off + 16 * (base & 0x7fff) + 14) >> 1] = 0;
    },
  ],
  [
    'of a ring that had more on offer',
    'split',
    (guests, which) => {
      const { off } = guests[which].config.avail;
      foreign(guests, which, 20, [], (i) => i);
      guests.ram.views.u16[(off + VRING_AVAIL.off.idx) >> 1] = 0xfff0 + 19;
    },
  ],
];

for (const [what, format, spoil] of UNUSABLE) {
  for (const which of ['tx', 'rx'] as const) {
    test(`${format} ring: records ${what} stop the ${which} ring, which is told once`, () => {
      withGuests({ format, lcores: 2 }, (guests) => {
        guests.offer(30);
        spoil(guests, which);
        const ring = guests[which];
        ring.errFd = createEventfd();
        const device = new RecordedDevice(guests, false);
        const before = ring.driver.nFree;
        device.start();
        assert.deepEqual(device.faults, [`${which === 'tx' ? 1 : 0} inflight`]);
        assert.deepEqual([guests.counters[PORT_SLOTS.ring_fault_inflight], drain(ring.errFd)], [1, 1]);
        assert.equal(device.poll(), which === 'tx' ? 0 : 30);
        if (which === 'rx') assert.equal(guests.counters[PORT_SLOTS.rx_drop_not_ready], 30);
        guests.collect();
        assert.equal(ring.driver.nFree, before, 'nothing came back');
        closeSync(ring.errFd);
      });
    });
  }
}

test('packed ring: more buffers than the records have room for stop it', () => {
  withGuests({ format: 'packed', txLayout: ONE }, ({ ram, tx: { config } }) => {
    const windows: WindowViews[] = [];
    windows[ram.views.id] = ram.views;
    const inflight = { ...(config.inflight as InflightPlace), num: config.num };
    const state = sharedRingState(config);
    const caller = new Caller(new Int32Array(1), 0);
    const [one, two] = [1, 2].map(
      () => new PackedRing({ ...config, inflight }, new AddressMap([]), windows, caller, state),
    );
    assert.deepEqual([one.start(), two.start()], [FAULT_NONE, FAULT_NONE]);
    const slots = new Int32Array(100).fill(1);
    one.enter();
    assert.ok(one.begin(0, slots, slots, 100));
    one.leave();
    two.enter();
    assert.ok(two.begin(100, slots, slots, 28));
    assert.equal(two.begin(0, slots, slots, 1), false);
    assert.equal(two.fault, FAULT_INFLIGHT);
  });
});

const GUEST_ADDR = 0x4000_0000;
const LOG_BYTES = (GUEST_ADDR + 2 ** 21) / 4096 / 8;

/** A dirty log of 2 MiB behind the guests' first address, and the pages in it. */
function logOf({ ram }: Guests, callFd: number) {
  const { id } = ram.views;
  const place = {
    ...{ window: id, off: ram.alloc(LOG_BYTES, 4096).off, size: LOG_BYTES, callFd },
    pages: ram.regions.map(({ guestAddr, size }) => ({
      guestAddr,
      size,
      window: id,
      off: ram.offsetOf(guestAddr) as number,
    })),
  };
  const pageOf = (off: number) => (off - (ram.offsetOf(GUEST_ADDR) as number) + GUEST_ADDR) >>> 12;
  return { place, pageOf, taken: () => [...dirtyPages(ram.views, place, { take: true })] };
}

test('packed ring: what recovery writes is logged, and the front end is told', () => {
  withGuests({ format: 'packed', txNum: 2048, start: 0x8000 | 300 }, (guests) => {
    const { config } = guests.tx;
    guests.offer(600);
    foreign(guests, 'tx', 600, [2], (i) => i);
    const callFd = createEventfd();
    const { place, pageOf, taken } = logOf(guests, callFd);
    const device = new RecordedDevice(guests, false);
    device.logs[TX] = place;
    const before = Buffer.from(guests.ram.views.u8.slice(config.desc.off, config.desc.off + 2048 * 16));
    device.start();
    const changed = range(0, 2048).filter((slot) => {
      const at = 16 * slot;
      return !before
        .subarray(at, at + 16)
        .equals(guests.ram.views.u8.subarray(config.desc.off + at, config.desc.off + at + 16));
    });
    assert.ok(changed.length > 500, `recovery has written ${changed.length} descriptors`);
    const pages = taken();
    for (const slot of changed) assert.ok(pages.includes(pageOf(config.desc.off + 16 * slot)), `slot ${slot}`);
    assert.ok(drain(callFd) > 0);
    device.poll();
    assert.equal(drain(callFd), 1, 'once a burst');
    device.poll();
    device.poll();
    assert.equal(drain(callFd), 2);
    closeSync(callFd);
  });
});

test('split ring: a used ring is logged where the front end says, and there only', () => {
  withGuests({ format: 'split' }, (guests) => {
    const { place, pageOf, taken } = logOf(guests, NO_FD);
    const { tx } = guests;
    const run = (usedLogAddr: number | undefined) => {
      tx.config = { ...tx.config, usedLogAddr };
      const device = new RecordedDevice(guests, false);
      device.logs[TX] = place;
      device.start();
      taken();
      guests.offer(30);
      assert.equal(device.poll(), 30);
      guests.collect();
      return taken().sort((a, b) => a - b);
    };
    assert.deepEqual(run(undefined), [pageOf(tx.config.used.off)]);
    const behind = GUEST_ADDR + 2 ** 20 + 4096 - 100;
    assert.deepEqual(run(behind), [behind >>> 12, (behind >>> 12) + 1]);
    assert.deepEqual(run(0), [0]);
  });
});

test('split ring: the front end is told of buffers, also where the used ring is beyond its log', () => {
  withGuests({ format: 'split', rxLayout: ONE }, (guests) => {
    const callFd = createEventfd();
    const { place, pageOf, taken } = logOf(guests, callFd);
    guests.rx.config = { ...guests.rx.config, usedLogAddr: 2 ** 40 };
    const device = new RecordedDevice(guests, false);
    device.logs[RX] = place;
    device.start();
    assert.deepEqual([taken(), drain(callFd)], [[], 0]);
    const { ram, rx } = guests;
    const [head] = [ram.views.u16[(rx.config.avail.off + VRING_AVAIL.size + 2 * (0xfff0 & 127)) >> 1]];
    const addr = ram.views.dv.getUint32(rx.config.desc.off + 16 * head, true);
    guests.offer(1);
    device.poll();
    assert.deepEqual([taken(), drain(callFd)], [[pageOf(ram.offsetOf(addr) as number)], 1]);
    closeSync(callFd);
  });
});

for (const format of ['split', 'packed'] as const)
  test(`${format} ring: a driver that a predecessor may have left uncalled is called at the start, and by each new eventfd`, () => {
    withGuests({ format }, (guests) => {
      const [atStart, later] = [createEventfd(), createEventfd()];
      guests.tx.config = { ...guests.tx.config, callFd: atStart };
      const device = new RecordedDevice(guests, false);
      device.start();
      assert.equal(drain(atStart), 1);
      device.setCall(TX, later);
      assert.deepEqual([drain(atStart), drain(later)], [0, 1]);
      guests.tx.config = { ...guests.tx.config, callFd: atStart, inflight: undefined };
      const forgetful = new RecordedDevice(guests, false);
      forgetful.start();
      forgetful.setCall(TX, later);
      assert.deepEqual([drain(atStart), drain(later)], [0, 0], 'who keeps no records promises nothing');
      closeSync(atStart);
      closeSync(later);
    });
  });
