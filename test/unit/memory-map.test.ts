/** /proc/PID/maps, and which files a range of addresses lies in. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileRanges, isStillThere, parseMaps } from '../../src/vhost-cuse/memory-map.ts';

const MAPS = `\
00400000-00452000 r-xp 00000000 08:02 173521                             /usr/bin/dbus-daemon
7f0000000000-7f0000200000 rw-s 00000000 00:01 1024                       /memfd:memory-backend-memfd (deleted)
7f0000200000-7f0000400000 rw-s 00200000 00:01 1024                       /memfd:memory-backend-memfd (deleted)
7f0000400000-7f0000600000 rw-s 00000000 00:0f 1025                       /dev/hugepages/a name (deleted)
7f0000600000-7f0000800000 rw-p 00000000 00:00 0
7f0000800000-7f0000a00000 r--s 00000000 00:01 1026                       /dev/shm/x\\012y
not a line of it
7ffc12345000-7ffc12366000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`;
const BASE = 0x7f00_0000_0000;
const MIB2 = 0x20_0000;

test('memory map: pieces are read with their rights, their file and its name', () => {
  const pieces = parseMaps(MAPS);
  assert.equal(pieces.length, 8);
  assert.deepEqual(pieces[2], {
    start: BASE + MIB2,
    end: BASE + 2 * MIB2,
    writable: true,
    shared: true,
    fileOff: MIB2,
    dev: '00:01',
    ino: 1024,
    name: '/memfd:memory-backend-memfd (deleted)',
  });
  assert.deepEqual(
    pieces.map(({ writable, shared, name }) => [writable, shared, name]),
    [
      [false, false, '/usr/bin/dbus-daemon'],
      [true, true, '/memfd:memory-backend-memfd (deleted)'],
      [true, true, '/memfd:memory-backend-memfd (deleted)'],
      [true, true, '/dev/hugepages/a name (deleted)'],
      [true, false, ''],
      [false, true, '/dev/shm/x\\012y'],
      [true, false, '[stack]'],
      [false, false, '[vsyscall]'],
    ],
  );
  assert.deepEqual(parseMaps(''), []);
});

test('memory map: a range is one range of a file as long as the file goes on', () => {
  const pieces = parseMaps(MAPS);
  const ranges = (start: number, size: number) =>
    fileRanges(pieces, start, size).map((range) => [range.start - BASE, range.size, range.fileOff, range.piece.ino]);
  assert.deepEqual(ranges(BASE, 2 * MIB2), [[0, 2 * MIB2, 0, 1024]]);
  assert.deepEqual(ranges(BASE + 0x1000, 2 * MIB2), [
    [0x1000, 2 * MIB2 - 0x1000, 0x1000, 1024],
    [2 * MIB2, 0x1000, 0, 1025],
  ]);
  assert.deepEqual(ranges(BASE + MIB2, 1), [[MIB2, 1, MIB2, 1024]]);
  assert.deepEqual(ranges(BASE + MIB2 - 1, 2), [[MIB2 - 1, 2, MIB2 - 1, 1024]]);
  assert.deepEqual(
    ranges(BASE + 3 * MIB2 - 0x1000, 0x2000).map(([, , , ino]) => ino),
    [1025, 0],
  );
});

test('memory map: of a range that is not all mapped, what is there is told', () => {
  const pieces = parseMaps(MAPS);
  const sizes = (start: number, size: number) => fileRanges(pieces, start, size).map((range) => range.size);
  assert.deepEqual(sizes(BASE - 0x1000, 0x2000), [0x1000]);
  assert.deepEqual(sizes(BASE + 5 * MIB2 - 0x1000, 0x2000), [0x1000]);
  assert.deepEqual(sizes(0, 0x1000), []);
  assert.deepEqual(sizes(2 ** 52, 0x1000), []);
  assert.deepEqual(fileRanges([], 0, 2 ** 52), []);
});

test('memory map: pieces of the same file in another order, or with a gap in it, are several ranges', () => {
  const maps = (second: number, third: number) =>
    parseMaps(
      [0, second, third]
        .map(
          (off, i) =>
            `${(0x1000 * (i + 1)).toString(16)}-${(0x1000 * (i + 2)).toString(16)} rw-s ${off.toString(16)} 00:01 7 /x`,
        )
        .join('\n'),
    );
  assert.equal(fileRanges(maps(0x1000, 0x2000), 0x1000, 0x3000).length, 1);
  assert.equal(fileRanges(maps(0x2000, 0x3000), 0x1000, 0x3000).length, 2);
  assert.equal(fileRanges(maps(0x2000, 0x1000), 0x1000, 0x3000).length, 3);
});

test('memory map: a piece is still there with the same file, shared and to be written', () => {
  const pieces = parseMaps(MAPS);
  const changed = (from: string | RegExp, to: string) => parseMaps(MAPS.replace(from, to));
  const piece = pieces[3];
  assert.equal(isStillThere(pieces, piece), true);
  assert.equal(isStillThere(changed('00:0f 1025', '00:0f 1026'), piece), false);
  assert.equal(isStillThere(changed('00:0f 1025', '00:10 1025'), piece), false);
  assert.equal(isStillThere(changed('rw-s 00000000 00:0f', 'r--s 00000000 00:0f'), piece), false);
  assert.equal(isStillThere(changed('rw-s 00000000 00:0f', 'rw-p 00000000 00:0f'), piece), false);
  assert.equal(isStillThere(changed(/^7f0000400000.*\n/m, ''), piece), false);
  assert.equal(isStillThere([], piece), false);
});
