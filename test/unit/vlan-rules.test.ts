/** VLANs that sockets have of their own: who hears whom, and with what tag. */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { counterBlock, PORT_SLOTS } from '../../src/stats/counters.ts';
import type { PortVlan, SwitchConfig, VlanConfig } from '../../src/switch/switch-config.ts';
import { featureMask } from '../../src/uapi/virtio.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_HOST_TSO4,
} from '../../src/uapi/virtio-net.ts';
import { rarpFrame } from '../../src/virtio-net/rarp.ts';
import { BROADCAST, frame, mac, tagged } from '../kit/frames.ts';
import { checksumIsRight, look, packet } from '../kit/packets.ts';
import { assertCounted, TestGuest, TestSwitch } from '../kit/test-switch.ts';
import { UplinkSwitch } from '../kit/uplink-switch.ts';

const [A, B, C, D, OUT, NOBODY] = [1, 2, 3, 4, 0x77, 0x99].map(mac);
const PLAIN: VlanConfig = { plan: 'none', guest: 'drop', strip: true };
/** A and B share VLAN 10, C has 20 alone, D has both, and 10 untagged. */
const VLANS: readonly PortVlan[] = [{ access: 10 }, { access: 10 }, { access: 20 }, { trunk: [20, 30], native: 10 }];

let guests: TestGuest[] = [];
let on: UplinkSwitch;

afterEach(() => assertCounted(...guests));

function start(vlans: readonly (PortVlan | undefined)[] = VLANS, config: Partial<SwitchConfig> = {}): void {
  on = new UplinkSwitch({ vlan: PLAIN, ...config });
  guests = vlans.map((vlan, id) => new TestGuest(on, id, vlan && { vlan }));
}

function seen(): Record<string, Buffer[]> {
  const all = [...guests.map((guest) => [String(guest.id), guest.received()]), ['up', on.uplink.taken()]];
  return Object.fromEntries(all.filter(([, frames]) => frames.length > 0));
}

function sent(from: number, ...frames: Buffer[]): Record<string, Buffer[]> {
  guests[from].send(...frames);
  on.settle();
  return seen();
}

function arrived(...frames: Buffer[]): Record<string, Buffer[]> {
  on.uplink.arrive(...frames);
  on.settle();
  return seen();
}

const lost = (id: number) => guests[id].nonZero('tx_drop_');

test('VLANs: guests hear those of their VLAN, untagged where it is theirs alone, and the uplink hears all, tagged', () => {
  start();
  const [fromA, fromC] = [frame(BROADCAST, A), frame(BROADCAST, C)];
  assert.deepEqual(sent(0, fromA), { 1: [fromA], 3: [fromA], up: [tagged(fromA, 10)] });
  assert.deepEqual(sent(2, fromC), { 3: [tagged(fromC, 20)], up: [tagged(fromC, 20)] });
  const toA = frame(A, C);
  assert.deepEqual(sent(2, toA), { 3: [tagged(toA, 20)], up: [tagged(toA, 20)] }, 'A is not known in VLAN 20');
});

test('VLANs: a trunk guest’s tags choose among its own VLANs, and none other', () => {
  start();
  sent(0, frame(NOBODY, A));
  sent(2, frame(NOBODY, C));
  const [all, toA, toC] = [BROADCAST, A, C].map((dst) => frame(dst, D));
  assert.deepEqual(sent(3, all), { 0: [all], 1: [all], up: [tagged(all, 10)] });
  assert.deepEqual(sent(3, tagged(all, 20)), { 2: [all], up: [tagged(all, 20)] });
  assert.deepEqual(sent(3, tagged(all, 0x6000 | 30)), { up: [tagged(all, 0x6000 | 30)] });
  assert.deepEqual(sent(3, tagged(all, 0x6000 | 10)), { 0: [all], 1: [all], up: [tagged(all, 0x6000 | 10)] });
  assert.deepEqual(sent(3, toA, tagged(toC, 20), tagged(toA, 0x2000)), { 0: [toA, toA], 2: [toC] });
  assert.deepEqual(sent(3, tagged(all, 40), tagged(all, 4095)), {});
  assert.deepEqual(lost(3), { tx_drop_vlan: 2 });
  // what would be another VLAN's tag once its own is off
  assert.deepEqual(sent(3, tagged(tagged(all, 20), 10), tagged(tagged(all, 20), 0), tagged(all, 20, 0x88a8)), {});
  assert.deepEqual(lost(3), { tx_drop_vlan: 2, tx_drop_tagged: 3 });
  start([{ trunk: [20] }, { access: 20 }]);
  assert.deepEqual(sent(0, all, tagged(all, 0)), {});
  assert.deepEqual(lost(0), { tx_drop_vlan: 2 });
});

test('VLANs: a trunk guest gets its untagged VLAN untagged, others with their tag and priority', () => {
  start();
  const all = frame(BROADCAST, OUT);
  assert.deepEqual(arrived(tagged(all, 0xe000 | 10)), { 0: [all], 1: [all], 3: [all] });
  assert.deepEqual(arrived(tagged(all, 0xe000 | 20)), { 2: [all], 3: [tagged(all, 0xe000 | 20)] });
  assert.deepEqual(arrived(tagged(all, 30)), { 3: [tagged(all, 30)] });
  assert.deepEqual(arrived(tagged(all, 40), all, tagged(all, 0)), {});
  assert.equal(on.uplink.named.tx_drop_vlan, 1, 'nobody is in VLAN 40');
  assert.equal(on.uplink.named.tx_drop_alone, 2, 'nobody is without VLAN');
});

test('VLANs: an address is known in each VLAN for itself', () => {
  start([...VLANS, { access: 20 }]);
  const same = mac(0x55);
  sent(0, frame(NOBODY, same));
  sent(2, frame(NOBODY, same));
  const toSame = frame(same, B);
  assert.deepEqual(sent(1, toSame), { 0: [toSame] });
  assert.deepEqual(sent(4, toSame), { 2: [toSame] });
  assert.deepEqual([guests[0].counters.mac_learned, guests[2].counters.mac_learned], [1, 1]);
  assert.equal(guests[2].counters.mac_moved, 0);
});

test('VLANs: between guests of a VLAN and the uplink unknown addresses are flooded, known ones are not', () => {
  start();
  sent(0, frame(NOBODY, A));
  const [toA, toNobody] = [frame(A, OUT), frame(NOBODY, OUT)];
  assert.deepEqual(arrived(tagged(toA, 10), tagged(toNobody, 10)), {
    0: [toA, toNobody],
    1: [toNobody],
    3: [toNobody],
  });
  assert.deepEqual(arrived(tagged(toA, 20)), { 2: [toA], 3: [tagged(toA, 20)] });
  const out = frame(OUT, A);
  assert.deepEqual(sent(0, out), { up: [tagged(out, 10)] });
});

test('VLANs: beside those of sockets, others have a tag each, or none', () => {
  const vlans = [undefined, undefined, { access: 10 }];
  const all = frame(BROADCAST, A);
  start(vlans, { vlan: { ...PLAIN, plan: 'device' } });
  assert.deepEqual(sent(0, all), { 1: [all], up: [tagged(all, 1000)] });
  assert.deepEqual(
    sent(2, frame(BROADCAST, C)).up?.map((one) => one.readUInt16BE(14)),
    [10],
  );
  assert.deepEqual(arrived(all), {});
  start(vlans);
  assert.deepEqual(sent(0, all), { 1: [all], up: [all] });
  assert.deepEqual(arrived(frame(BROADCAST, OUT)).up, undefined);
  const out = frame(BROADCAST, OUT);
  assert.deepEqual(arrived(out, tagged(out, 10)), { 0: [out], 1: [out], 2: [out] });
});

test('VLANs: with --vm2vm 2 a frame leaves in the VLAN that both are in', () => {
  for (const guest of ['drop', 'trust', 'qinq'] as const) {
    start(VLANS, { vm2vm: 2, vlan: { ...PLAIN, guest } });
    sent(0, frame(NOBODY, A));
    const [toA, toC] = [frame(A, B), frame(C, B)];
    const tpid = guest === 'qinq' ? 0x88a8 : 0x8100;
    assert.deepEqual(sent(1, toA, toC), { up: [tagged(toA, 10, tpid), tagged(toC, 10, tpid)] });
    const own = tagged(toA, 20);
    const leaves = { drop: undefined, trust: [tagged(toA, 10)], qinq: [tagged(own, 10, tpid)] }[guest];
    assert.deepEqual(sent(1, own).up, leaves);
  }
});

test('VLANs: a guest’s tag within never becomes a trunk guest’s VLAN', () => {
  for (const guest of ['trust', 'qinq'] as const) {
    start(VLANS, { vlan: { ...PLAIN, guest } });
    sent(3, frame(NOBODY, D));
    const own = tagged(frame(D, A), 20);
    // 10 is D's untagged VLAN, and still it is told
    assert.deepEqual(sent(0, own), { 3: [tagged(own, 10)] });
  }
});

test('VLANs: without tags on the uplink a guest’s own are dropped where they would leave as they are', () => {
  const one = frame(NOBODY, A);
  for (const [guest, leaves] of [
    ['drop', false],
    ['qinq', false],
    ['trust', true],
  ] as const) {
    start([undefined, { access: 10 }], { vm2vm: 0, vlan: { ...PLAIN, guest } });
    assert.deepEqual(sent(0, tagged(one, 10)), leaves ? { up: [tagged(one, 10)] } : {}, guest);
  }
});

test('VLANs: a device that goes leaves its VLANs, and its number is another’s next', () => {
  start();
  sent(2, frame(NOBODY, C));
  on.lcore.removePort(2);
  const all = frame(BROADCAST, OUT);
  assert.deepEqual(arrived(tagged(all, 20)), { 3: [tagged(all, 20)] });
  assertCounted(guests[2]);
  guests[2] = new TestGuest(on, 2, { vlan: { access: 10 } });
  assert.deepEqual(arrived(tagged(all, 20)), { 3: [tagged(all, 20)] });
  assert.deepEqual(Object.keys(arrived(tagged(all, 10))), ['0', '1', '2', '3']);
  const toC = frame(C, D);
  assert.deepEqual(sent(3, tagged(toC, 20)), { up: [tagged(toC, 20)] }, 'its address is forgotten');
});

test('VLANs: one that cannot be is refused', () => {
  on = new UplinkSwitch({ vlan: PLAIN });
  for (const vlan of [{ access: 0 }, { access: 4095 }, { trunk: [5, 4096] }, { trunk: [5], native: 1.5 }])
    assert.throws(() => on.lcore.addPort(0, counterBlock(PORT_SLOTS), vlan), RangeError);
  on = new UplinkSwitch({ vlan: PLAIN, learning: 'first' });
  assert.throws(() => on.lcore.addPort(0, counterBlock(PORT_SLOTS), { trunk: [5] }), RangeError);
});

const OFFLOADS = featureMask(
  ...[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4],
);

/** A header as in struct virtio_net_hdr: NEEDS_CSUM, and TCPv4 where there is a size. */
function header(hdrLen: number, gsoSize: number, csumStart: number, csumOffset: number): Buffer {
  const bytes = Buffer.alloc(12);
  bytes[0] = 1;
  bytes[1] = gsoSize > 0 ? 1 : 0;
  [hdrLen, gsoSize, csumStart, csumOffset].forEach((value, i) => void bytes.writeUInt16LE(value, 2 + 2 * i));
  return bytes;
}

function sendWith(guest: TestGuest, head: Buffer, bytes: Buffer): void {
  const { off } = guest.txSlot();
  head.copy(guest.ram.bytes, off);
  guest.send(bytes);
  on.settle();
  guest.ram.bytes.fill(0, off, off + head.length);
}

test('VLANs: what a packet leaves undone begins where it is, behind the tags that a port sees', () => {
  start([]);
  const guest = (id: number, vlan: PortVlan, more = OFFLOADS) =>
    new TestGuest(on, id, { vlan, more, bufferBytes: 8192 });
  guests = [
    guest(0, { access: 10 }),
    guest(1, { trunk: [10] }),
    guest(2, { access: 10 }),
    guest(3, { trunk: [10] }, 0n),
  ];
  const { bytes, csumStart, csumOffset } = packet({ version: 4, protocol: 'tcp', payload: Buffer.alloc(3000, 7) });
  BROADCAST.copy(bytes);
  const at = (moved: number) => header(csumStart + moved + 20, 1000, csumStart + moved, csumOffset);
  const heads = () => [1, 2].map((id) => guests[id].ram.bytes.subarray(guests[id].rxBuffer(0).off).subarray(0, 10));
  sendWith(guests[0], at(0), bytes);
  assert.deepEqual(on.uplink.headers.splice(0), [at(4)]);
  assert.deepEqual(
    heads(),
    [at(4), at(0)].map((head) => head.subarray(0, 10)),
  );
  const cut = guests[3].received();
  assert.deepEqual(
    cut.map((one) => one.length),
    Array(3).fill(csumStart + 4 + 20 + 1000),
  );
  for (const one of cut) {
    assert.deepEqual([one.readUInt16BE(12), one.readUInt16BE(14)], [0x8100, 10]);
    assert.ok(checksumIsRight(look(one)));
  }
  const { 1: atTrunk, 2: atAccess, up } = seen();
  assert.deepEqual([atTrunk, atAccess, up], [[tagged(bytes, 10)], [bytes], [tagged(bytes, 10)]]);
});

test('VLANs: a trunk guest’s tag goes, and what is left undone begins so much earlier', () => {
  start([]);
  const options = { more: OFFLOADS, bufferBytes: 8192 };
  guests = [
    new TestGuest(on, 0, { ...options, vlan: { trunk: [10] } }),
    new TestGuest(on, 1, { ...options, vlan: { access: 10 } }),
    new TestGuest(on, 2, { vlan: { access: 10 } }),
  ];
  const { bytes, csumStart, csumOffset } = packet({ version: 4, protocol: 'tcp', payload: Buffer.alloc(100, 7) });
  BROADCAST.copy(bytes);
  const at = (moved: number) => header(0, 0, csumStart + moved, csumOffset);
  sendWith(guests[0], at(4), tagged(bytes, 10));
  assert.deepEqual(on.uplink.headers.splice(0), [at(4)]);
  const { off } = guests[1].rxBuffer(0);
  assert.deepEqual(guests[1].ram.bytes.subarray(off, off + 10), at(0).subarray(0, 10));
  const { 1: asItIs, 2: done, up } = seen();
  assert.deepEqual([asItIs, up], [[bytes], [tagged(bytes, 10)]]);
  assert.ok(checksumIsRight(look(done[0])));
});

test('uplink: a packet to be cut leaves if its pieces fit the MTU', () => {
  on = new UplinkSwitch({ vm2vm: 0 });
  guests = [new TestGuest(on, 0, { more: OFFLOADS })];
  const { bytes, csumStart, csumOffset } = packet({ version: 4, protocol: 'tcp', payload: Buffer.alloc(4000) });
  for (const [size, leaves] of [
    [1460, 1],
    [1461, 0],
  ]) {
    sendWith(guests[0], header(54, size, csumStart, csumOffset), bytes);
    assert.equal(on.uplink.taken().length, leaves, `pieces of ${size}`);
  }
  assert.equal(on.uplink.named.rx_drop_mtu, 1);
});

test('VLANs: what has been looked at is what arrives, whatever the guest writes meanwhile', () => {
  for (const [from, bytes] of [
    [0, frame(BROADCAST, A)],
    [3, tagged(frame(BROADCAST, D), 20)],
  ] as const) {
    start();
    // the classifier has seen the frame when the first receiver is asked whether it takes frames
    const ready = on.uplink;
    Object.defineProperty(ready, 'canTransmit', {
      get: () => {
        const { off } = guests[from].txSlot(0);
        guests[from].ram.bytes.fill(0xa5, off + 12, off + 12 + 18);
        return true;
      },
    });
    const { up, 3: trunk, 2: access } = sent(from, bytes);
    const vid = from === 0 ? 10 : 20;
    const untagged = from === 0 ? bytes : Buffer.concat([bytes.subarray(0, 12), bytes.subarray(16)]);
    // the front is as it was; bytes behind it are the guest's to write
    assert.deepEqual(up[0].subarray(0, 18), tagged(untagged, vid).subarray(0, 18));
    if (from === 0) assert.deepEqual(trunk[0].subarray(0, 14), untagged.subarray(0, 14));
    else assert.deepEqual(access[0].subarray(0, 14), untagged.subarray(0, 14));
  }
});

test('VLANs: a guest that has come here is announced in each VLAN that it is in', () => {
  const rarp = Buffer.from(rarpFrame(D));
  for (const [trunk, heard] of [
    [{ trunk: [20, 30], native: 10 }, [10, 20, 30]],
    [{ trunk: [30, 20] }, [20, 30]],
  ] as const) {
    const one = new TestSwitch({ vlan: PLAIN });
    const listeners = [10, 20, 30, 40].map((access, id) => new TestGuest(one, id, { vlan: { access } }));
    const other = new TestGuest(one, 4, { vlan: { trunk: [20, 30, 40] } });
    const moved = new TestGuest(one, 5, { vlan: trunk });
    one.lcore.inject(5, rarp);
    assert.deepEqual(
      listeners.map((guest) => guest.received()),
      [10, 20, 30, 40].map((vid) => (heard.some((one) => one === vid) ? [rarp] : [])),
    );
    assert.deepEqual(other.received(), [tagged(rarp, 20), tagged(rarp, 30)]);
    assert.equal(moved.counters.tx_packets, heard.length);
    assertCounted(moved);
  }
});

test('VLANs: what a guest’s addresses are in each VLAN is known, and can be told to the switch that it goes to', () => {
  const vlan = { trunk: [20, 30], native: 10 };
  const [from, to] = [new TestSwitch({ vlan: PLAIN }), new TestSwitch({ vlan: PLAIN })];
  const guest = new TestGuest(from, 1, { vlan });
  guest.send(
    frame(NOBODY, A),
    tagged(frame(NOBODY, A), 20),
    tagged(frame(NOBODY, B), 30),
    tagged(frame(NOBODY, B), 10),
  );
  from.settle();
  const known = from.lcore.known(1);
  const told = known.map(({ mac, vlan }) => `${Buffer.from(mac).toString('hex')} ${vlan}`).sort();
  const expected = [
    `${A.toString('hex')} 0`,
    `${A.toString('hex')} 20`,
    `${B.toString('hex')} 0`,
    `${B.toString('hex')} 30`,
  ];
  assert.deepEqual(told, expected);
  // there the untagged VLAN may be another, and one of the others missing
  const there = new TestGuest(to, 2, { vlan: { trunk: [20], native: 11 } });
  to.lcore.learn(2, known);
  const asked = [11, 20, 30].map((access, id) => new TestGuest(to, 3 + id, { vlan: { access } }));
  const [fromNative, from20, from30] = asked;
  const toAB = [frame(A, C), frame(B, C)];
  fromNative.send(...toAB);
  to.settle();
  assert.deepEqual(there.received(), toAB);
  from20.send(toAB[0]);
  from30.send(toAB[1]);
  to.settle();
  assert.deepEqual(there.received(), [tagged(toAB[0], 20)]);
  assert.deepEqual(from30.nonZero('tx_drop_'), { tx_drop_alone: 1 });
  assert.deepEqual(there.nonZero('mac_'), { mac_learned: 3 });
});
