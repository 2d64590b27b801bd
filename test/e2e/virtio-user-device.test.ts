/** A virtio-user card whose back end lies: the connection is given up with a reason, made again, and the rings begin anew. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { openWindow, WindowPool, type WindowViews } from '../../src/mem/window.ts';
import type { LinkState } from '../../src/port/device-port.ts';
import type { VirtioUserSpec } from '../../src/port/user-pair.ts';
import { parseVdev, type VdevOf } from '../../src/port/vdev.ts';
import { virtioUserArgs } from '../../src/port/virtio-user-args.ts';
import { VirtioUserDevice } from '../../src/port/virtio-user-device.ts';
import { VirtioUserPort } from '../../src/port/virtio-user-port.ts';
import { counterBlock, PORT_SLOTS } from '../../src/stats/counters.ts';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { DEFAULT_MADE } from '../../src/testpmd/engine.ts';
import { ForwardThread } from '../../src/testpmd/forward-thread.ts';
import type { RunPlan } from '../../src/testpmd/letters.ts';
import { STREAM_SLOTS, streamCounters } from '../../src/testpmd/stream.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { fillAndBlock } from '../kit/full-eventfd.ts';
import { waitUntil } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { userPort } from './testpmd-engine.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const PATIENCE_MS = 20_000;

test('virtio-user: a kick eventfd that the back end has filled and made to block holds no thread up', async () => {
  const running = await SwitchProcess.start();
  const vdev = parseVdev(userPort(0, running.socket, { mac: macOf(9) })) as VdevOf<'net_virtio_user'>;
  const pool = new WindowPool('wasm');
  const device = await VirtioUserDevice.open(virtioUserArgs(vdev), { pool });
  const deaths: Error[] = [];
  const options = { cpus: [], poll: 'adaptive', window: pool.acquire() } as const;
  const onFailure = (reason: string) => deaths.push(new Error(reason));
  const thread = await ForwardThread.start(options, { onFailure, onDump() {}, onDeath: (error) => deaths.push(error) });
  const told: LinkState[] = [];
  device.onLink((link) => told.push(link));
  const counters = streamCounters();
  const mac = new Uint8Array(6);
  const spec = device.spec(0, 1);
  const noisy = { bufferPackets: 0, flushMs: 0, memoryMiB: 0, writes: 0, reads: 0, readWrites: 0 };
  try {
    // whoever has the eventfd can do that, and the back end has it
    fillAndBlock(spec.pairs[0].txKickFd);
    const plan = {
      ports: [{ id: 0, kind: 'net_virtio_user' as const, spec, counters: counterBlock(PORT_SLOTS) }],
      streams: [{ rxPort: 0, txPort: 0, rxQueue: 0, txQueue: 0, peer: mac, own: mac, counters }],
      settings: {
        mode: 'txonly',
        burst: 32,
        txpkts: [64],
        noisy,
        made: DEFAULT_MADE,
        recordBursts: false,
        recordCycles: false,
      } as const,
      retry: undefined,
    };
    await thread.tell({ type: 'prepare', plan, flush: true });
    await thread.tell({ type: 'go' });
    await waitUntil('the link is down', () => told.length > 0, PATIENCE_MS);
    assert.match(told[0].reason ?? '', /^the back end takes no kicks/);
    await waitUntil('the link is up again', () => device.link.up, PATIENCE_MS);
    const sent = () => new Float64Array(counters)[STREAM_SLOTS.tx_packets];
    const before = sent();
    await waitUntil('frames are sent', () => sent() > before + 1000, PATIENCE_MS);
    await thread.tell({ type: 'stop' });
  } finally {
    await thread.end();
    await device.close();
    await running.stop();
  }
  assert.deepEqual(deaths, []);
});

test('virtio-user: a thread that goes without leaving its rings takes the connection with it, and the next one works', async () => {
  const running = await SwitchProcess.start();
  const vdev = parseVdev(userPort(0, running.socket, { mac: macOf(9) })) as VdevOf<'net_virtio_user'>;
  const pool = new WindowPool('wasm');
  const device = await VirtioUserDevice.open(virtioUserArgs(vdev), { pool });
  const told: LinkState[] = [];
  device.onLink((link) => told.push(link));
  const counters = streamCounters();
  const mac = new Uint8Array(6);
  const spec = device.spec(0, 1);
  const noisy = { bufferPackets: 0, flushMs: 0, memoryMiB: 0, writes: 0, reads: 0, readWrites: 0 };
  const planOf = (given: VirtioUserSpec, rxQueue: number): RunPlan => ({
    ports: [{ id: 0, kind: 'net_virtio_user', spec: given, counters: counterBlock(PORT_SLOTS) }],
    streams: [{ rxPort: 0, txPort: 0, rxQueue, txQueue: 0, peer: mac, own: mac, counters }],
    settings: {
      mode: rxQueue === 0 ? 'txonly' : 'io',
      burst: 32,
      txpkts: [64],
      noisy,
      made: DEFAULT_MADE,
      recordBursts: false,
      recordCycles: false,
    },
    retry: undefined,
  });
  const [failures, deaths]: [string[], Error[]] = [[], []];
  const onFailure = (reason: string) => failures.push(reason);
  const window = pool.acquire();
  const start = () =>
    ForwardThread.start(
      { cpus: [], poll: 'adaptive', window },
      { onFailure, onDump() {}, onDeath: (error) => deaths.push(error) },
    );
  // a queue that is not there is an error nobody has foreseen, and an eventfd that is not there any more one on top of it
  const callFd = createEventfd();
  const broken = { ...spec, pairs: [{ ...spec.pairs[0], rxCallFd: callFd }] };
  let thread = await start();
  try {
    await thread.tell({ type: 'prepare', plan: planOf(broken, 5), flush: false });
    closeSync(callFd);
    await thread.tell({ type: 'go' });
    await waitUntil('the thread has gone', () => deaths.length > 0, PATIENCE_MS);
    assert.match(failures[0], /^TypeError/);
    assert.equal(thread.dead, true);
    await thread.end();
    device.abandoned(spec);
    await waitUntil('the link is up again', () => told.length === 2, PATIENCE_MS);
    assert.deepEqual(
      told.map(({ up, reason }) => [up, reason]),
      [
        [false, 'the thread that used it has gone'],
        [true, undefined],
      ],
    );
    thread = await start();
    await thread.tell({ type: 'prepare', plan: planOf(device.spec(0, 1), 0), flush: true });
    await thread.tell({ type: 'go' });
    const sent = () => new Float64Array(counters)[STREAM_SLOTS.tx_packets];
    await waitUntil('frames are sent', () => sent() > 1000, PATIENCE_MS);
    await thread.tell({ type: 'stop' });
  } finally {
    if (!thread.dead) await thread.end();
    await device.close();
    await running.stop();
  }
  assert.deepEqual([failures.length, deaths.length], [1, 1]);
});

for (const keys of [{ in_order: 0 }, { packed_vq: 1 }])
  test(`virtio-user: a back end that lies is left, and tried again: ${JSON.stringify(keys)}`, async () => {
    const running = await SwitchProcess.start(['--mergeable', '1']);
    const vdev = parseVdev(userPort(0, running.socket, { mac: macOf(9), ...keys })) as VdevOf<'net_virtio_user'>;
    const device = await VirtioUserDevice.open(virtioUserArgs(vdev), { pool: new WindowPool('wasm') });
    const card = await connectGuest({ path: running.socket, mac: macOf(1) });
    const ringStage = new RingStage();
    const windows: WindowViews[] = [];
    const spec = device.spec(0, 1);
    const views = openWindow(spec.windows[0]);
    windows[views.id] = views;
    const port = new VirtioUserPort(0, new Float64Array(counterBlock(PORT_SLOTS)), spec, { ringStage, windows });
    /** A frame of the card's arrives, and an answer gets back. */
    const exchange = async (n: number) => {
      const sent = frame(macOf(9), macOf(1), n);
      card.send(sent);
      card.flush();
      await waitUntil('the frame', () => port.receive() > 0, PATIENCE_MS);
      const { segments } = ringStage.burst;
      const got = views.u8.slice(segments.off[0], segments.off[0] + segments.len[0]);
      assert.deepEqual(Buffer.from(got), Buffer.from(sent));
      views.u8.set([...sent.subarray(6, 12), ...sent.subarray(0, 6)], segments.off[0]);
      assert.equal(port.transmit(Int32Array.of(0), 0, 1), 1);
      port.complete();
      assert.ok(await card.waitFrame(PATIENCE_MS));
    };
    const told: LinkState[] = [];
    device.onLink((link) => told.push(link));
    try {
      await exchange(1);
      const { format, place } = spec.pairs[0].rx;
      for (let time = 0; time < 2; time++) {
        // what is shared with the back end may be written by it at any time
        if (format === 'split') views.dv.setUint16(place.usedOff + 2, 40_000, true);
        else for (let i = 0; i < 256; i++) views.dv.setUint32(place.descOff + 16 * i + 12, 0x8080_7fff, true);
        /** Whatever comes, the main thread has what it waits for: the rings back, or somebody who uses them again. */
        const hears = (n: number) => () => {
          port.receive();
          return told.length > n;
        };
        await waitUntil('the link goes down', hears(2 * time), PATIENCE_MS);
        assert.match(told[2 * time].reason ?? '', /^vring 0: the back end broke a rule: it (moved|used)/);
        await waitUntil('the link comes up', hears(2 * time + 1), PATIENCE_MS);
        await exchange(2 + time);
      }
      assert.deepEqual(
        told.map(({ up }) => up),
        [false, true, false, true],
      );
    } finally {
      port.close();
      await device.close();
      await card.close();
      await running.stop();
    }
  });
