import assert from 'node:assert/strict';
import { test } from 'node:test';
import { putFrame, setTag, writeHeader } from '../../src/port/kernel-frame.ts';
import { BAD_OFFLOAD, type Burst, FRONT_BYTES } from '../../src/virtio-net/burst.ts';
import { NEED_CSUM, NEED_TSO4 } from '../../src/virtio-net/offload.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { packet } from '../kit/packets.ts';
import { Ram } from '../kit/ram.ts';

const ram = new Ram({ size: 2 ** 20 });
const HEADER_BYTES = 10;

/** flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, as Linux lays them out. */
function header(flags: number, gsoType: number, ...words: readonly number[]): Buffer {
  return Buffer.from([flags, gsoType, ...words.flatMap((word) => [word & 0xff, word >> 8])]);
}

const segment = packet({ version: 4, protocol: 'tcp', payload: Buffer.alloc(3000, 7) });
const tso = header(1, 1, segment.payloadOff, 1000, segment.csumStart, segment.csumOffset);

/** Has the kernel give us frames, each behind its header. */
function received(...frames: readonly (readonly [head: Buffer, frame: Buffer])[]): Burst {
  const { burst } = new RingStage();
  burst.clear();
  for (const [head, frame] of frames) {
    const { off } = ram.alloc(HEADER_BYTES + frame.length, 1);
    head.copy(ram.bytes, off);
    frame.copy(ram.bytes, off + HEADER_BYTES);
    putFrame(burst, ram.views, off + HEADER_BYTES, frame.length, off);
  }
  return burst;
}

function bytesOf({ first, segments }: Burst, i: number): Buffer {
  const pieces: Buffer[] = [];
  for (let s = first[i]; s < first[i + 1]; s++)
    pieces.push(ram.bytes.subarray(segments.off[s], segments.off[s] + segments.len[s]));
  return Buffer.concat(pieces);
}

function written(burst: Burst, i: number): Buffer {
  const to = Buffer.alloc(HEADER_BYTES + 2, 0xee);
  writeHeader(burst, i, to, 1);
  assert.deepEqual([to[0], to[HEADER_BYTES + 1]], [0xee, 0xee], 'nothing beside it is touched');
  return to.subarray(1, HEADER_BYTES + 1);
}

test('kernel frames: what they need is read from their headers, and written as it was', () => {
  const plain = Buffer.alloc(60, 3);
  const burst = received([header(2, 0, 0, 0, 0, 0), plain], [tso, segment.bytes], [header(0, 0, 0, 0, 0, 0), plain]);
  assert.deepEqual([burst.count, burst.offloads], [3, true]);
  assert.deepEqual([...burst.needs.subarray(0, 3)], [0, NEED_CSUM | NEED_TSO4, 0]);
  assert.deepEqual([...burst.len.subarray(0, 3)], [60, segment.bytes.length, 60]);
  assert.deepEqual(bytesOf(burst, 1), segment.bytes);
  assert.deepEqual(written(burst, 0), header(0, 0, 0, 0, 0, 0));
  assert.deepEqual(written(burst, 1), tso);
  assert.deepEqual(Buffer.from(burst.frontBytes.subarray(FRONT_BYTES, 2 * FRONT_BYTES)), segment.bytes.subarray(0, 16));
  burst.clear();
  assert.deepEqual([burst.count, burst.offloads, burst.needs[1]], [0, false, 0]);
});

test('kernel frames: a header that makes no sense marks its frame', () => {
  const beyond = header(1, 0, 0, 0, segment.csumStart, segment.bytes.length);
  const unknown = header(1, 9, segment.payloadOff, 1000, segment.csumStart, segment.csumOffset);
  const burst = received([beyond, segment.bytes], [unknown, segment.bytes], [header(0, 1, 0, 9, 0, 0), segment.bytes]);
  assert.deepEqual([...burst.len.subarray(0, 3)], [BAD_OFFLOAD, BAD_OFFLOAD, BAD_OFFLOAD]);
});

test('kernel frames: of frames shorter than what is looked at, the rest is zero', () => {
  const burst = received([header(0, 0, 0, 0, 0, 0), Buffer.from('0102030405', 'hex')]);
  assert.deepEqual(Buffer.from(burst.frontBytes.subarray(0, 16)).toString('hex'), `0102030405${'00'.repeat(11)}`);
});

test('kernel frames: a tag that came beside its frame stays there, and no other packet has one', () => {
  const { burst } = new RingStage();
  burst.tag.fill(77);
  burst.clear();
  const { off } = ram.alloc(HEADER_BYTES + 60);
  for (let i = 0; i < 3; i++) {
    putFrame(burst, ram.views, off + HEADER_BYTES, 60, off);
    if (i === 1) setTag(burst, 0x88a8, 0x6064);
  }
  assert.deepEqual([burst.tagged, ...burst.tag.subarray(0, 3)], [true, 0, 0x88a86064 | 0, 0]);
  burst.clear();
  assert.equal(burst.tagged, false);
});

test("kernel frames: of a sender's header only what was checked is passed on", () => {
  const long = header(0xff, 1, 0xffff, 1000, segment.csumStart, segment.csumOffset);
  assert.deepEqual(
    written(received([long, segment.bytes]), 0),
    header(1, 1, 0, 1000, segment.csumStart, segment.csumOffset),
  );
});
