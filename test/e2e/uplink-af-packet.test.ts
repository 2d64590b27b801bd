/** net_af_packet as the uplink: guests of our own and a host behind a virtual cable exchange frames. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { RawHost } from '../kit/raw-host.ts';
import { type Cable, ip, NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['netns'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const HOST = macOf(0x42);
const GUEST = macOf(1);

/** Frames of all lengths, those of a page's end among them. */
const framesFrom = (from: string, to: string, n = 300) =>
  Array.from({ length: n }, (_, i) => frame(to, from, i, 60 + ((i * 97) % 1455)));

async function assertHeard(
  host: RawHost,
  frames: readonly Uint8Array[],
  send: (frame: Uint8Array) => void,
): Promise<void> {
  for (const [i, expected] of frames.entries()) {
    send(expected);
    const heard = await host.waitFrame();
    assert.ok(heard, `frame ${i} of ${frames.length} is missing`);
    assert.ok(Buffer.from(heard).equals(expected), `frame ${i} is not as it was sent`);
  }
}

function sendNow(guest: VirtioUser, bytes: Uint8Array): void {
  assert.ok(guest.send(bytes));
  guest.flush();
}

describe('a guest and a host behind an uplink', { skip, timeout: 120_000 }, () => {
  const lab = new NetLab();
  let cable: Cable;
  let running: SwitchProcess;
  let host: RawHost;
  let guest: VirtioUser;

  before(async () => {
    cable = lab.veth();
    host = new RawHost(cable);
    running = await SwitchProcess.start(['--vdev', `net_af_packet0,iface=${cable.near}`, '-p', '0x1']);
    guest = await connectGuest({ path: running.socket, mac: GUEST });
  });
  after(async () => {
    await guest?.close();
    await running?.kill();
    host?.close();
    lab.remove();
  });

  test('the switch says which port the uplink is', () => {
    assert.match(running.output, /uplink net_af_packet0: port 64, MAC address [0-9a-f:]{17}, link up/);
  });

  test('what the guest sends comes out of the cable, byte for byte', async () => {
    await assertHeard(host, framesFrom(GUEST, HOST), (bytes) => sendNow(guest, bytes));
  });

  test('what the host sends to the guest and to all comes to the guest, in order', async () => {
    const frames = [...framesFrom(HOST, GUEST), ...framesFrom(HOST, 'ff:ff:ff:ff:ff:ff', 20)];
    let sent = 0;
    for (const [i, expected] of frames.entries()) {
      while (sent < frames.length && sent - i < 32) host.send(frames[sent++]);
      const got = await guest.waitFrame(10_000);
      assert.ok(got, `frame ${i} is missing`);
      assert.ok(Buffer.from(got).equals(expected), `frame ${i} is not as it was sent`);
    }
  });

  test('with the interface down guests still reach each other, and with it up again the host, too', async () => {
    const other = await connectGuest({ path: running.socket, mac: macOf(2) });
    const mark = running.mark;
    ip('link', 'set', cable.near, 'down');
    await running.line(/uplink net_af_packet0: link down/, mark);
    sendNow(other, frame(GUEST, macOf(2)));
    assert.ok(await guest.waitFrame(10_000));
    sendNow(guest, frame(HOST, GUEST)); // lost
    await assertDelivered(guest, other, framesFrom(GUEST, macOf(2), 100));
    ip('link', 'set', cable.near, 'up');
    await running.line(/uplink net_af_packet0: link up/, mark);
    while (host.receive() !== undefined);
    await assertHeard(host, framesFrom(GUEST, HOST, 50), (bytes) => sendNow(guest, bytes));
    await other.close();
  });

  test('an idle switch with an uplink takes no processor time, and the first frame wakes it', async () => {
    const sleeping = async () => {
      const cpu = running.cpuMs();
      const from = performance.now();
      await new Promise((resolve) => setTimeout(resolve, 1000));
      return (running.cpuMs() - cpu) / (performance.now() - from) < 0.1;
    };
    let quiet = false;
    for (let tries = 0; tries < 5 && !quiet; tries++) quiet = await sleeping();
    assert.ok(quiet, 'the switch is busy');
    host.send(frame(GUEST, HOST, 7));
    assert.ok(await guest.waitFrame(10_000));
  });

  test('it ends cleanly, with a frame on its way', async () => {
    host.send(frame(GUEST, HOST, 8));
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});
