/** Patience with full receive rings: how often it waits, for whom, and when it gives up. */
import assert from 'node:assert/strict';
import { afterEach, mock, test } from 'node:test';
import { MAX_RETRY_US, RxRetry } from '../../src/port/rx-retry.ts';
import { BROADCAST, frame, mac } from '../kit/frames.ts';
import { TestGuest } from '../kit/test-switch.ts';
import { UplinkSwitch } from '../kit/uplink-switch.ts';

const [A, B, OUT] = [1, 2, 0x77].map(mac);

afterEach(() => mock.restoreAll());

/** Guests with so many buffers, and how often the switch has waited; `meanwhile` is what happens during the nth wait. */
function start(buffers: readonly number[], num: number, meanwhile: (wait: number) => void = () => {}) {
  const on = new UplinkSwitch({ rxRetry: { num, delayUs: 1 } });
  const guests = buffers.map((n, id) => new TestGuest(on, id, { num: 64, buffers: n }));
  let waits = 0;
  const { wait } = RxRetry.prototype;
  mock.method(RxRetry.prototype, 'wait', function (this: RxRetry) {
    meanwhile(++waits);
    wait.call(this);
  });
  const arrive = (n: number, dst = BROADCAST) => {
    waits = 0;
    on.uplink.arrive(...Array.from({ length: n }, () => frame(dst, OUT)));
    on.settle();
    return waits;
  };
  return { on, guests, arrive };
}

const offer = (guest: TestGuest, from: number, n: number) => {
  for (let i = from; i < from + n; i++) guest.rx.offer(i);
  guest.rx.publish();
};

test('rx retry: a burst that fits is not waited for', () => {
  const { arrive, guests } = start([32], 4);
  assert.equal(arrive(32), 0);
  assert.equal(guests[0].received().length, 32);
});

test('rx retry: a burst that does not fit waits until it does', () => {
  const { arrive, guests } = start([8], 4, (wait) => {
    if (wait === 2) offer(guests[0], 8, 24);
  });
  assert.equal(arrive(32), 2);
  assert.equal(guests[0].counters.rx_packets, 32);
});

test('rx retry: what does not fit after the last wait is lost, and counted', () => {
  const { arrive, guests } = start([8], 4);
  assert.equal(arrive(20), 4);
  assert.deepEqual(guests[0].nonZero('rx_drop'), { rx_drop_no_buffer: 12 });
  assert.equal(guests[0].counters.rx_packets, 8);
});

test('rx retry: who was waited for in vain is not again, until there is a buffer', () => {
  const { arrive, guests } = start([4], 3);
  assert.deepEqual([arrive(4), arrive(1), arrive(1), arrive(1)], [0, 3, 0, 0]);
  offer(guests[0], 4, 1);
  assert.equal(arrive(2), 3);
  assert.equal(guests[0].counters.rx_packets, 5);
});

test('rx retry: all guests of a burst share its waits', () => {
  const { arrive } = start([1, 1, 1], 4);
  assert.equal(arrive(2), 4);
});

test('rx retry: frames from guests are not waited for', () => {
  let waited = 0;
  const { on, guests } = start([64, 1], 4, (n) => {
    waited = n;
  });
  guests[1].send(frame(A, B));
  on.settle();
  guests[0].send(frame(B, A), frame(B, A), frame(B, A));
  on.settle();
  assert.equal(guests[1].counters.rx_drop_no_buffer, 2);
  assert.equal(waited, 0);
});

test('rx retry: however much is asked for, a burst is held up for a millisecond at most', () => {
  const most = 2147483647;
  for (const [num, delayUs, left] of [
    [4, 15, 4],
    [most, 15, 66],
    [most, 0, MAX_RETRY_US],
    [5, most, 1],
    [0, 15, 0],
  ]) {
    const retry = new RxRetry(num, delayUs);
    assert.equal(retry.left, 0);
    retry.begin(true);
    assert.equal(retry.left, left, `${num} waits of ${delayUs} µs`);
    retry.begin(false);
    assert.equal(retry.left, 0);
  }
});
