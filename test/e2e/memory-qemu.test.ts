/** Guests whose memory is in several pieces, or grows while they are served. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { IpHost } from '../kit/ip-host.ts';
import { ensurePeers } from '../peers/packages.ts';
import type { QemuGuest, QemuGuestOptions } from '../peers/qemu.ts';
import { BackEnd, peersFor } from './back-end.ts';
import { assertFeature, FEATURE, ipOf, linuxGuest, sh } from './linux-guests.ts';
import { connectGuest, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(peersFor('qemu'))).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const DIMM_MIB = 128;
/** Beyond it a ping was not merely late. */
const MOST_SILENCE_MS = 5000;

/** A guest that a host of ours pings with the largest frames all the time. */
async function whilePinged(
  options: Partial<QemuGuestOptions>,
  use: (guest: QemuGuest, host: IpHost, backEnd: BackEnd) => Promise<void>,
): Promise<void> {
  const backEnd = await BackEnd.start(2);
  const guest = linuxGuest(1, backEnd.sockets[0], options);
  let host: IpHost | undefined;
  try {
    await guest.start();
    const card = await connectGuest({ path: backEnd.sockets[1], mac: macOf(2) });
    host = new IpHost(card, ipOf(2), { mac: macOf(1), ip: ipOf(1) });
    host.startPinging(5, 1472);
    await host.answersMore(50);
    await use(guest, host, backEnd);
  } finally {
    await host?.stop();
    await host?.card.close();
    await guest.stop();
    await backEnd.stop();
  }
}

describe('guest memory in QEMU', { skip, timeout: 240_000 }, () => {
  for (const packed of [false, true]) {
    test(`memory is plugged in mid-traffic and used, ${packed ? 'packed' : 'split'} rings`, () =>
      whilePinged({ packed, hotplug: { slots: 4, maxMiB: 2048 } }, async (guest, host, backEnd) => {
        await assertFeature(guest, FEATURE.packed, packed);
        const mapped = backEnd.switch?.mappedFiles;
        for (let n = 0; n < 3; n++) {
          await guest.plugMemory(`dimm${n}`, DIMM_MIB);
          await host.answersMore(20);
        }
        if (mapped !== undefined) assert.ok((backEnd.switch?.mappedFiles ?? 0) >= mapped + 3, 'the switch maps it');
        // what the guest had before is full, so that packets lie in what is new
        await sh(guest, 'mount -t tmpfs -o size=90% big /mnt; dd if=/dev/zero of=/mnt/big bs=1M count=260', 60_000);
        await sh(guest, 'ip link set eth0 down; netup');
        await host.answersMore(50);
        const { longestGapMs, answered } = host.pings;
        assert.ok(longestGapMs < MOST_SILENCE_MS, `${answered} answers, one after ${longestGapMs} ms`);
        await sh(guest, `ping -c 3 -W 5 -s 1472 ${ipOf(2)}`);
      }));
  }

  test('a guest of 3 GiB, of which one lies above 4 GiB', () =>
    whilePinged({ memoryMiB: 3072 }, async (guest, host, backEnd) => {
      assert.match(await sh(guest, 'cat /proc/iomem'), /^100000000-[0-9a-f]+ : System RAM/m);
      await host.answersMore(100);
      await sh(guest, `ping -c 3 -W 5 -s 1472 ${ipOf(2)}`);
      assert.ok((backEnd.switch?.mappedFiles ?? 2) >= 2, 'the switch maps both');
    }));
});
