import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { CAPTURE_FAULT } from '../../src/net/capture-fault.ts';
import { CaptureTime, NanosecondStamp, unitsPerSecond } from '../../src/net/capture-format.ts';
import { CaptureReader, captureBuffer, READ_FILL, READ_FRAME } from '../../src/net/capture-reader.ts';
import { type CaptureFormat, CaptureWriter, captureHeader } from '../../src/net/capture-writer.ts';
import { type Captured, Folder, Numbers, withFile } from '../kit/captures.ts';

const folder = new Folder();
after(() => folder.close());
const buffer = captureBuffer();

const SECOND = 1_000_000_000n;

/** Reads all frames; `step` counts what the reader was asked for, which must end. */
function read(path: string, most = Number.POSITIVE_INFINITY): { frames: Captured[]; reader: CaptureReader } {
  return withFile(path, 'r', (fd) => {
    const reader = new CaptureReader(fd, buffer);
    const time = new CaptureTime();
    const frames: Captured[] = [];
    for (let steps = 0; ; steps++) {
      assert.ok(steps <= most, 'the reader comes to no end');
      const said = reader.next();
      if (said === READ_FILL) reader.fill();
      else if (said !== READ_FRAME) break;
      else {
        reader.readTime(time);
        assert.ok(reader.off >= buffer.off && reader.off + reader.len <= buffer.off + buffer.bytes);
        assert.ok(time.nsec >= 0 && time.nsec < 1e9);
        const bytes = Buffer.from(buffer.u8.slice(reader.off, reader.off + reader.len));
        // a frame's time may be anything the file says; only what fits is looked at
        const ns = Number.isSafeInteger(time.sec) ? BigInt(time.sec) * SECOND + BigInt(time.nsec) : 0n;
        frames.push({ bytes, ns, wireLen: reader.wireLen });
      }
    }
    return { frames, reader };
  });
}

const frames = fc.array(
  fc.record(
    {
      bytes: fc.oneof(
        fc.uint8Array({ maxLength: 80 }).map((bytes) => Buffer.from(bytes)),
        fc.nat(20_000).map((n) => Buffer.alloc(n, n)),
      ),
      ns: fc.bigInt(0n, 2n ** 32n * SECOND - 1n),
      wireLen: fc.nat(2 ** 31),
    },
    { noNullPrototype: true },
  ),
  { maxLength: 60 },
);

test('capture file: what is written is read', () => {
  fc.assert(
    fc.property(frames, fc.constantFrom<CaptureFormat>('pcap', 'pcapng'), (written, format) => {
      const path = folder.file('written', captureHeader(format, 'net_ring0'));
      withFile(path, 'a', (fd) => {
        const writer = new CaptureWriter(fd, format, captureBuffer(2 ** 16));
        for (const { bytes, ns, wireLen } of written)
          assert.ok(writer.add(bytes, Number(ns / SECOND), Number(ns % SECOND), wireLen));
        assert.ok(writer.flush());
        assert.equal(writer.written, written.length);
      });
      const got = read(path);
      assert.equal(got.reader.fault, CAPTURE_FAULT.none);
      assert.deepEqual(got.frames, written);
    }),
    { numRuns: 100 },
  );
});

test('capture file: what was read is written as it was, byte for byte', () => {
  fc.assert(
    fc.property(frames, (written) => {
      const numbers = new Numbers(true);
      const first = folder.file(
        'first',
        Buffer.concat([captureHeader('pcapng', 'x'), ...written.map((one) => numbers.enhanced(0, one.ns, one))]),
      );
      const second = folder.file('second', captureHeader('pcapng', 'x'));
      withFile(second, 'a', (fd) => {
        const writer = new CaptureWriter(fd, 'pcapng', captureBuffer(2 ** 16));
        for (const { bytes, ns, wireLen } of read(first).frames)
          assert.ok(writer.add(bytes, Number(ns / SECOND), Number(ns % SECOND), wireLen));
        assert.ok(writer.flush());
      });
      assert.ok(readFileSync(first).equals(readFileSync(second)));
    }),
    { numRuns: 50 },
  );
});

test('capture file: times of any resolution are divided exactly', () => {
  const resolution = fc.oneof(
    fc.nat(15),
    fc.nat(52).map((n) => 0x80 | n),
  );
  const time = new CaptureTime();
  fc.assert(
    fc.property(fc.bigInt(0n, 2n ** 64n - 1n), resolution, (count, code) => {
      const units = unitsPerSecond(code);
      time.setUnits(Number(count >> 32n), Number(count & 0xffffffffn), units);
      const sec = count / BigInt(units);
      if (sec < 2n ** 53n) assert.equal(BigInt(time.sec), sec);
      const ns = ((count % BigInt(units)) * SECOND) / BigInt(units);
      const off = BigInt(time.nsec) - ns;
      // exact for powers of ten, and for powers of two as far as their ns are whole numbers of doubles
      assert.ok(code < 0x80 || units <= 2 ** 29 ? off === 0n : off >= -1n && off <= 1n, `${off} ns off`);
    }),
    { numRuns: 5000 },
  );
});

test('capture file: seconds and nanoseconds as one number of 64 bits', () => {
  const stamp = new NanosecondStamp();
  fc.assert(
    fc.property(fc.nat(2 ** 32 - 1), fc.nat(999_999_999), (sec, nsec) => {
      stamp.set(sec, nsec);
      assert.equal((BigInt(stamp.hi) << 32n) | BigInt(stamp.lo), BigInt(sec) * SECOND + BigInt(nsec));
    }),
    { numRuns: 5000 },
  );
});

const BEGINNINGS = [
  Buffer.alloc(0),
  new Numbers(true).pcap(0xa1b2c3d4, []),
  new Numbers(false).pcap(0xa1b23c4d, []),
  new Numbers(true).section(),
  Buffer.concat([new Numbers(false).section(), new Numbers(false).interface()]),
];

test('capture file: random bytes come to an end', () => {
  fc.assert(
    fc.property(fc.constantFrom(...BEGINNINGS), fc.uint8Array({ maxLength: 3000, size: 'max' }), (begin, bytes) => {
      // some frames, then a fault or the end
      read(folder.file('random', Buffer.concat([begin, bytes])), 3000);
    }),
    { numRuns: 1000 },
  );
});

test('capture file: files with bytes changed or cut off come to an end, and no frame reaches beyond its file', () => {
  const numbers = fc.boolean().map((isLittle) => new Numbers(isLittle));
  const file = fc.tuple(numbers, frames, fc.boolean()).map(([n, list, ng]) => {
    const short = list.map((one) => ({ ...one, ns: one.ns % (2n ** 32n * SECOND), bytes: one.bytes.subarray(0, 200) }));
    if (!ng) return n.pcap(0xa1b23c4d, short);
    const blocks = short.map((one, i) => (i % 5 === 4 ? n.block(0x77, one.bytes) : n.enhanced(0, one.ns, one)));
    return Buffer.concat([n.section(), n.interface(1, 0, n.option(9, Uint8Array.of(9))), ...blocks]);
  });
  const changes = fc.array(fc.tuple(fc.nat(), fc.constantFrom(0, 1, 4, 0x7f, 0xff)), { maxLength: 6 });
  fc.assert(
    fc.property(file, changes, fc.nat(), (whole, change, cut) => {
      const bytes = Buffer.from(whole.subarray(0, cut % 3 === 0 ? cut % (whole.length + 1) : whole.length));
      for (const [at, value] of change) if (bytes.length > 0) bytes[at % bytes.length] = value;
      const got = read(folder.file('changed', bytes), 3000);
      const total = got.frames.reduce((sum, one) => sum + one.bytes.length, 0);
      assert.ok(total <= bytes.length, `${total} bytes of frames in ${bytes.length} of file`);
    }),
    { numRuns: 1000 },
  );
});
