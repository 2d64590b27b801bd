/** Uplinks on interfaces of Linux: guests of our own and a host beyond exchange frames, whatever becomes of the link. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../src/uapi/vhost-user.ts';
import { VIRTIO_NET_CONFIG } from '../../src/uapi/virtio-net.ts';
import { RawHost } from '../kit/raw-host.ts';
import { ip, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { waitUntil } from '../peers/process.ts';
import { BASIC_PROTOCOL, closeStepCards, StepCard } from './step-card.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['netns'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const HOST = macOf(0x42);
const GUEST = macOf(1);
const OTHER = macOf(2);
const ALL = 'ff:ff:ff:ff:ff:ff';
/** Frames on the way at a time. */
const ON_THE_WAY = 32;

/** Frames of all lengths. */
const framesFrom = (from: string, to: string, n = 300, mtu = 1500) =>
  Array.from({ length: n }, (_, i) => frame(to, from, i, 60 + ((i * 97) % (mtu - 45))));

/** With tag 100 of priority 3 behind the addresses. */
const tagged = (bytes: Uint8Array) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from('81006064', 'hex'), bytes.subarray(12)]);

function sendNow(guest: VirtioUser, bytes: Uint8Array): void {
  assert.ok(guest.send(bytes));
  guest.flush();
}

/** Sends frames one after the other; every one must arrive, in order and unharmed. */
async function assertArrive(
  frames: readonly Uint8Array[],
  send: (frame: Uint8Array) => void,
  receive: (ms: number) => Promise<Uint8Array | undefined>,
): Promise<void> {
  let sent = 0;
  for (const [i, expected] of frames.entries()) {
    while (sent < frames.length && sent - i < ON_THE_WAY) send(frames[sent++]);
    const got = await receive(10_000);
    assert.ok(got, `frame ${i} of ${frames.length} is missing`);
    assert.ok(
      Buffer.from(got).equals(expected),
      `frame ${i} of ${expected.length} bytes came with ${got.length}, or changed`,
    );
  }
}

const toHost = (guest: VirtioUser, host: RawHost, frames: readonly Uint8Array[]) =>
  assertArrive(
    frames,
    (bytes) => sendNow(guest, bytes),
    (ms) => host.waitFrame(ms),
  );
const toGuest = (host: RawHost, guest: VirtioUser, frames: readonly Uint8Array[]) =>
  assertArrive(
    frames,
    (bytes) => host.send(bytes),
    (ms) => guest.waitFrame(ms),
  );

/** Sends again and again until a frame comes through: a link takes its time to come up. */
async function untilThrough(guest: VirtioUser, host: RawHost): Promise<void> {
  const through = async () => {
    sendNow(guest, frame(HOST, GUEST, 0xfffff));
    return (await host.waitFrame(100)) !== undefined;
  };
  await waitUntil('a frame through the uplink', through, 10_000);
  while ((await host.waitFrame(100)) !== undefined);
}

interface World {
  /** as given to --vdev */
  readonly vdev: string;
  /** the interface that the uplink is on, and how ip finds it */
  readonly near: readonly string[];
  readonly far: { readonly netns: string; readonly far: string };
}

const WORLDS: Readonly<Record<string, (lab: NetLab, mtu: number) => World>> = {
  net_af_packet: (lab, mtu) => {
    const { near, far, netns } = lab.veth({ mtu });
    return { vdev: `net_af_packet0,iface=${near}`, near: [near], far: { netns, far } };
  },
  'net_af_packet in a network namespace': (lab, mtu) => {
    const { near, far, netns } = lab.veth({ mtu });
    const home = lab.namespace();
    ip('link', 'set', near, 'netns', home);
    ip('-n', home, 'link', 'set', near, 'up');
    return { vdev: `net_af_packet0,iface=${home}:${near}`, near: [home, near], far: { netns, far } };
  },
  net_tap: (lab) => {
    const netns = lab.namespace();
    return { vdev: `net_tap0,iface=${netns}:tap0`, near: [netns, 'tap0'], far: { netns, far: 'tap0' } };
  },
};

function setNear(world: World, ...args: readonly string[]): void {
  const [name, ...namespace] = [...world.near].reverse();
  ip(...namespace.flatMap((netns) => ['-n', netns]), 'link', args[0], name, ...args.slice(1));
}

for (const [kind, make] of Object.entries(WORLDS)) {
  describe(`a guest and a host behind ${kind}`, { skip, timeout: 120_000 }, () => {
    const lab = new NetLab();
    let world: World;
    let running: SwitchProcess;
    let host: RawHost;
    let guest: VirtioUser;

    before(async () => {
      world = make(lab, 1500);
      running = await SwitchProcess.start(['--vdev', world.vdev, '-p', '0x1', '--vlan', 'off']);
      host = new RawHost(world.far);
      guest = await connectGuest({ path: running.socket, mac: GUEST });
      await untilThrough(guest, host);
    });
    after(async () => {
      await guest?.close();
      await running?.kill();
      host?.close();
      lab.remove();
    });

    test('the switch says which port the uplink is', () => {
      assert.match(running.output, /uplink net_\w+: port 64, MAC address [0-9a-f:]{17}, link (up|down)/);
    });

    test('what the guest sends arrives at the host, byte for byte', async () => {
      await toHost(guest, host, framesFrom(GUEST, HOST));
    });

    test('what the host sends to the guest and to all arrives at the guest, in order', async () => {
      await toGuest(host, guest, [...framesFrom(HOST, GUEST), ...framesFrom(HOST, ALL, 20)]);
    });

    test('tags stay where they are, both ways', async () => {
      await toHost(guest, host, framesFrom(GUEST, HOST, 30, 1400).map(tagged));
      await toGuest(host, guest, framesFrom(HOST, GUEST, 30, 1400).map(tagged));
    });

    test('with the interface down guests still reach each other, and with it up again the host, too', async () => {
      const other = await connectGuest({ path: running.socket, mac: OTHER });
      const mark = running.mark;
      setNear(world, 'set', 'down');
      await running.line(/uplink net_\w+: link down/, mark);
      sendNow(other, frame(GUEST, OTHER));
      assert.ok(await guest.waitFrame(10_000));
      sendNow(guest, frame(HOST, GUEST)); // lost
      await assertDelivered(guest, other, framesFrom(GUEST, OTHER, 100));
      setNear(world, 'set', 'up');
      await running.line(/uplink net_\w+: link up/, mark);
      await untilThrough(guest, host);
      await toHost(guest, host, framesFrom(GUEST, HOST, 50));
      await toGuest(host, guest, framesFrom(HOST, GUEST, 50));
      await other.close();
    });

    test('an idle switch takes no processor time, and the first frame wakes it', async () => {
      const asleep = async () => {
        const before = running.cpuMs();
        const from = performance.now();
        await sleep(1000);
        return (running.cpuMs() - before) / (performance.now() - from) < 0.1;
      };
      await waitUntil('the switch to sleep', asleep, 15_000);
      await toGuest(host, guest, [frame(GUEST, HOST, 7)]);
    });

    test('it ends cleanly, with frames on their way', async () => {
      for (let n = 0; n < 10; n++) host.send(frame(GUEST, HOST, n));
      assert.equal(await running.stop(), 'ended with status 0', running.output);
    });
  });
}

for (const kind of ['net_af_packet', 'net_tap']) {
  describe(`the interface of ${kind} is removed`, { skip, timeout: 120_000 }, () => {
    test('under traffic: the port is stopped with a line, guests go on, and nothing is left open', async () => {
      const lab = new NetLab();
      const world = WORLDS[kind](lab, 1500);
      const running = await SwitchProcess.start(['--vdev', world.vdev, '-p', '0x1', '--vlan', 'off']);
      let host = new RawHost(world.far);
      try {
        const guest = await connectGuest({ path: running.socket, mac: GUEST });
        const other = await connectGuest({ path: running.socket, mac: OTHER });
        await untilThrough(guest, host);
        const open = running.openFds;
        let done = false;
        const traffic = async () => {
          for (let n = 0; !done; n++) {
            guest.send(frame(HOST, GUEST, n));
            guest.flush();
            await guest.waitSent(10);
          }
        };
        const sending = traffic();
        const mark = running.mark;
        setNear(world, 'del');
        await running.line(
          /error: uplink net_\w+: .* was removed: the port is stopped .*; guests still reach each other/,
          mark,
        );
        done = true;
        await sending;
        host.close();
        while ((await other.waitFrame(200)) !== undefined);
        await assertDelivered(other, guest, framesFrom(OTHER, GUEST, 100));
        await running.until('the descriptors to be closed', () => running.openFds < open);

        if (kind === 'net_af_packet') {
          // the same name again
          const [near] = world.near;
          const far = `${near}b`;
          ip('link', 'add', near, 'up', 'type', 'veth', 'peer', 'name', far, 'netns', world.far.netns);
          ip('-n', world.far.netns, 'link', 'set', far, 'up');
          await running.line(/uplink net_af_packet0: port 64, /, mark);
          host = new RawHost({ netns: world.far.netns, far });
          await untilThrough(guest, host);
          await toGuest(host, guest, framesFrom(HOST, GUEST, 50));
          assert.ok(running.openFds <= open, 'descriptors of the first interface are closed');
          host.close();
        }
        await guest.close();
        await other.close();
        assert.equal(await running.stop(), 'ended with status 0', running.output);
      } finally {
        await running.kill();
        lab.remove();
      }
    });
  });
}

describe('jumbo frames through net_af_packet', { skip, timeout: 120_000 }, () => {
  for (const [how, extra] of [
    ['that fit the slots of the ring', ''],
    ['that are longer than the slots of the ring', ',framesz=2048'],
  ]) {
    test(`pass both ways: ${how}`, async () => {
      const lab = new NetLab();
      const world = WORLDS.net_af_packet(lab, 9000);
      const running = await SwitchProcess.start([
        '--vdev',
        world.vdev + extra,
        '--mergeable',
        '1',
        '-p',
        '0x1',
        '--vlan',
        'off',
      ]);
      const host = new RawHost(world.far);
      try {
        const guest = await connectGuest({ path: running.socket, mac: GUEST, maxFrame: 9100 });
        await untilThrough(guest, host);
        await toHost(guest, host, framesFrom(GUEST, HOST, 200, 9000));
        await toGuest(host, guest, framesFrom(HOST, GUEST, 200, 9000));
        await toGuest(host, guest, framesFrom(HOST, GUEST, 50, 8900).map(tagged));
        await guest.close();
      } finally {
        host.close();
        await running.kill();
        lab.remove();
      }
    });
  }
});

for (const kind of ['net_af_packet', 'net_tap']) {
  describe(`the MTU of ${kind}’s interface changes`, { skip, timeout: 120_000 }, () => {
    test('what leaves must fit at once, and guests that negotiate anew are told', async () => {
      const lab = new NetLab();
      const world = WORLDS[kind](lab, 1500);
      const options = ['--mergeable', '1', '--config-space', '1', '--stats', '1'];
      const running = await SwitchProcess.start([...options, '--vdev', world.vdev, '-p', '0x1', '--vlan', 'off']);
      const host = new RawHost(world.far);
      const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_CONFIG];
      const mtuOf = async ({ frontEnd }: StepCard) =>
        Buffer.from(await frontEnd.getConfig(VIRTIO_NET_CONFIG.off.mtu, 2)).readUInt16LE();
      const setMtu = async (mtu: number, was: number) => {
        const mark = running.mark;
        if (kind === 'net_af_packet') ip('-n', world.far.netns, 'link', 'set', world.far.far, 'mtu', String(mtu));
        setNear(world, 'set', 'mtu', String(mtu));
        await running.line(
          RegExp(`uplink ${kind}0: MTU ${mtu}, was ${was}; guests are told when they next negotiate`),
          mark,
        );
      };
      let dropped = 0;
      const lastFits = async (guest: VirtioUser, mtu: number) => {
        const [fits, tooLong] = [14, 15].map((more) => frame(HOST, GUEST, mtu, mtu + more));
        sendNow(guest, tooLong);
        await toHost(guest, host, [fits]);
        const mark = running.mark;
        await running.line(RegExp(`rx_drop_mtu: +${++dropped}$`), mark);
      };
      try {
        const early = await StepCard.started({ path: running.socket, mac: OTHER, protocol });
        assert.equal(await mtuOf(early), 1500);
        const guest = await connectGuest({ path: running.socket, mac: GUEST, maxFrame: 9100 });
        await untilThrough(guest, host);
        await lastFits(guest, 1500);
        await setMtu(4000, 1500);
        await lastFits(guest, 4000);
        await toGuest(host, guest, framesFrom(HOST, GUEST, 50, 4000));
        const late = await StepCard.started({ path: running.socket, mac: macOf(3), protocol });
        assert.deepEqual([await mtuOf(early), await mtuOf(late)], [1500, 4000]);
        for (const vring of early.vrings) await early.frontEnd.getVringBase(vring);
        assert.equal(await mtuOf(early), 4000);
        await setMtu(1000, 4000);
        await lastFits(guest, 1000);
        // a link that goes down and comes back is told as ever, and once
        const mark = running.mark;
        setNear(world, 'set', 'down');
        await running.line(/link down/, mark);
        setNear(world, 'set', 'up');
        await running.line(/link up/, mark);
        await guest.close();
        await closeStepCards();
        assert.equal(await running.stop(), 'ended with status 0', running.output);
        assert.doesNotMatch(running.since(mark), /MTU/);
      } finally {
        await closeStepCards();
        host.close();
        await running.kill();
        lab.remove();
      }
    });
  });
}

describe('an uplink that several lcores use', { skip, timeout: 120_000 }, () => {
  const worlds: Readonly<Record<string, (lab: NetLab) => World>> = {
    'net_af_packet with one receive queue': (lab) => WORLDS.net_af_packet(lab, 1500),
    'net_af_packet with two receive queues': (lab) => {
      const world = WORLDS.net_af_packet(lab, 1500);
      return { ...world, vdev: `${world.vdev},qpairs=2` };
    },
    net_tap: (lab) => WORLDS.net_tap(lab, 1500),
  };

  for (const [kind, make] of Object.entries(worlds)) {
    test(`${kind}: guests of every lcore reach the host, and it them, with many flows`, async () => {
      const lab = new NetLab();
      const world = make(lab);
      const lcores = ['--lcores', '0@0,1@0,2@0,3@0'];
      const running = await SwitchProcess.start([...lcores, '--vdev', world.vdev, '-p', '0x1', '--vlan', 'off']);
      const host = new RawHost(world.far);
      try {
        const guests: VirtioUser[] = [];
        for (const n of [1, 2, 3]) guests.push(await connectGuest({ path: running.socket, mac: macOf(n) }));
        // which all lcores poll: guests are the same load on each
        for (const n of [0, 1, 2])
          await running.line(RegExp(`\\(${n}\\) Device has been added to data core ${n + 1}$`));
        await untilThrough(guests[0], host);
        for (const [i, guest] of guests.entries()) {
          await toHost(guest, host, framesFrom(macOf(i + 1), HOST, 60));
          // the lcores take turns in no order: one frame at a time
          while ((await guest.waitFrame(50)) !== undefined);
          for (let n = 0; n < 60; n++)
            await toGuest(host, guest, [frame(macOf(i + 1), macOf(0x50 + n), n, 60 + 10 * n)]);
        }
        for (const guest of guests) await guest.close();
        assert.equal(await running.stop(), 'ended with status 0', running.output);
      } finally {
        host.close();
        await running.kill();
        lab.remove();
      }
    });
  }
});
