/** DPDK's virtio-user and the switch die in turn and find each other again, where DPDK listens (server=1) as where it connects. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { DpdkTestpmd, type VirtioUserOptions } from '../peers/dpdk.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { Conversation, macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const MACS = [macOf(1), macOf(2)] as const;

/** testpmd with ports that send each other on what they get. */
async function twoPorts(ports: readonly VirtioUserOptions[]): Promise<DpdkTestpmd> {
  const options = { name: 'reconnect', forwardMode: 'mac', memoryMiB: 128, hugepages: false, mbufs: 4096 } as const;
  const guests = await DpdkTestpmd.virtioUser(ports, options).start();
  await guests.setEthPeer(1, MACS[0]);
  await guests.setEthPeer(0, MACS[1]);
  return guests;
}

/** Waits until both ports have received more frames than a restarted ring may have had waiting. */
async function circles(testpmd: DpdkTestpmd, running: SwitchProcess): Promise<void> {
  const received = async () => [(await testpmd.portStats(0)).rxPackets, (await testpmd.portStats(1)).rxPackets];
  const from = await received();
  const enough = async () => (await received()).every((n, port) => n - from[port] > 5000);
  const details = () => `${testpmd.log.slice(-1500)}\n${running.output}`;
  await waitUntil('frames on both ports', enough, 15_000, { everyMs: 100, details });
}

describe('DPDK guests that listen, and a switch with --client', { skip, timeout: 120_000 }, () => {
  let dir: string;
  let running: SwitchProcess;
  let testpmd: DpdkTestpmd;

  const socketOf = (n: number) => join(dir, `s${n}`);
  const startSwitch = () => {
    const args = ['--client', '--socket-file', socketOf(0), '--socket-file', socketOf(1)];
    return SwitchProcess.start(args, { dir, wholeLine: true, up: /waiting for a front end/ });
  };
  const startGuests = () =>
    twoPorts(MACS.map((mac, n) => ({ socket: socketOf(n), mac, server: true, inOrder: false })));
  /** Whatever was on its way when one side died is gone: begin with new bursts. */
  const startAgain = async () => {
    await testpmd.stopForwarding();
    await testpmd.startForwarding(1);
  };

  before(async () => {
    dir = makeTempDir('reconnect-dpdk');
    running = await startSwitch();
    testpmd = await startGuests();
    await testpmd.startForwarding(1);
  });
  after(async () => {
    await testpmd?.stop();
    await running?.kill();
    removeTempDir(dir);
  });

  test('they exchange frames', () => circles(testpmd, running));

  for (const how of ['stopped by SIGTERM', 'killed']) {
    test(`the switch is ${how} in mid-traffic and started again: frames pass again`, async () => {
      if (how === 'killed') await running.kill();
      else assert.equal(await running.stop('SIGTERM'), 'ended with status 0', running.output);
      running = await startSwitch();
      for (const n of [0, 1]) await running.line(new RegExp(`/s${n}: device \\d: ready$`));
      await startAgain();
      await circles(testpmd, running);
      assert.doesNotMatch(running.output, /error|vring \d stopped/);
    });
  }

  test('testpmd is killed in mid-traffic and started again: the switch finds it', async () => {
    const mark = running.mark;
    await testpmd.kill9();
    for (const n of [0, 1]) await running.line(new RegExp(`/s${n}: waiting for a front end that listens on it$`), mark);
    await testpmd.stop();
    for (const n of [0, 1]) rmSync(socketOf(n)); // testpmd does not replace the sockets of one that was killed
    testpmd = await startGuests();
    await testpmd.startForwarding(1);
    await circles(testpmd, running);
    await testpmd.stopForwarding();
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});

test('testpmd is killed in mid-traffic, again and again: its devices go, and two others never miss a frame', {
  skip,
  timeout: 60_000,
}, async () => {
  const running = await SwitchProcess.start();
  try {
    const others = await Conversation.start(running.socket, undefined, { pauseMs: 5 });
    const before = running.openFds;
    for (let n = 0; n < 3; n++) {
      const testpmd = await twoPorts(MACS.map((mac) => ({ socket: running.socket, mac, inOrder: false })));
      try {
        await testpmd.startForwarding(1);
        await circles(testpmd, running);
        const mark = running.mark;
        await testpmd.kill9();
        for (const id of [2, 3]) await running.line(new RegExp(`^DATA: \\(${id}\\) Device has been removed$`), mark);
      } finally {
        await testpmd.stop();
      }
      await others.exchangesMore();
      await running.until('their descriptors to be closed', () => running.openFds === before);
    }
    const { longestMs } = await others.stop();
    assert.ok(longestMs < 2000, `they once waited ${longestMs} ms`);
    assert.doesNotMatch(running.output, /error|vring \d stopped/);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  } finally {
    await running.kill();
  }
});
