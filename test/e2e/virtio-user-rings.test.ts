/** Our virtio-user card over every kind of ring, with a back end that is not ours: DPDK's net_vhost under testpmd. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { ChainLayout } from '../../src/port/net-queue.ts';
import { DEFAULT_FEATURES, VirtioUser, type VirtioUserOptions } from '../../src/port/virtio-user.ts';
import {
  featureMask,
  hasFeature,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { DpdkTestpmd } from '../peers/dpdk.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { assertDelivered, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const QUEUES = 2;
const framesOf = (sizes: readonly number[]) => sizes.map((bytes, n) => frame(macOf(2), macOf(1), n, bytes));
/** More than go round the ring, so that both wrap counters have had both values. */
const mixed = framesOf(Array.from({ length: 600 }, (_, n) => 60 + ((n * 37) % 1455)));
const giant = framesOf([60, 9014, 4084, 4085, 65550, 16_000, 65549, 64, 32_768, 65550]);

const NOT_MERGEABLE = featureMask(VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC);
const NO_EVENT_IDX = featureMask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_INDIRECT_DESC);
const layout = (pieces: ChainLayout['pieces'], indirect = false): ChainLayout => ({ pieces, indirect });

type Options = Omit<Partial<VirtioUserOptions>, 'path'>;

const rings: Record<string, Options> = {
  packed: { packed: true },
  'packed, in order': { packed: true, inOrder: true },
  'split, in order': { inOrder: true },
};

/**
 * Receive buffers of several descriptors. Where four descriptors of a packed ring are writable and long enough for a frame each, DPDK
 * 22.11 takes them for four buffers, whether they are chained or not: so the first ones here are too short for any frame.
 */
const receiveChains = (kind: Options, pieces: number): Options =>
  kind.packed ? { rxLayout: layout(64), ringSize: 2048 } : { rxLayout: layout(pieces) };

const ways: Record<string, Options> = {
  mergeable: {},
  'not mergeable': { features: NOT_MERGEABLE },
  'mergeable, without EVENT_IDX': { features: NO_EVENT_IDX },
  'small mergeable buffers': { bufferBytes: 256 },
  'header in a descriptor of its own': { txLayout: layout('header'), rxLayout: layout('header') },
  'chains of 500-byte pieces': { txLayout: layout(500) },
  'indirect tables': { txLayout: layout(300, true), rxLayout: layout(700, true) },
};

describe('virtio-user over all rings with DPDK net_vhost', { skip, timeout: 240_000 }, () => {
  let dir: string;
  let paths: string[];
  let testpmd: DpdkTestpmd;

  before(async () => {
    dir = makeTempDir('virtio-user-rings');
    paths = ['a', 'b'].map((name) => join(dir, name));
    testpmd = await DpdkTestpmd.vhost(paths, { name: 'virtio-user-rings', queues: QUEUES, mbufs: 16384 }).start();
    await testpmd.startForwarding();
  });
  after(async () => {
    await testpmd?.stop();
    removeTempDir(dir);
  });

  const withCards = async (options: Options, use: (a: VirtioUser, b: VirtioUser) => Promise<void>) => {
    const open: VirtioUser[] = [];
    try {
      // as many pairs as testpmd's ports have queues: it drops what comes for a queue that the other side lacks
      for (const path of paths) open.push(await VirtioUser.connect({ pairs: QUEUES, ...options, path }));
      await use(open[0], open[1]);
    } finally {
      for (const card of open) await card.close();
    }
  };

  for (const [ring, kind] of Object.entries(rings)) {
    for (const [way, options] of Object.entries(ways)) {
      test(`frames of all sizes pass both ways: ${ring}; ${way}`, () =>
        withCards({ ...kind, ...options }, async (a, b) => {
          for (const card of [a, b]) {
            assert.equal(hasFeature(card.features, VIRTIO_F_RING_PACKED), kind.packed === true);
            assert.equal(hasFeature(card.features, VIRTIO_F_IN_ORDER), kind.inOrder === true);
            assert.equal(card.ring(0).driver.format, kind.packed ? 'packed' : 'split');
          }
          await assertDelivered(a, b, mixed);
          await assertDelivered(b, a, mixed);
        }));
    }

    for (const features of [DEFAULT_FEATURES, NOT_MERGEABLE]) {
      const how = features === NOT_MERGEABLE ? 'not mergeable' : 'mergeable';
      test(`chains both ways: ${ring}; ${how}`, () =>
        withCards({ ...kind, features, txLayout: layout(200), ...receiveChains(kind, 500) }, async (a, b) => {
          await assertDelivered(a, b, mixed);
          await assertDelivered(b, a, mixed);
        }));
    }

    test(`rings that were stopped go on where they stood, or from the beginning: ${ring}`, () =>
      withCards(kind, async (a, b) => {
        for (let n = 0; n < 3; n++) {
          await assertDelivered(a, b, mixed.slice(0, 100 + 83 * n));
          await a.stop();
          await a.restart();
          await b.restart();
        }
        await assertDelivered(b, a, mixed);
        await b.restart({ reset: true });
        await assertDelivered(a, b, mixed);
        await assertDelivered(b, a, mixed);
      }));

    test(`a card that connects again goes on behind what was used: ${ring}`, () =>
      withCards(kind, async (a, b) => {
        for (let n = 0; n < 4; n++) {
          await assertDelivered(a, b, mixed.slice(0, 77 + 71 * n));
          await assertDelivered(b, a, mixed.slice(0, 30));
          await b.reconnect();
        }
        await assertDelivered(a, b, mixed);
        await assertDelivered(b, a, mixed);
      }));

    test(`each pair is a pair of queues of its own: ${ring}`, () =>
      withCards(kind, async (a, b) => {
        assert.ok(hasFeature(a.features, VIRTIO_NET_F_MQ));
        for (let n = 0; n < 300; n++) {
          for (const [pair, from, to] of [
            [0, a, b],
            [1, a, b],
            [1, b, a],
          ] as const) {
            const sent = frame(macOf(2), macOf(1), n * 4 + pair, 60 + n);
            assert.ok(from.send(sent, undefined, pair));
            from.flush(pair);
            const received = await to.waitFrame(5000, pair);
            assert.deepEqual(received && Buffer.from(received), Buffer.from(sent));
          }
        }
        assert.equal(b.receive(0) ?? b.receive(1), undefined);
      }));

    test(`frames as large as segmentation offload makes them: ${ring}`, async () => {
      const large = { ...kind, ringSize: 128, maxFrame: 65550 };
      await withCards({ ...large, bufferBytes: 4096 }, async (a, b) => {
        await assertDelivered(a, b, giant);
        assert.equal(b.headerOf().numBuffers, Math.ceil((65550 + b.headerLen) / 4096));
      });
      await withCards({ ...large, features: NOT_MERGEABLE, bufferBytes: 65562 }, (a, b) =>
        assertDelivered(a, b, giant),
      );
      const cut = { txLayout: layout(4096), rxLayout: layout('header') };
      await withCards({ ...large, ...cut, features: NOT_MERGEABLE, bufferBytes: 65562 }, (a, b) =>
        assertDelivered(a, b, giant),
      );
    });
  }

  test('a pair that is disabled is sent nothing, also across a restart, and the others are', () =>
    withCards({ packed: true }, async (a, b) => {
      const sent = async (pair: number) => {
        assert.ok(a.send(mixed[pair], undefined, pair));
        a.flush(pair);
        return (await b.waitFrame(pair === 0 ? 5000 : 300, pair))?.length;
      };
      assert.equal(await sent(1), mixed[1].length);
      await b.enablePair(1, false);
      assert.equal(await sent(1), undefined);
      assert.equal(await sent(0), mixed[0].length);
      await b.restart();
      assert.equal(await sent(1), undefined);
      assert.equal(await sent(0), mixed[0].length);
      await b.enablePair(1, true);
      assert.equal(await sent(1), mixed[1].length);
    }));

  test('a card that cannot be had says why, and leaves nothing open', async () => {
    const path = paths[0];
    await (await VirtioUser.connect({ path, pairs: QUEUES })).close(); // what stays open for good is open now
    const before = readdirSync('/proc/self/fd').length;
    await assert.rejects(VirtioUser.connect({ path, pairs: 129 }), {
      code: 'TOO_MANY_PAIRS',
      message: /has \d+ queue pairs; 129/,
    });
    await assert.rejects(VirtioUser.connect({ path, pairs: 2, negotiateProtocol: false }), {
      code: 'TOO_MANY_PAIRS',
      message: /as the protocol feature MQ is not negotiated/,
    });
    await assert.rejects(VirtioUser.connect({ path, ringSize: 1000 }), RangeError);
    await assert.rejects(VirtioUser.connect({ path, pairs: 2, memory: [{ guestAddr: 0, size: 2 ** 20 }] }), RangeError);
    const card = await VirtioUser.connect({ path, negotiateProtocol: false });
    await assert.rejects(card.enablePair(0, false), { code: 'ALWAYS_ENABLED' });
    await card.enablePair(0, true);
    await card.close();
    assert.equal(readdirSync('/proc/self/fd').length, before);
  });

  for (const ringSize of [64, 250, 1000]) {
    for (const inOrder of [false, true]) {
      test(`packed rings of ${ringSize}${inOrder ? ', in order' : ''}: frames pass, in chains too`, () =>
        withCards({ packed: true, inOrder, ringSize, txLayout: layout(400) }, async (a, b) => {
          for (let n = 0; n < 3; n++) await assertDelivered(a, b, mixed);
          await assertDelivered(b, a, mixed);
        }));
    }
  }
});
