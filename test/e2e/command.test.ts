/** The command: what it refuses, the sockets it makes, and how it ends. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { lstatSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { bindUnix } from '../../src/sys/unix-socket.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { MAIN, runSwitch, SwitchProcess } from './switch-process.ts';
import { assertDelivered, Conversation, connectGuest, frame, macOf } from './traffic.ts';

const isRoot = process.getuid?.() === 0;

describe('the vhost-switch command', { timeout: 300_000 }, () => {
  let dir: string;
  before(() => {
    dir = makeTempDir('command');
  });
  after(() => removeTempDir(dir));

  test('--help names every option and exits 0', () => {
    const { status, stdout, stderr } = runSwitch(['--help']);
    assert.equal(status, 0);
    assert.equal(stderr, '');
    const options = `-c -l -n -m -a -p -P -v --lcores --main-lcore --socket-mem --huge-dir --file-prefix --no-huge --no-pci --vdev
      --vm2vm --rx-retry --rx-retry-num --rx-retry-delay --mergeable --vlan-strip --stats --dev-basename --dev-index --zero-copy
      --rx-desc-num --tx-desc-num --socket-file --client --tx-csum --tso --total-num-mbufs --dmas --builtin-net-driver
      --learning --poll --seconds --socket-mode --socket-owner --socket-group --max-devices --help --version`;
    for (const option of options.split(/\s+/)) {
      assert.match(stdout, new RegExp(`(^|[\\s,])${option}([\\s,]|$)`, 'm'), option);
    }
  });

  test('--version says which version this is and exits 0', () => {
    const { status, stdout } = runSwitch(['--version']);
    assert.equal(status, 0);
    assert.match(stdout, /^vhost-switch \d+\.\d+\.\d+\n$/);
  });

  const refusals: [args: string, sentence: RegExp][] = [
    ['-p 1', /-p: enables port 0, but there is no port; name one with --vdev or -a/],
    ['--vdev net_tup0', /--vdev net_tup0: no such kind of device; the nearest is net_tap0/],
    ['--vdev net_af_packet0', /--vdev net_af_packet0: needs iface=…/],
    ['--vm2vm 0 --zero-copy 1', /--zero-copy 1: zero copy is not in this version yet; leave --zero-copy out/],
    ['--zero-copy 1', /--zero-copy 1: not with software switching between guests/],
    ['--client', /--client: needs a socket to connect to; give --socket-file/],
    ['--client --socket-file s --socket-mode 600', /--socket-mode: not with --client/],
    ['--vm2vm 2', /--vm2vm 2: hardware switching needs an uplink; name one with --vdev/],
    ['--mergeable 2', /--mergeable: invalid value "2"; valid: 0\|1/],
    ['--sockets', /--sockets: unknown option; the nearest is --socket-/],
    ['surprise', /surprise: belongs to no option/],
  ];
  for (const [args, sentence] of refusals) {
    test(`\`${args}\` is refused in one sentence with exit status 2`, () => {
      const { status, stdout, stderr } = runSwitch(args.split(' '), dir);
      assert.equal(status, 2, stderr);
      assert.equal(stdout, '');
      assert.match(stderr, sentence);
      assert.match(stderr, /^vhost-switch: [^\n]+\nTry 'vhost-switch --help'\.\n$/);
      assert.deepEqual(readdirSync(dir), []);
    });
  }

  test('a CPU that is not there exits 1, says which may be used, and leaves no socket', () => {
    const { status, stderr } = runSwitch(['-l', '1023', '--', '--socket-file', join(dir, 'sock')]);
    assert.equal(status, 1);
    assert.match(stderr, /^vhost-switch: cannot run on CPU 1023: this process may use CPUs [\d,-]+\n$/);
    assert.deepEqual(readdirSync(dir), []);
  });

  test('EAL options without a meaning are said once, and the switch runs for the seconds it is told', () => {
    const eal = [
      '-l',
      '0',
      '-n',
      '4',
      '--socket-mem',
      '1024',
      '--huge-dir',
      '/mnt/huge',
      '--file-prefix',
      'vs',
      '--no-pci',
    ];
    const from = performance.now();
    const { status, stderr } = runSwitch([...eal, '--', '--seconds', '1', '--rx-retry-num', '2'], dir);
    assert.equal(status, 0, stderr);
    assert.ok(performance.now() - from >= 1000);
    const told = stderr.split('\n').filter((line) => /ignored|no effect/.test(line));
    assert.equal(told.length, 2, stderr);
    for (const option of ['-n 4', '--socket-mem 1024', '--huge-dir /mnt/huge', '--file-prefix vs', '--no-pci']) {
      assert.ok(told[0].includes(option), `${option} in: ${told[0]}`);
    }
    assert.match(told[1], /--rx-retry-num 2: no effect/);
    assert.match(stderr, /listening on vhost-net$/m, 'the socket is called as in the sample');
    assert.deepEqual(readdirSync(dir), [], 'the socket is gone');
  });

  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    test(`${signal} ends a switch with and without guests, under traffic, and removes all its sockets`, async () => {
      const running = await SwitchProcess.start(['--socket-file', 'second', '--dev-basename', 'third'], { dir });
      try {
        for (const name of ['sock', 'second', 'third']) assert.ok(lstatSync(join(dir, name)).isSocket(), name);
        const quiet = await connectGuest({ path: join(dir, 'second'), mac: macOf(9) });
        const talk = await Conversation.start(running.socket, undefined, { pauseMs: 0 });
        await talk.exchangesMore(100);
        assert.equal(await running.stop(signal), 'ended with status 0', running.output);
        assert.deepEqual(readdirSync(dir), []);
        assert.equal(quiet.connected, false);
        await assert.rejects(talk.stop(), /the back end has gone|is full|broke/);
        await quiet.close();
      } finally {
        await running.kill();
      }
    });
  }

  test('it ends as fast after a second of load, and a second signal at once does no harm', async () => {
    const running = await SwitchProcess.start(['--poll', 'busy', '--stats', '1']);
    const talks = await Promise.all(
      [1, 3].map((n) => Conversation.start(running.socket, [macOf(n), macOf(n + 1)], { pauseMs: 0 })),
    );
    await sleep(1000);
    const from = performance.now();
    running.signal('SIGTERM');
    const how = await running.stop('SIGINT');
    assert.ok(performance.now() - from < 3000, `it took ${performance.now() - from} ms`);
    assert.match(how, /^ended (with status 0|by SIGINT)$/);
    await Promise.all(talks.map((talk) => assert.rejects(talk.stop())));
  });

  test('a socket that a killed switch left behind is replaced', async () => {
    const killed = await SwitchProcess.start([], { dir });
    await killed.kill();
    assert.ok(lstatSync(killed.socket).isSocket());
    const next = await SwitchProcess.start([], { dir });
    try {
      const a = await connectGuest({ path: next.socket });
      await a.close();
    } finally {
      assert.equal(await next.stop(), 'ended with status 0');
    }
    assert.deepEqual(readdirSync(dir), []);
  });

  test('a socket that another switch listens on is refused, and goes on working', async () => {
    const first = await SwitchProcess.start([], { dir });
    try {
      const { status, stderr } = runSwitch(['--socket-file', join(dir, 'other'), '--socket-file', first.socket]);
      assert.equal(status, 1);
      assert.match(stderr, /another program already listens on .*sock: stop it, or choose another --socket-file/);
      assert.deepEqual(readdirSync(dir), ['sock'], 'the socket that it could have had is gone');
      const a = await connectGuest({ path: first.socket });
      await a.close();
    } finally {
      await first.kill();
      removeLeftovers(dir);
    }
  });

  test("a file that is no socket is refused and left alone; so is another program's bound socket when it is taken over", async () => {
    const file = join(dir, 'precious');
    writeFileSync(file, 'mine');
    const { status, stderr } = runSwitch(['--socket-file', file]);
    assert.equal(status, 1);
    assert.match(stderr, /precious exists and is not a socket: remove it, or choose another --socket-file/);
    assert.equal(statSync(file).size, 4);
    removeLeftovers(dir);

    const running = await SwitchProcess.start([], { dir });
    try {
      removeLeftovers(dir);
      bindUnix(running.socket); // somebody else's now
      assert.equal(await running.stop(), 'ended with status 0');
      assert.deepEqual(readdirSync(dir), ['sock'], 'what is not its own it does not remove');
    } finally {
      await running.kill();
      removeLeftovers(dir);
    }
  });

  test('a folder that is not there is an error that names the path', () => {
    const { status, stderr } = runSwitch(['--socket-file', join(dir, 'missing', 'sock')]);
    assert.equal(status, 1);
    assert.match(stderr, /^vhost-switch: .*missing\/sock.*\n$/);
  });

  test('sockets get the mode and the owner asked for', {
    skip: !isRoot && 'only root may give files away',
  }, async () => {
    const asDefault = await SwitchProcess.start();
    assert.equal(statSync(asDefault.socket).mode & 0o777, 0o660);
    await asDefault.stop();
    const running = await SwitchProcess.start([
      '--socket-mode',
      '0606',
      '--socket-owner',
      'nobody',
      '--socket-group',
      '54321',
    ]);
    const { mode, uid, gid } = statSync(running.socket);
    assert.equal(await running.stop(), 'ended with status 0');
    assert.deepEqual({ mode: mode & 0o777, uid, gid }, { mode: 0o606, uid: 65534, gid: 54321 });
    const { status, stderr } = runSwitch(['--socket-owner', 'no-such-user'], dir);
    assert.equal(status, 1);
    assert.match(stderr, /no user named no-such-user/);
    assert.deepEqual(readdirSync(dir), []);
  });

  test('it goes on when nobody reads what it prints', async () => {
    const path = join(dir, 'sock');
    const child = spawn(process.execPath, [MAIN, '--socket-file', path, '--stats', '1', '--seconds', '4']);
    const ended = once(child, 'exit');
    try {
      await once(child.stderr, 'data');
      child.stdout.destroy();
      child.stderr.destroy();
      const talk = await Conversation.start(path);
      await sleep(2500);
      await talk.exchangesMore();
      await talk.stop();
      assert.deepEqual(await ended, [0, null]);
      assert.deepEqual(readdirSync(dir), []);
    } finally {
      child.kill('SIGKILL');
    }
  });

  test('guests on different sockets of one switch reach each other', async () => {
    const running = await SwitchProcess.start(['--socket-file', 'second', '--poll', 'busy']);
    const a = await connectGuest({ path: running.socket, mac: macOf(1) });
    const b = await connectGuest({ path: running.path('second'), mac: macOf(2) });
    await assertDelivered(a, b, [frame(b.mac, a.mac)]);
    await assertDelivered(b, a, [frame(a.mac, b.mac)]);
    await running.line(/second: device 1: ready/);
    await running.line(/^DATA: \(0\) MAC_ADDRESS 52:54:00:00:00:01 and VLAN_TAG 1000 registered$/);
    await running.line(/^DATA: \(1\) MAC_ADDRESS 52:54:00:00:00:02 and VLAN_TAG 1001 registered$/);
    await Promise.all([a.close(), b.close()]);
    assert.equal(await running.stop(), 'ended with status 0');
  });
});

function removeLeftovers(dir: string): void {
  for (const name of readdirSync(dir)) rmSync(join(dir, name));
}
