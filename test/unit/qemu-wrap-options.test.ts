/** What qemu-wrap takes as its own, what from the environment, what as QEMU's; and which huge pages it chooses. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { parseQemuWrap, qemuWrapHelp } from '../../src/cli/qemu-wrap-options.ts';
import { ConfigError } from '../../src/errors.ts';
import { chooseHugepages, hugetlbMounts } from '../../src/launch/hugepages.ts';
import { reconnectKeys } from '../../src/launch/link.ts';
import { parseSize, sizeText } from '../../src/launch/size.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

describe('qemu-wrap: whose words are whose', () => {
  const split = (...argv: string[]) => {
    const { qemu, args } = parseQemuWrap(argv, {});
    return { qemu, args };
  };

  test('a program first, options first, and what libvirt gives', () => {
    assert.deepEqual(split('qemu-kvm', '-m', '1G'), { qemu: 'qemu-kvm', args: ['-m', '1G'] });
    assert.deepEqual(split('-m', '1G'), { qemu: undefined, args: ['-m', '1G'] });
    assert.deepEqual(split('-S', '-no-user-config'), { qemu: undefined, args: ['-S', '-no-user-config'] });
    assert.deepEqual(split('-h'), { qemu: undefined, args: ['-h'] });
    assert.deepEqual(split(), { qemu: undefined, args: [] });
  });

  test('own options end at the first other word, or at --', () => {
    assert.deepEqual(split('--socket', 's', '--print', 'qemu', '--socket', 't'), {
      qemu: 'qemu',
      args: ['--socket', 't'],
    });
    assert.deepEqual(split('--queues=2', '--', '--enable-kvm'), { qemu: undefined, args: ['--enable-kvm'] });
    assert.throws(() => split('--hugepages', '--', 'qemu'), /--hugepages: invalid .* "--"/);
  });

  test('with --qemu a word is an image', () => {
    assert.deepEqual(split('--qemu', 'kvm', 'disk.img', '-m', '1G'), { qemu: 'kvm', args: ['disk.img', '-m', '1G'] });
  });

  test('sockets are made absolute, since QEMU may go elsewhere', () => {
    assert.deepEqual(parseQemuWrap(['--socket', '/a/b', '--socket', 'c'], {}).sockets, ['/a/b', `${process.cwd()}/c`]);
  });

  test('the environment counts less than options, and a way given by one overrules the other', () => {
    const env = {
      VHOST_SWITCH_SOCKET: '/run/a:/run/b',
      VHOST_SWITCH_HUGEPAGES: 'auto',
      VHOST_SWITCH_OFFLOADS: 'off',
      VHOST_SWITCH_RECONNECT: '5',
      VHOST_SWITCH_QUEUES: '',
    };
    const all = parseQemuWrap(['-S'], env);
    assert.deepEqual(
      [all.sockets, all.hugepages, all.offloads, all.reconnect, all.queues],
      [['/run/a', '/run/b'], 'auto', false, 5, undefined],
    );
    assert.deepEqual(parseQemuWrap(['--socket', '/run/c', '--reconnect', '0'], env).sockets, ['/run/c']);
    const device = parseQemuWrap(['--cuse', '/dev/v-1'], env);
    assert.deepEqual([device.sockets, device.devices], [[], ['/dev/v-1']]);
    assert.throws(
      () => parseQemuWrap([], { VHOST_SWITCH_OFFLOADS: 'maybe' }),
      (error: ConfigError) => error.option === 'VHOST_SWITCH_OFFLOADS' && /valid: on\|off/.test(error.message),
    );
  });
});

test('qemu-wrap: every option and variable is in its document', () => {
  const text = readFileSync(new URL('../../docs/qemu-wrap.md', import.meta.url), 'utf8');
  const names = qemuWrapHelp().match(/^ {6}--[\w-]+|VHOST_SWITCH_\w+/gm) ?? [];
  assert.ok(names.length > 15);
  for (const name of names.map((one) => one.trim()).filter((one) => !['--help', '--version'].includes(one)))
    assert.ok(text.includes(`\`${name}`), name);
});

describe('qemu-wrap: huge pages', () => {
  const TEXT = `tmpfs /dev/shm tmpfs rw 0 0
hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0
none /mnt/huge\\0401g hugetlbfs rw,pagesize=1024M,gid=7 0 0
none /mnt/plain hugetlbfs rw 0 0
`;
  const mounts = hugetlbMounts(TEXT, 2 * MIB, (pageBytes) => (pageBytes === GIB ? 2 : 700));

  test('mounts are read with their page size, and blanks in their names', () => {
    assert.deepEqual(mounts, [
      { path: '/dev/hugepages', pageBytes: 2 * MIB, freeBytes: 1400 * MIB },
      { path: '/mnt/huge 1g', pageBytes: GIB, freeBytes: 2 * GIB },
      { path: '/mnt/plain', pageBytes: 2 * MIB, freeBytes: 1400 * MIB },
    ]);
  });

  test('the largest pages into which the guest fits are taken', () => {
    const pathFor = (...sizes: number[]) => chooseHugepages('auto', mounts, sizes)?.path;
    assert.equal(pathFor(2 * GIB), '/mnt/huge 1g');
    assert.equal(pathFor(GIB + 2 * MIB), '/dev/hugepages');
    assert.equal(pathFor(GIB, GIB), '/mnt/huge 1g');
    assert.equal(pathFor(GIB, GIB, 2 * MIB), undefined);
    assert.equal(pathFor(MIB), undefined);
    assert.equal(chooseHugepages('off', mounts, [GIB]), undefined);
  });

  test('a place that is named is taken, also below a mount', () => {
    const wish = { path: '/dev/hugepages/libvirt' };
    assert.equal(chooseHugepages(wish, mounts, [GIB])?.path, wish.path);
  });

  test('what must be and cannot be says why', () => {
    const says = (wish: Parameters<typeof chooseHugepages>[0], size: number, there = mounts) => {
      try {
        chooseHugepages(wish, there, [size]);
      } catch (error) {
        assert.ok(error instanceof ConfigError);
        return error.message;
      }
      return 'nothing';
    };
    assert.match(
      says('on', 3 * GIB),
      /needs 3072M, in whole pages, but \/dev\/hugepages has 1400M free in pages of 2M; /,
    );
    assert.match(says('on', GIB, []), /hugetlbfs is mounted nowhere/);
    assert.match(says({ path: '/tmp' }, GIB), /\/tmp is not on hugetlbfs/);
  });
});

describe('qemu-wrap: what QEMU writes', () => {
  test('sizes', () => {
    const sizes: [string, number | undefined][] = [
      ['4096', 4096 * MIB],
      ['4G', 4 * GIB],
      ['1.5g', 1.5 * GIB],
      ['524288k', 512 * MIB],
      ['0x100', 256 * MIB],
      ['100000000B', 1e8],
      ['much', undefined],
      ['4GB', undefined],
      ['9999999999E', undefined],
    ];
    for (const [text, bytes] of sizes) assert.equal(parseSize(text, MIB), bytes, text);
    assert.deepEqual([4 * GIB, 8192].map(sizeText), ['4096M', '8192']);
  });

  test('the key that has QEMU connect again is the one its version knows', () => {
    assert.deepEqual(reconnectKeys(2, [9, 1]), { reconnect: 2 });
    assert.deepEqual(reconnectKeys(2, [9, 2]), { 'reconnect-ms': 2000 });
    assert.deepEqual(reconnectKeys(2, [11, 0]), { 'reconnect-ms': 2000 });
    assert.deepEqual(reconnectKeys(2, undefined), { reconnect: 2 });
  });
});
