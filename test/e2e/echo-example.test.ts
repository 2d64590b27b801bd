/** The example of the documentation: a back end of one's own that gives every guest its frames back. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { asSplit } from '../../src/virtqueue/split-driver.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

const ECHO = fileURLToPath(new URL('../../docs/examples/echo.ts', import.meta.url));

test('docs/examples/echo.ts gives each guest exactly its own frames back, and ends at Ctrl-C', {
  timeout: 60_000,
}, async () => {
  const options = { main: ECHO, node: ['--conditions=source'], wholeLine: true };
  const echo = await SwitchProcess.start(['./sock'], options);
  try {
    const guests = await Promise.all([1, 2, 3].map((n) => connectGuest({ path: echo.socket, mac: macOf(n) })));
    const frames = guests.map(({ mac }) =>
      Array.from({ length: 300 }, (_, n) => frame(macOf(9), mac, n, 60 + ((n * 37) % 1455))),
    );
    await Promise.all(guests.map((guest, i) => assertDelivered(guest, guest, frames[i])));
    await guests[0].restart({ reset: true });
    await guests[1].close();
    await assertDelivered(guests[0], guests[0], frames[0]);
    await assertDelivered(guests[2], guests[2], frames[2]);
    // a guest that breaks its ring is told of, and loses only that
    const driver = asSplit(guests[0].ring(1).driver);
    driver.offer(0xffff);
    driver.publish();
    await echo.line(/^device 0: vring 1 stopped: the avail ring names a descriptor beyond the table$/);
    await assertDelivered(guests[2], guests[2], frames[1]);
    assert.equal(await echo.stop(), 'ended with status 0', echo.output);
    assert.equal(existsSync(echo.socket), false);
    await Promise.all(guests.map((guest) => guest.close()));
  } finally {
    await echo.kill();
  }
});
