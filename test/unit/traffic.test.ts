import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WINDOW } from '../../src/testpmd/traffic/flow-verifier.ts';
import { FrameMaker, makerBytes } from '../../src/testpmd/traffic/frame-maker.ts';
import { checkOf, hashTail, MAX_FLOWS } from '../../src/testpmd/traffic/payload.ts';
import { IMIX, leastFrame } from '../../src/testpmd/traffic/traffic-plan.ts';
import { frame, mac } from '../kit/frames.ts';
import { look } from '../kit/packets.ts';
import { CLEAN, PLAN, TrafficBench } from '../kit/traffic.ts';

function on(bench: TrafficBench, use: (bench: TrafficBench) => void): void {
  try {
    use(bench);
  } finally {
    bench.close();
  }
}

test('traffic: frames are right UDP packets, with every field where it was asked for', () => {
  on(new TrafficBench({ flows: 3, sizes: { list: [60, 64, 1514] } }), (bench) => {
    const frames = bench.make(6);
    assert.deepEqual(
      frames.map(({ length }) => length),
      [60, 64, 1514, 60, 64, 1514],
    );
    for (const [i, bytes] of frames.entries()) {
      const seen = look(bytes);
      assert.equal(bytes.toString('hex', 0, 12), '525400000002020000000001');
      assert.equal(seen.source.readUInt32BE(), 0x0a000001 + (i % 3));
      assert.equal(seen.dest.readUInt32BE(), 0xc0a80001);
      assert.equal(seen.protocol, 17);
      assert.deepEqual(
        [0, 2, 4, 6].map((at) => seen.transport.readUInt16BE(at)),
        [1024 + (i % 3), 9, bytes.length - 34, 0],
      );
      // magic, number, run and flow
      const payload = seen.transport.subarray(8);
      assert.deepEqual(
        [payload.readUInt16BE(0), payload.readUInt32BE(4), payload.readUInt32BE(8)],
        [0x5653, Math.floor(i / 3), i % 3],
      );
    }
  });
});

test('traffic: the time in a packet is CLOCK_MONOTONIC, modulo 2^48', () => {
  on(new TrafficBench(), (bench) => {
    const before = process.hrtime.bigint();
    const [bytes] = bench.make(1);
    const after = process.hrtime.bigint();
    const said = (BigInt(bytes.readUInt16BE(42 + 12)) << 32n) | BigInt(bytes.readUInt32BE(42 + 14));
    const low = (ns: bigint) => ns & (2n ** 48n - 1n);
    assert.ok(low(said - before) <= low(after - before));
  });
});

test('traffic: VLAN tags, and ranges of every field', () => {
  const two = (first: number) => ({ first, count: 2 });
  const plan = {
    ...{
      flows: 4,
      vlan: { first: 100, count: 3 },
      srcMac: two(0x02ffffffffff),
      dstMac: two(0xfe),
      sizes: { list: [64] },
    },
    ...{ srcIp: two(0xfffffffe), dstIp: two(1), srcPort: two(65534), dstPort: two(0) },
  };
  on(new TrafficBench(plan), (bench) => {
    const frames = bench.make(4);
    const field = (at: number, len: number) => frames.map((bytes) => bytes.toString('hex', at, at + len));
    assert.deepEqual(field(0, 6), ['0000000000fe', '0000000000ff', '0000000000fe', '0000000000ff']);
    assert.deepEqual(field(6, 6).slice(0, 2), ['02ffffffffff', '030000000000']);
    assert.deepEqual(field(12, 4), ['81000064', '81000065', '81000066', '81000064']);
    assert.deepEqual(field(30, 4).slice(0, 2), ['fffffffe', 'ffffffff']);
    assert.deepEqual(field(38, 4).slice(0, 2), ['fffe0000', 'ffff0001']);
    for (const bytes of frames) look(bytes);
    bench.verify(frames);
    assert.deepEqual(bench.totals, { ...CLEAN, received: 4 });
  });
});

test('traffic: the sizes of the Internet mix come 7 : 4 : 1; random ones all come, and the same again for the same seed', () => {
  const of = (size: number) => IMIX.filter((one) => one === size).length;
  assert.deepEqual([of(64), of(590), of(1514), IMIX.length], [7, 4, 1, 12]);
  const random = { sizes: { min: 100, max: 109 }, seed: 7 };
  const sizes: number[][] = [];
  for (let i = 0; i < 2; i++)
    on(new TrafficBench(random), (bench) => {
      const frames = bench.make(1000);
      sizes.push(frames.map(({ length }) => length));
      bench.verify(frames);
      assert.deepEqual(bench.totals, { ...CLEAN, received: 1000 });
    });
  assert.deepEqual(sizes[0], sizes[1]);
  for (let size = 100; size <= 109; size++) {
    const n = sizes[0].filter((one) => one === size).length;
    assert.ok(n > 50 && n < 150, `${n} of ${size} bytes`);
  }
});

test('traffic: what is made is what is verified, in one piece or many', () => {
  for (const piece of [undefined, 400, 61])
    on(new TrafficBench({ flows: 100, sizes: { list: [60, 61, 62, 63, 64, 75, 76, 77, 78, 1514] } }), (bench) => {
      const frames = bench.make(1000);
      bench.verify(frames, piece);
      assert.deepEqual(bench.totals, { ...CLEAN, received: 1000 });
      assert.equal(
        bench.counters.total('bytes'),
        frames.reduce((sum, { length }) => sum + length, 0),
      );
      assert.equal(bench.counters.of(99, 'received'), 10);
      const { latency } = bench.counters;
      assert.deepEqual([latency.count, latency.impossible], [1000, 0]);
      assert.ok(latency.min > 0 && latency.percentile(50) <= latency.percentile(99.9) && latency.max < 60e9);
    });
});

test('traffic: loss, order and duplicates, flow by flow', () => {
  on(new TrafficBench({ flows: 2 }), (bench) => {
    const frames = bench.make(20);
    // flow 0 has 0, 2, 4, …; flow 1 has 1, 3, 5, …
    const arrived = [0, 2, 6, 4, 4, 8, 18, 1, 3, 9, 9].map((i) => frames[i]);
    bench.verify(arrived);
    const of = (flow: number) =>
      (['received', 'lost', 'reordered', 'duplicated'] as const).map((name) => bench.counters.of(flow, name));
    // 0 1 3 2 2 4 9 of flow 0, 0 1 4 4 of flow 1
    assert.deepEqual(of(0), [6, 4, 1, 1]);
    assert.deepEqual(of(1), [3, 2, 0, 1]);
    assert.equal(bench.counters.latency.count, 9);
  });
});

test('traffic: what was lost before a flow is met counts only where it is seen from its first packet on', () => {
  for (const [fromFirst, lost] of [
    [true, 5],
    [false, 0],
  ] as const)
    on(new TrafficBench({ flows: 1 }, { fromFirst }), (bench) => {
      const frames = bench.make(10);
      bench.verify(frames.slice(5));
      assert.deepEqual(bench.totals, { ...CLEAN, received: 5, lost });
      // a packet from before that
      bench.verify([frames[4]]);
      const expected = fromFirst ? { received: 6, lost: 4, reordered: 1 } : { received: 5, late: 1 };
      assert.deepEqual(bench.totals, { ...CLEAN, ...expected });
    });
});

test('traffic: packets too far behind to tell whether they came before', () => {
  on(new TrafficBench({ flows: 1 }), (bench) => {
    const frames = bench.make(WINDOW + 10);
    const [first, second, third] = frames;
    bench.verify([second, ...frames.slice(3)]);
    assert.deepEqual(bench.totals, { ...CLEAN, received: WINDOW + 8, lost: 2 });
    bench.verify([first, third, frames[9], frames[10]]);
    // the oldest that is remembered is number WINDOW + 9 − (WINDOW − 1)
    assert.deepEqual(bench.totals, { ...CLEAN, received: WINDOW + 8, lost: 2, late: 3, duplicated: 1 });
  });
});

test('traffic: a run that begins anew is not taken for loss, and its numbers wrap', () => {
  on(new TrafficBench({ flows: 1 }), (bench) => {
    bench.verify(bench.make(500));
    bench.newMaker(1);
    bench.verify(bench.make(500));
    assert.deepEqual(bench.totals, { ...CLEAN, received: 1000 });
    bench.newMaker(2);
    bench.maker.numbers[0] = -3;
    on(new TrafficBench({ flows: 1 }, { fromFirst: false }), (other) => {
      const frames = bench.make(10);
      other.verify(frames);
      assert.equal(frames[3].readUInt32BE(42 + 4), 0);
      assert.deepEqual(other.totals, { ...CLEAN, received: 10 });
    });
    bench.newMaker(RUN_WRAPS);
    bench.verify(bench.make(1));
    assert.equal(bench.totals.received, 1001);
  });
});
const RUN_WRAPS = 256 + 3;

test('traffic: packets that were not sent are taken back', () => {
  on(new TrafficBench({ flows: 3 }), (bench) => {
    const frames: Buffer[] = [];
    for (let i = 0; i < 50; i++) {
      const made = bench.make(10);
      frames.push(...made.slice(0, 4 + (i % 7)));
      bench.maker.takeBack(10 - (4 + (i % 7)));
    }
    bench.verify(frames);
    assert.deepEqual(bench.totals, { ...CLEAN, received: frames.length });
    assert.equal(
      bench.maker.numbers.reduce((sum, n) => sum + n, 0),
      frames.length,
    );
  });
});

test('traffic: a changed bit anywhere in the payload is damage', () => {
  on(new TrafficBench({ flows: 1, sizes: { list: [300] } }), (bench) => {
    let flips = 0;
    const [bytes] = bench.make(1);
    const at = (i: number) => 42 + (i >> 3);
    for (let i = 16; i < 8 * (300 - 42); i++) {
      const changed = Buffer.from(bytes);
      changed[at(i)] ^= 1 << (i & 7);
      bench.verify([changed]);
      flips++;
    }
    const { damaged, received, unknown, late, duplicated, foreign } = bench.totals;
    assert.equal(damaged + received + unknown + late + duplicated, flips);
    assert.equal(foreign, 0);
    // the flow's own 24 bits; and the checksum has 16 bits: one damage of 65536 goes by
    assert.ok(unknown >= 20 && unknown <= 24, `${unknown} of unknown flows`);
    assert.ok(flips - damaged - unknown <= 2, `${flips - damaged - unknown} of ${flips} flips were not seen`);
    const short = Buffer.from(bytes.subarray(0, 290));
    bench.verify([short]);
    assert.equal(bench.totals.damaged, damaged + 1);
    // padding behind it is none
    bench.verify([Buffer.concat([bytes, Buffer.alloc(7, 0xee)])]);
    assert.equal(bench.totals.damaged, damaged + 1);
  });
});

test('traffic: the hash sees changed, missing and exchanged words', () => {
  const bytes = Buffer.from(Array.from({ length: 203 }, (_, i) => (i * 91) & 0xff));
  const hash = (of: Buffer) => hashTail(new DataView(of.buffer, of.byteOffset, of.length), 0, of.length);
  const whole = hash(bytes);
  for (let len = 0; len < 203; len++) assert.notEqual(hash(Buffer.from(bytes.subarray(0, len))), whole);
  for (let word = 0; word + 8 <= 203; word += 4) {
    const other = Buffer.from(bytes);
    bytes.copy(other, word, word + 4, word + 8);
    bytes.copy(other, word + 4, word, word + 4);
    assert.notEqual(hash(other), whole, `words at ${word}`);
  }
  assert.equal(checkOf(whole, 1, 2, 3, 4), checkOf(whole, 1, 2, 3, 4));
  assert.notEqual(checkOf(whole, 1, 2, 3, 4), checkOf(whole, 2, 1, 3, 4));
});

test('traffic: other packets are not ours, and flows that nobody expects are told apart', () => {
  on(new TrafficBench({ flows: 8 }, { flows: 4 }), (bench) => {
    const frames = bench.make(16);
    const [bytes] = frames;
    const changed = (at: number, value: number) => {
      const copy = Buffer.from(bytes);
      copy[at] = value;
      return copy;
    };
    const foreign = [
      frame(mac(1), mac(2)),
      Buffer.alloc(0),
      Buffer.alloc(13),
      bytes.subarray(0, 59),
      changed(12, 0x86),
      changed(23, 6),
      changed(42, 0),
    ];
    bench.verify([...frames, ...foreign]);
    assert.deepEqual(bench.totals, { ...CLEAN, received: 8, unknown: 8, foreign: foreign.length });
    bench.counters.clear();
    assert.deepEqual(bench.totals, CLEAN);
  });
});

test('traffic: plans that cannot be made are refused', () => {
  assert.deepEqual([leastFrame({}), leastFrame({ vlan: { first: 1, count: 1 } })], [60, 64]);
  on(new TrafficBench(), ({ thread }) => {
    const make = (plan: object) => () => new FrameMaker({ ...PLAN, ...plan }, thread.burst, thread.windows[0], 65536);
    assert.throws(make({ sizes: { list: [59] } }), RangeError);
    assert.throws(make({ sizes: { min: 60, max: 9729 } }), RangeError);
    assert.throws(make({ flows: 0 }), RangeError);
    assert.throws(make({ flows: MAX_FLOWS + 1 }), RangeError);
  });
  assert.equal(makerBytes({ ...PLAN, flows: 10, sizes: { list: [65] } }), 640 + 32 * 128);
});
