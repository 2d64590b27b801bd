/** Packets as `set verbose` shows them, against what DPDK 22.11's dpdk-testpmd printed of the same capture, less pools and timestamps. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openWindow, type WindowViews } from '../../src/mem/window.ts';
import { DEFAULT_MADE } from '../../src/testpmd/engine.ts';
import { Forwarding } from '../../src/testpmd/forwarding.ts';
import { PacketDump } from '../../src/testpmd/packet-dump.ts';
import { streamCounters } from '../../src/testpmd/stream.ts';
import { Workshop } from '../../src/testpmd/workshop.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { FakePort } from '../kit/fake-port.ts';
import { pool } from '../kit/ram.ts';

const bytes = (...hex: string[]) => Buffer.from(hex.join(''), 'hex');
const link = (type: string, dest = '0a0000000001') => `${dest}0a0000000002${type}`;
const ipv4 = (protocol: string, payload: string, fragment = '0000') =>
  `4500${(20 + payload.length / 2).toString(16).padStart(4, '0')}0000${fragment}40${protocol}00000a0000010a000002${payload}`;
const ipv6 = (next: string, payload: string) =>
  `60000000${(payload.length / 2).toString(16).padStart(4, '0')}${next}40${'fe80'.padEnd(30, '0')}01${'fe80'.padEnd(30, '0')}02${payload}`;
const udp = `0009000900120000${'78'.repeat(10)}`;
const tcp = '0001000200000000000000005002000000000000';
const pad = '00'.repeat(10);

const FRAMES = [
  bytes(link('0800'), ipv4('11', udp), pad),
  bytes(link('0800'), ipv4('06', tcp)),
  bytes(link('86dd'), ipv6('06', tcp)),
  bytes(link('86dd'), ipv6('11', udp)),
  bytes(link('8100'), '00050800', ipv4('11', udp), pad),
  bytes(link('0806', 'ffffffffffff'), '00'.repeat(46)),
  bytes(link('0800'), ipv4('01', `08${'00'.repeat(27)}`)),
  bytes(link('0800'), ipv4('11', udp, '2000'), pad),
  bytes(link('88a8'), '0005810000060800', ipv4('84', `00010002${'00'.repeat(20)}`)),
];

const RX_FLAGS =
  '  ol_flags: RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN RTE_MBUF_F_RX_OUTER_L4_CKSUM_UNKNOWN ';
const GOLDEN = [
  'dst=0A:00:00:00:00:01 - type=0x0800 - length=62 - nb_segs=1 - sw ptype: L2_ETHER L3_IPV4 L4_UDP  - l2_len=14 - l3_len=20 - l4_len=8',
  'dst=0A:00:00:00:00:01 - type=0x0800 - length=54 - nb_segs=1 - sw ptype: L2_ETHER L3_IPV4 L4_TCP  - l2_len=14 - l3_len=20 - l4_len=20',
  'dst=0A:00:00:00:00:01 - type=0x86dd - length=74 - nb_segs=1 - sw ptype: L2_ETHER L3_IPV6 L4_TCP  - l2_len=14 - l3_len=40 - l4_len=20',
  'dst=0A:00:00:00:00:01 - type=0x86dd - length=72 - nb_segs=1 - sw ptype: L2_ETHER L3_IPV6 L4_UDP  - l2_len=14 - l3_len=40 - l4_len=8',
  'dst=0A:00:00:00:00:01 - type=0x8100 - length=66 - nb_segs=1 - sw ptype: L2_ETHER_VLAN L3_IPV4 L4_UDP  - l2_len=18 - l3_len=20 - l4_len=8',
  'dst=FF:FF:FF:FF:FF:FF - type=0x0806 - length=60 - nb_segs=1 - sw ptype: L2_ETHER  - l2_len=14',
  'dst=0A:00:00:00:00:01 - type=0x0800 - length=62 - nb_segs=1 - sw ptype: L2_ETHER L3_IPV4  - l2_len=14 - l3_len=20',
  'dst=0A:00:00:00:00:01 - type=0x0800 - length=62 - nb_segs=1 - sw ptype: L2_ETHER L3_IPV4 L4_FRAG  - l2_len=14 - l3_len=20 - l4_len=0',
  'dst=0A:00:00:00:00:01 - type=0x88a8 - length=66 - nb_segs=1 - sw ptype: L2_ETHER_QINQ L3_IPV4 L4_SCTP  - l2_len=22 - l3_len=20 - l4_len=12',
].map((line) => `  src=0A:00:00:00:00:02 - ${line} - Receive queue=0x0`);

/** Shows what port 0 receives and port 1 sends. */
function open(level: number, waiting = () => 0) {
  const { burst } = new RingStage();
  const windows: WindowViews[] = [];
  const own = pool.acquire();
  windows[own.id] = openWindow(own);
  const ports = [new FakePort(0, burst, windows), new FakePort(1, burst, windows)] as const;
  const workshop = new Workshop(windows, windows[own.id], burst);
  const noisy = { bufferPackets: 0, flushMs: 0, memoryMiB: 0, writes: 0, reads: 0, readWrites: 0 };
  const mac = new Uint8Array(6);
  const forwarding = new Forwarding(ports, workshop, {
    streams: [
      { rxPort: 0, txPort: 1, rxQueue: 0, txQueue: 0, queue: 3, peer: mac, own: mac, counters: streamCounters() },
    ],
    settings: {
      ...{ mode: 'io', burst: 32, txpkts: [64], noisy, made: DEFAULT_MADE },
      ...{ recordBursts: false, recordCycles: false },
    },
    retry: undefined,
  });
  const texts: string[] = [];
  workshop.dump = new PacketDump(level, waiting, (text) => texts.push(text));
  const forward = (...frames: Buffer[]) => {
    for (const frame of frames) ports[0].arrive(frame);
    while (forwarding.turn() > 0);
    return texts.splice(0);
  };
  return { forward, ports };
}

test('testpmd: received packets, line by line as DPDK shows them', () => {
  const [text, ...more] = open(1).forward(...FRAMES);
  const lines = GOLDEN.map((line) => line.replace(/0x0$/, '0x3')).flatMap((line) => [line, RX_FLAGS]);
  assert.deepEqual(text.split('\n'), ['port 0/queue 3: received 9 packets', ...lines]);
  assert.deepEqual(more, []);
});

test('testpmd: what is sent, or both, by the level; and only what was taken', () => {
  const heads = (level: number) =>
    open(level)
      .forward(FRAMES[1])
      .map((text) => text.split('\n')[0]);
  const [received, sent] = ['port 0/queue 3: received 1 packets', 'port 1/queue 3: sent 1 packets'];
  assert.deepEqual(heads(1), [received]);
  assert.deepEqual(heads(2), [sent]);
  assert.deepEqual(heads(3), [received, sent]);
  const { forward, ports } = open(2);
  ports[1].room = 0;
  assert.deepEqual(forward(FRAMES[1]), []);
  ports[1].room = 1;
  const [text] = forward(FRAMES[1]);
  assert.match(text, / - Send queue=0x3\n {2}ol_flags: RTE_MBUF_F_TX_L4_NO_CKSUM $/);
});

test('testpmd: frames of any bytes are shown, also in pieces and cut short', () => {
  const { forward, ports } = open(1);
  for (let len = 1; len < 60; len++) ports[0].arrive(FRAMES[4].subarray(0, len));
  const texts = forward();
  const lines = texts.flatMap((text) => text.split('\n')).filter((line) => line.includes('length='));
  assert.deepEqual(
    lines.map((line) => Number(/length=(\d+)/.exec(line)?.[1])),
    Array.from({ length: 59 }, (_, i) => i + 1),
  );
  ports[0].arrive(FRAMES[0], 3, 20);
  assert.match(forward()[0], /nb_segs=3 - sw ptype: L2_ETHER L3_IPV4 L4_UDP /);
});

test('testpmd: what the main thread does not keep up with is counted', () => {
  let waiting = 64;
  const { forward } = open(1, () => waiting);
  assert.deepEqual(forward(FRAMES[0], FRAMES[1]), []);
  waiting = 63;
  const [text] = forward(FRAMES[2]);
  assert.match(text, /^2 packets came too fast to be shown\nport 0\/queue 3: received 1 packets\n/);
  assert.match(forward(FRAMES[2])[0], /^port 0/);
});
