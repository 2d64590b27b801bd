/**
 * An lcore at full load, warmed up: it collects no garbage, and its functions stay optimised. STEADY_SECONDS=60: for so long, and not only for
 * some packets.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setImmediate as yieldNow } from 'node:timers/promises';
import { frameOf, macOf } from '../../bench/frames.ts';
import { StaticPort } from '../../bench/static-port.ts';
import { VirtioUser } from '../../src/port/virtio-user.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../peers/process.ts';
import { MAIN } from './switch-process.ts';

const SECONDS = Number(process.env.STEADY_SECONDS ?? 0);
const RING_SIZE = 256;
const BURST = 32;
/** The compiler works by how often a function has run, not by the clock: it is done where so many packets bring nothing new, after some rounds at most. */
const PACKETS = 2_000_000;
const WARM_UP_ROUNDS = 8;
const TURNS_PER_SLICE = 256;
const PATIENCE_MS = 240_000;
/**
 * Not hot: what the main thread does meanwhile, which looks whether the lcore hangs; and the ageing of the MAC table, once a second, which comes upon
 * its first entry in use when it has long been compiled.
 */
const NOT_HOT = ['age', '#watch', 'listOnTimeout', 'processTimers', 'insert', 'compareTimersLists'];

const COLLECTION = /^\[\d+:(0x[0-9a-f]+)\].* ms: (?:Scavenge|Mark-Compact|Minor)/gm;
const DEOPTIMISED = /^\[bailout .* deoptimizing 0x[0-9a-f]+ <JSFunction ([^ ]*) .*$/gm;

/** The hot loop, for so many packets and seconds at least; yields now and then, for the switch's output to be read. */
async function drive(ports: readonly StaticPort[], packets: number, seconds: number): Promise<void> {
  const received = () => ports.reduce((sum, { rx }) => sum + rx.total, 0);
  const [from, target] = [performance.now(), received() + packets];
  while (received() < target || performance.now() < from + seconds * 1000) {
    assert.ok(performance.now() < from + seconds * 1000 + PATIENCE_MS, `${target - received()} packets are missing`);
    for (let turn = 0; turn < TURNS_PER_SLICE; turn++) for (const port of ports) port.poll(BURST, false);
    await yieldNow();
  }
}

describe('an lcore at full load', { timeout: 3 * PATIENCE_MS + SECONDS * 1000 }, () => {
  for (const packed of [false, true])
    test(`${packed ? 'packed' : 'split'} rings: once warm, it collects no garbage, and nothing is deoptimised`, async (t) => {
      const dir = makeTempDir('steady');
      const path = join(dir, 'sock');
      const running = new PeerProcess({
        ...{ name: 'switch', command: process.execPath, cwd: dir, unbuffered: true },
        args: [
          ...['--trace-gc', '--trace-deopt', MAIN, '--lcores', '0@(0-1)', '--'],
          ...['--socket-file', path, '--poll', 'busy', '--mergeable', '1'],
        ],
      });
      const cards: VirtioUser[] = [];
      try {
        await running.waitUntil('the socket', () => running.outputSince(0).includes('listening on'), 60_000);
        // the first that collects is the one that the process begins with
        const [[, main]] = running.outputSince(0).matchAll(COLLECTION);
        for (const n of [0, 1]) cards.push(await VirtioUser.connect({ path, mac: macOf(n), packed }));
        const ports = cards.map(({ pairs, ram, headerLen }, n) => {
          const frames = Array.from({ length: RING_SIZE }, (_, i) => frameOf(n, 1 - n, 64, i));
          return new StaticPort(pairs[0], ram, frames, headerLen);
        });
        for (const port of ports) port.start(false);
        const collections = (text: string) => [...text.matchAll(COLLECTION)].filter(([, isolate]) => isolate !== main);
        const deopts = (text: string) => [...text.matchAll(DEOPTIMISED)].filter(([, name]) => !NOT_HOT.includes(name));
        const troubles = (text: string) => [...collections(text), ...deopts(text)].map(([line]) => line);
        let rounds = 0;
        for (
          let from = 0;
          rounds === 0 || (troubles(running.outputSince(from)).length > 0 && rounds < WARM_UP_ROUNDS);
          rounds++
        ) {
          from = running.outputLen;
          await drive(ports, PACKETS, 2); // what is done once a second is part of it
        }
        const before = running.outputSince(0);
        const warm = running.outputLen;
        const from = performance.now();
        await drive(ports, PACKETS, SECONDS);
        const seconds = (performance.now() - from) / 1000;
        assert.ok(collections(before).length > 0, 'collections are told of');
        assert.ok(deopts(before).length > 0, 'deoptimisations are told of');
        t.diagnostic(`${rounds} rounds to warm up, then ${seconds.toFixed(1)} s`);
        assert.deepEqual(troubles(running.outputSince(warm)), []);
      } finally {
        for (const card of cards) await card.close();
        running.killNow();
        await running.ended;
        removeTempDir(dir);
      }
    });
});
