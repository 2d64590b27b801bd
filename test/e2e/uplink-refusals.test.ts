/** Uplinks that cannot be had: the switch says in one sentence why, and what to do, and leaves nothing behind. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ip, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { MAIN, runSwitch, SwitchProcess } from './switch-process.ts';

const [leftOut] = (await ensurePeers(['netns'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

describe('an uplink that cannot be had', { skip, timeout: 120_000 }, () => {
  const lab = new NetLab();
  const dir = makeTempDir('refusals');
  let near: string;
  before(() => {
    near = lab.veth().near;
  });
  after(() => {
    lab.remove();
    removeTempDir(dir);
  });

  /** Runs the switch, which must end with status 1, one sentence, and no socket left. */
  function refused(sentence: RegExp, ...ports: readonly string[]): void {
    const { status, stderr } = runSwitch([...ports, '--', '-p', '0x1', '--socket-file', join(dir, 'sock')]);
    assert.equal(status, 1, stderr);
    assert.match(stderr, sentence);
    assert.match(stderr, /^vhost-switch: [^\n]+\n$/);
    assert.deepEqual(readdirSync(dir), []);
  }

  test('no such interface, no such namespace, no Ethernet', () => {
    refused(/net_af_packet0: there is no network interface nope; ip link lists/, '--vdev', 'net_af_packet0,iface=nope');
    refused(/there is no network namespace nope; ip netns lists/, '--vdev', 'net_af_packet0,iface=nope:eth0');
    refused(/net_af_packet3: lo carries no Ethernet frames/, '--vdev', 'net_af_packet3,iface=lo');
  });

  test('no such card', () => {
    refused(/-a 0000:ff:1f\.7: there is no such PCI device; lspci -D lists/, '-a', 'ff:1f.7');
  });

  test('a TAP interface that is in use, and one that is none', async () => {
    const netns = lab.namespace();
    const vdev = ['--vdev', `net_tap0,iface=${netns}:tap0`];
    const running = await SwitchProcess.start([...vdev, '-p', '1']);
    refused(/net_tap0: tap0 in network namespace \w+ is used by another program/, ...vdev);
    await running.stop();
    refused(RegExp(`net_tap0: ${near} is no TAP interface`), '--vdev', `net_tap0,iface=${near}`);
  });

  test('rings whose sizes do not go together', () => {
    for (const [sizes, sentence] of [
      ['framesz=100', /framesz=100: net_af_packet0: framesz must be a multiple of 16, and \d+ at least/],
      [
        'blocksz=5000',
        /blocksz=5000: net_af_packet0: blocksz must be a multiple of 4096 and of framesz, which is 2048/,
      ],
      ['framecnt=2000000', /framecnt=2000000: net_af_packet0: framecnt makes a ring of more than 512 MiB/],
    ] as const) {
      const { status, stderr } = runSwitch(['--vdev', `net_af_packet0,iface=${near},${sizes}`, '-p', '1'], dir);
      assert.equal(status, 2, stderr);
      assert.match(stderr, sentence);
      assert.deepEqual(readdirSync(dir), []);
    }
  });

  test('without the right the sentence names it', () => {
    const open = join(dir, 'open');
    mkdirSync(open, { mode: 0o777 });
    for (const [vdev, right] of [
      [`net_af_packet0,iface=${near}`, 'CAP_NET_RAW'],
      [`net_tap0,iface=${near}t`, 'CAP_NET_ADMIN'],
      [`net_af_packet0,iface=${lab.namespace()}:lo`, 'CAP_SYS_ADMIN'],
    ]) {
      const drop = [
        '--bounding-set=-all',
        '--inh-caps=-all',
        '--no-new-privs',
        '--reuid=65534',
        '--regid=65534',
        '--clear-groups',
      ];
      const command = [...drop, process.execPath, MAIN, '--vdev', vdev, '-p', '1'];
      const { status, stderr } = spawnSync('setpriv', command, { encoding: 'utf8', cwd: open, timeout: 20_000 });
      assert.equal(status, 1, stderr);
      const name = vdev.split(',')[0];
      const how = `run as root, or with AmbientCapabilities=${right} in a systemd unit`;
      assert.match(
        stderr,
        RegExp(`^vhost-switch: ${name}: using \\S.* takes the right ${right}: ${how}, or give it to Node`),
      );
      assert.deepEqual(readdirSync(open), []);
    }
  });

  test('a persistent TAP interface stays, and has the address that it was given', async () => {
    const netns = lab.namespace();
    const vdev = `net_tap2,iface=${netns}:keep,mac=fixed,persist`;
    const running = await SwitchProcess.start(['--vdev', vdev, '-p', '1']);
    assert.match(running.output, /uplink net_tap2: port 64, MAC address 00:64:74:61:70:02/);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
    assert.match(ip('-n', netns, 'link', 'show', 'keep'), /00:64:74:61:70:02/);
    const again = await SwitchProcess.start(['--vdev', `net_tap2,iface=${netns}:keep,persist=0`, '-p', '1']);
    assert.equal(await again.stop(), 'ended with status 0', again.output);
    assert.throws(() => ip('-n', netns, 'link', 'show', 'keep'), /does not exist/);
  });
});
