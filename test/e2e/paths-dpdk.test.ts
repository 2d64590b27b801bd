/** The ten ring paths of DPDK's driver, with 1, 2 and 8 queue pairs and seven frame sizes: payload and order of every frame are checked. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, type TestContext, test } from 'node:test';
import { DEFAULT_FEATURES } from '../../src/port/virtio-user.ts';
import { macBytes } from '../kit/ip-packets.ts';
import { DpdkTestpmd } from '../peers/dpdk.ts';
import { ensurePeers } from '../peers/packages.ts';
import { assertPath, needsAvx512, RING_PATHS, type RingPath } from '../peers/ring-paths.ts';
import { BackEnd } from './back-end.ts';
import { assertMirrored, untilMirrored } from './mirror.ts';
import { connectGuest, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

/** Of whole frames; virtio does not carry the four bytes of the frame check. */
const SIZES = [64, 128, 256, 512, 1024, 1280, 1518];
const FCS_BYTES = 4;
const PAIRS = [1, 2, 8];
/** Enough that not all of them hash to one of two queues. */
const FLOWS = 16;
const VIRTIO_NET_F_MQ = 22n;
const MIRROR = macOf(1);
const hasAvx512 = ['avx512f', 'avx512bw', 'avx512vl'].every((flag) =>
  readFileSync('/proc/cpuinfo', 'latin1').includes(` ${flag} `),
);

async function mirrorAll(backEnd: BackEnd, path: RingPath, pairs: number): Promise<void> {
  const features = pairs > 1 ? DEFAULT_FEATURES | (1n << VIRTIO_NET_F_MQ) : DEFAULT_FEATURES;
  const card = await connectGuest({ path: backEnd.sockets[0], mac: macOf(2), pairs, features });
  const testpmd = DpdkTestpmd.virtioUser([{ ...path.ports, socket: backEnd.sockets[1], mac: MIRROR, queues: pairs }], {
    name: 'mirror',
    forwardMode: 'macswap',
    memoryMiB: 128,
    hugepages: false,
  });
  try {
    await testpmd.start();
    assertPath(testpmd, path);
    await testpmd.startForwarding();
    const mirror = macBytes(MIRROR);
    const flows = pairs > 1 ? FLOWS : 1;
    const frames = pairs > 1 ? 60 : 500;
    await untilMirrored(card, mirror, flows);
    await testpmd.command('clear port xstats all');
    for (const size of SIZES) {
      const onPair = await assertMirrored(card, mirror, { bytes: size - FCS_BYTES, frames, flows });
      const used = onPair.filter((count) => count > 0).length;
      assert.ok(used > 1 || pairs === 1, `${size} bytes: everything came back on one pair: ${onPair}`);
    }
    const { rx, tx } = await testpmd.queueStats(0);
    const total = SIZES.length * frames * flows;
    for (const [what, counts] of Object.entries({ rx, tx })) {
      assert.equal(counts.length, pairs, `queues that testpmd counts ${what} for`);
      assert.ok(counts.filter((count) => count > 0).length > 1 || pairs === 1, `one queue took all ${what}: ${counts}`);
      const all = counts.reduce((sum, count) => sum + count, 0);
      assert.equal(all, total, `testpmd's ${what}: ${counts}`);
    }
  } finally {
    await testpmd.stop();
    await card.close();
  }
}

for (const pairs of PAIRS) {
  describe(`DPDK's ring paths with ${pairs} queue pairs`, { skip, timeout: 240_000 }, () => {
    for (const path of RING_PATHS) {
      test(`${path.name}: frames of all sizes come back unharmed and in order`, async (t: TestContext) => {
        if (needsAvx512(path) && !hasAvx512) {
          t.skip('this processor has no AVX512');
          return;
        }
        const backEnd = await BackEnd.start(2, { queues: pairs });
        try {
          await mirrorAll(backEnd, path, pairs);
        } finally {
          await backEnd.stop();
        }
      });
    }
  });
}
