/** Linux guests with two queue pairs: one at first, then both, and back, while TCP runs. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ensurePeers } from '../peers/packages.ts';
import type { QemuGuest } from '../peers/qemu.ts';
import { BackEnd, peersFor } from './back-end.ts';
import {
  assertFeature,
  assertFilePasses,
  assertPing,
  assertTcp,
  FEATURE,
  ipOf,
  linuxGuest,
  sh,
  startAll,
  startTcp,
} from './linux-guests.ts';

const [leftOut] = (await ensurePeers(peersFor('qemu'))).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const QUEUES = 2;

/** Packets that the guest's driver counted on each queue. */
async function queuePackets(guest: QemuGuest): Promise<{ rx: number[]; tx: number[] }> {
  const output = await sh(guest, 'ethtool -S eth0');
  const counts = (direction: string) =>
    [...output.matchAll(new RegExp(`${direction}_queue_\\d+_packets: (\\d+)`, 'g'))].map(([, count]) => Number(count));
  return { rx: counts('rx'), tx: counts('tx') };
}

/** How many packets came and went on each queue while `action` ran. */
async function packetsWhile(guest: QemuGuest, action: () => Promise<unknown>): Promise<{ rx: number[]; tx: number[] }> {
  const before = await queuePackets(guest);
  await action();
  const later = await queuePackets(guest);
  const more = (direction: 'rx' | 'tx') => later[direction].map((count, n) => count - before[direction][n]);
  return { rx: more('rx'), tx: more('tx') };
}

const setPairs = (guest: QemuGuest, pairs: number) => sh(guest, `ethtool -L eth0 combined ${pairs}`);

for (const packed of [false, true]) {
  describe(`Linux guests with two queue pairs, ${packed ? 'packed' : 'split'}`, { skip, timeout: 280_000 }, () => {
    let backEnd: BackEnd;
    let a: QemuGuest;
    let b: QemuGuest;

    before(async () => {
      backEnd = await BackEnd.start(2, { queues: QUEUES });
      [a, b] = [1, 2].map((n) => linuxGuest(n, backEnd.sockets[n - 1], { queues: QUEUES, packed }));
      await startAll([a, b]);
    });
    after(async () => {
      await Promise.all([a?.stop(), b?.stop()]);
      await backEnd?.stop();
    });

    test('MQ is negotiated; each has two pairs', async () => {
      for (const guest of [a, b]) {
        await assertFeature(guest, FEATURE.mq);
        await assertFeature(guest, FEATURE.packed, packed);
        const channels = await sh(guest, 'ethtool -l eth0');
        assert.match(channels, /maximums:.*Combined:\s+2.*Current.*Combined:\s+[12]/s);
      }
    });

    test('with one pair each TCP runs on queue 0', async () => {
      for (const guest of [a, b]) await setPairs(guest, 1);
      const { rx, tx } = await packetsWhile(a, () => assertTcp(a, b, 2));
      assert.ok(rx[0] > 50 && tx[0] > 50, `${rx}; ${tx}`);
      assert.deepEqual([rx[1] ?? 0, tx[1] ?? 0], [0, 0], 'nothing on the queue that is not used');
    });

    test('pairs are added and taken away in mid-traffic, and TCP goes on', async () => {
      const tcp = await startTcp(a, b, 2, { seconds: 12, streams: 4, pause: 2 });
      for (const pairs of [2, 1, 2, 1, 2]) {
        await sleep(1000);
        await setPairs(b, pairs);
        await sleep(500);
        await setPairs(a, pairs);
      }
      await tcp.finish();
      await assertPing(a, ipOf(2));
    });

    test('with two pairs each traffic takes all queues', async () => {
      for (const guest of [a, b]) await setPairs(guest, 2);
      // the guest's kernel picks the queue by the processor that sends
      const all = async () => {
        await assertTcp(a, b, 2, { seconds: 4, streams: 8 });
        for (const cpu of [0, 1]) await sh(b, `taskset ${1 << cpu} ping -A -c 50 -w 20 ${ipOf(1)} >/dev/null`);
      };
      const { rx, tx } = await packetsWhile(b, all);
      for (const counts of [rx, tx]) assert.ok(counts.length === 2 && counts.every((n) => n > 0), `${rx}; ${tx}`);
    });

    test('files pass both ways at once', async () => {
      await Promise.all([assertFilePasses(a, b, 2), assertTcp(a, b, 2, { seconds: 5, streams: 2 })]);
      await assertFilePasses(b, a, 1);
    });
  });
}
