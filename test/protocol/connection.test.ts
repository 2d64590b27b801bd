/** Framing, and peers that send or read as they should not: none makes another wait. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { send, unixPair } from '../../src/sys/unix-socket.ts';
import { Connection } from '../../src/vhost-user/connection.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { altered, GOLDEN, littleEndian64 } from './golden.ts';
import { bytes, FdBox, openFds, RawServer, TestServer, until } from './harness.ts';

const GET_FEATURES = GOLDEN[0].request;
const ANSWER = (GOLDEN[0].answer as string).replaceAll(' ', '');
const SET_NUM = '08000000 01000000 08000000 03000000 00010000';

test('a message byte by byte: understood when the last has come', async () => {
  const server = new TestServer();
  const { peer, device } = await server.connect();
  for (const byte of bytes(SET_NUM)) {
    assert.deepEqual(device.calls, []);
    peer.send(byte.toString(16).padStart(2, '0'));
    await sleep(1);
  }
  await until(() => device.calls.length === 1, 'the device is told');
  await server.close();
});

test('a hundred messages in one write: each understood, descriptors with the right one', async () => {
  const before = openFds();
  const server = new TestServer();
  const box = new FdBox();
  const { peer, device } = await server.connect();
  peer.send(SET_NUM.repeat(50));
  peer.send('0d000000 01000000 08000000 0200000000000000', [box.eventfd()]);
  peer.send(SET_NUM.repeat(50));
  await until(() => device.calls.length === 101, 'the device is told');
  assert.deepEqual(device.calls[50], ['setVringCall', 2, 'fd']);
  assert.deepEqual(server.problems(), []);
  box.close();
  await server.close();
  assert.equal(openFds(), before);
});

test('half a message: neither other connections nor closing waits for the rest', async () => {
  const before = openFds();
  const server = new TestServer();
  const box = new FdBox();
  const { peer: half } = await server.connect();
  half.send('0c000000 0100', box.many(1));
  const { peer: stuck } = await server.connect();
  stuck.send(SET_NUM.slice(0, -8));
  const { peer } = await server.connect();
  peer.send(GET_FEATURES);
  assert.equal(await peer.read(20), ANSWER);

  stuck.close();
  await until(() => server.devices[1].destroyed, 'the device is destroyed');
  assert.deepEqual(server.problems(), [
    'error device 1: SET_VRING_NUM: the peer closed in the middle of the message; connection closed',
  ]);
  box.close();
  await server.close();
  assert.equal(openFds(), before);
});

test('a peer that goes while a message is handled is told at once, and the rest of what it sent comes before its end', async () => {
  const before = openFds();
  const [own, theirs] = unixPair();
  const told: string[] = [];
  const busy = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  new Connection(own, {
    onMessage: async ({ request }) => {
      told.push(`message ${request}`);
      if (told.length === 1) await busy.promise;
    },
    onPeerGone: () => void told.push('gone'),
    onClose: (error) => {
      told.push(`closed ${error}`);
      ended.resolve();
    },
  });
  send(theirs, bytes(GET_FEATURES + SET_NUM));
  await until(() => told.length === 1, 'the message');
  await sleep(5);
  closeSync(theirs);
  await until(() => told.length === 2, 'the end');
  await sleep(5);
  assert.deepEqual(told, ['message 1', 'gone']);
  busy.resolve();
  await ended.promise;
  assert.deepEqual(told, ['message 1', 'gone', 'message 8', 'closed undefined']);
  assert.equal(openFds(), before);
});

test('answers left unread: the connection is closed at a bound, others never notice', async () => {
  const server = new TestServer();
  const { peer: deaf, device } = await server.connect();
  const { peer } = await server.connect();
  const request = bytes(GET_FEATURES.repeat(32));
  let worst = 0;
  while (!device.destroyed) {
    try {
      send(deaf.fd, request);
    } catch {
      break; // closed
    }
    const start = performance.now();
    peer.send(GET_FEATURES);
    assert.equal(await peer.read(20), ANSWER);
    worst = Math.max(worst, performance.now() - start);
  }
  await until(() => device.destroyed, 'the device is destroyed');
  assert.match(server.problems()[0], /the peer left 6\d{4} bytes unread; connection closed/);
  assert.ok(worst < 500, `an answer took ${worst} ms`);
  await server.close();
});

test('a flood of messages: another connection gets its turn before the flood is worked off', async () => {
  const server = new TestServer();
  const { peer: flood, device } = await server.connect();
  const { peer } = await server.connect();
  const messages = Math.floor(send(flood.fd, bytes(SET_NUM.repeat(8000))) / 20);
  assert.ok(messages > 1000, `the kernel took only ${messages} messages`);
  peer.send(GET_FEATURES);
  assert.equal(await peer.read(20), ANSWER);
  const before = device.calls.length;
  assert.ok(before < messages, `the answer came behind all ${messages} messages`);
  await until(() => device.calls.length === messages, 'the flood is worked off');
  await server.close();
});

test('253 descriptors with one message: all closed, and the connection', async () => {
  const before = openFds();
  const server = new TestServer();
  const box = new FdBox();
  const { peer } = await server.connect();
  peer.send(GET_FEATURES, Array(253).fill(box.eventfd()));
  await peer.untilClosed();
  assert.deepEqual(server.problems(), ['error device 0: 253 file descriptors, must be at most 8; connection closed']);
  box.close();
  await server.close();
  assert.equal(openFds(), before);
});

test('descriptors with the payload, or behind the first byte: closed, and the connection', async () => {
  for (const cut of [3, 12]) {
    const before = openFds();
    const server = new TestServer();
    const box = new FdBox();
    const { peer } = await server.connect();
    const message = bytes(`0c000000 01000000 08000000 ${littleEndian64(0n)}`);
    send(peer.fd, message.subarray(0, cut));
    await sleep(5);
    send(peer.fd, message.subarray(cut), box.many(1));
    await peer.untilClosed();
    assert.match(server.problems()[0], /file descriptors came behind the first byte of the message; connection closed/);
    box.close();
    await server.close();
    assert.equal(openFds(), before);
  }
});

test('two thousand connections come and go: all devices destroyed, no descriptor left, a bounded log', async () => {
  const before = openFds();
  const server = new TestServer({ backlog: 512 });
  for (let i = 0; i < 2000; i++) {
    const peer = new FdBox();
    const fd = await connectWhenRoom(peer, server.path);
    if (i % 3 === 1) send(fd, bytes(GET_FEATURES));
    if (i % 3 === 2) send(fd, bytes(SET_NUM).subarray(0, 1 + (i % 19)));
    peer.close();
  }
  await until(() => server.devices.length === 2000, 'all are accepted');
  await until(() => server.server.connectionCount === 0, 'all are gone');
  assert.ok(server.devices.every((device) => device.destroyed));
  assert.ok(server.lines.length < 1000, `${server.lines.length} lines`);
  await server.close();
  assert.equal(openFds(), before);
});

async function connectWhenRoom(box: FdBox, path: string): Promise<number> {
  for (;;) {
    try {
      return box.socket(path);
    } catch {
      await sleep(1); // the backlog is full
    }
  }
}

test('a front end whose back end falls silent: fails within its time limit', async () => {
  const server = new RawServer();
  const frontEnd = await FrontEnd.connect(server.path, { replyTimeoutMs: 30 });
  const peer = await server.accept();
  await assert.rejects(frontEnd.getFeatures(), /GET_FEATURES: the connection was closed \(.*no answer within 30 ms\)/);
  await assert.rejects(frontEnd.setOwner(), /SET_OWNER: the connection was closed/);
  peer.close();
  server.close();
});

for (const [what, answer, says] of [
  ['to another request', altered(ANSWER, { request: 15 }), /the answer is to another request/],
  ['without the reply flag', altered(ANSWER, { flags: 1 }), /the answer lacks the reply flag/],
  ['of another size', altered(ANSWER, { size: 4 }), /GET_FEATURES: payload is 4 bytes, must be 8/],
] as const) {
  test(`a back end that answers ${what}: the front end says so`, async () => {
    const server = new RawServer();
    const frontEnd = await FrontEnd.connect(server.path);
    const peer = await server.accept();
    const asked = frontEnd.getFeatures();
    peer.send(answer);
    await assert.rejects(asked, says);
    frontEnd.close();
    peer.close();
    server.close();
  });
}

test('a front end waits for its back end to appear, until the deadline', async () => {
  const server = new TestServer();
  const path = `${server.path}2`;
  await assert.rejects(FrontEnd.connect(path, { deadlineMs: 50 }), { code: 'ENOENT' });
  const waiting = FrontEnd.connect(path, { deadlineMs: 5000 });
  await sleep(30);
  const late = new TestServer({ path });
  const frontEnd = await waiting;
  await frontEnd.getFeatures();
  frontEnd.close();
  await late.close();
  await server.close();
});

test('no descriptors left in the process: a message whose descriptors are lost closes the connection', async () => {
  const script = new URL('./few-fds.ts', import.meta.url).pathname;
  const { stdout } = await promisify(execFile)('sh', ['-c', `ulimit -n 64; exec "$0" "$1"`, process.execPath, script]);
  assert.match(stdout, /accepting: EMFILE, then served/);
  assert.match(stdout, /receiving: EMFILE, connection closed, nothing leaked/);
  assert.match(stdout, /closing: while accepting pauses/);
});
