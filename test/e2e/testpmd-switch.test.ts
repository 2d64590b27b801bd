/** testpmd's engine as the guests of our switch: its virtio-user ports against our own back end. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
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
  'with offloads': { offloads: 1 },
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
      const running = await SwitchProcess.start(['--mergeable', '1', '--tx-csum', '1', '--tso', '1']);
      try {
        for (const bytes of [60, 508, 1514]) await circle(running.socket, keys, bytes);
      } finally {
        await running.stop();
      }
    });
  }

  test('packets are shown while they are forwarded, until that is switched off', async () => {
    const engine = await engineOf(['net_null0', 'net_null1'], { mode: 'io' });
    const texts: string[] = [];
    engine.onDump((text) => texts.push(text));
    try {
      assert.equal(await engine.setVerbose(1), 0);
      await engine.start(0);
      // more than may wait at a time
      await waitUntil('packets are shown', () => texts.length > 200, PATIENCE_MS);
      assert.match(texts[0], /^port [01]\/queue 0: received 32 packets\n {2}src=00:/);
      assert.equal(await engine.setVerbose(0), 1);
      const shown = texts.length;
      const before = engine.stats(0).rxPackets;
      await waitUntil('more packets', () => engine.stats(0).rxPackets > before + 100_000, PATIENCE_MS);
      await engine.stop();
      assert.equal(texts.length, shown);
    } finally {
      await engine.close();
    }
  });

  test('an error that nobody has foreseen ends the streams and not the engine, which starts again', async () => {
    const running = await SwitchProcess.start();
    const failures: string[] = [];
    const vdevs = [userPort(0, running.socket, { mac: macOf(9) }), 'net_null0'];
    const noisy = { bufferPackets: 0, flushMs: 0, memoryMiB: 1, writes: 0, reads: 0, readWrites: 0 };
    const engine = await engineOf(vdevs, { mode: 'noisy' }, [], failures);
    try {
      for (let round = 1; round <= 2; round++) {
        // a number that cannot be calculated with
        Object.assign(engine.config, { mode: 'noisy', noisy: { ...noisy, writes: 1n } });
        await engine.start(0);
        await waitUntil('the failure', () => failures.length === round, PATIENCE_MS);
        assert.match(failures[round - 1], /^forwarding thread 0: TypeError: .*BigInt/);
        assert.equal(engine.forwarding, true);
        await engine.stop();
        Object.assign(engine.config, { mode: 'io', noisy });
        const before = engine.stats(0).txPackets;
        await engine.start(0);
        await waitUntil('packets', () => engine.stats(0).txPackets > before + 1000, PATIENCE_MS);
        await engine.stop();
      }
      const sent = engine.stats(0).txPackets;
      engine.setMtu(0, 68);
      Object.assign(engine.config, { mode: 'txonly', txpkts: [87] });
      await engine.start(0);
      await waitUntil('frames that are too long', () => engine.stats(0).txErrors > 1000, PATIENCE_MS);
      await engine.stop();
      assert.equal(engine.stats(0).txPackets, sent);
      assert.equal(engine.ports()[0].mtu, 68);
      Object.assign(engine.config, { mode: 'nonsense' });
      await assert.rejects(engine.start(0), { code: 'LCORE_COMMAND', message: /TypeError/ });
      assert.equal(engine.forwarding, false);
    } finally {
      await engine.close();
      await running.stop();
    }
    assert.equal(failures.length, 2);
  });

  test('macswap: frames of a card come back whole and in order, also long ones', async () => {
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

  test('a card with several queues: each is a stream of its own, on as many threads as there may be', async () => {
    const running = await SwitchProcess.start(['--mergeable', '1', '--queues', '4']);
    const vdevs = [1, 2].map((n) => userPort(n - 1, running.socket, { mac: macOf(n), queues: 4 }));
    const ethPeers = new Map([
      [0, macOf(2)],
      [1, macOf(1)],
    ]);
    const engine = await engineOf(vdevs, { ethPeers });
    try {
      for (const [rxq, cores] of [
        [4, 1],
        [1, 1],
        [3, 2],
        [4, 4],
      ]) {
        Object.assign(engine.config, { rxq, txq: rxq, cores });
        const sentBefore = engine.stats(0).txPackets;
        await engine.start(1);
        const received = () => engine.stats(0).rxPackets + engine.stats(1).rxPackets;
        const from = received();
        await waitUntil('frames go round', () => received() > from + 5000, PATIENCE_MS);
        const streams = await engine.stop();
        assert.equal(streams.length, 2 * rxq);
        assert.deepEqual(
          streams.map(({ rxPort, rxQueue, txPort, txQueue }) => [rxPort, rxQueue, txPort, txQueue].join()),
          Array.from({ length: rxq }, (_, q) => [`0,${q},1,${q}`, `1,${q},0,${q}`]).flat(),
        );
        const sent = streams.reduce((sum, { txPort, txPackets }) => sum + (txPort === 0 ? txPackets : 0), 0);
        assert.equal(engine.stats(0).txPackets - sentBefore, sent);
        assert.deepEqual(
          engine.ports().map((info) => [info.rxQueues, info.txQueues, info.descriptors]),
          [
            [rxq, rxq, 256],
            [rxq, rxq, 256],
          ],
        );
      }
    } finally {
      await engine.close();
      await running.stop();
    }
  });

  test('a port that is stopped gets nothing, and cannot be forwarded', async () => {
    const running = await SwitchProcess.start(['--mergeable', '1']);
    const engine = await engineOf([userPort(0, running.socket, { mac: macOf(9) })], { mode: 'macswap' });
    const card = await connectGuest({ path: running.socket, mac: macOf(1) });
    try {
      await assert.rejects(engine.stop(), { code: 'NOT_FORWARDING' });
      await engine.stopPort(0);
      await assert.rejects(engine.start(0), { code: 'PORT_STOPPED' });
      await assert.rejects(engine.startPort(7), RangeError);
      await engine.startPort(0);
      await engine.start(0);
      await assert.rejects(engine.start(0), { code: 'ALREADY_FORWARDING' });
      await assert.rejects(engine.stopPort(0), { code: 'ALREADY_FORWARDING' });
      card.send(frame(macOf(9), macOf(1)));
      card.flush();
      assert.ok(await card.waitFrame(PATIENCE_MS));
      engine.clearStats(0);
      assert.equal(engine.stats(0).rxPackets, 0);
      assert.equal(engine.xstats(0).get('tx_good_packets'), 0);
    } finally {
      await engine.close();
      await card.close();
      await running.stop();
    }
  });

  test('the switch is killed under traffic and comes back: ports go down with a reason and up again, and frames go on', async () => {
    const before = readdirSync('/proc/self/fd').length;
    const dir = makeTempDir('testpmd-killed');
    const socket = join(dir, 'sock');
    const line = ['--socket-file', socket, '--mergeable', '1'];
    const start = () => SwitchProcess.start(line, { dir, wholeLine: true });
    let running = await start();
    const vdevs = [1, 2].map((n) => userPort(n - 1, socket, { mac: macOf(n) }));
    // which sends whatever becomes of it
    const engine = await engineOf(vdevs, { mode: 'flowgen' });
    const told: string[] = [];
    engine.onLink(({ port, up, reason }) => told.push(`${port} ${up ? 'up' : reason}`));
    try {
      await engine.start(0);
      for (let time = 0; time < 3; time++) {
        for (const port of [0, 1]) {
          const from = engine.stats(port).rxPackets;
          await waitUntil('frames go round', () => engine.stats(port).rxPackets > from + 2000, PATIENCE_MS, {
            details: () => JSON.stringify([time, port, engine.ports(), engine.streams()]),
          });
        }
        await running.kill();
        await waitUntil('the ports are down', () => engine.ports().every(({ up }) => !up), PATIENCE_MS);
        running = await start();
        await waitUntil('the ports are up', () => engine.ports().every(({ up }) => up), PATIENCE_MS);
      }
      assert.deepEqual(
        told.filter((one) => one.startsWith('0')),
        Array.from({ length: 3 }, () => ['0 the back end has gone', '0 up']).flat(),
      );
      await engine.stop();
    } finally {
      await engine.close();
      await running.stop();
      removeTempDir(dir);
    }
    assert.equal(readdirSync('/proc/self/fd').length, before, 'every descriptor is closed');
  });

  test('server=1: the switch connects to us, and again when it has been killed', async () => {
    const dir = makeTempDir('testpmd-server');
    const socket = join(dir, 'sock');
    const start = () =>
      SwitchProcess.start(['--client', '--socket-file', socket, '--mergeable', '1'], {
        dir,
        wholeLine: true,
        up: /waiting/,
      });
    let running = await start();
    const engine = await engineOf([userPort(0, socket, { mac: macOf(9), server: 1 })], { mode: 'io' });
    try {
      assert.equal(engine.ports()[0].up, true);
      await engine.start(0);
      await running.kill();
      await waitUntil('the port is down', () => !engine.ports()[0].up, PATIENCE_MS);
      running = await start();
      await waitUntil('the port is up', () => engine.ports()[0].up, PATIENCE_MS);
      await engine.stop();
    } finally {
      await engine.close();
      assert.equal(existsSync(socket), false, 'the socket is removed');
      await running.stop();
      removeTempDir(dir);
    }
  });

  test('what cannot be opened is said, and leaves nothing behind', async () => {
    const dir = makeTempDir('testpmd-nothing');
    const before = readdirSync('/proc/self/fd').length;
    const open = (vdev: string) => engineOf([vdev]);
    try {
      await assert.rejects(open(userPort(0, join(dir, 'none'))), { code: 'ENOENT' });
      await assert.rejects(open('net_virtio_user0'), /needs path=/);
      await assert.rejects(open('net_virtio_user0,path=/tmp/x,queue_size=100'), /a power of two/);
      await assert.rejects(open('net_virtio_user0,path=/tmp/x,colour=red'), /no key "colour"/);
      await assert.rejects(open('net_unheard_of0'), /no such kind of device/);
    } finally {
      removeTempDir(dir);
    }
    assert.equal(readdirSync('/proc/self/fd').length, before);
  });
});
