/** The sample document's plan on a real interface: each device has its address and its tag, whatever --vm2vm is. */
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { RawHost } from '../kit/raw-host.ts';
import { NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { SwitchProcess } from './switch-process.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['netns'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const HOST = macOf(0x42);
const [A, B] = [macOf(1), macOf(2)];
const ALL = 'ff:ff:ff:ff:ff:ff';
/** Time in which a frame that should not come would have come. */
const QUIET_MS = 200;

const tagged = (bytes: Uint8Array, tci: number) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from([0x81, 0, tci >> 8, tci & 0xff]), bytes.subarray(12)]);

function send(guest: VirtioUser, ...frames: readonly Uint8Array[]): void {
  for (const bytes of frames) assert.ok(guest.send(bytes));
  guest.flush();
}

async function assertNext(from: { waitFrame(ms: number): Promise<Uint8Array | undefined> }, expected: Uint8Array) {
  assert.deepEqual(Buffer.from((await from.waitFrame(10_000)) ?? []), Buffer.from(expected));
}

async function assertQuiet(...all: readonly { waitFrame(ms: number): Promise<Uint8Array | undefined> }[]) {
  for (const one of all) assert.equal(await one.waitFrame(QUIET_MS), undefined);
}

interface World {
  readonly running: SwitchProcess;
  readonly host: RawHost;
  readonly a: VirtioUser;
  readonly b: VirtioUser;
}

describe('a tag for each device', { skip, timeout: 120_000 }, () => {
  const lab = new NetLab();
  after(() => lab.remove());

  /** Both guests are registered when `use` is called, and the host has heard of it. */
  async function withWorld(args: readonly string[], use: (world: World) => Promise<void>): Promise<void> {
    const { near, far, netns } = lab.veth();
    const vdev = `net_af_packet0,iface=${near}`;
    const running = await SwitchProcess.start(['--vdev', vdev, '-p', '0x1', '--stats', '1', ...args]);
    const host = new RawHost({ far, netns });
    const cards: VirtioUser[] = [];
    try {
      for (const [id, mac] of [A, B].entries()) {
        cards.push(await connectGuest({ path: running.socket, mac }));
        const hello = frame(HOST, mac, id);
        send(cards[id], hello);
        await running.line(RegExp(`^DATA: \\(${id}\\) MAC_ADDRESS ${mac} and VLAN_TAG ${1000 + id} registered$`));
        await assertNext(host, tagged(hello, 1000 + id));
      }
      const [a, b] = cards;
      for (const card of cards) while (card.receive() !== undefined);
      await use({ running, host, a, b });
      assert.equal(await running.stop(), 'ended with status 0', running.output);
    } finally {
      for (const card of cards) await card.close();
      await running.kill();
      host.close();
    }
  }

  async function assertFromHost({ host, a, b }: World, seen: (bytes: Uint8Array, tci: number) => Uint8Array) {
    const [toA, toB, toAll] = [A, B, ALL].map((mac, n) => frame(mac, HOST, 10 + n));
    for (const bytes of [toA, tagged(toA, 1001), tagged(toB, 1000), tagged(toA, 999)]) host.send(bytes);
    for (const bytes of [tagged(toA, 1000), tagged(toB, 0x6000 | 1001), tagged(toAll, 1001)]) host.send(bytes);
    await assertNext(a, seen(toA, 1000));
    await assertNext(b, seen(toB, 0x6000 | 1001));
    await assertNext(b, seen(toAll, 1001));
    await assertQuiet(a, b);
  }

  test('--vm2vm 0: guests reach the host only, and it them by address and tag', () =>
    withWorld(['--vm2vm', '0'], async (world) => {
      const { host, a, b } = world;
      const [toB, toAll] = [frame(B, A, 1), frame(ALL, A, 2)];
      send(a, toB, toAll, tagged(toB, 1001));
      await assertNext(host, tagged(toB, 1000));
      await assertNext(host, tagged(toAll, 1000));
      await assertQuiet(host, b);
      await assertFromHost(world, (bytes) => bytes);
    }));

  test('--vm2vm 1 --learning first: guests reach each other, and the host gets all else', () =>
    withWorld(['--vm2vm', '1', '--learning', 'first', '--vlan-strip', '0'], async (world) => {
      const { host, a, b } = world;
      const [toB, toAll] = [frame(B, A, 1), frame(ALL, A, 2)];
      send(a, toB, toAll);
      await assertNext(b, toB);
      await assertNext(host, tagged(toAll, 1000));
      await assertQuiet(host, b);
      await assertFromHost(world, (bytes, tci) => tagged(bytes, tci));
    }));

  test('--vm2vm 2: the host sends back what is for another guest, by the tag that it came with', () =>
    withWorld(['--vm2vm', '2'], async (world) => {
      const { running, host, a, b } = world;
      const toB = frame(B, A, 1);
      const prioritized = tagged(toB, 0xa000);
      send(a, toB, frame(A, A, 2), prioritized);
      for (const tci of [1001, 0xa000 | 1001]) {
        const back = (await host.waitFrame(10_000)) as Uint8Array;
        assert.deepEqual(Buffer.from(back), tagged(toB, tci));
        host.send(back);
        await assertNext(b, toB);
      }
      await assertFromHost(world, (bytes) => bytes);
      await running.line(/^ {2}tx_drop_self: +1$/);
    }));
});
