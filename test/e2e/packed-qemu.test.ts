/** Linux guests with packed rings: with event index and without, with mergeable buffers and without, and beside a split one. */
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
  startAll,
} from './linux-guests.ts';

const [leftOut] = (await ensurePeers(peersFor('qemu'))).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

/** Both guests of a pair, and whether event index and mergeable buffers are agreed on by each. */
interface Pair {
  readonly options: readonly [Partial<QemuGuestOptions>, Partial<QemuGuestOptions>];
  readonly eventIdx: readonly [boolean, boolean];
}

const packed = { packed: true };
const plain = { packed: true, mergeable: false, device: ['event_idx=off', 'indirect_desc=off'] };

const PAIRS: Record<string, Pair> = {
  'both packed': { options: [packed, packed], eventIdx: [true, true] },
  'one without event index, mergeable buffers and indirect tables, the other split': {
    options: [plain, { packed: false }],
    eventIdx: [false, true],
  },
};

for (const [name, { options, eventIdx }] of Object.entries(PAIRS)) {
  describe(`Linux guests with packed rings: ${name}`, { skip, timeout: 240_000 }, () => {
    let backEnd: BackEnd;
    let a: QemuGuest;
    let b: QemuGuest;

    before(async () => {
      backEnd = await BackEnd.start(2);
      [a, b] = options.map((more, n) => linuxGuest(n + 1, backEnd.sockets[n], more));
      await startAll([a, b]);
    });
    after(async () => {
      await Promise.all([a?.stop(), b?.stop()]);
      await backEnd?.stop();
    });

    test('the features are negotiated', async () => {
      for (const [n, guest] of [a, b].entries()) {
        await assertFeature(guest, FEATURE.packed, options[n].packed);
        await assertFeature(guest, FEATURE.eventIdx, eventIdx[n]);
        await assertFeature(guest, FEATURE.mergeable, options[n].mergeable ?? true);
      }
    });

    test('they ping each other with frames of all sizes', async () => {
      for (const bytes of [18, 56, 470, 1000, 1472]) await assertPing(a, ipOf(2), `-s ${bytes} -A`);
      await assertPing(b, ipOf(1));
    });

    test('TCP runs both ways without stalling', async () => {
      await assertTcp(a, b, 2, { seconds: 4 });
      await assertTcp(b, a, 1, { seconds: 4 });
    });

    test('a file arrives as it was sent', async () => {
      await assertFilePasses(a, b, 2);
      await assertFilePasses(b, a, 1);
    });

    test('a guest whose driver is bound again, and one that is reset, come back', async () => {
      const driver = '/sys/bus/virtio/drivers/virtio_net';
      const { output } = await a.sh('basename $(readlink /sys/class/net/eth0/device)');
      await a.sh(`echo ${output.trim()} > ${driver}/unbind; echo ${output.trim()} > ${driver}/bind; netup`);
      await assertPing(a, ipOf(2));
      await b.reset();
      await assertPing(a, ipOf(2));
      await assertTcp(a, b, 2);
    });
  });
}
