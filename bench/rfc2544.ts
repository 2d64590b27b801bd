/**
 * Throughput as RFC 2544 means it: the highest rate at which a switch loses nothing, looked for by halves, ours and others'.
 */
import { parseArgs } from 'node:util';
import { makeTempDir, removeTempDir } from '../test/peers/process.ts';
import type { BenchPeer } from './peers/peer.ts';
import type { SearchResult } from './rate-search.ts';
import { type LoadResult, loadTable, thisMachine } from './report.ts';
import {
  countOf,
  type Drive,
  drive,
  havePeers,
  listOf,
  noResult,
  OWN,
  rotated,
  say,
  sizesOf,
  tellIfBusy,
  WARM_UP_SECONDS,
  writeJson,
} from './rounds.ts';
import { mppsOf, NO_RATE, PACED_PEERS, SEARCH_ARGS, SEARCH_USAGE, searchOptions, throughput } from './trials.ts';

const DEFAULT_PEERS = Object.keys(PACED_PEERS).join(',');

export const USAGE = `rfc2544: the highest rate without loss, guest to guest both ways, compared with other switches
  --sizes 60,508,1514        frame sizes, bytes without FCS; RFC 2544's are 60,124,252,508,1020,1276,1514
${SEARCH_USAGE}
  --rounds 3
  --peers ${DEFAULT_PEERS}
  --core 0                   CPU of the switch
  --generator-core 1         CPU of the generator
  --touch                    the guests touch every cache line of a frame, not the first only
  --ring 256
  --json FILE                all values`;

function parse(argv: readonly string[]) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      ...SEARCH_ARGS,
      sizes: { type: 'string', default: '60,508,1514' },
      touch: { type: 'boolean', default: false },
      rounds: { type: 'string', default: '3' },
      peers: { type: 'string', default: DEFAULT_PEERS },
      core: { type: 'string', default: '0' },
      'generator-core': { type: 'string', default: '1' },
      ring: { type: 'string', default: '256' },
      json: { type: 'string' },
    },
  });
  return {
    ...values,
    peers: listOf(values.peers, 'peer', Object.keys(PACED_PEERS)),
    sizes: sizesOf(values.sizes),
    rounds: countOf(values.rounds, 'rounds'),
    search: searchOptions(values),
  };
}

/** Runs the benchmark; prints its table. Fails at the end if a search could not be made. */
export async function rfc2544(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const { search, touch, ring } = options;
  const keys = await havePeers(options.peers, PACED_PEERS);
  const dir = makeTempDir('bench');
  const core = Number(options.core);
  const peers = new Map(keys.map((key) => [key, PACED_PEERS[key].make({ core, dir })]));
  const loads: LoadResult[] = options.sizes.map((size) => ({
    size,
    touch,
    peers: Object.fromEntries(keys.map((key) => [key, noResult()])),
  }));
  const searches: ({ round: number; peer: string; size: number } & SearchResult)[] = [];
  for (let round = 1; round <= options.rounds; round++) {
    for (const key of rotated(keys, round - 1)) {
      const peer = peers.get(key) as BenchPeer;
      const label = `round ${round}/${options.rounds}  ${key.padEnd(13)}`;
      await tellIfBusy(label);
      try {
        await peer.start();
        const load = (size: number): Drive => ({
          ...{ core: options['generator-core'], size, touch, ring, more: [] },
          ...{ seconds: search.seconds, warmup: search.warmup },
        });
        await drive(peer, { ...load(options.sizes[0]), touch: true, seconds: WARM_UP_SECONDS });
        for (const { size, peers: results } of loads) {
          const what = `${label}  ${String(size).padStart(4)} B`;
          const found = await throughput(what, peer, load(size), search);
          searches.push({ round, peer: key, size, ...found });
          if (found.rate === 0 && found.bound === 'unclear') {
            results[key].failures.push(`${size} B: ${NO_RATE}`);
            say(`${what}  failed: ${NO_RATE}`);
            continue;
          }
          results[key].mpps.push(mppsOf(found.rate));
          const limit = found.bound === 'unclear' ? '; the generator or the machine is the limit' : '';
          say(`${what}  ${mppsOf(found.rate).toFixed(3).padStart(7)} Mpps  is the throughput${limit}`);
        }
      } catch (error) {
        say(`${label}  ${(error as Error).message}`);
        for (const { size, peers: results } of loads)
          results[key].failures.push(`${size} B: ${(error as Error).message}`);
      } finally {
        await peer.stop();
      }
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const versions = [...peers].map(([key, { name, version, memory }]) => ({ key, name, version, memory }));
  const loss = search.tolerate === 0 ? 'without loss' : `with a loss of ${search.tolerate} % at most`;
  console.log(`\nMpps ${loss}, both directions together: median of ${options.rounds} (lowest–highest)\n`);
  console.log(loadTable(loads, keys, OWN));
  const unclear = searches.filter(({ bound }) => bound === 'unclear');
  if (unclear.length > 0) {
    console.log(
      `\n${unclear.length} of ${searches.length} searches ended where the generator could not keep the rate, or was`,
    );
    console.log('disturbed: their throughput is at least what is told');
  }
  console.log(`\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  for (const { key, name, version, memory } of versions) console.log(`${key}: ${name} ${version}; ${memory}`);
  writeJson(options.json, { date, machine, options, peers: versions, loads, searches });
  const failures = loads.flatMap(({ peers: results }) =>
    keys.flatMap((key) => results[key].failures.map((why) => `${key}: ${why}`)),
  );
  if (failures.length > 0) throw new Error(`\n${failures.length} searches failed:\n${failures.join('\n')}`);
}
