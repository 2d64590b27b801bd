import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { parseCommandLine } from '../../src/cli/command-line.ts';
import { parseOptions } from '../../src/cli/options.ts';
import { SWITCH } from '../../src/cli/switch-options.ts';
import { resolveSwitch, uplinkNotes } from '../../src/cli/switch-settings.ts';
import type { ConfigError } from '../../src/errors.ts';

const app = (...args: string[]) => parseCommandLine(['--', ...args]);
const words = (line: string) => line.split(' ');
const fails = (code: ConfigError['code'], message: RegExp, ...args: string[]) =>
  assert.throws(() => app(...args), { code, message });

const DEFAULTS = {
  help: false,
  version: false,
  showVersion: false,
  ignored: [],
  notes: [],
  ports: [],
  enabledPorts: [],
  sockets: ['vhost-net'],
  vlans: new Map(),
  rxRetry: { num: 4, delayUs: 15 },
  client: false,
  vm2vm: 1,
  mergeable: false,
  txCsum: true,
  tso: false,
  iommu: false,
  ringReset: false,
  configSpace: false,
  postcopy: false,
  queues: 128,
  learning: 'dynamic',
  poll: 'adaptive',
  spinUs: 200,
  spinPercent: 50,
  rebalanceSeconds: 0,
  statsSeconds: 0,
  seconds: 0,
  macAgeing: 300,
  macTableSize: 8192,
  macLimit: 1024,
  socketMode: 0o660,
  maxDevices: 64,
};

test('command line: nothing given gives the defaults', () => {
  assert.deepEqual(parseCommandLine([]), DEFAULTS);
  assert.deepEqual(parseCommandLine(['--']), DEFAULTS);
});

test("command line: the document's own lines are understood, once they name the port of their uplink", () => {
  const document = '-c f -n 4 --huge-dir / mnt/huge -- -p 0x1 --dev-basename usvhost';
  for (const line of [document, `${document} --dev-index 1`]) {
    assert.throws(() => parseCommandLine(words(line)), {
      code: 'CONFIG_INVALID_VALUE',
      message: '-p: enables port 0, but there is no port; name one with --vdev or -a',
    });
    const parsed = parseCommandLine(['-a', '0000:03:00.0', ...words(line)]);
    assert.deepEqual([parsed.ports, parsed.enabledPorts], [[{ kind: 'pci', address: '0000:03:00.0' }], [0]]);
    assert.deepEqual(parsed.sockets, ['usvhost']);
    assert.deepEqual(parsed.ignored, ['-n 4', '--huge-dir /', 'mnt/huge']);
    assert.deepEqual([parsed.cores?.main.lcore, parsed.cores?.workers[0].lcore], [0, 1]);
    assert.equal(parsed.notes.length, line.includes('--dev-index') ? 1 : 0);
  }
});

test("command line: the document's parameters take the values the document lists", () => {
  const line = (rest: string) => parseCommandLine(words(`-c f -n 4 --huge-dir /mnt/huge -- ${rest}`));
  assert.deepEqual([line('--vm2vm 0').vm2vm, line('--vm2vm 1').vm2vm], [0, 1]);
  assert.deepEqual([line('--mergeable 0').mergeable, line('--mergeable 1').mergeable], [false, true]);
  assert.deepEqual([line('--stats 0').statsSeconds, line('--stats 9').statsSeconds], [0, 9]);
  assert.equal(line('--rx-retry 0').rxRetry, undefined);
  assert.deepEqual(line('--rx-retry 1 --rx-retry-num 5').rxRetry, { num: 5, delayUs: 15 });
  assert.deepEqual(line('--rx-retry 1 --rx-retry-delay 20').rxRetry, { num: 4, delayUs: 20 });
  line('--zero-copy 0');
  line('--vlan-strip 1');
  line('--vlan-strip 0');
  assert.throws(() => line('--vm2vm 2'), { code: 'CONFIG_CONFLICT', message: /needs an uplink; name one with --vdev/ });
  assert.throws(() => line('--zero-copy 1 --rx-desc-num 64'), { code: 'CONFIG_CONFLICT' });
  assert.throws(() => line('--zero-copy 1 --tx-desc-num 64'), { code: 'CONFIG_CONFLICT' });
});

test('command line: without -- the options of both kinds may be mixed', () => {
  const parsed = parseCommandLine(words('--socket-file a -l 0-1 --stat 5 -n 4'));
  assert.deepEqual(
    [parsed.sockets, parsed.statsSeconds, parsed.cores?.workers[0].lcore, parsed.ignored],
    [['a'], 5, 1, ['-n 4']],
  );
  assert.throws(() => parseCommandLine(['--socket', 'a']), {
    code: 'CONFIG_AMBIGUOUS_OPTION',
    message: /--socket-limit, --socket-mem, --socket-file, --socket-mode, --socket-owner, --socket-group$/,
  });
  assert.throws(() => parseCommandLine(['--vm', '1']), { code: 'CONFIG_AMBIGUOUS_OPTION' });
  assert.throws(() => parseCommandLine(['usvhost']), { code: 'CONFIG_UNEXPECTED_WORD', option: 'usvhost' });
});

test('command line: with -- each kind stays on its side', () => {
  assert.throws(
    () => parseCommandLine(words('--socket-file a --')),
    /^ConfigError: --socket-file: belongs to the right of --$/,
  );
  fails('CONFIG_UNKNOWN_OPTION', /^-l: belongs to the left of --$/, '-l', '0');
  fails('CONFIG_UNKNOWN_OPTION', /^--socket-mem: belongs to the left of --$/, '--socket-mem', '1');
  fails('CONFIG_UNEXPECTED_WORD', /^usvhost: belongs to no option$/, 'usvhost');
  fails('CONFIG_UNEXPECTED_WORD', /^--: /, '--');
  assert.throws(() => parseCommandLine(['--huge-dir', '--', '--mergeable', '1']), { code: 'CONFIG_MISSING_VALUE' });
  assert.equal(app('--help').help, true);
  assert.equal(app('-h').help, true);
});

test('command line: help and version win over contradictions and refusals', () => {
  assert.deepEqual(app('-p', '1', '--help'), { ...DEFAULTS, help: true });
  assert.deepEqual(app('--version', '--zero-copy', '1'), { ...DEFAULTS, version: true });
});

test('switch options: abbreviations work as with getopt_long', () => {
  assert.equal(app('--mer=1').mergeable, true);
  assert.equal(app('--vm=0').vm2vm, 0);
});

test('switch options: an unknown option names the nearest', () => {
  fails('CONFIG_UNKNOWN_OPTION', /^--mergable: unknown option; the nearest is --mergeable$/, '--mergable', '1');
  fails('CONFIG_UNKNOWN_OPTION', /the nearest is --rx-retry$/, '--rx_retry', '1');
});

test('switch options: sockets come from --socket-file, and from --dev-basename when it is given', () => {
  assert.deepEqual(app('--dev-basename', 'usvhost-longer-than-nine').sockets, ['usvhost-longer-than-nine']);
  assert.deepEqual(app('--socket-file', 'b', '--socket-file=a').sockets, ['b', 'a']);
  assert.deepEqual(app('--socket-file', 'b', '--dev-basename', 'c').sockets, ['c', 'b']);
  fails('CONFIG_CONFLICT', /the socket \.\/a is given twice/, '--socket-file', 'a', '--socket-file', './a');
  assert.deepEqual(app('--socket-file', 'ü'.repeat(53)).sockets, ['ü'.repeat(53)]);
  for (const path of ['', 'a'.repeat(108), 'ü'.repeat(54)])
    fails('CONFIG_INVALID_VALUE', /1 to 107 bytes/, '--socket-file', path);
});

test('switch options: a client connects to the sockets of --socket-file', () => {
  const parsed = app(...words('--client --socket-file a --socket-file b'));
  assert.deepEqual([parsed.client, parsed.sockets], [true, ['a', 'b']]);
  assert.equal(app(...words('--socket-file a')).client, false);
  fails(
    'CONFIG_CONFLICT',
    /^--client: needs a socket to connect to; give --socket-file, once for each guest$/,
    '--client',
  );
});

test('switch options: a client creates no socket to name, or to give permissions and owners to', () => {
  for (const own of ['--dev-basename b', '--socket-mode 600', '--socket-owner 1', '--socket-group 1']) {
    const [name] = words(own);
    const message = RegExp(
      `^${name}: not with --client, which creates no socket; it connects to those of --socket-file$`,
    );
    fails('CONFIG_CONFLICT', message, ...words(`${own} --socket-file a --client`));
    app(...words(`${own} --socket-file a`));
  }
});

test('switch options: a client has a device for each of its sockets', () => {
  const three = '--client --socket-file a --socket-file b --socket-file c --max-devices';
  fails('CONFIG_CONFLICT', /^--client: 3 sockets with a device each, but --max-devices 2;/, ...words(`${three} 2`));
  assert.equal(app(...words(`${three} 3`)).sockets.length, 3);
});

test('switch options: the index of a device names the character device only', () => {
  const { sockets, cuse, notes } = app('--dev-basename', 'usvhost', '--dev-index', '1');
  assert.deepEqual([sockets, cuse], [['usvhost'], undefined]);
  assert.match(notes.join(), /^--dev-index 1: names the character device of --vhost cuse only/);
});

test('switch options: --vhost cuse makes a character device in place of sockets, both makes both', () => {
  const named = '--dev-basename usvhost --dev-index 1';
  const outcome = (line: string) => {
    const { sockets, cuse, notes } = app(...words(line));
    return [sockets, cuse, notes];
  };
  assert.deepEqual(outcome(`--vhost cuse ${named}`), [[], 'usvhost-1', []]);
  assert.deepEqual(outcome('--vhost cuse'), [[], 'vhost-net-0', []]);
  assert.deepEqual(outcome(`--vhost both ${named}`), [['usvhost'], 'usvhost-1', []]);
  assert.deepEqual(outcome('--vhost both --socket-file a'), [['a'], 'vhost-net-0', []]);
  assert.deepEqual(outcome('--vhost user --dev-basename a'), [['a'], undefined, []]);
  assert.deepEqual(outcome(`--vhost both --client --socket-file a --socket-mode 600 ${named}`), [
    ['a'],
    'usvhost-1',
    [],
  ]);
  for (const other of ['--socket-file a', '--client'])
    fails(
      'CONFIG_CONFLICT',
      /not with --vhost cuse, which has no sockets; --vhost both/,
      ...words(`--vhost cuse ${other}`),
    );
});

test('switch options: a character device has the number that the kernel chooses, or one of the user', () => {
  assert.equal(app('--vhost', 'cuse').cuseNumber, undefined);
  assert.deepEqual(app('--vhost', 'cuse', '--dev-number', '10:4096').cuseNumber, { major: 10, minor: 4096 });
  for (const wrong of ['10', '10:', ':1', '0:1', '512:1', '10:1048576', '10:1:1', '10:-1'])
    fails(
      'CONFIG_INVALID_VALUE',
      /^--dev-number: .*valid: 1\.\.511:0\.\.1048575/,
      '--vhost',
      'cuse',
      '--dev-number',
      wrong,
    );
  const { cuseNumber, notes } = app('--dev-number', '10:4096');
  assert.equal(cuseNumber, undefined);
  assert.match(notes.join(), /^--dev-number 10:4096: numbers the character device of --vhost cuse only/);
});

test('switch options: the name of a character device is one name, and no path', () => {
  for (const name of ['a/b', './a', 'a b', 'a!b', 'ä', 'a'.repeat(62)])
    fails(
      'CONFIG_CONFLICT',
      /^--dev-basename: .* cannot be a device's name/,
      '--vhost',
      'cuse',
      '--dev-basename',
      name,
    );
  assert.equal(app('--vhost', 'cuse', '--dev-basename', 'a'.repeat(61)).cuse, `${'a'.repeat(61)}-0`);
  assert.deepEqual(app('--dev-basename', 'a/b').sockets, ['a/b']);
});

test('switch options: who comes by the character device has the VLAN of the plan', () => {
  const line = '--vdev net_null0 -- -p 1 --vhost both --socket-file a,vlan=1001';
  assert.throws(() => parseCommandLine(words(line)), /VLAN 1001 of a: 1000 to 1063 are the tags of devices/);
  assert.equal(parseCommandLine(words(line.replace('both', 'user'))).sockets.length, 1);
});

/** Option, lowest and highest value, and the values next to them that are refused. */
const RANGES: readonly (readonly [string, number, number])[] = [
  ['--vm2vm', 0, 1],
  ['--rx-retry', 0, 1],
  ['--rx-retry-num', 0, 2147483647],
  ['--rx-retry-delay', 0, 2147483647],
  ['--mergeable', 0, 1],
  ['--stats', 0, 2147483647],
  ['--seconds', 0, 2147483],
  ['--dev-index', 0, 2147483647],
  ['--nb-devices', 0, 2147483647],
  ['--total-num-mbufs', 0, 2147483647],
  ['--mac-ageing', 0, 1000000],
  ['--mac-table-size', 1, 1048576],
  ['--mac-limit', 1, 1048576],
  ['--max-devices', 1, 1024],
  ['--rx-desc-num', 0, 4096],
  ['--tx-desc-num', 0, 4096],
];

for (const [name, min, max] of RANGES) {
  test(`switch options: ${name} takes ${min} to ${max} and nothing beyond`, () => {
    app(name, `${min}`);
    app(name, `${max}`);
    const beyond = name === '--vm2vm' ? 3 : max + 1;
    for (const value of [`${min - 1}`, `${beyond}`, 'x', '', '0x1', '1.5']) {
      fails('CONFIG_INVALID_VALUE', RegExp(`^${name}: invalid`), name, value);
    }
  });
}

test('switch options: the range errors name the range', () => {
  assert.throws(() => app('--max-devices', '0'), { range: '1..1024', option: '--max-devices' });
  fails('CONFIG_INVALID_VALUE', /^--vm2vm: invalid mode "3"; valid: 0\.\.2$/, '--vm2vm', '3');
  fails('CONFIG_INVALID_VALUE', /^--mergeable: invalid value "2"; valid: 0\|1$/, '--mergeable', '2');
});

test('switch options: descriptor numbers are powers of two', () => {
  for (const name of ['--rx-desc-num', '--tx-desc-num']) {
    for (const count of [0, 1, 2, 64, 4096])
      assert.match(app(name, `${count}`).notes[0], /no effect without --zero-copy 1$/);
    for (const count of [3, 63, 4095, 8192]) fails('CONFIG_INVALID_VALUE', /power of two/, name, `${count}`);
  }
});

test('switch options: socket permissions are octal, owners names or numbers', () => {
  const parsed = app(...words('--socket-mode 0600 --socket-owner libvirt-qemu --socket-group 64055'));
  assert.deepEqual([parsed.socketMode, parsed.socketOwner, parsed.socketGroup], [0o600, 'libvirt-qemu', 64055]);
  assert.deepEqual([app('--socket-mode', '0').socketMode, app('--socket-mode', '777').socketMode], [0, 0o777]);
  for (const mode of ['', '8', '1000', '0o660', 'rw']) fails('CONFIG_INVALID_VALUE', /octal/, '--socket-mode', mode);
  assert.equal(app('--socket-owner', '4294967294').socketOwner, 4294967294);
  for (const owner of ['', '4294967295']) fails('CONFIG_INVALID_VALUE', /--socket-owner/, '--socket-owner', owner);
});

test('switch options: choices take their words only', () => {
  assert.deepEqual([app('--learning', 'first').learning, app('--poll', 'busy').poll], ['first', 'busy']);
  fails('CONFIG_INVALID_VALUE', /valid: dynamic\|first$/, '--learning', 'last');
  fails('CONFIG_INVALID_VALUE', /valid: adaptive\|busy$/, '--poll', '');
});

test('switch options: a portmask has one port', () => {
  for (const mask of ['0', '', '0x', 'xyz', '100000000'])
    fails('CONFIG_INVALID_VALUE', /^-p: invalid portmask/, '-p', mask);
  fails('CONFIG_INVALID_VALUE', /^-p: 2 ports are enabled, but only 1 port can be enabled$/, '-p', '0x3');
});

test('switch options: -p chooses from the cards of -a and then the devices of --vdev', () => {
  const ports = words('--vdev net_af_packet0,iface=eth1 -a 3:0.1,key=1 --vdev net_null7');
  const line = (mask: string) => parseCommandLine([...ports, '--', '-p', mask]);
  const names = line('1').ports.map((port) => (port.kind === 'pci' ? port.address : port.name));
  assert.deepEqual(names, ['0000:03:00.1', 'net_af_packet0', 'net_null7']);
  assert.deepEqual([line('0x2').enabledPorts, line('4').enabledPorts], [[1], [2]]);
  assert.deepEqual(line('0x2').notes, [
    '0000:03:00.1 is not used: -p 0x1 makes it the uplink',
    'net_null7 is not used: -p 0x4 makes it the uplink',
  ]);
  assert.throws(() => line('8'), { message: '-p: enables port 3, but the last port is 2' });
  assert.equal(parseCommandLine(ports).notes.length, 3);
});

test('switch options: segmentation follows mergeable buffers, and needs checksums', () => {
  assert.equal(app('--mergeable', '1').tso, true);
  assert.equal(app(...words('--mergeable 1 --tso 0')).tso, false);
  assert.equal(app(...words('--mergeable 1 --tx-csum 0')).tso, false);
  fails('CONFIG_CONFLICT', /^--tso 1: .*use --tx-csum 1/, ...words('--tso 1 --tx-csum 0'));
});

test('switch options: zero copy contradicts software switching and mergeable buffers', () => {
  fails('CONFIG_CONFLICT', /^--zero-copy 1: .*use --vm2vm 2 \(hardware\) or --vm2vm 0/, '--zero-copy', '1');
  fails('CONFIG_CONFLICT', /^--zero-copy 1: .*use --mergeable 0/, ...words('--zero-copy 1 --vm2vm 0 --mergeable 1'));
  fails('CONFIG_CONFLICT', /--mergeable 0/, ...words('--zero-copy 1 --vm2vm 2 --mergeable 1'));
});

test('switch options: range errors come before contradictions, and contradictions before refusals', () => {
  fails('CONFIG_INVALID_VALUE', /--stats/, ...words('-p 0x1 --zero-copy 1 --stats x'));
  fails('CONFIG_CONFLICT', /--zero-copy/, ...words('-p 0x1 --zero-copy 1'));
});

const REFUSALS: Readonly<Record<string, string>> = {
  '--dmas [txd0@00:04.0,rxd0@00:04.2]':
    'copying by DMA devices is not in this version yet; leave --dmas out, the CPU copies',
};

for (const [line, says] of Object.entries(REFUSALS)) {
  test(`switch options: ${line} is refused with what to do instead`, () => {
    assert.throws(() => app(...words(line)), { code: 'CONFIG_NOT_YET', message: `${line}: ${says}` });
  });
}

test('switch options: zero copy without a contradiction is refused as not there yet', () => {
  const message =
    '--zero-copy 1: zero copy is not in this version yet; leave --zero-copy out, packets between guests are copied once';
  assert.throws(() => app(...words('--zero-copy 1 --vm2vm 0')), { code: 'CONFIG_NOT_YET', message });
});

test('switch options: only the value that counts is refused', () => {
  assert.equal(app(...words('--vm2vm 2 --vm2vm 0')).vm2vm, 0);
  app(...words('--tx-csum 0 --tso 0 --zero-copy 0'));
});

test('switch options: DMA lists are checked before they are refused', () => {
  for (const list of ['txd0@00:04.0', '[]', '[txd@1]', '[foo0@1]', '[txd0@1,]'])
    fails('CONFIG_INVALID_VALUE', /--dmas/, '--dmas', list);
});

test('switch options: options without effect are accepted with a note', () => {
  assert.match(app('-P').notes[0], /^-P: the uplink always takes frames to all addresses/);
  const line =
    '--rx-retry 1 --rx-retry-num 5 --rx-retry-delay 20 --total-num-mbufs 9 --builtin-net-driver --nb-devices 4';
  assert.deepEqual(app(...words(line)).notes, [
    '--rx-retry 1: no effect without an uplink',
    '--rx-retry-num 5: no effect without an uplink',
    '--rx-retry-delay 20: no effect without an uplink',
    '--total-num-mbufs 9: no effect: there is no pool of packet buffers to size',
    '--builtin-net-driver: no effect: there is one driver only',
    '--nb-devices 4: no effect; --max-devices sets the number of devices',
  ]);
});

/** What the options of the switch say, with an uplink: that -p names one is another table's business. */
const withUplink = (line: string) => {
  const { given } = parseOptions(Object.values(SWITCH), words(`-p 0x1 ${line}`.trim()));
  return { ...resolveSwitch(given), notes: uplinkNotes(given) };
};
const clashes = (line: string, message: RegExp) =>
  assert.throws(() => withUplink(line), { code: 'CONFIG_CONFLICT', message });

test('switch options: with an uplink each device has a tag, and guests none of their own, unless told otherwise', () => {
  assert.equal(app().vlan, undefined);
  assert.deepEqual(withUplink('').vlan, { plan: 'device', guest: 'drop', strip: true });
  assert.deepEqual(withUplink('--vlan auto --guest-vlan trust --vlan-strip 0').vlan, {
    ...{ plan: 'device', guest: 'trust', strip: false },
  });
  assert.equal(withUplink('--vlan off').vlan, undefined);
  assert.deepEqual(withUplink('--vlan off --guest-vlan drop').vlan, { plan: 'none', guest: 'drop', strip: true });
  assert.deepEqual(app('--guest-vlan', 'drop').vlan, { plan: 'device', guest: 'drop', strip: true });
  assert.deepEqual(withUplink('--vm2vm 2').vm2vm, 2);
  for (const line of ['--vlan on', '--guest-vlan keep', '--vlan-strip 2'])
    assert.throws(() => withUplink(line), { code: 'CONFIG_INVALID_VALUE' });
});

test('switch options: a socket may put its guests into VLANs', () => {
  const one = app(
    '--socket-file',
    'a,vlan=100',
    '--socket-file',
    'b,trunk=30+10-12+11,native=4094',
    '--socket-file',
    'c',
  );
  assert.deepEqual(one.sockets, ['a', 'b', 'c']);
  assert.deepEqual(
    [...one.vlans],
    [
      ['a', { access: 100 }],
      ['b', { trunk: [10, 11, 12, 30], native: 4094 }],
    ],
  );
  assert.deepEqual(one.vlan, { plan: 'device', guest: 'drop', strip: true });
  assert.deepEqual([...app('--socket-file', 'd,native=2,trunk=1').vlans], [['d', { trunk: [1], native: 2 }]]);
  assert.deepEqual(app('--socket-file', 'a,b,vlans=1').sockets, ['a,b,vlans=1'], 'a comma in a name');
  for (const wrong of [
    'vlan=0',
    'vlan=4095',
    'vlan=',
    'vlan=1,vlan=2',
    'vlan=1,native=1',
    'vlan=1,trunk=1',
    'native=1',
  ])
    fails('CONFIG_INVALID_VALUE', /VIDS such as 10-20\+30/, '--socket-file', `a,${wrong}`);
  for (const wrong of ['', '0', '1-', '3-2', '1-2-3', '1,2', '1+', 'x', '1-4095'])
    fails('CONFIG_INVALID_VALUE', /1\.\.4094/, '--socket-file', `a,trunk=${wrong},native=1`);
  fails('CONFIG_INVALID_VALUE', /1 to 107 bytes/, '--socket-file', ',vlan=1');
  fails('CONFIG_CONFLICT', /the socket a is given twice/, '--socket-file', 'a,vlan=1', '--socket-file', 'a,vlan=2');
});

test('switch options: VLANs of sockets are not those of devices without', () => {
  const sockets = '--socket-file a --socket-file b,vlan=1063';
  clashes(
    sockets,
    /^--socket-file: VLAN 1063 of b: 1000 to 1063 are the tags of devices that have none by their socket; choose/,
  );
  clashes('--socket-file a --socket-file b,trunk=5,native=1000', /^--socket-file: VLAN 1000 of b/);
  for (const line of [`${sockets} --max-devices 63`, `${sockets} --vlan off`, '--socket-file b,vlan=1063'])
    assert.ok(withUplink(line).vlan !== undefined, line);
  app(...words(sockets));
});

test('switch options: VLANs that contradict other options', () => {
  clashes('--socket-file a,trunk=5 --learning first', /^--socket-file: a guest in several VLANs/);
  assert.equal(withUplink('--socket-file a,vlan=5 --learning first').learning, 'first');
  clashes('--vlan off --guest-vlan qinq', /^--guest-vlan qinq: there must be a tag to put around; use --vlan auto/);
  clashes('--vlan off --guest-vlan qinq --socket-file a --socket-file b,vlan=5', /^--guest-vlan qinq/);
  assert.equal(withUplink('--vlan off --guest-vlan qinq --socket-file b,vlan=5').vlan?.guest, 'qinq');
});

test('switch options: what does less than it seems to is said', () => {
  assert.deepEqual(app('--vlan', 'off', '--vlan-strip', '0', '--vlan-strip', '1').notes, [
    '--vlan off: no effect without an uplink',
    '--vlan-strip 1: no effect without an uplink',
  ]);
  assert.deepEqual(withUplink('--vlan off --vlan-strip 0 --rx-retry 1 --rx-retry-num 60').notes, []);
  const bound = 'a burst waits 1000 µs at most, since all other guests wait meanwhile';
  assert.deepEqual(withUplink('--rx-retry-num 67').notes, [`--rx-retry-num 67: ${bound}`]);
  assert.deepEqual(withUplink('--rx-retry-num 5 --rx-retry-delay 201').notes, [`--rx-retry-num 5: ${bound}`]);
  assert.deepEqual(withUplink('--rx-retry 0 --rx-retry-delay 2147483647').notes, []);
});

/** A result field with the option that sets it and the values it may have, written as text by `write`. */
const bit = (on: boolean) => (on ? '1' : '0');
const FIELDS: Readonly<Record<string, readonly [string, fc.Arbitrary<unknown>, ((value: never) => string)?]>> = {
  vm2vm: ['--vm2vm', fc.constantFrom(0, 1)],
  mergeable: ['--mergeable', fc.boolean(), bit],
  txCsum: ['--tx-csum', fc.boolean(), bit],
  tso: ['--tso', fc.boolean(), bit],
  iommu: ['--iommu', fc.boolean(), bit],
  ringReset: ['--ring-reset', fc.boolean(), bit],
  configSpace: ['--config-space', fc.boolean(), bit],
  postcopy: ['--postcopy', fc.boolean(), bit],
  queues: ['--queues', fc.integer({ min: 1, max: 128 })],
  learning: ['--learning', fc.constantFrom('dynamic', 'first')],
  poll: ['--poll', fc.constantFrom('adaptive', 'busy')],
  spinUs: ['--spin', fc.nat(1000000)],
  spinPercent: ['--spin-share', fc.nat(100)],
  rebalanceSeconds: ['--rebalance', fc.nat(2147483)],
  statsSeconds: ['--stats', fc.nat()],
  seconds: ['--seconds', fc.nat(2147483)],
  macAgeing: ['--mac-ageing', fc.nat(1000000)],
  macTableSize: ['--mac-table-size', fc.integer({ min: 1, max: 1048576 })],
  macLimit: ['--mac-limit', fc.integer({ min: 1, max: 1048576 })],
  socketMode: ['--socket-mode', fc.nat(0o777), (mode: number) => `0${mode.toString(8)}`],
  socketOwner: ['--socket-owner', fc.oneof(fc.nat(), fc.stringMatching(/^[a-z_][a-z0-9_-]{0,30}$/))],
  socketGroup: ['--socket-group', fc.oneof(fc.nat(), fc.stringMatching(/^[a-z_][a-z0-9_-]{0,30}$/))],
  maxDevices: ['--max-devices', fc.integer({ min: 1, max: 1024 })],
  sockets: ['--socket-file', fc.uniqueArray(fc.stringMatching(/^[\w/=-]{1,107}$/), { minLength: 1, maxLength: 4 })],
};

const given = fc.record(Object.fromEntries(Object.entries(FIELDS).map(([field, [, values]]) => [field, values])), {
  requiredKeys: [],
});

test('command line: any set of options, written out and parsed, gives the same values', () => {
  fc.assert(
    fc.property(given, fc.infiniteStream(fc.boolean()), fc.boolean(), (settings, joined, dashes) => {
      const args = Object.entries(settings).flatMap(([field, value]) => {
        const [name, , write = String] = FIELDS[field];
        const texts = [value].flat().map(write as (value: unknown) => string);
        return texts.flatMap((text) => (joined.next().value || text === '--' ? [`${name}=${text}`] : [name, text]));
      });
      const paths = (settings.sockets ?? []) as string[];
      fc.pre(new Set(paths.map((path) => path.replace(/\/+/g, '/'))).size === paths.length);
      fc.pre(settings.tso !== true || settings.txCsum !== false);
      const tso = settings.tso ?? (settings.mergeable === true && settings.txCsum !== false);
      assert.deepEqual(parseCommandLine(dashes ? ['--', ...args] : args), { ...DEFAULTS, ...settings, tso });
    }),
  );
});
