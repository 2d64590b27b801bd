import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  FAULT_INCOMPLETE,
  FAULT_INDEX,
  FAULT_NO_HEADER,
  FAULT_NOT_ON_OFFER,
  FAULT_NUM_BUFFERS,
  FAULT_TOO_LONG,
} from '../../src/port/user-fault.ts';
import { PAIR_ABSENT, PAIR_FAULT, PAIR_FAULT_RING, PAIR_USED, PAIR_WANTED } from '../../src/port/user-pair.ts';
import { VirtioUserPort } from '../../src/port/virtio-user-port.ts';
import { counterBlock, PORT_SLOTS } from '../../src/stats/counters.ts';
import { eventfdCount } from '../../src/sys/eventfd.ts';
import { featureMask } from '../../src/uapi/virtio.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_HOST_TSO4,
} from '../../src/uapi/virtio-net.ts';
import { NEED_CSUM, NEED_TSO4 } from '../../src/virtio-net/offload.ts';
import { frame, mac } from '../kit/frames.ts';
import { type Packet, packet } from '../kit/packets.ts';
import { UserBench, type UserBenchOptions } from '../kit/user-bench.ts';

const RINGS: readonly UserBenchOptions[] = [
  { format: 'split' },
  { format: 'split', inOrder: true },
  { format: 'split', mergeable: true },
  { format: 'packed' },
  { format: 'packed', inOrder: true },
  { format: 'packed', mergeable: true },
  { format: 'split', eventIdx: false },
];
const nameOf = ({ format, inOrder, mergeable, eventIdx }: UserBenchOptions) =>
  [format, inOrder && 'in order', mergeable && 'mergeable', eventIdx === false && 'no event index']
    .filter(Boolean)
    .join(', ');

/** Frame number n, of any length from 14 bytes on. */
const numbered = (n: number, bytes = 14 + ((n * 53) % 1500)) => {
  const all = Buffer.alloc(bytes, n & 0xff);
  frame(mac(1), mac(2)).copy(all, 0, 0, 14);
  return all;
};
const run = (from: number, n: number) => Array.from({ length: n }, (_, i) => numbered(from + i));

for (const options of RINGS)
  describe(`virtio-user port: ${nameOf(options)}`, () => {
    test('receives what the back end delivers, whole and in order, many times round the ring', () => {
      const bench = new UserBench(options);
      bench.connect();
      let bytes = 0;
      for (let n = 0; n < 3000; n += 24) {
        const sent = run(n, 24);
        assert.equal(bench.deliver(...sent), 24);
        assert.deepEqual(bench.receive(), sent);
        bytes += sent.reduce((sum, { length }) => sum + length, 0);
      }
      assert.deepEqual(bench.receive(), []);
      assert.equal(bench.counters.tx_packets, 3000);
      assert.equal(bench.counters.tx_bytes, bytes);
    });

    test('shows the burst what it is asked for: windows, lengths and the first 16 bytes', () => {
      const bench = new UserBench(options);
      bench.connect();
      const short = Buffer.from('0102030405060708090a0b0c0d0e', 'hex');
      bench.deliver(numbered(7, 60), short);
      assert.equal(bench.port.receive(), 2);
      const { burst } = bench;
      assert.deepEqual([...burst.len.subarray(0, 2)], [60, 14]);
      assert.deepEqual(Buffer.from(burst.frontBytes.subarray(0, 16)), numbered(7, 60).subarray(0, 16));
      assert.deepEqual(Buffer.from(burst.frontBytes.subarray(16, 32)), Buffer.concat([short, Buffer.alloc(2)]));
      bench.port.complete();
    });

    test('sends, and takes no more than there is room for', () => {
      const bench = new UserBench(options);
      bench.connect();
      const all = run(0, 96);
      assert.equal(bench.send(...all.slice(0, 32)), 32);
      assert.equal(bench.send(...all.slice(32, 64)), 32);
      assert.equal(bench.send(...all.slice(64, 96)), 0);
      assert.equal(bench.counters.rx_drop_no_buffer, 32);
      assert.deepEqual(bench.taken(), all.slice(0, 32));
      assert.equal(bench.send(...all.slice(64, 96)), 32);
      assert.deepEqual([...bench.taken(), ...bench.taken()], all.slice(32, 96));
      assert.equal(bench.counters.rx_packets, 96);
      for (let n = 0; n < 2000; n += 20) {
        const some = run(n, 20);
        assert.equal(bench.send(...some), 20);
        assert.deepEqual(bench.taken(), some);
      }
    });

    test('passes over what is too long, and counts it', () => {
      const bench = new UserBench(options);
      bench.connect();
      const frames = [numbered(1, 60), numbered(2, 2037), numbered(3, 2036)];
      assert.equal(bench.send(...frames), 3);
      assert.deepEqual(bench.taken(), [frames[0], frames[2]]);
      assert.equal(bench.counters.rx_drop_too_big, 1);
      assert.deepEqual([...bench.burst.delivered.subarray(0, 3)], [1, 0, 1]);
    });

    test('sends nothing longer than it may, where that is less than a buffer holds', () => {
      const bench = new UserBench(options);
      const tools = { ringStage: bench.ringStage, windows: bench.windows };
      const counters = new Float64Array(counterBlock(PORT_SLOTS));
      bench.port = new VirtioUserPort(0, counters, { ...bench.spec, maxFrame: 100 }, tools);
      bench.connect();
      const frames = [numbered(1, 100), numbered(2, 101), numbered(3, 60)];
      assert.equal(bench.send(...frames), 3);
      assert.deepEqual(bench.taken(), [frames[0], frames[2]]);
      assert.equal(counters[PORT_SLOTS.rx_drop_too_big], 1);
    });

    test('goes on behind what a back end has done when another one comes, also on another thread', () => {
      const bench = new UserBench(options);
      bench.connect();
      for (let n = 0; n < 200; n += 20) {
        bench.deliver(...run(n, 20));
        bench.receive();
        bench.send(...run(n, 20));
        bench.taken();
      }
      // delivered and not received; sent and not taken
      const waiting = run(500, 10);
      bench.deliver(...waiting);
      const sent = run(600, 12);
      bench.send(...sent);
      bench.disconnect();
      assert.deepEqual(bench.receive(), []);
      assert.equal(bench.control[PAIR_USED], 0);
      assert.equal(bench.port.canTransmit, false);
      assert.equal(bench.send(numbered(1)), 0);
      bench.port.close();
      assert.equal(bench.control[PAIR_USED], PAIR_ABSENT);
      for (const ring of bench.rings) ring.load();
      const bases = bench.rings.map((ring) => ring.resumeBase() as number);
      assert.ok(bases.every((base) => base !== undefined));
      bench.port = bench.newPort();
      bench.connect(2, bases);
      assert.deepEqual(bench.receive(), waiting);
      assert.equal(bench.control[PAIR_USED], 2);
      assert.deepEqual(bench.taken(), sent);
      for (let n = 0; n < 200; n += 20) {
        bench.deliver(...run(n, 20));
        assert.deepEqual(bench.receive(), run(n, 20));
        assert.equal(bench.send(...run(n, 20)), 20);
        assert.deepEqual(bench.taken(), run(n, 20));
      }
    });

    test('asks for a call before it sleeps, and for none while it works', () => {
      const bench = new UserBench(options);
      bench.connect();
      const { rxCallFd } = bench.spec.pairs[0];
      bench.device.setCall(0, rxCallFd);
      // a device that has just been started calls once in any case
      bench.receive();
      bench.deliver(numbered(0));
      bench.receive();
      const calls = eventfdCount(rxCallFd);
      bench.deliver(numbered(1));
      assert.equal(eventfdCount(rxCallFd), calls, 'no call while it works');
      assert.equal(bench.port.prepareSleep(), false, 'it is no time to sleep');
      assert.equal(bench.receive().length, 1);
      assert.equal(bench.port.prepareSleep(), true);
      bench.deliver(numbered(2));
      assert.equal(eventfdCount(rxCallFd), calls + 1, 'a call for who sleeps');
      assert.equal(bench.receive().length, 1);
      bench.deliver(numbered(3));
      assert.equal(eventfdCount(rxCallFd), calls + 1, 'no call while it works');
    });
  });

for (const format of ['split', 'packed'] as const)
  test(`virtio-user port: ${format}: a frame that comes in several buffers, and one that waits for the next burst`, () => {
    const bench = new UserBench({ format, mergeable: true, rxRoom: 512 });
    bench.connect();
    const lens = [60, 500, 501, 2000, 9000, 14, 3000, 1, 700];
    const sent = [...lens, ...lens, ...lens].map((len, n) => numbered(n, Math.max(len, 14)));
    for (let round = 0; round < 20; round++) {
      const got: Buffer[] = [];
      for (const bytes of sent.slice(0, 5)) assert.equal(bench.deliver(bytes), 1);
      for (let frames = bench.receive(); frames.length > 0; frames = bench.receive()) got.push(...frames);
      for (const bytes of sent.slice(5)) {
        assert.equal(bench.deliver(bytes), 1);
        if (bytes.length > 2000) for (let f = bench.receive(); f.length > 0; f = bench.receive()) got.push(...f);
      }
      for (let frames = bench.receive(); frames.length > 0; frames = bench.receive()) got.push(...frames);
      assert.deepEqual(
        got.map(({ length }) => length),
        sent.map(({ length }) => length),
      );
      assert.deepEqual(got, sent);
    }
  });

describe('virtio-user port: offloads', () => {
  const features = featureMask(
    ...[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4],
  );
  const large = packet({ version: 4, protocol: 'tcp', payload: Buffer.alloc(20_000, 7) });
  const small = packet({ version: 4, protocol: 'udp', payload: Buffer.from('payload') });
  const headerOf = ({ csumStart, csumOffset }: Packet, gsoSize: number) => {
    const header = Buffer.alloc(12);
    header[0] = 1;
    header[1] = gsoSize === 0 ? 0 : 1;
    header.writeUInt16LE(gsoSize, 4);
    header.writeUInt16LE(csumStart, 6);
    header.writeUInt16LE(csumOffset, 8);
    return header;
  };
  /** The back end delivers a frame with this header. */
  const deliver = (bench: UserBench, bytes: Buffer, needs: number, header: Buffer) => {
    const { burst } = bench.table;
    burst.headerBytes.set(header, 0);
    bench.deliverWith(bytes, needs);
    burst.needs[0] = 0;
  };

  for (const format of ['split', 'packed'] as const)
    test(`${format}: what is left to be done goes with the packet, in both directions, and not with the next one`, () => {
      const bench = new UserBench({ format, mergeable: true, features, txRoom: 30_000 });
      bench.connect();
      for (let round = 0; round < 40; round++) {
        deliver(bench, small.bytes, NEED_CSUM, headerOf(small, 0));
        bench.deliver(numbered(round));
        deliver(bench, large.bytes, NEED_CSUM | NEED_TSO4, headerOf(large, 1460));
        assert.equal(bench.port.receive(), 3);
        assert.deepEqual(bench.frames(), [small.bytes, numbered(round), large.bytes]);
        const { burst } = bench;
        assert.deepEqual([...burst.needs.subarray(0, 3)], [NEED_CSUM, 0, NEED_CSUM | NEED_TSO4]);
        assert.equal(bench.port.transmit(Int32Array.of(2, 1, 0), 0, 3), 3);
        bench.port.complete();
        const { burst: seen } = bench.table;
        assert.equal(bench.device.receive(0), 3);
        assert.deepEqual([...seen.needs.subarray(0, 3)], [NEED_CSUM | NEED_TSO4, 0, NEED_CSUM]);
        const headers = [0, 2].map((i) => Buffer.from(seen.headerBytes.subarray(16 * i, 16 * i + 10)));
        assert.deepEqual(headers, [headerOf(large, 1460).subarray(0, 10), headerOf(small, 0).subarray(0, 10)]);
        bench.device.complete(0);
        // the same buffers again, with nothing left to be done
        const plain = run(round, 20);
        assert.equal(bench.send(...plain), 20);
        assert.deepEqual(bench.taken(), plain);
        assert.deepEqual([...seen.needs.subarray(0, 20)], Array(20).fill(0));
      }
    });

  test('a packet with offloads that the back end does not take is passed over and counted', () => {
    const bench = new UserBench();
    bench.connect();
    bench.send(small.bytes);
    bench.burst.needs[0] = NEED_CSUM;
    assert.equal(bench.port.transmit(Int32Array.of(0), 0, 1), 1);
    bench.burst.needs[0] = 0;
    assert.deepEqual(bench.taken(), [small.bytes]);
    assert.equal(bench.counters.rx_drop_bad_offload, 1);
  });

  test('a header that makes no sense is not believed', () => {
    const bench = new UserBench({ features });
    bench.connect();
    const header = headerOf(small, 0);
    header.writeUInt16LE(0xfff0, 6);
    deliver(bench, small.bytes, NEED_CSUM, header);
    assert.equal(bench.port.receive(), 1);
    assert.equal(bench.burst.len[0], -1);
    assert.equal(bench.port.transmit(Int32Array.of(0), 0, 1), 1);
    assert.equal(bench.counters.rx_drop_bad_offload, 1);
    bench.port.complete();
  });
});

/** Writes what a back end would, by hand. Split rings only. */
class LyingBackEnd {
  readonly bench: UserBench;

  constructor(options: UserBenchOptions = {}) {
    this.bench = new UserBench(options);
    Atomics.store(this.bench.control, PAIR_WANTED, 1);
    assert.deepEqual(this.bench.receive(), []);
  }

  used(vring: 0 | 1, ...entries: readonly (readonly [id: number, len: number])[]): this {
    const { dv } = this.bench.ram.views;
    const { usedOff } = this.bench.plans[vring].place;
    for (const [i, [id, len]] of entries.entries()) {
      dv.setUint32(usedOff + 4 + 8 * i, id, true);
      dv.setUint32(usedOff + 8 + 8 * i, len, true);
    }
    dv.setUint16(usedOff + 2, entries.length, true);
    return this;
  }

  numBuffers(id: number, n: number): this {
    const { buffersOff, stride } = this.bench.plans[0];
    this.bench.ram.views.dv.setUint16(buffersOff + id * stride + 10, n, true);
    return this;
  }

  /** Nothing is received, the main thread is told, and the rings are let go until there is another connection. */
  assertFound(fault: number, vring = 0): void {
    const { bench } = this;
    if (vring === 0) assert.deepEqual(bench.receive(), []);
    else for (let i = 0; i < 3; i++) bench.send(...run(0, 32));
    assert.equal(bench.control[PAIR_FAULT], fault);
    assert.equal(bench.control[PAIR_FAULT_RING], vring);
    assert.equal(bench.control[PAIR_USED], 0);
    assert.deepEqual(bench.receive(), []);
    assert.equal(bench.send(numbered(1)), 0);
    bench.rings[vring].load();
    assert.equal(bench.rings[vring].resumeBase(), undefined);
    for (const ring of bench.rings) ring.reset();
    bench.connect(2);
    bench.deliver(numbered(5));
    assert.deepEqual(bench.receive(), [numbered(5)]);
  }
}

describe('virtio-user port: a back end that lies is found out', () => {
  const cases: Record<string, () => void> = {
    'the used index beyond what is on offer': () => {
      const lying = new LyingBackEnd();
      lying.bench.ram.views.dv.setUint16(lying.bench.plans[0].place.usedOff + 2, 65, true);
      lying.assertFound(FAULT_INDEX);
    },
    'the used index gone backwards': () => {
      const lying = new LyingBackEnd();
      lying.bench.ram.views.dv.setUint16(lying.bench.plans[0].place.usedOff + 2, 65535, true);
      lying.assertFound(FAULT_INDEX);
    },
    'an id beyond the table': () => new LyingBackEnd().used(0, [64, 100]).assertFound(FAULT_NOT_ON_OFFER),
    'a negative id': () => new LyingBackEnd().used(0, [0xffffffff, 100]).assertFound(FAULT_NOT_ON_OFFER),
    'an id twice': () => new LyingBackEnd().used(0, [3, 100], [3, 100]).assertFound(FAULT_NOT_ON_OFFER),
    'in order, a buffer that is farther ahead than the index': () =>
      new LyingBackEnd({ inOrder: true }).used(0, [5, 100]).assertFound(FAULT_NOT_ON_OFFER),
    'more bytes than a buffer has': () => new LyingBackEnd().used(0, [3, 2049]).assertFound(FAULT_TOO_LONG),
    'more than 2 GiB': () => new LyingBackEnd().used(0, [3, 0xfffffff0]).assertFound(FAULT_TOO_LONG),
    'a buffer without a header': () => new LyingBackEnd().used(0, [3, 11]).assertFound(FAULT_NO_HEADER),
    'a frame in no buffers': () =>
      new LyingBackEnd({ mergeable: true }).used(0, [0, 100]).numBuffers(0, 0).assertFound(FAULT_NUM_BUFFERS),
    'a frame in 65535 buffers': () =>
      new LyingBackEnd({ mergeable: true }).used(0, [0, 100]).numBuffers(0, 65535).assertFound(FAULT_NUM_BUFFERS),
    'a frame of which only a part is there': () =>
      new LyingBackEnd({ mergeable: true }).used(0, [0, 100]).numBuffers(0, 2).assertFound(FAULT_INCOMPLETE),
    'a transmit buffer that was not sent': () => {
      const lying = new LyingBackEnd();
      lying.bench.send(...run(0, 20));
      lying.used(1, [60, 0]).assertFound(FAULT_NOT_ON_OFFER, 1);
    },
  };
  for (const [name, found] of Object.entries(cases)) test(name, found);

  test('in order, one entry tells of several buffers: those before it are full', () => {
    const lying = new LyingBackEnd({ inOrder: true });
    const { dv } = lying.bench.ram.views;
    const { usedOff } = lying.bench.plans[0].place;
    dv.setUint32(usedOff + 4, 2, true);
    dv.setUint32(usedOff + 8, 112, true);
    dv.setUint16(usedOff + 2, 3, true);
    assert.deepEqual(
      lying.bench.receive().map(({ length }) => length),
      [2036, 2036, 100],
    );
  });

  test('packed: a used descriptor of a buffer that is not on offer', () => {
    const bench = new UserBench({ format: 'packed' });
    Atomics.store(bench.control, PAIR_WANTED, 1);
    bench.receive();
    const { descOff } = bench.plans[0].place;
    bench.ram.views.dv.setUint32(descOff + 8, 100, true);
    bench.ram.views.dv.setUint32(descOff + 12, (999 | (0x8082 << 16)) >>> 0, true);
    assert.deepEqual(bench.receive(), []);
    assert.equal(bench.control[PAIR_FAULT], FAULT_NOT_ON_OFFER);
  });
});
