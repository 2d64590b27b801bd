import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import type { SwitchConfig } from '../../src/switch/switch-config.ts';
import { BROADCAST, frame, mac } from '../kit/frames.ts';
import { assertCounted, TestGuest, TestSwitch } from '../kit/test-switch.ts';

const [A, B, C, OTHER] = [1, 2, 3, 9].map(mac);
const ZERO = Buffer.alloc(6);

let guests: TestGuest[] = [];
let on: TestSwitch;

afterEach(() => assertCounted(...guests));

function start(n: number, config: Partial<SwitchConfig> = {}): void {
  on = new TestSwitch({ learning: 'first', ...config });
  guests = Array.from({ length: n }, (_, id) => new TestGuest(on, id));
}

const switched = (from: number, ...frames: Buffer[]) => {
  guests[from].send(...frames);
  on.settle();
  return guests.map((guest) => guest.received());
};

test('learning first: the source of the first frame of the first burst is a device’s address for ever', () => {
  start(2);
  switched(1, frame(A, B));
  const burst = [frame(B, A), frame(B, OTHER)];
  assert.deepEqual(switched(0, ...burst), [[], burst], 'later sources are not looked at');
  assert.deepEqual(on.events, ['registered 1', 'registered 0']);
  const [toA, toOther] = [frame(A, B), frame(OTHER, B)];
  assert.deepEqual(switched(1, toA, toOther), [[toA], []]);
  on.lcore.tick(1e6);
  assert.deepEqual(switched(1, toA), [[toA], []], 'nothing ages');
  assert.equal(guests[0].counters.mac_learned, 1);
});

test('learning first: broadcast, multicast and unknown addresses are for the uplink only', () => {
  start(3);
  [A, B, C].forEach((address, i) => void switched(i, frame(OTHER, address)));
  assert.deepEqual(switched(0, frame(BROADCAST, A), frame(Buffer.from('01005e000001', 'hex'), A), frame(OTHER, A)), [
    [],
    [],
    [],
  ]);
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_no_uplink: 4 });
});

test('learning first: a device that is not registered gets nothing', () => {
  start(2);
  assert.deepEqual(switched(0, frame(B, A)), [[], []]);
  assert.deepEqual(switched(0, frame(B, A)), [[], []]);
  assert.equal(guests[0].counters.tx_drop_no_uplink, 2);
  switched(1, frame(OTHER, B));
  const sent = frame(B, A);
  assert.deepEqual(switched(0, sent), [[], [sent]]);
});

test('learning first: a frame to one’s own address goes nowhere', () => {
  start(1);
  switched(0, frame(A, A));
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_self: 1 });
});

test('learning first: a device with another’s address is refused, its whole burst lost, and may try again', () => {
  start(3);
  switched(0, frame(OTHER, A));
  switched(2, frame(OTHER, C));
  assert.deepEqual(switched(1, frame(C, A), frame(C, B)), [[], [], []]);
  assert.deepEqual(on.events.splice(0), ['registered 0', 'registered 2', 'duplicate 1']);
  assert.deepEqual(guests[1].nonZero('tx_drop_'), { tx_drop_unregistered: 2 });
  assert.equal(guests[1].counters.mac_refused, 1);
  const toA = frame(A, C);
  assert.deepEqual(switched(2, toA), [[toA], [], []], 'the address stays where it was');
  const good = frame(C, B);
  assert.deepEqual(switched(1, good), [[], [], [good]]);
  assert.deepEqual(on.events, ['registered 1']);
});

test('learning first: the warning comes again, but once a second at most', () => {
  start(2);
  switched(0, frame(OTHER, A));
  for (const second of [0, 0, 0, 1, 1, 5]) {
    on.lcore.tick(second);
    switched(1, frame(OTHER, A));
  }
  assert.deepEqual(on.events, ['registered 0', 'duplicate 1', 'duplicate 1', 'duplicate 1']);
  assert.equal(guests[1].counters.mac_refused, 6);
});

test('learning first: the zero address never registers', () => {
  start(2);
  switched(0, frame(B, ZERO), frame(B, A));
  assert.deepEqual(guests[0].nonZero('tx_drop_'), { tx_drop_unregistered: 2 });
  assert.ok(!on.events.includes('registered 0'));
});

test('learning first: a device that goes frees its address and its number', () => {
  start(2);
  switched(0, frame(OTHER, A));
  switched(1, frame(OTHER, B));
  on.lcore.removePort(0);
  guests[0] = new TestGuest(on, 0);
  assert.deepEqual(switched(1, frame(A, B)), [[], []], 'the number alone gets nothing');
  switched(0, frame(OTHER, A));
  const sent = frame(A, B);
  assert.deepEqual(switched(1, sent), [[sent], []]);
  assert.deepEqual(on.events, ['registered 0', 'registered 1', 'registered 0']);
});

test('learning first: with --vm2vm 0 devices register and reach nobody', () => {
  start(2, { vm2vm: 0 });
  switched(0, frame(OTHER, A));
  assert.deepEqual(switched(1, frame(A, B)), [[], []]);
  assert.deepEqual(on.events, ['registered 0', 'registered 1']);
  assert.deepEqual(guests[1].nonZero('tx_drop_'), { tx_drop_no_uplink: 1 });
});

test('learning first: a guest that comes here is registered under its first address, if nobody else has that', () => {
  start(3);
  switched(0, frame(B, A));
  on.lcore.learn(
    1,
    [A, B, C].map((mac) => ({ mac, vlan: 0 })),
  );
  assert.deepEqual(on.events, ['registered 0', 'registered 1']);
  const sent = [frame(B, A), frame(C, A)];
  assert.deepEqual(switched(0, ...sent), [[], [sent[0]], []]);
  assert.deepEqual(on.lcore.known(1), [{ mac: new Uint8Array(B), vlan: 0 }]);
});
