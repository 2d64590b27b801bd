/**
 * Frames from guest to guest through one polling core, ours and others', under the same load: rounds in which each peer in its
 * turn is started, driven with every load, and stopped, so that a drift of the machine meets all alike.
 */
import { parseArgs } from 'node:util';
import { makeTempDir, removeTempDir } from '../test/peers/process.ts';
import type { OwnPeer } from './peers/ours.ts';
import type { BenchPeer } from './peers/peer.ts';
import { type LoadResult, loadTable, median, thisMachine } from './report.ts';
import {
  countOf,
  havePeers,
  listOf,
  noResult,
  OWN,
  PEERS,
  rotated,
  sizesOf,
  touchesOf,
  turn,
  writeJson,
} from './rounds.ts';

export const USAGE = `vm2vm: guest to guest through one polling core, compared with other switches
  --sizes 64,512,1500        frame sizes, bytes without FCS
  --touch both|yes|no        the guests touch the payload, or move indexes only (default both)
  --rounds 5  --seconds 2  --warmup 0.5
  --peers ${Object.keys(PEERS).join(',')}
  --core 0                   CPU of the switch
  --generator-core 1         CPU of the generator
  --ring 256  --mergeable  --one-way
  --json FILE                all values`;

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
  const { rounds, sizes, touch } = values;
  const peers = listOf(values.peers, 'peer', Object.keys(PEERS));
  return { ...values, peers, touches: touchesOf(touch), sizes: sizesOf(sizes), rounds: countOf(rounds, 'rounds') };
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
  const loads: LoadResult[] = options.touches.flatMap((touch) =>
    options.sizes.map((size) => ({
      size,
      touch,
      peers: Object.fromEntries(keys.map((key) => [key, noResult()])),
    })),
  );
  const own = new OwnFigures();
  const more = [...(options.mergeable ? ['--mergeable'] : []), ...(options['one-way'] ? ['--one-way'] : [])];
  const { ring, seconds, warmup } = options;
  for (let round = 1; round <= options.rounds; round++) {
    for (const key of rotated(keys, round - 1)) {
      const peer = peers.get(key) as BenchPeer;
      const measurements = loads.map(({ size, touch, peers: results }) => ({
        load: { core: options['generator-core'], size, touch, seconds, warmup, ring, more },
        result: results[key],
      }));
      await turn(`round ${round}/${options.rounds}  ${key.padEnd(10)}`, peer, measurements, ({ firstFrameMs }) => {
        if (key === OWN) own.take(peer as OwnPeer, firstFrameMs);
      });
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const versions = [...peers].map(([key, { name, version, memory }]) => ({ key, name, version, memory }));
  console.log(`\nMpps received, both directions together: median of ${options.rounds} (lowest–highest)\n`);
  console.log(loadTable(loads, keys, OWN));
  if (keys.includes(OWN)) console.log(`\n${own}`);
  console.log(`\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  for (const { key, name, version, memory } of versions) console.log(`${key}: ${name} ${version}; ${memory}`);
  writeJson(options.json, { date, machine, options, peers: versions, loads, own });
}
