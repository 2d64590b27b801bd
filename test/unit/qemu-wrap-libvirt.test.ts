/** qemu-wrap --libvirt as its users run it. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parseQemuWrap } from '../../src/cli/qemu-wrap-options.ts';
import { ConfigError, type ConfigErrorCode } from '../../src/errors.ts';
import { rewriteDomain } from '../../src/launch/domain-xml.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';

const QEMU_WRAP = fileURLToPath(new URL('../../src/cli/qemu-wrap.ts', import.meta.url));
const DOMAIN = fileURLToPath(new URL('domains/proxmox-moved.xml', import.meta.url));
const SOCKET = '/run/vhost-switch.sock';

function run(args: readonly string[], input: string | Uint8Array = '') {
  const { status, stdout, stderr } = spawnSync(process.execPath, [QEMU_WRAP, ...args], {
    encoding: 'utf8',
    input,
    timeout: 30_000,
    env: { PATH: process.env.PATH },
  });
  return { status, stdout, stderr };
}

describe('qemu-wrap --libvirt', () => {
  const dir = makeTempDir('libvirt-xml');
  after(() => removeTempDir(dir));

  test('the domain goes to standard output, and what was changed to standard error', () => {
    const { xml, changes, left } = rewriteDomain(readFileSync(DOMAIN, 'utf8'), { sockets: [SOCKET] });
    const lines = [...changes, ...left].map((line) => `qemu-wrap: ${line}\n`).join('');
    assert.deepEqual(run(['--socket', SOCKET, '--libvirt', DOMAIN]), { status: 0, stdout: xml, stderr: lines });
  });

  test('standard input, with all that can be wished', () => {
    const options = ['--queues', '2', '--offloads', 'off', '--reconnect', '3', '--mac', 'BC:24:11:5E:0F:01'];
    const input = readFileSync(DOMAIN, 'utf8');
    const wish = { sockets: ['/a', '/b'], queues: 2, offloads: false, reconnect: 3, macs: ['bc:24:11:5e:0f:01'] };
    const { status, stdout } = run(['--socket', '/a', '--socket', '/b', ...options, '--libvirt', '-'], input);
    assert.equal(status, 0);
    assert.equal(stdout, rewriteDomain(input, wish).xml);
    const again = run(
      ['--socket', '/a', '--libvirt', '-'],
      stdout.replace('"BC:24:11:5E:0F:02"', '"BC:24:11:5E:0F:09"'),
    );
    assert.match(again.stderr, /:09: type 'bridge'/);
  });

  test('nothing to do is no failure, and is said', () => {
    const { status, stdout, stderr } = run(['--socket', '/a', '--libvirt', '-'], "<domain type='kvm'/>");
    assert.deepEqual(
      { status, stdout, stderr },
      { status: 0, stdout: "<domain type='kvm'/>", stderr: 'qemu-wrap: nothing is changed\n' },
    );
  });

  test('a byte order mark stays', () => {
    const { stdout } = run(['--socket', '/a', '--libvirt', '-'], "\ufeff<domain type='kvm'/>");
    assert.equal(stdout, "\ufeff<domain type='kvm'/>");
  });

  test('what cannot be used fails with the name of the file, and writes nothing', () => {
    const file = join(dir, 'broken.xml');
    writeFileSync(file, "<domain type='kvm'>\n");
    const missing = join(dir, 'missing.xml');
    const cases: [string, string | Uint8Array, RegExp][] = [
      [file, '', /broken\.xml: line 1, column 20: Missing end tag/],
      [missing, '', /ENOENT.*missing\.xml/],
      ['-', new Uint8Array([0x3c, 0xff]), /standard input: is not in UTF-8/],
      ['/dev/zero', '', /\/dev\/zero: is longer than 8388608 bytes/],
    ];
    for (const [name, input, message] of cases) {
      const { status, stdout, stderr } = run(['--socket', '/a', '--libvirt', name], input);
      assert.equal(status, 1, stderr);
      assert.equal(stdout, '');
      assert.match(stderr, message);
    }
  });
});

describe('options beside --libvirt', () => {
  const refused = (args: string[], code: ConfigErrorCode, option: string) => {
    const matches = (error: unknown) => error instanceof ConfigError && error.code === code && error.option === option;
    assert.throws(() => parseQemuWrap(args, {}), matches, args.join(' '));
  };

  test('what makes no sense with it is refused', () => {
    const libvirt = ['--socket', '/a', '--libvirt', 'x.xml'];
    refused(['--libvirt', 'x.xml'], 'CONFIG_CONFLICT', '--socket');
    refused(['--cuse', '/dev/x', '--libvirt', 'x.xml'], 'CONFIG_CONFLICT', '--cuse');
    refused([...libvirt, '--hugepages', 'on'], 'CONFIG_CONFLICT', '--hugepages');
    refused([...libvirt, '--print'], 'CONFIG_CONFLICT', '--print');
    refused([...libvirt, '--qemu', 'qemu-system-x86_64'], 'CONFIG_CONFLICT', '--qemu');
    refused([...libvirt, 'qemu-system-x86_64'], 'CONFIG_UNEXPECTED_WORD', 'qemu-system-x86_64');
    refused([...libvirt, '--mac', '52:54:00'], 'CONFIG_INVALID_VALUE', '--mac');
    refused(['--socket', '/a', '--mac', '52:54:00:00:00:01'], 'CONFIG_CONFLICT', '--mac');
  });

  test('the environment of an <emulator> does not disturb it', () => {
    const env = { VHOST_SWITCH_SOCKET: '/a', VHOST_SWITCH_HUGEPAGES: 'auto', VHOST_SWITCH_QEMU: 'qemu' };
    const { libvirt, sockets } = parseQemuWrap(['--libvirt', '-'], env);
    assert.deepEqual({ libvirt, sockets }, { libvirt: '-', sockets: ['/a'] });
  });
});
