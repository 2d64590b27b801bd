import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import * as protocol from '../../src/uapi/vhost-user.ts';
import { hasFeature } from '../../src/uapi/virtio.ts';
import { UserfaultPostcopy } from '../../src/vhost/postcopy.ts';
import { REQUESTS } from '../../src/vhost-user/requests.ts';
import { DeviceBench } from '../kit/device-bench.ts';

const { BACKEND_REQUEST, REQUEST } = protocol;
const PREFIX = 'VHOST_USER_PROTOCOL_F_';

/** The rows of the table under a heading of docs/protocol.md, by what the first column names. */
function rowsUnder(heading: string): Map<string, string[]> {
  const text = readFileSync('docs/protocol.md', 'utf8');
  const section = text.split(/^## /m).find((part) => part.startsWith(`${heading}\n`));
  assert.ok(section, `a section “${heading}”`);
  const rows = section.split('\n').filter((line) => line.startsWith('| `'));
  const cells = rows.map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
  const named = cells.map(([name, ...rest]): [string, string[]] => [name.replaceAll('`', ''), rest]);
  assert.equal(new Map(named).size, named.length, 'each is there once');
  return new Map(named);
}

/** A file and those of the tests that it imports, as one text without anything but letters. */
function lettersOf(file: string, seen = new Set<string>()): string {
  if (seen.has(file)) return '';
  seen.add(file);
  const text = readFileSync(file, 'utf8');
  const imported = [...text.matchAll(/from '(\.[^']+)'/g)]
    .map(([, path]) => join(dirname(file), path))
    .filter((path) => path.startsWith('test/'));
  return [text.replace(/[^A-Za-z]/g, '').toLowerCase(), ...imported.map((path) => lettersOf(path, seen))].join(' ');
}

function assertShown(name: string, cell: string): void {
  const file = cell.replaceAll('`', '');
  assert.ok(existsSync(file), `${name}: ${file}`);
  const letters = name
    .replace(/^BACKEND_/, '')
    .replaceAll('_', '')
    .toLowerCase();
  assert.ok(lettersOf(file).includes(letters), `${file} has to do with ${name}`);
}

test('docs/protocol.md: every request of the front end, whether it is served, and by which test', () => {
  const rows = rowsUnder('Requests of the front end');
  assert.deepEqual([...rows.keys()], Object.keys(REQUEST));
  const offered = DeviceBench.net({ configSpace: true, createPostcopy: () => new UserfaultPostcopy() }).device;
  for (const [name, [served, , shown]] of rows) {
    const row = REQUESTS.get(REQUEST[name as protocol.RequestName]);
    const isServed = row !== undefined && (row.needs === undefined || hasFeature(offered.protocolFeatures, row.needs));
    assert.equal(served, isServed ? 'yes' : 'no', name);
    if (row !== undefined) assertShown(name, shown);
  }
});

test('docs/protocol.md: every request of the back end', () => {
  const rows = rowsUnder('Requests of the back end');
  assert.deepEqual([...rows.keys()], Object.keys(BACKEND_REQUEST));
  for (const [name, [sent, , shown]] of rows) if (sent === 'yes') assertShown(name, shown);
});

test('docs/protocol.md: every protocol feature, and whether a device offers it', () => {
  const rows = rowsUnder('Protocol features');
  const features = Object.entries(protocol).filter(([name]) => name.startsWith(PREFIX)) as [string, number][];
  const byBit = features.sort(([, a], [, b]) => a - b).map(([name]) => name.slice(PREFIX.length));
  assert.deepEqual([...rows.keys()], byBit);
  const plain = DeviceBench.net().device.protocolFeatures;
  const all = DeviceBench.net({ configSpace: true, createPostcopy: () => new UserfaultPostcopy() }).device
    .protocolFeatures;
  for (const [bit, [name, [offered]]] of [...rows].entries()) {
    const how = hasFeature(plain, bit) ? 'yes' : hasFeature(all, bit) ? 'option' : 'no';
    assert.equal(offered.startsWith('`--') ? 'option' : offered, how, name);
  }
});
