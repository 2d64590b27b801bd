/** The client: it waits for front ends that listen, begins again for ever, and is not taken in by listeners that never serve it. */
import assert from 'node:assert/strict';
import { unlinkSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { AGAIN, receive } from '../../src/sys/unix-socket.ts';
import { FakeDevice } from './fake-device.ts';
import { GOLDEN } from './golden.ts';
import { FdBox, openFds, type RawPeer, RawServer, TempDir, TestClient, until } from './harness.ts';

const GET_FEATURES = GOLDEN[0].request;
const ANSWER = (GOLDEN[0].answer as string).replaceAll(' ', '');
const SET_CALL = '0d000000 01000000 08000000 0200000000000000';

const waiting = (path: string) => `info socket ${path}: waiting for a front end that listens on it`;
const wordless = (path: string) =>
  `warn socket ${path}: the program that listens has closed the connection without a word`;

/** Says something and hears the answer: a front end that is served. */
async function converse(peer: RawPeer): Promise<void> {
  peer.send(GET_FEATURES);
  assert.equal(await peer.read(20), ANSWER);
}

/** Whether the other side has closed a connection on which it says nothing. */
function closedByOther(peer: RawPeer): boolean {
  return receive(peer.fd, new Uint8Array(1), []) !== AGAIN;
}

test('nobody listens: the client waits, and serves whoever comes, as often as one comes', async () => {
  const before = openFds();
  const dir = new TempDir();
  const path = dir.path('s');
  const client = new TestClient(path);
  await sleep(60);
  assert.deepEqual(client.lines, [waiting(path)]);
  for (let n = 0; n < 3; n++) {
    const listener = new RawServer(path);
    const peer = await listener.accept();
    await converse(peer);
    assert.equal(client.client.connectionCount, 1);
    listener.close();
    await until(() => client.devices[n].destroyed, 'the device is destroyed');
    assert.equal(client.client.connectionCount, 0);
    await sleep(30); // the socket is there, and nobody listens
    unlinkSync(path);
  }
  const [each, ...rest] = client.lines;
  assert.equal(each, waiting(path));
  const round = (n: number) => [`info device ${n}: connected`, `info device ${n}: disconnected`, each];
  assert.deepEqual(rest, [round(0), round(1), round(2)].flat());
  await client.close();
  dir.remove();
  assert.equal(openFds(), before);
});

test('a listener that accepts and closes: tried for ever with pauses, no device is made, and it is told once', async () => {
  const before = openFds();
  const listener = new RawServer();
  const client = new TestClient(listener.path, { retryMs: [10, 40] });
  const at: number[] = [];
  for (let n = 0; n < 12; n++) {
    const peer = await listener.accept();
    at.push(performance.now());
    peer.close();
  }
  const pauses = at.slice(1).map((ms, n) => ms - at[n]);
  for (const [n, least] of [10, 20, 40, 40, 40].entries())
    assert.ok(pauses[n] > least - 5, `pauses of ${pauses} ms between the tries`);
  assert.deepEqual(client.devices, []);
  assert.deepEqual(client.lines, [waiting(listener.path), wordless(listener.path)]);
  await converse(await listener.accept());
  assert.equal(client.devices.length, 1);
  await client.close();
  listener.close();
  assert.equal(openFds(), before);
});

test('a listener that never accepts: the client leaves after a while and comes back, until it is served', async () => {
  const before = openFds();
  const listener = new RawServer();
  const client = new TestClient(listener.path, { firstMessageMs: 30 });
  await until(() => client.lines.some((line) => line.includes('EAGAIN')), 'the backlog is full');
  assert.deepEqual(
    client.lines.map((line) => line.replace(/.*: /, '')),
    [
      'waiting for a front end that listens on it',
      'the program that listens has said nothing for 0.03 s',
      'resource temporarily unavailable',
    ],
  );
  // It recovers, finds those who have left, and then one who waits.
  let live: RawPeer | undefined;
  await until(() => {
    const peer = listener.acceptNow();
    if (peer !== undefined && !closedByOther(peer)) live = peer;
    return live !== undefined;
  }, 'a live connection');
  await converse(live as RawPeer);
  assert.equal(client.devices.length, 1);
  await client.close();
  listener.close();
  assert.equal(openFds(), before);
});

test('a listener that accepts and says nothing: the connection is closed in time, and the next one is served', async () => {
  const before = openFds();
  const listener = new RawServer();
  const client = new TestClient(listener.path, { firstMessageMs: 50 });
  for (let n = 0; n < 3; n++) {
    const from = performance.now();
    await (await listener.accept()).untilClosed();
    assert.ok(performance.now() - from > 40);
  }
  const peer = await listener.accept();
  await converse(peer);
  await sleep(100); // one that has spoken may be silent as long as it likes
  await converse(peer);
  assert.equal(client.lines.filter((line) => line.includes('said nothing for 0.05 s')).length, 1);
  await client.close();
  listener.close();
  assert.equal(openFds(), before);
});

test('descriptors that come with the first message belong to it', async () => {
  const before = openFds();
  const listener = new RawServer();
  const client = new TestClient(listener.path);
  const box = new FdBox();
  const peer = await listener.accept();
  peer.send(SET_CALL, [box.eventfd()]);
  await until(() => client.devices[0]?.calls.length === 1, 'the device is told');
  assert.deepEqual(client.devices[0].calls, [['setVringCall', 2, 'fd']]);
  await converse(peer);
  await client.close();
  box.close();
  listener.close();
  assert.equal(openFds(), before);
});

test('a front end that comes, speaks and goes at once is not served faster than the longest pause', async () => {
  const listener = new RawServer();
  const client = new TestClient(listener.path, { retryMs: [1, 60] });
  const from = performance.now();
  for (let n = 0; n < 9; n++) {
    const peer = await listener.accept();
    await converse(peer);
    peer.close();
  }
  // 1, 2, 4, … 32, 60, 60 ms
  assert.ok(performance.now() - from > 170, `nine connections in ${performance.now() - from} ms`);
  assert.equal(client.devices.length, 9);
  assert.ok(client.lines.length <= 21, 'no more lines at once than a limited log has');
  await client.close();
  listener.close();
});

test('after a long connection the first pause is short again', async () => {
  const listener = new RawServer();
  const client = new TestClient(listener.path, { retryMs: [5, 600] });
  for (let n = 0; n < 6; n++) (await listener.accept()).close(); // the next pause would be 320 ms, the one after it 600
  const peer = await listener.accept();
  await converse(peer);
  await sleep(620);
  peer.close();
  const from = performance.now();
  await listener.accept();
  assert.ok(performance.now() - from < 300, `the next try came after ${performance.now() - from} ms`);
  await client.close();
  listener.close();
});

test('no device for a front end, or an error in making one: told once, and tried again', async () => {
  const before = openFds();
  const listener = new RawServer();
  let n = 0;
  const client = new TestClient(listener.path, {
    createDevice: () => {
      n++;
      if (n % 2 === 0) throw new Error('out of windows');
      return n < 9 ? undefined : new FakeDevice();
    },
  });
  for (let i = 0; i < 8; i++) {
    const peer = await listener.accept();
    peer.send(GET_FEATURES);
    await peer.untilClosed();
  }
  await converse(await listener.accept());
  assert.deepEqual(client.lines, [
    waiting(listener.path),
    `warn socket ${listener.path}: connection refused, there is no device for it`,
    `error socket ${listener.path}: connection refused, no device could be created: out of windows`,
    `info socket ${listener.path}: connection 8: connected`,
  ]);
  await client.close();
  listener.close();
  assert.equal(openFds(), before);
});

test('a device that is of no use is disconnected, and its front end may come again', async () => {
  const listener = new RawServer();
  const client = new TestClient(listener.path);
  const peer = await listener.accept();
  await converse(peer);
  client.client.disconnect(new FakeDevice());
  await converse(peer);
  client.client.disconnect(client.devices[0]);
  await peer.untilClosed();
  await converse(await listener.accept());
  assert.deepEqual([client.devices[0].destroyed, client.devices[1].destroyed], [true, false]);
  await client.close();
  assert.equal(client.devices[1].destroyed, true);
  listener.close();
});

test('a path on which nobody can ever listen is told with its reason once; one too long is an error', async () => {
  const dir = new TempDir();
  writeFileSync(dir.path('file'), '');
  const path = dir.path('file/s');
  const client = new TestClient(path, { retryMs: [1, 2] });
  await sleep(50);
  assert.deepEqual(client.lines, [`warn socket ${path}: connect ${path}: ENOTDIR: not a directory`, waiting(path)]);
  await client.close();
  assert.throws(() => new TestClient(dir.path('x'.repeat(108))), RangeError);
  dir.remove();
});

test('closing ends it whatever it is at: waiting, connected without a word, serving; and it never comes back', async () => {
  const before = openFds();
  const dir = new TempDir();
  const lonely = new TestClient(dir.path('s'));
  const listener = new RawServer();
  const silent = new TestClient(listener.path);
  const silentPeer = await listener.accept();
  const other = new RawServer();
  const serving = new TestClient(other.path);
  const peer = await other.accept();
  await converse(peer);
  serving.devices[0].delayMs = 20;
  peer.send('08000000 01000000 08000000 03000000 00010000');
  const all = [lonely, silent, serving];
  const from = performance.now();
  await Promise.all(all.flatMap((each) => [each.close(), each.client.close()]));
  assert.ok(performance.now() - from < 1000);
  assert.equal(serving.devices[0].destroyed, true);
  await silentPeer.untilClosed();
  await peer.untilClosed();
  const late = new RawServer(dir.path('s'));
  await sleep(60);
  for (const each of [late, listener, other]) {
    assert.equal(each.acceptNow(), undefined);
    each.close();
  }
  dir.remove();
  assert.equal(openFds(), before);
});
