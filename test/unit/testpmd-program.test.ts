/** testpmd from the banner to the end, with commands through a pipe, and an engine that does nothing. */
import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ProgramOptions, runTestpmd } from '../../src/testpmd/program.ts';
import { FakeEngine } from '../kit/fake-engine.ts';

const DEADLINE_MS = 20_000;

function open(options: Partial<ProgramOptions>, prepare: (engine: FakeEngine) => void = () => {}) {
  const engine = new FakeEngine(['06:00:00:00:00:0a', '06:00:00:00:00:0b']);
  prepare(engine);
  const [input, output] = [new PassThrough(), new PassThrough()];
  let text = '';
  output.setEncoding('utf8').on('data', (more: string) => {
    text += more;
  });
  const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
  const all = {
    interactive: true,
    autoStart: false,
    txFirst: 0,
    statsPeriod: 0,
    topology: 'paired',
    lcores: [1],
  } as const;
  const ended = runTestpmd(engine, { ...all, ...options }, { input, output }, stopped);
  /** Waits until it has printed something that matches. */
  const printed = async (pattern: RegExp) => {
    for (const end = Date.now() + DEADLINE_MS; !pattern.test(text); await sleep(5)) {
      assert.ok(Date.now() < end, `no ${pattern} in:\n${text}`);
    }
  };
  return { engine, input, ended, stop, printed, text: () => text };
}

const BANNER = `Configuring Port 0 (socket 0)
Port 0: 06:00:00:00:00:0A
Configuring Port 1 (socket 0)
Port 1: 06:00:00:00:00:0B
Checking link statuses...
Done
`;

const FAREWELL = `
Stopping port 0...
Stopping ports...
Done

Stopping port 1...
Stopping ports...
Done

Shutting down port 0...
Closing ports...
Port 0 is closed
Done

Shutting down port 1...
Closing ports...
Port 1 is closed
Done

Bye...
`;

test('testpmd program: a script through a pipe reads like a session at the prompt', async () => {
  const { input, ended, engine, text } = open({});
  input.end('set fwd mac\nnonsense\nset burst 8\nquit\nset burst 9\n');
  await ended;
  assert.equal(
    text(),
    `Interactive-mode selected
${BANNER}testpmd> set fwd mac
Set mac packet forwarding mode
testpmd> nonsense
Command not found: nonsense; the nearest is "set", and "help" lists all
testpmd> set burst 8
Number of packets per burst set to 8
testpmd> quit
${FAREWELL}`,
  );
  assert.equal(engine.config.burst, 8);
  assert.equal(engine.closed, 1);
});

test('testpmd program: commands wait for each other, and the end of the input stops forwarding', async () => {
  const { input, ended, engine, text } = open({});
  const { promise, resolve } = Promise.withResolvers<void>();
  const start = engine.start.bind(engine);
  engine.start = async (txFirst) => {
    await promise;
    await start(txFirst);
  };
  input.end('start\nset fwd mac\nshow port summary 0');
  setImmediate(resolve);
  await ended;
  assert.deepEqual(engine.asked, ['start 0', 'stop', 'stop port 0', 'stop port 1', 'close']);
  assert.match(
    text(),
    /testpmd> show port summary 0\nNumber of available ports: 2\n[\s\S]*testpmd> \nTelling cores to stop/,
  );
});

test('testpmd program: a signal ends the prompt between two commands, and all is closed', async () => {
  const { input, ended, engine, stop, printed, text } = open({});
  const { promise, resolve } = Promise.withResolvers<void>();
  const start = engine.start.bind(engine);
  engine.start = async (txFirst) => {
    await promise;
    await start(txFirst);
  };
  await printed(/testpmd> $/);
  input.write('start tx_first\nset burst 9\n');
  await printed(/testpmd> start tx_first\n/);
  stop();
  setImmediate(resolve);
  await ended;
  assert.equal(engine.config.burst, 32);
  assert.deepEqual(engine.asked, ['start 1', 'stop', 'stop port 0', 'stop port 1', 'close']);
  assert.ok(text().endsWith(FAREWELL));
});

test('testpmd program: a link that changes is told above the prompt', async () => {
  const { input, ended, engine, printed, text } = open({});
  await printed(/testpmd> $/);
  engine.link(1, false, 'the back end has gone');
  await printed(/testpmd> \nPort 1: link state change event: down: the back end has gone\ntestpmd> $/);
  engine.link(1, true);
  await printed(/\nPort 1: link state change event: up at 10 Gbps\ntestpmd> $/);
  input.end();
  await ended;
  assert.ok(text().endsWith(FAREWELL));
});

test('testpmd program: a port that is down at the start is told, with the reason', async () => {
  const { input, ended, text } = open({}, ({ infos }) =>
    Object.assign(infos[1], { up: false, reason: 'nobody listens' }),
  );
  input.end('show port summary 1\n');
  await ended;
  assert.match(text(), /\nChecking link statuses...\nPort 1 Link down: nobody listens\nDone\n/);
  assert.match(text(), /\n1 {4}06:00:00:00:00:0B net_null1 {4}net_null {7}down {5}10 Gbps\n/);
});

test('testpmd program: --auto-start forwards before the prompt comes', async () => {
  const { input, ended, engine, text } = open({ autoStart: true, txFirst: 1 });
  input.end('stop\n');
  await ended;
  assert.equal(engine.asked[0], 'start 1');
  assert.match(text(), /packets\/burst=32\n[\s\S]*testpmd> stop\nTelling cores/);
});

test('testpmd program: without a prompt it forwards until Enter', async () => {
  const { input, ended, engine, printed, text } = open({ interactive: false, txFirst: 1 });
  await printed(/Press enter to exit\n$/);
  assert.equal(engine.forwarding, true);
  assert.match(text(), new RegExp(`^${BANNER.replaceAll(/[().]/g, '\\$&')}No commandline core given, start packet`));
  input.write('\n');
  await ended;
  assert.deepEqual(engine.asked, ['start 1', 'stop', 'stop port 0', 'stop port 1', 'close']);
  assert.match(text(), /exit\nTelling cores to stop...\nWaiting[\s\S]*\nDone.\n\nStopping port 0/);
});

test('testpmd program: without a prompt the end of the input or a signal ends it, too', async () => {
  const ways: ((program: ReturnType<typeof open>) => void)[] = [({ input }) => input.end(), ({ stop }) => stop()];
  for (const end of ways) {
    const program = open({ interactive: false });
    await program.printed(/Press enter/);
    end(program);
    await program.ended;
    assert.equal(program.engine.closed, 1);
  }
});

test('testpmd program: statistics at an interval, until Enter; the end of the input does not matter', async () => {
  const { input, ended, engine, printed, stop, text } = open({ interactive: false, statsPeriod: 1 });
  input.end();
  engine.counted[0].rxPackets = 77;
  await printed(/(\nPort statistics =+\n\n? *#+ NIC statistics for port 0 [\s\S]*){2}/);
  assert.match(
    text(),
    /\nPort statistics ====================================\n\n {2}#+ NIC statistics for port 0 {2}#+\n {2}RX-packets: 77 /,
  );
  assert.ok(!text().includes('\x1b'));
  stop();
  await ended;
  assert.ok(text().endsWith(FAREWELL));

  const other = open({ interactive: false, statsPeriod: 1 });
  other.input.write('\n');
  await other.ended;
  assert.equal(other.engine.closed, 1);
});

test('testpmd program: commands of a file come first, and its errors say where', async () => {
  const script = { name: 'cmds.txt', text: '# comment\nset fwd macswap\n\nfoo\nport stop 1\nport start 1\n' };
  const { input, ended, text } = open({ script });
  input.end('show config fwd\n');
  await ended;
  assert.match(
    text(),
    /Done\nSet macswap packet forwarding mode\ncmds.txt:4: Command not found: foo; [^\n]*\nStopping/,
  );
  assert.match(text(), /\nRead CLI commands from cmds.txt\ntestpmd> show config fwd\nmacswap packet forwarding /);
});

test('testpmd program: quit in a file ends the program', async () => {
  const { ended, engine, text } = open({ script: { name: 'f', text: 'quit\nstart\n' }, interactive: false });
  await ended;
  assert.deepEqual(engine.asked, ['stop port 0', 'stop port 1', 'close']);
  assert.ok(text().endsWith(FAREWELL));
});

test('testpmd program: streams that fail say so above the prompt, which stays', async () => {
  const { ended, engine, input, printed, text } = open({});
  await printed(/testpmd> $/);
  input.write('start\n');
  await printed(/packets\/burst=32\n[\s\S]*testpmd> $/);
  engine.fail('forwarding thread 0: TypeError: out of bounds');
  await printed(
    /\nPacket forwarding failed, forwarding thread 0: TypeError: out of bounds\nIts streams have ended: .*\ntestpmd> $/,
  );
  input.end('stop\nstart\nquit\n');
  await ended;
  assert.deepEqual(engine.asked.slice(0, 4), ['start 0', 'stop', 'start 0', 'stop']);
  assert.ok(text().endsWith(FAREWELL));
});

test('testpmd program: without a prompt streams that fail end it', async () => {
  const { ended, engine, printed } = open({ interactive: false });
  await printed(/Press enter/);
  engine.fail('forwarding thread 0: TypeError: out of bounds');
  await assert.rejects(ended, { code: 'LCORE_STOPPED', message: /forwarding thread 0: TypeError: out of bounds/ });
  assert.equal(engine.closed, 1);
});

test('testpmd program: when the engine fails, it is closed and the failure is thrown', async () => {
  const { ended, engine, input } = open({});
  engine.start = () => Promise.reject(new TypeError('oops'));
  input.write('start\n');
  await assert.rejects(ended, TypeError);
  assert.equal(engine.closed, 1);
  const other = open({});
  other.engine.stop = () => Promise.reject(new TypeError('oops'));
  other.input.end('start\n');
  await assert.rejects(other.ended, TypeError);
  assert.equal(other.engine.closed, 1);
});
