import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needsOf } from '../../src/virtio-net/offload.ts';
import { OffloadBench } from '../kit/offload-bench.ts';
import { type PacketSpec, packet } from '../kit/packets.ts';

const PACKETS = 2000;
/** Less than a byte for each frame made. */
const TOLERANCE = 20_000;
/** Times that many packets until the compiler has settled; code it has not optimised yet allocates numbers. */
const ROUNDS = 60;

const WAYS: [string, PacketSpec, gsoType: number, gsoSize: number][] = [
  ['a checksum', { version: 4, protocol: 'tcp', payload: new Uint8Array(1460) }, 0, 0],
  ['TCP segments', { version: 4, protocol: 'tcp', payload: new Uint8Array(20_000) }, 1, 1448],
  ['UDP segments', { version: 6, protocol: 'udp', payload: new Uint8Array(20_000) }, 5, 1400],
  ['UDP fragments', { version: 6, protocol: 'udp', payload: new Uint8Array(20_000) }, 3, 1400],
];

test('hot path: checksums, segments and fragments leave the heap as it was', () => {
  const bench = new OffloadBench();
  const { stage, segments, windows } = bench;
  for (const [what, spec, gsoType, gsoSize] of WAYS) {
    const { bytes, csumStart, csumOffset } = packet(spec);
    bench.place(bytes, [100, 5000]);
    const etherType = bytes.readUInt16BE(12);
    let frames = 0;
    let least = Number.POSITIVE_INFINITY;
    for (let round = 0; round < ROUNDS && least >= TOLERANCE; round++) {
      const before = process.memoryUsage().heapUsed;
      for (let i = 0; i < PACKETS; i++) {
        stage.reset();
        if (needsOf(1, gsoType, gsoSize, csumStart, csumOffset, bytes.length, etherType, 0x7f) < 0) break;
        // biome-ignore format: spread arguments would allocate
        frames += stage.convert(windows, segments, 0, segments.count, bytes.length, gsoType, gsoSize, csumStart, csumOffset);
      }
      least = Math.min(least, Math.abs(process.memoryUsage().heapUsed - before));
    }
    assert.ok(frames >= PACKETS, what);
    assert.ok(least < TOLERANCE, `${what}: ${PACKETS} packets allocate ${least} bytes`);
  }
});
