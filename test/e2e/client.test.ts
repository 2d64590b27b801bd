/** The switch, and a host of one's own, as a client: how they wait, and how they end. */
import assert from 'node:assert/strict';
import { closeSync, readdirSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { VhostHost } from '../../src/control/vhost-host.ts';
import { acceptUnix, bindUnix, startListening } from '../../src/sys/unix-socket.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { makeTempDir, removeTempDir, waitUntil } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';

/** A socket on which front ends listen. */
class Listener {
  readonly path: string;
  readonly #fd: number;

  constructor(path: string) {
    this.path = path;
    this.#fd = bindUnix(path);
    startListening(this.#fd, 1);
  }

  /** The next connection, with a front end that has said its first word and heard the answer. */
  async frontEnd(): Promise<FrontEnd> {
    let fd: number | undefined;
    const accepted = () => {
      fd = acceptUnix(this.#fd);
      return fd !== undefined;
    };
    await waitUntil('somebody to connect', accepted, 10_000);
    const frontEnd = new FrontEnd(fd as number);
    assert.notEqual(await frontEnd.getFeatures(), 0n);
    return frontEnd;
  }

  /** Goes, and leaves the file behind. */
  die(): void {
    closeSync(this.#fd);
  }
}

describe('a client', { timeout: 60_000 }, () => {
  let dir: string;
  before(() => {
    dir = makeTempDir('client');
  });
  after(() => removeTempDir(dir));

  const startSwitch = (names: readonly string[]) => {
    const sockets = names.flatMap((name) => ['--socket-file', join(dir, name)]);
    return SwitchProcess.start(['--client', ...sockets], { dir, wholeLine: true, up: /waiting for a front end/ });
  };

  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    test(`${signal} ends a switch that waits: for nobody, and for one who never answers`, async () => {
      const listener = new Listener(join(dir, 'mute'));
      const running = await startSwitch(['nobody', 'mute']);
      try {
        for (const name of ['nobody', 'mute']) await running.line(new RegExp(`/${name}: waiting for a front end`));
        const from = performance.now();
        assert.equal(await running.stop(signal), 'ended with status 0', running.output);
        assert.ok(performance.now() - from < 3000, `it took ${performance.now() - from} ms`);
        assert.deepEqual(readdirSync(dir), ['mute'], 'it creates and removes no file');
      } finally {
        await running.kill();
        listener.die();
        unlinkSync(listener.path);
      }
    });
  }

  test('a switch serves a front end on each socket, at whatever time each comes and goes', async () => {
    const running = await startSwitch(['a', 'b']);
    try {
      const before = running.openFds;
      for (const [first, second] of ['ab', 'ba', 'ab']) {
        const listeners = [first, second].map((name) => new Listener(join(dir, name)));
        const one = await listeners[0].frontEnd();
        const two = await listeners[1].frontEnd();
        const mark = running.mark;
        one.close();
        listeners[0].die();
        await running.line(new RegExp(`/${first}: device \\d: disconnected$`), mark);
        assert.notEqual(await two.getFeatures(), 0n);
        two.close();
        listeners[1].die();
        await running.line(new RegExp(`/${second}: device \\d: disconnected$`), mark);
        await running.until('its descriptors to be closed', () => running.openFds === before);
        for (const { path } of listeners) unlinkSync(path);
      }
      assert.doesNotMatch(running.output, /error/);
      assert.equal(await running.stop(), 'ended with status 0', running.output);
    } finally {
      await running.kill();
    }
  });

  test('a host of one’s own has a port for as long as a front end is there', async () => {
    const before = readdirSync('/proc/self/fd').length;
    const path = join(dir, 'host');
    const host = new VhostHost({ path, client: true });
    const events: string[] = [];
    host.on('created', (port) => events.push(`created ${port.id}`));
    host.on('destroyed', (port) => events.push(`destroyed ${port.id}`));
    for (let n = 1; n <= 2; n++) {
      const listener = new Listener(path);
      const frontEnd = await listener.frontEnd();
      assert.equal(events.length, 2 * n - 1);
      frontEnd.close();
      await waitUntil('the port to go', () => events.length === 2 * n, 5000);
      listener.die();
      unlinkSync(path);
    }
    assert.deepEqual(events, ['created 0', 'destroyed 0', 'created 0', 'destroyed 0']);
    await host.close();
    assert.equal(readdirSync('/proc/self/fd').length, before);
  });
});
