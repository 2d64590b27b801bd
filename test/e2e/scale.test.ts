/** Many devices, large guests: 64 on one lcore, 1024 on four, one of 64 GiB; each frame reaches its guest, and nobody else. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { VirtioUser } from '../../src/port/virtio-user.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** What a device of one queue pair takes, all that is not guest memory. */
const MIB_A_DEVICE = 1;
/** No test is run with so little that it would matter how much it is. */
const PROMPT_MS = 20_000;
/** Connected at a time: both ends are processes with one thread for that. */
const AT_A_TIME = 16;

const numberedMac = (i: number) =>
  `52:54:00:01:${(i >> 8).toString(16).padStart(2, '0')}:${(i & 0xff).toString(16).padStart(2, '0')}`;

function residentMib(pid: number): number {
  const [, kib] = /^RssAnon:\s*(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return (Number(kib) * 1024) / MIB;
}

describe('scale', { timeout: 300_000 }, () => {
  const open = new Set<VirtioUser>();
  let running: SwitchProcess | undefined;
  after(async () => {
    for (const card of open) await card.close();
    await running?.kill();
  });

  async function connectAll(path: string, count: number): Promise<VirtioUser[]> {
    const cards: VirtioUser[] = [];
    for (let from = 0; from < count; from += AT_A_TIME) {
      const some = Array.from({ length: Math.min(AT_A_TIME, count - from) }, (_, i) =>
        VirtioUser.connect({ path, mac: numberedMac(from + i), ringSize: 16 }),
      );
      for (const card of await Promise.all(some)) {
        cards.push(card);
        open.add(card);
      }
    }
    return cards;
  }

  /** Every card says where it is: a frame to itself goes to nobody. */
  async function introduce(cards: readonly VirtioUser[]): Promise<void> {
    for (const card of cards) {
      assert.ok(card.send(frame(card.mac, card.mac)));
      card.flush();
      await card.waitSent(PROMPT_MS);
    }
  }

  for (const [count, lcores] of [
    [64, 1],
    [1024, 4],
  ] as const)
    test(`${count} devices on ${lcores} lcores: each is registered, reached by its address alone, and costs little memory`, async () => {
      const numbers = Array.from({ length: lcores }, (_, i) => `${i}@(0-0)`).join(',');
      running = await SwitchProcess.start(['--lcores', numbers, '--max-devices', `${count}`, '--queues', '2']);
      const [before, fds] = [residentMib(running.pid), running.openFds];
      const cards = await connectAll(running.socket, count);
      await introduce(cards);
      await running.line(new RegExp(`^DATA: \\(${count - 1}\\) MAC_ADDRESS .* registered$`));
      const took = residentMib(running.pid) - before;
      assert.ok(took < count * MIB_A_DEVICE, `${count} devices take ${took.toFixed(0)} MiB`);
      // neighbours in number are on different lcores
      for (const [i, card] of cards.entries()) {
        const to = cards[(i + 1) % count];
        const sent = frame(to.mac, card.mac, i);
        assert.ok(card.send(sent));
        card.flush();
        const got = await to.waitFrame(PROMPT_MS);
        assert.ok(got !== undefined && Buffer.from(got).equals(sent), `device ${i} to ${(i + 1) % count}`);
      }
      for (const [i, card] of cards.entries())
        assert.equal(card.receive(), undefined, `device ${i}: a stranger's frame`);
      const cpu = running.cpuMs();
      const from = performance.now();
      await sleep(2000);
      const load = (running.cpuMs() - cpu) / (performance.now() - from);
      assert.ok(load < 0.25, `${count} idle devices cost ${(100 * load).toFixed(1)} % of a core`);
      for (const card of cards) {
        await card.close();
        open.delete(card);
      }
      const switching = running;
      await running.until('all devices to go', () => switching.openFds === fds, PROMPT_MS);
      assert.equal(await running.stop(), 'ended with status 0', running.output);
    });

  test('a guest of 64 GiB, with rings at its beginning and buffers at its end', async () => {
    running = await SwitchProcess.start();
    const memory = [
      { guestAddr: 0, size: 2 * GIB },
      { guestAddr: 4 * GIB, size: 62 * GIB, slice: { off: 62 * GIB - 16 * MIB, size: 16 * MIB } },
    ].map((region) => (region.guestAddr === 0 ? { ...region, slice: { off: 0, size: 4 * MIB } } : region));
    const large = await connectGuest({ path: running.socket, mac: macOf(1), memory });
    const small = await connectGuest({ path: running.socket, mac: macOf(2) });
    await introduce([large, small]);
    const frames = (to: VirtioUser, of: VirtioUser) =>
      Array.from({ length: 600 }, (_, n) => frame(to.mac, of.mac, n, 64 + ((n * 37) % 1400)));
    await assertDelivered(large, small, frames(small, large));
    await assertDelivered(small, large, frames(large, small));
    assert.ok(residentMib(running.pid) < 300, 'what the guest has not touched takes no memory');
    await large.close();
    await small.close();
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});
