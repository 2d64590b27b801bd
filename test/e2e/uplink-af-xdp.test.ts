/** net_af_xdp as the uplink of the switch: guests of our own and a host behind a virtual cable exchange frames. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { RawHost } from '../kit/raw-host.ts';
import { probeXdp } from '../peers/af-xdp.ts';
import { type Cable, ip, NetLab } from '../peers/netns.ts';
import { waitUntil } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, connectGuest, frame, macOf } from './traffic.ts';

const skip = await probeXdp();

const HOST = macOf(0x42);
const GUEST = macOf(1);

const framesFrom = (from: string, to: string, n = 300) =>
  Array.from({ length: n }, (_, i) => frame(to, from, i, 60 + ((i * 97) % 1455)));

function sendNow(guest: VirtioUser, bytes: Uint8Array): void {
  assert.ok(guest.send(bytes));
  guest.flush();
}

async function assertHeard(host: RawHost, guest: VirtioUser, frames: readonly Uint8Array[]): Promise<void> {
  for (const [i, expected] of frames.entries()) {
    sendNow(guest, expected);
    const heard = await host.waitFrame();
    assert.ok(heard, `frame ${i} of ${frames.length} is missing`);
    assert.ok(Buffer.from(heard).equals(expected), `frame ${i} is not as it was sent`);
  }
}

async function assertCame(host: RawHost, guest: VirtioUser, frames: readonly Uint8Array[]): Promise<void> {
  let sent = 0;
  for (const [i, expected] of frames.entries()) {
    while (sent < frames.length && sent - i < 32) host.send(frames[sent++]);
    const got = await guest.waitFrame(10_000);
    assert.ok(got, `frame ${i} is missing`);
    assert.ok(Buffer.from(got).equals(expected), `frame ${i} is not as it was sent`);
  }
}

/** With tag 100 of priority 3 behind the addresses. */
const tagged = (bytes: Uint8Array) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from('81006064', 'hex'), bytes.subarray(12)]);

for (const [mode, eal, elsewhere] of [
  ['native', [], false],
  ['skb', ['--lcores', '0@0,1@0-1'], false],
  ['auto', [], true],
] as const)
  describe(`a guest and a host behind an XDP uplink in ${mode} mode${elsewhere ? ', in a network namespace' : ''}`, {
    skip,
    timeout: 120_000,
  }, () => {
    const lab = new NetLab();
    let cable: Cable;
    let running: SwitchProcess;
    let host: RawHost;
    let guest: VirtioUser;
    /** the namespace of the uplink's interface, for ip and for --vdev */
    let inside: readonly string[] = [];

    before(async () => {
      cable = lab.veth();
      let iface = cable.near;
      if (elsewhere) {
        const home = lab.namespace();
        ip('link', 'set', cable.near, 'netns', home);
        ip('-n', home, 'link', 'set', cable.near, 'up');
        inside = ['-n', home];
        iface = `${home}:${cable.near}`;
      }
      host = new RawHost(cable);
      const vdev = `net_af_xdp0,iface=${iface},mode=${mode}`;
      running = await SwitchProcess.start([...eal, '--vdev', vdev, '-p', '0x1', '--vlan', 'off']);
      guest = await connectGuest({ path: running.socket, mac: GUEST });
    });
    after(async () => {
      await guest?.close();
      await running?.kill();
      host?.close();
      lab.remove();
    });

    test('what the guest sends comes out of the cable, and what the host sends comes to the guest, byte for byte', async () => {
      await assertHeard(host, guest, framesFrom(GUEST, HOST));
      await assertCame(host, guest, [...framesFrom(HOST, GUEST), ...framesFrom(HOST, 'ff:ff:ff:ff:ff:ff', 20)]);
    });

    test('tags stay where they are, both ways', async () => {
      await assertHeard(host, guest, framesFrom(GUEST, HOST, 30).map(tagged));
      await assertCame(host, guest, framesFrom(HOST, GUEST, 30).map(tagged));
    });

    test('two guests on the uplink are served at once, and reach each other', async () => {
      const other = await connectGuest({ path: running.socket, mac: macOf(2) });
      await assertHeard(host, other, framesFrom(macOf(2), HOST, 50));
      await assertDelivered(guest, other, framesFrom(GUEST, macOf(2), 100));
      await assertCame(host, other, framesFrom(HOST, macOf(2), 50));
      await assertCame(host, guest, framesFrom(HOST, GUEST, 50));
      await other.close();
    });

    test('the interface goes down and comes up again', async () => {
      const mark = running.mark;
      ip(...inside, 'link', 'set', cable.near, 'down');
      await running.line(/uplink net_af_xdp0: link down/, mark);
      sendNow(guest, frame(HOST, GUEST)); // lost, or late
      ip(...inside, 'link', 'set', cable.near, 'up');
      await running.line(/uplink net_af_xdp0: link up/, mark);
      const last = frame(HOST, GUEST, 77);
      await waitUntil(
        'frames to pass again',
        async () => {
          sendNow(guest, last);
          for (let got = await host.waitFrame(100); got !== undefined; got = host.receive())
            if (Buffer.from(got).equals(last)) return true;
          return false;
        },
        30_000,
      );
      await assertCame(host, guest, framesFrom(HOST, GUEST, 50));
    });

    test('the interface is removed: guests still reach each other, and the uplink comes back with it', async () => {
      const mark = running.mark;
      ip(...inside, 'link', 'del', cable.near);
      await running.line(/uplink net_af_xdp0: .* was removed: the port is stopped until it is there again/, mark);
      const other = await connectGuest({ path: running.socket, mac: macOf(2) });
      await assertDelivered(guest, other, framesFrom(GUEST, macOf(2), 100));
      await other.close();
      ip(...inside, 'link', 'add', cable.near, 'type', 'veth', 'peer', 'name', cable.far, 'netns', cable.netns);
      ip('-n', cable.netns, 'link', 'set', cable.far, 'up');
      ip(...inside, 'link', 'set', cable.near, 'up');
      host.close();
      host = new RawHost(cable);
      await running.line(/uplink net_af_xdp0: link up|uplink net_af_xdp0: port \d+, .*, link up/, mark);
      await assertCame(host, guest, framesFrom(HOST, GUEST, 50));
      await assertHeard(host, guest, framesFrom(GUEST, HOST, 50));
    });

    test('an idle switch takes no processor time, and the first frame wakes it', async () => {
      const sleeping = async () => {
        const cpu = running.cpuMs();
        const from = performance.now();
        await new Promise((resolve) => setTimeout(resolve, 1000));
        return (running.cpuMs() - cpu) / (performance.now() - from) < 0.1;
      };
      let quiet = false;
      for (let tries = 0; tries < 10 && !quiet; tries++) quiet = await sleeping();
      assert.ok(quiet, 'the switch is busy');
      host.send(frame(GUEST, HOST, 7));
      assert.ok(await guest.waitFrame(10_000));
    });

    test('it ends cleanly, with a frame on its way, and no program stays attached', async () => {
      host.send(frame(GUEST, HOST, 8));
      assert.equal(await running.stop(), 'ended with status 0', running.output);
      await waitUntil(
        'the program to be detached',
        () => !ip(...inside, 'link', 'show', cable.near).includes('xdp'),
        10_000,
      );
    });
  });
