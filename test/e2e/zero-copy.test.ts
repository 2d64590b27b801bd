/** Zero copy: guests of our own whose buffers go to an AF_XDP uplink as they are, whatever becomes of rings, memory and uplink meanwhile. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { GuestRam } from '../../src/port/guest-ram.ts';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { VHOST_USER_PROTOCOL_F_LOG_SHMFD } from '../../src/uapi/vhost-user.ts';
import { featureMask, VHOST_F_LOG_ALL, VIRTIO_F_IN_ORDER } from '../../src/uapi/virtio.ts';
import { GuestLog } from '../kit/guest-log.ts';
import { RawHost } from '../kit/raw-host.ts';
import { probeXdp } from '../peers/af-xdp.ts';
import { ip } from '../peers/netns.ts';
import { waitUntil } from '../peers/process.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard } from './step-card.ts';
import { connectGuest, type Exchanger, frame, macOf } from './traffic.ts';
import { ZeroCopyWorld } from './zero-copy-world.ts';

const skip = await probeXdp();

const HOST = macOf(0x42);
const ALL = 'ff:ff:ff:ff:ff:ff';
/** Frames on the way at a time: fewer than the uplink has receive buffers. */
const ON_THE_WAY = 16;

const framesFrom = (from: string, to: string, n: number) =>
  Array.from({ length: n }, (_, i) => frame(to, from, i, 60 + ((i * 97) % 1455)));

/** As on the uplink: with the tag of device `id`. */
const outside = (bytes: Uint8Array, id: number) =>
  Buffer.concat([
    bytes.subarray(0, 12),
    Buffer.from([0x81, 0, (1000 + id) >> 8, (1000 + id) & 255]),
    bytes.subarray(12),
  ]);

describe('guests with zero copy', { skip, timeout: 200_000 }, () => {
  let world: ZeroCopyWorld;
  let guest: VirtioUser;
  let other: VirtioUser;
  let fds: number;
  let mapped: number;

  async function assertOut(from: Exchanger & { readonly mac: string }, id: number, n = 100): Promise<void> {
    for (const [i, bytes] of framesFrom(from.mac, HOST, n).entries()) {
      assert.ok(from.send(bytes), 'the ring has room');
      from.flush();
      const heard = await world.host.waitFrame();
      assert.ok(heard, `frame ${i} of ${n} is missing`);
      assert.ok(Buffer.from(heard).equals(outside(bytes, id)), `frame ${i} is not as it was sent`);
    }
  }

  async function assertIn(to: Exchanger & { readonly mac: string }, id: number, n = 100, dst = to.mac): Promise<void> {
    const frames = framesFrom(HOST, dst, n);
    let sent = 0;
    for (const [i, bytes] of frames.entries()) {
      while (sent < n && sent - i < ON_THE_WAY) world.host.send(outside(frames[sent++], id));
      const got = await to.waitFrame(10_000);
      assert.ok(got, `frame ${i} of ${n} is missing`);
      assert.ok(Buffer.from(got).equals(bytes), `frame ${i} is not as it was sent`);
    }
    assert.ok(to.pairs[0].rx.guardsIntact, 'something was written outside the receive buffers');
  }

  /** Frames pass again, some time soon: sends one each way again and again. */
  async function untilPassing(card: Exchanger & { readonly mac: string }, id: number): Promise<void> {
    const out = frame(HOST, card.mac, 71);
    const back = frame(card.mac, HOST, 72);
    let left = false;
    let came = false;
    await waitUntil(
      'frames to pass both ways',
      async () => {
        if (!left && card.send(out)) card.flush();
        if (!came) world.host.send(outside(back, id));
        for (let heard = await world.host.waitFrame(50); heard !== undefined; heard = world.host.receive())
          left ||= Buffer.from(heard).equals(outside(out, id));
        for (let got = await card.waitFrame(50); got !== undefined; got = card.receive())
          came ||= Buffer.from(got).equals(back);
        return left && came;
      },
      30_000,
    );
    // what was sent more than once may still be on its way
    while ((await world.host.waitFrame(100)) !== undefined);
    while ((await card.waitFrame(100)) !== undefined);
  }

  /** Waits until a guest has a lane again: the uplink takes receive buffers of it. */
  async function untilLane(id: number, n = 1): Promise<void> {
    await world.running.until('the lane', () => world.cables.length === n, 20_000);
    await world.untilCounter('rx_posted', (posted) => posted > 0, id);
  }

  /** Closes a card, and waits until its device is gone. */
  async function assertGone(card: { close(): Promise<void> }, id: number): Promise<void> {
    const mark = world.running.mark;
    await card.close();
    await world.running.line(new RegExp(`\\(${id}\\) Device has been removed`), mark);
  }

  before(async () => {
    // the uplink is one lcore's, the first guest the other's
    world = await ZeroCopyWorld.start(['--lcores', '0@0,1@0-1']);
    fds = world.running.openFds;
    mapped = world.running.mappedFiles;
    guest = await connectGuest({ path: world.running.socket, mac: macOf(1) });
    await world.lane(0);
    other = await connectGuest({ path: world.running.socket, mac: macOf(2) });
    await world.lane(1);
  });
  after(async () => {
    await closeStepCards();
    await guest?.close();
    await other?.close();
    await world?.close();
  });

  test('what a guest sends leaves with its tag, and what comes loses it: nothing is copied', async () => {
    await assertOut(guest, 0, 300);
    await assertOut(other, 1, 100);
    await assertIn(guest, 0, 300);
    await assertIn(other, 1, 100);
    await world.untilCounter('tx_completed', (n) => n === 300);
    await world.untilCounter('rx_completed', (n) => n === 300);
    const counted = ['tx_posted', 'tx_copied', 'rx_copied', 'rx_returned'].map((name) => world.counter(name));
    assert.deepEqual(counted, [300, 0, 0, 0]);
  });

  test('a driver is not offered to have its buffers back in order', () => {
    assert.equal(guest.features & featureMask(VIRTIO_F_IN_ORDER), 0n);
  });

  test('broadcasts are copied in between, without an end', async () => {
    for (let round = 0; round < 8; round++) {
      await assertIn(guest, 0, 40, ALL);
      await assertIn(guest, 0, 40);
      await assertOut(guest, 0, 20);
    }
    await world.untilCounter('rx_copied', (n) => n === 320);
  });

  test('a frame that is longer than the MTU allows is dropped in the kernel and counted', async () => {
    const { cable, host } = world;
    ip('link', 'set', cable.near, 'mtu', '2000');
    ip('-n', cable.netns, 'link', 'set', cable.far, 'mtu', '2000');
    const long = frame(guest.mac, HOST, 1, 1519);
    host.send(outside(long, 0));
    await world.untilCounter('rx_drop_too_big', (n) => n === 1);
    await assertIn(guest, 0, 10);
    assert.ok(guest.pairs[0].rx.guardsIntact);
  });

  test('a guest whose receive ring is empty loses frames, which are counted, and goes on', async () => {
    // it does not look while more come than it has buffers
    for (let i = 0; i < 400; i++) {
      world.host.send(outside(frame(other.mac, HOST, i, 64), 1));
      if (i % 16 === 15) await sleep(2);
    }
    let came = 0;
    while ((await other.waitFrame(200)) !== undefined) came++;
    await world.untilCounter('rx_drop_no_buffer', (lost) => lost + came === 400, 1);
    await assertIn(other, 1, 100);
  });

  test('the link goes down and comes up again', async () => {
    const { cable, running } = world;
    for (let round = 0; round < 3; round++) {
      const mark = running.mark;
      ip('link', 'set', cable.near, 'down');
      await running.line(/link down/, mark);
      for (let i = 0; i < 20; i++) guest.send(frame(HOST, guest.mac, i, 1000));
      guest.flush();
      await waitUntil(
        'the guest to have its buffers back',
        async () => {
          await guest.waitSent(50);
          return guest.pairs[0].tx.ring.nFree === guest.pairs[0].tx.ring.size;
        },
        10_000,
      );
      ip('link', 'set', cable.near, 'up');
      await running.line(/link up/, mark);
      await untilPassing(guest, 0);
    }
    await assertOut(guest, 0, 50);
    await assertIn(guest, 0, 50);
  });

  test('the uplink is removed, and comes back', async () => {
    const { cable, running } = world;
    const mark = running.mark;
    ip('link', 'del', cable.near);
    await running.line(/was removed: the port is stopped until it is there again/, mark);
    await running.until('the lanes to be closed', () => world.cables.length === 0);
    const end = ['name', cable.far, 'netns', cable.netns];
    ip('link', 'add', cable.near, 'type', 'veth', 'peer', ...end);
    ip('-n', cable.netns, 'link', 'set', cable.far, 'up');
    ip('link', 'set', cable.near, 'up');
    world.host.close();
    world.host = new RawHost(cable);
    await running.until('the lanes to be open', () => world.cables.length === 2, 20_000);
    await untilPassing(guest, 0);
    await untilPassing(other, 1);
    await assertOut(guest, 0, 50);
    await assertIn(guest, 0, 50);
  });

  test('rings are stopped and started, by a guest that goes on and by one that begins anew', async () => {
    for (const reset of [false, true, false, true]) {
      await guest.restart({ reset });
      await untilLane(0, 2);
      await untilPassing(guest, 0);
      await assertOut(guest, 0, 30);
      await assertIn(guest, 0, 30);
    }
  });

  test('guests that are killed while the kernel has their buffers leave nothing behind, and harm nobody', async () => {
    await assertGone(other, 1);
    const before = [world.running.openFds, world.running.mappedFiles];
    for (let round = 0; round < 12; round++) {
      const packed = round % 2 === 1;
      const victim = await connectGuest({ path: world.running.socket, mac: macOf(9), packed });
      if (round % 4 !== 3) await world.running.until('its lane', () => world.cables.length === 2, 20_000);
      for (let i = 0; i < 60; i++) {
        victim.send(frame(HOST, victim.mac, i, 1200));
        if (i % 4 === 0) victim.flush();
        world.host.send(outside(frame(victim.mac, HOST, i, 1200), 1));
      }
      victim.flush();
      await assertGone(victim, 1);
      while (world.host.receive() !== undefined);
      await sleep(5);
      while (world.host.receive() !== undefined);
    }
    await world.running.until('one lane', () => world.cables.length === 1);
    await untilPassing(guest, 0);
    await assertIn(guest, 0, 50);
    assert.deepEqual([world.running.openFds, world.running.mappedFiles], before);
  });

  test('memory comes and goes while frames pass', async () => {
    const plugged = await StepCard.connect({ path: world.running.socket, mac: macOf(5) });
    await plugged.start();
    await untilLane(1, 2);
    await assertOut(plugged, 1, 20);
    const more = new GuestRam([{ guestAddr: 2 ** 33, size: 2 ** 21 }]);
    for (let round = 0; round < 3; round++) {
      const [region] = more.regions;
      await plugged.frontEnd.addMemReg(region);
      await untilPassing(plugged, 1);
      await untilLane(1, 2);
      await plugged.frontEnd.remMemReg(region);
      await untilPassing(plugged, 1);
      await untilLane(1, 2);
    }
    await assertIn(plugged, 1, 50);
    await assertGone(plugged, 1);
    more.close();
  });

  test('while a guest is migrated its frames are copied and logged; afterwards they are not', async () => {
    const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_LOG_SHMFD];
    const card = await StepCard.connect({ path: world.running.socket, mac: macOf(6), protocol });
    await card.start();
    await untilLane(1, 2);
    await assertOut(card, 1, 20);
    await assertIn(card, 1, 20);
    const log = new GuestLog(2 ** 30 + 4 * 2 ** 20);
    await card.frontEnd.setLogBase(log.area);
    await card.frontEnd.setFeatures(card.features | featureMask(VHOST_F_LOG_ALL));
    await world.running.until('its lane to be closed', () => world.cables.length === 1);
    await assertIn(card, 1, 50);
    await assertOut(card, 1, 20);
    assert.ok(log.take().size > 10, 'pages are logged');
    await card.frontEnd.setFeatures(card.features);
    await untilLane(1, 2);
    await untilPassing(card, 1);
    await assertIn(card, 1, 50);
    await assertGone(card, 1);
    log.close();
  });

  test('an idle switch sleeps, and frames both ways wake it', async () => {
    const sleeping = async () => {
      const cpu = world.running.cpuMs();
      const from = performance.now();
      await sleep(1000);
      return (world.running.cpuMs() - cpu) / (performance.now() - from) < 0.1;
    };
    let quiet = false;
    for (let tries = 0; tries < 10 && !quiet; tries++) quiet = await sleeping();
    assert.ok(quiet, 'the switch is busy');
    await assertIn(guest, 0, 3);
    await assertOut(guest, 0, 3);
  });

  test('it ends cleanly: all is closed, and nothing stays behind', async () => {
    await assertGone(guest, 0);
    assert.equal(world.cables.length, 0);
    await world.running.until('all to be closed', () => world.running.openFds === fds, 20_000);
    assert.equal(world.running.mappedFiles, mapped);
    const late = await connectGuest({ path: world.running.socket, mac: macOf(7) });
    await world.running.until('its lane', () => world.cables.length === 1, 20_000);
    assert.equal(await world.running.stop(), 'ended with status 0', world.running.output);
    assert.equal(world.cables.length, 0);
    await late.close();
  });
});

test('where a lane cannot be had frames are copied, and nothing is left open', { skip, timeout: 60_000 }, async () => {
  const world = await ZeroCopyWorld.start(['--vlan', 'off'], 3600);
  try {
    const fds = world.running.openFds;
    for (let round = 0; round < 2; round++) {
      const mark = world.running.mark;
      const guest = await connectGuest({ path: world.running.socket, mac: macOf(1) });
      await world.running.line(/no zero copy, its frames are copied: /, mark);
      const out = frame(HOST, guest.mac, 1, 1000);
      guest.send(out);
      guest.flush();
      assert.deepEqual(Buffer.from((await world.host.waitFrame()) ?? []), Buffer.from(out));
      const back = frame(guest.mac, HOST, 2, 1000);
      world.host.send(back);
      assert.deepEqual(Buffer.from((await guest.waitFrame(10_000)) ?? []), Buffer.from(back));
      await guest.close();
      await world.running.until('all to be closed', () => world.running.openFds === fds);
      assert.deepEqual(world.cables, []);
    }
  } finally {
    await world.close();
  }
});
