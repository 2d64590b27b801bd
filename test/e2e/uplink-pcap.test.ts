/** Capture files as an uplink of the switch: what guests send beyond is captured, what a file holds comes to the guests. */
import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { after, test } from 'node:test';
import { captureHeader } from '../../src/net/capture-writer.ts';
import { Folder, Numbers, readCapture } from '../kit/captures.ts';
import { waitUntil } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const folder = new Folder();
after(() => folder.close());

const GUEST = macOf(1);
const BEYOND = macOf(0x42);
const FRAMES = 200;

for (const lcores of [[], ['--lcores', '0@0,1@0,2@0']])
  test(`what guests send beyond is captured, by ${lcores.length > 0 ? 'several lcores' : 'one lcore'}`, async () => {
    const path = folder.file(`beyond${lcores.length}.pcapng`);
    const running = await SwitchProcess.start([
      ...lcores,
      '--vdev',
      `net_pcap0,tx_pcap=${path}`,
      '-p',
      '0x1',
      '--vlan',
      'off',
    ]);
    try {
      const guests = await Promise.all([1, 2].map((n) => connectGuest({ path: running.socket, mac: macOf(n) })));
      const sent: string[] = [];
      for (let i = 0; i < FRAMES; i++)
        for (const [n, guest] of guests.entries()) {
          const bytes = frame(BEYOND, macOf(n + 1), i, 60 + ((i * 37) % 1400));
          assert.ok(guest.send(bytes));
          await guest.waitSent(10_000);
          sent.push(Buffer.from(bytes).toString('hex'));
        }
      // header and length twice around each frame, of a multiple of four bytes; a switch with nothing to do writes what waits
      const bytes = sent.reduce(
        (sum, hex) => sum + 32 + 4 * Math.ceil(hex.length / 8),
        captureHeader('pcapng', 'net_pcap0').length,
      );
      await waitUntil('all frames in the file', () => statSync(path).size >= bytes, 20_000);
      const got = readCapture(path).map((one) => one.bytes.toString('hex'));
      assert.deepEqual(got.sort(), sent.sort());
      for (const guest of guests) await guest.close();
    } finally {
      await running.kill();
    }
  });

test('what a file holds comes to the guests, over and over', async () => {
  const numbers = new Numbers(true);
  const frames = Array.from({ length: FRAMES }, (_, i) => Buffer.from(frame(GUEST, BEYOND, i, 60 + i)));
  const path = folder.file(
    'rx.pcap',
    numbers.pcap(
      0xa1b23c4d,
      frames.map((bytes) => ({ bytes, ns: 0n })),
    ),
  );
  const running = await SwitchProcess.start([
    '--vdev',
    `net_pcap0,rx_pcap=${path},infinite_rx=1`,
    '-p',
    '0x1',
    '--vlan',
    'off',
  ]);
  try {
    assert.match(running.output, /uplink net_pcap0: port \d+, MAC address 02:70:63:61:70:00, link up/);
    const guest = await connectGuest({ path: running.socket, mac: GUEST });
    assert.ok(guest.send(frame(BEYOND, GUEST)));
    guest.flush();
    const known = new Set(frames.map((bytes) => bytes.toString('hex')));
    for (let i = 0; i < 2 * FRAMES; i++) {
      const got = await guest.waitFrame(10_000);
      assert.ok(got, `frame ${i} does not come`);
      assert.ok(known.has(Buffer.from(got).toString('hex')), 'a frame that the file does not hold');
    }
    await guest.close();
  } finally {
    await running.kill();
  }
});

test('a file that is at its end is told, and the switch goes on', async () => {
  const path = folder.file('short.pcap', new Numbers(true).pcap(0xa1b23c4d, [{ bytes: frame(GUEST, BEYOND), ns: 0n }]));
  const running = await SwitchProcess.start(['--vdev', `net_pcap0,rx_pcap=${path}`, '-p', '0x1', '--vlan', 'off']);
  try {
    await running.line(/uplink net_pcap0: .*short\.pcap: all frames have been received/);
    const guests = await Promise.all([1, 2].map((n) => connectGuest({ path: running.socket, mac: macOf(n) })));
    assert.ok(guests[1].send(frame(macOf(1), macOf(2))));
    guests[1].flush();
    assert.ok(await guests[0].waitFrame(10_000));
    for (const guest of guests) await guest.close();
  } finally {
    await running.kill();
  }
});
