/** Transmit queues go from lcore to lcore under traffic: frames arrive once, in order, and unharmed. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { VhostSwitch } from '../../src/control/vhost-switch.ts';
import { VirtioUser, type VirtioUserOptions } from '../../src/port/virtio-user.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { Lane, Traffic } from './lanes.ts';
import { frame, macOf } from './traffic.ts';

const LCORES = 3;
const MOVES = 120;

describe('moving queues', { timeout: 120_000 }, () => {
  let dir: string;
  let running: VhostSwitch;
  const cards: VirtioUser[] = [];
  before(async () => {
    dir = makeTempDir('move');
    running = await VhostSwitch.start({
      ...{ sockets: [join(dir, 'sock')], socketMode: 0o600, queues: 4, poll: 'adaptive' },
      ...{ mergeable: false, txCsum: false, tso: false, iommu: false, ringReset: false },
      ...{ configSpace: false, postcopy: false },
      lcores: Array.from({ length: LCORES }, (_, lcore) => ({ lcore, cpus: [] })),
      config: { learning: 'dynamic', vm2vm: 1, macAgeing: 300, macTableSize: 1024, macLimit: 512, maxPorts: 16 },
      log: (level, text) => level === 'error' && assert.fail(text),
      print: () => {},
      onFatal: (error) => assert.fail(error.message),
    });
  });
  afterEach(async () => {
    for (const card of cards.splice(0)) await card.close();
  });
  after(async () => {
    await running.close();
    removeTempDir(dir);
  });

  async function cardOf(n: number, options: Partial<VirtioUserOptions>): Promise<VirtioUser> {
    const card = await VirtioUser.connect({ path: join(dir, 'sock'), mac: macOf(n), ringSize: 64, ...options });
    cards.push(card);
    assert.ok(card.send(frame('ff:ff:ff:ff:ff:ff', card.mac)));
    await card.waitSent(10_000);
    return card;
  }

  for (const [name, options] of [
    ['split', {}],
    ['packed', { packed: true }],
    ['packed, in order', { packed: true, inOrder: true }],
    ['split, with inflight records', { inflight: true }],
  ] as const)
    test(`${name}: nothing is lost, doubled or out of order while both guests' queues move all the time`, async () => {
      const pairs = 2;
      const [a, b] = [await cardOf(1, { ...options, pairs }), await cardOf(2, { ...options, pairs })];
      const ids = running.devices.map(({ id }) => id);
      const lanes = [new Lane(a, b, { pairs, window: 16 }), new Lane(b, a, { pairs, window: 16 })];
      const traffic = new Traffic(lanes, () => pairs).start();
      for (let n = 0; n < MOVES; n++) {
        assert.equal(await running.moveQueue(ids[n % 2], (n >> 1) % pairs, (n * 5 + (n >> 3)) % LCORES), true);
        if (n % 8 === 0) await traffic.comeMore(20);
      }
      await traffic.comeMore(100);
      await traffic.stop();
      for (const { counters } of running.devices) {
        const faults = Object.entries(counters).filter(
          ([counter, value]) => counter.startsWith('ring_fault_') && value > 0,
        );
        assert.deepEqual(faults, []);
      }
    });

  test('a queue moves while its guest stops and starts it: it is where it was sent, or stopped', async () => {
    const [a, b] = [await cardOf(1, {}), await cardOf(2, {})];
    const [id] = running.devices.map((device) => device.id);
    const lane = new Lane(a, b, { window: 16 });
    const traffic = new Traffic([lane]).start();
    for (let n = 0; n < 40; n++) {
      await traffic.whileHeld(async () => {
        const moves = [running.moveQueue(id, 0, n % LCORES)];
        const restarted = a.restart();
        moves.push(running.moveQueue(id, 0, (n + 1) % LCORES));
        await restarted;
        moves.push(running.moveQueue(id, 0, (n + 2) % LCORES));
        await Promise.all(moves);
      });
      await traffic.comeMore(10);
    }
    await traffic.stop();
  });

  test('a device that is not there, or has no such queue, has nothing to move', async () => {
    await cardOf(1, {});
    const [{ id }] = running.devices;
    assert.equal(await running.moveQueue(id + 1, 0, 1), false);
    assert.equal(await running.moveQueue(id, 3, 1), false);
    assert.equal(await running.moveQueue(id, 0, LCORES), false);
    assert.equal(await running.moveQueue(id, 0, 1), true);
  });
});
