/** Our virtio-user card with a back end that is not ours: DPDK's net_vhost under testpmd. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { ChainLayout } from '../../src/port/net-queue.ts';
import { DEFAULT_FEATURES, VirtioUser, type VirtioUserOptions } from '../../src/port/virtio-user.ts';
import {
  featureMask,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { DpdkTestpmd } from '../peers/dpdk.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { assertDelivered, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const mixedSizes = Array.from({ length: 600 }, (_, n) => frame(macOf(2), macOf(1), n, 60 + ((n * 37) % 1455)));
const LEGACY = featureMask(VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC);
const header: ChainLayout = { pieces: 'header', indirect: false };
const pieces: ChainLayout = { pieces: 500, indirect: false };
const indirect: ChainLayout = { pieces: 300, indirect: true };

const cards: Record<string, Partial<VirtioUserOptions>> = {
  'as it comes': {},
  'without EVENT_IDX': { features: featureMask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF) },
  'legacy 10-byte header': { features: LEGACY, txLayout: header, rxLayout: header },
  'chains of 500-byte pieces': { txLayout: pieces, rxLayout: pieces },
  'indirect tables': { txLayout: indirect },
  'small mergeable buffers': { bufferBytes: 256 },
  'three regions, one above 4 GiB': {
    memory: [
      { guestAddr: 0, size: 2 ** 20 },
      { guestAddr: 0xc000_0000, size: 2 ** 20 },
      { guestAddr: 0x1_0000_0000, size: 2 ** 20 },
    ],
  },
  'no protocol features': { negotiateProtocol: false },
};

describe('virtio-user with DPDK net_vhost', { skip, timeout: 120_000 }, () => {
  let dir: string;
  let paths: string[];
  let testpmd: DpdkTestpmd;

  before(async () => {
    dir = makeTempDir('virtio-user');
    paths = ['a', 'b'].map((name) => join(dir, name));
    testpmd = await DpdkTestpmd.vhost(paths, { name: 'virtio-user' }).start();
    await testpmd.startForwarding();
  });
  after(async () => {
    await testpmd?.stop();
    removeTempDir(dir);
  });

  const withCards = async (
    options: Partial<VirtioUserOptions>,
    use: (a: VirtioUser, b: VirtioUser) => Promise<void>,
  ) => {
    const open: VirtioUser[] = [];
    try {
      for (const path of paths) open.push(await VirtioUser.connect({ ...options, path }));
      await use(open[0], open[1]);
    } finally {
      for (const card of open) await card.close();
    }
  };

  for (const [name, options] of Object.entries(cards)) {
    test(`frames of all sizes pass both ways: ${name}`, () =>
      withCards(options, async (a, b) => {
        await assertDelivered(a, b, mixedSizes);
        await assertDelivered(b, a, mixedSizes);
        const { numBuffers } = a.headerOf();
        const lastFrame = (mixedSizes.at(-1) as Uint8Array).length + a.headerLen;
        assert.equal(numBuffers, Math.ceil(lastFrame / (options.bufferBytes ?? 2048)));
      }));
  }

  test('rings that were stopped go on where they stood, or from the beginning', () =>
    withCards({}, async (a, b) => {
      await assertDelivered(a, b, mixedSizes);
      assert.deepEqual(await a.stop(), [0, 600]); // DPDK takes receive buffers when it has frames for them
      await a.restart();
      await assertDelivered(a, b, mixedSizes);
      await b.restart({ reset: true });
      await assertDelivered(a, b, mixedSizes);
      await assertDelivered(b, a, mixedSizes);
    }));

  test('a card asks for what the back end offers at most', () =>
    withCards({ features: DEFAULT_FEATURES | (1n << 40n) }, async (a) => {
      assert.equal(a.features, DEFAULT_FEATURES | (1n << 30n));
      assert.equal(a.headerLen, 12);
    }));
});
