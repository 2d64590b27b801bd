/**
 * Trials: a switch under load at a rate. What they are worth is said by the generator: a rate that it did not keep, or a frame that is
 * missing after it had not looked for too long, says nothing of the switch.
 */
import { ownPeer } from './peers/ours.ts';
import type { BenchPeer } from './peers/peer.ts';
import { bestOf, type SearchResult, searchRate, type Verdict } from './rate-search.ts';
import { countOf, type Drive, type DriveResult, drive, OWN, PEERS, say } from './rounds.ts';

/** Our switch with lcores that sleep. */
const OWN_ADAPTIVE = 'ours-adaptive';
export const PACED_PEERS: typeof PEERS = {
  [OWN]: PEERS[OWN],
  [OWN_ADAPTIVE]: { make: (options) => ownPeer(options, ['--poll', 'adaptive', '--mergeable', '1']) },
  testpmd: PEERS.testpmd,
  ovs: PEERS.ovs,
};

/** ns */
export interface Times {
  readonly count: number;
  readonly min: number;
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

/** What the generator prints of a load at a rate. */
export interface PacedResult extends DriveResult {
  /** frames a second that each sender was to offer */
  readonly rate: number;
  /** and did offer */
  readonly offered: number;
  /** entries of each ring */
  readonly ring: number;
  readonly due: number;
  readonly missed: number;
  readonly stalls: number;
  readonly refused: number;
  readonly lost: number;
  readonly lossPercent: number;
  readonly kept: boolean;
  readonly latency: Times;
  readonly impossible: number;
  readonly resolution: { readonly turn: Times; readonly clockStep: number };
}

/** How a throughput is looked for, as options say. */
export interface SearchOptions {
  readonly seconds: string;
  readonly warmup: string;
  readonly steps: number;
  readonly tries: number;
  readonly percent: number;
  readonly tolerate: number;
  readonly missed: number;
  /** the rate to begin with, frames a second from each sender; undefined: measured */
  readonly top: number | undefined;
}

/** parseArgs' options for a search. */
export const SEARCH_ARGS = {
  'trial-seconds': { type: 'string', default: '2' },
  warmup: { type: 'string', default: '0.5' },
  steps: { type: 'string', default: '9' },
  tries: { type: 'string', default: '3' },
  precision: { type: 'string', default: '2' },
  tolerate: { type: 'string', default: '0' },
  missed: { type: 'string', default: '0.1' },
  top: { type: 'string' },
} as const;

export const SEARCH_USAGE = `  --trial-seconds 2  --warmup 0.5
  --steps 9                  rates tried at most in a search
  --tries 3                  a trial that does not pass is repeated, so often in all
  --precision 2              percent of the rate at which a search ends
  --tolerate 0               percent of the frames that may be lost
  --missed 0.1               percent of the frames that the generator may miss: more, and the rate was not kept
  --top MPPS                 both directions together, the rate to begin with; else a quarter more than goes through`;

/** A number that is not negative. Throws RangeError. */
function percentOf(text: string, option: string): number {
  const percent = Number(text);
  if (text !== '' && percent >= 0 && percent <= 100) return percent;
  throw new RangeError(`--${option} is a number from 0 to 100`);
}

/** Reads SEARCH_ARGS. Throws RangeError. */
export function searchOptions(
  values: Record<Exclude<keyof typeof SEARCH_ARGS, 'top'>, string> & { top?: string | undefined },
): SearchOptions {
  const [top] = numbersOf(values.top ?? '', 'top');
  return {
    seconds: values['trial-seconds'],
    warmup: values.warmup,
    steps: countOf(values.steps, 'steps'),
    tries: countOf(values.tries, 'tries'),
    percent: percentOf(values.precision, 'precision'),
    tolerate: percentOf(values.tolerate, 'tolerate'),
    missed: percentOf(values.missed, 'missed'),
    top: top === undefined ? undefined : (top * 1e6) / 2,
  };
}

/** Numbers above zero, with commas. Throws RangeError. */
export function numbersOf(text: string, option: string): number[] {
  const numbers = text
    .split(',')
    .filter((word) => word !== '')
    .map(Number);
  if (numbers.every((number) => number > 0 && Number.isFinite(number))) return numbers;
  throw new RangeError(`--${option} are numbers above 0, with commas`);
}

/**
 * What a trial says. Each time the generator was not there it may have cost a ring of frames, for it does not send then either: more
 * loss is the switch's own.
 */
export function verdictOf({ kept, lossPercent, lost, refused, stalls, ring }: PacedResult, tolerate: number): Verdict {
  if (!kept) return 'unclear';
  if (lossPercent <= tolerate) return 'pass';
  return lost + refused <= stalls * ring ? 'unclear' : 'loss';
}

/** Runs the generator at a rate of so many frames a second from each sender. `missed`: percent of them that it may miss */
export function paced(peer: BenchPeer, load: Drive, rate: number, missed: number): Promise<PacedResult> {
  const more = [...load.more, '--rate', String(Math.round(rate)), '--missed', String(missed)];
  return drive<PacedResult>(peer, { ...load, more });
}

/** A rate as people read it: both directions together. */
export const mppsOf = (rate: number) => (2 * rate) / 1e6;

/** Why there is no throughput at all, not even none. */
export const NO_RATE = 'the generator has kept none of the rates: the machine is busy with something else';

/** More than is received of all that goes in: what is tried first. */
const TOP = 1.25;

/** Looks for the throughput of a peer that is up. `load`: with the seconds of one trial. */
export async function throughput(
  label: string,
  peer: BenchPeer,
  load: Drive,
  { steps, tries, percent, tolerate, missed: mayMiss, top: given }: SearchOptions,
): Promise<SearchResult> {
  const top = given ?? (TOP * (await drive(peer, load)).mpps * 1e6) / 2;
  return await searchRate({ top, steps, percent }, (rate) =>
    bestOf(tries, async () => {
      const result = await paced(peer, load, rate, mayMiss);
      const verdict = verdictOf(result, tolerate);
      const { due, lost, refused, missed, stalls } = result;
      const figures = `of ${due} frames lost ${lost}, refused ${refused}; missed by the generator ${missed} in ${stalls} pauses`;
      say(`${label}  ${mppsOf(rate).toFixed(3).padStart(7)} Mpps  ${verdict.padEnd(7)}  ${figures}`);
      return verdict;
    }),
  );
}
