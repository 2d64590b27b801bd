/** The harness proves itself: real peers against each other, with nothing of ours in between. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, suite, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { DpdkTestpmd } from '../peers/dpdk.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';

const MAC_A = '52:54:00:00:00:01';
const MAC_B = '52:54:00:00:00:02';

const [leftOut] = (await ensurePeers(['dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

suite('real peers', { skip, timeout: 120_000 }, () => {
  let dir: string;
  let sockets: [string, string];

  before(() => {
    dir = makeTempDir('peers');
    sockets = [join(dir, 'a'), join(dir, 'b')];
  });
  after(() => removeTempDir(dir));

  test('testpmd front end and back end count the same packets', async () => {
    const backEnd = DpdkTestpmd.vhost(sockets, {
      name: 'back-end',
      forwardMode: 'mac',
      app: [`--eth-peer=0,${MAC_A}`, `--eth-peer=1,${MAC_B}`],
    });
    const frontEnd = DpdkTestpmd.virtioUser(
      [
        { socket: sockets[0], mac: MAC_A },
        { socket: sockets[1], mac: MAC_B, mrgRxbuf: false, inOrder: false, vectorized: true },
      ],
      { name: 'front-end', forwardMode: 'mac' },
    );
    try {
      await backEnd.start();
      await frontEnd.start();
      assert.match(frontEnd.log, /inorder Rx path on port 0.*vectorized Rx path on port 1/s);
      await backEnd.startForwarding();
      await frontEnd.setEthPeer(0, MAC_B);
      await frontEnd.setEthPeer(1, MAC_A);
      await frontEnd.startForwarding(4); // what comes in on one port goes out of the other, round and round
      await sleep(300);
      await frontEnd.stopForwarding(); // first: the back end then takes what is still in the rings
      await sleep(50);
      await backEnd.stopForwarding();
      for (const port of [0, 1]) {
        const [front, back] = [await frontEnd.portStats(port), await backEnd.portStats(port)];
        assert.ok(front.txPackets > 1000, `port ${port} sent ${front.txPackets}`);
        assert.equal(back.rxPackets, front.txPackets, `port ${port}`);
      }
    } finally {
      await frontEnd.stop();
      await backEnd.stop();
    }
  });

  test('a peer that does not come up says why', async () => {
    const frontEnd = DpdkTestpmd.virtioUser([{ socket: join(dir, 'nobody'), mac: MAC_A }], { name: 'front-end' });
    await assert.rejects(frontEnd.start(), /testpmd front-end: prompt: ended.*nobody/s);
  });
});
