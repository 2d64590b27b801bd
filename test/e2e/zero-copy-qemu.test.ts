/** A Linux guest with zero copy and a Linux host beyond an AF_XDP uplink: ARP, ping and TCP; and a guest that reboots. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { probeXdp } from '../peers/af-xdp.ts';
import { ip } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';
import { PeerProcess } from '../peers/process.ts';
import type { QemuGuest } from '../peers/qemu.ts';
import { completeChecksums } from '../peers/veth.ts';
import { assertPing, linuxGuest, sh, startAll, untilPing } from './linux-guests.ts';
import { ZeroCopyWorld } from './zero-copy-world.ts';

const [leftOut] = (await ensurePeers(['netns', 'qemu'])).leftOut;
const skip = leftOut?.why ?? (await probeXdp());

const TCP_PEER = fileURLToPath(new URL('../kit/tcp-peer.ts', import.meta.url));
const HOST_IP = '10.0.0.254';
const MIB = 4;

describe('a Linux guest whose buffers the uplink reads and writes itself', { skip, timeout: 250_000 }, () => {
  let world: ZeroCopyWorld;
  let tcp: PeerProcess;
  let digest: string;
  let guest: QemuGuest;

  before(async () => {
    world = await ZeroCopyWorld.start(['--vlan', 'off']);
    const { netns, far } = world.cable;
    // AF_XDP does not tell that a checksum is still to be done
    completeChecksums(netns, far);
    ip('-n', netns, 'addr', 'add', `${HOST_IP}/24`, 'dev', far);
    tcp = new PeerProcess({
      name: 'TCP peer',
      command: 'ip',
      args: ['netns', 'exec', netns, process.execPath, TCP_PEER, String(MIB)],
    });
    await tcp.waitUntil('the TCP peer', () => tcp.outputSince(0).includes('ready'), 10_000);
    digest = /ready (\w+)/.exec(tcp.outputSince(0))?.[1] as string;
    guest = linuxGuest(1, world.running.socket);
    await startAll([guest]);
    await world.lane();
  });
  after(async () => {
    await guest?.stop();
    await tcp?.stop();
    await world?.close();
  });

  async function assertStreams(): Promise<void> {
    await sh(guest, `dd if=/dev/urandom of=/tmp/out bs=1M count=${MIB} 2>/dev/null`, 60_000);
    const sent = (await sh(guest, 'sha256sum /tmp/out', 60_000)).split(' ')[0];
    const heard = await sh(guest, `nc.openbsd -N ${HOST_IP} 5001 </tmp/out`, 120_000);
    assert.equal(heard.trim(), sent, 'the file arrived otherwise');
    await sh(guest, 'rm /tmp/out');
    const down = await sh(guest, `nc.openbsd -d ${HOST_IP} 5002 | sha256sum`, 120_000);
    assert.equal(down.split(' ')[0], digest, 'the file arrived otherwise');
  }

  test('it finds the host by ARP and its pings are answered, fragments too', async () => {
    await untilPing(guest, HOST_IP);
    await assertPing(guest, HOST_IP, '-s 20000');
  });

  test('TCP streams pass unharmed both ways, and what carries them is not copied', async () => {
    await assertStreams();
    const frames = (MIB * 2 ** 20) / 1500;
    await world.untilCounter('tx_completed', (n) => n > frames);
    await world.untilCounter('rx_completed', (n) => n > frames);
    const copied = world.counter('tx_copied') + world.counter('rx_copied');
    assert.ok(copied < 0.01 * frames, `${copied} frames were copied`);
  });

  test('it reboots, and goes on', async () => {
    await guest.reset();
    await untilPing(guest, HOST_IP);
    await assertPing(guest, HOST_IP, '-s 1400');
    await world.untilCounter('rx_completed', (n) => n > 0);
  });

  test('the switch ends cleanly with the guest running', async () => {
    assert.equal(await world.running.stop(), 'ended with status 0', world.running.output);
    assert.deepEqual(world.cables, []);
  });
});
