import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatHelp, parseOptions } from '../../src/cli/options.ts';
import { resolveTraffic, TRAFFIC } from '../../src/cli/traffic-options.ts';
import { FrameMaker } from '../../src/testpmd/traffic/frame-maker.ts';
import { TestThread } from '../kit/device-ports.ts';

const resolve = (...args: string[]) => resolveTraffic(parseOptions(Object.values(TRAFFIC), args).given);

test('traffic options: without any, packets are as DPDK makes them, and nothing is looked at', () => {
  assert.deepEqual(resolve(), {});
});

test('traffic options: each range in each form', () => {
  const { plan } = resolve(
    ...['--flows', '1024', '--sizes', '64,512', '--vlan', '100-199', '--src-mac', '02:00:00:00:00:ff+16'],
    ...[
      '--dst-mac=aa:bb:cc:dd:ee:f0-aa:bb:cc:dd:ee:ff',
      '--src-ip',
      '10.0.0.1+300',
      '--dst-ip',
      '10.1.0.0-10.1.255.255',
    ],
    ...['--src-port', '1-65535', '--dst-port', '53', '--seed', '9'],
  );
  assert.deepEqual(plan, {
    flows: 1024,
    sizes: { list: [64, 512] },
    vlan: { first: 100, count: 100 },
    srcMac: { first: 0x0200000000ff, count: 16 },
    dstMac: { first: 0xaabbccddeef0, count: 16 },
    srcIp: { first: 0x0a000001, count: 300 },
    dstIp: { first: 0x0a010000, count: 65536 },
    srcPort: { first: 1, count: 65535 },
    dstPort: { first: 53, count: 1 },
    seed: 9,
  });
});

test('traffic options: flows are as many as the longest range has; without ranges, ports tell them apart', () => {
  assert.equal(resolve('--src-ip', '10.0.0.1+7', '--dst-ip', '10.0.0.1+9').plan?.flows, 9);
  assert.equal(resolve('--sizes', 'imix').plan?.flows, 1);
  assert.deepEqual(resolve('--flows', '100').plan?.srcPort, { first: 1024, count: 100 });
  assert.deepEqual(resolve('--flows', '1048576').plan?.srcPort, { first: 1024, count: 64512 });
  assert.deepEqual(resolve('--flows', '100', '--vlan', '1-2').plan?.srcPort, { first: 49152, count: 1 });
});

test('traffic options: sizes as a mix, a list, or at random', () => {
  const sizes = (text: string, ...more: string[]) => resolve('--sizes', text, ...more).plan?.sizes;
  assert.deepEqual(sizes('1514'), { list: [1514] });
  assert.deepEqual(sizes('64-1518'), { min: 64, max: 1518 });
  assert.equal((sizes('imix', '--vlan', '5') as { list: number[] }).list.length, 12);
  for (const text of ['', '0', '64-', '1518-64', '64,,65', '9729', '64-9729', 'mix', `${'64,'.repeat(64)}64`])
    assert.throws(() => sizes(text), { code: 'CONFIG_INVALID_VALUE', message: /imix/ }, text);
  assert.throws(() => sizes('59'), {
    code: 'CONFIG_INVALID_VALUE',
    message: /59 bytes have no room.*60 bytes at least/,
  });
  assert.throws(() => sizes('60-100', '--vlan', '1'), {
    code: 'CONFIG_INVALID_VALUE',
    message: /64 bytes with a VLAN tag/,
  });
});

test('traffic options: ranges that make no sense are refused', () => {
  for (const [option, texts] of [
    ['--vlan', ['4095', '10-5', '4094+2', '1+0', '-1', '1-', 'x', '1-2-3']],
    ['--src-mac', ['02:00:00:00:00', '0200.0000.0001', 'ff:ff:ff:ff:ff:ff+2', '00:00:00:00:00:00-00:00:00:10:00:00']],
    ['--dst-ip', ['10.0.0', '10.0.0.256', '10.0.0.1.1', '255.255.255.255+2', '10.0.0.2-10.0.0.1', '10..0.1']],
    ['--src-port', ['65536', '65535+2', '1.5']],
    ['--flows', ['0', '1048577']],
  ] as const)
    for (const text of texts)
      assert.throws(() => resolve(`${option}=${text}`), { code: 'CONFIG_INVALID_VALUE' }, `${option} ${text}`);
});

test('traffic options: verifying takes as many flows as are made here, or many', () => {
  assert.deepEqual(resolve('--verify').verify, { flows: 65536, fromFirst: false });
  assert.deepEqual(resolve('--verify-from-first', '--flows', '12').verify, { flows: 12, fromFirst: true });
});

test('traffic options: capture files', () => {
  assert.deepEqual(resolve('--pcap-in', 'a', '--pcap-out', 'b'), {
    replay: { path: 'a', gaps: false, loop: false },
    recordTo: 'b',
  });
  assert.deepEqual(resolve('--pcap-in', 'a', '--pcap-in-gaps', '--pcap-in-loop').replay, {
    path: 'a',
    gaps: true,
    loop: true,
  });
  assert.throws(() => resolve('--pcap-in', 'a', '--pcap-out', 'a'), { code: 'CONFIG_CONFLICT' });
  assert.throws(() => resolve('--pcap-in-gaps'), { code: 'CONFIG_CONFLICT', message: /--pcap-in/ });
});

test('traffic options: what is accepted can be made', () => {
  const thread = new TestThread();
  for (const args of [
    ['--sizes', '60'],
    ['--sizes', '64-9728', '--vlan', '0'],
    ['--flows', '1048576', '--dst-ip', '0.0.0.0+1048576'],
  ]) {
    const { plan } = resolve(...args);
    assert.ok(plan);
    const [window] = thread.windows.filter(Boolean);
    new FrameMaker(plan, thread.burst, window, 65536).make(32);
    assert.equal(thread.burst.count, 32);
  }
  thread.close();
});

test('traffic options: the help names them all within its width', () => {
  const help = formatHelp(Object.values(TRAFFIC));
  for (const { long } of Object.values(TRAFFIC)) assert.match(help, new RegExp(`--${long}\\b`));
  for (const line of help.split('\n')) assert.ok(line.length <= 100, line);
});
