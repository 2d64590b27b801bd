import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COMMANDS, GRAMMAR, runLine } from '../../src/testpmd/commands.ts';
import { Session } from '../../src/testpmd/session.ts';
import { FakeEngine } from '../kit/fake-engine.ts';

function open() {
  const engine = new FakeEngine(['06:00:00:00:00:00', '06:00:00:00:00:01']);
  const lines: string[] = [];
  const say = (text: string) => lines.push(...text.split('\n'));
  const session = new Session(engine, { topology: 'paired', lcores: [1, 2], say });
  const run = async (line: string) => {
    lines.length = 0;
    await runLine(session, line);
    return lines.join('\n');
  };
  return { engine, session, run };
}

test('testpmd: every command is parsed from its own pattern, and the help lists it', async () => {
  const values: Record<string, string> = {
    port: '0',
    ports: 'all',
    mode: 'mac',
    switch: 'on',
    bursts: '2',
    burst: '8',
  };
  Object.assign(values, { usec: '10', count: '5', cores: '1', segments: '64,64', section: 'all' });
  Object.assign(values, { mac: 'aa:bb:cc:dd:ee:ff' });
  const { run } = open();
  const help = await run('help');
  for (const { pattern } of COMMANDS) {
    const line = pattern.replace(/\((.+?)\)/g, (_, name: string) => values[name]);
    const match = GRAMMAR.parse(line);
    assert.ok(typeof match === 'object' && match.command.pattern === pattern, `${line}: ${JSON.stringify(match)}`);
    assert.ok(help.includes(`  ${pattern} `), pattern);
  }
});

test('testpmd: start, start tx_first and start tx_first N', async () => {
  for (const [line, bursts] of [
    ['start', 0],
    ['start tx_first', 1],
    ['  start   tx_first 7 ', 7],
  ] as const) {
    const { engine, run } = open();
    await run(line);
    assert.deepEqual(engine.asked, [`start ${bursts}`], line);
    assert.equal(await run('start'), 'Packet forwarding already started');
  }
});

test('testpmd: stop without start, start with a stopped port', async () => {
  const { engine, run } = open();
  assert.equal(await run('stop'), 'Packet forwarding not started');
  assert.equal(await run('port stop 1'), 'Stopping ports...\nChecking link statuses...\nDone');
  assert.equal(await run('start'), 'Not all ports were started: 1 is stopped');
  assert.equal(await run('port start 1'), 'Port 1: 06:00:00:00:00:01\nChecking link statuses...\nDone');
  await run('start');
  assert.equal(engine.forwarding, true);
  assert.equal(
    await run('port stop 0'),
    'Stopping ports...\nPlease remove port 0 from forwarding configuration.\nDone',
  );
  assert.equal(await run('port start 0'), 'Port 0 is now not stopped\nPlease stop the ports first\nDone');
  assert.deepEqual(engine.asked, ['stop port 1', 'start port 1', 'start 0']);
});

test('testpmd: set changes the configuration', async () => {
  const { engine, run } = open();
  assert.equal(await run('set fwd 5tswap'), 'Set 5tswap packet forwarding mode');
  assert.deepEqual([engine.config.mode, engine.config.retry], ['5tswap', false]);
  assert.equal(await run('set fwd mac retry'), 'Set mac packet forwarding mode with retry');
  assert.deepEqual([engine.config.mode, engine.config.retry], ['mac', true]);
  await run('set fwd io');
  assert.equal(await run('set fwd mac_retry'), 'Set mac packet forwarding mode with retry');
  assert.equal(engine.config.retry, true);
  assert.equal(await run('set burst 8'), 'Number of packets per burst set to 8');
  assert.match(await run('set burst 64'), /^Number of packets per burst set to 32 \(of 64: /);
  assert.equal(engine.config.burst, 32);
  await run('set burst tx delay 10 retry 5');
  assert.deepEqual([engine.config.retryDelay, engine.config.retryNum], [10, 5]);
  await run('set txpkts 64,1,128');
  assert.deepEqual(engine.config.txpkts, [64, 1, 128]);
  assert.equal(await run('show config txpkts'), 'Number of segments: 3\nSegment sizes: 64,1,128\nSplit packet: off');
  await run('set eth-peer 1 AA:bb:cc:dd:ee:ff');
  assert.deepEqual([...engine.config.ethPeers], [[1, 'aa:bb:cc:dd:ee:ff']]);
  assert.equal(await run('set nbcore 2'), 'Number of forwarding cores set to 2');
  assert.match(await run('set nbcore 3'), /ignored/);
  assert.equal(engine.config.cores, 2);
});

test('testpmd: promiscuous mode, and a device that cannot', async () => {
  const { engine, run } = open();
  engine.stubborn = 0;
  assert.equal(
    await run('set promisc all off'),
    'Error during disabling promiscuous mode for port 0: the device cannot',
  );
  assert.deepEqual(engine.asked, ['promiscuous 1 false']);
});

test('testpmd: a port that is not there', async () => {
  const { engine, run } = open();
  for (const line of [
    ...['show port info 9', 'show port stats 9', 'show port xstats 9', 'show port summary 9', 'clear port stats 9'],
    ...['port start 9', 'port stop 9', 'set promisc 9 on', 'set eth-peer 9 aa:bb:cc:dd:ee:ff'],
  ]) {
    assert.equal(await run(line), 'Invalid port 9\nThe valid ports array is [ 0 1 ]', line);
  }
  assert.deepEqual(engine.asked, []);
});

test('testpmd: a wrong command gets one line that says what was expected', async () => {
  const { run } = open();
  const modes = 'io|mac|macswap|flowgen|rxonly|txonly|csum|icmpecho|5tswap|noisy|mac_retry';
  for (const [line, said] of [
    ['foo bar', 'Command not found: foo; the nearest is "stop", and "help" lists all'],
    ['strat', 'Command not found: strat; the nearest is "start", and "help" lists all'],
    ['set fwd foo', `Bad arguments: after "set fwd" expected ${modes}; found "foo"`],
    ['set fwd', `Bad arguments: after "set fwd" expected ${modes}; found nothing`],
    ['set fwd io again', 'Bad arguments: after "set fwd io" expected nothing more | retry; found "again"'],
    ['start foo', 'Bad arguments: after "start" expected nothing more | tx_first; found "foo"'],
    ['stop now', 'Bad arguments: after "stop" expected nothing more; found "now"'],
    ['set burst 0', 'Bad arguments: after "set burst" expected packets, 1..512 | tx; found "0"'],
    ['set burst tx delay x', 'Bad arguments: after "set burst tx delay" expected µs, 0..2147483647; found "x"'],
    ['show port', 'Bad arguments: after "show port" expected info | stats | xstats | summary; found nothing'],
    ['show port info 32', 'Bad arguments: after "show port info" expected a port, 0..31, or all; found "32"'],
  ]) {
    assert.equal(await run(line), said);
  }
  assert.match(await run('set txpkts 1,1'), /^Bad arguments: .* 42 to 9728 together; found "1,1"$/);
  assert.match(await run('set txpkts 64,'), /found "64,"$/);
  assert.match(await run('set eth-peer 0 zz'), /the address of one station, .*; found "zz"$/);
});

test('testpmd: empty lines and comments mean nothing', async () => {
  const { run } = open();
  for (const line of ['', '   ', '# start', '  #stop']) assert.equal(await run(line), '');
});

test('testpmd: completion offers what may come next', () => {
  const complete = (line: string) => GRAMMAR.complete(line);
  assert.deepEqual(complete('sta'), [['start '], 'sta']);
  assert.deepEqual(complete('s')[0], ['start ', 'stop ', 'show ', 'set ']);
  assert.deepEqual(complete('set fwd mac'), [['mac ', 'macswap ', 'mac_retry '], 'mac']);
  assert.deepEqual(complete('show port info '), [['all '], '']);
  assert.deepEqual(complete('set burst '), [['tx '], '']);
  assert.deepEqual(complete('set burst 3'), [[], '3']);
  assert.deepEqual(complete('nonsense '), [[], '']);
  assert.deepEqual(complete('quit '), [[], '']);
});

test('testpmd: an error of the engine is said, a fault of ours is not hidden', async () => {
  const { engine, run } = open();
  const { SwitchError } = await import('../../src/errors.ts');
  engine.start = () => Promise.reject(new SwitchError('LCORE_STOPPED', 'lcore 1 has gone'));
  assert.match(await run('start'), /\nlcore 1 has gone$/);
  engine.start = () => Promise.reject(new TypeError('oops'));
  await assert.rejects(run('start'), TypeError);
});
