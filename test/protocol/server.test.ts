/** The socket file: whose it is, who may connect; and the server's limits. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, closeSync, existsSync, lstatSync, renameSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { bindUnix, connectUnix, startListening } from '../../src/sys/unix-socket.ts';
import { GOLDEN } from './golden.ts';
import { openFds, RawPeer, TempDir, TestServer, until } from './harness.ts';

const root = process.getuid?.() === 0;

test('a stale socket, on which nobody listens: is replaced', async () => {
  const dir = new TempDir();
  const path = dir.path('s');
  const fd = bindUnix(path);
  startListening(fd, 1);
  closeSync(fd);
  assert.ok(existsSync(path));
  const server = new TestServer({ path });
  closeSync(connectUnix(path));
  await server.close();
  assert.equal(existsSync(path), false);
  dir.remove();
});

test('a live socket: an error that says what to do, and the other lives on', async () => {
  const before = openFds();
  const server = new TestServer();
  assert.throws(() => new TestServer({ path: server.path }), {
    code: 'SOCKET_IN_USE',
    message: `another program already listens on ${server.path}: stop it, or choose another --socket-file`,
  });
  const { peer } = await server.connect();
  peer.send(GOLDEN[0].request);
  assert.equal((await peer.read(20)).length, 40);
  await server.close();
  assert.equal(openFds(), before);
});

test('a live socket with a full backlog: still in use', () => {
  const dir = new TempDir();
  const fd = bindUnix(dir.path('s'));
  startListening(fd, 0);
  const waiting = connectUnix(dir.path('s'));
  assert.throws(() => new TestServer({ path: dir.path('s') }), { code: 'SOCKET_IN_USE' });
  for (const each of [fd, waiting]) closeSync(each);
  dir.remove();
});

test('a foreign file, or a link to a socket: an error, and it stays', async () => {
  const dir = new TempDir();
  writeFileSync(dir.path('file'), 'precious');
  const server = new TestServer();
  symlinkSync(server.path, dir.path('link'));
  for (const name of ['file', 'link']) {
    assert.throws(() => new TestServer({ path: dir.path(name) }), {
      code: 'SOCKET_FOREIGN_FILE',
      message: `${dir.path(name)} exists and is not a socket: remove it, or choose another --socket-file`,
    });
    assert.ok(existsSync(dir.path(name)));
  }
  await server.close();
  dir.remove();
});

test('a folder that is not there, a path too long: errors', () => {
  const dir = new TempDir();
  const open = (path: string) => () => new TestServer({ path });
  assert.throws(open(dir.path('none/s')), { code: 'ENOENT' });
  assert.throws(open(dir.path('x'.repeat(108))), RangeError);
  dir.remove();
});

test('closing removes the socket only while it is ours', async () => {
  const server = new TestServer();
  renameSync(server.path, `${server.path}.moved`);
  const other = new TestServer({ path: server.path });
  await server.server.close();
  closeSync(connectUnix(server.path));
  await other.server.close();
  assert.equal(existsSync(server.path), false);
  await server.close();
  await other.close();
});

test('mode and owner are set', async () => {
  const server = new TestServer({ mode: 0o640, ...(root && { owner: 'daemon', group: 12 }) });
  const { mode, uid, gid } = lstatSync(server.path);
  assert.equal(mode & 0o7777, 0o640);
  if (root) assert.deepEqual([uid, gid], [1, 12]);
  await server.close();
});

test('an owner that does not exist: an error, and no socket', () => {
  const dir = new TempDir();
  assert.throws(() => new TestServer({ path: dir.path('s'), owner: 'nobody-of-this-name' }), {
    code: 'SOCKET_UNKNOWN_OWNER',
    message: 'no user named nobody-of-this-name in /etc/passwd',
  });
  assert.deepEqual(dir.names(), []);
  dir.remove();
});

test('nobody can connect before mode and owner are set', async () => {
  // a socket that is bound but does not listen refuses: the state in which mode and owner are changed
  const dir = new TempDir();
  const fd = bindUnix(dir.path('s'));
  assert.throws(() => connectUnix(dir.path('s')), { code: 'ECONNREFUSED' });
  chmodSync(dir.path('s'), 0o600);
  startListening(fd, 1);
  assert.equal(statSync(dir.path('s')).mode & 0o777, 0o600);
  closeSync(fd);
  dir.remove();
});

test('more front ends than allowed: closed with a line in the log, and one leaving makes room', async () => {
  const server = new TestServer({ maxConnections: 2 });
  const { peer: first } = await server.connect();
  await server.connect();
  const refused = RawPeer.connect(server.path);
  await refused.untilClosed();
  refused.close();
  assert.deepEqual(server.problems(), [
    `warn socket ${server.path}: connection 2: refused, 2 front ends are connected already`,
  ]);
  first.close();
  await until(() => server.server.connectionCount === 1, 'the first is gone');
  await server.connect();
  await server.close();
});

test('no device for a connection, or an error in making one: closed with a line in the log', async () => {
  const before = openFds();
  let n = 0;
  const server = new TestServer({
    createDevice: () => {
      if (n++ === 0) return undefined;
      throw new Error('out of windows');
    },
  });
  for (let i = 0; i < 2; i++) {
    const peer = RawPeer.connect(server.path);
    await peer.untilClosed();
    peer.close();
  }
  assert.deepEqual(server.problems(), [
    `warn socket ${server.path}: connection 0: refused, there is no device for it`,
    `error socket ${server.path}: connection 1: refused, no device could be created: out of windows`,
  ]);
  await server.close();
  assert.equal(openFds(), before);
});

test('connecting and disconnecting are told, the latter when the device is destroyed', async () => {
  const events: string[] = [];
  const server = new TestServer({
    onConnect: (_, { name, connection }) => events.push(`${name} connected as ${connection}`),
    onDisconnect: (device, { name }) => events.push(`${name} gone, ${device === server.devices[0]}`),
    prepare: (device) => Object.assign(device, { delayMs: 5 }),
  });
  const { peer } = await server.connect();
  peer.close();
  await until(() => events.length === 2, 'the front end is gone');
  assert.deepEqual(events, ['device 0 connected as 0', 'device 0 gone, true']);
  assert.equal(server.devices[0].destroyed, true);
  await server.close();
});

test('closing the server closes its connections and waits for their devices', async () => {
  const before = openFds();
  const server = new TestServer({ prepare: (device) => Object.assign(device, { delayMs: 10 }) });
  const { peer, device } = await server.connect();
  await server.connect();
  peer.send('08000000 01000000 08000000 03000000 00010000');
  await until(() => device.busy, 'the device is at work');
  await Promise.all([server.server.close(), server.server.close()]);
  assert.ok(server.devices.every((device) => device.destroyed));
  await peer.untilClosed();
  await server.close();
  assert.equal(openFds(), before);
});

test('a front end killed with answers unread: its device is destroyed', async () => {
  const server = new TestServer();
  const program = `
    import socket, sys
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
    s.sendall(bytes.fromhex('010000000100000000000000') * 8); sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()`;
  const child = spawn('python3', ['-c', program.replaceAll(/^ {4}/gm, ''), server.path], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  await until(() => server.devices.length === 1, 'it is connected');
  child.kill('SIGKILL');
  await until(() => server.devices[0]?.destroyed, 'the device is destroyed');
  await server.close();
});
