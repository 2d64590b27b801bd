/** The doctor as a command, on this machine: with real rights, limits, mounts, sockets and QEMUs. Its checks one by one are in test/unit. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { doctorHelp, parseDoctor } from '../../src/cli/doctor.ts';
import { examine } from '../../src/doctor/doctor.ts';
import type { Finding } from '../../src/doctor/finding.ts';
import { askMonitor } from '../../src/doctor/monitor.ts';
import { isHealthy } from '../../src/doctor/report.ts';
import { MachineSource } from '../../src/doctor/source.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir, waitUntil } from '../peers/process.ts';
import { MAIN, SwitchProcess } from './switch-process.ts';

const [leftOut] = (await ensurePeers(['qemu'])).leftOut;
const noQemu = leftOut === undefined ? false : leftOut.why;
const notRoot = process.getuid?.() === 0 ? false : 'taking rights away, mounts and other users take root';

const PATIENCE_MS = 30_000;
const NOBODY = 65534;

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the doctor to its end. */
function doctor(args: readonly string[], launcher: readonly string[] = []): Outcome {
  const [command, ...rest] = [...launcher, process.execPath, MAIN, 'doctor', ...args];
  const { status, stdout, stderr } = spawnSync(command, rest, { encoding: 'utf8', timeout: PATIENCE_MS });
  return { status, stdout, stderr };
}

/** Findings, and the exit status that they make. */
interface Found {
  readonly status: number;
  readonly all: readonly Finding[];
  of(check: Finding['check']): readonly Finding[];
}

const foundOf = (all: readonly Finding[]): Found => ({
  ...{ all, status: isHealthy(all) ? 0 : 1 },
  of: (check) => all.filter((one) => one.check === check),
});

/** What the command finds. @param launcher a program and its arguments that replaces itself by the doctor */
function findingsBy(launcher: readonly string[], args: readonly string[] = []): Found {
  const { status, stdout, stderr } = doctor([...args, '--json'], launcher);
  assert.equal(stderr, '');
  const report = JSON.parse(stdout) as { healthy: boolean; findings: Finding[] };
  assert.equal(status, report.healthy ? 0 : 1);
  return foundOf(report.findings);
}

/** The same in this process, which saves starting one. */
const findings = async (...args: string[]): Promise<Found> =>
  foundOf(await examine(new MachineSource(), parseDoctor(args)));

/** The one finding of a check, with its severity in front. */
function only({ of }: Found, check: Finding['check']): string {
  const found = of(check);
  assert.equal(found.length, 1, JSON.stringify(found));
  return `${found[0].severity}: ${found[0].what}`;
}

const WITHOUT_RIGHTS = ['setpriv', '--bounding-set=-all', '--inh-caps=-all'];

describe('vhost-switch doctor, the command', { timeout: 240_000 }, () => {
  test('--help exits 0', () => {
    const { status, stdout, stderr } = doctor(['--help']);
    assert.deepEqual([status, stdout, stderr], [0, doctorHelp(), '']);
  });

  test('it is short when told nothing, and long with --all; both say how many things were found', () => {
    const brief = doctor([]);
    const full = doctor(['--all']);
    assert.deepEqual([brief.stderr, full.stderr], ['', '']);
    assert.match(brief.stdout, /\d+ fine \(--all shows them\)\n$/);
    assert.match(full.stdout, /^ {2}ok: Linux .* \[kernel\.version\]$/m);
    assert.match(full.stdout, /\d+ fine\n$/);
    assert.ok(full.stdout.length > brief.stdout.length);
  });

  test('what makes no sense is refused in one sentence with exit status 2', () => {
    const { status, stdout, stderr } = doctor(['--qemu', '1', '--domain', 'web']);
    assert.deepEqual([status, stdout], [2, '']);
    assert.match(
      stderr,
      /^vhost-switch doctor: --domain: not together with --qemu[^\n]+\nTry 'vhost-switch doctor --help'\.\n$/,
    );
  });

  test('a switch is started by its options only: the word doctor elsewhere is no subcommand', () => {
    const { status, stderr } = spawnSync(process.execPath, [MAIN, '-v', 'doctor'], { encoding: 'utf8' });
    assert.equal(status, 2);
    assert.match(stderr, /^vhost-switch: doctor: belongs to no option/);
  });
});

describe('vhost-switch doctor, on a machine with a fault', { skip: notRoot, timeout: 240_000 }, () => {
  test('without rights: each kind of port says what it lacks; a kind that must work is an error', () => {
    const found = findingsBy(WITHOUT_RIGHTS);
    assert.match(only(found, 'rights.net_af_packet'), /^warning: .*lacks CAP_NET_RAW$/);
    assert.match(only(found, 'rights.namespace'), /^warning: .*lacks CAP_SYS_ADMIN$/);
    assert.match(found.of('rights.net_tap')[0].what, /lacks CAP_NET_ADMIN$/);
    assert.match(found.of('rights.net_af_xdp')[0].what, /lacks CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF$/);
    const must = findingsBy(WITHOUT_RIGHTS, ['--port', 'namespace']);
    assert.equal(must.status, 1);
    assert.match(only(must, 'rights.namespace'), /^error: /);
  });

  test('the command that mends missing rights does', () => {
    const [line] = findingsBy(WITHOUT_RIGHTS).of('rights.net_af_packet')[0].mend?.slice(1) ?? [];
    const words = line.replace('sudo ', '').replaceAll('"$USER"', String(NOBODY)).split(' ');
    assert.deepEqual(words.slice(-2), ['vhost-switch', '…']);
    const command = `grep CapEff /proc/self/status`.split(' ');
    const [program, ...rest] = words
      .slice(0, -2)
      .filter((word) => word !== '--init-groups')
      .concat('--clear-groups', command);
    const { stdout, stderr } = spawnSync(program, rest, { encoding: 'utf8' });
    assert.match(stdout, /^CapEff:\s*0*2000$/m, stderr);
  });

  test('little memory may be locked', async () => {
    const found = findingsBy(['prlimit', '--memlock=65536', ...WITHOUT_RIGHTS]);
    assert.match(only(found, 'limits.memlock'), /^warning: this user may lock 64 KiB of memory/);
    assert.match(only(await findings(), 'limits.memlock'), /^ok: /);
  });

  test('address space is limited', () => {
    const found = findingsBy(['prlimit', `--as=${48 * 2 ** 30}`]);
    assert.match(only(found, 'limits.address-space'), /^error: address space is limited to 48 GiB/);
    assert.equal(found.status, 1);
  });

  test('/dev/net/tun, the kernel and its command line are not as they should be', (t) => {
    const dir = makeTempDir('doctor');
    t.after(() => removeTempDir(dir));
    writeFileSync(join(dir, 'cmdline'), 'quiet hugepagesz=2M hugepages=1000000000\n');
    writeFileSync(join(dir, 'release'), '5.10.0-doctor\n');
    const mounts = [
      'mount -t tmpfs none /dev/net',
      `mount --bind ${dir}/cmdline /proc/cmdline`,
      `mount --bind ${dir}/release /proc/sys/kernel/osrelease`,
    ];
    const found = findingsBy(['unshare', '--mount', 'sh', '-c', `${mounts.join(' && ')} && exec "$@"`, 'sh']);
    assert.match(only(found, 'rights.net_tap'), /^warning: \/dev\/net\/tun is not there/);
    assert.match(only(found, 'hugepages.boot'), /^warning: the kernel was asked for 1000000000 hugepages of 2 MiB/);
    assert.match(only(found, 'kernel.version'), /^warning: Linux 5\.10\.0-doctor cannot steer/);
  });

  test('in a user namespace of its own', () => {
    const found = findingsBy(['unshare', '--user', '--map-root-user']);
    const whats = found.of('rights.net_af_xdp').map(({ what }) => what);
    assert.ok(
      whats.includes('this user namespace is not the first one: its rights do not count for bpf(2)'),
      whats.join(),
    );
  });

  test('an lcore on a CPU that is not there', async () => {
    const found = await findings('-l', '1023');
    assert.match(only(found, 'cpu.allowed'), /^error: lcores are to run on CPU 1023, but may run on /);
  });
});

describe('vhost-switch doctor, on a socket', { timeout: 240_000 }, () => {
  let dir: string;
  const switches: SwitchProcess[] = [];
  const start = async (args: readonly string[] = []) => {
    const started = await SwitchProcess.start(args, { dir });
    switches.push(started);
    return started;
  };
  before(() => {
    dir = makeTempDir('doctor');
  });
  after(async () => {
    for (const one of switches) await one.kill();
    removeTempDir(dir);
  });

  test('a live one, a stale one, one that is not there; the switch does not notice', async () => {
    const running = await start(['--dev-basename', 'relative']);
    const mark = running.mark;
    for (const name of ['sock', 'relative']) {
      const found = await findings('--socket', join(dir, name));
      const path = join(dir, name);
      assert.equal(only(found, 'socket.listener'), `ok: vhost-switch.ts (pid ${running.pid}) listens on ${path}`);
      assert.match(only(found, 'socket.rights'), /^ok: .* mode 0660$/);
    }
    assert.equal(running.since(mark), '');
    await running.kill();
    const stale = await findings('--socket', join(dir, 'sock'));
    assert.match(only(stale, 'socket.listener'), /^error: nobody listens on /);
    assert.equal(stale.status, 1);
    rmSync(join(dir, 'sock'));
    assert.match(only(await findings('--socket', join(dir, 'sock')), 'socket.file'), /^error: .*\/sock is not there/);
    writeFileSync(join(dir, 'file'), '');
    assert.match(only(await findings('--socket', join(dir, 'file')), 'socket.file'), /^error: .* is no socket/);
  });

  test('two switches on one path, and everybody may connect', async () => {
    const first = await start();
    rmSync(first.socket);
    const second = await start(['--socket-mode', '0666']);
    const found = await findings('--socket', second.socket);
    const said = only(found, 'socket.listener');
    assert.match(said, /^error: 2 sockets are bound to /);
    for (const { pid } of [first, second]) assert.ok(said.includes(`(pid ${pid})`), said);
    assert.match(only(found, 'socket.rights'), /^warning: everybody may connect: /);
    await Promise.all([first.stop(), second.stop()]);
  });

  test('the CPU of an lcore is found by the socket', async (t) => {
    const allowed = /^Cpus_allowed_list:\s*(\d+)[-,]/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
    if (allowed === undefined)
      return t.skip('this machine has one CPU only: an lcore cannot be told from other threads');
    const running = await start(['-l', allowed]);
    const found = await findings('--socket', running.socket);
    const isolated = readFileSync('/sys/devices/system/cpu/isolated', 'utf8').trim();
    const expected = isolated === '' ? `warning: lcores share CPU ${allowed} with other programs` : 'isolated CPUs';
    assert.ok(only(found, 'cpu.isolation').includes(expected), only(found, 'cpu.isolation'));
    assert.equal(found.of('cpu.siblings').length, 1);
    await running.stop();
  });
});

describe('vhost-switch doctor, on a guest in QEMU', { skip: noQemu, timeout: 240_000 }, () => {
  let dir: string;
  let running: SwitchProcess;
  const guests: PeerProcess[] = [];
  const path = (name: string) => join(dir, name);

  before(async () => {
    dir = makeTempDir('doctor-qemu');
    running = await SwitchProcess.start();
  });
  after(async () => {
    for (const one of guests) await one.stop();
    await running.kill();
    removeTempDir(dir);
  });

  /** A QEMU that is stopped before its first instruction, once all is set up: it answers on its monitor. */
  async function qemu(
    args: readonly string[],
    { launcher = [] as string[], answers = true } = {},
  ): Promise<PeerProcess> {
    rmSync(path('qmp'), { force: true });
    const base = ['-S', '-accel', 'tcg', '-m', '64', '-M', 'q35', '-nodefaults', '-no-user-config', '-display', 'none'];
    const monitor = ['-qmp', `unix:${path('qmp')},server=on,wait=off`];
    const [command, ...rest] = [...launcher, 'qemu-system-x86_64', ...base, ...monitor, ...args];
    const guest = new PeerProcess({ name: 'QEMU', command, args: rest, cwd: dir });
    guests.push(guest);
    const isUp = async () => existsSync(path('qmp')) && (!answers || (await askMonitor(path('qmp'))) !== undefined);
    await guest.waitUntil('its monitor', isUp, 60_000);
    return guest;
  }

  const backend = (kind: string, more = '') => [
    '-object',
    `${kind},id=mem,size=64M${more}`,
    '-machine',
    'memory-backend=mem',
  ];
  const network = (socket: string, chardev = '', device = '') => [
    ...['-chardev', `socket,id=c0,path=${socket}${chardev}`, '-netdev', 'vhost-user,id=n0,chardev=c0'],
    ...['-device', `virtio-net-pci,netdev=n0,vectors=0${device}`],
  ];

  test('a good guest has nothing in the way but emulation', async () => {
    const guest = await qemu([
      ...backend('memory-backend-memfd', ',share=on'),
      ...network(running.socket, ',reconnect=1'),
    ]);
    const found = await findings('--qemu', String(guest.pid));
    const troubles = found.all.filter(
      ({ check, severity }) => /^(guest|memory|socket)\./.test(check) && severity !== 'ok',
    );
    assert.deepEqual(
      troubles.map(({ check }) => check),
      ['guest.accelerator'],
    );
    assert.match(only(found, 'memory.shared'), /^ok: 64 MiB of guest memory are shared: \/memfd:memory-backend-memfd/);
    assert.match(only(found, 'memory.seals'), /SEAL, SHRINK, GROW/);
    assert.match(found.of('guest.version').at(-1)?.what ?? '', /^QEMU \d+\.\d+\.\d+$/);
    assert.match(only(found, 'socket.listener'), new RegExp(`\\(pid ${running.pid}\\) listens on `));
    await guest.stop();
  });

  const broken: [name: string, args: string[], what: RegExp][] = [
    ['no memory backend', [], /^error: the guest has 64 MiB of memory of its own: no shared memory backend/],
    [
      'memfd without sharing',
      backend('memory-backend-memfd', ',share=off'),
      /^error: .*mem \(memory-backend-memfd, 64 MiB\) is private/,
    ],
    [
      'a file without share=on',
      backend('memory-backend-file', ',mem-path=/dev/shm'),
      /^error: .*mem \(memory-backend-file, 64 MiB\) is private/,
    ],
    ['-mem-path alone', ['-mem-path', '/dev/shm', '-mem-prealloc'], /^error: .* in \/dev\/shm, private/],
    [
      'shared memory without a file',
      backend('memory-backend-ram', ',share=on'),
      /^error: .* no file that the switch could map/,
    ],
  ];
  for (const [name, args, what] of broken)
    test(`private memory: ${name}`, async () => {
      const guest = await qemu(args);
      const found = await findings('--qemu', String(guest.pid));
      assert.equal(found.status, 1);
      assert.match(only(found, 'memory.shared'), what);
      await guest.stop();
    });

  test('what mends private memory does', async () => {
    const first = await qemu([]);
    const [mend = ''] = (await findings('--qemu', String(first.pid))).of('memory.shared')[0].mend ?? [];
    await first.stop();
    const second = await qemu([...mend.replace('start QEMU with: ', '').split(' '), ...network(running.socket)]);
    const found = await findings('--qemu', String(second.pid));
    assert.match(only(found, 'memory.shared'), /^ok: /);
    assert.match(only(found, 'guest.reconnect'), /^warning: the interface n0 connects once and never again/);
    await second.stop();
  });

  test('a domain by its name; a monitor that somebody else has holds nothing up', async () => {
    const name = `doctor-${process.pid}`;
    const guest = await qemu(['-name', `guest=${name}`, ...backend('memory-backend-memfd')]);
    const other = connect(path('qmp'));
    let greeted = '';
    other.on('data', (data) => {
      greeted += data;
    });
    await waitUntil('the greeting', () => greeted.includes('QMP'), PATIENCE_MS);
    const found = await findings('--domain', name);
    assert.match(only(found, 'guest.process'), new RegExp(`^ok: ${name} is QEMU, process ${guest.pid}`));
    assert.match(found.of('guest.version').at(-1)?.what ?? '', /^QEMU \d+\.\d+/);
    assert.match(only(found, 'guest.interface'), /^warning: QEMU was started without a vhost-user interface/);
    other.destroy();
    await guest.stop();
    assert.match(only(await findings('--domain', name), 'guest.process'), /^error: no domain /);
  });

  test('without rights it says what it could not see, and is healthy', { skip: notRoot }, async () => {
    const guest = await qemu([...backend('memory-backend-memfd'), ...network(running.socket, ',reconnect=1')]);
    const found = findingsBy(WITHOUT_RIGHTS, ['--qemu', String(guest.pid)]);
    assert.equal(found.status, 0);
    const unseen = found.all.filter(({ severity }) => severity === 'unseen').map(({ check }) => check);
    assert.deepEqual(unseen, ['guest.process', 'memory.shared', 'memory.seals', 'socket.listener']);
    await guest.stop();
  });

  test('queues without mq=on, and packed rings', async () => {
    const more = network(running.socket, ',reconnect=1', ',packed=on').map((word) =>
      word.replace('chardev=c0', 'chardev=c0,queues=2'),
    );
    const guest = await qemu([...backend('memory-backend-memfd'), ...more]);
    const found = await findings('--qemu', String(guest.pid));
    assert.match(
      only(found, 'guest.queues'),
      /^warning: the interface n0 has 2 queue pairs, but its card has not mq=on/,
    );
    await guest.stop();
  });

  test("QEMU's user may not enter the folder, then not connect, then may", { skip: notRoot }, async () => {
    chmodSync(dir, 0o777);
    chmodSync(running.dir, 0o700);
    const launcher = ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'];
    const args = [...backend('memory-backend-memfd'), ...network(running.socket, ',reconnect=1')];
    const guest = await qemu([...args, '-pidfile', path('pid')], { launcher, answers: false });
    const said = async () => {
      const found = await findings('--qemu', String(guest.pid));
      return found.of('socket.rights').map(({ severity, what }) => `${severity}: ${what}`);
    };
    assert.match((await said())[0], /^error: QEMU runs as \w+, who may not enter /);
    chmodSync(running.dir, 0o755);
    assert.match((await said())[0], /^error: QEMU runs as \w+, who may not connect: .* mode 0660$/);
    chmodSync(running.socket, 0o666);
    assert.match((await said()).join(), /^warning: everybody may connect/);
    await guest.stop();
  });
});
