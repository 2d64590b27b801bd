import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import type { SwitchConfig } from '../../src/switch/switch-config.ts';
import { BROADCAST, frame, mac } from '../kit/frames.ts';
import { assertCounted, type GuestOptions, TestGuest, TestSwitch } from '../kit/test-switch.ts';

const [A, B, C, D, NOBODY] = [1, 2, 3, 4, 99].map(mac);
const ZERO = Buffer.alloc(6);
const MULTICAST = Buffer.from('01005e000001', 'hex');

let guests: TestGuest[] = [];
let on: TestSwitch;

afterEach(() => assertCounted(...guests));

function start(n: number, config: Partial<SwitchConfig> = {}, options: GuestOptions = {}): TestGuest[] {
  on = new TestSwitch(config);
  guests = Array.from({ length: n }, (_, id) => new TestGuest(on, id, options));
  return guests;
}

/** Guests 0, 1, 2 … are known as A, B, C …. */
function startKnown(n: number, config: Partial<SwitchConfig> = {}, options: GuestOptions = {}): TestGuest[] {
  start(n, config, options);
  guests.forEach((guest, i) => void guest.send(frame(BROADCAST, [A, B, C, D][i])));
  on.settle();
  for (const guest of guests) guest.received();
  return guests;
}

const received = () => guests.map((guest) => guest.received());
const switched = (from: number, ...frames: Buffer[]) => {
  guests[from].send(...frames);
  on.settle();
  return received();
};

test('switch: an unknown address is flooded to all but the source, a known one goes to its port alone', () => {
  start(4);
  const first = frame(B, A);
  assert.deepEqual(switched(0, first), [[], [first], [first], [first]]);
  const answer = frame(A, B);
  assert.deepEqual(switched(1, answer), [[answer], [], [], []]);
  const second = frame(B, A);
  assert.deepEqual(switched(0, second), [[], [second], [], []]);
  assert.deepEqual(guests[0].nonZero('tx_'), { tx_packets: 2, tx_bytes: 128, tx_forwarded: 2 });
  assert.deepEqual(guests[1].nonZero('rx_'), { rx_packets: 2, rx_bytes: 128 });
  assert.equal(guests[0].counters.mac_learned, 1);
});

test('switch: broadcast and multicast go to all but the source', () => {
  startKnown(3);
  for (const dst of [BROADCAST, MULTICAST, Buffer.from('0180c2000010', 'hex'), Buffer.from('3333000000fb', 'hex')]) {
    const sent = frame(dst, B);
    assert.deepEqual(switched(1, sent), [[sent], [], [sent]], dst.toString('hex'));
  }
});

test('switch: addresses that stay on one link are forwarded to nobody', () => {
  startKnown(2);
  for (let last = 0; last < 16; last++)
    assert.deepEqual(switched(0, frame(Buffer.from([1, 0x80, 0xc2, 0, 0, last]), A)), [[], []]);
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_link_local: 16 });
});

test('switch: frames for several guests in one burst keep their order at each, as do bursts', () => {
  startKnown(4, {}, { num: 256 });
  const sent = Array.from({ length: 200 }, (_, i) =>
    frame([B, C, D, BROADCAST, NOBODY, A][(i * 7 + (i >> 3)) % 6], A, 60 + i),
  );
  const [, atB, atC, atD] = switched(0, ...sent);
  const due = (...addresses: Buffer[]) => sent.filter((f) => addresses.some((a) => a.equals(f.subarray(0, 6))));
  assert.deepEqual(atB, due(B, BROADCAST, NOBODY));
  assert.deepEqual(atC, due(C, BROADCAST, NOBODY));
  assert.deepEqual(atD, due(D, BROADCAST, NOBODY));
  assert.equal(guests[0].counters.tx_drop_self, due(A).length);
});

test('switch: every source of a burst is learned, and each frame goes where the frames before it say', () => {
  startKnown(3);
  const fromC = [frame(B, C), frame(NOBODY, mac(31)), frame(mac(31), mac(32)), frame(mac(32), C)];
  assert.deepEqual(switched(2, ...fromC), [[fromC[1]], [fromC[0], fromC[1]], []]);
  assert.equal(guests[2].counters.tx_drop_self, 2);
  const toThem = [frame(mac(31), A), frame(mac(32), A)];
  assert.deepEqual(switched(0, ...toThem), [[], [], toThem]);
});

test('switch: a frame to an address on its own port goes nowhere', () => {
  startKnown(2);
  assert.deepEqual(switched(0, frame(A, A), frame(A, mac(7))), [[], []]);
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_self: 2 });
});

test('switch: an address that shows up elsewhere has moved', () => {
  startKnown(3);
  switched(2, frame(B, A));
  const sent = frame(A, B);
  assert.deepEqual(switched(1, sent), [[], [], [sent]]);
  assert.equal(guests[2].counters.mac_moved, 1);
  assert.deepEqual(on.events, ['registered 0', 'registered 1', 'registered 2']);
});

test('switch: a frame from a group address is dropped and not learned', () => {
  startKnown(2);
  assert.deepEqual(switched(0, frame(B, BROADCAST), frame(B, MULTICAST)), [[], []]);
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_bad_source: 2 });
  assert.equal(guests[0].counters.mac_learned, 1);
});

test('switch: the zero address is never learned, and as a destination it is unknown', () => {
  startKnown(3);
  const fromZero = frame(B, ZERO);
  assert.deepEqual(switched(0, fromZero), [[], [fromZero], []]);
  const toZero = [frame(ZERO, B), frame(C, B), frame(ZERO, mac(40)), frame(ZERO, B)];
  assert.deepEqual(switched(1, ...toZero), [[toZero[0], toZero[2], toZero[3]], [], toZero]);
  startKnown(2, { vm2vm: 0 });
  assert.deepEqual(switched(0, frame(ZERO, A)), [[], []]);
});

test('switch: frames shorter than an Ethernet header or longer than 9728 bytes and a tag are dropped', () => {
  startKnown(2, {}, { bufferBytes: 10000 });
  const runts = [0, 1, 12, 13].map((len) => frame(B, A, Math.max(len, 12)).subarray(0, len));
  const shortest = frame(B, A, 22).subarray(0, 14);
  const longest = frame(B, A, 9732);
  assert.deepEqual(switched(0, ...runts, shortest, frame(B, A, 9733), longest), [[], [shortest, longest]]);
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_runt: 4, tx_drop_too_long: 1 });
});

test('switch: addresses cut over several descriptors are read all the same', () => {
  startKnown(3);
  const { ram, tx } = guests[0];
  for (const cuts of [[12], [13, 30], [17, 18], [22, 40], [12, 14, 20, 21, 24], [3, 6, 9, 12, 15, 18, 21, 24, 27]]) {
    const src = mac(100 + cuts.length);
    const sent = frame(B, src, 60);
    const slot = guests[0].txSlot(0);
    const bytes = Buffer.concat([Buffer.alloc(12, 0xff), sent]);
    const edges = [0, ...cuts, bytes.length];
    // the pieces lie apart, with other bytes between them
    ram.bytes.fill(0xee, slot.off, slot.off + 64 * edges.length);
    const pieces = edges.slice(1).map((edge, i) => {
      bytes.copy(ram.bytes, slot.off + 64 * i, edges[i], edge);
      return { addr: slot.addr + 64 * i, len: edge - edges[i] };
    });
    tx.chain(
      pieces.map((_, i) => i),
      pieces,
      0,
    );
    tx.offer(0);
    tx.publish();
    on.settle();
    assert.deepEqual(received(), [[], [sent], []], `cut at ${cuts}`);
    const back = frame(src, B);
    assert.deepEqual(switched(1, back), [[back], [], []]);
  }
});

test('switch: an address not seen for 300 seconds is forgotten, one that goes on is not', () => {
  startKnown(3);
  on.lcore.tick(200);
  switched(0, frame(B, A));
  on.lcore.tick(300);
  const toB = frame(B, A);
  assert.deepEqual(switched(0, toB), [[], [toB], []]);
  on.lcore.tick(301);
  const flooded = frame(B, A);
  const toA = frame(A, C);
  assert.deepEqual(switched(0, flooded), [[], [flooded], [flooded]]);
  assert.deepEqual(switched(2, toA), [[toA], [], []]);
  assert.equal(on.events.length, 3, 'nobody is registered again');
});

test('switch: with ageing off an address stays for ever', () => {
  startKnown(2, { macAgeing: 0 });
  on.lcore.tick(1e9);
  const sent = frame(A, B);
  assert.deepEqual(
    switched(1, sent, frame(NOBODY, B)).map((got) => got.length),
    [2, 0],
  );
  guests.push(new TestGuest(on, 2));
  assert.deepEqual(switched(1, sent), [[sent], [], []]);
});

test('switch: addresses beyond a port’s limit are refused, and frames to them flooded', () => {
  startKnown(3, { macLimit: 2 });
  const sent = [mac(11), mac(12)].map((src) => frame(B, src));
  assert.deepEqual(switched(0, ...sent), [[], sent, []]);
  assert.equal(guests[0].counters.mac_refused, 1);
  const back = [frame(mac(11), B), frame(mac(12), B)];
  assert.deepEqual(switched(1, ...back), [back, [], [back[1]]]);
});

test('switch: a full table learns no more, and goes on switching', () => {
  startKnown(2, { macTableSize: 2 });
  switched(0, frame(B, mac(50)));
  assert.equal(guests[0].counters.mac_refused, 1);
  const sent = frame(A, B);
  assert.deepEqual(switched(1, sent), [[sent], []]);
});

test('switch: a port that goes takes its addresses along, and its number is another’s next', () => {
  startKnown(3);
  on.lcore.removePort(1);
  const flooded = frame(B, A);
  assert.deepEqual(switched(0, flooded), [[], [], [flooded]]);
  assertCounted(guests[1]);
  guests[1] = new TestGuest(on, 1);
  assert.deepEqual(
    switched(0, frame(B, A)).map((got) => got.length),
    [0, 1, 1],
  );
  switched(1, frame(A, mac(77)));
  assert.deepEqual(on.events.slice(3), ['registered 1']);
  const sent = frame(mac(77), C);
  assert.deepEqual(switched(2, sent), [[], [sent], []]);
});

test('switch: with --vm2vm 0 nobody gets anything, and it is counted', () => {
  startKnown(3, { vm2vm: 0 });
  assert.deepEqual(switched(0, frame(B, A), frame(BROADCAST, A), frame(NOBODY, A), frame(A, A)), [[], [], []]);
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_no_uplink: 5 });
  assert.deepEqual(on.events, ['registered 0', 'registered 1', 'registered 2']);
});

test('switch: a lone guest’s floods are counted', () => {
  start(1);
  switched(0, frame(BROADCAST, A), frame(B, A));
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_alone: 2 });
});

test('switch: addresses that a guest had elsewhere are known as if it had used them here', () => {
  start(3);
  const macs = [B, mac(0x21), Buffer.from('010000000001', 'hex'), Buffer.alloc(6)];
  on.lcore.learn(1, [...macs.map((mac) => ({ mac, vlan: 0 })), { mac: C, vlan: 5 }]);
  const known = on.lcore.known(1).map(({ mac, vlan }) => `${vlan} ${Buffer.from(mac).toString('hex')}`);
  assert.deepEqual(known.sort(), [B, mac(0x21)].map((one) => `0 ${one.toString('hex')}`).sort());
  const toBoth = [frame(B, A), frame(mac(0x21), A)];
  assert.deepEqual(switched(0, ...toBoth), [[], toBoth, []]);
  assert.deepEqual([guests[1].counters.mac_learned, ...on.events], [2, 'registered 1', 'registered 0']);
  assert.throws(() => on.lcore.learn(7, []), /no port 7/);
});
