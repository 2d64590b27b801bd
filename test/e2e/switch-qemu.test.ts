/** Linux guests in QEMU on the switch: they reach each other, reboot, crash and come back, and two other guests never notice. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { ensurePeers } from '../peers/packages.ts';
import { QemuGuest, type QemuGuestOptions } from '../peers/qemu.ts';
import { assertPing, untilPing } from './guests.ts';
import { SwitchProcess } from './switch-process.ts';
import { Conversation, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

/** What issue reports recommend for back ends without offloads, said to QEMU; it must work beside a guest that has them. */
const OFFLOADS_OFF = ['csum', 'guest_csum', 'gso', 'guest_tso4', 'guest_tso6', 'guest_ecn', 'guest_ufo', 'host_tso4']
  .concat(['host_tso6', 'host_ecn', 'host_ufo'])
  .map((offload) => `${offload}=off`);
/** CSUM and GUEST_CSUM; and the TSO, ECN and UFO bits of either side. */
const CHECKSUM_BITS = [0, 1];
const SEGMENTATION_BITS = [7, 8, 9, 10, 11, 12, 13, 14];

const IP_A = '10.0.0.1';
const IP_B = '10.0.0.2';

function newGuest(name: 'a' | 'b', socket: string, options: Partial<QemuGuestOptions> = {}): QemuGuest {
  const [mac, ip] = name === 'a' ? [macOf(1), IP_A] : [macOf(2), IP_B];
  return new QemuGuest({ name, socket, mac, ip: `${ip}/24`, ...options });
}

/** TCP from one guest to the other for a second. */
async function assertTcp(from: QemuGuest, to: QemuGuest, ip: string): Promise<void> {
  await to.sh('iperf3 -s -D -1');
  await sleep(300); // until it listens
  const { status, output } = await from.sh(`iperf3 -c ${ip} -t 1 -J`, 30_000);
  assert.equal(status, 0, output);
  const { end } = JSON.parse(output) as { end: { sum_received: { bytes: number } } };
  assert.ok(end.sum_received.bytes > 1e6, `only ${end.sum_received.bytes} bytes in 1 s`);
}

async function assertOffloads(guest: QemuGuest, checksums: boolean, segmentation: boolean): Promise<void> {
  const features = await guest.features();
  assert.ok(hasFeature(features, VIRTIO_F_VERSION_1));
  for (const bit of CHECKSUM_BITS) assert.equal(hasFeature(features, bit), checksums, `feature bit ${bit}`);
  for (const bit of SEGMENTATION_BITS) assert.equal(hasFeature(features, bit), segmentation, `feature bit ${bit}`);
}

/** The device number that the switch gave to the front end that was registered last with this address. */
function deviceOf(running: SwitchProcess, mac: string): string {
  const lines = [...running.output.matchAll(/^DATA: \((\d+)\) MAC_ADDRESS (\S+) and VLAN_TAG (\d+) registered$/gm)];
  const last = lines.findLast(([, , registered]) => registered === mac);
  assert.ok(last, `${mac} is not registered`);
  assert.equal(Number(last[3]), 1000 + Number(last[1]));
  return last[1];
}

describe('two QEMU guests on the switch', { skip, timeout: 240_000 }, () => {
  let running: SwitchProcess;
  let others: Conversation;
  let a: QemuGuest;
  let b: QemuGuest;

  before(async () => {
    running = await SwitchProcess.start();
    others = await Conversation.start(running.socket, undefined, { pauseMs: 20 });
    [a, b] = (['a', 'b'] as const).map((name) => newGuest(name, running.socket));
    await Promise.all([a.start(), b.start()]);
  });
  after(async () => {
    await Promise.all([a?.stop(), b?.stop()]);
    await others?.stop().catch(() => {}); // the last test has asked
    await running?.kill();
  });

  test('they are registered and ping each other', async () => {
    await assertPing(a, IP_B);
    await assertPing(b, IP_A, '-s 1400');
    assert.notEqual(deviceOf(running, macOf(1)), deviceOf(running, macOf(2)));
  });

  test('with the options QEMU has by default they leave checksums undone but no segments, and run TCP', async () => {
    await assertOffloads(a, true, false);
    assert.ok(!hasFeature(await a.features(), VIRTIO_NET_F_MRG_RXBUF));
    await assertTcp(a, b, IP_B);
    await assertTcp(b, a, IP_A);
    await others.exchangesMore();
  });

  test('a guest whose driver is unbound and bound comes back', async () => {
    const mark = running.mark;
    const driver = '/sys/bus/virtio/drivers/virtio_net';
    const device = (await a.sh('basename $(readlink /sys/class/net/eth0/device)')).output.trim();
    assert.equal((await a.sh(`echo ${device} > ${driver}/unbind`)).status, 0);
    await running.line(/: stopped$/, mark);
    await others.exchangesMore();
    assert.equal((await a.sh(`echo ${device} > ${driver}/bind; netup`)).status, 0);
    await running.line(/: ready$/, mark);
    await untilPing(a, IP_B);
    await assertPing(b, IP_A);
    await others.exchangesMore();
  });

  test('a guest that is reset in mid-traffic boots and comes back', async () => {
    const mark = running.mark;
    await a.sh(`ping -i 0.01 ${IP_B} >/dev/null 2>&1 &`);
    await b.reset();
    await a.sh('killall ping');
    await running.line(/: ready$/, mark);
    await untilPing(a, IP_B);
    await assertPing(b, IP_A);
    await others.exchangesMore();
    assert.doesNotMatch(running.since(mark), /Device has been removed/, 'the connection outlives the guest');
  });

  test('QEMU killed in mid-traffic takes its device along; started again it gets the same number', async () => {
    const id = deviceOf(running, macOf(2));
    await b.sh('iperf3 -s -D');
    await sleep(300);
    await a.sh(`iperf3 -c ${IP_B} -t 60 >/dev/null 2>&1 &`);
    await others.exchangesMore(10);
    const mark = running.mark;
    await b.kill9();
    await running.line(new RegExp(`^DATA: \\(${id}\\) Device has been removed$`), mark);
    await others.exchangesMore();
    await a.sh('killall iperf3');
    await b.stop();
    b = newGuest('b', running.socket, { device: OFFLOADS_OFF });
    await b.start();
    await untilPing(a, IP_B);
    await assertPing(b, IP_A);
    assert.equal(deviceOf(running, macOf(2)), id);
  });

  test('with the offloads turned off in QEMU it is the same', async () => {
    await assertOffloads(b, false, false);
    await assertTcp(a, b, IP_B);
    await assertTcp(b, a, IP_A);
  });

  test('all the while the two others have not lost a frame, and the switch ends cleanly with guests connected', async () => {
    const { exchanged, longestMs } = await others.stop();
    assert.ok(exchanged > 300, `they exchanged ${exchanged} frames`);
    assert.ok(longestMs < 2000, `they once waited ${longestMs} ms`);
    assert.doesNotMatch(running.output, /error|vring \d stopped/);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
    assert.deepEqual(await a.sh('echo "still\nalive"; exit 3'), { status: 3, output: 'still\nalive\n' });
  });
});

describe('two QEMU guests on a switch with --mergeable 1', { skip, timeout: 120_000 }, () => {
  let running: SwitchProcess;
  let guests: QemuGuest[];

  before(async () => {
    running = await SwitchProcess.start(['--mergeable', '1']);
    guests = (['a', 'b'] as const).map((name) => newGuest(name, running.socket));
    await Promise.all(guests.map((guest) => guest.start()));
  });
  after(async () => {
    await Promise.all((guests ?? []).map((guest) => guest.stop()));
    await running?.kill();
  });

  test('they negotiate mergeable buffers and all offloads, ping and run TCP', async () => {
    const [a, b] = guests;
    assert.ok(hasFeature(await a.features(), VIRTIO_NET_F_MRG_RXBUF));
    await assertOffloads(a, true, true);
    await assertPing(a, IP_B);
    await assertTcp(b, a, IP_A);
  });

  test('a guest whose memory QEMU does not share is refused with the option to use, and the others go on', async () => {
    const mark = running.mark;
    const args = [
      '-object',
      'memory-backend-memfd,id=private,size=192M,share=off',
      '-machine',
      'memory-backend=private',
    ];
    const guest = new QemuGuest({ name: 'private', socket: running.socket, mac: macOf(3), args });
    try {
      await guest.launch();
      const line = await running.line(/^VHOST_CONFIG: error: .* is private/, mark, 60_000);
      assert.match(line, /guest memory region \d is private: start QEMU with share=on/);
      await running.line(/^DATA: \(2\) Device has been removed$/, mark);
      await assertPing(guests[0], IP_B);
    } finally {
      await guest.stop();
    }
  });

  test('with an MTU of 9000 they exchange jumbo frames', async () => {
    const [a, b] = guests;
    for (const guest of guests) assert.equal((await guest.sh('ip link set eth0 mtu 9000')).status, 0);
    await assertPing(a, IP_B, '-s 8972');
    await assertPing(b, IP_A, '-s 8000');
    await assertTcp(a, b, IP_B);
    assert.equal(await running.stop('SIGTERM'), 'ended with status 0', running.output);
  });
});
