import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { after, test } from 'node:test';
import { captureHeader } from '../../src/net/capture-writer.ts';
import { NullPort, openNull } from '../../src/port/null-port.ts';
import { RecordedPort } from '../../src/port/recorded-port.ts';
import { openRing, RingPort } from '../../src/port/ring-port.ts';
import { Workshop } from '../../src/testpmd/workshop.ts';
import { BAD_OFFLOAD, HEADER_BYTES } from '../../src/virtio-net/burst.ts';
import { NEED_CSUM } from '../../src/virtio-net/offload.ts';
import { Folder, readCapture } from '../kit/captures.ts';
import { opening, TestThread, vdevOf } from '../kit/device-ports.ts';
import { frame, mac } from '../kit/frames.ts';
import { checksumIsRight, look, packet } from '../kit/packets.ts';

const folder = new Folder();
after(() => folder.close());

test('recorded port: what is received is in the file, and everything else is the port behind it', async () => {
  const ring = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const area = openNull(vdevOf('net_null', 'net_null0,size=65535'), opening());
  const thread = new TestThread();
  thread.port(area, (...args) => new NullPort(...args));
  const { window, off } = area.spec(0, 1);
  const path = folder.file('recorded.pcapng', captureHeader('pcapng', 'net_ring0'));
  const fd = openSync(path, 'a');
  const inner = thread.port(ring, (...args) => new RingPort(...args));
  const port = new RecordedPort(
    inner,
    { fd, path, format: 'pcapng', window, off, bytes: 2 ** 20 },
    { burst: thread.burst, windows: thread.windows },
  );
  assert.deepEqual([port.id, port.queues, port.canTransmit, port.eventFds], [inner.id, 1, true, []]);
  const sent = Array.from({ length: 900 }, (_, i) => frame(mac(1), mac(2), 60 + i));
  for (let at = 0; at < sent.length; at += 30) {
    assert.equal(thread.send(port, sent.slice(at, at + 30), 200), 30);
    assert.equal(port.receive(0), 30);
    assert.deepEqual(thread.frames(), sent.slice(at, at + 30));
    port.complete(0);
    port.drain();
  }
  assert.ok(port.prepareSleep());
  assert.deepEqual(
    readCapture(path).map(({ bytes }) => Buffer.from(bytes)),
    sent,
  );
  port.close();
  closeSync(fd);
  await ring.close();
  await area.close();
  thread.close();
});

test('recorded port: frames are received though the file takes no more', async () => {
  const endless = openNull(vdevOf('net_null', 'net_null0,size=1500'), opening());
  const area = openNull(vdevOf('net_null', 'net_null1,size=65535'), opening());
  const thread = new TestThread();
  thread.port(area, (...args) => new NullPort(...args));
  const { window, off } = area.spec(0, 1);
  const fd = openSync('/dev/full', 'a');
  const spec = { fd, path: '/dev/full', format: 'pcap', window, off, bytes: 2 ** 17 } as const;
  const port = new RecordedPort(
    thread.port(endless, (...args) => new NullPort(...args)),
    spec,
    { burst: thread.burst, windows: thread.windows },
  );
  for (let i = 0; i < 10; i++) assert.equal(port.receive(0), 32);
  assert.equal(port.failed, 28);
  port.close();
  closeSync(fd);
  await endless.close();
  await area.close();
  thread.close();
});

const TAG = 0x81006064 | 0;
const withTag = (bytes: Buffer) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from('81006064', 'hex'), bytes.subarray(12)]);

/** As of a kernel that takes tags off: every second frame had one. */
class TagTaker extends RingPort {
  taken = 0;

  override receive(): number {
    const n = super.receive();
    const { burst } = thread;
    for (let i = 0; i < n; i++) burst.tag[i] = this.taken++ % 2 === 0 ? TAG : 0;
    burst.tagged = n > 0;
    return n;
  }
}
const thread = new TestThread();
after(() => thread.close());

test('recorded port: a tag that came beside its frame is in the file, where it was', async () => {
  const ring = openRing(vdevOf('net_ring', 'net_ring0'), opening());
  const area = openNull(vdevOf('net_null', 'net_null0,size=65535'), opening());
  thread.port(area, (...args) => new NullPort(...args));
  const { window, off } = area.spec(0, 1);
  const path = folder.file('tags.pcapng', captureHeader('pcapng', 'net_ring0'));
  const fd = openSync(path, 'a');
  const spec = { fd, path, format: 'pcapng', window, off, bytes: 2 ** 20 } as const;
  const tools = { burst: thread.burst, windows: thread.windows };
  const port = new RecordedPort(
    thread.port(ring, (...args) => new TagTaker(...args)),
    spec,
    tools,
  );
  const udp = packet({ version: 4, protocol: 'udp', payload: Buffer.from('hello') });
  const sent = [frame(mac(1), mac(2), 61), frame(mac(1), mac(2), 62), udp.bytes, frame(mac(1), mac(2), 14)];
  thread.fill(sent, 70);
  const { burst } = thread;
  burst.needs[2] = NEED_CSUM;
  burst.offloads = true;
  burst.header.setUint16(2 * HEADER_BYTES + 6, udp.csumStart, true);
  burst.header.setUint16(2 * HEADER_BYTES + 8, udp.csumOffset, true);
  assert.equal(port.transmit(Int32Array.of(0, 1, 2, 3), 0, 4), 4);
  assert.equal(port.receive(0), 4);
  assert.ok(burst.tagged);
  port.complete(0);
  port.close();
  const got = readCapture(path).map(({ bytes }) => bytes);
  assert.ok(got[0].equals(withTag(sent[0])));
  assert.ok(got[1].equals(sent[1]));
  assert.equal(got[2].toString('hex', 12, 18), '810060640800');
  assert.ok(checksumIsRight(look(got[2])));
  assert.ok(got[3].equals(sent[3]));
  closeSync(fd);
  await ring.close();
  await area.close();
});

test('workshop: tags that came beside frames are put back, whatever pieces they lie in', () => {
  const own = thread.windows.find((one) => one !== undefined);
  assert.ok(own);
  const workshop = new Workshop(thread.windows, own, thread.burst);
  for (const piece of [undefined, 13, 15, 40]) {
    const sent = [
      frame(mac(1), mac(2), 60),
      frame(mac(3), mac(4), 15),
      frame(mac(5), mac(6), 14),
      frame(mac(7), mac(8), 100),
    ];
    thread.fill(sent, piece);
    const { burst } = thread;
    burst.tag.set([TAG, 0, TAG, TAG]);
    workshop.restoreTags();
    assert.deepEqual(thread.frames(), sent, 'nothing came beside them');
    burst.tagged = true;
    burst.len[3] = BAD_OFFLOAD;
    workshop.restoreTags();
    const expected = [withTag(sent[0]), sent[1], withTag(sent[2])];
    assert.deepEqual(thread.frames().slice(0, 3), expected);
    assert.deepEqual([...burst.len.subarray(0, 4)], [64, 15, 18, BAD_OFFLOAD]);
    for (const [i, bytes] of expected.entries())
      assert.ok(Buffer.from(burst.frontBytes.subarray(16 * i, 16 * i + 14)).equals(bytes.subarray(0, 14)));
    assert.equal(burst.tagged, false);
  }
});
