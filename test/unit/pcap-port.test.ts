import assert from 'node:assert/strict';
import { readdirSync, readFileSync, symlinkSync, truncateSync } from 'node:fs';
import { after, test } from 'node:test';
import type { LinkState } from '../../src/port/device-port.ts';
import { openCaptures, openPcap } from '../../src/port/pcap-files.ts';
import { livePort } from '../../src/port/pcap-interface.ts';
import { PcapPort } from '../../src/port/pcap-port.ts';
import { openRing, RingPort } from '../../src/port/ring-port.ts';
import { parseVdev, type VdevOf } from '../../src/port/vdev.ts';
import { BAD_OFFLOAD, BURST_SIZE } from '../../src/virtio-net/burst.ts';
import { NEED_CSUM } from '../../src/virtio-net/offload.ts';
import { type Captured, Folder, Numbers, readCapture } from '../kit/captures.ts';
import { countersOf, opening, TestThread, vdevOf } from '../kit/device-ports.ts';
import { frame, mac } from '../kit/frames.ts';
import { checksumIsRight, look, packet } from '../kit/packets.ts';
import { pool } from '../kit/ram.ts';

const folder = new Folder();
after(() => folder.close());
const makePcap = (...args: ConstructorParameters<typeof PcapPort>) => new PcapPort(...args);
const makeRing = (...args: ConstructorParameters<typeof RingPort>) => new RingPort(...args);
const little = new Numbers(true);
const fds = () => readdirSync('/proc/self/fd').length;

/** Frames of many sizes, `gap` ns apart. */
const capture = (n: number, gap = 1000n): Captured[] =>
  Array.from({ length: n }, (_, i) => ({
    bytes: frame(mac(i), mac(1000 + i), 14 + ((i * 37) % 1500)),
    ns: 1_700_000_000_000_000_000n + BigInt(i) * gap,
  }));

const pcapng = (frames: readonly Captured[]) =>
  Buffer.concat([
    little.section(),
    little.interface(1, 0, little.option(9, Uint8Array.of(9))),
    ...frames.map((one) => little.enhanced(0, one.ns, one)),
  ]);
const open = (settings: string, lcores = 1) => openPcap(vdevOf('net_pcap', `net_pcap0,${settings}`), opening(lcores));

/** Everything that comes from a port until nothing does. */
function receiveAll(thread: TestThread, port: PcapPort, queue = 0): Buffer[] {
  const got: Buffer[] = [];
  while (port.receive(queue) > 0) {
    got.push(...thread.frames());
    port.complete();
  }
  return got;
}

const until = async (what: () => boolean) => {
  const deadline = Date.now() + 20_000;
  while (!what()) {
    assert.ok(Date.now() < deadline, 'it does not come');
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
};

for (const [format, make] of [
  ['pcap', (frames: readonly Captured[]) => little.pcap(0xa1b2c3d4, frames)],
  ['pcapng', pcapng],
] as const)
  test(`net_pcap: ${format} in, through a ring, ${format} out, byte for byte`, async () => {
    const before = { fds: fds(), windows: pool.lent };
    const sent = capture(5000);
    const rx = folder.file(`in.${format}`, make(sent));
    const tx = folder.file(`out.${format}`);
    const source = open(`rx_pcap=${rx}`);
    const target = open(`tx_pcap=${tx}`);
    const between = openRing(vdevOf('net_ring', 'net_ring0'), opening());
    const thread = new TestThread();
    const [from, to] = [thread.port(source, makePcap), thread.port(target, makePcap)];
    const ring = thread.port(between, makeRing);
    assert.deepEqual([from.canTransmit, to.canTransmit, from.queues, to.queues], [false, true, 1, 0]);
    // a queue that it does not have has nothing
    assert.equal(to.receive(0), 0);
    while (thread.forward(from, ring) > 0) while (thread.forward(ring, to) > 0);
    to.close();
    const written = readCapture(tx);
    assert.equal(written.length, sent.length);
    for (const [i, { bytes }] of sent.entries()) assert.ok(written[i].bytes.equals(Buffer.from(bytes)), `frame ${i}`);
    const now = BigInt(Date.now()) * 1_000_000n;
    for (const { ns } of written) assert.ok(ns > now - 600_000_000_000n && ns < now + 600_000_000_000n, `${ns}`);
    assert.ok(written.every(({ ns }, i) => i === 0 || ns >= written[i - 1].ns));
    const total = sent.reduce((sum, { bytes }) => sum + bytes.length, 0);
    const { tx_packets, tx_bytes } = countersOf(from);
    const { rx_packets, rx_bytes } = countersOf(to);
    assert.deepEqual([tx_packets, tx_bytes, rx_packets, rx_bytes], [5000, total, 5000, total]);
    for (const device of [source, target, between]) await device.close();
    thread.close();
    assert.deepEqual({ fds: fds(), windows: pool.lent }, before);
  });

test('net_pcap: at the end of its file a port that only receives tells that its link is gone', async () => {
  const opened = open(`rx_pcap=${folder.file('end', pcapng(capture(40)))}`);
  const thread = new TestThread();
  const port = thread.port(opened, makePcap);
  const told: LinkState[] = [];
  opened.onLink((link) => told.push(link));
  assert.ok(opened.link.up);
  assert.equal(receiveAll(thread, port).length, 40);
  assert.deepEqual([port.receive(0), port.receiving, port.prepareSleep()], [0, false, true]);
  await until(() => told.length > 0);
  assert.equal(told[0].up, false);
  assert.match(told[0].gone ?? '', /end: all frames have been received/);
  await opened.close();
  thread.close();
});

test('net_pcap: with infinite_rx the file begins anew, as it is in the file', async () => {
  const sent = capture(45).map(({ bytes }) => Buffer.from(bytes));
  const path = folder.file(
    'again',
    little.pcap(
      0xa1b23c4d,
      sent.map((bytes) => ({ bytes, ns: 0n })),
    ),
  );
  const opened = open(`rx_pcap=${path},infinite_rx=1`);
  const thread = new TestThread();
  const port = thread.port(opened, makePcap);
  const got: Buffer[] = [];
  while (got.length < 1000) {
    assert.ok(port.receive(0) > 0);
    got.push(...thread.frames());
    // what is forwarded is edited where it lies
    const { segments, count } = thread.burst;
    for (let i = 0; i < count; i++)
      thread.windows[segments.window[i]].u8.fill(0, segments.off[i], segments.off[i] + 12);
    port.complete();
  }
  for (const [i, bytes] of got.entries()) assert.ok(bytes.equals(sent[i % sent.length]), `frame ${i}`);
  assert.ok(opened.link.up && port.receiving && !port.prepareSleep());
  await opened.close();
  thread.close();
});

test('net_pcap: with gaps frames keep their distances', async () => {
  const path = folder.file('gaps', pcapng(capture(6, 20_000_000n)));
  const options = { name: 'net_pcap0', rxFiles: [path], txFiles: [], infinite: false, gaps: true };
  const opened = openCaptures(options, opening());
  const thread = new TestThread();
  const port = thread.port(opened, makePcap);
  const at: number[] = [];
  let slept = 0;
  const deadline = Date.now() + 20_000;
  while (port.receiving) {
    assert.ok(Date.now() < deadline);
    const n = port.receive(0);
    for (let i = 0; i < n; i++) at.push(performance.now());
    if (n === 0 && port.prepareSleep()) slept++;
  }
  assert.equal(at.length, 6);
  // never early; on a loaded machine it may be as late as it likes
  for (let i = 1; i < 6; i++) assert.ok(at[i] - at[0] >= 20 * i - 1, `frame ${i} after ${at[i] - at[0]} ms`);
  assert.ok(slept > 0);
  await opened.close();
  thread.close();
});

test('net_pcap: a file that breaks off is told with its place, after the frames before', async () => {
  const bytes = little.pcap(0xa1b23c4d, capture(50));
  const path = folder.file('broken', bytes.subarray(0, bytes.length - 3));
  const opened = open(`rx_pcap=${path}`);
  const thread = new TestThread();
  const port = thread.port(opened, makePcap);
  const told: LinkState[] = [];
  opened.onLink((link) => told.push(link));
  assert.equal(receiveAll(thread, port).length, 49);
  await until(() => told.length > 0);
  const at = bytes.length - capture(50)[49].bytes.length - 16;
  assert.match(told[0].gone ?? '', new RegExp(`/broken: byte ${at}: expected more than the file has`));
  assert.deepEqual([told[0].up, port.receive(0), port.prepareSleep()], [false, 0, true]);
  await opened.close();
  thread.close();
});

test('net_pcap: a file that is cut while it is read', async () => {
  const path = folder.file('cut', little.pcap(0xa1b23c4d, capture(5000)));
  const opened = open(`rx_pcap=${path}`);
  const thread = new TestThread();
  const port = thread.port(opened, makePcap);
  assert.equal(port.receive(0), BURST_SIZE);
  truncateSync(path, 2000);
  const got = receiveAll(thread, port).length;
  assert.ok(got > 100 && got < 5000, `${got} frames were in the buffer`);
  assert.match(opened.link.gone ?? '', /cut: byte \d+: /);
  await opened.close();
  thread.close();
});

test('net_pcap: what cannot be opened is refused in words, and nothing stays open', () => {
  const before = { fds: fds(), windows: pool.lent };
  const good = folder.file('good', pcapng(capture(2)));
  const link = folder.file('link');
  symlinkSync(good, link);
  const refused: [string, string, RegExp][] = [
    ['rx_pcap=/nowhere/x', 'CAPTURE_FILE', /net_pcap0: rx_pcap=\/nowhere\/x: cannot be opened: ENOENT/],
    [`rx_pcap=${good},tx_pcap=/nowhere/x`, 'CAPTURE_FILE', /tx_pcap=\/nowhere\/x: cannot be opened: ENOENT/],
    [`rx_pcap=${folder.path}`, 'CAPTURE_FILE', /is no regular file/],
    [
      `rx_pcap=${folder.file('text', Buffer.from('hello, world'))}`,
      'BAD_CAPTURE',
      /text: byte 0: expected a pcap or pcapng/,
    ],
    [`rx_pcap=${folder.file('none', pcapng([]))},infinite_rx=1`, 'CAPTURE_FILE', /holds no frame/],
    [`rx_pcap=${good},tx_pcap=${link}`, 'CONFIG_CONFLICT', /are one file/],
    [`tx_pcap=/dev/full`, 'CAPTURE_FILE', /tx_pcap=\/dev\/full: ENOSPC/],
    ['infinite_rx=1', 'CONFIG_MISSING_VALUE', /rx_pcap=FILE, tx_pcap=FILE, or both; or iface=INTERFACE/],
  ];
  for (const [settings, code, message] of refused) assert.throws(() => open(settings), { code, message }, settings);
  assert.deepEqual({ fds: fds(), windows: pool.lent }, before);
  assert.equal(readCapture(good).length, 2);
});

test('net_pcap: on an interface it is net_af_packet under its own name', () => {
  const live = (settings: string) => livePort(parseVdev(`net_pcap3,${settings}`));
  for (const settings of ['iface=eth1', 'rx_iface=eth1,tx_iface=eth1', 'rx_iface_in=eth1,tx_iface=eth1,phy_mac=1']) {
    const { kind, name, number, values } = live(settings);
    assert.deepEqual([kind, name, number], ['net_af_packet', 'net_pcap3', 3]);
    assert.deepEqual(values, parseVdev('net_af_packet3,iface=eth1').values);
  }
  assert.equal((live('iface=space:eth1') as VdevOf<'net_af_packet'>).values.iface, 'space:eth1');
  assert.equal(live('tx_pcap=file').kind, 'net_pcap');
  assert.equal(live('infinite_rx=1').kind, 'net_pcap');
  for (const [settings, code, message] of [
    ['iface=eth1,tx_pcap=file', 'CONFIG_CONFLICT', /iface=eth1, without rx_pcap and tx_pcap/],
    ['rx_pcap=file,tx_iface=eth1', 'CONFIG_CONFLICT', /iface=eth1, without/],
    ['rx_iface=eth1', 'CONFIG_NOT_YET', /give iface=eth1 for both/],
    ['tx_iface=eth1', 'CONFIG_NOT_YET', /one way only/],
    ['rx_iface=eth1,tx_iface=eth2', 'CONFIG_NOT_YET', /one way only/],
    ['iface=eth1,rx_iface=eth2', 'CONFIG_NOT_YET', /one way only/],
  ] as const)
    assert.throws(() => live(settings), { code, message }, settings);
});

test('net_pcap: several files are several queues, and lcores share them', async () => {
  const paths = [0, 1, 2].map((n) => folder.file(`queue${n}`, pcapng(capture(10 + n))));
  const tx = ['a.pcapng', 'b.pcap'].map((name) => folder.file(name));
  const settings = [...paths.map((path) => `rx_pcap=${path}`), ...tx.map((path) => `tx_pcap=${path}`)].join(',');
  const opened = open(settings, 2);
  const thread = new TestThread();
  const ports = [0, 1].map((lcore) => thread.port(opened, makePcap, lcore, 2));
  assert.deepEqual(
    ports.map(({ queues }) => queues),
    [2, 1],
  );
  assert.deepEqual(
    [receiveAll(thread, ports[0], 0), receiveAll(thread, ports[0], 1), receiveAll(thread, ports[1])].map(
      (got) => got.length,
    ),
    [10, 12, 11],
  );
  for (const [i, port] of ports.entries()) {
    thread.send(port, [frame(mac(i), mac(9), 60 + i)]);
    assert.ok(port.prepareSleep());
  }
  assert.deepEqual(
    tx.map((path) => readCapture(path).map(({ bytes }) => bytes.length)),
    [[60], [61]],
  );
  // it can still be sent to
  assert.ok(opened.link.up);
  await opened.close();
  thread.close();
});

test('net_pcap: lcores that write one file write whole frames', async () => {
  const path = folder.file('both.pcapng');
  const opened = open(`tx_pcap=${path}`, 2);
  const thread = new TestThread();
  const ports = [0, 1].map((lcore) => thread.port(opened, makePcap, lcore, 2));
  const sent: Buffer[] = [];
  for (let i = 0; i < 2000; i++) {
    const bytes = frame(mac(i), mac(9), 60 + i);
    sent.push(bytes);
    assert.equal(thread.send(ports[i % 2], [bytes], 100), 1);
    if (i % 500 === 0) ports[1].prepareSleep();
  }
  for (const port of ports) port.close();
  const hex = (list: readonly Buffer[]) => list.map((bytes) => bytes.toString('hex')).sort();
  assert.deepEqual(hex(readCapture(path).map(({ bytes }) => bytes)), hex(sent));
  await opened.close();
  thread.close();
});

test('net_pcap: a file that takes no more: the port says so, and what it is sent is dropped', async () => {
  const opened = openCaptures(
    { name: 'net_pcap0', rxFiles: [], txFiles: [folder.file('full')], infinite: false },
    opening(),
  );
  const thread = new TestThread();
  const spec = opened.spec(0, 1);
  const { closeSync, openSync } = await import('node:fs');
  const full = openSync('/dev/full', 'a');
  const port = thread.port({ ...opened, spec: () => ({ ...spec, sink: { ...spec.sink!, fd: full } }) }, makePcap);
  const told: LinkState[] = [];
  opened.onLink((link) => told.push(link));
  assert.equal(thread.send(port, [frame(mac(1), mac(2))]), 1);
  assert.ok(port.prepareSleep());
  assert.equal(port.canTransmit, false);
  assert.equal(thread.send(port, [frame(mac(1), mac(2))]), 0);
  assert.equal(countersOf(port).rx_drop_not_ready, 1);
  await until(() => told.length > 0);
  assert.match(told[0].gone ?? '', /writing failed: no space left on device/);
  closeSync(full);
  await opened.close();
  thread.close();
});

test('net_pcap: checksums left undone are completed in the file; malformed packets are not written', async () => {
  const path = folder.file('checksums.pcap');
  const opened = open(`tx_pcap=${path}`);
  const thread = new TestThread();
  const port = thread.port(opened, makePcap);
  const { bytes, csumStart, csumOffset } = packet({ version: 4, protocol: 'udp', payload: Buffer.from('hello') });
  thread.fill([bytes, bytes, bytes]);
  const { burst } = thread;
  burst.needs[0] = NEED_CSUM;
  burst.offloads = true;
  burst.header.setUint16(6, csumStart, true);
  burst.header.setUint16(8, csumOffset, true);
  burst.len[1] = BAD_OFFLOAD;
  assert.equal(port.transmit(Int32Array.of(0, 1, 2), 0, 3), 2);
  port.close();
  const [completed, asItWas] = readCapture(path);
  assert.ok(checksumIsRight(look(completed.bytes)));
  assert.ok(asItWas.bytes.equals(bytes));
  await opened.close();
  thread.close();
});

test('net_pcap: what waits is written at the first pause', async () => {
  const path = folder.file('pause.pcapng');
  const opened = open(`tx_pcap=${path}`);
  const thread = new TestThread();
  const port = thread.port(opened, makePcap);
  const before = readFileSync(path).length;
  thread.send(port, [frame(mac(1), mac(2))]);
  port.drain();
  assert.equal(readFileSync(path).length, before);
  port.drain();
  assert.equal(readCapture(path).length, 1);
  // and without a pause, once half of the buffer is full
  for (let i = 0; i < 100; i++) {
    thread.send(
      port,
      Array.from({ length: 10 }, () => frame(mac(1), mac(2), 1500)),
    );
    port.drain();
  }
  assert.ok(readCapture(path).length > 300);
  await opened.close();
  thread.close();
});
