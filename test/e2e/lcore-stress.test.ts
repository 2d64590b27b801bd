/**
 * Two lcores under load while devices come and go, queues are disabled, enabled and moved, and dirty pages are logged: every frame is where
 * it belongs, in order and unharmed, or named by a counter. LCORE_STRESS_PACKETS: how many frames; 10⁸ before a release, by
 * `LCORE_STRESS_PACKETS=100000000 node --test test/e2e/lcore-stress.test.ts`, as test/run.ts gives no test so much time.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { macOf } from '../../bench/frames.ts';
import { type DeviceInfo, VhostSwitch } from '../../src/control/vhost-switch.ts';
import { rxDropped } from '../../src/stats/counters.ts';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
import { STEADY, TALKER } from './stress-card.ts';
import type { MoveRequest, StressReport, StressTask } from './stress-worker.ts';

const PACKETS = Number(process.env.LCORE_STRESS_PACKETS ?? 1_000_000);
const LCORES = 2;
const STAYING = [...STEADY, TALKER].map(macOf);
const HOURS_MS = 4 * 3_600_000;

type Counters = DeviceInfo['counters'];
const sumOf = (counters: Counters, which: RegExp) =>
  Object.entries(counters).reduce((sum, [name, value]) => sum + (which.test(name) ? value : 0), 0);

/** Looks at the counters again and again: each is a whole number, and none goes back. */
class Watch {
  readonly #before = new Map<string, Counters>();
  looks = 0;

  look(devices: readonly DeviceInfo[]): void {
    this.looks++;
    for (const { mac, counters } of devices) {
      if (mac === undefined || !STAYING.includes(mac)) continue;
      const before = this.#before.get(mac);
      for (const [name, value] of Object.entries(counters)) {
        assert.ok(Number.isSafeInteger(value) && value >= 0, `${mac}: ${name} is ${value}`);
        const was = before?.[name as keyof Counters] ?? 0;
        assert.ok(value >= was, `${mac}: ${name} was ${was} and is ${value}`);
      }
      this.#before.set(mac, counters);
    }
  }
}

describe('two lcores under stress', { timeout: PACKETS > 1e7 ? HOURS_MS : 240_000 }, () => {
  test(`${PACKETS} frames while all that can change does: each arrives once, in order and unharmed, or is counted as dropped`, async (t) => {
    const fds = readdirSync('/proc/self/fd').length;
    const dir = makeTempDir('stress');
    const problems: string[] = [];
    const running = await VhostSwitch.start({
      ...{ sockets: [join(dir, 'sock')], socketMode: 0o600, queues: 2, poll: 'adaptive' },
      ...{ mergeable: true, txCsum: false, tso: false, iommu: false, ringReset: false },
      ...{ configSpace: false, postcopy: false },
      lcores: Array.from({ length: LCORES }, (_, lcore) => ({ lcore, cpus: [] })),
      // nothing is flooded, so that every frame has one destination
      config: { learning: 'first', vm2vm: 1, macAgeing: 0, macTableSize: 1024, macLimit: 512, maxPorts: 16 },
      log: (level, text) => level === 'error' && problems.push(text),
      print: () => {},
      onFatal: (error) => problems.push(error.message),
    });
    try {
      const task: StressTask = { path: join(dir, 'sock'), packets: PACKETS, lcores: LCORES };
      const guests = new Worker(new URL('./stress-worker.ts', import.meta.url), {
        workerData: task,
        trackUnmanagedFds: false,
      });
      const ended = new Promise((resolve) => guests.once('exit', resolve));
      const report = Promise.withResolvers<StressReport>();
      guests.on('error', report.reject);
      guests.on('exit', () => report.reject(new Error('the guests have ended without a report')));
      guests.on('message', async (message: MoveRequest | StressReport) => {
        if (!('move' in message)) return report.resolve(message);
        const { mac, pair, lcore } = message.move;
        const id = running.devices.find((device) => device.mac === mac)?.id ?? -1;
        guests.postMessage(await running.moveQueue(id, pair, lcore));
      });
      const watch = new Watch();
      let over = false;
      report.promise.then(
        () => (over = true),
        () => (over = true),
      );
      while (!over) {
        watch.look(running.devices);
        await sleep(5);
      }
      const found = await report.promise;
      await waitUntil('the others to go', () => running.devices.length === Object.keys(found.cards).length, 30_000);
      t.diagnostic(`${found.received} frames received; ${JSON.stringify(found.did)}`);
      assertAccounted(found, running.devices);
      assert.ok(watch.looks > 10);
      guests.postMessage('close');
      await ended;
      assert.deepEqual(problems, []);
    } finally {
      await running.close();
      removeTempDir(dir);
    }
    assert.equal(readdirSync('/proc/self/fd').length, fds, 'all descriptors are closed');
  });
});

/** Holds what the guests have seen against what the switch has counted. */
function assertAccounted(found: StressReport, devices: readonly DeviceInfo[]): void {
  const { steadyReceived, comersTaken, did } = found;
  const of = (mac: string) => devices.find((device) => device.mac === mac)?.counters as Counters;
  for (const [mac, { taken, delivered }] of Object.entries(found.cards)) {
    const counters = of(mac);
    assert.equal(counters.tx_packets, taken, `${mac}: frames taken`);
    assert.equal(
      counters.tx_packets,
      counters.tx_forwarded + sumOf(counters, /^tx_drop_/),
      `${mac}: what became of them`,
    );
    assert.equal(counters.rx_packets, delivered, `${mac}: frames delivered`);
    assert.equal(sumOf(counters, /^ring_fault_/), 0, `${mac}: no ring is at fault`);
  }
  const sum = (value: (counters: Counters) => number) => STEADY.reduce((total, n) => total + value(of(macOf(n))), 0);
  assert.equal(
    sum((c) => c.tx_forwarded),
    steadyReceived,
    'all that was forwarded has come',
  );
  assert.equal(
    sum((c) => c.tx_drop_receiver),
    sum(rxDropped),
    'what no receiver took, one has dropped',
  );
  const talker = of(macOf(TALKER));
  assert.equal(talker.rx_packets + rxDropped(talker), comersTaken, 'what came from cards that have gone');
  for (const [what, times] of Object.entries(did)) assert.ok(times > 0, `${what}: none`);
}
