/** Where the doctor looks: nothing there may hold it up or fill its memory, whoever is at the other end. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { askMonitor } from '../../src/doctor/monitor.ts';
import { MachineSource } from '../../src/doctor/source.ts';
import { createMemfd, sealAgainstShrinking } from '../../src/sys/memory.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';

const openFds = () => readdirSync('/proc/self/fd').length;

function folder(t: TestContext): string {
  const dir = makeTempDir('doctor');
  t.after(() => removeTempDir(dir));
  return dir;
}

test('doctor: what is not there, or is nothing to read, is undefined; no descriptor is left', (t) => {
  const dir = folder(t);
  mkdirSync(join(dir, 'dir'));
  symlinkSync('loop', join(dir, 'loop'));
  execFileSync('mkfifo', [join(dir, 'fifo')]);
  const source = new MachineSource(dir);
  const before = openFds();
  for (const path of ['/none', '/none/below', '/loop', '/dir']) assert.equal(source.text(path), undefined, path);
  assert.equal(source.text('/fifo'), '', 'nobody writes, and nobody is waited for');
  assert.deepEqual([source.list('/none'), source.link('/dir'), source.stat('/none')], [[], undefined, undefined]);
  assert.deepEqual(source.list('/'), ['dir', 'fifo', 'loop']);
  assert.equal(source.seals('/fifo'), undefined);
  assert.equal(openFds(), before);
});

test('doctor: of a file without end it reads the beginning', (t) => {
  const dir = folder(t);
  symlinkSync('/dev/zero', join(dir, 'endless'));
  const bytes = new MachineSource(dir).bytes('/endless');
  assert.ok(bytes !== undefined && bytes.length >= 2 ** 20 && bytes.length <= 64 * 2 ** 20);
});

test('doctor: the seals of a memory file', () => {
  const fd = createMemfd('doctor', 4096);
  const source = new MachineSource();
  assert.equal(source.seals(`/proc/self/fd/${fd}`), 0);
  assert.ok(sealAgainstShrinking(fd));
  assert.equal(source.seals(`/proc/self/fd/${fd}`), 2);
});

test('doctor: a program is asked, and one that fails or prints without end is none', async (t) => {
  const dir = folder(t);
  const program = (name: string, text: string) => {
    writeFileSync(join(dir, name), `#!/bin/sh\n${text}\n`);
    chmodSync(join(dir, name), 0o755);
  };
  program('good', 'echo version "$@"');
  program('bad', 'echo version; exit 3');
  program('endless', 'exec cat /dev/zero');
  const source = new MachineSource(dir);
  assert.equal(await source.run('/good', ['--version']), 'version --version\n');
  for (const name of ['/bad', '/endless', '/none']) assert.equal(await source.run(name, []), undefined, name);
});

/** A listener whose connections do `talk`. @returns its path */
async function listen(t: TestContext, talk: (socket: Socket) => void): Promise<string> {
  const path = join(folder(t), 'qmp');
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket.on('error', () => {}));
    talk(socket);
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return path;
}

const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n';

test('doctor: a monitor is asked for its memory, whatever else it says meanwhile', async (t) => {
  const path = await listen(t, (socket) => {
    socket.write(GREETING.slice(0, 30));
    setImmediate(() => socket.write(GREETING.slice(30)));
    socket.on('data', (data) => {
      const { execute, id } = JSON.parse(String(data));
      const memory = [
        { id: 'mem', size: 4096, share: true, prealloc: true, policy: 'default' },
        { size: 1, prealloc: false },
      ];
      const answer = execute === 'query-memdev' ? memory : {};
      socket.write(`{"event": "RESUME"}\n${JSON.stringify({ return: answer, id })}\n`);
    });
  });
  assert.deepEqual(await askMonitor(path), {
    version: '7.2.22',
    memory: [
      { id: 'mem', size: 4096, share: true, prealloc: true },
      { size: 1, prealloc: false },
    ],
  });
});

const useless: [what: string, talk: (socket: Socket) => void][] = [
  ['says nothing', () => {}],
  ['greets and says nothing more', (socket) => socket.write(GREETING)],
  ['ends at once', (socket) => socket.end()],
  ['speaks something else', (socket) => socket.write('220 mail.example ESMTP\r\n')],
  ['greets without a version', (socket) => socket.write('{"QMP": {"version": {"qemu": {"major": "7"}}}}\n')],
  ['sends a list', (socket) => socket.write('[]\n')],
  [
    'never ends its line',
    (socket) => {
      const more = () => socket.write('x'.repeat(65536), (error) => error ?? setImmediate(more));
      more();
    },
  ],
];
for (const [what, talk] of useless)
  test(`doctor: a monitor that ${what} is none`, { timeout: 30_000 }, async (t) => {
    assert.equal(await askMonitor(await listen(t, talk)), undefined);
  });

test('doctor: a monitor that is not there is none', async (t) => {
  assert.equal(await askMonitor(join(folder(t), 'none')), undefined);
  assert.equal(await askMonitor(`/${'x'.repeat(300)}`), undefined);
});
