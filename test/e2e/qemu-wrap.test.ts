/** qemu-wrap as a program: what it becomes, and guests on the switch by command lines that know of none. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../peers/process.ts';
import { QemuGuest, type QemuGuestOptions } from '../peers/qemu.ts';
import { assertFeature, assertPing, FEATURE, ipOf, startAll } from './linux-guests.ts';
import { SwitchProcess } from './switch-process.ts';
import { macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const WRAP = fileURLToPath(new URL('../../src/cli/qemu-wrap.ts', import.meta.url));

/** Runs qemu-wrap to its end. */
function wrap(args: readonly string[], env: Record<string, string> = {}) {
  const options = { encoding: 'utf8', timeout: 60_000, env: { ...process.env, ...env } } as const;
  const { status, stdout, stderr } = spawnSync(process.execPath, [WRAP, ...args], options);
  return { status, stdout, stderr };
}

describe('qemu-wrap becomes another program', () => {
  let dir: string;
  /** a program in place of QEMU that tells what it was given */
  let probe: string;

  before(() => {
    dir = makeTempDir('wrap');
    probe = join(dir, 'probe');
    const script = `#!/bin/sh
for word; do echo "word $word"; done
for fd in /proc/$$/fd/*; do echo "fd \${fd##*/} $(readlink "$fd") $(grep flags /proc/$$/fdinfo/\${fd##*/})"; done
grep -E '^(SigBlk|SigIgn|CapEff|Umask|Cpus_allowed)' /proc/self/status
cat /proc/$$/limits
env | sort
`;
    writeFileSync(probe, script, { mode: 0o755 });
  });
  after(() => removeTempDir(dir));

  test('which finds everything as if it had been started without', () => {
    // files below and above 16, where Node makes a difference; a device that Node has, too; limits that Node raises
    const shell = `ulimit -S -n 200; umask 027; exec 5<"$0" 8</dev/null 9>>"${dir}/nine" 21<"$0"; "$@"; exit $?`;
    const args = ['-S', '-add-fd', 'set=1,fd=8', '-name', "it's, with words"];
    const run = (command: readonly string[]) => {
      const options = { encoding: 'utf8', timeout: 60_000 } as const;
      const { status, stdout, stderr } = spawnSync('bash', ['-c', shell, probe, ...command], options);
      assert.equal(status, 0, stderr);
      // the two runs have each their own
      return stdout.replace(/(pipe|socket):\[\d+\]/g, '$1').replace(/^_=.*\n/m, '');
    };
    const direct = run([probe, ...args]);
    assert.match(direct, /^fd 21 .*\/probe/m);
    assert.match(direct, /^Max open files +200 /m);
    assert.equal(run([process.execPath, WRAP, probe, ...args]), direct);
  });

  test('whose exit status is its own', () => {
    const failing = join(dir, 'failing');
    writeFileSync(failing, '#!/bin/sh\nexit 37\n', { mode: 0o755 });
    assert.equal(wrap([failing]).status, 37);
    assert.equal(wrap(['--qemu', failing, '-S']).status, 37);
    assert.equal(wrap(['-S'], { VHOST_SWITCH_QEMU: failing }).status, 37);
  });

  test('with the device of --cuse open, one for each card', () => {
    const device = join(dir, 'device');
    writeFileSync(device, '');
    const line = ['-m', '1G', '-nic', 'tap,model=virtio,ifname=t0', '-nic', 'tap,model=virtio,ifname=t1'];
    const { status, stdout, stderr } = wrap(['--cuse', device, probe, ...line]);
    assert.equal(status, 0, stderr);
    const fds = [...stdout.matchAll(/^word tap,ifname=t\d,vhost=on,vhostfd=(\d+),model=virtio$/gm)].map(([, fd]) => fd);
    assert.equal(new Set(fds).size, 2, stdout);
    for (const fd of fds) assert.match(stdout, new RegExp(`^fd ${fd} ${device} flags:\\s+0100002$`, 'm'));
    const missing = wrap(['--cuse', join(dir, 'none'), probe, ...line]);
    assert.equal(missing.status, 1);
    assert.match(
      missing.stderr,
      /^qemu-wrap: --cuse .*\/none: there is no such device; vhost-switch --vhost cuse makes it/,
    );
  });

  test('unless it is told wrong', () => {
    const cases: [string[], number, RegExp][] = [
      [['--sockt', 'x'], 2, /--sockt: unknown option; the nearest is --socket\nTry 'qemu-wrap --help'/],
      [['--socket'], 2, /--socket: needs a value/],
      [['--queues', '0', probe], 2, /--queues: invalid/],
      [['--socket', 's', '--cuse', 'd', probe], 2, /--cuse: cannot be given together with --socket/],
      [
        ['/nowhere/qemu', '-S'],
        1,
        /^qemu-wrap: \/nowhere\/qemu: no such program; give QEMU's name first, or by --qemu\n$/,
      ],
      [[probe, '-device', 'virtio-net-pci'], 2, /--socket: is missing/],
      [['--socket', 's', probe, '-m', 'much', '-nic', 'user,model=virtio'], 2, /-m much: is no size of memory/],
      [['--socket', 's', probe, '-device', '{"driver":'], 2, /is no JSON/],
    ];
    for (const [args, expected, says] of cases) {
      const { status, stderr } = wrap(args);
      assert.equal(status, expected, stderr);
      assert.match(stderr, says);
    }
    assert.match(wrap(['-S'], { VHOST_SWITCH_QUEUES: 'many' }).stderr, /^qemu-wrap: VHOST_SWITCH_QUEUES: invalid/);
  });

  test('or asked only: --help, --version, --print', () => {
    const help = wrap(['--help']);
    assert.deepEqual([help.status, help.stderr], [0, '']);
    assert.match(help.stdout, /^usage: qemu-wrap/);
    for (const line of help.stdout.split('\n')) assert.ok(line.length <= 100, line);
    assert.match(wrap(['--version']).stdout, /^vhost-switch \d/);
    const { status, stdout } = wrap(['--print', probe, '-nic', 'user,model=virtio'], {
      VHOST_SWITCH_SOCKET: '/run/a:/run/b',
    });
    assert.equal(status, 0);
    assert.match(stdout, /^\S+\/probe \\\n {2}-chardev socket,id=vhost-switch0,path=\/run\/a,reconnect=1 \\\n/);
  });
});

describe('guests started by qemu-wrap from command lines without a switch', { skip, timeout: 200_000 }, () => {
  let running: SwitchProcess;
  let guests: QemuGuest[];

  const plainGuest = (
    n: number,
    launcher: readonly string[],
    args: readonly string[],
    kernelArgs: readonly string[],
  ) => {
    const options: QemuGuestOptions = { name: `g${n}`, ip: `${ipOf(n)}/24`, memory: 'own', launcher, args, kernelArgs };
    return new QemuGuest(options);
  };

  before(async () => {
    running = await SwitchProcess.start(['--mergeable', '1']);
    const socket = running.socket;
    // QEMU 7.2 under TCG crashes on MSI-X with vhost-user: none of them in the guests, in one way and the other
    const net = ['-netdev', 'user,id=n0', '-device', `virtio-net-pci,netdev=n0,mac=${macOf(1)},vectors=0`];
    const numa = ['-object', 'memory-backend-ram,id=m0,size=192M', '-numa', 'node,memdev=m0'];
    const nic = ['-nic', `tap,ifname=nowhere,model=virtio,mac=${macOf(2)}`];
    guests = [
      plainGuest(1, [process.execPath, WRAP, '--socket', socket], net, []),
      plainGuest(2, ['env', `VHOST_SWITCH_SOCKET=${socket}`, process.execPath, WRAP], [...numa, ...nic], ['pci=nomsi']),
    ];
    await startAll(guests);
  });
  after(async () => {
    await Promise.all((guests ?? []).map((guest) => guest.stop()));
    await running?.kill();
  });

  test('the process is QEMU, in one piece', () => {
    for (const { pid } of guests) assert.match(readlinkSync(`/proc/${pid}/exe`), /\/qemu-system-x86_64$/);
  });

  test('they reach each other by the switch, with all offloads', async () => {
    const [a, b] = guests;
    await assertPing(a, ipOf(2), '-s 1400');
    await assertPing(b, ipOf(1));
    for (const guest of guests) await assertFeature(guest, FEATURE.hostTso4);
    assert.match(running.output, new RegExp(`MAC_ADDRESS ${macOf(2)} and VLAN_TAG \\d+ registered`));
  });

  test('SIGTERM ends QEMU as it does without qemu-wrap', async () => {
    const [a] = guests;
    process.kill(a.pid, 'SIGTERM');
    await running.line(/Device has been removed/, 0, 30_000);
    await running.until('the end of QEMU', () => a.endedHow !== undefined, 30_000);
    assert.equal(a.endedHow, 'ended with status 0', a.said);
    assert.match(a.said, /terminating on signal 15/);
  });
});

describe('qemu-wrap and the QEMU that is here', { skip, timeout: 120_000 }, () => {
  test('finds it, and passes questions on', () => {
    const { status, stdout } = wrap(['-version']);
    assert.equal(status, 0);
    assert.match(stdout, /^QEMU emulator version/);
    const wrong = wrap(['-no-such-option']);
    assert.equal(wrong.status, 1);
    assert.match(wrong.stderr, /-no-such-option: invalid option/);
  });

  test('answers libvirt, which asks in the background', async () => {
    const dir = makeTempDir('wrap');
    const monitor = `unix:${join(dir, 'm')},server=on,wait=off`;
    const line = ['-S', '-no-user-config', '-nodefaults', '-nographic', '-machine', 'none,accel=tcg', '-qmp', monitor];
    try {
      const daemon = wrap([...line, '-pidfile', join(dir, 'pid'), '-daemonize']);
      assert.deepEqual(daemon, { status: 0, stdout: '', stderr: '' });
    } finally {
      const killer = new PeerProcess({ name: 'kill', command: 'sh', args: ['-c', `kill $(cat ${join(dir, 'pid')})`] });
      assert.equal(await killer.ended, 'ended with status 0');
      removeTempDir(dir);
    }
  });
});
