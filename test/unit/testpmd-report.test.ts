/** The layout of what testpmd shows, against what DPDK 22.11's dpdk-testpmd printed with two or three net_null ports. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ForwardConfig, ForwardMode } from '../../src/testpmd/engine.ts';
import { Session, type SessionOptions } from '../../src/testpmd/session.ts';
import { FakeEngine, stream } from '../kit/fake-engine.ts';

const MACS = ['a2:6c:ff:3b:b3:2a', 'da:07:a4:0f:e4:44'];

/** A session whose text is collected, and its engine. */
function open(macs: readonly string[] = MACS, options: Partial<SessionOptions> = {}) {
  const engine = new FakeEngine(macs);
  let text = '';
  const say = (more: string) => {
    text += `${more}\n`;
  };
  const session = new Session(engine, { topology: 'paired', lcores: [1], say, ...options });
  const said = () => {
    const all = text;
    text = '';
    return all;
  };
  return { engine, session, said };
}

/** Editors strip spaces at the ends of lines; `·` is one that DPDK prints there. */
const golden = (text: string) => text.replaceAll('·', ' ').slice(1);

test('testpmd: show port stats, as DPDK shows it', () => {
  let now = 5_000_000_000n;
  const { engine, session, said } = open(MACS, { now: () => now });
  Object.assign(engine.counted[0], { rxPackets: 577312, txPackets: 116000 });
  session.showPortStats(0);
  assert.equal(
    said(),
    golden(`

  ######################## NIC statistics for port 0  ########################
  RX-packets: 577312     RX-missed: 0          RX-bytes:  0
  RX-errors: 0
  RX-nombuf:  0·········
  TX-packets: 116000     TX-errors: 0          TX-bytes:  0

  Throughput (since last show)
  Rx-pps:            0          Rx-bps:            0
  Tx-pps:            0          Tx-bps:            0
  ############################################################################
`),
  );
  now += 3_000_000_000n;
  Object.assign(engine.counted[0], { rxPackets: 577312 + 3 * 28129590, rxBytes: 3000, txPackets: 84523328 });
  session.showPortStats(0);
  assert.equal(
    said(),
    golden(`

  ######################## NIC statistics for port 0  ########################
  RX-packets: 84966082   RX-missed: 0          RX-bytes:  3000
  RX-errors: 0
  RX-nombuf:  0·········
  TX-packets: 84523328   TX-errors: 0          TX-bytes:  0

  Throughput (since last show)
  Rx-pps:     28129590          Rx-bps:         8000
  Tx-pps:     28135776          Tx-bps:            0
  ############################################################################
`),
  );
});

test('testpmd: rates are 0 after counters were cleared, not negative', () => {
  let now = 0n;
  const { engine, session, said } = open(MACS, { now: () => now });
  engine.counted[1].rxPackets = 1000;
  session.showPortStats(1);
  session.clearPortStats(1);
  now += 1_000_000_000n;
  said();
  session.showPortStats(1);
  assert.match(said(), /Rx-pps: {12}0 /);
});

test('testpmd: show port xstats and summary, as DPDK shows them', () => {
  const { engine, session, said } = open();
  engine.counted[0].rxPackets = 7;
  session.showPortXstats(0);
  session.showPortSummary('all');
  assert.equal(
    said(),
    golden(`
###### NIC extended statistics for port 0·
rx_good_packets: 7
tx_good_packets: 0
Number of available ports: 2
Port MAC Address       Name         Driver         Status   Link
0    A2:6C:FF:3B:B3:2A net_null0    net_null       up       10 Gbps
1    DA:07:A4:0F:E4:44 net_null1    net_null       up       10 Gbps
`),
  );
});

test('testpmd: the lines of show port info that DPDK has too are the same', () => {
  const dpdk = golden(`

********************* Infos for port 0  *********************
MAC address: A2:6C:FF:3B:B3:2A
Device name: net_null0
Driver name: net_null
Link status: up
Link speed: 10 Gbps
Link duplex: full-duplex
MTU: 1500
Promiscuous mode: enabled
Current number of RX queues: 1
Current number of TX queues: 1
`);
  const ours = ['Port status: started', 'Number of RXDs per queue: 256', 'Number of TXDs per queue: 256'];
  const { engine, session, said } = open();
  session.showPortInfo(0);
  const lines = said().split('\n');
  assert.deepEqual(
    lines.filter((line) => !ours.includes(line)),
    dpdk.split('\n'),
  );
  assert.deepEqual(
    lines.filter((line) => ours.includes(line)),
    ours,
  );
  Object.assign(engine.infos[0], { up: false, reason: 'the back end has gone', speed: 0 });
  session.showPortInfo(0);
  assert.match(said(), /\nLink status: down \(the back end has gone\)\nLink speed: Unknown\n/);
});

test('testpmd: forward statistics, as DPDK shows them after stop', async () => {
  const { engine, session, said } = open();
  engine.counted[0].rxMissed = 55; // before start
  await session.start(0);
  said();
  engine.forwardedStreams = [
    stream(0, 1, { rxPackets: 13984, txPackets: 14016 }),
    stream(1, 0, { rxPackets: 14016, txPackets: 14048 }),
  ];
  const expected = golden(`

  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 13984          RX-dropped: 0             RX-total: 13984
  TX-packets: 14048          TX-dropped: 0             TX-total: 14048
  ----------------------------------------------------------------------------

  ---------------------- Forward statistics for port 1  ----------------------
  RX-packets: 14016          RX-dropped: 0             RX-total: 14016
  TX-packets: 14016          TX-dropped: 0             TX-total: 14016
  ----------------------------------------------------------------------------

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 28000          RX-dropped: 0             RX-total: 28000
  TX-packets: 28064          TX-dropped: 0             TX-total: 28064
  ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++
`);
  await session.stop();
  assert.equal(said(), `Telling cores to stop...\nWaiting for lcores to finish...\n${expected}\nDone.\n`);
  engine.counted[0].rxMissed += 1000; // nobody forwards any more
  session.showForwardStats();
  assert.equal(said(), expected);
});

test('testpmd: with several queues each stream that did something has its block', async () => {
  const { engine, session, said } = open();
  await session.start(0);
  engine.forwardedStreams = [
    stream(0, 1, { rxPackets: 14014528, txPackets: 14014528 }),
    stream(1, 0, { rxPackets: 5, txPackets: 3, txDropped: 2 }),
    stream(0, 1, { rxQueue: 1, txQueue: 1 }),
    stream(1, 0, { rxQueue: 1, txQueue: 1 }),
  ];
  said();
  session.showForwardStats();
  const text = said();
  assert.ok(
    text.startsWith(
      golden(`

  ------- Forward Stats for RX Port= 0/Queue= 0 -> TX Port= 1/Queue= 0 -------
  RX-packets: 14014528       TX-packets: 14014528       TX-dropped: 0·············

  ------- Forward Stats for RX Port= 1/Queue= 0 -> TX Port= 0/Queue= 0 -------
  RX-packets: 5              TX-packets: 3              TX-dropped: 2·············

  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 14014528       RX-dropped: 0             RX-total: 14014528
  TX-packets: 3              TX-dropped: 2             TX-total: 5
`),
    ),
    text,
  );
});

test('testpmd: csum shows bad checksums, errors and retries have lines of their own', async () => {
  const { engine, session, said } = open();
  engine.config.mode = 'csum';
  await session.start(0);
  engine.forwardedStreams = [stream(0, 1, { badIpChecksum: 3, badL4Checksum: 4 }), stream(1, 0, { txRetries: 9 })];
  Object.assign(engine.counted[0], { rxErrors: 1, rxNoMbuf: 2, rxMissed: 6 });
  said();
  session.showForwardStats();
  const text = said();
  assert.match(text, /\n {2}Bad-ipcsum: 3 {14}Bad-l4csum: 4 {13}\n/);
  assert.match(text, /RX-dropped: 6 {13}RX-total: 6\n/);
  assert.match(text, /\n {2}RX-error: 1\n {2}RX-nombufs: 2 {13}\n/);
  assert.match(text, /\n {2}TX-retries: 9\n/);
});

test('testpmd: clear fwd stats counts from there, also within streams', async () => {
  const { engine, session, said } = open();
  await session.start(0);
  engine.forwardedStreams = [stream(0, 1, { rxPackets: 100, txDropped: 10 }), stream(1, 0)];
  engine.counted[0].rxMissed = 6;
  session.clearForwardStats();
  engine.forwardedStreams = [stream(0, 1, { rxPackets: 107, txDropped: 14 }), stream(1, 0)];
  engine.counted[0].rxMissed = 8;
  said();
  await session.stop();
  const text = said();
  assert.match(text, /port 0 .*\n {2}RX-packets: 7 {14}RX-dropped: 2 /);
  assert.match(text, /port 1 .*\n.*\n {2}TX-packets: 0 {14}TX-dropped: 4 /);
  session.clearForwardStats();
  session.showForwardStats();
  assert.match(said(), /port 0 .*\n {2}RX-packets: 0 /);
});

test('testpmd: clearing a port while it forwards does not make what it forwarded negative', async () => {
  const { engine, session, said } = open();
  engine.counted[0].rxMissed = 50;
  await session.start(0);
  engine.counted[0].rxMissed = 100;
  session.clearPortStats('all');
  engine.counted[0].rxMissed = 4;
  assert.match(said(), /\n {2}NIC statistics for port 0 cleared\n\n {2}NIC statistics for port 1 cleared\n$/);
  session.showForwardStats();
  assert.match(said(), /port 0 .*\n {2}RX-packets: 0 {14}RX-dropped: 4 /);
});

test('testpmd: show config fwd, as DPDK shows it', () => {
  const { engine, session, said } = open(['06:00:00:00:00:00', '06:00:00:00:00:01', '06:00:00:00:00:02'], {
    topology: 'chained',
  });
  Object.assign(engine.config, { mode: 'csum', retry: true });
  for (const info of engine.infos) Object.assign(info, { rxQueues: 2, txQueues: 2 });
  session.showForwardConfig();
  // "disabled" where DPDK has "enabled": there is no choice of memory nodes here
  const expected = golden(`
csum packet forwarding with retry - ports=3 - cores=1 - streams=6 - NUMA support disabled, MP allocation mode: native
TX retry num: 64, delay between TX retries: 1us
Logical Core 1 (socket 0) forwards packets on 6 streams:
  RX P=0/Q=0 (socket 0) -> TX P=1/Q=0 (socket 0) peer=02:00:00:00:00:01
  RX P=1/Q=0 (socket 0) -> TX P=2/Q=0 (socket 0) peer=02:00:00:00:00:02
  RX P=2/Q=0 (socket 0) -> TX P=0/Q=0 (socket 0) peer=02:00:00:00:00:00
  RX P=0/Q=1 (socket 0) -> TX P=1/Q=1 (socket 0) peer=02:00:00:00:00:01
  RX P=1/Q=1 (socket 0) -> TX P=2/Q=1 (socket 0) peer=02:00:00:00:00:02
  RX P=2/Q=1 (socket 0) -> TX P=0/Q=1 (socket 0) peer=02:00:00:00:00:00

`);
  assert.equal(said(), expected);
});

test('testpmd: how long bursts were, and what packets took, as DPDK shows it', async () => {
  const { engine, session, said } = open();
  const bursts = (counts: Record<number, number>) => Array.from({ length: 33 }, (_, packets) => counts[packets] ?? 0);
  await session.start(0);
  engine.forwardedStreams = [
    stream(0, 1, {
      ...{ rxPackets: 5006944, txPackets: 5006944, busyNs: 308_549_984.4 },
      ...{ rxBursts: bursts({ 32: 156467 }), txBursts: bursts({ 32: 156467 }) },
    }),
    stream(1, 0, {
      ...{ rxPackets: 5006944, txPackets: 5006912, busyNs: 308_549_983.6 },
      ...{ rxBursts: bursts({ 0: 100, 1: 300, 2: 200, 3: 400 }), txBursts: bursts({ 1: 3, 2: 1 }) },
    }),
  ];
  said();
  const asked = () => {
    session.showForwardStats();
    return said();
  };
  const plain = asked();
  assert.doesNotMatch(plain, /bursts|cycles/);
  Object.assign(engine.config, { recordBursts: true, recordCycles: true });
  const text = asked();
  const added = text.split('\n').filter((line) => !plain.split('\n').includes(line));
  assert.deepEqual(added, [
    '  RX-bursts : 156467 [0% of 0 pkts + 100% of 32 pkts]',
    '  TX-bursts : 4 [0% of 0 pkts + 75% of 1 pkts + 25% of 2 pkts]',
    '  RX-bursts : 1000 [10% of 0 pkts + 40% of 3 pkts + 30% of 1 pkts + 20% of other]',
    '  TX-bursts : 156467 [0% of 0 pkts + 100% of 32 pkts]',
    '  CPU cycles/packet=61.62 (total cycles=617099968 / total io packets=10013888) at 1000 MHz Clock',
  ]);
  assert.match(text, /\+\+\n\n {2}CPU cycles/);
});

test('testpmd: odd ports pair with themselves, loops stay, and peers are as told', () => {
  const three = ['06:00:00:00:00:00', '06:00:00:00:00:01', '06:00:00:00:00:02'];
  const pairs = (options: Partial<SessionOptions>, ports?: readonly number[]) => {
    const { engine, session, said } = open(three, options);
    if (ports !== undefined) engine.config.ports = ports;
    engine.config.ethPeers.set(1, 'aa:bb:cc:dd:ee:ff');
    session.showForwardConfig();
    return [...said().matchAll(/RX P=(\d).*TX P=(\d).*peer=(\S+)/g)].map(([, rx, tx, mac]) => `${rx}>${tx} ${mac}`);
  };
  assert.deepEqual(pairs({}), ['0>1 AA:BB:CC:DD:EE:FF', '1>0 02:00:00:00:00:00', '2>2 02:00:00:00:00:02']);
  assert.deepEqual(pairs({ topology: 'loop' }, [2, 0]), ['2>2 02:00:00:00:00:02', '0>0 02:00:00:00:00:00']);
});

test('testpmd: streams are shared among cores; ports that send to each other stay together', () => {
  const macs = ['06:00:00:00:00:00', '06:00:00:00:00:01', '06:00:00:00:00:02'];
  const shares = (
    options: Partial<SessionOptions>,
    cores: number,
    mode: ForwardMode = 'io',
    more: Partial<ForwardConfig> = {},
  ) => {
    const { engine, session, said } = open(macs, { lcores: [4, 6, 7], ...options });
    Object.assign(engine.config, { cores, mode, ...more });
    session.showForwardConfig();
    const blocks = said().split('Logical Core ').slice(1);
    return blocks.map((block) =>
      [block[0], ...[...block.matchAll(/RX P=(\d).*TX P=(\d)/g)].map(([, rx, tx]) => `${rx}>${tx}`)].join(' '),
    );
  };
  assert.deepEqual(shares({}, 2), ['4 0>1 1>0', '6 2>2']);
  assert.deepEqual(shares({}, 3), ['4 0>1 1>0', '6 2>2']);
  assert.deepEqual(shares({ topology: 'chained' }, 3), ['4 0>1 1>2 2>0']);
  assert.deepEqual(shares({}, 3, 'icmpecho'), ['4 0>0', '6 1>1', '7 2>2']);
  assert.deepEqual(shares({ topology: 'loop' }, 2), ['4 0>0 2>2', '6 1>1']);
  assert.deepEqual(shares({}, 2, 'io', { ports: [2, 0] }), ['4 2>0 0>2']);
  assert.deepEqual(shares({}, 2, 'io', { coreOrder: [2, 0] }), ['7 0>1 1>0', '4 2>2']);
});

test('testpmd: start shows bursts, the packets to be made, and queues', async () => {
  const { engine, session, said } = open();
  Object.assign(engine.config, { mode: 'txonly', txpkts: [64, 128] });
  await session.start(0);
  const text = said();
  const expected = golden(`
  txonly packet forwarding packets/burst=32
  packet len=192 - nb packet segments=2
  nb forwarding cores=1 - nb forwarding ports=2
  port 0: RX queue number: 1 Tx queue number: 1
    RX queue: 0
      RX desc=256
    TX queue: 0
      TX desc=256
  port 1: RX queue number: 1 Tx queue number: 1
    RX queue: 0
      RX desc=256
    TX queue: 0
      TX desc=256
`);
  assert.ok(text.endsWith(`\n\n${expected}`), text);
});
