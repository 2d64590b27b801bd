/**
 * The scenarios of QEMU's own vhost-user-test, with a Linux guest and a real back end: read-guest-mem, reconnect, connect-fail and
 * flags-mismatch. Its migrate is in migration.test.ts, its multiqueue in multiqueue-qemu.test.ts.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { IpHost } from '../kit/ip-host.ts';
import { ensurePeers } from '../peers/packages.ts';
import { waitUntil } from '../peers/process.ts';
import type { QemuGuest, QemuGuestOptions } from '../peers/qemu.ts';
import { BackEnd, ON_DPDK, peersFor, type Wants } from './back-end.ts';
import { ipOf, linuxGuest } from './linux-guests.ts';
import { connectGuest, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(peersFor('qemu'))).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const GUEST = 1;
const GUEST_SOCKET = 0;
const HOST_SOCKET = 1;
/** QEMU tries again every second. */
const RECONNECT = 1;

/** Connects a card of ours for a host that pings the guest. */
async function startHost(backEnd: BackEnd): Promise<IpHost> {
  const card = await connectGuest({ path: backEnd.sockets[HOST_SOCKET], mac: macOf(2), deadlineMs: 5000 });
  const host = new IpHost(card, ipOf(2), { mac: macOf(GUEST), ip: ipOf(GUEST) });
  host.startPinging(20, 1000);
  return host;
}

async function stopHost(host: IpHost | undefined): Promise<void> {
  await host?.stop();
  await host?.card.close();
}

interface Scene {
  readonly backEnd: BackEnd;
  readonly guest: QemuGuest;
}

/** A back end that is not started and a guest that is not, which are both ended after `use`. */
async function withScene(
  wants: Wants,
  options: Partial<QemuGuestOptions>,
  use: (scene: Scene) => Promise<void>,
): Promise<void> {
  const backEnd = BackEnd.prepare(2, wants);
  const guest = linuxGuest(GUEST, backEnd.sockets[GUEST_SOCKET], options);
  try {
    await use({ backEnd, guest });
  } finally {
    await guest.stop();
    await backEnd.stop();
  }
}

/** The guest answers pings, both ways. */
async function assertServed({ backEnd, guest }: Scene): Promise<void> {
  const host = await startHost(backEnd);
  try {
    await host.answersMore(30);
    const { status, output } = await guest.sh(`ping -c 3 -W 5 ${ipOf(2)}`);
    assert.equal(status, 0, output);
  } finally {
    await stopHost(host);
  }
}

describe("QEMU's vhost-user-test", { skip, timeout: 280_000 }, () => {
  for (const memory of ['memfd', 'shm', 'file'] as const) {
    test(`read-guest-mem/${memory}: what is in guest memory is passed on`, () =>
      withScene({}, { memory }, async (scene) => {
        await scene.backEnd.run();
        await scene.guest.start();
        await assertServed(scene);
      }));
  }

  for (const how of ['stop', 'kill'] as const) {
    test(`reconnect: QEMU comes back to a back end that ${how === 'stop' ? 'was restarted' : 'crashed'}`, () =>
      withScene({}, { reconnect: RECONNECT }, async (scene) => {
        await scene.backEnd.run();
        await scene.guest.start();
        await assertServed(scene);
        for (let n = 0; n < 3; n++) {
          await scene.backEnd.end(how);
          await sleep(n * 700);
          await scene.backEnd.run();
          await assertServed(scene);
        }
      }));
  }

  test('reconnect, QEMU as server: a back end that is client comes, goes and comes again', () =>
    withScene({ client: true }, { server: true }, async ({ backEnd, guest }) => {
      await guest.launch();
      const other = linuxGuest(2, backEnd.sockets[HOST_SOCKET], { server: true });
      try {
        await other.launch();
        await backEnd.run();
        await Promise.all([guest.waitReady(), other.waitReady()]);
        for (let n = 0; n < 2; n++) {
          const reached = async () => (await guest.sh(`ping -c 1 -W 1 ${ipOf(2)}`)).status === 0;
          await waitUntil('the guests to reach each other', reached, 20_000);
          await backEnd.end(n === 0 ? 'stop' : 'kill');
          assert.equal((await guest.sh(`ping -c 1 -W 1 ${ipOf(2)}`)).status, 1, 'nobody joins them');
          await backEnd.run();
          await waitUntil('the guests to reach each other again', reached, 20_000);
        }
      } finally {
        await other.stop();
      }
    }));

  test('connect-fail: a connection that is closed at once is tried again', () =>
    withScene({}, { reconnect: RECONNECT }, async (scene) => {
      const { backEnd, guest } = scene;
      let refused = 0;
      const refuser = createServer((socket) => {
        refused++;
        socket.destroy();
      });
      refuser.listen(backEnd.sockets[GUEST_SOCKET]);
      await once(refuser, 'listening');
      await guest.launch();
      await waitUntil('QEMU to be refused twice', () => refused >= 2, 20_000);
      refuser.close();
      await once(refuser, 'close');
      await backEnd.run();
      await guest.waitReady();
      await assertServed(scene);
    }));

  test('flags-mismatch: a back end that comes back with fewer features is refused until it has them again', (t: TestContext) => {
    // testpmd always has mergeable buffers
    const [all, fewer]: [Wants, Wants] = ON_DPDK
      ? [{ offloads: true }, { offloads: false }]
      : [{ mergeable: true }, { mergeable: false }];
    return withScene(all, { reconnect: RECONNECT }, async (scene) => {
      const { backEnd, guest } = scene;
      await backEnd.run();
      await guest.start();
      await assertServed(scene);
      await backEnd.end();
      await backEnd.run(fewer);
      await waitUntil('QEMU to refuse it', () => /lacks feature/.test(guest.said), 20_000, {
        details: () => guest.said,
      });
      t.diagnostic(guest.said.split('\n').find((line) => line.includes('lacks feature')) as string);
      await backEnd.end();
      await backEnd.run(all);
      await assertServed(scene);
    });
  });
});
