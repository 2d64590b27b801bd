/** The vhost-testpmd command on our switch: scripts, signals, its terminal, and how it ends. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { makeTempDir, PeerProcess, removeTempDir } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';
import { userPort } from './testpmd-engine.ts';
import { connectGuest, frame, macOf } from './traffic.ts';

const TESTPMD = fileURLToPath(new URL('../../src/cli/testpmd.ts', import.meta.url));
/** Time for everything that takes milliseconds, on a busy machine. */
const PATIENCE_MS = 20_000;

const programs = new Set<PeerProcess>();

/** A program that the test talks to. Whatever happens, it ends with the tests. */
class Talker {
  readonly process: PeerProcess;
  #mark = 0;

  constructor(command: string, args: readonly string[]) {
    this.process = new PeerProcess({ name: 'testpmd', command, args });
    programs.add(this.process);
  }

  /** Waits until it has printed what matches since the last match, and returns what it has printed up to there. */
  async hears(pattern: RegExp): Promise<string> {
    let text = '';
    const look = () => {
      text = this.process.outputSince(this.#mark);
      return pattern.test(text);
    };
    await this.process.waitUntil(`something like ${pattern}`, look, PATIENCE_MS);
    const { index, 0: found } = pattern.exec(text)!;
    this.#mark += index + found.length;
    return text.slice(0, index + found.length);
  }

  type(text: string): void {
    this.process.write(text);
  }

  /** Says a command, and waits for the next prompt. @returns what the command said */
  async does(command: string): Promise<string> {
    this.type(`${command}\n`);
    await this.hears(new RegExp(`testpmd> ${command}\r?\n`));
    const said = await this.hears(/testpmd> $/);
    // this prompt is the one that the next command comes behind
    this.#mark -= 'testpmd> '.length;
    return said;
  }

  async ended(): Promise<string> {
    assert.ok(await this.process.endsWithin(PATIENCE_MS), `it does not end:\n${this.process.lastLines()}`);
    return this.process.ended;
  }
}

const testpmd = (...args: string[]) => new Talker(process.execPath, [TESTPMD, ...args]);

/** Two ports on one switch, which send each other what they receive. */
const circle = (socket: string) => [
  ...['--vdev', userPort(0, socket, { mac: macOf(1) }), '--vdev', userPort(1, socket, { mac: macOf(2) }), '--'],
  ...['--forward-mode=mac', `--eth-peer=0,${macOf(2)}`, `--eth-peer=1,${macOf(1)}`],
];

/** RX-packets of a port in a block of statistics. */
const received = (text: string, port: number) =>
  Number(new RegExp(`statistics for port ${port} .*\\r?\\n  RX-packets: (\\d+) `).exec(text)?.[1]);

describe('the vhost-testpmd command', { timeout: 240_000 }, () => {
  let dir: string;
  before(() => {
    dir = makeTempDir('testpmd');
  });
  after(async () => {
    for (const program of programs) {
      program.killNow();
      await program.ended;
    }
    removeTempDir(dir);
  });

  test('commands through a pipe: packets go round, and are counted', async () => {
    const running = await SwitchProcess.start();
    try {
      const program = testpmd(...circle(running.socket), '-i');
      await program.hears(/Port 1: 52:54:00:00:00:02\nChecking link statuses...\nDone\ntestpmd> $/);
      program.type('start tx_first 2\n');
      await program.hears(/streams=2[\s\S]*testpmd> /);
      let text = '';
      const moving = async () => {
        program.type('show port stats all\n');
        text = await program.hears(/port 1 [\s\S]*Tx-pps:.*\n {2}#+\ntestpmd> /);
        return received(text, 0) > 500 && received(text, 1) > 500;
      };
      await program.process.waitUntil('packets', moving, PATIENCE_MS);
      program.type('stop\n');
      const stopped = await program.hears(/Done\.\n/);
      assert.ok(received(stopped, 0) >= received(text, 0), stopped);
      const total = Number(/all ports\++\n {2}RX-packets: (\d+) /.exec(stopped)?.[1]);
      assert.equal(total, received(stopped, 0) + received(stopped, 1));
      program.type('quit\n');
      assert.equal(await program.ended(), 'ended with status 0');
      assert.match(program.process.lastLines(), /Port 1 is closed\nDone\n\nBye...$/);
    } finally {
      await running.stop();
    }
  });

  test('a port whose back end goes and comes is told above the prompt, and forwards again', async () => {
    const first = await SwitchProcess.start([], { dir });
    const program = testpmd(...circle(first.socket), '-i', '--auto-start', '--tx-first');
    await program.hears(/testpmd> $/);
    await first.kill();
    const down = await program.hears(
      /Port \d: link state change event: down[\s\S]*Port \d: link state change event: down.*\n/,
    );
    assert.match(down, /event: down: \S.*\n/);
    const second = await SwitchProcess.start([], { dir });
    try {
      await program.hears(/event: up at Unknown\n[\s\S]*event: up at Unknown\ntestpmd> /);
      program.process.endInput();
      assert.equal(await program.ended(), 'ended with status 0');
    } finally {
      await second.stop();
    }
  });

  test('commands of a file: a port sends back what a guest sends; SIGINT ends it', async () => {
    const running = await SwitchProcess.start();
    const script = join(dir, 'commands');
    writeFileSync(script, '# sends back\nset fwd macswap\nset nothing\nstart\n');
    const card = await connectGuest({ path: running.socket, mac: macOf(1) });
    try {
      const vdev = userPort(0, running.socket, { mac: macOf(9) });
      const program = testpmd('--vdev', vdev, '--', '-i', '--cmdline-file', script);
      await program.hears(/commands:3: Bad arguments: after "set" expected .*; found "nothing"\n/);
      await program.hears(/macswap packet forwarding - ports=1[\s\S]*Read CLI commands from .*\ntestpmd> $/);
      const sent = frame(macOf(9), macOf(1), 5);
      card.send(sent);
      card.flush();
      const back = await card.waitFrame(PATIENCE_MS);
      const expected = sent.slice();
      expected.set([...sent.subarray(6, 12), ...sent.subarray(0, 6)]);
      assert.deepEqual(back && [...back], [...expected]);
      program.process.signal('SIGINT');
      assert.equal(await program.ended(), 'ended with status 0');
      const end = await program.hears(/Bye...\n$/);
      assert.match(end, /statistics for port 0 .*\n {2}RX-packets: 1 .*\n {2}TX-packets: 1 /);
    } finally {
      await card.close();
      await running.stop();
    }
  });

  test('without a prompt it forwards, shows statistics, and ends at Enter', async () => {
    const running = await SwitchProcess.start();
    try {
      const program = testpmd(...circle(running.socket), '--tx-first', '--stats-period', '1');
      await program.hears(/No commandline core given, start packet forwarding\n/);
      await program.hears(/Port statistics =+\n\n[\s\S]*Port statistics =+\n\n[\s\S]*port 1 /);
      program.type('\n');
      assert.equal(await program.ended(), 'ended with status 0');
      const other = testpmd(...circle(running.socket));
      await other.hears(/Press enter to exit\n/);
      other.process.endInput();
      assert.equal(await other.ended(), 'ended with status 0');
    } finally {
      await running.stop();
    }
  });

  test('SIGTERM while it waits for a back end ends it, and leaves no socket', async () => {
    const socket = join(dir, 'server');
    const program = testpmd('--vdev', userPort(0, socket, { server: 1 }), '--', '-i');
    await program.hears(/testpmd: net_virtio_user0: waiting for a back end to connect to .*server\n/);
    assert.ok(existsSync(socket));
    program.process.signal('SIGTERM');
    assert.equal(await program.ended(), 'ended with status 0');
    assert.ok(!existsSync(socket));
  });

  test('as a server it waits for the switch, which is a client', async () => {
    const socket = join(dir, 'server2');
    const program = testpmd('--vdev', userPort(0, socket, { server: 1, mac: macOf(3) }), '--', '-i');
    await program.hears(/waiting for a back end/);
    const running = await SwitchProcess.start(['--client', '--socket-file', socket], {
      ...{ wholeLine: true, up: /device 0: ready/ },
    });
    try {
      assert.match(await program.does('show port summary 0'), /\n0 {4}52:54:00:00:00:03 .* up /);
      program.type('quit\n');
      assert.equal(await program.ended(), 'ended with status 0');
    } finally {
      await running.stop();
    }
  });

  test('on a terminal: history, completion, Ctrl-C, and the terminal as it was before', async () => {
    const running = await SwitchProcess.start();
    try {
      const words = [process.execPath, TESTPMD, ...circle(running.socket), '-i'].map((word) => `'${word}'`).join(' ');
      const shell = `stty -g; ${words}; echo "status $?"; stty -g`;
      const program = new Talker('script', ['-qefc', shell, '/dev/null']);
      const before = /([\da-f]+(?::[\da-f]+)+)\r\n$/.exec(await program.hears(/(?::[\da-f]+)+\r\n/))?.[1];
      await program.hears(/testpmd> /);
      // a tab that comes together with other keys is none that was pressed
      for (const [keys, shown] of [
        ['se', /se$/],
        ['\t', /t $/],
        ['bur', /bur$/],
        ['\t', /st $/],
      ] as const) {
        program.type(keys);
        await program.hears(shown);
      }
      program.type('17\r');
      await program.hears(/Number of packets per burst set to 17\r\n/);
      await program.hears(/testpmd> /);
      program.type('\x1b[A\x7f8\r');
      await program.hears(/Number of packets per burst set to 18\r\n/);
      await program.hears(/testpmd> /);
      program.type('nonsense\x03set burst 19\r');
      await program.hears(/Number of packets per burst set to 19\r\n/);
      await program.hears(/testpmd> /);
      program.type('set bu');
      await program.hears(/bu$/);
      await running.kill();
      // above what is being typed, which comes again
      await program.hears(/Port \d: link state change event: down: \S.*\r\n.*testpmd> set bu/);
      await program.hears(/Port \d: link state change event: down: \S.*\r\n.*testpmd> set bu/);
      program.type('rst 20\r');
      await program.hears(/Number of packets per burst set to 20\r\n/);
      await program.hears(/testpmd> /);
      program.type('\x03');
      await program.hears(/Bye...\r\n[\s\S]*status 0\r\n/);
      const after = /^([\da-f]+(?::[\da-f]+)+)/.exec(await program.hears(/(?::[\da-f]+)+\r\n/))?.[1];
      assert.ok(before !== undefined && before.length > 20);
      assert.equal(after, before);
      assert.doesNotMatch(program.process.lastLines(200), /Command not found/);
      await program.ended();
    } finally {
      await running.kill();
    }
  });

  const run = (...args: string[]) =>
    spawnSync(process.execPath, [TESTPMD, ...args], { encoding: 'utf8', timeout: 20_000 });

  test('--help and --version', () => {
    const help = run('--help');
    assert.deepEqual([help.status, help.stderr], [0, '']);
    assert.match(help.stdout, /^usage: vhost-testpmd /);
    assert.match(run('--version').stdout, /^vhost-switch \d+\.\d+\.\d+\n$/);
  });

  test('wrong usage is one sentence and exit status 2', () => {
    for (const [args, sentence] of [
      ['-- -i', /--vdev: give at least one device/],
      ['--vdev net_null0 -- --brust=3', /--brust: unknown option; the nearest is --burst/],
      ['--vdev net_virtio_user0,pth=/x -- -i', /net_virtio_user has no key "pth"; the nearest is path/],
    ] as const) {
      const { status, stdout, stderr } = run(...args.split(' '));
      assert.deepEqual([status, stdout], [2, ''], stderr);
      assert.match(stderr, sentence);
      assert.match(stderr, /^vhost-testpmd: [^\n]+\nTry 'vhost-testpmd --help'\.\n$/);
    }
  });

  test('the peers of the ports come from a file, those of the command line before them', () => {
    const peers = join(dir, 'peers');
    writeFileSync(peers, '00:11:22:33:44:55\n\nAA:bb:cc:dd:ee:f0\n02:00:00:00:00:07\n');
    const ports = ['--vdev', 'net_null0', '--vdev', 'net_null1', '--'];
    const commands = join(dir, 'show');
    writeFileSync(commands, 'show config fwd\nquit\n');
    const shown = (...args: string[]) =>
      [...run(...ports, ...args, '--cmdline-file', commands).stdout.matchAll(/peer=(\S+)/g)].map(([, mac]) => mac);
    assert.deepEqual(shown('--eth-peers-configfile', peers), ['AA:BB:CC:DD:EE:F0', '00:11:22:33:44:55']);
    assert.deepEqual(shown('--eth-peers-configfile', peers, '--eth-peer', '1,02:00:00:00:00:09'), [
      ...['02:00:00:00:00:09', '00:11:22:33:44:55'],
    ]);
    writeFileSync(peers, '00:11:22:33:44:55\nnonsense\n');
    const { status, stderr } = run(...ports, '-i', '--eth-peers-configfile', peers);
    assert.notEqual(status, 0);
    assert.match(stderr, /^vhost-testpmd: --eth-peers-configfile: [^\n]*peers: Bad MAC address format on line 2\n/);
  });

  test('a failure is one sentence and exit status 1', () => {
    const nobody = run('--vdev', userPort(0, join(dir, 'nobody')), '--', '-i');
    assert.deepEqual([nobody.status, nobody.stdout], [1, '']);
    assert.match(nobody.stderr, /^vhost-testpmd: connect .*nobody: ENOENT: [^\n]+\n$/);
    const script = run('--vdev', userPort(0, join(dir, 'nobody')), '--', '-i', '--cmdline-file', join(dir, 'missing'));
    assert.equal(script.status, 1);
    assert.match(script.stderr, /^vhost-testpmd: [^\n]*missing[^\n]*\n$/);
    const endless = run('--vdev', userPort(0, join(dir, 'nobody')), '--', '--cmdline-file', '/dev/zero');
    assert.match(endless.stderr, /^vhost-testpmd: \/dev\/zero: a file of commands has 1048576 bytes at most\n$/);
  });
});
