/** Two switches joined by a virtual cable: what Linux guests in a VLAN send each other crosses it tagged, with all that it leaves undone. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import type { QemuGuest } from '../peers/qemu.ts';
import { assertFilePasses, assertPing, ipOf, linuxGuest, sh, startAll, untilPing } from './linux-guests.ts';
import { SwitchProcess } from './switch-process.ts';

const [leftOut] = (await ensurePeers(['netns', 'qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

/** Bytes that no frame of this MTU has: a mean above it means that segments pass whole. */
const MORE_THAN_A_FRAME = 2000;

describe('two switches joined by a cable, and guests in VLANs', { skip, timeout: 280_000 }, () => {
  const lab = new NetLab();
  const dirs = [makeTempDir('trunk'), makeTempDir('trunk')];
  const switches: SwitchProcess[] = [];
  let guests: QemuGuest[] = [];

  before(async () => {
    const { near, far, netns } = lab.veth();
    for (const [i, iface] of [near, `${netns}:${far}`].entries()) {
      const sockets = [100, 200].flatMap((vlan) => ['--socket-file', `${join(dirs[i], `vlan${vlan}`)},vlan=${vlan}`]);
      const uplink = ['--vdev', `net_af_packet0,iface=${iface}`, '-p', '0x1'];
      switches.push(await SwitchProcess.start([...uplink, '--mergeable', '1', ...sockets], { dir: dirs[i] }));
    }
    const socket = (i: number, vlan: number) => join(dirs[i], `vlan${vlan}`);
    guests = [linuxGuest(1, socket(0, 100)), linuxGuest(2, socket(1, 100)), linuxGuest(3, socket(1, 200))];
    await startAll(guests);
  });
  after(async () => {
    await Promise.all(guests.map((guest) => guest.stop()));
    for (const running of switches) await running.kill();
    lab.remove();
    for (const dir of dirs) removeTempDir(dir);
  });

  test('guests of one VLAN reach each other across the cable, and nobody else', async () => {
    const [a, b, other] = guests;
    await untilPing(a, ipOf(2));
    await assertPing(b, ipOf(1), '-s 20000');
    for (const guest of [a, b]) {
      const { status } = await guest.sh(`ping -c 2 -W 1 ${ipOf(3)}`);
      assert.notEqual(status, 0, 'a guest of another VLAN answers');
    }
    assert.notEqual((await other.sh(`ping -c 2 -W 1 ${ipOf(2)}`)).status, 0, 'not even on the same switch');
  });

  test('TCP streams pass unharmed, both ways, and segments cross whole with their tag', async () => {
    const [a, b] = guests;
    const received = async () => {
      const files = ['bytes', 'packets'].map((what) => `/sys/class/net/eth0/statistics/rx_${what}`);
      return (await sh(b, `cat ${files.join(' ')}`)).trim().split('\n').map(Number);
    };
    const before = await received();
    await assertFilePasses(a, b, 2, 16);
    const [bytes, packets] = (await received()).map((now, i) => now - before[i]);
    assert.ok(bytes / packets > MORE_THAN_A_FRAME, `segments arrive cut, ${bytes / packets} bytes at a time`);
    await assertFilePasses(b, a, 1, 16);
  });

  test('no guest saw a bad checksum, and both switches end cleanly', async () => {
    for (const guest of guests.slice(0, 2)) {
      const [names, values] = (await sh(guest, 'grep ^Tcp: /proc/net/snmp')).trim().split('\n');
      const at = names.split(' ').indexOf('InCsumErrors');
      assert.equal(values.split(' ')[at], '0', guest.options.name);
    }
    for (const running of switches) assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});
