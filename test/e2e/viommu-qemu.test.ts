/** Linux guests whose driver uses an IOMMU: the back end sees I/O virtual addresses, and asks QEMU for what they mean. */
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
  untilPing,
} from './linux-guests.ts';

const [leftOut] = (await ensurePeers(peersFor('qemu'))).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const WAYS: Record<string, Partial<QemuGuestOptions>> = {
  // every buffer has an address of its own, which is invalid as soon as it is used
  'split rings, strict': { kernelArgs: ['iommu.strict=1'] },
  'packed rings, strict': { packed: true, kernelArgs: ['iommu.strict=1'] },
};

for (const [name, options] of Object.entries(WAYS)) {
  describe(`a Linux guest behind an IOMMU, and one without: ${name}`, { skip, timeout: 280_000 }, () => {
    let backEnd: BackEnd;
    let a: QemuGuest;
    let b: QemuGuest;

    before(async () => {
      backEnd = await BackEnd.start(2, { iommu: true });
      a = linuxGuest(1, backEnd.sockets[0], { iommu: true, memoryMiB: 256, ...options });
      b = linuxGuest(2, backEnd.sockets[1]);
      await startAll([a, b]);
    });
    after(async () => {
      await Promise.all([a?.stop(), b?.stop()]);
      await backEnd?.stop();
    });

    test('its driver uses the IOMMU, and the other guest has none', async () => {
      await assertFeature(a, FEATURE.accessPlatform);
      await assertFeature(a, FEATURE.packed, options.packed ?? false);
      await assertFeature(b, FEATURE.accessPlatform, false);
      // the device has a group, and a domain that translates
      const type = await sh(a, 'cat $(readlink -f /sys/class/net/eth0/device/..)/iommu_group/type');
      assert.match(type, /^DMA\b(?!-)/);
    });

    test('they ping each other, and TCP and files pass both ways', async () => {
      await assertPing(a, ipOf(2), '-s 1400');
      await assertPing(b, ipOf(1));
      await assertTcp(a, b, 2, { seconds: 3 });
      await assertTcp(b, a, 1, { seconds: 3 });
      await assertFilePasses(a, b, 2, 4);
      await assertFilePasses(b, a, 1, 4);
    });

    test('after its driver was bound again, and after a reset, it is back', async () => {
      const driver = '/sys/bus/virtio/drivers/virtio_net';
      const device = (await sh(a, 'basename $(readlink /sys/class/net/eth0/device)')).trim();
      await sh(a, `echo ${device} > ${driver}/unbind; echo ${device} > ${driver}/bind; netup`);
      await untilPing(a, ipOf(2));
      await a.reset();
      await untilPing(a, ipOf(2));
      await assertTcp(a, b, 2);
    });
  });
}
