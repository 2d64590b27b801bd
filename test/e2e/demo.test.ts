/** The demonstration: `npm start`, with guests of one's own on its socket. */
import assert from 'node:assert/strict';
import { existsSync, lstatSync } from 'node:fs';
import { test } from 'node:test';
import { DEMO, SwitchProcess } from './switch-process.ts';
import { Conversation } from './traffic.ts';

const ROW =
  /^ +\d+ +(?<mac>\S+) +(?<txMpps>[\d.]+) +[\d.]+ +(?<rxMpps>[\d.]+) +[\d.]+ +(?<txDrops>\d+) +(?<rxDrops>\d+)$/;

test('the demonstration shows two guests exchanging frames, lets others in, and ends when told', {
  timeout: 60_000,
}, async () => {
  const from = performance.now();
  const demo = await SwitchProcess.start(['--seconds', '4'], { main: DEMO, wholeLine: true });
  try {
    assert.ok(lstatSync(demo.path('usvhost')).isSocket());
    await demo.line(/^DATA: \(\d\) MAC_ADDRESS 52:54:00:00:00:01 and VLAN_TAG 100\d registered$/);
    await demo.line(/^DATA: \(\d\) MAC_ADDRESS 52:54:00:00:00:02 and VLAN_TAG 100\d registered$/);
    const talk = await Conversation.start(demo.path('usvhost'));
    await talk.exchangesMore(100);
    await talk.stop();
    assert.equal(await demo.ended(), 'ended with status 0', demo.output);
    assert.ok(performance.now() - from >= 4000);
    assert.equal(existsSync(demo.path('usvhost')), false);

    const headings = demo.lines.filter((line) => /^device +MAC address +TX Mpps/.test(line));
    assert.ok(headings.length >= 2, `${headings.length} tables`);
    const rows = demo.lines.map((line) => ROW.exec(line)?.groups).filter((row) => row !== undefined);
    for (const n of [1, 2]) {
      const own = rows.filter(({ mac }) => mac === `52:54:00:00:00:0${n}`);
      const moving = own.filter(({ txMpps, rxMpps }) => Number(txMpps) > 0.001 && Number(rxMpps) > 0.001);
      assert.ok(
        moving.length >= 2,
        `guest ${n} moves frames in ${moving.length} of ${own.length} tables\n${demo.output}`,
      );
      const drops = Number(own.at(-1)?.txDrops) + Number(own.at(-1)?.rxDrops);
      assert.ok(drops < 1000, `guest ${n}: ${drops} frames lost`);
    }
  } finally {
    await demo.kill();
  }
});
