/**
 * Linux guests that leave checksums and segmentation to the device, as QEMU has it by default, with each other and with guests that
 * cannot: what one leaves undone must be done before it reaches another who did not agree to that.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { ensurePeers } from '../peers/packages.ts';
import type { QemuGuest, QemuGuestOptions } from '../peers/qemu.ts';
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
} from './linux-guests.ts';

const [leftOut] = (await ensurePeers(peersFor('qemu'))).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

/** The larger a TCP segment that a guest with offloads sends is; it is beyond any MTU here. */
const GSO_BYTES = 20_000;

const NO_RX = ['guest_csum', 'guest_tso4', 'guest_tso6', 'guest_ecn', 'guest_ufo'].map((name) => `${name}=off`);
const NO_TSO = ['guest_tso4', 'guest_tso6', 'guest_ecn', 'guest_ufo'].map((name) => `${name}=off`);

/** The other guest of a pair, whose first one has QEMU's defaults. */
interface Other {
  readonly options: Partial<QemuGuestOptions>;
  /** it takes, and leaves to the device, checksums and segmentation */
  readonly takes: { readonly csum: boolean; readonly tso: boolean };
  readonly leaves: boolean;
}

const OTHERS: Record<string, Other> = {
  'the same': { options: {}, takes: { csum: true, tso: true }, leaves: true },
  'no offloads': { options: { offloads: false }, takes: { csum: false, tso: false }, leaves: false },
  'nothing unfinished to be received': { options: { device: NO_RX }, takes: { csum: false, tso: false }, leaves: true },
  'checksums only': { options: { device: NO_TSO }, takes: { csum: true, tso: false }, leaves: true },
  'the same on packed rings': { options: { packed: true }, takes: { csum: true, tso: true }, leaves: true },
};

/** Bytes in the largest segment that a guest's kernel has passed to its device, or taken from it, since the counters were read last. */
async function meanTcpFrame(guest: QemuGuest, direction: 'rx' | 'tx', action: () => Promise<unknown>): Promise<number> {
  const read = async () => {
    const counters = ['bytes', 'packets'].map((what) => `/sys/class/net/eth0/statistics/${direction}_${what}`);
    return (await sh(guest, `cat ${counters.join(' ')}`)).trim().split('\n').map(Number);
  };
  const before = await read();
  await action();
  const [bytes, packets] = (await read()).map((now, i) => now - before[i]);
  return bytes / packets;
}

for (const [name, { options, takes, leaves }] of Object.entries(OTHERS)) {
  describe(`a Linux guest with offloads, and one with ${name}`, { skip, timeout: 280_000 }, () => {
    let backEnd: BackEnd;
    let a: QemuGuest;
    let b: QemuGuest;

    before(async () => {
      backEnd = await BackEnd.start(2, { offloads: true });
      a = linuxGuest(1, backEnd.sockets[0]);
      b = linuxGuest(2, backEnd.sockets[1], options);
      await startAll([a, b]);
    });
    after(async () => {
      await Promise.all([a?.stop(), b?.stop()]);
      await backEnd?.stop();
    });

    test('the features are negotiated', async () => {
      for (const feature of ['csum', 'guestCsum', 'guestTso4', 'hostTso4'] as const) {
        await assertFeature(a, FEATURE[feature]);
      }
      await assertFeature(b, FEATURE.csum, leaves);
      await assertFeature(b, FEATURE.hostTso4, leaves);
      await assertFeature(b, FEATURE.guestCsum, takes.csum);
      await assertFeature(b, FEATURE.guestTso4, takes.tso);
    });

    test('files pass both ways as they were sent', async () => {
      await assertFilePasses(a, b, 2);
      await assertFilePasses(b, a, 1);
    });

    test('TCP runs both ways without stalling', async () => {
      await assertTcp(a, b, 2, { seconds: 4 });
      await assertTcp(b, a, 1, { seconds: 4 });
      await assertTcp(a, b, 2, { seconds: 3, streams: 4 });
    });

    test('segments cross whole where both sides can, and in pieces where one cannot', async () => {
      const mean = await meanTcpFrame(a, 'tx', () => assertTcp(a, b, 2, { seconds: 2 }));
      assert.ok(mean > GSO_BYTES / 10, `the guest with offloads sends ${mean} bytes at a time`);
      const received = await meanTcpFrame(b, 'rx', () => assertTcp(a, b, 2, { seconds: 2 }));
      if (takes.tso) assert.ok(received > GSO_BYTES / 10, `segments arrive cut, ${received} bytes at a time`);
      else assert.ok(received <= 1514, `a guest that takes no segments got ${received} bytes at a time`);
    });

    test('UDP fragments and pings of 60000 bytes arrive', async () => {
      await assertPing(a, ipOf(2), '-s 60000');
      await assertPing(b, ipOf(1), '-s 60000');
    });

    test('no guest saw a bad checksum', async () => {
      for (const guest of [a, b]) {
        const counters = await sh(guest, 'cat /proc/net/snmp');
        const values = (protocol: string) => {
          const lines = counters.split('\n').filter((line) => line.startsWith(`${protocol}: `));
          const [names, numbers] = lines.map((line) => line.split(' '));
          return new Map(names.map((key, i) => [key, numbers[i]]));
        };
        for (const protocol of ['Tcp', 'Udp', 'Icmp']) {
          assert.equal(values(protocol).get('InCsumErrors'), '0', `${guest.options.name}: ${protocol}`);
        }
      }
    });
  });
}
