/**
 * The ten ring paths of DPDK's virtio driver, ours against DPDK's testpmd: for each path in its turn, both are started, driven with
 * every frame size, and stopped. Our generator is the driver, with the features that DPDK's negotiates for the path.
 */
import { parseArgs } from 'node:util';
import { makeTempDir, removeTempDir } from '../test/peers/process.ts';
import type { BenchPeer } from './peers/peer.ts';
import { figure, type LoadResult, loadName, loadTable, median, table, thisMachine } from './report.ts';
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

const COMPARED = [OWN, 'testpmd'];
/** What DPDK's driver has on every path: it polls, and its frames are one descriptor each, whether it may use tables or not. */
const ALWAYS = ['--no-event-idx', '--indirect'];
/** How DPDK's vector code gives buffers: receive buffers so many at a time, packed frames by the cache line. */
const VECTOR_RX = ['--rx-block', '32'];
const VECTOR_TX = ['--tx-block', '4'];

/** What the driver is like on a path, as options of the generator, by the names of DPDK's test plans. */
const SPLIT: Record<string, readonly string[]> = {
  'split-mergeable': ['--mergeable'],
  'split-non-mergeable': [],
  'split-vector_rx': VECTOR_RX,
  'split-inorder-mergeable': ['--mergeable', '--in-order'],
  'split-inorder-non-mergeable': ['--in-order'],
};
const PACKED: Record<string, readonly string[]> = {
  'packed-mergeable': ['--packed', '--mergeable'],
  'packed-non-mergeable': ['--packed'],
  'packed-inorder-mergeable': ['--packed', '--mergeable', '--in-order'],
  'packed-inorder-non-mergeable': ['--packed', '--in-order'],
  'packed-vectorized': ['--packed', '--in-order', ...VECTOR_RX, ...VECTOR_TX],
};
const PATHS = { ...SPLIT, ...PACKED };
/** The split path that a packed one is held against: the same but for the format, as far as there is one. */
const COUNTERPART: Record<string, string> = {
  'packed-mergeable': 'split-mergeable',
  'packed-non-mergeable': 'split-non-mergeable',
  'packed-inorder-mergeable': 'split-inorder-mergeable',
  'packed-inorder-non-mergeable': 'split-inorder-non-mergeable',
  'packed-vectorized': 'split-vector_rx',
};

export const USAGE = `paths: the ten ring paths of DPDK's virtio driver, guest to guest, ours against testpmd
  --paths LIST               some of ${Object.keys(SPLIT).join(',')},
                             ${Object.keys(PACKED).join(',')}
  --sizes 64,512,1518        frame sizes, bytes without FCS
  --touch both|yes|no        the guests touch the payload, or move indexes and descriptors only (default both)
  --rounds 3  --seconds 1  --warmup 0.3
  --peers ${COMPARED.join(',')}
  --core 0                   CPU of the switch
  --generator-core 1         CPU of the generator
  --ring 256
  --json FILE                all values`;

function parse(argv: readonly string[]) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      paths: { type: 'string', default: Object.keys(PATHS).join(',') },
      sizes: { type: 'string', default: '64,512,1518' },
      touch: { type: 'string', default: 'both' },
      rounds: { type: 'string', default: '3' },
      seconds: { type: 'string', default: '1' },
      warmup: { type: 'string', default: '0.3' },
      peers: { type: 'string', default: COMPARED.join(',') },
      core: { type: 'string', default: '0' },
      'generator-core': { type: 'string', default: '1' },
      ring: { type: 'string', default: '256' },
      json: { type: 'string' },
    },
  });
  const { rounds, sizes, touch } = values;
  const paths = listOf(values.paths, 'path', Object.keys(PATHS));
  const peers = listOf(values.peers, 'peer', COMPARED);
  return {
    ...values,
    paths,
    peers,
    touches: touchesOf(touch),
    sizes: sizesOf(sizes),
    rounds: countOf(rounds, 'rounds'),
  };
}

/** How many times the rate of its split counterpart each packed path has, by medians. Rows of a table, without a heading. */
function packedAgainstSplit(loads: readonly LoadResult[], keys: readonly string[]): string[][] {
  return loads.flatMap(({ path = '', size, touch, peers }) => {
    const split = loads.find(
      (load) => load.path === COUNTERPART[path] && load.size === size && load.touch === touch,
    )?.peers;
    if (split === undefined) return [];
    const ratio = (key: string) => `${figure(median(peers[key].mpps) / median(split[key].mpps))} ×`;
    return [[loadName(size, touch, path), COUNTERPART[path], ...keys.map(ratio)]];
  });
}

/** Runs the benchmark; prints its tables. Frames that do not arrive as they should make it fail at the end. */
export async function paths(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const keys = await havePeers(options.peers);
  const dir = makeTempDir('bench');
  const core = Number(options.core);
  const peers = new Map(keys.map((key) => [key, PEERS[key].make({ core, dir })]));
  const loads: LoadResult[] = options.paths.flatMap((path) =>
    options.touches.flatMap((touch) =>
      options.sizes.map((size) => ({
        path,
        size,
        touch,
        peers: Object.fromEntries(keys.map((key) => [key, noResult()])),
      })),
    ),
  );
  const { ring, seconds, warmup } = options;
  for (let round = 1; round <= options.rounds; round++) {
    for (const [p, path] of options.paths.entries()) {
      const more = [...ALWAYS, ...PATHS[path]];
      for (const key of rotated(keys, round - 1 + p)) {
        const measurements = loads
          .filter((load) => load.path === path)
          .map(({ size, touch, peers: results }) => ({
            load: { core: options['generator-core'], size, touch, seconds, warmup, ring, more },
            result: results[key],
          }));
        const label = `round ${round}/${options.rounds}  ${path.padEnd(28)}  ${key.padEnd(8)}`;
        await turn(label, peers.get(key) as BenchPeer, measurements);
      }
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const versions = [...peers].map(([key, { name, version, memory }]) => ({ key, name, version, memory }));
  console.log(`\nMpps received, both directions together: median of ${options.rounds} (lowest–highest)\n`);
  console.log(loadTable(loads, keys, OWN));
  const packed = packedAgainstSplit(loads, keys);
  if (packed.length > 0) {
    console.log('\nPacked rings: how many times the rate of split ones\n');
    console.log(table([['load', 'against', ...keys], ...packed]));
  }
  console.log(`\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  for (const { key, name, version, memory } of versions) console.log(`${key}: ${name} ${version}; ${memory}`);
  writeJson(options.json, { date, machine, options, generator: PATHS, always: ALWAYS, peers: versions, loads });
  const failures = loads.flatMap(({ path, size, touch, peers: results }) =>
    keys.flatMap((key) => results[key].failures.map((why) => `${key}, ${loadName(size, touch, path)}: ${why}`)),
  );
  if (failures.length > 0) throw new Error(`\n${failures.length} runs failed:\n${failures.join('\n')}`);
}
