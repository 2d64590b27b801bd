/**
 * `--vm2vm 2` against a real switch: a Linux bridge with VLAN filtering, in a machine of its own, sends guests' frames back by the port
 * that they came from.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { ip, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
import { QemuGuest } from '../peers/qemu.ts';
import { assertFilePasses, ipOf, linuxGuest, sh, startAll, untilPing } from './linux-guests.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['netns', 'qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const ALL = 'ff:ff:ff:ff:ff:ff';
/** Time in which a frame that should not come would have come. */
const QUIET_MS = 300;
const WAIT_MS = 10_000;

/** The machine with the bridge, whose only port is the other end of our uplink's interface. */
class ReflectingBridge {
  readonly machine: QemuGuest;

  /** @param tap the interface, which is there */
  constructor(tap: string) {
    this.machine = new QemuGuest({
      name: 'bridge',
      kernelArgs: ['g_mods=bridge,8021q'],
      args: [
        ...['-netdev', `tap,id=n0,ifname=${tap},script=no,downscript=no`],
        ...['-device', 'virtio-net-pci,netdev=n0,mac=52:54:00:00:00:f0,romfile=,vectors=0'],
      ],
    });
  }

  /** @param vids that the port carries, tagged */
  async setUp(vids: readonly (number | string)[]): Promise<void> {
    const bridge = '/sys/class/net/br0/bridge';
    const lines = [
      'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6',
      'brctl addbr br0',
      `echo 0 >${bridge}/default_pvid; echo 1 >${bridge}/vlan_filtering; echo 0 >${bridge}/multicast_snooping`,
      'brctl addif br0 eth0; bridge link set dev eth0 hairpin on',
      ...vids.map((vid) => `bridge vlan add dev eth0 vid ${vid}`),
      // else a bridge with VLAN filtering and one port hears what is for itself only
      'ip link set br0 promisc on up',
      'until [ "$(cat /sys/class/net/eth0/brport/state)" = 3 ]; do usleep 50000; done',
    ];
    await sh(this.machine, `set -e; ${lines.join('; ')}`);
  }

  run(command: string): Promise<string> {
    return sh(this.machine, command);
  }

  /** The VLANs in which it has seen an address. */
  async vlansOf(mac: string): Promise<number[]> {
    const lines = (await this.run('bridge fdb show br br0')).split('\n').filter((line) => line.startsWith(mac));
    return lines.map((line) => Number(/ vlan (\d+) /.exec(line)?.[1] ?? 0)).sort((a, b) => a - b);
  }

  /** Frames that it has sent by its port. */
  async sent(): Promise<number> {
    return Number(await this.run('cat /sys/class/net/eth0/statistics/tx_packets'));
  }
}

const tagged = (bytes: Uint8Array, vid: number) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from([0x81, 0, vid >> 8, vid & 0xff]), bytes.subarray(12)]);

function send(guest: VirtioUser, bytes: Uint8Array): void {
  assert.ok(guest.send(bytes));
  guest.flush();
}

/** The next frame of ours, of the local experimental EtherType: the Linux guests may have something to say to all of their VLAN. */
async function nextOurs(guest: VirtioUser, ms: number): Promise<Uint8Array | undefined> {
  for (const giveUpAt = performance.now() + ms; ; ) {
    const got = await guest.waitFrame(Math.max(0, giveUpAt - performance.now()));
    if (got === undefined) return undefined;
    const type = got[12] === 0x81 ? 16 : 12;
    if (got[type] === 0x88 && got[type + 1] === 0xb5) return got;
  }
}

async function assertNext(guest: VirtioUser, expected: Uint8Array): Promise<void> {
  assert.deepEqual(Buffer.from((await nextOurs(guest, WAIT_MS)) ?? []), Buffer.from(expected));
}

async function assertQuiet(...guests: readonly VirtioUser[]): Promise<void> {
  for (const guest of guests) assert.equal(await nextOurs(guest, QUIET_MS), undefined);
}

const framesOf = (from: number, to: number, n = 100) =>
  Array.from({ length: n }, (_, i) => frame(macOf(to), macOf(from), i, 60 + ((i * 97) % 1450)));

describe('guests that reach each other by a Linux bridge with VLAN filtering', { skip, timeout: 280_000 }, () => {
  const lab = new NetLab();
  const dir = makeTempDir('reflection');
  const path = (name: string) => join(dir, name);
  let running: SwitchProcess;
  let bridge: ReflectingBridge;
  let linux: QemuGuest[] = [];

  before(async () => {
    const tap = lab.interfaceName();
    ip('tuntap', 'add', tap, 'mode', 'tap');
    lab.silence(tap);
    ip('link', 'set', tap, 'up');
    bridge = new ReflectingBridge(tap);
    const sockets = ['v100,vlan=100', 'v200,vlan=200', 'v300,vlan=300', 'trunk,trunk=100+200'];
    const uplink = ['--vdev', `net_af_packet0,iface=${tap}`, '-p', '0x1', '--vm2vm', '2', '--mergeable', '1'];
    running = await SwitchProcess.start([...uplink, ...sockets.flatMap((socket) => ['--socket-file', path(socket)])], {
      dir,
    });
    linux = [linuxGuest(11, path('v100')), linuxGuest(12, path('v100'))];
    await startAll([bridge.machine, ...linux]);
    // of VLAN 300 it knows nothing
    await bridge.setUp([100, 200, '1000-1015']);
  });
  after(async () => {
    await Promise.all([bridge?.machine, ...linux].map((guest) => guest?.stop()));
    await running?.kill();
    lab.remove();
    removeTempDir(dir);
  });

  /** Guests on sockets, which the bridge has heard of; closed at the end. */
  async function withGuests(
    sockets: readonly string[],
    vids: readonly number[],
    use: (guests: readonly VirtioUser[]) => Promise<void>,
  ): Promise<void> {
    const guests: VirtioUser[] = [];
    try {
      for (const socket of sockets)
        guests.push(await connectGuest({ path: path(socket), mac: macOf(guests.length + 1) }));
      for (const [i, vid] of vids.entries()) {
        send(guests[i], frame(ALL, macOf(i + 1)));
        await waitUntil(
          `the bridge to have heard of guest ${i + 1}`,
          async () => (await bridge.vlansOf(macOf(i + 1))).includes(vid),
          WAIT_MS,
        );
      }
      for (const guest of guests) while ((await guest.waitFrame(QUIET_MS)) !== undefined);
      await use(guests);
    } finally {
      for (const guest of guests) await guest.close();
      await bridge.run('echo 1 >/sys/class/net/eth0/brport/flush');
    }
  }

  test('Linux guests of one VLAN find each other by ARP and pass TCP streams, all of it by the bridge', async () => {
    const before = await bridge.sent();
    await untilPing(linux[0], ipOf(12));
    await assertFilePasses(linux[0], linux[1], 12, 4);
    await assertFilePasses(linux[1], linux[0], 11, 4);
    assert.ok((await bridge.sent()) - before > 100, 'the bridge has sent them back');
    assert.deepEqual(await bridge.vlansOf(macOf(11)), [100]);
    for (const guest of linux) {
      const [names, values] = (await sh(guest, 'grep ^Tcp: /proc/net/snmp')).trim().split('\n');
      assert.equal(values.split(' ')[names.split(' ').indexOf('InCsumErrors')], '0', guest.options.name);
    }
  });

  test('with a tag for each device a frame goes out with the tag of the guest that it is for', async () => {
    // devices 0 and 1 are the Linux guests
    await withGuests(['sock', 'sock'], [1002, 1003], async ([a, b]) => {
      const before = await bridge.sent();
      await assertDelivered(a, b, framesOf(1, 2));
      await assertDelivered(b, a, framesOf(2, 1));
      assert.equal((await bridge.sent()) - before, 200);
      // where the bridge has seen them since
      assert.deepEqual(await bridge.vlansOf(macOf(1)), [1002, 1003]);
      assert.deepEqual(await bridge.vlansOf(macOf(2)), [1002, 1003]);
      send(a, frame(macOf(1), macOf(1)));
      send(a, frame(ALL, macOf(1)));
      await assertQuiet(a, b);
    });
  });

  test('without reflection, or without the VLAN, the bridge keeps the frames to itself', async () => {
    await withGuests(['sock', 'sock'], [1002, 1003], async ([a, b]) => {
      for (const [off, on] of [
        ['bridge link set dev eth0 hairpin off', 'bridge link set dev eth0 hairpin on'],
        ['bridge vlan del dev eth0 vid 1003', 'bridge vlan add dev eth0 vid 1003'],
      ]) {
        await bridge.run(off);
        send(a, frame(macOf(2), macOf(1), 7));
        await assertQuiet(a, b);
        await bridge.run(on);
        // the bridge has forgotten who is in a VLAN that was taken away, and floods
        await assertDelivered(a, b, framesOf(1, 2, 20));
      }
    });
  });

  test('VLANs by socket: what is for all comes back to all others of the VLAN and to nobody else', async () => {
    await withGuests(['v200', 'v200', 'v100', 'trunk'], [200, 200, 100], async ([a, b, other, trunk]) => {
      const toAll = frame(ALL, macOf(1), 1);
      send(a, toAll);
      await assertNext(b, toAll);
      await assertNext(trunk, tagged(toAll, 200));
      await assertQuiet(a, other, trunk);
      await assertDelivered(a, b, framesOf(1, 2, 50));
      // what a trunk guest sends in a VLAN is that VLAN's
      const fromTrunk = frame(macOf(2), macOf(4), 2);
      send(trunk, tagged(fromTrunk, 200));
      await assertNext(b, fromTrunk);
      const answer = frame(macOf(4), macOf(2), 3);
      send(b, answer);
      await assertNext(trunk, tagged(answer, 200));
      await assertQuiet(a, b, other, trunk);
    });
  });

  test('a VLAN that the bridge does not carry ends there', async () => {
    await withGuests(['v300', 'v300'], [], async ([a, b]) => {
      for (const [n, guest] of [a, b].entries()) send(guest, frame(ALL, macOf(n + 1)));
      send(a, frame(macOf(2), macOf(1)));
      await assertQuiet(a, b);
      assert.deepEqual(await bridge.vlansOf(macOf(1)), []);
    });
  });

  test('the switch ends cleanly', async () => {
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});
