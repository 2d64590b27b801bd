/** Run under `ulimit -n 64` by connection.test.ts: what happens when this process may not open more descriptors. */
import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectUnix } from '../../src/sys/unix-socket.ts';
import { GOLDEN } from './golden.ts';
import { FdBox, openFds, RawPeer, TestServer, until } from './harness.ts';

function fillUp(): number[] {
  const fds: number[] = [];
  try {
    for (;;) fds.push(openSync('/dev/null', 'r'));
  } catch {
    return fds;
  }
}

const server = new TestServer();

const early = connectUnix(server.path); // in the backlog; accepted only when this turn of the event loop is over
const full = fillUp();
await sleep(250);
assert.equal(server.devices.length, 0);
const accepting = server.lines.filter((line) => line.includes('EMFILE'));
assert.ok(accepting.length >= 1 && accepting.length <= 4, server.lines.join('\n'));
for (const fd of full) closeSync(fd);
await until(() => server.devices.length === 1, 'the waiting connection is accepted');
closeSync(early);
console.log('accepting: EMFILE, then served');

const box = new FdBox();
const { peer } = await server.connect();
const [a, b] = [box.eventfd(), box.eventfd()];
const before = openFds();
const rest = fillUp();
closeSync(rest.pop() as number); // room for one of two
peer.send(GOLDEN[0].request, [a, b]);
await new RawPeer(peer.fd).untilClosed();
for (const fd of rest) closeSync(fd);
await until(() => server.devices[1].destroyed, 'the device is destroyed');
assert.ok(
  server.problems().some((line) => /device 1: recvmsg: EMFILE.*; connection closed/.test(line)),
  server.problems().join('\n'),
);
assert.equal(openFds(), before - 1);
console.log('receiving: EMFILE, connection closed, nothing leaked');
box.close();

const late = connectUnix(server.path);
const again = fillUp();
await sleep(20); // accepting pauses
for (const fd of again) closeSync(fd);
await server.close();
await sleep(150); // the time it would have gone on
closeSync(late);
console.log('closing: while accepting pauses');
