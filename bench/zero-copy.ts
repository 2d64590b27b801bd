/**
 * Frames between a guest and the world by an AF_XDP uplink: our switch with zero copy, without, and DPDK's testpmd with the same kind of
 * port; and what each frame costs the thread that switches. In each round each in its turn is started, driven with every load, and stopped.
 */
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { probeXdp } from '../test/peers/af-xdp.ts';
import { ensurePeers } from '../test/peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../test/peers/process.ts';
import { enterOwnNetwork } from '../test/peers/veth.ts';
import { KINDS, ownUplink, testpmdUplink, type UplinkPeer } from './peers/uplink.ts';
import { figure, median, table, thisMachine } from './report.ts';
import { countOf, listOf, rotated, say, sizesOf, tellIfBusy, writeJson } from './rounds.ts';

const LOAD = fileURLToPath(new URL('uplink-load.ts', import.meta.url));
const KIND = KINDS.net_af_xdp;
const ZERO = 'zero-copy';
const COPY = 'copy';
const TESTPMD = 'testpmd';
const COMPARED = [ZERO, COPY, TESTPMD];
const OWN_OPTIONS = ['--poll', 'adaptive', '--vm2vm', '0', '--rx-desc-num', '256', '--tx-desc-num', '256'];
/** For connecting, learning, checking and ending. */
const LOAD_EXTRA_MS = 40_000;

export const USAGE = `zero-copy: guest and world through net_af_xdp with and without zero copy, and DPDK's testpmd; needs root
  --sizes 64,1514            frame sizes, bytes without FCS
  --rounds 3  --seconds 2  --warmup 0.5
  --peers ${COMPARED.join(',')}
  --core 0                   CPU of the switch
  --generator-core 1         CPU of the guest and the world
  --ring 256
  --json FILE                all values`;

function parse(argv: readonly string[]) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      sizes: { type: 'string', default: '64,1514' },
      rounds: { type: 'string', default: '3' },
      seconds: { type: 'string', default: '2' },
      warmup: { type: 'string', default: '0.5' },
      peers: { type: 'string', default: COMPARED.join(',') },
      core: { type: 'string', default: '0' },
      'generator-core': { type: 'string', default: '1' },
      ring: { type: 'string', default: '256' },
      json: { type: 'string' },
    },
  });
  return {
    ...values,
    sizes: sizesOf(values.sizes),
    rounds: countOf(values.rounds, 'rounds'),
    peers: listOf(values.peers, 'peer', COMPARED),
  };
}
type Options = ReturnType<typeof parse>;

/** What a load's runs gave, a value a round. */
interface Result {
  mpps: number[];
  lossPercent: number[];
  /** processor time of the switching thread for each frame received, ns: its own, and the kernel's */
  userNs: number[];
  systemNs: number[];
  failures: string[];
}

/** One load, and what each peer, by its key, did under it. */
interface Load {
  readonly direction: 'up' | 'down';
  readonly size: number;
  readonly peers: Record<string, Result>;
}

/** What `uplink-load.ts` prints, as far as it is used here. */
interface LoadOutput {
  mpps: number;
  directions: Record<string, { sent: number; received: number; lossPercent: number }>;
  cpuMs: { user: number; system: number };
}

async function drive(options: Options, peer: UplinkPeer, { direction, size }: Load, seconds: string) {
  const generator = new PeerProcess({
    name: 'load',
    command: process.execPath,
    args: [
      ...[LOAD, '--plain', '--socket', peer.socket, '--watch', String(peer.pid), '--interface', KIND.far],
      ...['--direction', direction, '--core', options['generator-core'], '--size', String(size)],
      ...['--ring', options.ring, '--seconds', seconds, '--warmup', options.warmup],
    ],
  });
  const runMs = 1000 * (Number(seconds) + Number(options.warmup));
  if (!(await generator.endsWithin(runMs + LOAD_EXTRA_MS))) await generator.stop(0);
  const line = generator.outputSince(0).trim().split('\n').at(-1) ?? '';
  if (generator.endedHow === 'ended with status 0' && line.startsWith('{')) return JSON.parse(line) as LoadOutput;
  const reason = /^\w*Error.*$/m.exec(generator.outputSince(0))?.[0];
  throw new Error(reason ?? `${generator.endedHow}: ${generator.lastLines(3)}`);
}

/** One peer's turn: starts it, drives it with the loads, and stops it. What fails is told and noted. */
async function turn(label: string, options: Options, peer: UplinkPeer, key: string, loads: readonly Load[]) {
  await tellIfBusy(label);
  KIND.plug();
  try {
    await peer.start(KIND, false);
    KIND.ready();
    for (const load of loads) {
      const { direction, size, peers } = load;
      const what = `${label}  ${direction.padEnd(4)}  ${String(size).padStart(4)} B`;
      try {
        const { mpps, directions, cpuMs } = await drive(options, peer, load, options.seconds);
        const { received, lossPercent } = directions[direction];
        const result = peers[key];
        result.mpps.push(mpps);
        result.lossPercent.push(lossPercent);
        result.userNs.push((cpuMs.user * 1e6) / received);
        result.systemNs.push((cpuMs.system * 1e6) / received);
        const cost = `${figure(result.userNs.at(-1) ?? 0, 0)} + ${figure(result.systemNs.at(-1) ?? 0, 0)} ns a frame`;
        say(`${what}  ${figure(mpps, 3)} Mpps  loss ${figure(lossPercent)} %  ${cost}`);
      } catch (error) {
        say(`${what}  failed: ${(error as Error).message}`);
        peers[key].failures.push((error as Error).message);
      }
    }
  } finally {
    await peer.stop();
    KIND.unplug();
  }
}

/** Peers that can be had here; says what is left out, and why. Throws if nothing can be measured. */
async function present(options: Options): Promise<string[]> {
  const lacking = await probeXdp();
  if (lacking !== false) throw new Error(lacking);
  const { leftOut } = await ensurePeers(options.peers.includes(TESTPMD) ? ['dpdk'] : []);
  for (const { why } of leftOut) say(`${TESTPMD} is left out: ${why}`);
  return options.peers.filter((key) => key !== TESTPMD || leftOut.length === 0);
}

function resultTable(loads: readonly Load[], keys: readonly string[]): string {
  const rows = loads.map(({ direction, size, peers }) => {
    const rate = (key: string) =>
      `${figure(median(peers[key].mpps), 3)} (${figure(median(peers[key].lossPercent), 0)} %)`;
    const cost = (key: string) => `${figure(median(peers[key].userNs), 0)} + ${figure(median(peers[key].systemNs), 0)}`;
    return [`${direction}, ${size} B`, ...keys.map(rate), ...keys.map(cost)];
  });
  return table([['load', ...keys.map((key) => `${key}, Mpps (loss)`), ...keys.map((key) => `${key}, ns`)], ...rows]);
}

/** Runs the benchmark; prints its table. A run that fails makes it fail at the end. */
export async function zeroCopy(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const keys = await present(options);
  const why = enterOwnNetwork();
  if (why !== undefined) throw new Error(why);
  const dir = makeTempDir('bench');
  const core = Number(options.core);
  const make: Record<string, () => UplinkPeer> = {
    [ZERO]: () => ownUplink({ core, dir }, [...OWN_OPTIONS, '--zero-copy', '1']),
    [COPY]: () => ownUplink({ core, dir }, [...OWN_OPTIONS, '--zero-copy', '0']),
    [TESTPMD]: () => testpmdUplink({ core, dir }),
  };
  const peers = new Map(keys.map((key) => [key, make[key]()]));
  const none = (): Result => ({ mpps: [], lossPercent: [], userNs: [], systemNs: [], failures: [] });
  const loads = options.sizes.flatMap((size) =>
    (['up', 'down'] as const).map(
      (direction): Load => ({ direction, size, peers: Object.fromEntries(keys.map((key) => [key, none()])) }),
    ),
  );
  for (let round = 1; round <= options.rounds; round++)
    for (const key of rotated(keys, round - 1))
      await turn(
        `round ${round}/${options.rounds}  ${key.padEnd(9)}`,
        options,
        peers.get(key) as UplinkPeer,
        key,
        loads,
      );
  removeTempDir(dir);
  const machine = thisMachine();
  const date = new Date().toISOString();
  console.log(
    `\nMpps received, and processor time of the switching thread for each frame (own + kernel): medians of ${options.rounds}\n`,
  );
  console.log(resultTable(loads, keys));
  console.log(`\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  writeJson(options.json, { date, machine, options, loads });
  const failures = loads.flatMap(({ direction, size, peers: all }) =>
    keys.flatMap((key) => all[key].failures.map((reason) => `${key}, ${direction}, ${size} B: ${reason}`)),
  );
  if (failures.length > 0) throw new Error(`\n${failures.length} runs failed:\n${failures.join('\n')}`);
}
