/** testpmd's engine as the guests of our switch: its virtio-user ports against our own back end. */
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { waitUntil } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { closeEngines, engineOf, PATIENCE_MS, userPort } from './testpmd-engine.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

after(closeEngines);

const RINGS = {
  split: {},
  'split, in order': { in_order: 1 },
  'split, in order, not mergeable': { in_order: 1, mrg_rxbuf: 0 },
  'split, any order, not mergeable': { in_order: 0, mrg_rxbuf: 0 },
  packed: { packed_vq: 1 },
  'packed, any order, not mergeable': { packed_vq: 1, in_order: 0, mrg_rxbuf: 0 },
  'rings of 16': { queue_size: 16 },
} as const;

/** Two ports send each other bursts on, which may not be longer than their rings, lest the switch drops what does not fit. */
async function circle(socket: string, keys: Record<string, number>, bytes: number): Promise<void> {
  const engine = await engineOf(
    [userPort(0, socket, { mac: macOf(1), ...keys }), userPort(1, socket, { mac: macOf(2), ...keys })],
    // what comes in on port 0 goes out of port 1, to whoever is behind port 0
    {
      txpkts: [bytes],
      burst: Math.min(32, (keys.queue_size ?? 256) / 4),
      ethPeers: new Map([
        [0, macOf(2)],
        [1, macOf(1)],
      ]),
    },
  );
  try {
    await engine.start(1);
    const received = () => [0, 1].map((port) => engine.stats(port).rxPackets);
    await waitUntil('frames go round', () => received().every((n) => n > 1000), PATIENCE_MS, {
      details: () => JSON.stringify([engine.ports(), engine.stats(0), engine.stats(1)]),
    });
    await engine.stop();
    for (const port of [0, 1]) {
      const { rxPackets, rxBytes, txPackets, txBytes, txErrors } = engine.stats(port);
      assert.equal(rxBytes, rxPackets * bytes);
      assert.equal(txBytes, txPackets * bytes);
      assert.equal(txErrors, 0);
    }
  } finally {
    await engine.close();
  }
}

describe('testpmd on the switch', { timeout: 120_000 }, () => {
  for (const [name, keys] of Object.entries(RINGS)) {
    test(`mac: two ports send each other on what they get, whole, round and round: ${name}`, async () => {
      const running = await SwitchProcess.start(['--mergeable', '1']);
      try {
        for (const bytes of [60, 508, 1514]) await circle(running.socket, keys, bytes);
      } finally {
        await running.stop();
      }
    });
  }

  test('io: frames of a card come back as they were sent, in order, also long ones', async () => {
    const running = await SwitchProcess.start(['--mergeable', '1']);
    const engine = await engineOf([userPort(0, running.socket, { mac: macOf(9) })], { mode: 'macswap' });
    const card = await connectGuest({ path: running.socket, mac: macOf(1), maxFrame: 9000, bufferBytes: 2048 });
    try {
      await engine.start(0);
      for (let n = 0; n < 300; n++) {
        const sent = frame(macOf(9), macOf(1), n, [60, 1514, 2037, 2048, 4100, 9000][n % 6]);
        card.send(sent);
        card.flush();
        const back = await card.waitFrame(PATIENCE_MS);
        const expected = sent.slice();
        expected.set([...sent.subarray(6, 12), ...sent.subarray(0, 6)]);
        assert.ok(back !== undefined && Buffer.from(back).equals(expected), `frame ${n}`);
      }
      const [stream] = await engine.stop();
      assert.deepEqual([stream.rxPort, stream.txPort, stream.txDropped], [0, 0, 0]);
      assert.equal(stream.txPackets, stream.rxPackets);
    } finally {
      await engine.close();
      await card.close();
      await running.stop();
    }
  });
});
