/** A switch whose uplink steers: what comes for a guest comes by a queue of that guest's lcore, as long as the guest is there. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { VhostSwitch } from '../../src/control/vhost-switch.ts';
import { parseVdev } from '../../src/port/vdev.ts';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { enterXdpNetwork } from '../peers/af-xdp.ts';
import { ip } from '../peers/netns.ts';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
import { addVeth, RawSocket } from '../peers/veth.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const DEADLINE_MS = 20_000;
const A = `ua${process.pid}`;
const B = `ub${process.pid}`;
const HOST = macOf(0x42);
const BROADCAST = 'ff:ff:ff:ff:ff:ff';

const skip = await enterXdpNetwork();
if (skip === false) addVeth(A, B);

function startSwitch(path: string, vdev: string): Promise<VhostSwitch> {
  const fail = (what: string) => assert.fail(what);
  return VhostSwitch.start({
    ...{ sockets: [path], socketMode: 0o600, queues: 1, poll: 'adaptive' },
    ...{ mergeable: false, txCsum: false, tso: false, iommu: false, ringReset: false },
    ...{ configSpace: false, postcopy: false },
    uplinks: [parseVdev(vdev)],
    lcores: [0, 1].map((lcore) => ({ lcore, cpus: [] })),
    config: { learning: 'dynamic', vm2vm: 1, macAgeing: 300, macTableSize: 1024, macLimit: 512, maxPorts: 16 },
    log: (level, text) => level === 'error' && !text.includes('was removed') && fail(text),
    print: () => {},
    onFatal: (error) => fail(error.message),
  });
}

describe('the uplink of a switch with two lcores steers', { skip, timeout: 120_000 }, () => {
  const dir = makeTempDir('steering');
  after(() => removeTempDir(dir));

  for (const vdev of [`net_af_xdp0,iface=${A},steer_queues=4`, `net_af_packet0,iface=${A},qpairs=4,steer=1`])
    test(vdev.split(',')[0], async () => {
      const path = join(dir, vdev.slice(0, 8));
      const running = await startSwitch(path, vdev);
      let host = new RawSocket(B);
      const guests: VirtioUser[] = [];
      const packets = () => {
        const counts = running.uplinks[0].steered;
        return counts && [...counts.queues, counts.unknown].map((count) => count.packets);
      };
      /** Sends frames to a guest, which must get them, and says by which queues they have come; the last is what had no entry. */
      const queuesOf = async (guest: VirtioUser, n = 20) => {
        const before = packets() ?? [];
        for (let i = 0; i < n; i++) assert.ok(host.send(frame(guest.mac, HOST, i)));
        for (let i = 0; i < n; ) {
          const got = await guest.waitFrame(DEADLINE_MS);
          assert.ok(got, `frame ${i}`);
          // what other guests have sent to all may still be on its way
          if (Buffer.compare(got, frame(guest.mac, HOST, i)) === 0) i++;
        }
        return (packets() ?? []).map((count, queue) => count - before[queue]);
      };
      const joined = async (n: number) => {
        const guest = await connectGuest({ path, mac: macOf(n) });
        guests.push(guest);
        const registered = running.devices.filter(({ mac }) => mac !== undefined).length;
        assert.ok(guest.send(frame(BROADCAST, guest.mac)));
        guest.flush();
        await waitUntil(
          'the guest to be registered',
          () => running.devices.filter(({ mac }) => mac !== undefined).length > registered,
          DEADLINE_MS,
        );
        return guest;
      };
      try {
        // two on each lcore, which take turns
        for (let n = 0; n < 4; n++) await joined(1 + n);
        for (const guest of guests) while ((await guest.waitFrame(50)) !== undefined);
        const queues: number[] = [];
        for (const guest of guests) {
          const counts = await queuesOf(guest);
          assert.deepEqual([...counts].sort(), [0, 0, 0, 0, 20], 'all by one queue, and by an entry');
          assert.equal(counts[4], 0);
          queues.push(counts.indexOf(20));
        }
        assert.deepEqual([...queues].sort(), [0, 1, 2, 3], 'a queue for each');
        const lcores = queues.map((queue) => queue % 2);
        assert.deepEqual(lcores, [lcores[0], 1 - lcores[0], lcores[0], 1 - lcores[0]]);

        // the interface goes, and comes again
        ip('link', 'del', A);
        await waitUntil('the uplink to be stopped', () => running.uplinks[0].link.gone !== undefined, DEADLINE_MS);
        addVeth(A, B);
        await waitUntil('the uplink to come back', () => running.uplinks[0].link.up, DEADLINE_MS);
        host.close();
        host = new RawSocket(B);
        // the lcores have it a moment later
        await waitUntil(
          'the first frame',
          async () => {
            assert.ok(host.send(frame(guests[3].mac, HOST)));
            return (await guests[3].waitFrame(100)) !== undefined;
          },
          DEADLINE_MS,
        );
        while ((await guests[3].waitFrame(50)) !== undefined);
        assert.equal((await queuesOf(guests[3])).indexOf(20), queues[3]);

        // and its link, which empties and fills a fanout group
        ip('link', 'set', A, 'down');
        await waitUntil('the link to be down', () => !running.uplinks[0].link.up, DEADLINE_MS);
        ip('link', 'set', A, 'up');
        await waitUntil('the link to be up', () => running.uplinks[0].link.up, DEADLINE_MS);
        for (const [n, guest] of guests.entries()) assert.equal((await queuesOf(guest)).indexOf(20), queues[n]);

        // a guest that has gone has no entry any more
        const before = packets() ?? [];
        await guests[3].close();
        await waitUntil('the guest to be gone', () => running.devices.length === 3, DEADLINE_MS);
        for (let i = 0; i < 7; i++) assert.ok(host.send(frame(macOf(4), HOST, i)));
        await waitUntil('frames without an entry', () => (packets() ?? [])[4] - before[4] >= 7, DEADLINE_MS);
        assert.deepEqual(packets(), [...before.slice(0, 4), before[4] + 7]);
      } finally {
        host.close();
        for (const guest of guests) await guest.close();
        await running.close();
      }
    });
});
