import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseCommandLine } from '../../src/cli/command-line.ts';
import type { ConfigError } from '../../src/errors.ts';

const eal = (...args: string[]) => parseCommandLine([...args, '--']);
const fails = (code: ConfigError['code'], message: RegExp, ...args: string[]) =>
  assert.throws(() => eal(...args), { code, message });
/** Lcores and CPUs of the main thread and of the polling ones, in one line. */
const cores = (...args: string[]) => {
  const { main, workers } = eal(...args).cores!;
  return [main, ...workers].map(({ lcore, cpus }) => `${lcore}@${cpus}`).join(' ');
};

test('EAL: without core options the caller chooses the cores', () => {
  assert.equal('cores' in eal(), false);
});

test('EAL: the lowest lcore is the main one and the others poll', () => {
  for (const args of [
    ['-c', '6'],
    ['-c0x6'],
    ['-l1,2'],
    ['-l', ' 2 , 1 '],
    ['-l', '1-2'],
    ['--lcores', '1,2'],
    ['--lc=1-2'],
  ]) {
    assert.equal(cores(...args), '1@1 2@2', args.join(' '));
    assert.deepEqual(eal(...args).notes, []);
  }
});

test('EAL: one core alone is enough and polls as well', () => {
  assert.equal(cores('-l', '3'), '3@3 3@3');
  assert.equal(cores('--lcores', '0@5', '--main-lcore', '0'), '0@5 0@5');
});

test('EAL: --main-lcore moves the main thread, and the others poll', () => {
  assert.equal(cores('-l', '1-2', '--main-lcore', '2'), '2@2 1@1');
  fails('CONFIG_CONFLICT', /^--main-lcore 4: not one of the lcores of -l 0-3$/, '-l', '0-3', '--main-lcore', '4');
  fails('CONFIG_INVALID_VALUE', /0\.\.1023/, '-l', '0-3', '--main-lcore', '1024');
  assert.deepEqual(eal('--main-lcore', '1').notes, ['--main-lcore 1: no effect without -c, -l or --lcores']);
});

test('EAL: every lcore but the main one polls', () => {
  assert.equal(cores('-c', 'f'), '0@0 1@1 2@2 3@3');
  assert.deepEqual(eal('-c', 'f').notes, []);
});

test('EAL: --lcores maps lcores to CPUs as in DPDK', () => {
  assert.equal(cores('--lcores', '0@1,(2-3)@(4,6)'), '0@1 2@4,6 3@4,6');
  const map = '1,2@(5-7),(3-5)@(0,2),(0,6),7-8';
  const expected = ['0,6', '1', '5,6,7', '0,2', '0,2', '0,2', '0,6', '7', '8'];
  expected.forEach((cpus, lcore) => {
    const { main } = eal('--lcores', map, '--main-lcore', `${lcore}`).cores!;
    assert.equal(`${main.lcore}@${main.cpus}`, `${lcore}@${cpus}`);
  });
  assert.equal(cores('--lcores', ' 0 @ ( 3 , 1 ) , 1 '), '0@1,3 1@1');
  assert.equal(cores('--lcores', '0@4-2,1'), '0@2,3,4 1@1');
  assert.equal(cores('--lcores', '0-1,1@3'), '0@0 1@3');
});

test('EAL: malformed core options are refused', () => {
  for (const mask of ['', '0', 'error', '0x', `1${'0'.repeat(256)}`])
    fails('CONFIG_INVALID_VALUE', /-c: invalid coremask/, '-c', mask);
  for (const list of ['', ' ', 'error', '0-', '1-', '1,', ',1', '1#2', '1-2-3', '1 2', '-1', '1024', '(0,1)', '0@1']) {
    fails('CONFIG_INVALID_VALUE', /^-l: invalid corelist/, '-l', list);
  }
  const maps = [
    '',
    ' ',
    '0,',
    '0-',
    '(0-',
    '0@',
    '@0',
    '0@1@2',
    '1-3-5',
    '0-1,,2',
    '0-,1',
    '(0-,2-4)',
    '(-1,2)',
    '()',
    '1024',
  ];
  maps.push(
    '(2-4)@(2-4-6)',
    '(a,2)',
    '1-3@(1,3)',
    '3@((1,3)',
    '(4-7)=(1,3)',
    '[4-7]@(1,3)',
    '(0,1)2',
    '0@(1)x',
    '0@1024',
  );
  for (const map of maps) fails('CONFIG_INVALID_VALUE', /^--lcores: invalid coremap/, '--lcores', map);
});

test('EAL: core numbers may go up to 1023', () => {
  assert.equal(cores('-l', '0,1023'), '0@0 1023@1023');
  assert.equal(cores('-c', `8${'0'.repeat(255)}`), '1023@1023 1023@1023');
  assert.equal(cores('--lcores', '0@1023'), '0@1023 0@1023');
});

test('EAL: only one of -c, -l and --lcores may be given, once', () => {
  fails('CONFIG_CONFLICT', /^-l 0-3: only one of -c, -l and --lcores, and -c f is given$/, '-c', 'f', '-l0-3');
  fails('CONFIG_CONFLICT', /^--lcores 0: /, '-l', '0', '--lcores', '0');
  fails('CONFIG_CONFLICT', /^-c 3: /, '-c', 'f', '-c', '3');
});

test('EAL: options without meaning are accepted and listed as given', () => {
  const args =
    '-n 4 -m 64 --huge-dir /mnt/huge --socket-m 64,64 --no-huge --in-memory --huge-unlink=always --huge-unlink';
  assert.deepEqual(
    eal(...args.split(' ')).ignored,
    ['-n 4', '-m 64', '--huge-dir /mnt/huge', '--socket-mem 64,64', '--no-huge', '--in-memory'].concat(
      '--huge-unlink always',
      '--huge-unlink',
    ),
  );
  const withValue =
    'base-virtaddr file-prefix force-max-simd-bitwidth iova-mode log-level mbuf-pool-ops-name proc-type';
  for (const name of `${withValue} socket-limit syslog trace vfio-intr block`.split(' ')) {
    assert.deepEqual(eal(`--${name}`, 'x').ignored, [`--${name} x`]);
  }
  const flags = 'no-pci legacy-mem single-file-segments no-telemetry telemetry no-shconf no-hpet match-allocations';
  for (const name of flags.split(' ')) assert.deepEqual(eal(`--${name}`).ignored, [`--${name}`]);
  for (const letter of 'bdrsS') assert.deepEqual(eal(`-${letter}`, '1').ignored, [`-${letter} 1`]);
});

test('EAL: -v shows the version at start, --version and --help do nothing else', () => {
  assert.deepEqual([eal('-v').showVersion, eal('-v').version, eal().showVersion], [true, false, false]);
  assert.deepEqual([eal('--version').version, eal('--version').help], [true, false]);
  for (const args of [['-h'], ['--help'], ['--he', '-a', 'x', '-c', '1', '-l', '1']])
    assert.equal(eal(...args).help, true);
});

test('EAL: devices for an uplink are cards by their addresses and virtual devices', () => {
  const cards = ['0000:01:00.0', '1:0.0', 'A:1F.7,mtu=9', '10000:e1:00.0'].flatMap((address) => ['-a', address]);
  assert.deepEqual(
    eal(...cards).ports,
    ['0000:01:00.0', '0000:01:00.0', '0000:0a:1f.7', '10000:e1:00.0'].map((address) => ({ kind: 'pci', address })),
  );
  for (const text of ['eth0', '1:0', '1:0.8', '0000:001:00.0', 'net_tap0'])
    fails('CONFIG_INVALID_VALUE', /^--allow .*: is none; valid: a PCI address, for example/, '-a', text);
  assert.equal(eal('--vdev', 'net_tap0,iface=t0').ports[0].kind, 'net_tap');
  fails('CONFIG_INVALID_VALUE', /^--vdev net_tup0: no such kind of device/, '--vdev', 'net_tup0');
  fails(
    'CONFIG_CONFLICT',
    /^-b 1:0.0: devices are either allowed \(-a\) or blocked \(-b\)/,
    '--allow',
    '1:0.0',
    '-b',
    '1:0.0',
  );
});
