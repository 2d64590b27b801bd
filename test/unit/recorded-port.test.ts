import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { after, test } from 'node:test';
import { captureHeader } from '../../src/net/capture-writer.ts';
import { NullPort, openNull } from '../../src/port/null-port.ts';
import { RecordedPort } from '../../src/port/recorded-port.ts';
import { openRing, RingPort } from '../../src/port/ring-port.ts';
import { Folder, readCapture } from '../kit/captures.ts';
import { opening, TestThread, vdevOf } from '../kit/device-ports.ts';
import { frame, mac } from '../kit/frames.ts';

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
