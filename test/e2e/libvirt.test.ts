/** Domains of a real libvirtd on the switch, rewritten for it by `qemu-wrap --libvirt`, or with qemu-wrap as their emulator. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { globSync, readFileSync, writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { rewriteDomain } from '../../src/launch/domain-xml.ts';
import { BRIDGE, Libvirt } from '../peers/libvirt.ts';
import { LibvirtGuest } from '../peers/libvirt-guest.ts';
import { ensurePeers } from '../peers/packages.ts';
import { waitUntil } from '../peers/process.ts';
import { assertPing, untilPing } from './guests.ts';
import { SwitchProcess } from './switch-process.ts';
import { macOf } from './traffic.ts';

const leftOut = (await ensurePeers(['qemu', 'libvirt'])).leftOut;
const skip = leftOut.length === 0 ? false : leftOut.map(({ why }) => why).join('; ');

const IP_A = '10.0.0.1';
const IP_B = '10.0.0.2';
const IP_C = '10.0.0.3';
/** For everything that takes a moment in a guest under emulation. */
const PATIENCE_MS = 30_000;

const QEMU_WRAP = fileURLToPath(new URL('../../src/cli/qemu-wrap.ts', import.meta.url));

const card = (type: string, mac: string, source = '') => `<interface type='${type}'>
      <mac address='${mac}'/>
      ${source}
      <model type='virtio'/>
    </interface>`;

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe('domains of libvirt on the switch', { skip, timeout: 240_000 }, () => {
  let running: SwitchProcess;
  let libvirt: Libvirt;
  let a: LibvirtGuest;
  let b: LibvirtGuest;
  let c: LibvirtGuest;

  /** A domain with qemu-wrap in QEMU's place, and else as people have it. */
  const wrapped = (name: string, ip: string, networkInterface: string) =>
    new LibvirtGuest(libvirt, {
      name,
      networkInterface,
      ip: `${ip}/24`,
      emulator: libvirt.path('qemu-wrap'),
      env: { VHOST_SWITCH_SOCKET: running.socket },
    });

  before(async () => {
    [running, libvirt] = await Promise.all([SwitchProcess.start(), Libvirt.start()]);
    writeFileSync(libvirt.path('qemu-wrap'), `#!/bin/sh\nexec ${process.execPath} ${QEMU_WRAP} "$@"\n`, {
      mode: 0o755,
    });
    a = wrapped('a', IP_A, card('user', macOf(1)));
    b = new LibvirtGuest(libvirt, { name: 'b', ip: `${IP_B}/24`, networkInterface: card('user', macOf(2)) });
    c = wrapped('c', IP_C, card('bridge', macOf(3), `<source bridge='${BRIDGE}'/>`));
    writeFileSync(libvirt.path('given.xml'), await b.xml());
    const args = ['--socket', running.socket, '--libvirt', libvirt.path('given.xml')];
    const { status, stdout, stderr } = spawnSync(process.execPath, [QEMU_WRAP, ...args], { encoding: 'utf8' });
    assert.equal(status, 0, stderr);
    await Promise.all([a.start(await a.xml()), b.start(stdout), c.start(await c.xml())]);
  });
  after(async () => {
    for (const guest of [a, b, c]) guest?.close();
    await libvirt?.stop();
    await running?.kill();
  });

  test('libvirt takes every rewritten domain of the golden tests', async () => {
    for (const file of globSync(new URL('../unit/domains/*.xml', import.meta.url).pathname)) {
      const given = readFileSync(file, 'utf8');
      if (given.includes('aarch64')) continue; // its emulator is not among the peer's packages
      const { xml } = rewriteDomain(given, { sockets: [running.socket], queues: 2, offloads: false });
      writeFileSync(libvirt.path('golden.xml'), xml);
      await libvirt.virsh('define', '--validate', libvirt.path('golden.xml'));
      await libvirt.virsh('undefine', /<name>(.*?)<\/name>/.exec(xml)![1]);
    }
  });

  test('the domains reach each other', async () => {
    await assertPing(a, IP_B);
    await assertPing(b, IP_C, '-s 1400');
    await assertPing(c, IP_A);
  });

  test('the switch is killed and comes back: all domains find it', async () => {
    const { dir } = running;
    running.signal('SIGKILL');
    await running.ended();
    // the folder is still the first one's to remove
    running = await SwitchProcess.start([], { dir });
    await untilPing(a, IP_B);
    await untilPing(a, IP_C);
    await assertPing(b, IP_C);
  });

  test('interfaces are unplugged and plugged while the other domains run', async () => {
    const unplug = async (guest: LibvirtGuest, type: string, number: number) => {
      const mark = running.mark;
      await guest.virsh('detach-interface', guest.name, type, '--mac', macOf(number), '--live');
      await waitUntil(
        'eth0 to go',
        async () => !(await guest.sh('ls /sys/class/net')).output.includes('eth0'),
        PATIENCE_MS,
      );
      await running.line(/Device has been removed/, mark);
      assert.equal((await guest.virsh('domiflist', guest.name)).trim(), '');
    };
    const plugged = async (guest: LibvirtGuest) => {
      await waitUntil(
        'eth0 to come',
        async () => (await guest.sh('ls /sys/class/net')).output.includes('eth0'),
        PATIENCE_MS,
      );
      assert.equal((await guest.sh('netup')).status, 0);
      await untilPing(guest, IP_A);
    };
    const asItWas = /<interface .*<\/interface>/s.exec(await b.virsh('dumpxml', 'b'))![0];
    writeFileSync(libvirt.path('interface.xml'), asItWas);
    await unplug(b, 'vhostuser', 2);
    await b.virsh('attach-device', 'b', libvirt.path('interface.xml'), '--live');
    await plugged(b);
    // qemu-wrap shares the memory of its domains: libvirt can plug what it would have made
    await unplug(c, 'bridge', 3);
    const how = ['--source-mode', 'client', '--model', 'virtio', '--mac', macOf(3), '--live'];
    await c.virsh('attach-interface', 'c', 'vhostuser', running.socket, ...how);
    await plugged(c);
    await assertPing(a, IP_B);
  });

  test('domains are saved and restored, and go on where they were', async () => {
    for (const guest of [a, b]) {
      assert.equal((await guest.sh('echo here > /tmp/where; sleep 1000 & echo $! > /tmp/sleeper')).status, 0);
      const mark = running.mark;
      const file = libvirt.path(`${guest.name}.saved`);
      await guest.virsh('save', guest.name, file);
      assert.equal(await guest.state(), 'shut off');
      await running.line(/Device has been removed/, mark);
      await guest.virsh('restore', file);
      assert.equal(await guest.state(), 'running');
      await untilPing(guest, IP_C);
      const { output } = await guest.sh('cat /tmp/where; kill -0 $(cat /tmp/sleeper) && echo alive');
      assert.equal(output, 'here\nalive\n');
    }
    await assertPing(a, IP_B);
  });

  test('a domain is suspended and resumed', async () => {
    await c.virsh('suspend', 'c');
    assert.equal(await c.state(), 'paused');
    await assertPing(a, IP_B);
    await c.virsh('resume', 'c');
    await untilPing(a, IP_C);
  });

  test('destroy ends QEMU, with qemu-wrap as the emulator too', async () => {
    for (const guest of [b, c]) {
      const pid = libvirt.qemuOf(guest.name);
      const mark = running.mark;
      await guest.virsh('destroy', guest.name);
      await running.line(/Device has been removed/, mark);
      assert.equal(await guest.state(), 'shut off');
      assert.ok(!alive(pid), 'QEMU is gone');
    }
    assert.equal(await a.state(), 'running');
  });

  test('nothing is left behind', async () => {
    const processes = libvirt.processes();
    assert.ok(processes.length >= 3, `only ${processes}`);
    await libvirt.stop();
    assert.deepEqual(processes.filter(alive), []);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});
