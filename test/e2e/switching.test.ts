/** Which frames reach whom, and what the switch says of them: `--stats`, `--learning` and `--vm2vm`. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

const BROADCAST = 'ff:ff:ff:ff:ff:ff';
const A = macOf(1);
const B = macOf(2);
const C = macOf(3);
/** Time in which a frame that should not come would have come. */
const QUIET_MS = 100;

/** Starts a switch and guests with these addresses, and ends them all. */
async function withGuests(
  args: readonly string[],
  macs: readonly string[],
  use: (running: SwitchProcess, ...cards: VirtioUser[]) => Promise<void>,
): Promise<void> {
  const running = await SwitchProcess.start(args);
  const cards: VirtioUser[] = [];
  try {
    for (const mac of macs) cards.push(await connectGuest({ path: running.socket, mac, maxFrame: 9732 }));
    await use(running, ...cards);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  } finally {
    for (const card of cards) await card.close();
    await running.kill();
  }
}

/** Has the switch take frames from a guest, and waits until it has. */
async function sendAll(card: VirtioUser, frames: readonly Uint8Array[]): Promise<void> {
  const { ring } = card.pairs[0].tx;
  for (const each of frames) while (!card.send(each)) await card.waitSent(1000);
  while (ring.nFree < ring.size) assert.ok((await card.waitSent(5000)) > 0, 'the switch takes no frames');
}

const repeat = (n: number, make: (i: number) => Uint8Array) => Array.from({ length: n }, (_, i) => make(i));

/** The next whole table of statistics, by device: the rows' numbers. */
async function nextTable(running: SwitchProcess): Promise<Record<string, Record<string, number>>> {
  const mark = running.mark;
  await running.line(/^Device statistics =+$/, mark);
  await running.line(/^={40,}$/, mark);
  const [, table] = /^Device statistics =+\n(.*?)^={40,}$/ms.exec(running.since(mark)) as RegExpExecArray;
  const devices: Record<string, Record<string, number>> = {};
  for (const part of table
    .split(/^Statistics for lcore /m)[0]
    .split(/^Statistics for device /m)
    .slice(1)) {
    const [, id] = /^(\d+) -{20,}$/m.exec(part) as RegExpExecArray;
    const rows = [...part.matchAll(/^(.+?): +(\d+)$/gm)].map(([, label, value]) => [label.trim(), Number(value)]);
    devices[id] = Object.fromEntries(rows);
  }
  return devices;
}

describe('switching', { timeout: 120_000 }, () => {
  test('--stats prints what each device sent, got and lost, and how', () =>
    withGuests(['--stats', '1'], [A, B], async (running, a, b) => {
      await assertDelivered(b, a, [frame(A, B)]); // unknown yet: flooded
      await assertDelivered(
        a,
        b,
        repeat(100, (n) => frame(B, A, n, 60 + n)),
      );
      await sendAll(
        a,
        repeat(5, () => frame(A, A)),
      );
      await sendAll(
        a,
        repeat(3, () => frame(B, A, 0, 64).subarray(0, 13)),
      );
      await sendAll(
        a,
        repeat(2, () => frame('01:80:c2:00:00:0e', A)),
      );
      await sendAll(
        a,
        repeat(4, () => frame(B, '53:00:00:00:00:01')),
      );
      await sendAll(
        a,
        repeat(6, () => frame(B, A, 0, 2100)),
      ); // longer than B's buffers
      assert.equal(await b.waitFrame(QUIET_MS), undefined);
      const table = await nextTable(running);
      assert.deepEqual(table, {
        0: {
          'TX total': 120,
          'TX dropped': 20,
          'TX successful': 100,
          'RX total': 1,
          'RX dropped': 0,
          'RX successful': 1,
          tx_drop_runt: 3,
          tx_drop_bad_source: 4,
          tx_drop_link_local: 2,
          tx_drop_self: 5,
          tx_drop_receiver: 6,
        },
        1: {
          'TX total': 1,
          'TX dropped': 0,
          'TX successful': 1,
          'RX total': 106,
          'RX dropped': 6,
          'RX successful': 100,
          rx_drop_too_big: 6,
        },
      });
      // more than B's ring takes while B looks away
      await sendAll(
        a,
        repeat(400, (n) => frame(B, A, n)),
      );
      const { 0: sender, 1: receiver } = await nextTable(running);
      assert.deepEqual([sender['TX total'], sender['TX successful']], [520, 356]);
      assert.deepEqual([receiver['RX total'], receiver.rx_drop_no_buffer], [506, 144]);
      for (let n = 0; n < 256; n++) assert.deepEqual(b.receive(), frame(B, A, n), `frame ${n} of those that fitted`);
      assert.equal(b.receive(), undefined);
    }));

  test('without options it is a bridge: broadcasts and unknown addresses go to all others, and addresses may move', () =>
    withGuests([], [A, B, C], async (running, a, b, c) => {
      const hello = frame(BROADCAST, A, 1, 60);
      await sendAll(a, [hello]);
      for (const card of [b, c]) assert.deepEqual(await card.waitFrame(5000), hello);
      await sendAll(b, [frame(A, B)]);
      assert.deepEqual(await a.waitFrame(5000), frame(A, B));
      await assertDelivered(a, b, [frame(B, A, 2)]);
      assert.equal(await c.waitFrame(QUIET_MS), undefined, 'what is for B only does not reach C');
      await sendAll(c, [frame(A, B, 3)]); // B's address is behind C now
      assert.deepEqual(await a.waitFrame(5000), frame(A, B, 3));
      await assertDelivered(a, c, [frame(B, A, 4)]);
      assert.equal(await b.waitFrame(QUIET_MS), undefined);
      const registered = running.lines.filter((line) => line.endsWith('registered'));
      assert.deepEqual(registered, [
        `DATA: (0) MAC_ADDRESS ${A} and VLAN_TAG 1000 registered`,
        `DATA: (1) MAC_ADDRESS ${B} and VLAN_TAG 1001 registered`,
        `DATA: (2) MAC_ADDRESS ${B} and VLAN_TAG 1002 registered`,
      ]);
    }));

  test('--learning first registers one address a device, refuses duplicates with a warning, and floods nothing', () =>
    withGuests(['--learning', 'first', '--stats', '1'], [A, B, A], async (running, a, b, twin) => {
      await sendAll(a, [frame(BROADCAST, A)]);
      await running.line(/^DATA: \(0\) MAC_ADDRESS 52:54:00:00:00:01 and VLAN_TAG 1000 registered$/);
      await sendAll(b, [frame(A, B, 1)]);
      await running.line(/^DATA: \(1\) MAC_ADDRESS 52:54:00:00:00:02 and VLAN_TAG 1001 registered$/);
      assert.deepEqual(await a.waitFrame(5000), frame(A, B, 1));
      await sendAll(twin, [frame(B, A, 2)]);
      const warning = 'DATA: (2) WARNING: This device is using an existing MAC address and has not been registered.';
      assert.equal(await running.line(/WARNING/), warning);
      assert.equal(await b.waitFrame(QUIET_MS), undefined, 'what a device sends that is not registered is lost');
      await assertDelivered(b, a, [frame(A, B, 3)]);
      assert.equal(await twin.waitFrame(QUIET_MS), undefined, 'A is where it was first');
      await sendAll(a, [frame(B, C, 4)]); // another source later on is neither learned nor refused
      assert.deepEqual(await b.waitFrame(5000), frame(B, C, 4));
      await sendAll(b, [frame(C, B, 5), frame(BROADCAST, B, 6)]);
      assert.equal(await a.waitFrame(QUIET_MS), undefined, 'unknown addresses and broadcasts are for the uplink');
      const table = await nextTable(running);
      assert.equal(table[1].tx_drop_no_uplink, 2);
      assert.equal(table[2].tx_drop_unregistered, 1);
      assert.equal(table[2]['TX dropped'], 1);
      await twin.close();
      await a.close(); // its address is free again
      await running.line(/^DATA: \(0\) Device has been removed$/);
      const heir = await connectGuest({ path: running.socket, mac: A });
      await assertDelivered(heir, b, [frame(B, A, 7)]);
      await assertDelivered(b, heir, [frame(A, B, 8)]);
      await heir.close();
    }));

  test('--vm2vm 0 registers devices, delivers nothing between them, and counts it', () =>
    withGuests(['--vm2vm', '0', '--stats', '1'], [A, B], async (running, a, b) => {
      await sendAll(a, [frame(B, A), frame(BROADCAST, A), frame(C, A)]);
      await sendAll(b, [frame(A, B)]);
      await running.line(/^DATA: \(1\) MAC_ADDRESS 52:54:00:00:00:02 and VLAN_TAG 1001 registered$/);
      for (const card of [a, b]) assert.equal(await card.waitFrame(QUIET_MS), undefined);
      const table = await nextTable(running);
      assert.equal(table[0].tx_drop_no_uplink, 3);
      assert.equal(table[1].tx_drop_no_uplink, 1);
      assert.equal(table[0]['TX dropped'], 3);
    }));

  test('an address not seen for --mac-ageing seconds is forgotten: frames for it are flooded again', () =>
    withGuests(['--mac-ageing', '1'], [A, B, C], async (_running, a, b, c) => {
      await assertDelivered(a, b, []);
      await sendAll(b, [frame(BROADCAST, B)]);
      for (const card of [a, c]) assert.deepEqual(await card.waitFrame(5000), frame(BROADCAST, B));
      await assertDelivered(a, b, [frame(B, A, 1)]);
      assert.equal(await c.waitFrame(QUIET_MS), undefined);
      const giveUpAt = performance.now() + 6000;
      for (let n = 2; ; n++) {
        await sendAll(a, [frame(B, A, n)]);
        assert.deepEqual(await b.waitFrame(5000), frame(B, A, n));
        if ((await c.waitFrame(QUIET_MS)) !== undefined) return;
        assert.ok(performance.now() < giveUpAt, 'after 6 s the address is still known');
      }
    }));

  test('guests of sockets with VLANs hear only those of their own, whichever lcores they are on', async () => {
    const sockets = ['ten,vlan=10', 'twenty,vlan=20', 'both,trunk=20-21,native=10'];
    const named = sockets.flatMap((socket) => ['--socket-file', socket]);
    const running = await SwitchProcess.start([...named, '--stats', '1', '--lcores', '0@0,1@0,2@0']);
    const guests = [
      ['ten', A],
      ['ten', B],
      ['twenty', C],
      ['both', macOf(4)],
    ] as const;
    const cards: VirtioUser[] = [];
    try {
      for (const [name, mac] of guests) cards.push(await connectGuest({ path: running.path(name), mac }));
      const [a, b, c, d] = cards;
      const all = frame(BROADCAST, A, 1);
      await sendAll(a, [all]);
      for (const card of [b, d]) assert.deepEqual(await card.waitFrame(5000), all);
      await running.line(/^DATA: \(0\) MAC_ADDRESS 52:54:00:00:00:01 and VLAN_TAG 10 registered$/);
      await assertDelivered(d, a, [frame(A, macOf(4), 2)]);
      const many = frame(BROADCAST, C, 3);
      await sendAll(c, [many]);
      assert.deepEqual(await d.waitFrame(5000), tagged(many, 20));
      // an address of another VLAN, which is not known in this one
      await sendAll(c, [frame(A, C, 4)]);
      assert.deepEqual(await d.waitFrame(5000), tagged(frame(A, C, 4), 20));
      await sendAll(d, [tagged(frame(C, macOf(4), 5), 20), tagged(frame(C, macOf(4), 6), 30)]);
      assert.deepEqual(await c.waitFrame(5000), frame(C, macOf(4), 5));
      await sendAll(a, [tagged(frame(BROADCAST, A, 7), 20)]);
      for (const card of cards) assert.equal(await card.waitFrame(QUIET_MS), undefined);
      const table = await nextTable(running);
      assert.deepEqual([table[0].tx_drop_tagged, table[3].tx_drop_vlan], [1, 1]);
      assert.equal(await running.stop(), 'ended with status 0', running.output);
    } finally {
      for (const card of cards) await card.close();
      await running.kill();
    }
  });
});

/** The frame with a VLAN tag behind its addresses. */
function tagged(bytes: Uint8Array, vid: number): Uint8Array {
  return Uint8Array.from([...bytes.subarray(0, 12), 0x81, 0x00, vid >> 8, vid & 0xff, ...bytes.subarray(12)]);
}
