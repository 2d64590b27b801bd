/**
 * What is lost when a forwarder gets packets faster than its receiver takes them: with `mac`, which drops what a full queue does not
 * take, and with `mac_retry`, which waits and offers it again. Our testpmd and DPDK's, before the same receiver.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ensurePeers } from '../test/peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../test/peers/process.ts';
import { dpdkForwarder, type Forwarder, ownForwarder } from './peers/forwarders.ts';
import { figure, median, table, thisMachine } from './report.ts';
import { countOf, listOf, OWN, rotated, say, sizesOf, tellIfBusy, writeJson } from './rounds.ts';
import { numbersOf } from './trials.ts';

const RECEIVER = fileURLToPath(new URL('slow-receiver.ts', import.meta.url));
const FORWARDERS = { [OWN]: ownForwarder, testpmd: dpdkForwarder } as const;
type Key = keyof typeof FORWARDERS;
const MODES = ['mac', 'mac retry'];
const START_TIMEOUT_MS = 10_000;
/** More of what was due was not taken: the receiver did not keep its rate, or was not the slower one. */
const MISSED_PERCENT = 10;

export const USAGE = `retry: what a forwarder loses before a slow receiver, with and without mac_retry, ours and DPDK's testpmd
  --rate 1                   of the receiver, Mpps
  --size 60                  frame size, bytes without FCS
  --retries 64  --delay 1    how often what was not taken is offered again, and after how many µs: testpmd's own defaults
  --seconds 2  --rounds 3
  --peers ${Object.keys(FORWARDERS).join(',')}
  --core 0                   CPU of the forwarder
  --generator-core 1         CPU of the receiver
  --json FILE                all values`;

function parse(argv: readonly string[]) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      rate: { type: 'string', default: '1' },
      size: { type: 'string', default: '60' },
      retries: { type: 'string', default: '64' },
      delay: { type: 'string', default: '1' },
      seconds: { type: 'string', default: '2' },
      rounds: { type: 'string', default: '3' },
      peers: { type: 'string', default: Object.keys(FORWARDERS).join(',') },
      core: { type: 'string', default: '0' },
      'generator-core': { type: 'string', default: '1' },
      json: { type: 'string' },
    },
  });
  return {
    ...values,
    rate: numbersOf(values.rate, 'rate')[0] * 1e6,
    size: sizesOf(values.size)[0],
    seconds: numbersOf(values.seconds, 'seconds')[0],
    retries: countOf(values.retries, 'retries'),
    delay: countOf(values.delay, 'delay'),
    rounds: countOf(values.rounds, 'rounds'),
    peers: listOf(values.peers, 'peer', Object.keys(FORWARDERS)) as Key[],
  };
}

/** What one run has found. */
interface Run {
  /** packets that the forwarder had, sent, and dropped */
  readonly had: number;
  readonly sent: number;
  readonly dropped: number;
  readonly seconds: number;
  /** of the receiver: packets that were due, and those it was too late for, or that were not there */
  readonly due: number;
  readonly missed: number;
  readonly notThere: number;
}

/** A port's figures in what `stop` prints. */
function figuresOf(text: string, port: number): { received: number; sent: number; dropped: number } {
  const found = new RegExp(
    `Forward statistics for port ${port} [\\s\\S]*?RX-packets: (\\d+)[\\s\\S]*?TX-packets: (\\d+) +TX-dropped: (\\d+)`,
  ).exec(text);
  if (found === null) throw new Error(`no statistics of port ${port} in:\n${text}`);
  return { received: Number(found[1]), sent: Number(found[2]), dropped: Number(found[3]) };
}

type Options = ReturnType<typeof parse>;

/** so far: a socket that another one has left behind is not waited for */
let runs = 0;

/** Starts a receiver and a forwarder, has packets flow, and stops both. */
async function run(
  dir: string,
  key: Key,
  mode: string,
  options: Options,
): Promise<Run & { forwarder: Forwarder; memory: string }> {
  const { rate, size, retries, delay, seconds } = options;
  const socket = join(dir, `slow-${++runs}`);
  const receiver = new PeerProcess({
    name: 'slow receiver',
    command: process.execPath,
    args: [RECEIVER, '--socket', socket, '--rate', String(rate), '--core', options['generator-core']],
  });
  const forwarder = FORWARDERS[key]({ core: Number(options.core), socket, size });
  try {
    await receiver.waitUntil('its socket', () => existsSync(socket), START_TIMEOUT_MS);
    await forwarder.start();
    await forwarder.command(`set burst tx delay ${delay} retry ${retries}`);
    await forwarder.command(`set fwd ${mode}`);
    await forwarder.command('start');
    const from = performance.now();
    await sleep(seconds * 1000);
    const text = await forwarder.command('stop');
    const ran = (performance.now() - from) / 1000;
    const mark = receiver.outputLen;
    receiver.endInput();
    if (!(await receiver.endsWithin(START_TIMEOUT_MS))) throw new Error('the receiver does not end');
    const { due, missed, notThere } = JSON.parse(receiver.outputSince(mark).trim().split('\n').at(-1) ?? '');
    const { received: had } = figuresOf(text, 0);
    const { sent, dropped } = figuresOf(text, 1);
    return { had, sent, dropped, seconds: ran, due, missed, notThere, forwarder, memory: forwarder.memory };
  } finally {
    await forwarder.stop();
    await receiver.stop();
  }
}

/** Worth nothing: the receiver did not keep its rate, or had to wait for packets. */
const worthless = ({ due, missed, notThere }: Run) => missed + notThere > (due * MISSED_PERCENT) / 100 || due === 0;

/** Runs the benchmark; prints its table. Fails at the end if a run failed. */
export async function retry(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const { leftOut } = await ensurePeers(options.peers.includes('testpmd') ? ['dpdk'] : []);
  for (const { peer, why } of leftOut) say(`${peer} is left out: ${why}`);
  const keys = options.peers.filter((key) => key === OWN || leftOut.length === 0);
  if (keys.length === 0) throw new Error('no peer is left to be measured');
  const dir = makeTempDir('bench');
  const rows = keys.flatMap((peer) => MODES.map((mode) => ({ peer, mode, runs: [] as Run[] })));
  const versions = new Map<string, string>();
  const failures: string[] = [];
  for (let round = 1; round <= options.rounds; round++) {
    for (const key of rotated(keys, round - 1) as Key[]) {
      for (const mode of MODES) {
        const label = `round ${round}/${options.rounds}  ${key.padEnd(8)}  ${mode.padEnd(9)}`;
        await tellIfBusy(label);
        try {
          const { forwarder, memory, ...figures } = await run(dir, key, mode, options);
          versions.set(key, `${forwarder.name} ${forwarder.version}; ${memory}`);
          rows.find((row) => row.peer === key && row.mode === mode)?.runs.push(figures);
          const { had, sent, dropped, seconds, due, missed, notThere } = figures;
          const rates = `${figure(had / seconds / 1e6)} Mpps come, ${figure(sent / seconds / 1e6)} go`;
          const worth = worthless(figures)
            ? `  invalid: of ${due.toFixed(0)} due the receiver missed ${missed.toFixed(0)}, and ${notThere.toFixed(0)} were not there`
            : '';
          say(`${label}  ${rates}  loss ${figure((100 * dropped) / had)} %${worth}`);
        } catch (error) {
          const { message } = error as Error;
          failures.push(`${key}, ${mode}: ${message.split('\n', 1)[0]}`);
          say(`${label}  ${message}`);
        }
      }
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const line = ({ peer, mode, runs }: (typeof rows)[number]) => {
    const good = runs.filter((one) => !worthless(one));
    const mid = (of: (one: Run) => number) => figure(median(good.map(of)));
    return [
      ...[peer, mode, mid(({ had, seconds }) => had / seconds / 1e6), mid(({ sent, seconds }) => sent / seconds / 1e6)],
      ...[mid(({ had, dropped }) => (100 * dropped) / had), `${runs.length - good.length} of ${runs.length}`],
    ];
  };
  console.log(`\nBefore a receiver of ${options.rate / 1e6} Mpps: medians of ${options.rounds} rounds\n`);
  console.log(table([['peer', 'mode', 'come, Mpps', 'go, Mpps', 'loss %', 'invalid'], ...rows.map(line)]));
  console.log(`\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  for (const [key, version] of versions) console.log(`${key}: ${version}`);
  writeJson(options.json, { date, machine, options, rows, versions: Object.fromEntries(versions) });
  if (failures.length > 0) throw new Error(`\n${failures.length} runs failed:\n${failures.join('\n')}`);
}
