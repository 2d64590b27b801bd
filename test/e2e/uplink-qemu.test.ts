/** Linux guests and a Linux host beyond an uplink: ARP, ping and TCP, with every side's offloads as they are by default. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ip, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { PeerProcess } from '../peers/process.ts';
import type { QemuGuest } from '../peers/qemu.ts';
import { assertPing, linuxGuest, sh, startAll, untilPing } from './linux-guests.ts';
import { SwitchProcess } from './switch-process.ts';

const [leftOut] = (await ensurePeers(['netns', 'qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const TCP_PEER = fileURLToPath(new URL('../kit/tcp-peer.ts', import.meta.url));
const HOST_IP = '10.0.0.254';
const MIB = 16;
/** Bytes that no frame of this MTU has: a mean above it means that segments pass whole. */
const MORE_THAN_A_FRAME = 2000;

interface World {
  readonly vdev: string;
  readonly netns: string;
  readonly host: string;
}

const WORLDS: Readonly<Record<string, (lab: NetLab) => World>> = {
  net_af_packet: (lab) => {
    const { near, far, netns } = lab.veth();
    return { vdev: `net_af_packet0,iface=${near}`, netns, host: far };
  },
  net_tap: (lab) => {
    const netns = lab.namespace();
    return { vdev: `net_tap0,iface=${netns}:tap0`, netns, host: 'tap0' };
  },
};

/** Mean bytes of the frames that an interface took or gave while `action` ran. */
async function meanFrame(read: () => Promise<number[]>, action: () => Promise<void>): Promise<number> {
  const before = await read();
  await action();
  const [bytes, packets] = (await read()).map((now, i) => now - before[i]);
  return bytes / packets;
}

function checksumErrors(snmp: string): Record<string, string> {
  const counted: Record<string, string> = {};
  for (const protocol of ['Tcp', 'Udp', 'Icmp']) {
    const [names, values] = snmp
      .split('\n')
      .filter((line) => line.startsWith(`${protocol}: `))
      .map((line) => line.split(' '));
    counted[protocol] = values[names.indexOf('InCsumErrors')];
  }
  return counted;
}

for (const [kind, make] of Object.entries(WORLDS)) {
  describe(`Linux guests and a host beyond ${kind}`, { skip, timeout: 280_000 }, () => {
    const lab = new NetLab();
    let world: World;
    let running: SwitchProcess;
    let tcp: PeerProcess;
    let digest: string;
    let offloading: QemuGuest;
    let plain: QemuGuest;

    before(async () => {
      world = make(lab);
      running = await SwitchProcess.start(['--vdev', world.vdev, '--mergeable', '1', '-p', '0x1', '--vlan', 'off']);
      ip('-n', world.netns, 'addr', 'add', `${HOST_IP}/24`, 'dev', world.host);
      tcp = new PeerProcess({
        name: 'TCP peer',
        command: 'ip',
        args: ['netns', 'exec', world.netns, process.execPath, TCP_PEER, String(MIB)],
      });
      await tcp.waitUntil('the TCP peer', () => tcp.outputSince(0).includes('ready'), 10_000);
      digest = /ready (\w+)/.exec(tcp.outputSince(0))?.[1] as string;
      offloading = linuxGuest(1, running.socket);
      plain = linuxGuest(2, running.socket, { offloads: false });
      await startAll([offloading, plain]);
    });
    after(async () => {
      await Promise.all([offloading?.stop(), plain?.stop()]);
      await tcp?.stop();
      await running?.kill();
      lab.remove();
    });

    const hostCounter = (direction: string, what: string) =>
      Number(lab.run(world.netns, 'cat', `/sys/class/net/${world.host}/statistics/${direction}_${what}`));
    const ofHost = (direction: 'rx' | 'tx') => async () =>
      ['bytes', 'packets'].map((what) => hostCounter(direction, what));

    /** The guest sends to the host, which says what has come. */
    async function upload(guest: QemuGuest): Promise<void> {
      await sh(guest, `dd if=/dev/urandom of=/tmp/out bs=1M count=${MIB} 2>/dev/null`, 60_000);
      const sent = (await sh(guest, 'sha256sum /tmp/out', 60_000)).split(' ')[0];
      const heard = await sh(guest, `nc.openbsd -N ${HOST_IP} 5001 </tmp/out`, 120_000);
      assert.equal(heard.trim(), sent, 'the file arrived otherwise');
      await sh(guest, 'rm /tmp/out');
    }

    async function download(guest: QemuGuest): Promise<void> {
      const heard = await sh(guest, `nc.openbsd -d ${HOST_IP} 5002 | sha256sum`, 120_000);
      assert.equal(heard.split(' ')[0], digest, 'the file arrived otherwise');
    }

    test('they find each other by ARP and answer pings, fragments too', async () => {
      for (const guest of [offloading, plain]) {
        await untilPing(guest, HOST_IP);
        await assertPing(guest, HOST_IP, '-s 20000');
      }
    });

    test('TCP streams pass unharmed, both ways', async () => {
      for (const guest of [offloading, plain]) {
        await upload(guest);
        await download(guest);
      }
    });

    test('the segments of a guest with offloads cross whole, and those for one without are cut', async () => {
      const up = await meanFrame(ofHost('rx'), () => upload(offloading));
      assert.ok(up > MORE_THAN_A_FRAME, `the host got ${up} bytes at a time`);
      const ofGuest = (guest: QemuGuest) => async () => {
        const files = ['bytes', 'packets'].map((what) => `/sys/class/net/eth0/statistics/rx_${what}`);
        return (await sh(guest, `cat ${files.join(' ')}`)).trim().split('\n').map(Number);
      };
      const down = await meanFrame(ofGuest(offloading), () => download(offloading));
      assert.ok(down > MORE_THAN_A_FRAME, `the guest with offloads got ${down} bytes at a time`);
      const cut = await meanFrame(ofGuest(plain), () => download(plain));
      assert.ok(cut <= 1514, `the guest without offloads got ${cut} bytes at a time`);
    });

    test('nobody saw a bad checksum, and the switch ends cleanly', async () => {
      const none = { Tcp: '0', Udp: '0', Icmp: '0' };
      assert.deepEqual(checksumErrors(lab.run(world.netns, 'cat', '/proc/net/snmp')), none);
      for (const guest of [offloading, plain])
        assert.deepEqual(checksumErrors(await sh(guest, 'cat /proc/net/snmp')), none);
      assert.equal(await running.stop(), 'ended with status 0', running.output);
    });
  });
}
