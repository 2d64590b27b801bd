import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseTestpmd, testpmdHelp } from '../../src/cli/testpmd-options.ts';
import type { ConfigError } from '../../src/errors.ts';
import { DEFAULT_MADE } from '../../src/testpmd/engine.ts';

const VDEVS = ['--vdev', 'net_null0', '--vdev', 'net_null1', '--vdev', 'net_null2'];
const app = (line: string) => parseTestpmd([...VDEVS, '--', ...line.split(' ').filter((word) => word !== '')]);
const fails = (code: ConfigError['code'], message: RegExp, line: string) =>
  assert.throws(() => app(line), { code, message });

const QUIET = { bufferPackets: 0, flushMs: 0, memoryMiB: 0, writes: 0, reads: 0, readWrites: 0 };

test("testpmd options: a line as DPDK's users write it", () => {
  const line = parseTestpmd([
    ...['-c', '0x3', '-n', '4', '--socket-mem', '128', '--vdev'],
    'net_virtio_user0,path=/tmp/a.sock,mac=02:00:00:00:00:01,queues=2,queue_size=512,packed_vq=1,in_order=0,mrg_rxbuf=1,server=1',
    ...[
      '--vdev=net_virtio_user1,path=/tmp/b.sock,queues=2',
      '--',
      '--burst=64',
      '-i',
      '--eth-peer=0,aa:bb:cc:dd:ee:ff',
    ],
    ...['--forward-mode=mac', '--txpkts=64,64', '--rxq=2', '--txq=2', '--rxd=512', '--nb-cores=1', '--auto-start'],
    ...['--tx-first', '--portmask=0x3', '--total-num-mbufs=2048', '--port-topology=loop', '--no-flush-rx'],
    ...['--cmdline-file', 'cmds'],
  ]);
  const { vdevs, cores, notes, ignored, ...rest } = line;
  assert.deepEqual(
    vdevs.map(({ name }) => name),
    ['net_virtio_user0', 'net_virtio_user1'],
  );
  assert.deepEqual(cores?.workers, [{ lcore: 1, cpus: [1] }]);
  assert.deepEqual(ignored, ['-n 4', '--socket-mem 128']);
  assert.deepEqual(notes, [
    '--rxd 512: no effect: rings are as long as the device says, for net_virtio_user by its key queue_size',
    '--total-num-mbufs 2048: no effect: packets stay where they are, there are no mbufs',
    '--burst 64: a burst has 32 packets at most here',
  ]);
  assert.deepEqual(rest, {
    help: false,
    version: false,
    showVersion: false,
    interactive: true,
    autoStart: true,
    txFirst: 1,
    statsPeriod: 0,
    cmdlineFile: 'cmds',
    topology: 'loop',
    forward: {
      mode: 'mac',
      retry: false,
      retryDelay: 1,
      retryNum: 64,
      burst: 32,
      txpkts: [64, 64],
      ethPeers: new Map([[0, 'aa:bb:cc:dd:ee:ff']]),
      rxq: 2,
      txq: 2,
      cores: 1,
      noisy: QUIET,
      made: DEFAULT_MADE,
      ports: [0, 1],
      flushRx: false,
      ...{ recordBursts: false, recordCycles: false },
    },
  });
});

test("testpmd options: DPDK's defaults", () => {
  const { interactive, autoStart, txFirst, statsPeriod, topology, forward, notes, ...rest } = app('');
  assert.deepEqual([interactive, autoStart, txFirst, statsPeriod], [false, false, 0, 0]);
  assert.equal(topology, 'paired');
  assert.deepEqual(forward, {
    mode: 'io',
    retry: false,
    retryDelay: 1,
    retryNum: 64,
    burst: 32,
    txpkts: [64],
    ethPeers: new Map(),
    rxq: 1,
    txq: 1,
    cores: 1,
    noisy: QUIET,
    made: DEFAULT_MADE,
    flushRx: true,
    ...{ recordBursts: false, recordCycles: false },
  });
  assert.deepEqual(notes, []);
  assert.equal('ethPeersFile' in rest || 'cmdlineFile' in rest, false);
});

test('testpmd options: -a means auto-start right of -- and a PCI device left of it', () => {
  assert.equal(app('-a -i').autoStart, true);
  assert.throws(() => parseTestpmd([...VDEVS, '-a', '0000:00:03.0', '--', '-i']), {
    code: 'CONFIG_NOT_YET',
    message: /PCI devices are not driven from here; leave -a out/,
  });
});

test('testpmd options: without -- both kinds may be mixed', () => {
  const { interactive, vdevs } = parseTestpmd(['-i', ...VDEVS, '--burst', '16']);
  assert.deepEqual([interactive, vdevs.length], [true, 3]);
});

test('testpmd options: options on the wrong side, unknown ones, and stray words', () => {
  assert.throws(() => parseTestpmd([...VDEVS, '-i', '--']), { message: '-i: belongs to the right of --' });
  fails('CONFIG_UNKNOWN_OPTION', /^--vdev: belongs to the left of --$/, '--vdev net_null3');
  fails('CONFIG_UNKNOWN_OPTION', /^--brust: unknown option; the nearest is --burst$/, '--brust 3');
  fails('CONFIG_UNEXPECTED_WORD', /^word: belongs to no option$/, 'word');
});

test('testpmd options: ranges', () => {
  fails('CONFIG_INVALID_VALUE', /valid: 1\.\.512$/, '--burst 513');
  fails('CONFIG_INVALID_VALUE', /valid: 1\.\.512$/, '--burst 0');
  fails('CONFIG_INVALID_VALUE', /valid: io\|mac\|/, '--forward-mode foo');
  fails('CONFIG_INVALID_VALUE', /42 to 9728 together$/, '--txpkts 41');
  assert.deepEqual(app('--txpkts 1,41').forward.txpkts, [1, 41]);
  fails('CONFIG_INVALID_VALUE', /PORT,ADDRESS/, '--eth-peer 0;aa:bb:cc:dd:ee:ff');
  fails('CONFIG_INVALID_VALUE', /PORT,ADDRESS/, '--eth-peer 0,ff:ff:ff:ff:ff:ff');
  fails('CONFIG_INVALID_VALUE', /valid: 1\.\.65535$/, '--rxq 0');
  fails('CONFIG_INVALID_VALUE', /paired\|chained\|loop$/, '--port-topology ring');
  fails('CONFIG_INVALID_VALUE', /valid: 0\.\.2147483$/, '--stats-period 2147484');
});

test('testpmd options: ports that forward are a mask, a list or a number of them', () => {
  const ports = (line: string) => app(line).forward.ports;
  assert.deepEqual(ports('--portmask 5'), [0, 2]);
  assert.deepEqual(ports('--portlist 2,0-1'), [2, 0, 1]);
  assert.deepEqual(ports('--nb-ports 2'), [0, 1]);
  fails('CONFIG_INVALID_VALUE', /each once/, '--portlist 0,0');
  fails('CONFIG_INVALID_VALUE', /each once/, '--portlist 1-0');
  fails('CONFIG_INVALID_VALUE', /each once/, '--portlist 0,');
  fails('CONFIG_CONFLICT', /^--portlist 0: not together with --portmask 1$/, '--portmask 1 --portlist 0');
  fails(
    'CONFIG_CONFLICT',
    /^--portmask 9: there is no port 3; there are ports 0 to 2, one for each --vdev$/,
    '--portmask 9',
  );
  fails('CONFIG_CONFLICT', /^--nb-ports 4: there is no port 3/, '--nb-ports 4');
  fails('CONFIG_CONFLICT', /there is no port 7/, '--eth-peer 7,aa:bb:cc:dd:ee:ff');
});

test('testpmd options: cores', () => {
  const nb = (cores: string, n: string) => parseTestpmd([...VDEVS, '-l', cores, '--', '--nb-cores', n]).forward.cores;
  assert.equal(nb('0-2', '2'), 2);
  assert.equal(nb('0', '1'), 1);
  assert.throws(() => nb('0-2', '3'), {
    code: 'CONFIG_CONFLICT',
    message: /^--nb-cores 3: there are 2 lcores that can/,
  });
});

test('testpmd options: the lcores that forward, as a mask', () => {
  const parse = (...line: string[]) => parseTestpmd([...VDEVS, '-l', '0,2-4', '--', ...line]).forward;
  const { cores, coreOrder } = parse('--coremask', '0x18');
  assert.deepEqual([cores, coreOrder], [2, [1, 2]]);
  assert.equal(parse('--coremask', '0x18', '--nb-cores', '1').cores, 1);
  for (const [mask, missing] of [
    ['0x1', 0],
    ['0x20', 5],
  ] as const)
    assert.throws(() => parse('--coremask', mask), {
      code: 'CONFIG_CONFLICT',
      message: new RegExp(`^--coremask: lcore ${missing} cannot forward`),
    });
  assert.throws(() => parse('--coremask', '0x18', '--nb-cores', '3'), {
    message: '--nb-cores 3: --coremask names 2',
  });
});

test('testpmd options: the packets that txonly and flowgen make', () => {
  const made = (line: string) => app(line).forward.made;
  assert.deepEqual(made('--tx-ip 10.0.0.1,10.0.0.2 --tx-udp 1000,2000 --txonly-multi-flow'), {
    ...DEFAULT_MADE,
    txFlow: { source: 0x0a000001, dest: 0x0a000002, sourcePort: 1000, destPort: 2000 },
    txMultiFlow: true,
  });
  assert.deepEqual(made('--tx-udp 1000')?.txFlow, { ...DEFAULT_MADE.txFlow, sourcePort: 1000, destPort: 1000 });
  assert.deepEqual(made('--flowgen-flows 16 --flowgen-clones 3'), { ...DEFAULT_MADE, flows: 16, clones: 3 });
  for (const bad of ['10.0.0.1', '10.0.0.1,', '10.0.0.1,10.0.0.256', '1.2.3.4,1.2.3.4,1.2.3.4'])
    fails('CONFIG_INVALID_VALUE', /two IPv4 addresses$/, `--tx-ip ${bad}`);
  for (const bad of ['', '70000', '1,70000', '1,2,3', 'x'])
    fails('CONFIG_INVALID_VALUE', /UDP ports/, `--tx-udp=${bad}`);
  fails('CONFIG_INVALID_VALUE', /valid: 1\.\.1048576$/, '--flowgen-flows 0');
  fails('CONFIG_CONFLICT', /^--flowgen-clones 8: a burst has 8 packets/, '--burst 8 --flowgen-clones 8');
});

test('testpmd options: what is recorded, and what has no effect', () => {
  const { recordBursts, recordCycles } = app('--record-core-cycles --record-burst-stats').forward;
  assert.deepEqual([recordBursts, recordCycles], [true, true]);
  assert.match(
    app('--max-pkt-len 1518').notes[0],
    /^--max-pkt-len 1518: no effect: a port takes frames as long as its MTU/,
  );
  fails('CONFIG_INVALID_VALUE', /valid: 65\.\./, '--max-pkt-len 64');
  assert.equal(app('--eth-peers-configfile peers').ethPeersFile, 'peers');
  assert.deepEqual(app('--enable-hw-vlan --enable-hw-vlan-strip --eth-link-speed=100').ignored, [
    ...['--enable-hw-vlan', '--enable-hw-vlan-strip', '--eth-link-speed 100'],
  ]);
});

test('testpmd options: queues are those that the devices are given', () => {
  const line = ['--vdev', 'net_virtio_user0,path=/x,queues=2', '--'];
  assert.deepEqual(parseTestpmd([...line, '--rxq=2', '--txq=2']).notes, []);
  assert.deepEqual(parseTestpmd([...line, '--rxq=2']).notes, ['--rxq 2, --txq 1: queues come in pairs; ports have 2']);
  assert.throws(() => parseTestpmd([...line, '--txq', '4']), {
    code: 'CONFIG_CONFLICT',
    message: '--txq 4: net_virtio_user0 has 2; give its --vdev queues=4',
  });
});

test('testpmd options: what the mode noisy does', () => {
  const line =
    '--forward-mode noisy --noisy-tx-sw-buffer-size 64 --noisy-tx-sw-buffer-flushtime 5 --noisy-lkup-memory 8';
  assert.deepEqual(app(`${line} --noisy-lkup-num-reads 3 --noisy-lkup-num-reads-writes=2`).forward.noisy, {
    ...{ bufferPackets: 64, flushMs: 5, memoryMiB: 8, writes: 0, reads: 3, readWrites: 2 },
  });
  fails('CONFIG_CONFLICT', /^--noisy-lkup-memory: is 0, and/, '--noisy-lkup-num-writes 1');
});

test('testpmd options: what has no effect with a prompt is noted', () => {
  assert.deepEqual(app('-i --stats-period 2 --tx-first').notes, [
    '--stats-period: no effect with -i; use "show port stats all"',
    '--tx-first: no effect with -i; use "start tx_first"',
  ]);
  assert.deepEqual(app('-i -a --tx-first').notes, []);
});

test('testpmd options: at least one device, and each with its own name', () => {
  assert.throws(() => parseTestpmd(['--', '-i']), {
    code: 'CONFIG_MISSING_VALUE',
    message: /^--vdev: give at least one/,
  });
  assert.throws(() => parseTestpmd(['--vdev', 'net_null0', '--vdev', 'net_null0', '--', '-i']), {
    code: 'CONFIG_CONFLICT',
  });
  assert.throws(() => parseTestpmd(['--vdev', 'net_virtio_user0,pth=/x', '--']), {
    message: '--vdev net_virtio_user0,pth=/x: net_virtio_user has no key "pth"; the nearest is path',
  });
});

test('testpmd options: hardware options of DPDK are accepted and named', () => {
  assert.deepEqual(app('--numa --tx-offloads=0x2c --rxfreet 4 --disable-rss').ignored, [
    '--numa',
    '--tx-offloads 0x2c',
    '--rxfreet 4',
    '--disable-rss',
  ]);
});

test('testpmd options: the help is at most 100 columns wide and names what means something', () => {
  assert.equal(parseTestpmd(['--help']).help, true);
  assert.equal(parseTestpmd(['--', '-h']).help, true);
  assert.equal(parseTestpmd(['--version']).version, true);
  const help = testpmdHelp();
  for (const line of help.split('\n')) assert.ok(line.length <= 100, line);
  const names = '-c -l -i -a --vdev --interactive --cmdline-file --auto-start --tx-first --stats-period --forward-mode';
  const more =
    '--port-topology --portmask --portlist --nb-ports --nb-cores --burst --txpkts --eth-peer --rxq --txq --rxd';
  for (const name of `${names} ${more} --txd --total-num-mbufs --no-flush-rx --numa`.split(' ')) {
    assert.match(help, new RegExp(`(^|[\\s,])${name}([\\s,]|$)`, 'm'), name);
  }
});
