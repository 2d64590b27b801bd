/** DPDK's virtio driver as a guest of the switch: testpmd with net_virtio_user ports, on every receive path of its split ring. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { DpdkTestpmd, type VirtioUserOptions } from '../peers/dpdk.ts';
import { reserveHugepages } from '../peers/hugepages.ts';
import { ensurePeers } from '../peers/packages.ts';
import { SwitchProcess } from './switch-process.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const MACS = [macOf(1), macOf(2)] as const;
/** testpmd's bursts have this many frames; sizes here are without the four bytes of the frame check, which virtio does not carry. */
const BURST = 32;
const MEMORY_MIB = 128;

type Ports = Omit<VirtioUserOptions, 'socket' | 'mac'>;

/** One way of DPDK's driver, and the name that its log has for it. */
interface Path {
  readonly ports: Ports;
  readonly mergeable: 0 | 1;
  readonly log: RegExp;
}

const PATHS: Record<string, Path> = {
  'standard, not mergeable': {
    ports: { mrgRxbuf: false, inOrder: false },
    mergeable: 0,
    log: /using standard Rx path on port 0/,
  },
  vectorized: {
    ports: { mrgRxbuf: false, inOrder: false, vectorized: true },
    mergeable: 0,
    log: /using vectorized Rx path on port 0/,
  },
  mergeable: {
    ports: { mrgRxbuf: true, inOrder: false },
    mergeable: 1,
    log: /using mergeable buffer Rx path on port 0/,
  },
  'mergeable wanted, not offered': {
    ports: { mrgRxbuf: true, inOrder: false },
    mergeable: 0,
    log: /using standard Rx path on port 0/,
  },
  'in-order': {
    ports: { mrgRxbuf: false, inOrder: true },
    mergeable: 1,
    log: /using inorder mergeable buffer Rx path on port 0|using inorder Rx path on port 0|using standard Rx path on port 0/,
  },
  'rings of 1024': {
    ports: { mrgRxbuf: false, inOrder: false, queueSize: 1024 },
    mergeable: 0,
    log: /using standard Rx path on port 0/,
  },
};

/** Two guests that send each other on what they get, round and round, each with the other's address. */
async function twoPorts(
  socket: string,
  ports: Ports,
  hugepages: boolean,
  app: readonly string[] = [],
): Promise<DpdkTestpmd> {
  const testpmd = DpdkTestpmd.virtioUser(
    MACS.map((mac) => ({ ...ports, socket, mac })),
    { name: 'guests', forwardMode: 'mac', memoryMiB: MEMORY_MIB, hugepages, mbufs: 4096, app },
  );
  await testpmd.start();
  // what comes in on port 0 goes out of port 1, for the guest behind port 0
  await testpmd.setEthPeer(1, MACS[0]);
  await testpmd.setEthPeer(0, MACS[1]);
  return testpmd;
}

/** Takes what is still on its way out of the rings, so that nothing of it counts for what comes next. */
async function drain(testpmd: DpdkTestpmd): Promise<void> {
  await sleep(20);
  await testpmd.command('set fwd rxonly');
  await testpmd.startForwarding();
  await sleep(50);
  await testpmd.stopForwarding();
  await testpmd.command('set fwd mac');
}

/** Lets a burst in either direction circle for a while. Every frame sent must be received by the other port, whole. */
async function circle(testpmd: DpdkTestpmd, lengths: string, bytes: number, ms = 200): Promise<void> {
  await testpmd.command(`set txpkts ${lengths}`);
  await testpmd.command('clear port stats all');
  await testpmd.startForwarding(1);
  await sleep(ms);
  await testpmd.stopForwarding();
  await drain(testpmd);
  const ports = [await testpmd.portStats(0), await testpmd.portStats(1)];
  for (const [n, port] of ports.entries()) {
    assert.ok(port.txPackets > 10 * BURST, `${bytes} bytes: port ${n} sent ${port.txPackets} frames`);
    assert.equal(port.txBytes, port.txPackets * bytes, `${bytes} bytes: what port ${n} sent`);
    assert.equal(port.rxPackets, ports[1 - n].txPackets, `${bytes} bytes: frames for port ${n}`);
    assert.equal(port.rxBytes, port.rxPackets * bytes, `${bytes} bytes: what port ${n} got`);
    assert.equal(port.rxErrors + port.rxNombuf, 0);
  }
}

const REGISTERED = MACS.map((mac, n) => `DATA: (${n}) MAC_ADDRESS ${mac} and VLAN_TAG ${1000 + n} registered`);

async function withSwitch(args: readonly string[], use: (running: SwitchProcess) => Promise<void>): Promise<void> {
  const running = await SwitchProcess.start(args);
  try {
    await use(running);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  } finally {
    await running.kill();
  }
}

async function exchange(running: SwitchProcess, { ports, log }: Path, hugepages: boolean): Promise<void> {
  const testpmd = await twoPorts(running.socket, ports, hugepages);
  try {
    assert.match(testpmd.log, log);
    for (const bytes of [60, 508, 1514]) await circle(testpmd, String(bytes), bytes);
    const registered = running.lines.filter((line) => line.endsWith('registered'));
    assert.deepEqual(registered.sort(), REGISTERED);
  } finally {
    await testpmd.stop();
  }
  await running.line(/^DATA: \(0\) Device has been removed$/);
  await running.line(/^DATA: \(1\) Device has been removed$/);
}

describe('DPDK guests on the switch', { skip, timeout: 120_000 }, () => {
  for (const [name, path] of Object.entries(PATHS)) {
    test(`two ports exchange frames of 64, 512 and 1518 bytes in ordinary memory: ${name}`, () =>
      withSwitch(['--mergeable', String(path.mergeable)], (running) => exchange(running, path, false)));
  }

  test('two ports exchange frames in hugepages', async (t: TestContext) => {
    const pages = reserveHugepages(MEMORY_MIB);
    if (!pages.obtained) {
      t.skip(pages.why);
      return;
    }
    try {
      await withSwitch([], (running) => exchange(running, PATHS.vectorized, true));
    } finally {
      pages.release();
    }
  });

  test('frames of 9000 bytes pass between mergeable ports', () =>
    withSwitch(['--mergeable', '1'], async (running) => {
      const app = ['--max-pkt-len=9018', '--mbuf-size=2176', '--enable-scatter', '--tx-offloads=0x8000'];
      const testpmd = await twoPorts(running.socket, { mrgRxbuf: true, inOrder: false }, false, app);
      try {
        await circle(testpmd, '1500,1500,1500,1500,1500,1500', 9000);
      } finally {
        await testpmd.stop();
      }
    }));

  test('testpmd sends a card of ours back what it was sent, unharmed and in order', () =>
    withSwitch(['--mergeable', '1'], async (running) => {
      const card = await connectGuest({ path: running.socket, mac: MACS[1] });
      const testpmd = DpdkTestpmd.virtioUser([{ socket: running.socket, mac: MACS[0], inOrder: false }], {
        name: 'mirror',
        forwardMode: 'macswap',
        memoryMiB: MEMORY_MIB,
        hugepages: false,
        mbufs: 4096,
      });
      try {
        await testpmd.start();
        await testpmd.startForwarding();
        const sent = (n: number) => frame(MACS[0], MACS[1], n, 60 + ((n * 37) % 1455));
        // testpmd says its address by its first answer; until then frames are flooded
        for (let n = 0, next = 0; n < 600; n++) {
          for (; next < 600 && next - n < BURST && card.send(sent(next)); next++);
          card.flush();
          const back = await card.waitFrame(10_000);
          const expected = sent(n);
          expected.set([...sent(n).subarray(6, 12), ...sent(n).subarray(0, 6)]);
          assert.ok(back !== undefined && Buffer.from(back).equals(expected), `frame ${n} came back`);
        }
        assert.equal(card.receive(), undefined);
        assert.ok(card.pairs[0].rx.guardsIntact);
      } finally {
        await testpmd.stop();
        await card.close();
      }
    }));

  test('guests come and go: the numbers of those that left are used again', () =>
    withSwitch([], async (running) => {
      for (let n = 0; n < 3; n++) {
        const mark = running.mark;
        const testpmd = await twoPorts(running.socket, PATHS.vectorized.ports, false);
        await circle(testpmd, '60', 60, 100);
        if (n === 1) await testpmd.kill9();
        await testpmd.stop();
        for (const id of [0, 1]) await running.line(new RegExp(`^DATA: \\(${id}\\) Device has been removed$`), mark);
        const registered = running
          .since(mark)
          .split('\n')
          .filter((line) => line.endsWith('registered'));
        assert.deepEqual(registered.sort(), REGISTERED, `time ${n}`);
      }
    }));
});
