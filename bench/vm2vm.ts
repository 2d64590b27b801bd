/**
 * Frames from guest to guest through one polling core, ours and others', under the same load: rounds in which each peer in its
 * turn is started, driven with every load, and stopped, so that a drift of the machine meets all alike.
 */
import { rmSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ensurePeers, type Peer } from '../test/peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../test/peers/process.ts';
import { dpdkVhostPeer } from './peers/dpdk-vhost.ts';
import { type OwnPeer, ownPeer } from './peers/ours.ts';
import { ovsPeer } from './peers/ovs.ts';
import type { BenchPeer, BenchPeerOptions } from './peers/peer.ts';
import { testpmdPeer } from './peers/testpmd.ts';
import { type LoadResult, loadTable, median, thisMachine } from './report.ts';

const GENERATOR = fileURLToPath(new URL('generator.ts', import.meta.url));
const OWN = 'ours';
const WARM_UP_SECONDS = '1';
const LOOK_MS = 300;
const QUIET_PERCENT = 10;
const PEERS: Record<string, { needs?: Peer; make: (options: BenchPeerOptions) => BenchPeer }> = {
  [OWN]: { make: ownPeer },
  testpmd: { needs: 'dpdk', make: testpmdPeer },
  'dpdk-vhost': { needs: 'dpdk-vhost', make: dpdkVhostPeer },
  ovs: { needs: 'ovs', make: ovsPeer },
};

export const USAGE = `vm2vm: guest to guest through one polling core, compared with other switches
  --sizes 64,512,1500        frame sizes, bytes without FCS
  --touch both|yes|no        the guests touch the payload, or move indexes only (default both)
  --rounds 5  --seconds 2  --warmup 0.5
  --peers ${Object.keys(PEERS).join(',')}
  --core 0                   CPU of the switch
  --generator-core 1         CPU of the generator
  --ring 256  --mergeable  --one-way
  --json FILE                all values`;

/** The keys, beginning with another one each round: who comes first finds memory that nobody has used for a while. */
function rotated(keys: readonly string[], by: number): string[] {
  const at = by % keys.length;
  return [...keys.slice(at), ...keys.slice(0, at)];
}

/** What the generator prints, as far as it is used here. */
interface GeneratorResult {
  mpps: number;
  firstFrameMs: number;
  inOrder: boolean;
  disorder: number;
  preempted: number;
  directions: { sent: number; received: number }[];
}

const say = (text: string) => process.stderr.write(`${text}\n`);
const listOf = (text: string) => text.split(',').filter((word) => word !== '');

function parse(argv: readonly string[]) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      sizes: { type: 'string', default: '64,512,1500' },
      touch: { type: 'string', default: 'both' },
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '2' },
      warmup: { type: 'string', default: '0.5' },
      peers: { type: 'string', default: Object.keys(PEERS).join(',') },
      core: { type: 'string', default: '0' },
      'generator-core': { type: 'string', default: '1' },
      ring: { type: 'string', default: '256' },
      mergeable: { type: 'boolean', default: false },
      'one-way': { type: 'boolean', default: false },
      json: { type: 'string' },
    },
  });
  const peers = listOf(values.peers);
  const unknown = peers.find((key) => !(key in PEERS));
  if (unknown !== undefined) throw new RangeError(`no peer "${unknown}": there are ${Object.keys(PEERS).join(', ')}`);
  const touches = { both: [false, true], yes: [true], no: [false] }[values.touch];
  if (touches === undefined) throw new RangeError('--touch is both, yes or no');
  return { ...values, peers, touches, sizes: listOf(values.sizes).map(Number), rounds: Number(values.rounds) };
}

/** How busy all CPUs are while nothing of ours runs. */
async function busyPercent(): Promise<number> {
  const idle = () => cpus().map(({ times }) => times.idle);
  const [before, from] = [idle(), performance.now()];
  await sleep(LOOK_MS);
  const elapsed = performance.now() - from;
  const idleMs = idle().reduce((sum, ms, i) => sum + ms - before[i], 0);
  return Math.max(0, 100 * (1 - idleMs / before.length / elapsed));
}

type Options = ReturnType<typeof parse>;

/** Leaves out the peers that cannot be had here, and says why. */
async function havePeers(keys: readonly string[]): Promise<string[]> {
  const { leftOut } = await ensurePeers(keys.flatMap((key) => PEERS[key].needs ?? []));
  for (const { peer, why } of leftOut) say(`${peer} is left out: ${why}`);
  return keys.filter((key) => !leftOut.some(({ peer }) => peer === PEERS[key].needs));
}

/** Runs the generator once against a peer that is up. Throws with its last lines if it fails. */
async function drive(peer: BenchPeer, size: number, touch: boolean, options: Options): Promise<GeneratorResult> {
  const { ring, seconds, warmup } = options;
  const generator = new PeerProcess({
    name: 'generator',
    command: process.execPath,
    args: [
      GENERATOR,
      ...peer.sockets.flatMap((socket) => ['--socket', socket]),
      ...['--core', options['generator-core'], '--size', String(size), '--ring', ring],
      ...['--seconds', seconds, '--warmup', warmup],
      ...(touch ? ['--touch'] : []),
      ...(options.mergeable ? ['--mergeable'] : []),
      ...(options['one-way'] ? ['--one-way'] : []),
    ],
  });
  if (!(await generator.endsWithin(1000 * (Number(seconds) + Number(warmup)) + 30_000))) await generator.stop(0);
  const line = generator.outputSince(0).trim().split('\n').at(-1) ?? '';
  if (generator.endedHow !== 'ended with status 0' || !line.startsWith('{')) {
    const reason = /^\w*Error.*$/m.exec(generator.outputSince(0))?.[0];
    throw new Error(reason ?? `${generator.endedHow}: ${generator.lastLines(3)}`);
  }
  const result = JSON.parse(line) as GeneratorResult;
  if (!result.inOrder || result.disorder > 0) throw new Error('frames came out of order');
  return result;
}

/** What is measured of our own switch besides its rate, a value a round. */
class OwnFigures {
  readonly startMs: number[] = [];
  readonly firstFrameMs: number[] = [];
  readonly residentBytes: number[] = [];

  /** Call after the round's loads, with the peer still up. `firstFrameMs`: of the first guests to connect. */
  take(peer: OwnPeer, firstFrameMs: number): void {
    this.startMs.push(peer.startMs);
    this.residentBytes.push(peer.residentBytes());
    this.firstFrameMs.push(firstFrameMs);
  }

  toString(): string {
    const mebibytes = median(this.residentBytes) / 2 ** 20;
    return [
      `start to listening: ${median(this.startMs).toFixed(0)} ms`,
      `connect to first frame (two guests connect, learn, send): ${median(this.firstFrameMs).toFixed(0)} ms`,
      `resident memory beyond guest memory: ${mebibytes.toFixed(0)} MiB`,
    ].join('\n');
  }
}

/** Runs the benchmark; prints its table. */
export async function vm2vm(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const keys = await havePeers(options.peers);
  const dir = makeTempDir('bench');
  const core = Number(options.core);
  const peers = new Map(keys.map((key) => [key, PEERS[key].make({ core, dir })]));
  const noResult = () => ({ mpps: [], lossPercent: [], preempted: [], failures: [] });
  const loads: LoadResult[] = options.touches.flatMap((touch) =>
    options.sizes.map((size) => ({
      size,
      touch,
      peers: Object.fromEntries(keys.map((key) => [key, noResult()])),
    })),
  );
  const memory: Record<string, string> = {};
  const own = new OwnFigures();
  for (let round = 1; round <= options.rounds; round++) {
    for (const key of rotated(keys, round - 1)) {
      const peer = peers.get(key) as BenchPeer;
      const label = `round ${round}/${options.rounds}  ${key.padEnd(10)}`;
      const busy = await busyPercent();
      if (busy > QUIET_PERCENT) say(`${label}  the machine is busy with something else: ${busy.toFixed(0)} %`);
      try {
        await peer.start();
        memory[key] = peer.memory;
        // Not counted: programs find their pace, ours its machine code.
        const { firstFrameMs } = await drive(peer, options.sizes[0], true, { ...options, seconds: WARM_UP_SECONDS });
        await driveAll(label, key, peer, loads, options);
        if (key === OWN) own.take(peer as OwnPeer, firstFrameMs);
      } catch (error) {
        say(`${label}  ${(error as Error).message}`);
        for (const load of loads) load.peers[key].failures.push((error as Error).message);
      } finally {
        await peer.stop();
      }
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const versions = [...peers].map(([key, { name, version }]) => ({ key, name, version, memory: memory[key] }));
  console.log(`\nMpps received, both directions together: median of ${options.rounds} (lowest–highest)\n`);
  console.log(loadTable(loads, keys, OWN));
  if (keys.includes(OWN)) console.log(`\n${own}`);
  console.log(`\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  for (const { key, name, version, memory } of versions) console.log(`${key}: ${name} ${version}; ${memory}`);
  if (options.json !== undefined) {
    rmSync(options.json, { force: true });
    writeFileSync(
      options.json,
      `${JSON.stringify({ date, machine, options, peers: versions, loads, own }, null, 2)}\n`,
    );
  }
}

/** Drives one peer with every load, and adds to its results. */
async function driveAll(label: string, key: string, peer: BenchPeer, loads: readonly LoadResult[], options: Options) {
  for (const { size, touch, peers } of loads) {
    const what = `${label}  ${String(size).padStart(4)} B ${touch ? 'touched  ' : 'untouched'}`;
    const result = peers[key];
    try {
      const { mpps, directions, preempted } = await drive(peer, size, touch, options);
      const sent = directions.reduce((sum, d) => sum + d.sent, 0);
      const received = directions.reduce((sum, d) => sum + d.received, 0);
      const lossPercent = sent === 0 ? 0 : (100 * (sent - received)) / sent;
      result.mpps.push(mpps);
      result.lossPercent.push(lossPercent);
      result.preempted.push(preempted);
      const disturbed = preempted > 100 * Number(options.seconds) ? `  disturbed: core lost ${preempted} times` : '';
      say(`${what}  ${mpps.toFixed(2).padStart(6)} Mpps  loss ${lossPercent.toFixed(2)} %${disturbed}`);
    } catch (error) {
      result.failures.push((error as Error).message);
      say(`${what}  failed: ${(error as Error).message}`);
    }
  }
}
