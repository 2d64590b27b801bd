/** The doctor's command line. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { doctorHelp, parseDoctor } from '../../src/cli/doctor.ts';
import { ConfigError } from '../../src/errors.ts';

const parse = (line: string) => parseDoctor(line.split(' ').filter((word) => word !== ''));

test('doctor: without options it looks at the machine', () => {
  const { help, all, json, sockets, ports, lcores, ...rest } = parse('');
  assert.deepEqual([help, all, json, sockets, ports, lcores], [false, false, false, [], [], []]);
  assert.ok(!('qemu' in rest) && !('domain' in rest));
});

test('doctor: options, some of them given again', () => {
  const settings = parse('--qemu 12 --socket a --socket=/b --port net_tap --port namespace -l 1,3-4 --all --json');
  assert.equal(settings.qemu, 12);
  assert.deepEqual(settings.sockets, ['a', '/b']);
  assert.deepEqual(settings.ports, ['net_tap', 'namespace']);
  assert.deepEqual(settings.lcores, [3, 4], 'the first is the main thread, which handles no packets');
  assert.deepEqual([settings.all, settings.json], [true, true]);
  assert.deepEqual(parse('--lcores 0@2,(1-2)@(4,6)').lcores, [4, 6]);
  assert.equal(parse('--domain web').domain, 'web');
});

const refusals: [line: string, sentence: RegExp][] = [
  ['--qemu web', /--qemu: invalid pid "web"; valid: 1\.\.4194304/],
  ['--qemu 0', /--qemu: invalid pid "0"/],
  ['--qemu 1 --domain web', /--domain: not together with --qemu: one guest at a time/],
  [
    '--port net_tup',
    /--port: invalid kind "net_tup"; valid: net_af_packet\|net_tap\|net_af_xdp\|steer\|namespace\|vhost-cuse/,
  ],
  ['--sockets /x', /--sockets: unknown option; the nearest is --socket/],
  [`--socket ${'x'.repeat(200)}`, /--socket: invalid path/],
  ['-l 0 -c 1', /-c 1: only one of -c, -l and --lcores/],
  ['surprise', /surprise: belongs to no option/],
];
for (const [line, sentence] of refusals)
  test(`doctor: \`${line.slice(0, 30)}\` is refused`, () => {
    assert.throws(
      () => parse(line),
      (error) => error instanceof ConfigError && sentence.test(error.message),
    );
  });

test('doctor: --help names every option in at most 100 columns', () => {
  const help = doctorHelp();
  for (const option of [
    '--qemu',
    '--domain',
    '--socket',
    '--port',
    '-l',
    '-c',
    '--lcores',
    '--all',
    '--json',
    '--help',
  ])
    assert.match(help, new RegExp(`(^|[\\s,])${option}([\\s,]|$)`, 'm'), option);
  for (const line of help.split('\n')) assert.ok(line.length <= 100, line);
});
