import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { afterEach, test } from 'node:test';
import { createEventfd, drain } from '../../src/sys/eventfd.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { BROADCAST, frame, mac } from '../kit/frames.ts';
import { assertCounted, type GuestOptions, TestGuest, TestSwitch } from '../kit/test-switch.ts';

const [A, B, C] = [1, 2, 3].map(mac);
const RX = 0;
const TX = 1;

let guests: TestGuest[] = [];
let on: TestSwitch;

afterEach(() => assertCounted(...guests));

/** Guests known as A, B and C, the second with options of its own. */
function start(second: GuestOptions = {}, first: GuestOptions = {}): TestGuest[] {
  on = new TestSwitch();
  guests = [first, second, {}].map((options, id) => new TestGuest(on, id, options));
  guests.forEach((guest, i) => void guest.send(frame(Buffer.from([1, 0x80, 0xc2, 0, 0, 1]), [A, B, C][i])));
  on.settle();
  return guests;
}

const send = (from: number, ...frames: Buffer[]) => {
  guests[from].send(...frames);
  on.settle();
};

test('receiver: without buffers frames are dropped and counted on both sides, and later ones arrive', () => {
  const [sender, receiver] = start({ buffers: 4 });
  const sent = Array.from({ length: 10 }, () => frame(B, A));
  send(0, ...sent);
  assert.deepEqual(receiver.nonZero('rx_drop_'), { rx_drop_no_buffer: 6 });
  assert.equal(sender.counters.tx_drop_receiver, 6);
  assert.deepEqual(receiver.received(), sent.slice(0, 4));
  send(0, sent[9]);
  assert.deepEqual(receiver.received(), [sent[9]]);
});

test('receiver: a flooded frame that some have no room for has reached the others', () => {
  const [sender, full, other] = start({ buffers: 0 });
  send(0, frame(BROADCAST, A));
  assert.equal(other.received().length, 1);
  assert.equal(full.counters.rx_drop_no_buffer, 1);
  assert.equal(sender.counters.tx_forwarded, 1);
  assert.equal(sender.counters.tx_drop_receiver, 0);
});

test('receiver: a frame longer than the buffers is dropped, those around it arrive', () => {
  for (const headerLen of [10, 12] as const) {
    const [sender, receiver] = start({ bufferBytes: 1514, headerLen });
    const sent = [frame(B, A, 1514), frame(B, A, 1515), frame(B, A, 9728), frame(B, A, 64)];
    send(0, ...sent);
    assert.deepEqual(receiver.received(), [sent[0], sent[3]]);
    assert.deepEqual(receiver.nonZero('rx_drop_'), { rx_drop_too_big: 2 });
    assert.equal(sender.counters.tx_drop_receiver, 2);
  }
});

test('receiver: frames of 9728 bytes and a tag go into mergeable buffers of any size', () => {
  for (const bufferBytes of [200, 1514, 4096, 10000]) {
    const [, receiver] = start({ bufferBytes, mergeable: true, num: 128 });
    const sent = [frame(B, A, 9728), frame(B, A, 60), frame(B, A, 9732)];
    for (const one of sent) {
      send(0, one);
      assert.deepEqual(receiver.received(), [one]);
    }
    assert.equal(receiver.counters.rx_bytes, 9728 + 60 + 9732);
  }
});

test('receiver: a frame that the mergeable buffers left do not hold leaves them for the next', () => {
  const [, receiver] = start({ bufferBytes: 300, mergeable: true, buffers: 4 });
  const sent = [frame(B, A, 700), frame(B, A, 700), frame(B, A, 100)];
  send(0, ...sent);
  assert.deepEqual(receiver.received(), [sent[0], sent[2]]);
  assert.deepEqual(receiver.nonZero('rx_drop_'), { rx_drop_no_buffer: 1 });
});

test('receiver: buffers that came since the last look are used before a frame is dropped', () => {
  const [, receiver] = start({ bufferBytes: 300, mergeable: true, num: 32, buffers: 2 });
  send(0, frame(B, A, 60));
  for (let i = 2; i < 32; i++) receiver.rx.offer(i);
  receiver.rx.publish();
  // one buffer is known of, three are needed
  const sent = frame(B, A, 800);
  send(0, sent);
  assert.deepEqual(receiver.received()[1], sent);
});

test('disabled: what a disabled ring sends is taken and goes nowhere', () => {
  const [sender] = start();
  on.lcore.enableVring(0, TX, false);
  const before = sender.tx.usedIdx;
  sender.send(...Array.from({ length: 40 }, () => frame(B, A)));
  for (let bursts = 0; bursts < 2; bursts++) on.lcore.poll();
  assert.equal(sender.tx.usedIdx - before, 40);
  assert.deepEqual(guests[1].received(), []);
  assert.equal(sender.counters.tx_drop_disabled, 40);
  on.lcore.enableVring(0, TX, true);
  const sent = frame(B, A);
  send(0, sent);
  assert.deepEqual(guests[1].received(), [sent]);
});

test('disabled: a disabled receive ring gets nothing, neither sent to it nor flooded', () => {
  const [sender, receiver, other] = start();
  on.lcore.enableVring(1, RX, false);
  send(0, frame(B, A), frame(BROADCAST, A));
  assert.deepEqual(receiver.received(), []);
  assert.equal(other.received().length, 1);
  assert.deepEqual(receiver.nonZero('rx_drop_'), { rx_drop_not_ready: 1 });
  assert.equal(sender.counters.tx_drop_receiver, 1);
  on.lcore.stopVring(2, RX);
  send(0, frame(BROADCAST, A));
  assert.equal(sender.counters.tx_drop_alone, 1);
  on.lcore.enableVring(1, RX, true);
  const sent = frame(B, A);
  send(0, sent);
  assert.deepEqual(receiver.received(), [sent]);
});

test('stopped: a ring goes on where it was when it is started again, and nothing is sent twice', () => {
  const [sender, receiver] = start();
  const sent = Array.from({ length: 5 }, (_, i) => frame(B, A, 64 + i));
  send(0, ...sent.slice(0, 2));
  assert.equal(on.lcore.stopVring(0, TX), sender.tx.base);
  send(0, ...sent.slice(2));
  assert.deepEqual(receiver.received(), sent.slice(0, 2));
  on.lcore.startVring(0, TX, sender.tx.vring(true, NO_FD, sender.tx.base));
  on.settle();
  assert.deepEqual(receiver.received(), sent.slice(2));
  assert.equal(on.lcore.stopVring(0, TX), sender.tx.base);
  assert.equal(on.lcore.stopVring(0, TX), undefined);
});

for (const eventIdx of [false, true])
  test(`sleep: ${eventIdx ? 'with' : 'without'} event index guests are asked to kick, unless they have sent meanwhile`, () => {
    const [sender] = start({}, { eventIdx });
    assert.ok(on.lcore.prepareSleep() > 0);
    assert.equal(sender.tx.kicksWanted, true);
    sender.send(frame(B, A));
    assert.equal(on.lcore.prepareSleep(), 0);
    on.lcore.wake();
    assert.equal(sender.tx.kicksWanted, false);
    on.settle();
    assert.equal(guests[1].received().length, 1);
  });

test('calls: a call eventfd given again hears of what its driver asked for, however much passed without', () => {
  const callFd = createEventfd();
  const [sender] = start({}, { eventIdx: true, num: 64, callFd });
  const one = frame(B, A);
  const sendMany = (n: number) => {
    send(0, ...Array.from({ length: n }, () => one));
    guests[1].received();
  };
  sendMany(1);
  on.lcore.setCall(0, TX, NO_FD);
  // the index comes round to ten before where it was when the driver was last asked
  for (let left = 65536 - 10; left > 0; left -= 32) sendMany(Math.min(32, left));
  drain(callFd);
  on.lcore.setCall(0, TX, callFd);
  sender.tx.askForNext();
  sendMany(30);
  assert.equal(drain(callFd), 1, 'the very next is asked for');
  sendMany(30);
  assert.equal(drain(callFd), 0, 'and no other');
  closeSync(callFd);
});

test('calls: they are counted as sent or not wanted, once a burst', () => {
  const callFd = createEventfd();
  const [, receiver] = start({ callFd });
  drain(callFd);
  const before = receiver.counters;
  send(0, ...Array.from({ length: 32 }, () => frame(B, A)));
  assert.equal(drain(callFd), 1);
  receiver.rx.noInterrupt = true;
  send(0, frame(B, A));
  assert.equal(drain(callFd), 0);
  assert.equal(receiver.counters.calls - before.calls, 1);
  assert.equal(receiver.counters.calls_suppressed - before.calls_suppressed, 1);
  closeSync(callFd);
});
