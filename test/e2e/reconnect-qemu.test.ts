/** Linux guests in QEMU, and a switch that dies and comes back: whichever side listens, and whichever is there first. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { QemuGuest } from '../peers/qemu.ts';
import { assertPing, untilPing } from './guests.ts';
import { SwitchProcess } from './switch-process.ts';
import { macOf } from './traffic.ts';

const [leftOut] = (await ensurePeers(['qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const IP_A = '10.0.0.1';
const IP_B = '10.0.0.2';

/** Packets without an answer awaited, from one guest to the other, until the next {@link quiet}. */
const flood = (from: QemuGuest, ip: string) => from.sh(`ping -i 0.002 -s 1000 ${ip} >/dev/null 2>&1 &`);
const quiet = (guest: QemuGuest) => guest.sh('killall ping');

describe('QEMU with reconnect=1 on a switch that is restarted', { skip, timeout: 120_000 }, () => {
  let dir: string;
  let running: SwitchProcess;
  let a: QemuGuest;
  let b: QemuGuest;

  const startSwitch = () => SwitchProcess.start([], { dir });
  const newGuest = (name: string, mac: string, ip: string) =>
    new QemuGuest({ name, socket: join(dir, 'sock'), mac, ip: `${ip}/24`, reconnect: 1 });

  before(async () => {
    dir = makeTempDir('reconnect');
    a = newGuest('a', macOf(1), IP_A);
    b = newGuest('b', macOf(2), IP_B);
    await Promise.all([a.launch(), b.launch()]);
    running = await startSwitch();
    await Promise.all([a.waitReady(), b.waitReady()]);
  });
  after(async () => {
    await Promise.all([a?.stop(), b?.stop()]);
    await running?.kill();
    removeTempDir(dir);
  });

  test('guests that were started before the switch boot when it is there', async () => {
    await assertPing(a, IP_B);
    await assertPing(b, IP_A, '-s 1400');
  });

  for (const how of ['stopped by SIGTERM', 'killed']) {
    test(`the switch is ${how} in mid-traffic and started again: the guests reach each other again`, async () => {
      await flood(a, IP_B);
      await flood(b, IP_A);
      if (how === 'killed') await running.kill();
      else assert.equal(await running.stop('SIGTERM'), 'ended with status 0', running.output);
      running = await startSwitch();
      await untilPing(a, IP_B);
      await Promise.all([quiet(a), quiet(b)]);
      await assertPing(a, IP_B, '-s 1400');
      await assertPing(b, IP_A);
      assert.doesNotMatch(running.output, /error|vring \d stopped/);
    });
  }

  test('a guest that was reset while there was no switch comes back with it', async () => {
    await running.kill();
    await b.qmp('system_reset');
    running = await startSwitch();
    await b.waitReady();
    await untilPing(a, IP_B);
    await assertPing(b, IP_A);
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});

describe('QEMU that listens, and a switch with --client', { skip, timeout: 120_000 }, () => {
  let dir: string;
  let running: SwitchProcess;
  let a: QemuGuest;
  let b: QemuGuest;

  const socketOf = (name: string) => join(dir, name);
  const startSwitch = () => {
    const args = ['--client', '--socket-file', socketOf('a'), '--socket-file', socketOf('b')];
    return SwitchProcess.start(args, { dir, wholeLine: true, up: /waiting for a front end/ });
  };
  const newGuest = (name: string, mac: string, ip: string) =>
    new QemuGuest({ name, socket: socketOf(name), mac, ip: `${ip}/24`, server: true });

  before(async () => {
    dir = makeTempDir('client');
    a = newGuest('a', macOf(1), IP_A);
    b = newGuest('b', macOf(2), IP_B);
    // one is there before the switch, and one comes later
    await a.launch();
    running = await startSwitch();
    await running.line(/a: device \d: connected$/, 0, 30_000);
    await b.launch();
    await Promise.all([a.waitReady(), b.waitReady()]);
  });
  after(async () => {
    await Promise.all([a?.stop(), b?.stop()]);
    await running?.kill();
    removeTempDir(dir);
  });

  test('guests boot whether the switch or QEMU was there first, and reach each other', async () => {
    await assertPing(a, IP_B);
    await assertPing(b, IP_A, '-s 1400');
    assert.doesNotMatch(running.output, /warn|error/);
  });

  for (const how of ['stopped by SIGTERM', 'killed']) {
    test(`the switch is ${how} in mid-traffic and started again: the guests reach each other again`, async () => {
      await flood(a, IP_B);
      await flood(b, IP_A);
      if (how === 'killed') await running.kill();
      else assert.equal(await running.stop('SIGTERM'), 'ended with status 0', running.output);
      running = await startSwitch();
      await untilPing(a, IP_B);
      await Promise.all([quiet(a), quiet(b)]);
      await assertPing(b, IP_A, '-s 1400');
      assert.doesNotMatch(running.output, /error|vring \d stopped/);
    });
  }

  test('QEMU is killed in mid-traffic, and the switch finds the next one on the same socket', async () => {
    const mark = running.mark;
    await flood(a, IP_B);
    await b.kill9();
    await running.line(/b: device \d: disconnected$/, mark);
    await running.line(/b: waiting for a front end that listens on it$/, mark);
    await b.stop();
    b = newGuest('b', macOf(2), IP_B);
    await b.start();
    await untilPing(a, IP_B);
    await quiet(a);
    await assertPing(b, IP_A);
    const said = running.since(mark).match(/VHOST_CONFIG: .*\/b: (waiting|.*connected)/g) ?? [];
    assert.equal(said.length, 3, said.join('\n'));
    assert.equal(await running.stop(), 'ended with status 0', running.output);
  });
});
