/** What goes where between guests and an uplink, by --vm2vm, --vlan-strip and --guest-vlan: with the bytes at every port. */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import type { PortVlan, SwitchConfig, VlanConfig } from '../../src/switch/switch-config.ts';
import { BROADCAST, frame, mac, tagged } from '../kit/frames.ts';
import { assertCounted, type GuestOptions, TestGuest } from '../kit/test-switch.ts';
import { type Incoming, UplinkSwitch } from '../kit/uplink-switch.ts';

const [A, B, C, OUT, NOBODY] = [1, 2, 3, 0x77, 0x99].map(mac);
const MULTICAST = Buffer.from('01005e000001', 'hex');
const AUTO: VlanConfig = { plan: 'device', guest: 'drop', strip: true };

let guests: TestGuest[] = [];
let on: UplinkSwitch;

afterEach(() => assertCounted(...guests));

interface Setting extends Partial<SwitchConfig> {
  readonly vlans?: readonly (PortVlan | undefined)[];
  readonly mtu?: number;
  readonly guest?: GuestOptions;
}

/** Guests 0, 1, 2 are known as A, B, C. */
function start({ vlans = [], mtu, guest = {}, ...config }: Setting = {}): void {
  on = new UplinkSwitch(config, 1, mtu);
  guests = [0, 1, 2].map((id) => new TestGuest(on, id, { ...guest, ...(vlans[id] && { vlan: vlans[id] }) }));
  [A, B, C].forEach((address, id) => {
    const vlan = vlans[id];
    const first = frame(NOBODY, address);
    guests[id].send(vlan !== undefined && 'trunk' in vlan ? tagged(first, vlan.trunk[0]) : first);
  });
  on.settle();
  for (const one of guests) one.received();
  on.uplink.taken();
}

/** What has come to whom since the last look. */
function seen(): Record<string, Buffer[]> {
  const all = [...guests.map((guest) => [String(guest.id), guest.received()]), ['up', on.uplink.taken()]];
  return Object.fromEntries(all.filter(([, frames]) => frames.length > 0));
}

function sent(from: number, ...frames: Buffer[]): Record<string, Buffer[]> {
  guests[from].send(...frames);
  on.settle();
  return seen();
}

function arrived(...frames: (Buffer | Incoming)[]): Record<string, Buffer[]> {
  on.uplink.arrive(...frames);
  on.settle();
  return seen();
}

const lost = (id: number) => guests[id].nonZero('tx_drop_');
const lostAtUplink = () =>
  Object.fromEntries(Object.entries(on.uplink.named).filter(([name, n]) => /_drop_/.test(name) && n > 0));

for (const learning of ['dynamic', 'first'] as const) {
  test(`uplink, learning ${learning}: with --vm2vm 0 all of a guest's frames leave with its own tag`, () => {
    start({ learning, vm2vm: 0, vlan: AUTO });
    for (const dst of [B, A, BROADCAST, MULTICAST, NOBODY]) {
      const one = frame(dst, A);
      assert.deepEqual(sent(0, one), { up: [tagged(one, 1000)] }, dst.toString('hex'));
    }
    const two = frame(A, C);
    assert.deepEqual(sent(2, two), { up: [tagged(two, 1002)] });
    assert.deepEqual(lost(0), {});
  });

  test(`uplink, learning ${learning}: with --vm2vm 2 a frame for another guest leaves with that guest's tag`, () => {
    start({ learning, vm2vm: 2, vlan: AUTO });
    const [toB, toC, all, many, nobody] = [B, C, BROADCAST, MULTICAST, NOBODY].map((dst) => frame(dst, A));
    assert.deepEqual(sent(0, toB, frame(A, A), toC, all, many, nobody), {
      up: [tagged(toB, 1001), tagged(toC, 1002), tagged(all, 1000), tagged(many, 1000), tagged(nobody, 1000)],
    });
    assert.deepEqual(lost(0), { tx_drop_self: 1 });
    // and comes back
    assert.deepEqual(arrived(tagged(toB, 1001)), { 1: [toB] });
    assert.deepEqual(sent(1, frame(A, B)).up.length, 1, 'A is still behind its port');
  });
}

test('uplink, learning first: with --vm2vm 1 guests reach each other, and all else leaves', () => {
  start({ learning: 'first', vlan: AUTO });
  const [toB, all, many, nobody] = [B, BROADCAST, MULTICAST, NOBODY].map((dst) => frame(dst, A));
  assert.deepEqual(sent(0, toB, frame(A, A), all, many, nobody), {
    1: [toB],
    up: [tagged(all, 1000), tagged(many, 1000), tagged(nobody, 1000)],
  });
  assert.deepEqual(lost(0), { tx_drop_self: 1 });
});

test('uplink, learning dynamic: with --vm2vm 1 groups and unknown addresses go to guests and outside', () => {
  start({ vlan: AUTO });
  const toB = frame(B, A);
  assert.deepEqual(sent(0, toB, frame(A, A)), { 1: [toB] });
  for (const dst of [BROADCAST, MULTICAST, NOBODY]) {
    const one = frame(dst, A);
    assert.deepEqual(sent(0, one), { 1: [one], 2: [one], up: [tagged(one, 1000)] });
  }
  assert.deepEqual(lost(0), { tx_drop_self: 1 });
  assert.deepEqual(guests[0].counters.tx_forwarded, guests[0].counters.tx_packets - 1);
});

test('uplink: addresses outside are learned like those of guests', () => {
  start({ vlan: AUTO });
  const hello = frame(A, OUT);
  assert.deepEqual(arrived(tagged(hello, 1000)), { 0: [hello] });
  const answer = frame(OUT, B);
  assert.deepEqual(sent(1, answer), { up: [tagged(answer, 1001)] });
  on.tick(400);
  on.learner.table.age(400, 300);
  assert.deepEqual(Object.keys(sent(1, frame(OUT, B))), ['0', '2', 'up']);
});

test('uplink: link-local group addresses do not leave either', () => {
  for (const vm2vm of [0, 1, 2] as const) {
    start({ vm2vm, vlan: AUTO });
    const bridge = Buffer.from('0180c2000000', 'hex');
    assert.deepEqual(sent(0, frame(bridge, A)), {});
    assert.deepEqual(arrived(tagged(frame(bridge, OUT), 1000)), {});
    assert.deepEqual([lost(0), lostAtUplink()], [{ tx_drop_link_local: 1 }, { tx_drop_link_local: 1 }]);
  }
});

for (const vm2vm of [0, 1, 2] as const)
  for (const strip of [true, false])
    for (const learning of ['dynamic', 'first'] as const) {
      const name = `--vm2vm ${vm2vm} --vlan-strip ${Number(strip)} --learning ${learning}`;
      test(`uplink, ${name}: a frame from outside reaches a guest with its address and its tag only`, () => {
        start({ vm2vm, learning, vlan: { ...AUTO, strip } });
        const is = (bytes: Buffer, tci: number) => (strip ? bytes : tagged(bytes, tci));
        const one = frame(A, OUT);
        for (const tci of [1000, 0xb000 | 1000])
          assert.deepEqual(arrived(tagged(one, tci)), { 0: [is(one, tci)] }, 'in the frame');
        assert.deepEqual(arrived({ bytes: one, tag: (0x8100 << 16) | 1000 }), { 0: [is(one, 1000)] }, 'beside it');
        assert.deepEqual(
          arrived(tagged(one, 1001), tagged(frame(B, OUT), 1000), tagged(frame(NOBODY, OUT), 1000)),
          {},
          'a wrong tag, or a wrong address',
        );
        assert.deepEqual(
          arrived(one, tagged(one, 0), tagged(one, 1007), tagged(one, 999), tagged(one, 1000, 0x88a8)),
          {},
        );
        assert.deepEqual(lostAtUplink(), { tx_drop_vlan: 5, tx_drop_unknown: 3 });
        for (const dst of [BROADCAST, MULTICAST]) {
          const all = frame(dst, OUT);
          assert.deepEqual(arrived(tagged(all, 1001)), { 1: [is(all, 1001)] });
        }
        // a frame that comes back from outside is not for the guest that sent it
        assert.deepEqual(arrived(tagged(frame(BROADCAST, B), 1001)), {});
        assert.deepEqual(lostAtUplink().tx_drop_self, 1);
        const within = frame(B, A);
        if (vm2vm === 1) assert.deepEqual(sent(0, within), { 1: [within] }, 'between guests there is no tag');
      });
    }

test('uplink: a device that has not sent anything has no address yet, and hears groups only in a learning switch', () => {
  for (const learning of ['dynamic', 'first'] as const) {
    on = new UplinkSwitch({ learning, vlan: AUTO });
    guests = [0, 1].map((id) => new TestGuest(on, id));
    const all = frame(BROADCAST, OUT);
    assert.deepEqual(
      arrived(tagged(frame(A, OUT), 1000), tagged(all, 1000)),
      learning === 'dynamic' ? { 0: [all] } : {},
    );
  }
});

test('uplink, --guest-vlan drop: a guest’s own tag goes nowhere, a priority alone does', () => {
  for (const vm2vm of [0, 1, 2] as const) {
    start({ vm2vm, vlan: AUTO });
    const one = frame(B, A);
    const bad = [tagged(one, 1001), tagged(one, 5), tagged(one, 1000), tagged(one, 0, 0x88a8), tagged(one, 5, 0x88a8)];
    const hidden = [tagged(tagged(one, 1001), 0), tagged(tagged(one, 7, 0x88a8), 0xe000)];
    assert.deepEqual(sent(0, ...bad, ...hidden), {});
    assert.deepEqual(lost(0), { tx_drop_tagged: 7 });
    const kept = vm2vm === 1 ? { 1: [one] } : { up: [tagged(one, 0x6000 | (vm2vm === 0 ? 1000 : 1001))] };
    assert.deepEqual(sent(0, tagged(one, 0x6000)), kept);
    assert.deepEqual(sent(0, tagged(one, 0).subarray(0, 17)), {});
    assert.equal(lost(0).tx_drop_runt, 1);
  }
});

test('uplink, --guest-vlan trust: a guest’s own tag is the only one, and the other guest’s with --vm2vm 2', () => {
  const trust: VlanConfig = { ...AUTO, guest: 'trust' };
  const [toB, out] = [frame(B, A), frame(NOBODY, A)];
  const both = [tagged(toB, 0xa000 | 5), tagged(out, 5)];
  start({ vm2vm: 0, vlan: trust });
  assert.deepEqual(sent(0, ...both), { up: both });
  start({ vm2vm: 1, vlan: trust });
  assert.deepEqual(sent(0, ...both), { 1: both, 2: [both[1]], up: [both[1]] });
  start({ vm2vm: 2, vlan: trust });
  assert.deepEqual(sent(0, ...both), { up: [tagged(toB, 0xa000 | 1001), both[1]] });
  assert.deepEqual(sent(0, tagged(toB, 0x4000), tagged(out, 0x4000)), {
    up: [tagged(toB, 0x4000 | 1001), tagged(out, 0x4000 | 1000)],
  });
  const service = tagged(out, 9, 0x88a8);
  assert.deepEqual(sent(0, service), { up: [tagged(service, 1000)] });
  assert.deepEqual(lost(0), {});
});

test('uplink, --guest-vlan qinq: a guest’s own tag travels inside the device’s', () => {
  const qinq: VlanConfig = { ...AUTO, guest: 'qinq' };
  const service = (bytes: Buffer, vid: number) => tagged(bytes, vid, 0x88a8);
  const [toB, out] = [frame(B, A), frame(NOBODY, A)];
  const own = [tagged(toB, 5), tagged(out, 0x2000), tagged(out, 6, 0x88a8)];
  start({ vm2vm: 0, vlan: qinq });
  assert.deepEqual(sent(0, ...own, out), { up: [...own, out].map((bytes) => service(bytes, 1000)) });
  start({ vm2vm: 2, vlan: qinq });
  assert.deepEqual(sent(0, ...own), { up: own.map((bytes, i) => service(bytes, i === 0 ? 1001 : 1000)) });
  start({ vm2vm: 1, vlan: qinq });
  assert.deepEqual(sent(0, own[0]), { 1: [own[0]] });
  const back = [frame(A, OUT), tagged(frame(A, OUT), 5)];
  assert.deepEqual(arrived(...back.map((bytes) => service(bytes, 1000))), { 0: back });
  assert.deepEqual(arrived(...back.map((bytes) => tagged(bytes, 1000))), {});
  assert.deepEqual(lostAtUplink(), { tx_drop_vlan: 2 });
  start({ vlan: { ...qinq, strip: false } });
  assert.deepEqual(arrived(...back.map((bytes) => service(bytes, 1000))), {
    0: back.map((bytes) => service(bytes, 1000)),
  });
});

test('uplink, no VLANs: tags are not looked at, addresses decide, and unknown ones are flooded as by a bridge', () => {
  start();
  const [toB, out, in0, inAll, inNone] = [
    frame(B, A),
    frame(OUT, A),
    frame(A, OUT),
    frame(BROADCAST, OUT),
    frame(NOBODY, OUT),
  ];
  for (const as of [(bytes: Buffer) => bytes, (bytes: Buffer) => tagged(bytes, 5)]) {
    assert.deepEqual(sent(0, as(toB)), { 1: [as(toB)] });
    assert.deepEqual(arrived(as(in0)), { 0: [as(in0)] });
    assert.deepEqual(sent(0, as(out)), { up: [as(out)] });
    assert.deepEqual(arrived(as(inAll), as(inNone)), {
      0: [as(inAll), as(inNone)],
      1: [as(inAll), as(inNone)],
      2: [as(inAll), as(inNone)],
    });
    const all = frame(BROADCAST, A);
    assert.deepEqual(sent(0, as(all)), { 1: [as(all)], 2: [as(all)], up: [as(all)] });
  }
  const bare = frame(A, OUT);
  const beside = { bytes: bare, tag: (0x88a8 << 16) | 0x3005 };
  assert.deepEqual(arrived(beside, in0), { 0: [tagged(bare, 0x3005, 0x88a8), in0] }, 'a tag beside goes back in');
  assert.deepEqual(arrived(frame(OUT, mac(0x55))), {}, 'outside to outside');
  assert.deepEqual(lostAtUplink(), { tx_drop_self: 1 });
});

test('uplink, no VLANs: with --vm2vm 0 and 2 all leaves untagged, and comes back but to who sent it', () => {
  for (const vm2vm of [0, 2] as const) {
    start({ vm2vm });
    const [toB, all] = [frame(B, A), frame(BROADCAST, A)];
    assert.deepEqual(sent(0, toB, all), { up: [toB, all] });
    assert.deepEqual(arrived(toB, all), { 1: [toB, all], 2: [all] });
    assert.deepEqual(arrived(frame(A, A)), {});
    assert.equal(lostAtUplink().tx_drop_self, 1);
    assert.deepEqual(sent(0, frame(A, A)).up?.length, vm2vm === 0 ? 1 : undefined);
  }
});

test('uplink, no VLANs, learning first: from outside known addresses and groups only', () => {
  start({ learning: 'first' });
  const [one, all] = [frame(A, OUT), frame(BROADCAST, OUT)];
  assert.deepEqual(arrived(one, frame(NOBODY, OUT), all), { 0: [one, all], 1: [all], 2: [all] });
  assert.deepEqual(lostAtUplink(), { tx_drop_unknown: 1 });
  const out = frame(OUT, A);
  assert.deepEqual(sent(0, out), { up: [out] });
});

test('uplink: an address that shows up outside has moved there, but not by the tag of a device', () => {
  start();
  arrived(frame(B, A));
  const toA = frame(A, B);
  assert.deepEqual(sent(1, toA), { up: [toA] });
  assert.equal(on.uplink.named.mac_moved, 1);
  start({ vlan: AUTO });
  arrived(tagged(frame(B, A), 1001));
  assert.deepEqual(sent(1, toA), { 0: [toA] });
});

test('uplink: it is not registered, and may learn half of the table', () => {
  start({ macTableSize: 8, macLimit: 3 });
  arrived(...[11, 12, 13, 14, 15, 16].map((n) => frame(B, mac(n))));
  assert.deepEqual([on.uplink.named.mac_learned, on.uplink.named.mac_refused], [4, 2]);
  assert.deepEqual(on.events, ['registered 0', 'registered 1', 'registered 2']);
  sent(0, frame(B, mac(31)), frame(B, mac(32)), frame(B, mac(33)));
  assert.deepEqual([guests[0].counters.mac_learned, guests[0].counters.mac_refused], [2, 2]);
});

test('uplink: one that takes nothing is passed over by floods, and counts what is meant for it alone', () => {
  start({ vlan: AUTO });
  on.uplink.canTransmit = false;
  const all = frame(BROADCAST, A);
  assert.deepEqual(sent(0, all), { 1: [all], 2: [all] });
  start({ vm2vm: 0, vlan: AUTO });
  on.uplink.canTransmit = false;
  sent(0, all);
  assert.deepEqual([lost(0), lostAtUplink()], [{ tx_drop_receiver: 1 }, { rx_drop_not_ready: 1 }]);
});

test('uplink: several of them get what is for all, and nothing from one another', () => {
  on = new UplinkSwitch({}, 2);
  guests = [0, 1].map((id) => new TestGuest(on, id));
  const [first, second] = on.uplinks;
  sent(1, frame(NOBODY, B));
  second.taken();
  const all = frame(BROADCAST, A);
  assert.deepEqual(sent(0, all), { 1: [all], up: [all] });
  assert.deepEqual(second.taken(), [all]);
  const hello = frame(BROADCAST, OUT);
  assert.deepEqual(arrived(hello), { 0: [hello], 1: [hello] });
  assert.deepEqual(second.taken(), []);
  const answer = frame(OUT, A);
  assert.deepEqual(sent(0, answer), { up: [answer] });
  assert.deepEqual([first.taken(), second.taken()], [[], []]);
  second.arrive(frame(OUT, mac(0x66)));
  on.settle();
  assert.deepEqual([seen(), second.named.tx_drop_self], [{}, 1]);
});

test('uplink: what is longer than its MTU does not leave, with or without a tag', () => {
  for (const vlan of [AUTO, undefined]) {
    start({ mtu: 100, ...(vlan && { vlan }) });
    const [fits, long] = [114, 115].map((len) => frame(NOBODY, A, len));
    const leaves = vlan === undefined ? fits : tagged(fits, 1000);
    assert.deepEqual(sent(0, fits, long, fits), {
      1: [fits, long, fits],
      2: [fits, long, fits],
      up: [leaves, leaves],
    });
    assert.equal(on.uplink.named.rx_drop_mtu, 1);
    if (vlan !== undefined) continue;
    const own = tagged(frame(NOBODY, A, 114), 7);
    assert.deepEqual(sent(0, own, tagged(long, 7)).up, [own]);
  }
  start({ mtu: 100 });
  arrived(frame(B, OUT));
  assert.deepEqual(sent(0, frame(OUT, A, 115)), {}, 'to a known address outside');
  start({ mtu: 100, vm2vm: 0, vlan: AUTO });
  sent(0, frame(NOBODY, A, 115));
  assert.deepEqual(lost(0), { tx_drop_receiver: 1 });
});
