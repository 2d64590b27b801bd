/**
 * Frames between a guest and the world by one polling core, for each kind of port that an uplink can be on, ours against DPDK's
 * testpmd with the same kind: in each round each in its turn is started, driven with every load, and stopped.
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { probeXdp } from '../test/peers/af-xdp.ts';
import { ip } from '../test/peers/netns.ts';
import { ensurePeers } from '../test/peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../test/peers/process.ts';
import { addVeth, enterOwnNetwork } from '../test/peers/veth.ts';
import { KINDS, ownUplink, testpmdUplink, type UplinkKind, type UplinkPeer } from './peers/uplink.ts';
import { figure, median, table, thisMachine } from './report.ts';
import { countOf, listOf, OWN, rotated, say, sizesOf, tellIfBusy, writeJson } from './rounds.ts';

const LOAD = fileURLToPath(new URL('uplink-load.ts', import.meta.url));
const TESTPMD = 'testpmd';
const COMPARED = [OWN, TESTPMD];
const DIRECTIONS = ['up', 'down', 'both'];
/** A frame of 45 segments: Ethernet, IPv4 and TCP headers, and 45 × 1448 bytes. */
const GSO_BYTES = 54 + 45 * 1448;
/** Ethernet header and MTU of the interfaces. */
const MAX_FRAME = 14 + 1500;
const WARM_UP_SECONDS = '1';
/** For connecting, learning, checking and ending. */
const LOAD_EXTRA_MS = 40_000;
/** More preemptions a second: something else had the load generator's core. */
const DISTURBED_PER_SECOND = 100;
/** With less loss the switch has taken all that the world could send. */
const LIMITED_LOSS_PERCENT = 1;
/** With fewer looks in vain the guest has hardly waited for the switch. */
const LIMITED_WAIT_PERCENT = 50;
const LIMIT = { near: 'limit-near', far: 'limit-far' };

export const USAGE = `uplink: guest and world through an uplink, one polling core, compared with DPDK's testpmd; needs root
  --kinds ${Object.keys(KINDS).join(',')}
  --sizes 64,1514            frame sizes, bytes without FCS
  --directions up,down       up: guest to world; down: world to guest; both: at once
  --gso yes|no               segments of 64 KiB, too, where the kind of port passes them (default yes)
  --rounds 5  --seconds 2  --warmup 0.5
  --peers ${COMPARED.join(',')}
  --core 0                   CPU of the switch
  --generator-core 1         CPU of the guest and the world
  --ring 256
  --json FILE                all values`;

function parse(argv: readonly string[]) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      kinds: { type: 'string', default: Object.keys(KINDS).join(',') },
      sizes: { type: 'string', default: '64,1514' },
      directions: { type: 'string', default: 'up,down' },
      gso: { type: 'string', default: 'yes' },
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '2' },
      warmup: { type: 'string', default: '0.5' },
      peers: { type: 'string', default: COMPARED.join(',') },
      core: { type: 'string', default: '0' },
      'generator-core': { type: 'string', default: '1' },
      ring: { type: 'string', default: '256' },
      json: { type: 'string' },
    },
  });
  const { kinds, sizes, directions, gso, rounds, peers } = values;
  if (gso !== 'yes' && gso !== 'no') throw new RangeError('--gso is yes or no');
  const frameSizes = sizesOf(sizes);
  if (Math.max(...frameSizes) > MAX_FRAME)
    throw new RangeError(`--sizes: the interfaces take ${MAX_FRAME} bytes at most`);
  return {
    ...values,
    kinds: listOf(kinds, 'kind of port', Object.keys(KINDS)),
    sizes: frameSizes,
    directions: listOf(directions, 'direction', DIRECTIONS),
    gso: gso === 'yes',
    rounds: countOf(rounds, 'rounds'),
    peers: listOf(peers, 'peer', COMPARED),
  };
}
type Options = ReturnType<typeof parse>;

/** What a load's runs gave, a value a round. */
interface UplinkResult {
  /** frames received, millions a second, and their bytes, Gbit/s */
  mpps: number[];
  gbps: number[];
  lossPercent: number[];
  preempted: number[];
  /** the guest's looks at its transmit ring in vain; none in direction down */
  waitPercent: number[];
  /** Why rounds have no values. */
  failures: string[];
}

const noResult = (): UplinkResult => ({
  mpps: [],
  gbps: [],
  lossPercent: [],
  preempted: [],
  waitPercent: [],
  failures: [],
});

/** One load, and what each peer, by its key, did under it. */
interface UplinkLoad {
  kind: string;
  direction: string;
  size: number;
  gso: boolean;
  peers: Record<string, UplinkResult>;
}

/** What `uplink-load.ts` prints, as far as it is used here. */
interface LoadOutput {
  mpps: number;
  gbps: number;
  seconds: number;
  inOrder: boolean;
  preempted: number;
  waitPercent?: number;
  directions: Record<string, { sent: number; received: number }>;
}

interface Drive {
  direction: string;
  size: number;
  gso: boolean;
  seconds?: string;
}

/** Runs the load once; without a socket the world's end alone. Throws with its reason if it fails. */
async function drive(options: Options, far: string, socket: string | undefined, load: Drive): Promise<LoadOutput> {
  const { direction, size, gso, seconds = options.seconds } = load;
  const generator = new PeerProcess({
    name: 'load',
    command: process.execPath,
    args: [
      LOAD,
      ...(socket === undefined ? [] : ['--socket', socket]),
      ...['--interface', far, '--direction', direction, '--core', options['generator-core'], '--size', String(size)],
      ...['--ring', options.ring, '--seconds', seconds, '--warmup', options.warmup],
      ...(gso ? ['--gso'] : []),
    ],
  });
  const runMs = 1000 * (Number(seconds) + Number(options.warmup));
  if (!(await generator.endsWithin(runMs + LOAD_EXTRA_MS))) await generator.stop(0);
  const line = generator.outputSince(0).trim().split('\n').at(-1) ?? '';
  if (generator.endedHow !== 'ended with status 0' || !line.startsWith('{')) {
    const reason = /^\w*Error.*$/m.exec(generator.outputSince(0))?.[0];
    throw new Error(reason ?? `${generator.endedHow}: ${generator.lastLines(3)}`);
  }
  const output = JSON.parse(line) as LoadOutput;
  if (!output.inOrder) throw new Error('the switch used buffers out of order');
  return output;
}

const sizeName = ({ size, gso }: Pick<UplinkLoad, 'size' | 'gso'>) => (gso ? '64 KiB segments' : `${size} B`);

/** Notes what one run gave, and tells it. */
function note(what: string, { direction, gso }: Drive, output: LoadOutput, result: UplinkResult): void {
  const { mpps, gbps, seconds, preempted, waitPercent, directions } = output;
  const sum = (key: 'sent' | 'received') => Object.values(directions).reduce((all, way) => all + way[key], 0);
  const lossPercent = Math.max(0, 100 * (1 - sum('received') / sum('sent')));
  result.mpps.push(mpps);
  result.gbps.push(gbps);
  result.lossPercent.push(lossPercent);
  result.preempted.push(preempted);
  if (waitPercent !== undefined) result.waitPercent.push(waitPercent);
  const remarks = [`loss ${figure(lossPercent)} %`];
  if (preempted > DISTURBED_PER_SECOND * seconds) remarks.push(`disturbed: core lost ${preempted} times`);
  if (direction === 'down' && lossPercent < LIMITED_LOSS_PERCENT) remarks.push('the sender is the limit');
  if (waitPercent !== undefined && waitPercent < LIMITED_WAIT_PERCENT) remarks.push('the guest is the limit');
  const rate = gso ? `${figure(gbps).padStart(7)} Gbit/s` : `${figure(mpps, 3).padStart(7)} Mpps`;
  say(`${what}  ${rate}  ${remarks.join('  ')}`);
}

/** One peer's turn at one kind of port: starts it, drives it with the loads, and stops it. What fails is told and noted. */
async function turn(
  label: string,
  options: Options,
  peer: UplinkPeer,
  key: string,
  kind: UplinkKind,
  loads: readonly UplinkLoad[],
): Promise<void> {
  await tellIfBusy(label);
  const [{ gso }] = loads;
  const failed = (what: string, error: unknown, of: readonly UplinkLoad[]) => {
    say(`${what}  failed: ${(error as Error).message}`);
    for (const { peers } of of) peers[key].failures.push((error as Error).message);
  };
  try {
    kind.plug();
    try {
      await peer.start(kind, gso);
      kind.ready();
      // Not counted: programs find their pace, ours its machine code.
      await drive(options, kind.far, peer.socket, { ...loads[0], direction: 'both', seconds: WARM_UP_SECONDS });
      for (const load of loads) {
        const what = `${label}  ${load.direction.padEnd(4)}  ${sizeName(load).padEnd(6)}`;
        try {
          note(what, load, await drive(options, kind.far, peer.socket, load), load.peers[key]);
        } catch (error) {
          failed(what, error, [load]);
        }
      }
    } finally {
      await peer.stop();
      kind.unplug();
    }
  } catch (error) {
    failed(label, error, loads);
  }
}

/** What the world's sender alone can do: into a cable at whose other end nobody takes anything. */
async function limits(options: Options, sizes: readonly Drive[]): Promise<Record<string, UplinkResult>> {
  const results: Record<string, UplinkResult> = {};
  addVeth(LIMIT.near, LIMIT.far);
  for (const load of sizes) {
    const name = sizeName(load);
    results[name] = noResult();
    note(`sender alone  ${name.padEnd(6)}`, load, await drive(options, LIMIT.far, undefined, load), results[name]);
  }
  ip('link', 'del', LIMIT.near);
  return results;
}

/** Peers and kinds of port that can be had here; says what is left out, and why. Throws if nothing is left. */
async function present(options: Options): Promise<{ keys: string[]; kinds: string[] }> {
  const { leftOut } = await ensurePeers(['netns', ...(options.peers.includes(TESTPMD) ? (['dpdk'] as const) : [])]);
  for (const { peer, why } of leftOut) {
    if (peer === 'netns') throw new Error(`no network namespace: ${why}`);
    say(`${TESTPMD} is left out: ${why}`);
  }
  const keys = options.peers.filter((key) => key === OWN || leftOut.length === 0);
  if (keys.length === 0) throw new Error('no peer is left to be measured');
  const noXdp = options.kinds.includes('net_af_xdp') ? await probeXdp() : false;
  if (noXdp !== false) say(`net_af_xdp is ${noXdp}`);
  const kinds = options.kinds.filter((kind) => kind !== 'net_af_xdp' || noXdp === false);
  if (kinds.length === 0) throw new Error('no kind of port is left to be measured');
  return { keys, kinds };
}

/** This process and all it starts are in a network of their own, which goes with the last of them. */
function ownNetwork(): void {
  const why = enterOwnNetwork();
  if (why !== undefined) throw new Error(why);
  // a new interface would else speak unasked
  execFileSync('sysctl', ['-qw', 'net.ipv6.conf.all.disable_ipv6=1', 'net.ipv6.conf.default.disable_ipv6=1']);
}

/** One table: a line a load, medians with the lowest and the highest value, and how many times the other's rate ours is. */
function resultTable(loads: readonly UplinkLoad[], keys: readonly string[], gso: boolean): string {
  const unit = gso ? 'gbps' : 'mpps';
  const digits = gso ? 1 : 3;
  const others = keys.includes(OWN) ? keys.filter((key) => key !== OWN) : [];
  const rows = loads
    .filter((load) => load.gso === gso)
    .map((load) => {
      const { kind, direction, peers } = load;
      const shown = (key: string) => {
        const values = peers[key][unit];
        const spread =
          values.length < 2 ? '' : ` (${figure(Math.min(...values), digits)}–${figure(Math.max(...values), digits)})`;
        return `${figure(median(values), digits)}${spread}`;
      };
      const ratio = (key: string) => figure(median(peers[OWN][unit]) / median(peers[key][unit]));
      const loss = (key: string) => `${figure(median(peers[key].lossPercent), 1)} %`;
      return [
        `${kind}, ${direction}, ${sizeName(load)}`,
        ...keys.map(shown),
        ...others.map((key) => (ratio(key) === '–' ? '–' : `${ratio(key)} ×`)),
        keys.map(loss).join(', '),
      ];
    });
  return table([['load', ...keys, ...others.map((key) => `${OWN}/${key}`), `loss: ${keys.join(', ')}`], ...rows]);
}

/** Runs the benchmark; prints its tables. A run that fails makes it fail at the end. */
export async function uplink(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const { keys, kinds } = await present(options);
  ownNetwork();
  const dir = makeTempDir('bench');
  const core = Number(options.core);
  const make = (key: string) => (key === OWN ? ownUplink({ core, dir }) : testpmdUplink({ core, dir }));
  const peers = new Map(keys.map((key) => [key, make(key)]));
  const loads: UplinkLoad[] = kinds.flatMap((kind) => {
    const sizes = options.sizes.map((size) => ({ size, gso: false }));
    const all = options.gso && KINDS[kind].gso ? [...sizes, { size: GSO_BYTES, gso: true }] : sizes;
    return all.flatMap((size) =>
      options.directions.map((direction) => ({
        ...{ kind, direction, ...size },
        peers: Object.fromEntries(keys.map((key) => [key, noResult()])),
      })),
    );
  });
  const alone = [...new Map(loads.map((load) => [sizeName(load), { ...load, direction: 'limit' }])).values()];
  const limit = await limits(options, alone);
  for (let round = 1; round <= options.rounds; round++) {
    for (const [k, kind] of kinds.entries()) {
      for (const key of rotated(keys, round - 1 + k)) {
        // for segments the switch is started anew, with other options; testpmd's ports do not pass them
        for (const gso of key === OWN ? [false, true] : [false]) {
          const these = loads.filter((load) => load.kind === kind && load.gso === gso);
          if (these.length === 0) continue;
          const label = `round ${round}/${options.rounds}  ${kind.padEnd(13)}  ${key.padEnd(7)}`;
          await turn(label, options, peers.get(key) as UplinkPeer, key, KINDS[kind], these);
        }
      }
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const versions = [...peers].map(([key, { name, version, memory }]) => ({ key, name, version, memory }));
  console.log(`\nMpps received: median of ${options.rounds} (lowest–highest)\n`);
  console.log(resultTable(loads, keys, false));
  if (loads.some(({ gso }) => gso)) {
    console.log(`\nSegments of 64 KiB, Gbit/s received: median of ${options.rounds} (lowest–highest)\n`);
    console.log(resultTable(loads, keys, true));
  }
  const sender = alone.map((load) => {
    const { mpps, gbps } = limit[sizeName(load)];
    return `${sizeName(load)} ${load.gso ? `${figure(median(gbps), 1)} Gbit/s` : `${figure(median(mpps), 3)} Mpps`}`;
  });
  console.log(`\nThe world's sender alone, into a cable: ${sender.join(', ')}`);
  console.log(`${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  for (const { key, name, version, memory } of versions) console.log(`${key}: ${name} ${version}; ${memory}`);
  writeJson(options.json, { date, machine, options, kinds: KINDS, peers: versions, limit, loads });
  const failures = loads.flatMap((load) =>
    keys.flatMap((key) =>
      load.peers[key].failures.map((why) => `${key}, ${load.kind}, ${load.direction}, ${sizeName(load)}: ${why}`),
    ),
  );
  if (failures.length > 0) throw new Error(`\n${failures.length} runs failed:\n${failures.join('\n')}`);
}
