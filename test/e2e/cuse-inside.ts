/**
 * The switch's character device with the kernel's CUSE, and those who open it. Run as root on a Linux with /dev/cuse, /dev/net/tun and
 * /dev/vhost-net by cuse.test.ts, which brings one.
 */
import assert from 'node:assert/strict';
import { closeSync, existsSync, readFileSync, renameSync, symlinkSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { createMemfd } from '../../src/sys/memory.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import { memoryTable, OwnMemory, u32s } from '../kit/cuse-bench.ts';
import { CuseCard } from '../kit/cuse-card.ts';
import { CuseClient } from '../kit/cuse-client.ts';
import { leaseTo } from '../kit/dhcp-server.ts';
import { IpHost } from '../kit/ip-host.ts';
import { DpdkTestpmd } from '../peers/dpdk.ts';
import { PXE_ROM } from '../peers/machine-image.ts';
import { PeerProcess, waitUntil } from '../peers/process.ts';
import { askAll } from './cuse-ioctls.ts';
import { SwitchProcess } from './switch-process.ts';
import { assertDelivered, Conversation, connectGuest, frame, macOf } from './traffic.ts';

const DEVICE = '/dev/usvhost-1';
/** Where DPDK's virtio-user expects a vhost-net device, and where the kernel's own goes meanwhile. */
const VHOST_NET = '/dev/vhost-net';
const KERNEL = '/dev/vhost-net-kernel';
/** DPDK takes a device for vhost-net's by its major number, which is that of the misc devices. */
const NUMBER = '10:4096';
const WRAP = fileURLToPath(new URL('../../src/cli/qemu-wrap.ts', import.meta.url));
const OPENER = fileURLToPath(new URL('./cuse-opener.ts', import.meta.url));
/** For a frame, on a processor that is emulated and shared. */
const PATIENCE_MS = 60_000;
const MIB = 2 ** 20;

/** Where the kernel's vhost-net answers otherwise, and we mean it. */
const OTHERWISE: Readonly<Record<string, readonly [kernel: number, ours: number]>> = {
  // two regions at one guest address leave open which is meant
  'SET_MEM_TABLE with one region twice': [0, -14],
  // the kernel uses the opener's own memory, whatever that is, and notices later what is missing
  'SET_MEM_TABLE with anonymous memory': [0, -14],
  'SET_MEM_TABLE with memory that is not there': [0, -14],
  "SET_LOG_BASE in the kernel's memory": [0, -14],
  // packets go to the switch, not to the tap
  'NET_SET_BACKEND with no descriptor': [-88, -9],
  'NET_SET_BACKEND with a file': [-88, 0],
  // it runs as soon as it has all that it takes
  'NET_SET_BACKEND of a ring without memory': [-14, 0],
};

let running: SwitchProcess;

const startSwitch = (index: number, more: readonly string[] = []) =>
  SwitchProcess.start(
    ['--vhost', 'both', '--mergeable', '1', '--dev-basename', 'usvhost', '--dev-index', String(index), ...more],
    { up: /serving \/dev\/usvhost-/ },
  );

const mixedSizes = (dst: string, src: string, n: number) =>
  Array.from({ length: n }, (_, i) => frame(dst, src, i, 60 + ((i * 37) % 1455)));

/** What a switch holds for those who have opened its devices. */
const held = ({ openFds, mappedFiles }: SwitchProcess) => ({ openFds, mappedFiles });

/** Runs `use`, after which the switch holds no more than before. */
async function leavesNothing(use: () => Promise<void>): Promise<void> {
  const before = held(running);
  try {
    await use();
  } catch (error) {
    await sleep(100); // for what it says of that
    console.log(running.lines.slice(-30).join('\n'));
    throw error;
  }
  const same = () => JSON.stringify(held(running)) === JSON.stringify(before);
  await running.until(`the switch to hold ${JSON.stringify(before)} again`, same);
}

/** A card of our own on a socket of the switch. */
const onSocket = (n: number) => connectGuest({ path: running.socket, mac: macOf(n) });

before(async () => {
  running = await startSwitch(1, ['--dev-number', NUMBER]);
});
after(() => running?.kill());

test('every ioctl, with good, bad and hostile arguments, is answered as by vhost-net', async () => {
  await leavesNothing(async () => {
    const [kernel, ours] = [askAll(VHOST_NET), askAll(DEVICE)];
    assert.ok(kernel.size > 150);
    const different = [...kernel].filter(([what, answer]) => ours.get(what) !== answer);
    assert.deepEqual(
      Object.fromEntries(different.map(([what, answer]) => [what, [answer, ours.get(what)]])),
      OTHERWISE,
    );
  });
});

test('frames of all sizes pass both ways between the device and a socket, also after a halt and after RESET_OWNER', async () => {
  await leavesNothing(async () => {
    const guest = await onSocket(1);
    const card = new CuseCard({ path: DEVICE, mac: macOf(2) });
    const exchange = async () => {
      await assertDelivered(card, guest, mixedSizes(guest.mac, card.mac, 100), PATIENCE_MS);
      await assertDelivered(guest, card, mixedSizes(card.mac, guest.mac, 100), PATIENCE_MS);
    };
    try {
      await exchange();
      assert.deepEqual(card.stop(), [100, 100]);
      card.start();
      await exchange();
      card.reset();
      await exchange();
    } finally {
      await card.close();
      await guest.close();
    }
  });
});

test('any number of opens at once, each a device of its own, in several regions of memory', async () => {
  await leavesNothing(async () => {
    const memory = [
      { guestAddr: 0, size: 2 * MIB },
      { guestAddr: 2 ** 32, size: 2 * MIB },
    ];
    const cards = [3, 4, 5].map((n) => new CuseCard({ path: DEVICE, mac: macOf(n), memory }));
    try {
      for (const from of cards) {
        from.send(frame('ff:ff:ff:ff:ff:ff', from.mac));
        from.flush();
        for (const other of cards) if (other !== from) assert.ok(await other.waitFrame(PATIENCE_MS), 'a broadcast');
      }
      const [a, b] = cards;
      await assertDelivered(a, b, mixedSizes(b.mac, a.mac, 50), PATIENCE_MS);
    } finally {
      for (const card of cards) await card.close();
    }
  });
});

test('memory that cannot be shared is refused, and the switch says what to do', async () => {
  await leavesNothing(async () => {
    const mark = running.mark;
    const anonymous = new OwnMemory(2 * MIB);
    const client = new CuseClient(DEVICE);
    try {
      client.must(vhost.VHOST_SET_OWNER);
      const table = memoryTable([{ guestAddr: 0, size: 2 * MIB, userAddr: anonymous.address }]);
      assert.equal(client.call(vhost.VHOST_SET_MEM_TABLE, table), -14);
      await running.line(/SET_MEM_TABLE: .* is anonymous memory, .*-object memory-backend-memfd,.*share=on/, mark);
      // memory whose descriptor is closed is found by its mapping
      const fd = createMemfd('closed', 2 * MIB);
      anonymous.map(fd);
      closeSync(fd);
      client.must(vhost.VHOST_SET_MEM_TABLE, table);
      assert.equal(running.mappedFiles, 1);
    } finally {
      client.close();
      anonymous.close();
    }
  });
});

test('an opener that is killed in mid-traffic is missed by nobody, and leaves nothing', async () => {
  await leavesNothing(async () => {
    const talk = await Conversation.start(running.socket, [macOf(6), macOf(7)]);
    const sink = await onSocket(15);
    sink.send(frame('ff:ff:ff:ff:ff:ff', sink.mac));
    sink.flush();
    const opener = startOpener(DEVICE, macOf(8), sink.mac);
    try {
      await opener.waitUntil('sending', () => opener.outputSince(0).includes('sending'), PATIENCE_MS);
      await talk.exchangesMore(20);
      const mark = running.mark;
      opener.killNow();
      await running.line(/Device has been removed/, mark);
      await talk.exchangesMore(20);
    } finally {
      opener.killNow();
      await opener.ended;
      await talk.stop();
      await sink.close();
    }
  });
});

function startOpener(path: string, mac: string, peer: string): PeerProcess {
  return new PeerProcess({ name: 'opener', command: process.execPath, args: [OPENER, path, mac, peer] });
}

test("DPDK's virtio-user with its vhost-kernel back end sends back what it was sent, unharmed and in order", async () => {
  renameSync(VHOST_NET, KERNEL);
  symlinkSync(DEVICE, VHOST_NET);
  await leavesNothing(async () => {
    const guest = await onSocket(9);
    const mac = macOf(10);
    const testpmd = new DpdkTestpmd({
      name: 'cuse',
      vdevs: [`net_virtio_user0,path=${VHOST_NET},iface=dpdk0,mac=${mac}`],
      forwardMode: 'macswap',
      memoryMiB: 64,
      hugepages: false,
      mbufs: 2048,
    });
    try {
      await testpmd.start();
      await testpmd.startForwarding();
      const sent = (n: number) => frame(mac, guest.mac, n, 60 + ((n * 37) % 1455));
      for (let n = 0, next = 0; n < 200; n++) {
        for (; next < 200 && next - n < 16 && guest.send(sent(next)); next++);
        guest.flush();
        const back = await guest.waitFrame(PATIENCE_MS);
        const expected = sent(n);
        expected.set([...sent(n).subarray(6, 12), ...sent(n).subarray(0, 6)]);
        assert.ok(back !== undefined && Buffer.from(back).equals(expected), `frame ${n} came back`);
      }
      // killed while it sends
      for (let n = 0; n < 64; n++) guest.send(sent(n));
      guest.flush();
      await testpmd.kill9();
    } finally {
      await testpmd.stop();
      await guest.close();
    }
  });
});

test('QEMU by qemu-wrap --cuse, from a line with a tap: a guest boots from the network, and answers pings', async () => {
  await leavesNothing(async () => {
    const host = await onSocket(16);
    const [mac, ip, ownIp] = [macOf(17), '10.0.0.17', '10.0.0.16'];
    const args = [
      ...['-accel', 'tcg,tb-size=32', '-M', 'pc', '-m', '64', '-nodefaults', '-no-user-config'],
      ...['-display', 'none', '-option-rom', PXE_ROM],
      // its driver polls: without MSI-X, vhost is used by force only
      ...['-netdev', 'tap,id=n,ifname=qemu0,script=no,downscript=no,vhost=on,vhostforce=on'],
      ...['-device', `virtio-net-pci,netdev=n,mac=${mac},vectors=0,romfile=`],
    ];
    const wrapped = [WRAP, '--cuse', DEVICE, 'qemu-system-x86_64', ...args];
    const qemu = new PeerProcess({ name: 'QEMU', command: process.execPath, args: wrapped });
    try {
      const booted = leaseTo(host, ip, ownIp, 2 * PATIENCE_MS);
      const ended = qemu.ended.then((how) => Promise.reject(new Error(`QEMU ${how}: ${qemu.lastLines()}`)));
      assert.equal(await Promise.race([booted, ended]), mac);
      const pinging = new IpHost(host, ownIp, { mac, ip });
      pinging.startPinging(200);
      await pinging.answersMore(5, PATIENCE_MS);
      await pinging.stop();
      ended.catch(() => {}); // by us
    } finally {
      await qemu.stop();
      await host.close();
    }
  });
});

test('two switches have devices of different indexes; one that is killed leaves its opener an error, not waiting', async () => {
  assert.throws(() => new CuseClient('/dev/usvhost-2'), { code: 'ENOENT' });
  const second = await startSwitch(2);
  const opener = startOpener('/dev/usvhost-2', macOf(11), macOf(12));
  const card = new CuseCard({ path: DEVICE, mac: macOf(13) });
  try {
    await opener.waitUntil('sending', () => opener.outputSince(0).includes('sending'), PATIENCE_MS);
    // it waits in an ioctl that is not answered
    second.signal('SIGSTOP');
    const waits = () => readFileSync(`/proc/${opener.pid}/wchan`, 'utf8') === 'request_wait_answer';
    await opener.waitUntil('an ioctl to wait', waits, PATIENCE_MS);
    await second.kill();
    assert.equal(await opener.ended, 'ended with status 0', opener.lastLines());
    assert.match(opener.outputSince(0), /^errno (?:103|107)$/m); // ECONNABORTED, ENOTCONN
    await waitUntil('/dev/usvhost-2 to go', () => !existsSync('/dev/usvhost-2'), 10_000);
    card.client.features();
  } finally {
    opener.killNow();
    await second.kill();
    await card.close();
  }
});

test('a switch that stops takes its device along, although it is open', async () => {
  const card = new CuseCard({ path: DEVICE, mac: macOf(14) });
  try {
    assert.equal(await running.stop(), 'ended with status 0', running.output);
    assert.equal(existsSync(DEVICE), false);
    assert.ok(card.client.call(vhost.VHOST_SET_VRING_NUM, u32s(0, 256)) < 0);
  } finally {
    await card.close();
  }
});
