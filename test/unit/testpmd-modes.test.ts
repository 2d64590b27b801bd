/** Each forwarding mode between two ports, byte by byte. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { openWindow, type WindowViews } from '../../src/mem/window.ts';
import type { ForwardMode, NoisyConfig } from '../../src/testpmd/engine.ts';
import { DEFAULT_MADE } from '../../src/testpmd/engine.ts';
import { Forwarding } from '../../src/testpmd/forwarding.ts';
import type { ModeSettings } from '../../src/testpmd/modes/mode.ts';
import { type Retry, STREAM_SLOTS, streamCounters } from '../../src/testpmd/stream.ts';
import { Workshop } from '../../src/testpmd/workshop.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { FakePort } from '../kit/fake-port.ts';
import { frame, mac } from '../kit/frames.ts';
import { checksumIsRight, look, naiveSum, packet } from '../kit/packets.ts';
import { pool } from '../kit/ram.ts';

const PEER = Buffer.from('020000000001', 'hex');
const OWN = Buffer.from('525400000002', 'hex');
const QUIET: NoisyConfig = { bufferPackets: 0, flushMs: 0, memoryMiB: 0, writes: 0, reads: 0, readWrites: 0 };

/** Port 0's frames go to port 1. */
class Bench {
  readonly burst = new RingStage().burst;
  readonly windows: WindowViews[] = [];
  readonly ports: readonly [FakePort, FakePort];
  readonly counters = streamCounters();
  readonly forwarding: Forwarding;

  constructor(mode: ForwardMode, settings: Partial<ModeSettings> = {}, retry?: Retry, queues = 1) {
    const own = pool.acquire();
    this.windows[own.id] = openWindow(own);
    this.ports = [new FakePort(0, this.burst, this.windows), new FakePort(1, this.burst, this.windows)];
    this.ports[0].queues = queues;
    const workshop = new Workshop(this.windows, this.windows[own.id], this.burst);
    this.forwarding = new Forwarding(this.ports, workshop, {
      streams: [{ rxPort: 0, txPort: 1, rxQueue: 0, txQueue: 0, peer: PEER, own: OWN, counters: this.counters }],
      settings: {
        mode,
        burst: 32,
        txpkts: [64],
        noisy: QUIET,
        made: DEFAULT_MADE,
        recordBursts: false,
        recordCycles: false,
        ...settings,
      },
      retry,
    });
  }

  /** What leaves port 1 when this arrives on port 0. */
  forward(...frames: readonly Buffer[]): Buffer[] {
    for (const bytes of frames) this.ports[0].arrive(bytes);
    while (this.ports[0].arriving.length > 0) this.forwarding.turn();
    return this.ports[1].sent.splice(0);
  }

  count(name: keyof typeof STREAM_SLOTS): number {
    return new Float64Array(this.counters)[STREAM_SLOTS[name]];
  }
}

const swapped = (bytes: Buffer) => Buffer.concat([bytes.subarray(6, 12), bytes.subarray(0, 6), bytes.subarray(12)]);
const addressed = (bytes: Buffer) => Buffer.concat([PEER, OWN, bytes.subarray(12)]);

describe('testpmd modes', () => {
  test('io sends frames on as they are, in order, and gives the buffers back', () => {
    const bench = new Bench('io');
    const frames = Array.from({ length: 40 }, (_, n) => frame(mac(1), mac(2), 14 + n * 30));
    assert.deepEqual(bench.forward(...frames), frames);
    assert.equal(bench.ports[0].completed, 2);
    assert.deepEqual([bench.count('rx_packets'), bench.count('tx_packets'), bench.count('tx_dropped')], [40, 40, 0]);
  });

  test('mac gives frames the addresses of the peer and of the port that they leave by', () => {
    const frames = [60, 14, 1514].map((len) => frame(mac(1), mac(2), len));
    assert.deepEqual(new Bench('mac').forward(...frames), frames.map(addressed));
  });

  test('macswap swaps the two addresses', () => {
    const frames = [60, 14, 1514].map((len) => frame(mac(1), mac(2), len));
    assert.deepEqual(new Bench('macswap').forward(...frames), frames.map(swapped));
  });

  for (const mode of ['mac', 'macswap', '5tswap', 'csum'] as const)
    test(`${mode} does not touch a frame that is too short for its headers`, () => {
      const runt = Buffer.from('0102030405060708090a0b', 'hex');
      assert.deepEqual(new Bench(mode).forward(runt), [runt]);
    });

  test('headers in pieces are changed all the same', () => {
    const bytes = packet({ version: 4, protocol: 'udp', payload: Buffer.from('some payload') }).bytes;
    for (const [mode, expected] of [
      ['mac', addressed(bytes)],
      ['macswap', swapped(bytes)],
    ] as const) {
      const bench = new Bench(mode);
      bench.ports[0].arrive(bytes, 1, 5, 13, 30);
      bench.ports[0].arrive(bytes);
      assert.deepEqual(bench.forward(), [expected, expected]);
    }
  });

  test('rxonly counts what arrives, and sends nothing', () => {
    const bench = new Bench('rxonly');
    assert.deepEqual(bench.forward(frame(mac(1), mac(2)), frame(mac(1), mac(2))), []);
    assert.equal(bench.count('rx_packets'), 2);
    assert.equal(bench.ports[0].completed, 1);
  });

  test('txonly sends bursts of one flow, in the segments that were asked for', () => {
    for (const txpkts of [[64], [42], [20, 30, 14], [1000, 500]]) {
      const bench = new Bench('txonly', { txpkts, burst: 5 });
      bench.forwarding.turn();
      const bytes = txpkts.reduce((sum, len) => sum + len, 0);
      const sent = bench.ports[1].sent;
      assert.equal(sent.length, 5);
      for (const one of sent) {
        assert.equal(one.length, bytes);
        const { link, source, dest, transport, id, protocol } = look(one);
        assert.deepEqual(link, Buffer.concat([PEER, OWN, Buffer.from('0800', 'hex')]));
        assert.deepEqual([...source], [198, 18, 0, 1]);
        assert.deepEqual([...dest], [198, 18, 0, 2]);
        assert.deepEqual([id, protocol], [0, 17]);
        const udp = Buffer.alloc(transport.length);
        udp.writeUInt16BE(9, 0);
        udp.writeUInt16BE(9, 2);
        udp.writeUInt16BE(bytes - 34, 4);
        assert.deepEqual(transport, udp);
      }
    }
  });

  test('txonly has the addresses and ports that were asked for, and 256 sources if asked for', () => {
    const txFlow = { source: 0x0a000001, dest: 0x0a000002, sourcePort: 1000, destPort: 2000 };
    const sent = (txMultiFlow: boolean) => {
      const bench = new Bench('txonly', { made: { ...DEFAULT_MADE, txFlow, txMultiFlow } });
      for (let n = 0; n < 9; n++) bench.forwarding.turn();
      return bench.ports[1].sent.map(look);
    };
    for (const { source, dest, transport } of sent(false)) {
      assert.deepEqual([source.join('.'), dest.join('.')], ['10.0.0.1', '10.0.0.2']);
      assert.deepEqual([transport.readUInt16BE(0), transport.readUInt16BE(2)], [1000, 2000]);
    }
    const sources = sent(true).map(({ source }) => source.join('.'));
    assert.deepEqual(sources.slice(0, 3), ['10.0.0.3', '10.0.1.3', '10.0.2.3']);
    assert.equal(new Set(sources).size, 256);
    assert.deepEqual(sources.slice(256), sources.slice(0, 32));
  });

  test('flowgen sends as many flows as asked for, and each packet as often', () => {
    const bench = new Bench('flowgen', { burst: 8, made: { ...DEFAULT_MADE, flows: 5, clones: 2 } });
    bench.forwarding.turn();
    const dests = bench.ports[1].sent.map((bytes) => bytes[33]);
    // a clone takes its place in the turn, as DPDK counts
    assert.deepEqual(dests, [0, 0, 0, 3, 3, 3, 1, 1]);
  });

  test('bursts and time are counted where that is asked for', () => {
    const bench = new Bench('io', { recordBursts: true, recordCycles: true });
    bench.forward(...Array.from({ length: 40 }, () => frame(mac(1), mac(2))));
    const counters = new Float64Array(bench.counters);
    const bursts = (from: number) =>
      [...counters.subarray(from, from + 33)].flatMap((count, packets) => (count > 0 && packets > 0 ? [packets] : []));
    assert.deepEqual(bursts(STREAM_SLOTS.rx_bursts), [8, 32]);
    assert.deepEqual(bursts(STREAM_SLOTS.tx_bursts), [8, 32]);
    assert.ok(counters[STREAM_SLOTS.busy_ns] > 0);
    const quiet = new Bench('io');
    quiet.forward(frame(mac(1), mac(2)));
    assert.deepEqual([...new Float64Array(quiet.counters).subarray(STREAM_SLOTS.busy_ns)].filter(Boolean), []);
  });

  test('flowgen sends 1024 flows in turn, begins again with what was not taken, and throws away what arrives', () => {
    const bench = new Bench('flowgen', { txpkts: [200] });
    const flows: number[] = [];
    bench.ports[1].roomAfterRefusal = 20;
    for (let n = 0; n < 70; n++) {
      if (n % 3 === 0) bench.ports[1].room = 20;
      bench.forwarding.turn();
      for (const one of bench.ports[1].sent.splice(0)) {
        assert.equal(one.length, 200);
        const { source, dest, transport, link } = look(one);
        assert.deepEqual([...source], [10, 254, 0, 0]);
        assert.deepEqual([...dest.subarray(0, 2)], [10, 253]);
        assert.deepEqual([transport.readUInt16BE(0), transport.readUInt16BE(2)], [1000, 1001]);
        assert.equal(link.toString('hex'), '0001020304010001020304000800');
        flows.push(dest.readUInt16BE(2));
      }
    }
    assert.ok(flows.length > 1200);
    assert.deepEqual(
      flows,
      flows.map((_, n) => n % 1024),
    );
    assert.ok(bench.count('tx_dropped') > 0);
    bench.ports[0].arrive(frame(mac(1), mac(2)));
    bench.forwarding.turn();
    assert.equal(bench.count('rx_packets'), 1);
    assert.equal(bench.ports[0].completed, 1);
  });

  test('5tswap swaps addresses and ports of IPv4 and IPv6, TCP and UDP, also behind tags; checksums stay right', () => {
    for (const version of [4, 6] as const)
      for (const protocol of ['tcp', 'udp'] as const)
        for (const tags of [[], [0x8100], [0x88a8, 0x8100]]) {
          const { bytes, csumStart, csumOffset } = packet({ version, protocol, tags, payload: Buffer.from('payload') });
          bytes.writeUInt16BE(0xffff - naiveSum(bytes.subarray(csumStart)), csumStart + csumOffset);
          const before = look(bytes);
          const [sent] = new Bench('5tswap').forward(bytes);
          const seen = look(sent);
          assert.ok(checksumIsRight(seen));
          assert.deepEqual([seen.source, seen.dest], [before.dest, before.source]);
          assert.deepEqual(seen.transport.subarray(0, 2), before.transport.subarray(2, 4));
          assert.deepEqual(seen.transport.subarray(2, 4), before.transport.subarray(0, 2));
          assert.deepEqual(seen.transport.subarray(4), before.transport.subarray(4));
          assert.deepEqual(seen.link, swapped(bytes).subarray(0, seen.link.length));
        }
  });

  test('5tswap swaps no ports in a later fragment, and only MAC addresses of what is not IP', () => {
    const { bytes } = packet({ version: 4, protocol: 'udp', payload: Buffer.alloc(64, 1), fragOff: 0x2003 });
    const [sent] = new Bench('5tswap').forward(bytes);
    assert.deepEqual(look(sent).transport, look(bytes).transport);
    const arp = frame(mac(1), mac(2), 60);
    arp.writeUInt16BE(0x0806, 12);
    assert.deepEqual(new Bench('5tswap').forward(arp), [swapped(arp)]);
  });

  test('csum makes checksums right, counts those that were wrong, and gives frames the addresses of mac', () => {
    for (const version of [4, 6] as const)
      for (const protocol of ['tcp', 'udp'] as const)
        for (const payload of [Buffer.from('odd'), Buffer.from('even')]) {
          const bench = new Bench('csum');
          const { bytes, csumStart, csumOffset, ipOff } = packet({ version, protocol, payload });
          const right = Buffer.from(bytes);
          right.writeUInt16BE(0xffff - naiveSum(right.subarray(csumStart)), csumStart + csumOffset);
          const wrong = Buffer.from(right);
          wrong[csumStart + csumOffset] ^= 0x55;
          if (version === 4) wrong[ipOff + 10] ^= 0x55;
          bench.ports[0].arrive(wrong, 20, 40);
          assert.deepEqual(bench.forward(right), [addressed(right), addressed(right)]);
          assert.equal(bench.count('bad_ip_checksum'), version === 4 ? 1 : 0);
          assert.equal(bench.count('bad_l4_checksum'), 1);
        }
  });

  test('csum leaves a UDP datagram without a checksum as it is, and looks at nothing but the IP header of a fragment', () => {
    const bench = new Bench('csum');
    const { bytes, csumStart } = packet({ version: 4, protocol: 'udp', payload: Buffer.from('payload') });
    bytes.writeUInt16BE(0, csumStart + 6);
    const fragment = packet({ version: 4, protocol: 'tcp', payload: Buffer.from('payload'), fragOff: 0x2000 }).bytes;
    assert.deepEqual(bench.forward(bytes, fragment), [addressed(bytes), addressed(fragment)]);
    assert.equal(bench.count('bad_l4_checksum'), 0);
  });

  test('csum is not led astray by lengths that are longer than the frame', () => {
    for (const [at, value] of [
      [16, 0xffff],
      [14, 0x4f45],
      [38, 0xffff],
    ]) {
      const { bytes } = packet({ version: 4, protocol: 'udp', payload: Buffer.from('payload') });
      bytes.writeUInt16BE(value, at);
      const [sent] = new Bench('csum').forward(bytes);
      assert.equal(sent.length, bytes.length);
    }
  });

  test('icmpecho answers ARP requests and echo requests, and nothing else', () => {
    const bench = new Bench('icmpecho');
    const arp = Buffer.concat([
      Buffer.from('ffffffffffff', 'hex'),
      mac(7),
      Buffer.from('0806000108000604', 'hex'),
      Buffer.from('0001', 'hex'),
      mac(7),
      Buffer.from('0a000001000000000000', 'hex'),
      Buffer.from('0a0000fe', 'hex'),
    ]);
    const icmp = Buffer.concat([Buffer.from('08000000abcd0001', 'hex'), Buffer.from('ping payload')]);
    icmp.writeUInt16BE(0xffff - naiveSum(icmp), 2);
    const ip = Buffer.from('4500000000004000400100000a0000010a0000fe', 'hex');
    ip.writeUInt16BE(20 + icmp.length, 2);
    ip.writeUInt16BE(0xffff - naiveSum(ip), 10);
    const echo = Buffer.concat([mac(1), mac(7), Buffer.from('0800', 'hex'), ip, icmp]);
    const others = [
      packet({ version: 4, protocol: 'udp', payload: Buffer.alloc(20) }).bytes,
      Buffer.concat([echo.subarray(0, 34), Buffer.from([0]), echo.subarray(35)]),
      Buffer.concat([arp.subarray(0, 20), Buffer.from('0002', 'hex'), arp.subarray(22)]),
      arp.subarray(0, 30),
    ];
    const [arpReply, echoReply, ...rest] = bench.forward(others[0], arp, others[1], echo, others[2], others[3]);
    assert.deepEqual(rest, []);
    assert.deepEqual(
      arpReply,
      Buffer.concat([
        mac(7),
        OWN,
        Buffer.from('08060001080006040002', 'hex'),
        OWN,
        Buffer.from('0a0000fe', 'hex'),
        mac(7),
        Buffer.from('0a000001', 'hex'),
      ]),
    );
    assert.deepEqual(echoReply.subarray(0, 14), Buffer.concat([mac(7), mac(1), Buffer.from('0800', 'hex')]));
    const seen = look(echoReply);
    assert.deepEqual([...seen.source, ...seen.dest], [10, 0, 0, 254, 10, 0, 0, 1]);
    assert.equal(seen.transport[0], 0);
    assert.equal(naiveSum(seen.transport), 0xffff);
    assert.deepEqual(seen.transport.subarray(4), icmp.subarray(4));
    assert.equal(bench.count('tx_packets'), 2);
  });

  test('icmpecho answers a group by another address than the group', () => {
    const icmp = Buffer.from('0800f7fffabc0001', 'hex');
    icmp.writeUInt16BE(0, 2);
    icmp.writeUInt16BE(0xffff - naiveSum(icmp), 2);
    const ip = Buffer.from('4500001c00004000400100000a000001e0000001', 'hex');
    ip.writeUInt16BE(0xffff - naiveSum(ip), 10);
    const echo = Buffer.concat([mac(1), mac(7), Buffer.from('0800', 'hex'), ip, icmp]);
    const seen = look(new Bench('icmpecho').forward(echo)[0]);
    assert.deepEqual([...seen.source, ...seen.dest], [10, 0, 0, 2, 10, 0, 0, 1]);
    assert.equal(naiveSum(seen.transport), 0xffff);
  });

  test('noisy is io by default; with memory to look things up in as well', () => {
    const frames = Array.from({ length: 40 }, () => frame(mac(1), mac(2)));
    assert.deepEqual(new Bench('noisy').forward(...frames), frames);
    const noisy = { ...QUIET, memoryMiB: 1, writes: 2, reads: 3, readWrites: 1 };
    assert.deepEqual(new Bench('noisy', { noisy }).forward(...frames), frames);
  });

  test('noisy keeps so many frames waiting, and sends the oldest for what comes', () => {
    const bench = new Bench('noisy', { noisy: { ...QUIET, bufferPackets: 50 } });
    const frames = Array.from({ length: 200 }, (_, n) => frame(mac(1), mac(2), 60 + n));
    assert.deepEqual(bench.forward(...frames.slice(0, 50)), []);
    assert.deepEqual(bench.forward(...frames.slice(50, 53)), frames.slice(0, 3));
    const more: Buffer[] = [];
    for (let n = 53; n < 200; n += 7) more.push(...bench.forward(...frames.slice(n, n + 7)));
    assert.deepEqual(more, frames.slice(3, 150));
  });

  test('noisy sends all that wait when nothing was sent for so long', async () => {
    const bench = new Bench('noisy', { noisy: { ...QUIET, bufferPackets: 100, flushMs: 20 } });
    const frames = Array.from({ length: 70 }, () => frame(mac(1), mac(2)));
    const { sent } = bench.ports[1];
    for (const bytes of frames) bench.ports[0].arrive(bytes);
    for (; sent.length < frames.length; await sleep(5)) bench.forwarding.turn();
    assert.deepEqual(sent, frames);
  });
});

describe('testpmd streams', () => {
  const frames = Array.from({ length: 32 }, () => frame(mac(1), mac(2)));

  test('what a full queue does not take is dropped and counted', () => {
    const bench = new Bench('io');
    bench.ports[1].room = 10;
    assert.deepEqual(bench.forward(...frames), frames.slice(0, 10));
    assert.deepEqual([bench.count('tx_packets'), bench.count('tx_dropped'), bench.count('tx_retries')], [10, 22, 0]);
  });

  test('with retry it is offered again, until it is taken', () => {
    const bench = new Bench('io', {}, { delay: 1, times: 64 });
    bench.ports[1].room = 10;
    bench.ports[1].roomAfterRefusal = 5;
    assert.deepEqual(bench.forward(...frames), frames);
    assert.deepEqual([bench.count('tx_packets'), bench.count('tx_dropped'), bench.count('tx_retries')], [32, 0, 5]);
  });

  test('or until it has been offered often enough', () => {
    const bench = new Bench('io', {}, { delay: 1, times: 3 });
    bench.ports[1].room = 10;
    assert.deepEqual(bench.forward(...frames), frames.slice(0, 10));
    assert.deepEqual([bench.count('tx_dropped'), bench.count('tx_retries')], [22, 3]);
  });

  test('tx_first sends bursts as txonly does, whatever the mode', () => {
    const bench = new Bench('macswap', { burst: 4 });
    bench.forwarding.sendFirst(3);
    assert.equal(bench.ports[1].sent.length, 12);
    assert.ok(bench.ports[1].sent.every((one) => one.length === 64));
    assert.equal(bench.count('tx_packets'), 12);
    assert.ok(bench.ports[1].drained > 0);
  });

  test('a burst is as long as was asked for', () => {
    const bench = new Bench('io', { burst: 7 });
    for (const bytes of frames) bench.ports[0].arrive(bytes);
    assert.equal(bench.forwarding.turn(), 7);
  });

  test('what has arrived before the start is thrown away', () => {
    const bench = new Bench('io');
    for (const bytes of [...frames, ...frames]) bench.ports[0].arrive(bytes);
    bench.forwarding.flush();
    assert.deepEqual(bench.forward(), []);
    assert.equal(bench.count('rx_packets'), 0);
  });

  test('it is time to sleep when nothing arrives; a generator sleeps while no port takes frames', () => {
    const bench = new Bench('io');
    assert.equal(bench.forwarding.prepareSleep(), 1, 'a port without an eventfd must be looked at');
    bench.ports[0].arrive(frames[0]);
    assert.equal(bench.forwarding.prepareSleep(), 0);
    const generator = new Bench('txonly');
    assert.equal(generator.forwarding.prepareSleep(), 0);
    for (const port of generator.ports) port.canTransmit = false;
    assert.equal(generator.forwarding.prepareSleep(), 1);
  });

  test('a port that has several queues on this thread is asked for all of them by turns', () => {
    const bench = new Bench('io', {}, undefined, 3);
    for (let n = 0; n < 6; n++) bench.forwarding.turn();
    assert.deepEqual(bench.ports[0].asked, [1, 2, 0, 1, 2, 0]);
    bench.forwarding.flush();
    assert.deepEqual(bench.ports[0].asked.slice(6), [0, 1, 2]);
  });

  test('closing it closes the ports', () => {
    const bench = new Bench('io');
    bench.forwarding.close();
    assert.ok(bench.ports.every(({ closed, ticks }) => closed && ticks > 0));
  });
});
