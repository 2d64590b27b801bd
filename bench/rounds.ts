/**
 * What the benchmarks with the load generator have in common: the switches to compare, driving one of them, and collecting what
 * it did. Each is started, driven and stopped in its turn, so that only one polls at any time, and a drift of the machine meets all.
 */
import { rmSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ensurePeers, type Peer } from '../test/peers/packages.ts';
import { PeerProcess } from '../test/peers/process.ts';
import { dpdkVhostPeer } from './peers/dpdk-vhost.ts';
import { ownPeer } from './peers/ours.ts';
import { ovsPeer } from './peers/ovs.ts';
import type { BenchPeer, BenchPeerOptions } from './peers/peer.ts';
import { referencePeer } from './peers/reference.ts';
import { testpmdPeer } from './peers/testpmd.ts';
import type { PeerResult } from './report.ts';

const GENERATOR = fileURLToPath(new URL('generator.ts', import.meta.url));
const LOOK_MS = 300;
const QUIET_PERCENT = 10;
/** For connecting, learning, checking and ending. */
const GENERATOR_EXTRA_MS = 30_000;
/** More preemptions a second: something else had the generator's core. */
const DISTURBED_PER_SECOND = 100;

/** Fewer looks of the generator in vain: it has hardly waited for the switch, for a look costs far less than a burst. */
const LIMITED_PERCENT = 50;

export const OWN = 'ours';
export const PEERS: Record<string, { needs?: Peer; make: (options: BenchPeerOptions) => BenchPeer }> = {
  [OWN]: { make: (options) => ownPeer(options) },
  testpmd: { needs: 'dpdk', make: testpmdPeer },
  'dpdk-vhost': { needs: 'dpdk-vhost', make: dpdkVhostPeer },
  ovs: { needs: 'ovs', make: ovsPeer },
  reference: { needs: 'gcc', make: referencePeer },
};

export const WARM_UP_SECONDS = '1';

/** To the terminal, beside the result. */
export const say = (text: string) => process.stderr.write(`${text}\n`);

/** The words of a list with commas, each of which is one of `known`. Throws RangeError. */
export function listOf(text: string, what: string, known: readonly string[]): string[] {
  const words = text.split(',').filter((word) => word !== '');
  const unknown = words.find((word) => !known.includes(word));
  if (unknown !== undefined) throw new RangeError(`no ${what} "${unknown}": there are ${known.join(', ')}`);
  if (words.length === 0) throw new RangeError(`no ${what} is named: there are ${known.join(', ')}`);
  return words;
}

/** Frame sizes from a list with commas. Throws RangeError. */
export function sizesOf(text: string): number[] {
  const sizes = text.split(',').map(Number);
  if (sizes.every((size) => Number.isInteger(size) && size >= 60 && size <= 1522)) return sizes;
  throw new RangeError('--sizes are frame sizes of 60 to 1522 bytes, with commas');
}

/** A count of at least 1. Throws RangeError. */
export function countOf(text: string, option: string): number {
  const count = Number(text);
  if (Number.isInteger(count) && count > 0) return count;
  throw new RangeError(`--${option} is a number from 1 on`);
}

/** What `--touch` says. Throws RangeError. */
export function touchesOf(text: string): boolean[] {
  const touches = { both: [false, true], yes: [true], no: [false] }[text];
  if (touches === undefined) throw new RangeError('--touch is both, yes or no');
  return touches;
}

/** The keys, beginning with another one each round: who comes first finds memory that nobody has used for a while. */
export function rotated(keys: readonly string[], by: number): string[] {
  const at = by % keys.length;
  return [...keys.slice(at), ...keys.slice(0, at)];
}

/** Leaves out the peers that cannot be had here, and says why. Throws if none is left. */
export async function havePeers(keys: readonly string[], peers = PEERS): Promise<string[]> {
  const { leftOut } = await ensurePeers([...new Set(keys.flatMap((key) => peers[key].needs ?? []))]);
  for (const { peer, why } of leftOut) say(`${peer} is left out: ${why}`);
  const present = keys.filter((key) => !leftOut.some(({ peer }) => peer === peers[key].needs));
  if (present.length === 0) throw new Error('no peer is left to be measured');
  return present;
}

/** Tells if the CPUs are busy while nothing of ours runs. */
export async function tellIfBusy(label: string): Promise<void> {
  const idle = () => cpus().map(({ times }) => times.idle);
  const [before, from] = [idle(), performance.now()];
  await sleep(LOOK_MS);
  const elapsed = performance.now() - from;
  const idleMs = idle().reduce((sum, ms, i) => sum + ms - before[i], 0);
  const busy = 100 * (1 - idleMs / before.length / elapsed);
  if (busy > QUIET_PERCENT) say(`${label}  the machine is busy with something else: ${busy.toFixed(0)} %`);
}

/** What the generator prints, whatever the load. */
export interface DriveResult {
  mpps: number;
  seconds: number;
  firstFrameMs: number;
  inOrder: boolean;
  disorder: number;
  preempted: number;
}

/** And with all that goes in, as far as it is used here. */
export interface GeneratorResult extends DriveResult {
  waitPercent: number;
  directions: { sent: number; received: number }[];
}

/** One run of the generator. */
export interface Drive {
  /** CPU of the generator */
  core: string;
  size: number;
  touch: boolean;
  seconds: string;
  warmup: string;
  ring: string;
  /** further options of the generator */
  more: readonly string[];
}

/**
 * Runs the generator once against a peer that is up. Throws with its last lines if it fails.
 * @typeParam R what the generator prints with the options of the load
 */
export async function drive<R extends DriveResult = GeneratorResult>(peer: BenchPeer, load: Drive): Promise<R> {
  const { core, size, touch, seconds, warmup, ring, more } = load;
  const generator = new PeerProcess({
    name: 'generator',
    command: process.execPath,
    args: [
      GENERATOR,
      ...peer.sockets.flatMap((socket) => ['--socket', socket]),
      ...['--core', core, '--size', String(size), '--ring', ring, '--seconds', seconds, '--warmup', warmup],
      ...(touch ? ['--touch'] : []),
      ...more,
    ],
  });
  const runMs = 1000 * (Number(seconds) + Number(warmup));
  if (!(await generator.endsWithin(runMs + GENERATOR_EXTRA_MS))) await generator.stop(0);
  const line = generator.outputSince(0).trim().split('\n').at(-1) ?? '';
  if (generator.endedHow !== 'ended with status 0' || !line.startsWith('{')) {
    const reason = /^\w*Error.*$/m.exec(generator.outputSince(0))?.[0];
    throw new Error(reason ?? `${generator.endedHow}: ${generator.lastLines(3)}`);
  }
  const result = JSON.parse(line) as R;
  if (!result.inOrder || result.disorder > 0) throw new Error('frames came out of order');
  return result;
}

export const noResult = (): PeerResult => ({ mpps: [], lossPercent: [], preempted: [], waitPercent: [], failures: [] });

/** A load, and what a peer did under it. */
export interface Measurement {
  load: Drive;
  result: PeerResult;
}

/**
 * One peer's turn: starts it, drives it with the loads, at least one, and stops it. What fails is told and noted in the results.
 * @param whileUp called behind the last load with the result of the warm-up, the first of all
 */
export async function turn(
  label: string,
  peer: BenchPeer,
  measurements: readonly Measurement[],
  whileUp: (first: GeneratorResult) => void = () => {},
): Promise<void> {
  await tellIfBusy(label);
  try {
    await peer.start();
    // Not counted: programs find their pace, ours its machine code.
    const first = await drive(peer, { ...measurements[0].load, touch: true, seconds: WARM_UP_SECONDS });
    for (const measurement of measurements) await measure(label, peer, measurement);
    whileUp(first);
  } catch (error) {
    say(`${label}  ${(error as Error).message}`);
    for (const { result } of measurements) result.failures.push((error as Error).message);
  } finally {
    await peer.stop();
  }
}

async function measure(label: string, peer: BenchPeer, { load, result }: Measurement): Promise<void> {
  const what = `${label}  ${String(load.size).padStart(4)} B ${load.touch ? 'touched  ' : 'untouched'}`;
  try {
    const { mpps, seconds, directions, preempted, waitPercent } = await drive(peer, load);
    const sent = directions.reduce((sum, d) => sum + d.sent, 0);
    const received = directions.reduce((sum, d) => sum + d.received, 0);
    const lossPercent = sent === 0 ? 0 : (100 * (sent - received)) / sent;
    result.mpps.push(mpps);
    result.lossPercent.push(lossPercent);
    result.preempted.push(preempted);
    result.waitPercent.push(waitPercent);
    const disturbed = preempted > DISTURBED_PER_SECOND * seconds ? `  disturbed: core lost ${preempted} times` : '';
    const limit = waitPercent < LIMITED_PERCENT ? '  the generator is the limit' : '';
    say(`${what}  ${mpps.toFixed(2).padStart(6)} Mpps  loss ${lossPercent.toFixed(2)} %${disturbed}${limit}`);
  } catch (error) {
    result.failures.push((error as Error).message);
    say(`${what}  failed: ${(error as Error).message}`);
  }
}

/** Writes all values of a benchmark, if a file is named. */
export function writeJson(file: string | undefined, values: object): void {
  if (file === undefined) return;
  rmSync(file, { force: true });
  writeFileSync(file, `${JSON.stringify(values, null, 2)}\n`);
}
