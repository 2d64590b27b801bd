/** Many queue pairs, polled by one lcore and by two: flows keep their order, pairs come and go, and every vring's counters are exact. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { type DeviceInfo, VhostSwitch } from '../../src/control/vhost-switch.ts';
import { VirtioUser, type VirtioUserOptions } from '../../src/port/virtio-user.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { Lane, Traffic } from './lanes.ts';
import { SwitchProcess } from './switch-process.ts';
import { frame, macOf } from './traffic.ts';

const BROADCAST = 'ff:ff:ff:ff:ff:ff';
const PAIRS = [1, 2, 8, 128];
const LCORES = [1, 2];

/** A switch in this process, whose lcores run wherever there is room. */
async function startSwitch(path: string, lcores: number): Promise<VhostSwitch> {
  const fail = (what: string) => assert.fail(what);
  return VhostSwitch.start({
    ...{ sockets: [path], socketMode: 0o600, queues: 128, poll: 'adaptive' },
    ...{
      mergeable: false,
      txCsum: false,
      tso: false,
      iommu: false,
      ringReset: false,
      configSpace: false,
      postcopy: false,
    },
    lcores: Array.from({ length: lcores }, (_, lcore) => ({ lcore, cpus: [] })),
    config: { learning: 'dynamic', vm2vm: 1, macAgeing: 300, macTableSize: 1024, macLimit: 512, maxPorts: 16 },
    log: (level, text) => level === 'error' && fail(text),
    print: () => {},
    onFatal: (error) => fail(error.message),
  });
}

describe('queues', { timeout: 60_000 }, () => {
  let dir: string;
  const cards = new Set<VirtioUser>();
  let running: VhostSwitch | undefined;
  before(() => {
    dir = makeTempDir('queues');
  });
  afterEach(async () => {
    for (const card of cards) await card.close();
    cards.clear();
    await running?.close();
    running = undefined;
  });
  after(() => removeTempDir(dir));

  async function cardOf(n: number, options: Partial<VirtioUserOptions> = {}): Promise<VirtioUser> {
    const card = await VirtioUser.connect({ path: join(dir, 'sock'), mac: macOf(n), ringSize: 32, ...options });
    cards.add(card);
    return card;
  }

  /** Makes the switch learn a card's address: whatever another lcore sends it afterwards, it gets. */
  async function known(card: VirtioUser): Promise<void> {
    assert.ok(card.send(frame(BROADCAST, card.mac)));
    await card.waitSent(5000);
  }

  /** The good packets and bytes of a device's vrings, those that receive (0) or those that transmit (1). */
  const counted = (device: number, which: 0 | 1) => {
    const info = (running as VhostSwitch).devices.find(({ id }) => id === device);
    return (info?.vrings ?? [])
      .filter((_, index) => index % 2 === which)
      .map((vring) => ({ packets: vring?.good_packets ?? 0, bytes: vring?.good_bytes ?? 0 }));
  };

  for (const lcores of LCORES)
    for (const pairs of PAIRS)
      test(`${pairs} pairs, ${lcores} lcores: each flow in order in a queue of its own; counters are exact`, async () => {
        running = await startSwitch(join(dir, 'sock'), lcores);
        const packed = pairs === 2;
        const [a, b] = [await cardOf(1, { pairs, packed }), await cardOf(2, { pairs, packed })];
        const options = { pairs, window: 4 };
        const lanes = [new Lane(a, b, options), new Lane(b, a, options)];
        const traffic = new Traffic(lanes, () => pairs).start();
        await traffic.comeMore(Math.max(400, 10 * pairs));
        await traffic.stop();
        for (const lane of lanes) {
          assert.ok(
            lane.flows.every(({ due }) => due > 0),
            'every transmit queue is polled',
          );
          assert.ok(
            lane.flows.every((flow) => flow.pairs.size === 1),
            'a flow stays in its receive queue',
          );
          const used = new Set(lane.flows.flatMap((flow) => [...flow.pairs]));
          assert.ok(used.size > pairs / 3, `${used.size} of ${pairs} receive queues are used`);
        }
        for (const [device, card] of [a, b].entries()) {
          assert.deepEqual(counted(device, 0), traffic.received.get(card));
          assert.deepEqual(
            counted(device, 1).map(({ packets }) => packets),
            lanes[device].flows.map(({ next }) => next),
          );
          const info: DeviceInfo | undefined = running.devices.find(({ id }) => id === device);
          for (const vring of info?.vrings ?? []) {
            const counters: Record<string, number> = vring ?? {};
            const sizes = Object.keys(counters).filter((name) => /^(size|undersize)_/.test(name));
            const ofAnySize = sizes.reduce((sum, name) => sum + counters[name], 0);
            assert.equal(ofAnySize, counters.good_packets);
          }
          const bytes = counted(device, 0).reduce((sum, vring) => sum + vring.bytes, 0);
          assert.equal(info?.counters.rx_bytes, bytes);
        }
      });

  for (const lcores of LCORES)
    test(`${lcores} lcores: pairs are taken away and given back under traffic; nothing is lost or out of order`, async () => {
      running = await startSwitch(join(dir, 'sock'), lcores);
      const pairs = 4;
      const [a, b] = [await cardOf(1, { pairs }), await cardOf(2, { pairs, ringSize: 64 })];
      await known(b);
      const lane = new Lane(a, b, { pairs, window: 8 });
      const traffic = new Traffic([lane], () => pairs).start();
      const enabled = Array<boolean>(pairs).fill(true);
      for (let turn = 0; turn < 24; turn++) {
        await traffic.comeMore(40);
        const n = (turn * 5) % pairs;
        if (enabled[n] && enabled.filter(Boolean).length === 1) continue;
        await traffic.whileHeld(async () => {
          enabled[n] = !enabled[n];
          await b.enablePair(n, enabled[n]);
          // of a flow that moves, what came first lies in its old queue
          if (enabled[n]) for (let k = 0; k < pairs; k++) k !== n && traffic.receiveOn(b, k);
          traffic.receiveOn(b, n);
          for (const flow of lane.flows) flow.pairs.clear();
        });
        await traffic.comeMore(40);
        const used = new Set(lane.flows.flatMap((flow) => [...flow.pairs]));
        for (const pair of used) assert.ok(enabled[pair], `a frame came by pair ${pair}, which is disabled`);
      }
      await traffic.stop();
    });

  for (const packed of [false, true])
    test(`two lcores deliver into one ${packed ? 'packed' : 'split'} queue, which stops and goes on: nothing is lost, doubled or out of order`, async () => {
      running = await startSwitch(join(dir, 'sock'), 2);
      const senders = [await cardOf(1, { pairs: 2 }), await cardOf(2, { pairs: 2 })];
      const target = await cardOf(3, { packed, ringSize: 256 });
      await Promise.all([...senders, target].map(known));
      const lanes = senders.map((card) => new Lane(card, target, { pairs: 2, window: 16 }));
      const traffic = new Traffic([...lanes, new Lane(target, senders[0], { window: 16 })], (card) =>
        card === target ? 1 : 2,
      ).start();
      for (let turn = 0; turn < 8; turn++) {
        await traffic.comeMore(100);
        // nothing on the way to it: what finds it stopped is lost
        await traffic.settle();
        await traffic.whileHeld(() => target.restart());
        traffic.resume();
      }
      await traffic.comeMore(500);
      await traffic.stop();
      const { counters } = running.devices.find(({ id }) => id === 2) ?? assert.fail('no device');
      assert.equal(counters.rx_packets, traffic.received.get(target)?.[0].packets);
    });

  test('--lcores: two threads of the program itself poll, wherever they may run', async () => {
    const program = await SwitchProcess.start(['--lcores', '0@0,1@0,2@0', '--', '--dev-basename', 'sock'], {
      wholeLine: true,
    });
    try {
      const path = program.socket;
      const [a, b] = [await cardOf(1, { pairs: 4, path }), await cardOf(2, { pairs: 4, path })];
      for (const [device, lcore] of [1, 2].entries())
        await program.line(new RegExp(`^DATA: \\(${device}\\) Device has been added to data core ${lcore}$`));
      const options = { pairs: 4, window: 4 };
      const traffic = new Traffic([new Lane(a, b, options), new Lane(b, a, options)], () => 4).start();
      await traffic.comeMore(500);
      await traffic.stop();
      assert.equal(await program.stop(), 'ended with status 0');
    } finally {
      await program.kill();
    }
  });

  test('SET_VRING_ENABLE 0: a driver that uses fewer pairs than it has; what it sends on the others is thrown away', async () => {
    running = await startSwitch(join(dir, 'sock'), 2);
    const [a, b] = [await cardOf(1, { pairs: 2 }), await cardOf(2)];
    await a.enablePair(1, false);
    for (let n = 0; n < 10; n++) assert.ok(a.send(frame(b.mac, a.mac, n), {}, 1));
    a.flush(1);
    let back = 0;
    while (back < 10) back += await a.waitSent(5000, 1);
    assert.ok(a.send(frame(b.mac, a.mac, 77)));
    a.flush();
    assert.deepEqual(await b.waitFrame(5000), frame(b.mac, a.mac, 77));
    assert.equal(b.receive(), undefined);
    const [{ counters }] = running.devices;
    assert.deepEqual([counters.tx_drop_disabled, counters.tx_packets], [10, 11]);
  });
});
