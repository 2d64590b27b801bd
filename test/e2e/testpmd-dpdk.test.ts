/** testpmd's engine and DPDK's testpmd: our virtio-user ports against its net_vhost ports, in both roles, on all kinds of rings. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import type { PortInfo } from '../../src/testpmd/engine.ts';
import type { ForwardEngine } from '../../src/testpmd/forward-engine.ts';
import { DpdkTestpmd } from '../peers/dpdk.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
import { closeEngines, engineOf, PATIENCE_MS, userPort } from './testpmd-engine.ts';
import { macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const PEER = { memoryMiB: 128, hugepages: false, mbufs: 4096 } as const;
/** A burst that goes round for ever, in either direction; DPDK's rings are longer. */
const BYTES = 300;

after(closeEngines);

/** Two sockets in a folder of their own, which is removed afterwards. */
async function withSockets(use: (sockets: [string, string]) => Promise<void>): Promise<void> {
  const dir = makeTempDir('testpmd-dpdk');
  try {
    await use([join(dir, 'a'), join(dir, 'b')]);
  } finally {
    removeTempDir(dir);
  }
}

const portsOn = (sockets: readonly string[], keys: Record<string, number>) =>
  sockets.map((socket, n) => userPort(n, socket, { mac: macOf(n + 1), ...keys }));

/** Frames go round between the engine's ports and DPDK's, none is lost, and their IPv4 checksums stay right. */
async function assertCircles(engine: ForwardEngine, dpdk: DpdkTestpmd): Promise<void> {
  engine.config.mode = 'csum';
  engine.config.txpkts = [BYTES];
  await dpdk.startForwarding();
  await engine.start(1);
  await waitUntil('frames go round', () => [0, 1].every((n) => engine.stats(n).rxPackets > 2000), PATIENCE_MS, {
    details: () => JSON.stringify([engine.ports(), engine.stats(0), engine.stats(1), dpdk.log.slice(-2000)]),
  });
  const streams = await engine.stop();
  await dpdk.stopForwarding();
  for (const port of [0, 1]) {
    const { rxPackets, rxBytes, txPackets, txBytes, txErrors } = engine.stats(port);
    assert.equal(rxBytes, rxPackets * BYTES);
    assert.equal(txBytes, txPackets * BYTES);
    assert.equal(txErrors, 0);
  }
  for (const stream of streams) assert.deepEqual([stream.txDropped, stream.badIpChecksum], [0, 0]);
}

const RINGS: Record<string, Record<string, number>> = {
  split: { in_order: 0, mrg_rxbuf: 0 },
  'split, mergeable': { in_order: 0 },
  'split, in order': { mrg_rxbuf: 0 },
  'split, in order, mergeable': {},
  packed: { packed_vq: 1, in_order: 0, mrg_rxbuf: 0 },
  'packed, mergeable': { packed_vq: 1, in_order: 0 },
  'packed, in order': { packed_vq: 1, mrg_rxbuf: 0 },
  'packed, in order, mergeable': { packed_vq: 1 },
};

describe('testpmd and DPDK', { skip, timeout: 240_000 }, () => {
  for (const [name, keys] of Object.entries(RINGS)) {
    test(`DPDK listens: frames go round: ${name}`, () =>
      withSockets(async (sockets) => {
        const dpdk = DpdkTestpmd.vhost(sockets, { ...PEER, name: 'vhost', forwardMode: 'io' });
        try {
          await dpdk.start();
          const engine = await engineOf(portsOn(sockets, keys));
          await assertCircles(engine, dpdk);
          await engine.close();
        } finally {
          await dpdk.stop();
        }
      }));

    test(`DPDK connects to us: frames go round: ${name}`, () =>
      withSockets(async (sockets) => {
        const waits: string[] = [];
        const opening = engineOf(portsOn(sockets, { ...keys, server: 1 }), {}, waits);
        const dpdk = DpdkTestpmd.vhost(sockets, { ...PEER, name: 'client', forwardMode: 'io' }, { client: true });
        try {
          await dpdk.start();
          const engine = await opening;
          assert.deepEqual(
            waits,
            sockets.map((socket, n) => `net_virtio_user${n}: waiting for a back end to connect to ${socket}`),
          );
          await assertCircles(engine, dpdk);
          await engine.close();
        } finally {
          await dpdk.stop();
        }
      }));
  }

  test('DPDK is killed under traffic and comes back: the ports go down with a reason, and up again, and frames go on', () =>
    withSockets(async (sockets) => {
      const start = () => DpdkTestpmd.vhost(sockets, { ...PEER, name: 'killed', forwardMode: 'io' }).start();
      let dpdk = await start();
      const engine = await engineOf(portsOn(sockets, {}), { mode: 'io', txpkts: [BYTES] });
      const told: PortInfo[] = [];
      engine.onLink((info) => told.push(info));
      const up = (on: boolean) => () => engine.ports().every((info) => info.up === on);
      try {
        await dpdk.startForwarding();
        await engine.start(1);
        for (let time = 0; time < 2; time++) {
          const before = engine.stats(0).rxPackets;
          const goesOn = () => engine.stats(0).rxPackets > before + 2000;
          await waitUntil('frames go round', goesOn, PATIENCE_MS);
          await dpdk.kill9();
          await waitUntil('the ports are down', up(false), PATIENCE_MS);
          for (const { reason } of engine.ports()) assert.equal(reason, 'the back end has gone');
          await dpdk.stop();
          for (const socket of sockets) rmSync(socket);
          dpdk = await start();
          await waitUntil('the ports are up again', up(true), PATIENCE_MS);
          await dpdk.startForwarding();
          // what was in DPDK's own hands is lost: new bursts
          await engine.stop();
          await engine.start(1);
        }
        const last = engine.stats(0).rxPackets;
        await waitUntil('frames go round again', () => engine.stats(0).rxPackets > last + 2000, PATIENCE_MS);
        assert.deepEqual(
          told.filter(({ port }) => port === 0).map((info) => info.up),
          [false, true, false, true],
        );
        await engine.stop();
        await engine.close();
      } finally {
        await dpdk.stop();
      }
    }));
});
