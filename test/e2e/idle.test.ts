/** A switch without traffic sleeps, and wakes up for the first frame. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { DEFAULT_FEATURES, type VirtioUser } from '../../src/port/virtio-user.ts';
import { featureMask, VIRTIO_RING_F_EVENT_IDX } from '../../src/uapi/virtio.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

/** A frame whose wake-up is lost comes up to a second later, when the sleep of the lcore is over. */
const PROMPT_MS = 500;

/** Four guests of a switch. */
class Four {
  readonly running: SwitchProcess;
  readonly cards: readonly VirtioUser[];

  constructor(running: SwitchProcess, cards: readonly VirtioUser[]) {
    this.running = running;
    this.cards = cards;
  }

  static async start(args: readonly string[], features: bigint): Promise<Four> {
    const running = await SwitchProcess.start(args);
    const cards: VirtioUser[] = [];
    for (const n of [1, 2, 3, 4]) {
      cards.push(await connectGuest({ path: running.socket, mac: macOf(n), features }));
    }
    for (const [n, card] of cards.entries()) {
      // each says where it is: one before it is known by now, the first is not
      card.send(frame(macOf(n === 0 ? 1 : n), card.mac, n));
      card.flush();
    }
    await running.line(/^DATA: \(3\) MAC_ADDRESS .* registered$/);
    for (const card of cards) while ((await card.waitFrame(50)) !== undefined);
    return new Four(running, cards);
  }

  /** Processor time the switch takes in `ms`, as a share of one core. */
  async load(ms: number): Promise<number> {
    const from = performance.now();
    const before = this.running.cpuMs();
    await sleep(ms);
    return (this.running.cpuMs() - before) / (performance.now() - from);
  }

  /** Sends single frames from guest to guest, each after a pause; every one must come, and at once. */
  async single(times: number, pause: () => Promise<void> | void): Promise<void> {
    for (let n = 0; n < times; n++) {
      const from = this.cards[n % 4];
      const to = this.cards[(n + 1 + (n >> 2)) % 4 === n % 4 ? (n + 2) % 4 : (n + 1 + (n >> 2)) % 4];
      const expected = frame(to.mac, from.mac, n);
      await pause();
      const at = performance.now();
      assert.ok(from.send(expected));
      from.flush();
      const got = await to.waitFrame(5000);
      const ms = performance.now() - at;
      assert.ok(got, `frame ${n} did not come`);
      assert.ok(Buffer.from(got).equals(expected), `frame ${n}`);
      assert.ok(ms < PROMPT_MS, `frame ${n} took ${ms.toFixed(1)} ms: its wake-up was lost`);
    }
  }

  async stop(): Promise<void> {
    for (const card of this.cards) await card.close();
    assert.equal(await this.running.stop(), 'ended with status 0', this.running.output);
  }
}

/** Pauses in the neighbourhood of the idle time after which an lcore goes to sleep: shorter than a timer can wait. */
function spin(): void {
  const until = performance.now() + 0.1 + 0.4 * Math.random();
  while (performance.now() < until);
}

for (const [name, features] of [
  ['with EVENT_IDX', DEFAULT_FEATURES],
  ['without EVENT_IDX', DEFAULT_FEATURES & ~featureMask(VIRTIO_RING_F_EVENT_IDX)],
] as const) {
  describe(`four idle guests ${name}`, { timeout: 60_000 }, () => {
    let four: Four;
    before(async () => {
      four = await Four.start([], features);
    });
    after(() => four?.running.kill());

    test('cost next to nothing', async () => {
      const share = await four.load(2000);
      assert.ok(share < 0.05, `${(100 * share).toFixed(1)} % of a core`);
    });

    test('the first frame after a pause of 0 to 5 ms arrives, two hundred times', () =>
      four.single(200, () => sleep(5 * Math.random())));

    test('so it does when it comes just as the switch goes to sleep, a thousand times', () => four.single(1000, spin));

    test('and after a second of silence', async () => {
      await four.single(2, () => sleep(1100));
      await four.stop();
    });
  });
}

test('with --poll busy it never sleeps, and passes frames', { timeout: 30_000 }, async () => {
  const four = await Four.start(['--poll', 'busy'], DEFAULT_FEATURES);
  try {
    const share = await four.load(1000);
    assert.ok(share > 0.3, `${(100 * share).toFixed(1)} % of a core`);
    const [a, b] = four.cards;
    await assertDelivered(
      a,
      b,
      Array.from({ length: 200 }, (_, n) => frame(b.mac, a.mac, n, 60 + 7 * n)),
    );
    await four.stop();
  } finally {
    await four.running.kill();
  }
});
