/**
 * The switch dies under guests of our own again and again: every frame and every descriptor is accounted for.
 * TORTURE_SECONDS=600 makes the torture last ten minutes.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { after, before, describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { VirtioUserOptions } from '../../src/port/virtio-user.ts';
import { VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD } from '../../src/uapi/vhost-user.ts';
import { featureMask, hasFeature, VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC } from '../../src/uapi/virtio.ts';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
import { Stream } from './stream.ts';
import { SwitchProcess } from './switch-process.ts';
import { connectGuest, macOf } from './traffic.ts';

const TORTURE_S = Number(process.env.TORTURE_SECONDS ?? 5);
const RECONNECT_MS = 20_000;
/** Lines a switch may print in one life with eight guests. */
const MAX_LINES = 80;

const openFds = () => readdirSync('/proc/self/fd').length;

/** A source of numbers that can be had again. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Passes time without giving the event loop a turn: what is on the way is on the way. */
function spin(us: number): void {
  const until = performance.now() + us / 1000;
  while (performance.now() < until);
}

/** Two cards for a stream; `n` tells streams apart. */
async function newStream(
  path: string,
  n: number,
  window: number,
  options: Partial<VirtioUserOptions>,
): Promise<Stream> {
  const to = await connectGuest({ path, mac: macOf(2 * n + 1), ...options });
  const from = await connectGuest({ path, mac: macOf(2 * n), ...options });
  const stream = new Stream(from, to, window);
  await stream.announce();
  return stream;
}

/** Lets the streams run until each has delivered so many frames more. */
async function flow(streams: readonly Stream[], frames: number): Promise<void> {
  const goals = streams.map((stream) => stream.seen + frames);
  const runs = streams.map((stream) => stream.run());
  const reached = waitUntil('frames', () => streams.every(({ seen }, n) => seen >= goals[n]), 20_000, { everyMs: 1 });
  await Promise.race([reached, Promise.all(runs)]);
  for (const stream of streams) stream.stop();
  await Promise.all([reached, ...runs]);
}

/** Ends the switch while every stream has its window on the way, `us` after the last was filled. @returns descriptors it held */
async function die(
  running: SwitchProcess,
  streams: readonly Stream[],
  signal: NodeJS.Signals,
  us: number,
): Promise<number> {
  for (const stream of streams) stream.fill();
  spin(us);
  running.signal(signal);
  const cards = streams.flatMap(({ from, to }) => [from, to]);
  await waitUntil('the cards to notice', () => cards.every(({ connected }) => !connected), 10_000, { everyMs: 1 });
  await running.ended();
  return streams.reduce((held, stream) => held + stream.noteDeath(signal === 'SIGTERM'), 0);
}

async function reconnectAll(streams: readonly Stream[]): Promise<void> {
  for (const stream of streams) await stream.reconnectReceiver(RECONNECT_MS);
  for (const stream of streams) await stream.reconnectSender(RECONNECT_MS);
  for (const stream of streams) await stream.assertWhole();
}

describe('the switch is killed under guests of our own', { timeout: (TORTURE_S + 120) * 1000 }, () => {
  let dir: string;
  let running: SwitchProcess;

  const startSwitch = async () => {
    running = await SwitchProcess.start(['--mergeable', '1'], { dir });
  };

  before(async () => {
    dir = makeTempDir('torture');
    await startSwitch();
  });
  after(async () => {
    await running?.kill();
    removeTempDir(dir);
  });

  const rings: readonly [string, Partial<VirtioUserOptions>][] = [
    ['split rings', { ringSize: 1024 }],
    ['split rings and records', { ringSize: 1024, inflight: true }],
    ['packed rings and records', { ringSize: 1025, packed: true, inflight: true }],
  ];
  for (const [what, options] of rings) {
    test(`killed with a thousand descriptors in flight, with ${what}: each is used exactly once, and no frame is lost`, async () => {
      const stream = await newStream(running.socket, 1, 1000, options);
      let held = 0;
      for (const us of [0, 20, 50, 100, 200, 400]) {
        await flow([stream], 2000);
        held += await die(running, [stream], 'SIGKILL', us);
        await startSwitch();
        await reconnectAll([stream]);
      }
      assert.ok(held > 0, 'no descriptor was in flight at any time');
      assert.equal(
        hasFeature(stream.from.protocolFeatures, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD),
        options.inflight ?? false,
      );
      await flow([stream], 2000);
      await stream.from.close();
      await stream.to.close();
    });
  }

  test(`torture: restarts for ${TORTURE_S} s, with guests that send all the time and reboot now and then`, async (t: TestContext) => {
    const seed = Number(process.env.TORTURE_SEED ?? Date.now() % 2 ** 31);
    const random = randomFrom(seed);
    const path = running.socket;
    const streams = [
      await newStream(path, 1, 32, {}),
      await newStream(path, 2, 48, { ringSize: 64, features: featureMask(VIRTIO_F_VERSION_1) }),
      await newStream(path, 3, 100, {
        features: featureMask(VIRTIO_RING_F_INDIRECT_DESC),
        txLayout: { pieces: 500, indirect: true },
      }),
      await newStream(path, 4, 40, {
        packed: true,
        inflight: true,
        ringSize: 151,
        txLayout: { pieces: 700, indirect: false },
      }),
    ];
    const fds = openFds();
    await running.until('all guests', () => (running.output.match(/: ready$/gm) ?? []).length >= 2 * streams.length);
    const switchFds = running.openFds;
    const endAt = performance.now() + TORTURE_S * 1000;
    let rounds = 0;
    let held = 0;
    for (; rounds < 4 || performance.now() < endAt; rounds++) {
      const signal = rounds % 4 === 3 ? 'SIGTERM' : 'SIGKILL';
      try {
        await flow(streams, 200 + random(300));
        for (const stream of streams) await stream.assertBack(30);
        if (rounds % 3 === 2) await streams[random(streams.length)].reboot(random(2) === 0 ? 'from' : 'to');
        held += await die(running, streams, signal, random(2) * random(200));
        assert.ok(running.lines.length < MAX_LINES, `the switch has printed ${running.lines.length} lines`);
        assert.doesNotMatch(running.output, /error|vring \d stopped/);
        const starting = startSwitch();
        await sleep(random(200)); // the cards look for it before, while and after it comes up
        if (rounds % 3 === 1) streams[random(streams.length)].rebootDead(random(2) === 0 ? 'from' : 'to');
        await Promise.all([reconnectAll(streams), starting]);
        await running.until('the guests to have as many descriptors as before', () => openFds() === fds);
        await running.until('the switch to have as many descriptors as before', () => running.openFds === switchFds);
      } catch (error) {
        throw new Error(`round ${rounds}, TORTURE_SEED=${seed}: ${(error as Error).message}\n${running.output}`, {
          cause: error,
        });
      }
    }
    assert.ok(held > 0, 'no descriptor was in flight at any time');
    await flow(streams, 500);
    const repeated = streams.reduce((sum, stream) => sum + stream.repeated, 0);
    t.diagnostic(`${rounds} restarts, ${held} descriptors in flight at them, ${repeated} frames that came once more`);
    for (const { from, to } of streams) {
      await from.close();
      await to.close();
    }
  });
});
