import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { NullPort, openNull } from '../../src/port/null-port.ts';
import { openRing, RING_BYTES, RING_FRAMES, RingPort } from '../../src/port/ring-port.ts';
import { BAD_OFFLOAD, BURST_SIZE, HEADER_BYTES } from '../../src/virtio-net/burst.ts';
import { NEED_CSUM } from '../../src/virtio-net/offload.ts';
import { countersOf, opening, TestThread, vdevOf } from '../kit/device-ports.ts';
import { frame, mac } from '../kit/frames.ts';
import { pool } from '../kit/ram.ts';
import type { RingWork } from '../kit/ring-worker.ts';

const makeNull = (...args: ConstructorParameters<typeof NullPort>) => new NullPort(...args);
const makeRing = (...args: ConstructorParameters<typeof RingPort>) => new RingPort(...args);
const frames = (n: number, len = 64) => Array.from({ length: n }, () => frame(mac(2), mac(1), len));

test('net_null: bursts of packets of the size asked for, without end', async () => {
  for (const setting of ['', ',size=14', ',size=1500,copy=1']) {
    const opened = openNull(vdevOf('net_null', `net_null3${setting}`), opening());
    const thread = new TestThread();
    const port = thread.port(opened, makeNull);
    const size = Number(/size=(\d+)/.exec(setting)?.[1] ?? 64);
    assert.deepEqual([port.queues, port.canTransmit, port.prepareSleep()], [1, true, false]);
    for (let i = 0; i < 3; i++) {
      assert.equal(port.receive(), BURST_SIZE);
      assert.deepEqual(
        thread.frames().map(({ length }) => length),
        Array(BURST_SIZE).fill(size),
      );
      port.complete();
    }
    assert.deepEqual([countersOf(port).tx_packets, countersOf(port).tx_bytes], [96, 96 * size]);
    assert.deepEqual([opened.name, Buffer.from(opened.mac ?? []).toString('hex')], ['net_null3', '026e756c6c03']);
    port.close();
    thread.close();
    await opened.close();
  }
});

test('net_null: each lcore has packets of its own', async () => {
  const opened = openNull(vdevOf('net_null', 'net_null0,size=60'), opening(2));
  const thread = new TestThread();
  const [one, other] = [0, 1].map((lcore) => thread.port(opened, makeNull, lcore, 2));
  one.receive();
  const { segments } = thread.burst;
  const mine = new Set(segments.off.subarray(0, BURST_SIZE));
  assert.equal(mine.size, BURST_SIZE);
  for (const off of mine) thread.windows[segments.window[0]].u8.fill(0xee, off, off + 60);
  other.receive();
  assert.ok(thread.frames().every((bytes) => bytes.equals(Buffer.alloc(60))));
  thread.close();
  await opened.close();
});

test('net_null: what is sent is swallowed and counted', async () => {
  for (const setting of ['', ',copy=1']) {
    const opened = openNull(vdevOf('net_null', `net_null0${setting}`), opening());
    const thread = new TestThread();
    const port = thread.port(opened, makeNull);
    assert.equal(thread.send(port, frames(70, 100), 33), 70);
    assert.equal(thread.burst.delivered[5], 1);
    thread.fill(frames(2));
    thread.burst.len[1] = BAD_OFFLOAD;
    assert.equal(port.transmit(Int32Array.of(0, 1), 0, 2), 1);
    const { rx_packets, rx_bytes, rx_drop_bad_offload } = countersOf(port);
    assert.deepEqual([rx_packets, rx_bytes, rx_drop_bad_offload], [71, 7064, 1]);
    thread.close();
    await opened.close();
  }
});

test('net_null: with no-rx nothing is received, and a thread may sleep', async () => {
  const opened = openNull(vdevOf('net_null', 'net_null0,no-rx=1'), opening());
  const thread = new TestThread();
  const port = thread.port(opened, makeNull);
  assert.deepEqual([port.queues, port.receive(), port.prepareSleep()], [0, 0, true]);
  thread.close();
  await opened.close();
});

test('net_ring: what is sent is received, in order, byte for byte, whatever pieces it came in', async () => {
  const opened = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const thread = new TestThread();
  const port = thread.port(opened, makeRing);
  assert.ok(port.prepareSleep());
  assert.equal(port.receive(), 0);
  for (const piece of [Number.POSITIVE_INFINITY, 70, 1000]) {
    const sent = [60, 14, 1514, 9000, 61, 0].flatMap((len) => (len === 0 ? [Buffer.alloc(0)] : frames(1, len)));
    assert.equal(thread.send(port, sent, piece), sent.length);
    assert.equal(port.prepareSleep(), false);
    assert.equal(port.receive(), sent.length);
    assert.deepEqual(thread.frames(), sent);
    assert.ok(thread.burst.frontBytes.subarray(0, 16).every((byte, i) => byte === sent[0][i]));
    port.complete();
    assert.ok(port.prepareSleep());
  }
  const { tx_packets, rx_packets, tx_bytes, rx_bytes } = countersOf(port);
  assert.deepEqual([tx_packets, tx_bytes], [18, 3 * 10649]);
  assert.deepEqual([rx_packets, rx_bytes], [tx_packets, tx_bytes]);
  thread.close();
  await opened.close();
});

test('net_ring: frames are kept until the burst they were received in is complete', async () => {
  const opened = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const thread = new TestThread();
  const port = thread.port(opened, makeRing);
  const first = frames(3);
  thread.send(port, first);
  // forwarded to itself: copied from the ring into the ring
  assert.equal(thread.forward(port, port), 3);
  port.receive();
  assert.deepEqual(thread.frames(), first);
  port.complete();
  assert.equal(port.receive(), 0);
  thread.close();
  await opened.close();
});

test('net_ring: a full ring drops what comes last, by number and by bytes, and goes on after that', async () => {
  const opened = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const thread = new TestThread();
  const port = thread.port(opened, makeRing);
  const drainAll = () => {
    const got: Buffer[] = [];
    while (port.receive() > 0) {
      got.push(...thread.frames());
      port.complete();
    }
    return got;
  };
  for (let round = 0; round < 3; round++) {
    const small = frames(RING_FRAMES + 5, 60 + round);
    assert.equal(thread.send(port, small), RING_FRAMES);
    assert.deepEqual(drainAll(), small.slice(0, RING_FRAMES));
    const large = frames(Math.ceil(RING_BYTES / 9024) + 64, 9000);
    const taken = thread.send(port, large);
    assert.ok(taken > 400 && taken < large.length, `${taken} of ${large.length} taken`);
    const got = drainAll();
    // between bursts with drops, later ones may find room: those taken come in order
    assert.equal(got.length, taken);
    let at = -1;
    for (const bytes of got) {
      const next = large.findIndex((one, i) => i > at && one.equals(bytes));
      assert.ok(next > at);
      at = next;
    }
  }
  const { rx_drop_no_buffer, rx_packets, tx_packets } = countersOf(port);
  assert.ok(rx_drop_no_buffer > 15);
  assert.equal(rx_packets, tx_packets);
  thread.close();
  await opened.close();
});

test('net_ring: every lcore sends, one receives; what frames ask of their receiver comes with them', async () => {
  const opened = openRing(vdevOf('net_ring', 'net_ring0'), opening(3));
  const thread = new TestThread();
  const ports = [0, 1, 2].map((lcore) => thread.port(opened, makeRing, lcore, 3));
  assert.deepEqual(
    ports.map(({ queues }) => queues),
    [1, 0, 0],
  );
  const sent = frames(3);
  thread.fill(sent);
  const { burst } = thread;
  burst.needs[1] = NEED_CSUM;
  burst.offloads = true;
  for (let k = 0; k < HEADER_BYTES; k++) burst.headerBytes[HEADER_BYTES + k] = k + 1;
  for (const [i, port] of ports.entries()) assert.equal(port.transmit(Int32Array.of(i), 0, 1), 1);
  thread.fill(frames(1));
  burst.headerBytes.fill(0);
  assert.equal(ports[0].receive(), 3);
  assert.deepEqual(thread.frames(), sent);
  assert.deepEqual([...burst.needs.subarray(0, 3)], [0, NEED_CSUM, 0]);
  assert.ok(burst.offloads);
  assert.ok(burst.headerBytes.subarray(HEADER_BYTES, 2 * HEADER_BYTES).every((byte, k) => byte === k + 1));
  ports[0].complete();
  thread.close();
  await opened.close();
});

test('net_ring: malformed packets are dropped, those around them are not', async () => {
  const opened = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const thread = new TestThread();
  const port = thread.port(opened, makeRing);
  const sent = frames(3);
  thread.fill(sent);
  thread.burst.len[1] = BAD_OFFLOAD;
  assert.equal(port.transmit(Int32Array.of(0, 1, 2), 0, 3), 2);
  port.receive();
  assert.deepEqual(thread.frames(), [sent[0], sent[2]]);
  assert.equal(countersOf(port).rx_drop_bad_offload, 1);
  thread.close();
  await opened.close();
});

test('net_null, net_ring: ports that are closed give their windows back, empty', async () => {
  const before = pool.lent;
  const opened = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const thread = new TestThread();
  thread.send(thread.port(opened, makeRing), frames(9));
  await opened.close();
  thread.close();
  assert.equal(pool.lent, before);
  const again = openNull(vdevOf('net_null', 'net_null0'), opening());
  const next = new TestThread();
  next.port(again, makeNull).receive();
  assert.ok(next.frames().every((bytes) => bytes.equals(Buffer.alloc(64))));
  next.close();
  await again.close();
});

test('net_ring: several threads send while one receives: nothing is lost, mixed up or out of order', async () => {
  const senders = 2;
  const opened = openRing(vdevOf('net_ring', 'net_ring0'), opening(senders + 1));
  const windows = Array.from({ length: senders + 1 }, () => pool.acquire());
  const workers = windows.map((window, i) => {
    const sender = i === 0 ? undefined : i - 1;
    const workerData: RingWork = { spec: opened.spec(i, senders + 1), window, sender, frames: 30_000, senders };
    return new Worker(new URL('../kit/ring-worker.ts', import.meta.url), { workerData });
  });
  try {
    assert.deepEqual(await once(workers[0], 'message'), [undefined]);
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
  for (const window of windows) pool.release(window);
  await opened.close();
});

test("net_null, net_ring: no more packets than the burst should have, and the burst is not taken for a guest's", async () => {
  const ring = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const endless = openNull(vdevOf('net_null', 'net_null0'), opening());
  const thread = new TestThread();
  const ports = [thread.port(ring, makeRing), thread.port(endless, makeNull)];
  thread.send(ports[0], frames(20));
  thread.burst.limit = 7;
  for (const port of ports) {
    thread.burst.uniform = true;
    assert.deepEqual([port.receive(), thread.burst.count, thread.burst.uniform], [7, 7, false]);
    port.complete();
  }
  for (const opened of [ring, endless]) await opened.close();
  thread.close();
});
