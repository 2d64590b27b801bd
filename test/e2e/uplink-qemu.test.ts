/**
 * Linux guests and a Linux host beyond an uplink: DHCP, ARP, IPv6 neighbour discovery, ping and TCP, with every side's offloads as they
 * are by default.
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ip, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../peers/process.ts';
import type { QemuGuest } from '../peers/qemu.ts';
import { assertPing, linuxGuest, sh, startAll, untilPing } from './linux-guests.ts';
import { SwitchProcess } from './switch-process.ts';
import { macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['netns', 'qemu', 'dhcp'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const TCP_PEER = fileURLToPath(new URL('../kit/tcp-peer.ts', import.meta.url));
const HOST_IP = '10.0.0.254';
const HOST_IP6 = 'fd00::254';
/** What the host's DHCP server has to give. */
const LEASES = ['10.0.0.100', '10.0.0.109'];
const MIB = 8;
/** Bytes that no frame of this MTU has: a mean above it means that segments pass whole. */
const MORE_THAN_A_FRAME = 2000;

interface World {
  readonly vdev: string;
  readonly netns: string;
  readonly host: string;
}

const WORLDS: Readonly<Record<string, (lab: NetLab) => World>> = {
  // the host is a bridge's, as many are
  net_af_packet: (lab) => {
    const { near, far, netns } = lab.veth();
    ip('-n', netns, 'link', 'add', 'br0', 'up', 'type', 'bridge');
    ip('-n', netns, 'link', 'set', far, 'master', 'br0');
    return { vdev: `net_af_packet0,iface=${near}`, netns, host: 'br0' };
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
    let dhcp: PeerProcess;
    const dir = makeTempDir('dhcp');
    let digest: string;
    let offloading: QemuGuest;
    let plain: QemuGuest;

    before(async () => {
      world = make(lab);
      running = await SwitchProcess.start(['--vdev', world.vdev, '--mergeable', '1', '-p', '0x1', '--vlan', 'off']);
      ip('-n', world.netns, 'addr', 'add', `${HOST_IP}/24`, 'dev', world.host);
      lab.run(world.netns, 'sysctl', '-qw', `net.ipv6.conf.${world.host}.disable_ipv6=0`);
      ip('-n', world.netns, 'addr', 'add', `${HOST_IP6}/64`, 'dev', world.host, 'nodad');
      tcp = new PeerProcess({
        name: 'TCP peer',
        command: 'ip',
        args: ['netns', 'exec', world.netns, process.execPath, TCP_PEER, String(MIB)],
      });
      await tcp.waitUntil('the TCP peer', () => tcp.outputSince(0).includes('ready'), 10_000);
      digest = /ready (\w+)/.exec(tcp.outputSince(0))?.[1] as string;
      const setting = [
        `start ${LEASES[0]}`,
        `end ${LEASES[1]}`,
        `interface ${world.host}`,
        'option subnet 255.255.255.0',
      ];
      const files = ['lease_file', 'pidfile'].map((what) => `${what} ${join(dir, what)}`);
      writeFileSync(join(dir, 'lease_file'), '');
      writeFileSync(join(dir, 'conf'), `${[...setting, ...files].join('\n')}\n`);
      dhcp = new PeerProcess({
        name: 'DHCP server',
        command: 'ip',
        args: ['netns', 'exec', world.netns, 'udhcpd', '-f', join(dir, 'conf')],
      });
      // the first has no address of its own
      offloading = linuxGuest(1, running.socket, { ip: '' });
      plain = linuxGuest(2, running.socket, { offloads: false });
      await startAll([offloading, plain]);
    });
    after(async () => {
      await Promise.all([offloading?.stop(), plain?.stop()]);
      await tcp?.stop();
      await dhcp?.stop();
      await running?.kill();
      lab.remove();
      removeTempDir(dir);
    });

    const hostCounter = (direction: string, what: string) =>
      Number(lab.run(world.netns, 'cat', `/sys/class/net/${world.host}/statistics/${direction}_${what}`));
    const ofHost = (direction: 'rx' | 'tx') => async () =>
      ['bytes', 'packets'].map((what) => hostCounter(direction, what));

    /** The guest sends to the host, which says what has come. */
    async function upload(guest: QemuGuest, to = HOST_IP): Promise<void> {
      await sh(guest, `dd if=/dev/urandom of=/tmp/out bs=1M count=${MIB} 2>/dev/null`, 60_000);
      const sent = (await sh(guest, 'sha256sum /tmp/out', 60_000)).split(' ')[0];
      const heard = await sh(guest, `nc.openbsd -N ${to} 5001 </tmp/out`, 120_000);
      assert.equal(heard.trim(), sent, 'the file arrived otherwise');
      await sh(guest, 'rm /tmp/out');
    }

    async function download(guest: QemuGuest, from = HOST_IP): Promise<void> {
      const heard = await sh(guest, `nc.openbsd -d ${from} 5002 | sha256sum`, 120_000);
      assert.equal(heard.split(' ')[0], digest, 'the file arrived otherwise');
    }

    test('a guest gets its address by DHCP', async () => {
      const take = '[ "$1" = bound ] && ip addr replace "$ip/$mask" dev "$interface" || true';
      await sh(offloading, `printf '#!/bin/sh\\n%s\\n' '${take}' >/tmp/lease; chmod +x /tmp/lease`);
      await sh(offloading, 'udhcpc -i eth0 -n -q -t 10 -T 1 -s /tmp/lease', 60_000);
      assert.match(await sh(offloading, 'ip -4 addr show dev eth0'), /inet 10\.0\.0\.10\d\/24 /, dhcp.outputSince(0));
    });

    test('they find each other by ARP and answer pings, fragments too', async () => {
      for (const guest of [offloading, plain]) {
        await untilPing(guest, HOST_IP);
        await assertPing(guest, HOST_IP, '-s 20000');
      }
    });

    test('by IPv6 they find each other, too, whoever asks', async () => {
      for (const [n, guest] of [offloading, plain].entries()) {
        await sh(guest, `ip -6 addr add fd00::${n + 1}/64 dev eth0`);
        await sh(guest, `until ping6 -c 1 -W 1 ${HOST_IP6}; do :; done`, 20_000);
        ip('-n', world.netns, '-6', 'neigh', 'flush', 'dev', world.host);
        await sh(guest, `ping6 -c 3 -W 5 -s 3000 ${HOST_IP6}`);
        assert.match(ip('-n', world.netns, '-6', 'neigh'), RegExp(`^fd00::${n + 1} .*lladdr ${macOf(n + 1)} `, 'm'));
      }
    });

    test('TCP streams pass unharmed, both ways, by IPv4 and IPv6', async () => {
      for (const [guest, host] of [
        [offloading, HOST_IP],
        [offloading, HOST_IP6],
        [plain, HOST_IP6],
      ] as const) {
        await upload(guest, host);
        await download(guest, host);
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
      await upload(plain);
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
