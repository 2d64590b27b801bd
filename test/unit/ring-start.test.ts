/** Where rings begin and go on: the bases that front ends give them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { frame, mac } from '../kit/frames.ts';
import { FORMATS } from '../kit/raw-ring.ts';
import { TestGuest, TestSwitch } from '../kit/test-switch.ts';

const [A, B] = [mac(1), mac(2)];
const TX = 1;

/** Sends frames back and forth, and checks that they come. */
function talk(on: TestSwitch, a: TestGuest, b: TestGuest, n: number): void {
  const there = Array.from({ length: n }, (_, i) => frame(B, A, 64 + i));
  const back = Array.from({ length: n }, (_, i) => frame(A, B, 64 + i));
  a.send(...there);
  b.send(...back);
  on.settle();
  assert.deepEqual([a.received(), b.received()], [back, there]);
}

for (const format of FORMATS)
  for (const start of format === 'split' ? [0, 1, 255, 65533, 65535] : [0x8000, 0, 0x8001, 5, 0x8006, 6])
    test(`${format} ring: begins at 0x${start.toString(16)}, goes on over the wrap, and says where it stands`, () => {
      const on = new TestSwitch();
      const guests = [0, 1].map((id) => new TestGuest(on, id, { format, start, num: format === 'split' ? 8 : 7 }));
      const [a, b] = guests;
      a.send(frame(B, A));
      on.settle();
      b.received();
      for (let n = 1; n <= 7; n++) talk(on, a, b, n);
      for (const guest of guests) {
        assert.equal(on.lcore.stopVring(guest.id, TX), guest.tx.base);
        on.lcore.startVring(guest.id, TX, guest.tx.vring(true, NO_FD, guest.tx.base));
      }
      talk(on, a, b, 7);
    });

// DPDK's virtio-user gives 0x8000, and its vhost library answers GET_VRING_BASE with 16 bits, which QEMU hands on in a migration
for (const [base, start] of [
  [0x8000, 0x8000],
  [0x8005, 0x8005],
  [0x0003, 0x0003],
  [0, 0],
])
  test(`packed ring: a base of 0x${base.toString(16)}, which tells the avail position alone, is where it begins`, () => {
    const on = new TestSwitch();
    const options = { format: 'packed', start, base, num: 7 } as const;
    const [a, b] = [0, 1].map((id) => new TestGuest(on, id, options));
    a.send(frame(B, A));
    on.settle();
    assert.equal(b.received().length, 1);
    for (let n = 1; n <= 7; n++) talk(on, a, b, n);
  });

test('packed ring: where the two halves of a base differ, the used one counts: what is between has not been done', () => {
  const on = new TestSwitch();
  const options = { format: 'packed', start: 0x8003, base: 0x8003_8005, num: 7 } as const;
  const [a, b] = [0, 1].map((id) => new TestGuest(on, id, options));
  a.send(frame(B, A));
  on.settle();
  assert.equal(b.received().length, 1);
  talk(on, a, b, 7);
});
