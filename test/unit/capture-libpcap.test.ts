import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { CaptureTime } from '../../src/net/capture-format.ts';
import { CaptureReader, captureBuffer, READ_END, READ_FRAME } from '../../src/net/capture-reader.ts';
import { type CaptureFormat, CaptureWriter, captureHeader } from '../../src/net/capture-writer.ts';
import { Folder, Numbers, withFile } from '../kit/captures.ts';
import { frame, mac } from '../kit/frames.ts';
import { Libpcap, type PcapFrame, withoutLibpcap } from '../peers/libpcap.ts';

const folder = new Folder();
after(() => folder.close());

const skip = withoutLibpcap();

const FRAMES: PcapFrame[] = Array.from({ length: 500 }, (_, i) => {
  const bytes = frame(mac(i), mac(1), 14 + ((i * 41) % 9000));
  const ns = 1_700_000_000_999_999_000n + BigInt(i) * 1_234_567_891n;
  return { hex: bytes.toString('hex'), ns, wireLen: bytes.length + (i % 3) };
});

function readOurs(path: string): PcapFrame[] {
  return withFile(path, 'r', (fd) => {
    const buffer = captureBuffer();
    const reader = new CaptureReader(fd, buffer);
    const time = new CaptureTime();
    const got: PcapFrame[] = [];
    let said = reader.nextFilled();
    for (; said === READ_FRAME; said = reader.nextFilled()) {
      reader.readTime(time);
      const hex = Buffer.from(buffer.u8.subarray(reader.off, reader.off + reader.len)).toString('hex');
      got.push({ hex, ns: BigInt(time.sec) * 1_000_000_000n + BigInt(time.nsec), wireLen: reader.wireLen });
    }
    assert.equal(said, READ_END, reader.describe(path));
    return got;
  });
}

for (const format of ['pcap', 'pcapng'] as const satisfies CaptureFormat[])
  test(`libpcap reads the ${format} that is written here, and what it writes is read here`, { skip }, () => {
    const libpcap = new Libpcap(folder.path);
    const path = folder.file(`ours.${format}`, captureHeader(format, 'net_pcap0'));
    withFile(path, 'a', (fd) => {
      const writer = new CaptureWriter(fd, format, captureBuffer(2 ** 16));
      for (const { hex, ns, wireLen } of FRAMES)
        assert.ok(
          writer.add(Buffer.from(hex, 'hex'), Number(ns / 1_000_000_000n), Number(ns % 1_000_000_000n), wireLen),
        );
      assert.ok(writer.flush());
    });
    const theirs = folder.file('theirs.pcap');
    assert.deepEqual(libpcap.read(path, theirs), FRAMES);
    assert.deepEqual(readOurs(theirs), FRAMES);
  });

test('libpcap and the reader here agree on pcapng of either byte order and any resolution', { skip }, () => {
  const libpcap = new Libpcap(folder.path);
  for (const n of [new Numbers(true), new Numbers(false)]) {
    for (const [resolution, units] of [
      [3, 1_700_000_000_123n],
      [6, 1_700_000_000_123_456n],
      [9, 1_700_000_000_123_456_789n],
      [0x80 | 20, (1_700_000_000n << 20n) | 0x80000n],
    ] as const) {
      const blocks = [
        n.section(),
        n.interface(1, 96, n.option(9, Uint8Array.of(resolution)), n.option(14, n.u64(3n))),
        n.block(4, Buffer.alloc(20)),
        n.enhanced(0, units, { bytes: Buffer.alloc(60, 5), wireLen: 99 }, n.option(1, Buffer.from('a comment'))),
        n.enhanced(0, units + 1n, { bytes: Buffer.alloc(61, 6) }),
      ];
      const path = folder.file('made.pcapng', Buffer.concat(blocks));
      assert.equal(readOurs(path).length, 2);
      assert.deepEqual(readOurs(path), libpcap.read(path), `if_tsresol ${resolution}`);
    }
  }
});
