import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

/** A room imports itself and those above it, never those below. */
const ROOMS = [
  ...['uapi', 'net', 'stats', 'sys', 'mem', 'virtqueue', 'vhost', 'virtio-net', 'vhost-user', 'vhost-cuse'],
  ...['port', 'switch', 'lcore', 'control', 'launch', 'doctor', 'testpmd', 'cli'],
];
/** The room whose files alone may import these packages. */
const PACKAGES: Readonly<Record<string, string>> = { koffi: 'sys', '@rgrove/parse-xml': 'launch' };

const SRC = fileURLToPath(new URL('../src', import.meta.url));

interface File {
  /** relative to src, e.g. `mem/window.ts` */
  readonly path: string;
  /** modules of this package, as paths relative to src */
  readonly files: readonly string[];
  /** other packages and Node's own modules */
  readonly packages: readonly string[];
}

const roomOf = (path: string) => (path.includes('/') ? path.slice(0, path.indexOf('/')) : '');

function readFile(path: string): File {
  const text = readFileSync(join(SRC, path), 'utf8');
  const statement = /^\s*(?:import|export)\s+(?:[^'";]*?\sfrom\s+)?'([^']+)'/gm;
  const dynamic = /\bimport\(\s*'([^']+)'\s*\)/g;
  const imported = [statement, dynamic].flatMap((form) => [...text.matchAll(form)].map(([, name]) => name));
  const own = imported.filter((name) => name.startsWith('.'));
  return {
    path,
    files: own.map((name) => normalize(join(dirname(path), name))),
    packages: imported.filter((name) => !name.startsWith('.')),
  };
}

const files = readdirSync(SRC, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
  .map((entry) => readFile(relative(SRC, join(entry.parentPath, entry.name))));
const byPath = new Map(files.map((file) => [file.path, file]));

test('architecture: the import lines are read', () => {
  assert.ok(byPath.get('lcore/lcore.ts')?.files.includes('switch/switching.ts'));
  assert.ok(byPath.get('sys/libc.ts')?.packages.includes('koffi'));
  for (const { path, files: imported } of files)
    for (const other of imported) assert.ok(byPath.has(other), `${path} imports ${other}, which is a file of src`);
});

test('architecture: every file is in a room of the house', () => {
  for (const { path } of files) {
    const known = ROOMS.includes(roomOf(path)) || ['errors.ts', 'index.ts'].includes(path);
    assert.ok(known, `${path}: no such room; add it to the list where it belongs`);
  }
});

test('architecture: a room imports only rooms above it', () => {
  const breaches = files.flatMap(({ path, files: imported }) => {
    if (path === 'index.ts') return [];
    const mayReach = ROOMS.indexOf(roomOf(path));
    return imported
      .filter((other) => other !== 'errors.ts' && (other === 'index.ts' || ROOMS.indexOf(roomOf(other)) > mayReach))
      .map((other) => `${path} imports ${other}`);
  });
  assert.deepEqual(breaches, []);
});

test('architecture: the protocol knows no device', () => {
  const devices = ROOMS.filter((room) => room.startsWith('virtio-'));
  assert.ok(devices.includes('virtio-net'));
  const breaches = files
    .filter(({ path }) => ['vhost', 'vhost-user', 'vhost-cuse'].includes(roomOf(path)))
    .flatMap(({ path, files: imported }) =>
      imported
        .filter((other) => devices.includes(roomOf(other)) || other.startsWith('uapi/virtio-net'))
        .map((other) => `${path} imports ${other}`),
    );
  assert.deepEqual(breaches, []);
});

test('architecture: errors.ts imports nothing of the package', () => {
  assert.deepEqual(byPath.get('errors.ts')?.files, []);
});

test('architecture: a package that belongs to one room is imported there only', () => {
  const breaches = files.flatMap(({ path, packages }) =>
    packages
      .filter((name) => PACKAGES[name] !== undefined && PACKAGES[name] !== roomOf(path))
      .map((name) => `${path} imports ${name}`),
  );
  assert.deepEqual(breaches, []);
});

test('architecture: no file imports itself by way of others', () => {
  const done = new Set<string>();
  const visit = (path: string, way: readonly string[]): void => {
    assert.ok(!way.includes(path), `a circle: ${[...way.slice(way.indexOf(path)), path].join(' → ')}`);
    if (done.has(path)) return;
    for (const next of byPath.get(path)?.files ?? []) visit(next, [...way, path]);
    done.add(path);
  };
  for (const { path } of files) visit(path, []);
});
