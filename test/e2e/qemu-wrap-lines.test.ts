/** Every command line of qemu-wrap's golden files, as it comes out, is started by a real QEMU on a real switch. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parseLine, QEMU_FLAGS } from '../../src/launch/qemu-line.ts';
import { CASE_FILES, type CommandCase, readCases, rewriteFor, settingsOf } from '../kit/command-cases.ts';
import { PASSED_FD, runnable } from '../kit/runnable-line.ts';
import { guestImage } from '../peers/guest-image.ts';
import { ensurePeers } from '../peers/packages.ts';
import { PeerProcess } from '../peers/process.ts';
import { QmpClient } from '../peers/qmp.ts';
import { SwitchProcess } from './switch-process.ts';

const [leftOut] = (await ensurePeers(['qemu'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const START_MS = 60_000;

/** Those that come to a line of options, are for PCs, and need no character device of the switch. */
const cases = CASE_FILES.flatMap(readCases).filter(
  ({ command, expected }) => !expected.startsWith('error: ') && !/--cuse |qemu-system-(?!x86_64)/.test(command),
);

describe('QEMU takes what qemu-wrap makes of', { skip, concurrency: 2, timeout: 280_000 }, () => {
  let running: SwitchProcess;
  let kernel: string;

  before(async () => {
    ({ kernel } = await guestImage());
    running = await SwitchProcess.start();
  });
  after(() => running?.kill());

  test('which options have a value is known', () => {
    const help = execFileSync('qemu-system-x86_64', ['-help'], { encoding: 'utf8' });
    const names = new Set([...help.matchAll(/^--?([\w-]+)/gm)].map(([, name]) => name));
    assert.ok(names.size > 80);
    // the words are taken apart first, which fails for a last one that lacks its value; then -version ends QEMU
    const lacksValue = (name: string) =>
      spawnSync('qemu-system-x86_64', ['-version', `-${name}`], { encoding: 'utf8' }).stderr.includes(
        'requires an argument',
      );
    for (const name of names) assert.equal(!QEMU_FLAGS.has(name), lacksValue(name), name);
  });

  cases.forEach((one, index) => {
    test(one.title, () => start(one, join(running.dir, `case${index}`)));
  });

  async function start(one: CommandCase, dir: string): Promise<void> {
    mkdirSync(dir);
    const { args } = rewriteFor(settingsOf(one));
    const line = parseLine(args);
    const asks = line.some(({ name, value }) => name === 'device' && value === 'help');
    const socket = join(dir, 'm');
    const more = asks ? [] : ['-S', '-display', 'none', '-qmp', `unix:${socket},server=on,wait=off`];
    const words = ['qemu-system-x86_64', ...runnable(args, { dir, kernel, socket: running.socket }), ...more];
    const qemu = new PeerProcess({
      name: 'QEMU',
      command: 'sh',
      args: ['-c', `exec ${PASSED_FD}>>log; exec "$@"`, 'sh', ...words],
      cwd: dir,
    });
    const monitor = new QmpClient(socket);
    try {
      if (asks) {
        assert.ok(await qemu.endsWithin(START_MS));
      } else {
        await qemu.waitUntil('its monitor', () => existsSync(socket), START_MS);
        const memory = (await monitor.execute('query-memdev', {}, START_MS)) as { id: string; share: boolean }[];
        const networks = await monitor.execute('human-monitor-command', { 'command-line': 'info network' }, START_MS);
        const cards = String(networks).match(/type=vhost-user,/g)?.length ?? 0;
        const served = line.filter(
          ({ name, value = '' }) => /^(netdev|nic)$/.test(name) && value.includes('vhost-user'),
        );
        const queues = served.map(({ value = '' }) => Number(/queues=(\d+)/.exec(value)?.[1] ?? 1));
        assert.equal(
          cards,
          queues.reduce((sum, count) => sum + count, 0),
          String(networks),
        );
        if (cards > 0) for (const { id, share } of memory) assert.ok(share, `memory ${id} is private`);
        await monitor.execute('quit');
        await qemu.endsWithin(START_MS);
      }
      assert.equal(qemu.endedHow, 'ended with status 0', qemu.lastLines());
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${qemu.lastLines()}\n${words.join(' ')}`, { cause: error });
    } finally {
      monitor.close();
      await qemu.stop();
    }
  }
});
