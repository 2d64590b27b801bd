/** A switch whose uplink is another switch: net_virtio_user, by one lcore and by two. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lane, Traffic } from './lanes.ts';
import { runSwitch, SwitchProcess } from './switch-process.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const BROADCAST = 'ff:ff:ff:ff:ff:ff';
const UPLINK = ['-p', '0x1', '--vlan', 'off'];

for (const lcores of [1, 2])
  test(`guests of two switches reach each other, one the uplink of the other, ${lcores} lcores`, async () => {
    const far = await SwitchProcess.start();
    const cores = lcores === 1 ? [] : ['--lcores', '0@0,1@0,2@0'];
    const vdev = `net_virtio_user0,path=${far.socket},queues=${lcores}`;
    const near = await SwitchProcess.start([...cores, '--vdev', vdev, ...UPLINK]);
    try {
      const [a, b] = await Promise.all(
        [near, far].map(({ socket }, n) => connectGuest({ path: socket, mac: macOf(n) })),
      );
      // each becomes known on both switches, so that nothing is flooded, and nothing is lost for it
      for (const [from, to] of [
        [a, b],
        [b, a],
      ]) {
        from.send(frame(BROADCAST, from.mac));
        from.flush();
        assert.deepEqual(await to.waitFrame(10_000), frame(BROADCAST, from.mac));
      }
      const traffic = new Traffic([new Lane(a, b, { window: 32 }), new Lane(b, a, { window: 32 })]).start();
      await traffic.comeMore(3000, 20_000);
      await traffic.stop();
      const mark = near.mark;
      assert.equal(await far.stop(), 'ended with status 0');
      await near.line(/uplink net_virtio_user0: .*link.* down.*back end has gone/, mark);
      await a.close();
      await b.close();
      assert.equal(await near.stop(), 'ended with status 0');
    } finally {
      await near.kill();
      await far.kill();
    }
  });

test('what a virtio-user uplink cannot be is refused with a sentence', () => {
  const refused = (vdev: string, ...more: string[]) => runSwitch([...more, '--vdev', vdev, ...UPLINK]);
  const none = refused('net_virtio_user0,path=/nowhere/sock');
  assert.equal(none.status, 1);
  assert.match(none.stderr, /\/nowhere\/sock/);
  const server = refused('net_virtio_user0,path=sock,server=1');
  assert.equal(server.status, 2);
  assert.match(server.stderr, /server=1.*does not wait/);
  const few = refused('net_virtio_user0,path=sock', '--lcores', '0@0,1@0,2@0');
  assert.equal(few.status, 2);
  assert.match(few.stderr, /2 lcores use it; give it queues=2/);
});
