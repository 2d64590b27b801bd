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
  Object.assign(values, { mac: 'aa:bb:cc:dd:ee:ff', portList: '1,0', coreList: '2,1', mask: '0x3', portCount: '1' });
  Object.assign(values, { mtu: '1500', queues: '2', level: '1', layer: 'udp', place: 'sw', fixed: 'rxd' });
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

test('testpmd: the ports that forward, as a list, a mask and a number', async () => {
  const { engine, run } = open();
  const odd = '\nWarning! port-topology=paired and odd forward ports number, the last port will pair with itself.\n';
  const fewer = 'previous number of forwarding ports 2 - changed to number of configured ports 1';
  assert.equal(await run('set portlist 1'), `${fewer}\n${odd}`);
  assert.match(await run('show config fwd'), /RX P=1\/Q=0 .* TX P=1\//);
  assert.equal(
    await run('set portlist 1,0'),
    'previous number of forwarding ports 1 - changed to number of configured ports 2',
  );
  assert.match(await run('show config fwd'), /RX P=1\/Q=0 .* TX P=0\/.*\n {2}RX P=0\/Q=0 .* TX P=1\//);
  assert.equal(await run('set portlist 0,5'), 'Invalid port 5');
  assert.equal(await run('set portlist 0,0'), 'duplicated port 0 at index 0 and 1');
  assert.equal(await run('set portmask 0x8'), 'Invalid port 3');
  assert.equal(await run('set portmask 0x3'), '');
  assert.equal(await run('set nbport 3'), 'nb fwd ports 3 > 2 (number of configured ports) - ignored');
  assert.equal(await run('set nbport 1'), `Number of forwarding ports set to 1\n${odd}`);
  assert.deepEqual(engine.config.ports, [0]);
  await run('start');
  for (const line of ['set portlist 0', 'set portmask 1', 'set corelist 1', 'set coremask 2', 'set nbcore 1'])
    assert.equal(await run(line), 'Please stop forwarding first', line);
  await run('set nbport 2');
  // what is being forwarded is shown as it was started
  assert.match(await run('stop'), /for port 0 [\s\S]*Accumulated/);
  assert.doesNotMatch(await run('show fwd stats all'), /for port 1/);
});

test('testpmd: the lcores that forward', async () => {
  const { engine, run } = open();
  assert.equal(
    await run('set corelist 2,1'),
    'previous number of forwarding cores 1 - changed to number of configured cores 2',
  );
  assert.deepEqual([engine.config.cores, engine.config.coreOrder], [2, [1, 0]]);
  assert.equal(await run('set nbcore 1'), 'Number of forwarding cores set to 1');
  assert.match(await run('show config fwd'), /\nLogical Core 2 /);
  assert.equal(await run('set corelist 7'), 'lcore 7 not enabled');
  assert.equal(await run('set corelist 1,1'), 'duplicated core 1 at index 0 and 1');
  assert.equal(await run('set coremask 0x2'), '');
  assert.deepEqual(engine.config.coreOrder, [0]);
  assert.match(await run('set nbcore 2'), /^nb fwd cores 2 > 1 .* ignored$/);
});

test('testpmd: who makes checksums, which is always csum itself', async () => {
  const { run } = open();
  assert.equal(await run('csum show 0'), 'Please stop port 0 first');
  assert.match(await run('csum show 9'), /^Invalid port 9/);
  await run('port stop 0');
  const shown = `Parse tunnel is off
IP checksum offload is sw
UDP checksum offload is sw
TCP checksum offload is sw
SCTP checksum offload is sw
Outer-Ip checksum offload is sw
Outer-Udp checksum offload is sw`;
  assert.equal(await run('csum show 0'), shown);
  assert.equal(await run('csum set tcp sw 0'), shown);
  assert.equal(await run('csum set udp hw 0'), `UDP checksum offload is not supported by port 0\n${shown}`);
});

test('testpmd: port config', async () => {
  const { engine, run } = open();
  assert.equal(await run('port config mtu 0 1400'), 'Set MTU failed. diag=-95');
  engine.infos[1].maxMtu = 9714;
  assert.equal(await run('port config mtu 1 1400'), '');
  assert.equal(await run('port config mtu 1 67'), 'MTU (67) < device min MTU (68) for port_id 1');
  assert.equal(await run('port config mtu 1 9715'), 'MTU (9715) > device max MTU (9714) for port_id 1');
  assert.match(await run('port config mtu 9 1500'), /^Invalid port 9/);
  assert.deepEqual(engine.asked, ['mtu 1 1400']);
  for (const line of ['rxq 2', 'txq 2', 'burst 8', 'rxd 512', 'txd 512', 'max-pkt-len 1518'])
    assert.equal(await run(`port config all ${line}`), 'Please stop all ports first', line);
  await run('port stop all');
  assert.equal(await run('port config all rxq 2'), '');
  assert.equal(await run('port config all txq 4'), '');
  assert.equal(await run('port config all burst 8'), '');
  assert.deepEqual([engine.config.rxq, engine.config.txq, engine.config.burst], [2, 4, 8]);
  assert.equal(
    await run('port config all rxq 5'),
    "Fail: input rxq (5) can't be greater than max_rx_queues (4) of port 0",
  );
  assert.match(await run('port config all rxd 512'), /^rxd stays as it is/);
});

test('testpmd: set verbose, and packets that are shown', async () => {
  const { engine, run } = open();
  assert.equal(await run('set verbose 1'), 'Change verbose level from 0 to 1');
  assert.equal(await run('set verbose 3'), 'Change verbose level from 1 to 3');
  const lines: string[] = [];
  const session = new Session(engine, { topology: 'paired', lcores: [1], say: (text) => lines.push(text) });
  engine.dump('port 0/queue 0: received 1 packets');
  assert.deepEqual([lines, session.quitting], [['port 0/queue 0: received 1 packets'], false]);
});

test('testpmd: switches', async () => {
  const { engine, run } = open();
  for (const [line, key] of [
    ['set flush_rx', 'flushRx'],
    ['set record-core-cycles', 'recordCycles'],
    ['set record-burst-stats', 'recordBursts'],
  ] as const)
    for (const on of ['on', 'off']) {
      assert.equal(await run(`${line} ${on}`), '');
      assert.equal(engine.config[key], on === 'on', line);
    }
  assert.equal(await run('set allmulti all on'), '');
  assert.equal(
    await run('set allmulti 1 off'),
    'Error during disabling all-multicast mode for port 1: Operation not supported',
  );
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
