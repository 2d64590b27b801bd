/**
 * How long frames are on the way through a switch, from guest to guest and there and back: at parts of the rate at which it loses
 * nothing, which is looked for first, and at rates that leave it time to sleep.
 */
import { parseArgs } from 'node:util';
import { makeTempDir, removeTempDir } from '../test/peers/process.ts';
import type { BenchPeer } from './peers/peer.ts';
import type { SearchResult } from './rate-search.ts';
import { figure, median, table, thisMachine } from './report.ts';
import {
  countOf,
  type Drive,
  drive,
  havePeers,
  listOf,
  rotated,
  say,
  sizesOf,
  tellIfBusy,
  WARM_UP_SECONDS,
  writeJson,
} from './rounds.ts';
import {
  mppsOf,
  NO_RATE,
  numbersOf,
  PACED_PEERS,
  type PacedResult,
  paced,
  SEARCH_ARGS,
  SEARCH_USAGE,
  searchOptions,
  throughput,
} from './trials.ts';

const DEFAULT_PEERS = Object.keys(PACED_PEERS).join(',');
const WAYS = { 'one way': [], 'there and back': ['--echo'] };

export const USAGE = `latency: one way and there and back, at parts of the rate without loss, compared with other switches
  --sizes 60,1514            frame sizes, bytes without FCS
  --percent 10,50,100        of the rate without loss, which is looked for as by rfc2544
  --rates 1000               and at so many frames a second from each guest, whatever the switch
  --seconds 2                at each rate
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
      sizes: { type: 'string', default: '60,1514' },
      percent: { type: 'string', default: '10,50,100' },
      rates: { type: 'string', default: '1000' },
      seconds: { type: 'string', default: '2' },
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
    percent: numbersOf(values.percent, 'percent'),
    rates: numbersOf(values.rates, 'rates'),
    rounds: countOf(values.rounds, 'rounds'),
    search: searchOptions(values),
  };
}

/** One row of the table: a switch, a load and a way, with what each round has found. */
interface Row {
  readonly size: number;
  /** what the load is called */
  readonly load: string;
  readonly way: string;
  readonly peer: string;
  readonly results: PacedResult[];
}

const microseconds = (ns: number) => figure(ns / 1000, 1);

/** Medians over the rounds in which the generator kept the rate, and the longest of all. */
function line({ size, load, way, peer, results }: Row): string[] {
  const kept = results.filter((result) => result.kept);
  const mid = (of: (result: PacedResult) => number) => median(kept.map(of));
  const longest = kept.length === 0 ? Number.NaN : Math.max(...kept.map(({ latency }) => latency.max));
  return [
    `${size} B`,
    load,
    way,
    peer,
    figure(
      mid(({ offered }) => mppsOf(offered)),
      3,
    ),
    microseconds(mid(({ latency }) => latency.p50)),
    microseconds(mid(({ latency }) => latency.p99)),
    microseconds(mid(({ latency }) => latency.p999)),
    microseconds(longest),
    figure(
      mid(({ lossPercent }) => lossPercent),
      4,
    ),
    microseconds(mid(({ resolution }) => resolution.turn.p99)),
    `${results.length - kept.length} of ${results.length}`,
  ];
}

const HEADING = [
  ...['size', 'load', 'way', 'peer', 'Mpps', 'p50 µs', 'p99 µs', 'p99.9 µs', 'longest µs', 'loss %'],
  ...['resolution p99 µs', 'invalid'],
];

/** Runs the benchmark; prints its table. Fails at the end if something could not be measured. */
export async function latency(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const { search, touch, ring, seconds } = options;
  const keys = await havePeers(options.peers, PACED_PEERS);
  const dir = makeTempDir('bench');
  const core = Number(options.core);
  const peers = new Map(keys.map((key) => [key, PACED_PEERS[key].make({ core, dir })]));
  const loads = [
    ...options.rates.map((rate) => ({ name: `${rate} a second`, rateAt: () => rate })),
    ...options.percent.map((percent) => ({ name: `${percent} %`, rateAt: (full: number) => (full * percent) / 100 })),
  ];
  const rows: Row[] = options.sizes.flatMap((size) =>
    loads.flatMap(({ name: load }) =>
      Object.keys(WAYS).flatMap((way) => keys.map((peer) => ({ size, load, way, peer, results: [] }))),
    ),
  );
  const searches: ({ round: number; peer: string; size: number } & SearchResult)[] = [];
  const failures: string[] = [];

  /** Measures a peer that is up, with one frame size. */
  async function measure(label: string, key: string, peer: BenchPeer, load: Drive, round: number): Promise<void> {
    const { size } = load;
    const found =
      options.percent.length === 0
        ? undefined
        : await throughput(label, peer, { ...load, seconds: search.seconds }, search);
    if (found !== undefined) searches.push({ round, peer: key, size, ...found });
    for (const { name, rateAt } of loads) {
      const rate = rateAt(found?.rate ?? 0);
      if (rate < 1) {
        const why = found?.bound === 'unclear' ? NO_RATE : 'there is no rate at which nothing is lost';
        failures.push(`${key}, ${size} B, ${name}: ${why}`);
        continue;
      }
      for (const [way, more] of Object.entries(WAYS)) {
        const result = await paced(peer, { ...load, more }, rate, search.missed);
        rows
          .find((row) => row.size === size && row.load === name && row.way === way && row.peer === key)
          ?.results.push(result);
        const { latency: times, lossPercent, kept, resolution } = result;
        const figures = `p50 ${microseconds(times.p50)}  p99 ${microseconds(times.p99)}  longest ${microseconds(times.max)} µs`;
        const worth = kept
          ? ''
          : `  invalid: the rate was not kept, with pauses of ${microseconds(resolution.turn.max)} µs`;
        say(`${label}  ${name.padEnd(13)} ${way.padEnd(14)}  ${figures}  loss ${lossPercent.toFixed(4)} %${worth}`);
      }
    }
  }

  for (let round = 1; round <= options.rounds; round++) {
    for (const key of rotated(keys, round - 1)) {
      const peer = peers.get(key) as BenchPeer;
      const label = `round ${round}/${options.rounds}  ${key.padEnd(13)}`;
      await tellIfBusy(label);
      try {
        await peer.start();
        const load = { core: options['generator-core'], touch, ring, seconds, warmup: search.warmup, more: [] };
        await drive(peer, { ...load, size: options.sizes[0], touch: true, seconds: WARM_UP_SECONDS });
        for (const size of options.sizes)
          await measure(`${label}  ${String(size).padStart(4)} B`, key, peer, { ...load, size }, round);
      } catch (error) {
        say(`${label}  ${(error as Error).message}`);
        failures.push(`${key}: ${(error as Error).message}`);
      } finally {
        await peer.stop();
      }
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const versions = [...peers].map(([key, { name, version, memory }]) => ({ key, name, version, memory }));
  console.log(
    `\nLatency: medians of ${options.rounds} rounds, and the longest of all. Mpps: both directions together\n`,
  );
  console.log(table([HEADING, ...rows.map(line)]));
  console.log(`\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}`);
  for (const { key, name, version, memory } of versions) console.log(`${key}: ${name} ${version}; ${memory}`);
  writeJson(options.json, { date, machine, options, peers: versions, rows, searches });
  if (failures.length > 0) throw new Error(`\n${failures.length} failed:\n${failures.join('\n')}`);
}
