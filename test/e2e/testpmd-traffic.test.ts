import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parseTestpmd } from '../../src/cli/testpmd-options.ts';
import { ForwardEngine } from '../../src/testpmd/forward-engine.ts';
import { Folder, Numbers, readCapture } from '../kit/captures.ts';
import { frame, mac } from '../kit/frames.ts';

const folder = new Folder();
after(() => folder.close());
const fds = () => readdirSync('/proc/self/fd').length;
const TESTPMD = fileURLToPath(new URL('../../src/cli/testpmd.ts', import.meta.url));

async function engineOf(...args: string[]): Promise<ForwardEngine> {
  const settings = parseTestpmd(args);
  const { vdevs, forward: config, topology } = settings;
  const engine = await ForwardEngine.open({ vdevs, config, topology });
  engine.onFailure((reason) => assert.fail(reason));
  return engine;
}

async function until(what: () => boolean): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!what()) {
    assert.ok(Date.now() < deadline, 'it does not come');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const received = (engine: ForwardEngine) => engine.streams().reduce((sum, { rxPackets }) => sum + rxPackets, 0);

/** The numbers of a report's second line. */
function faults(report: readonly string[]): Record<string, number> {
  const pairs = [...report[1].matchAll(/([a-z ]+) (\d+)(?: \([^)]*\))?/g)];
  return Object.fromEntries(pairs.map(([, name, value]) => [name.trim(), Number(value)]));
}

const NO_FAULTS = { lost: 0, 'out of order': 0, duplicated: 0, 'too late to tell': 0, damaged: 0 };

test('testpmd: flowgen through rings, verified: nothing is lost; once more after a stop', async () => {
  const engine = await engineOf(
    ...['--vdev', 'net_ring0', '--vdev', 'net_ring1', '--vdev', 'net_ring2', '--', '--forward-mode', 'flowgen'],
    ...['--port-topology', 'loop', '--flows', '100', '--sizes', '64-1500', '--vlan', '7+3', '--verify-from-first'],
    ...['--nb-cores', '2'],
  );
  try {
    for (let run = 0; run < 2; run++) {
      await engine.start(0);
      await until(() => received(engine) > 20_000);
      await engine.stop();
      const report = engine.trafficReport();
      assert.deepEqual(faults(report), NO_FAULTS, report.join('\n'));
      assert.match(report[0], /^verified: [1-9]\d{4,} packets, \d+ bytes$/);
      assert.ok(report.some((line) => /^latency: min .* p50 .* p99 .* p99\.9 .*, max /.test(line)));
      assert.ok(!report.some((line) => line.startsWith('  not ours')), report.join('\n'));
    }
  } finally {
    await engine.close();
  }
});

test('testpmd: a capture is sent as it is, once or over and over', async () => {
  const numbers = new Numbers(true);
  const frames = Array.from({ length: 700 }, (_, i) => ({ bytes: frame(mac(i), mac(9), 60 + i), ns: BigInt(i) }));
  const blocks = frames.map((one) => numbers.enhanced(0, one.ns, one));
  const from = folder.file('from.pcapng', Buffer.concat([numbers.section(), numbers.interface(), ...blocks]));
  for (const loop of [[], ['--pcap-in-loop']]) {
    const before = fds();
    const to = folder.file('to.pcap');
    const args = ['--vdev', `net_pcap0,tx_pcap=${to}`, '--', '--forward-mode', 'txonly', '--pcap-in', from, ...loop];
    const engine = await engineOf(...args);
    try {
      await engine.start(0);
      await until(() => engine.streams()[0].txPackets >= (loop.length + 1) * frames.length);
      await engine.stop();
      assert.deepEqual(engine.trafficReport(), []);
    } finally {
      await engine.close();
    }
    const got = readCapture(to);
    assert.ok(loop.length === 1 ? got.length > frames.length : got.length === frames.length);
    for (const [i, { bytes }] of got.entries()) assert.ok(bytes.equals(frames[i % frames.length].bytes), `frame ${i}`);
    assert.equal(fds(), before);
  }
});

test('testpmd: what ports receive is recorded, and from which', async () => {
  const numbers = new Numbers(true);
  const frames = [0, 1].map((port) =>
    Array.from({ length: 300 }, (_, i) => ({ bytes: frame(mac(port), mac(i), 60 + i), ns: BigInt(i) })),
  );
  const paths = frames.map((list, port) => folder.file(`port${port}.pcap`, numbers.pcap(0xa1b23c4d, list)));
  const to = folder.file('both.pcapng');
  const engine = await engineOf(
    ...paths.flatMap((path, port) => ['--vdev', `net_pcap${port},rx_pcap=${path}`]),
    ...['--', '--forward-mode', 'rxonly', '--pcap-out', to, '--no-flush-rx'],
  );
  try {
    const gone: string[] = [];
    engine.onLink(({ reason }) => gone.push(reason));
    await engine.start(0);
    await until(() => received(engine) === 600 && gone.length === 2);
    assert.ok(
      gone.every((reason) => /port\d\.pcap: all frames have been received/.test(reason)),
      gone.join(),
    );
    await engine.stop();
  } finally {
    await engine.close();
  }
  const got = readCapture(to);
  assert.equal(got.length, 600);
  const sent = frames.flat().map(({ bytes }) => bytes.toString('hex'));
  assert.deepEqual(got.map(({ bytes }) => bytes.toString('hex')).sort(), sent.sort());
});

test('testpmd: a replay at recorded distances takes its time, and the thread may sleep meanwhile', async () => {
  const numbers = new Numbers(true);
  const frames = Array.from({ length: 4 }, (_, i) => ({ bytes: frame(mac(i), mac(9)), ns: BigInt(i) * 60_000_000n }));
  const from = folder.file('slow.pcap', numbers.pcap(0xa1b23c4d, frames));
  const engine = await engineOf(
    ...['--vdev', 'net_null0,no-rx=1', '--', '--forward-mode', 'txonly', '--pcap-in', from, '--pcap-in-gaps'],
  );
  try {
    const start = performance.now();
    await engine.start(0);
    await until(() => engine.streams()[0].txPackets === 4);
    assert.ok(performance.now() - start >= 175);
    await engine.stop();
  } finally {
    await engine.close();
  }
});

test('testpmd: capture files that cannot be used are refused, and nothing stays open', async () => {
  const before = fds();
  const good = folder.file('good.pcap', new Numbers(true).pcap(0xa1b23c4d, [{ bytes: Buffer.alloc(60), ns: 0n }]));
  for (const [args, code] of [
    [['--pcap-in', '/nowhere/x'], 'CAPTURE_FILE'],
    [['--pcap-in', folder.path], 'CAPTURE_FILE'],
    [['--pcap-in', folder.file('text', Buffer.from('hello, world'))], 'BAD_CAPTURE'],
    [['--pcap-in', good, '--pcap-out', `${folder.path}/./good.pcap`], 'CAPTURE_FILE'],
    [['--pcap-out', '/dev/full'], 'CAPTURE_FILE'],
  ] as const)
    await assert.rejects(engineOf('--vdev', 'net_null0', '--', ...args), { code }, args.join(' '));
  assert.equal(readCapture(good).length, 1);
  assert.equal(fds(), before);
});

test('vhost-testpmd: the report comes with the statistics at the end', () => {
  const script = folder.file('script', Buffer.from('start\nshow port stats all\nstop\nquit\n'));
  const args = [
    '--vdev',
    'net_ring0',
    '--',
    '-i',
    '--forward-mode=flowgen',
    '--flows=8',
    '--verify',
    `--cmdline-file=${script}`,
  ];
  const run = spawnSync(process.execPath, [TESTPMD, ...args], { encoding: 'utf8', timeout: 60_000 });
  assert.equal(run.status, 0, run.stderr);
  assert.match(run.stdout, /verified: \d+ packets, \d+ bytes\n {2}lost 0, out of order 0, duplicated 0/);
});
