/**
 * iperf3 over TCP between two Linux guests in QEMU, with all of virtio-net's offloads, through our switch and through a Linux
 * bridge with taps. In each round each in its turn is started, two guests are booted on it, and all is stopped again.
 */
import { parseArgs } from 'node:util';
import { kvmWorks } from '../test/peers/kvm.ts';
import { ensurePeers, packageVersion } from '../test/peers/packages.ts';
import { makeTempDir, removeTempDir } from '../test/peers/process.ts';
import { QemuGuest, type QemuGuestOptions } from '../test/peers/qemu.ts';
import { checkOffloads, PORT, ran, runClient, type TcpRun } from './iperf.ts';
import { bridge, bridgeMissing } from './peers/bridge.ts';
import { ownPeer } from './peers/ours.ts';
import type { BenchPeerOptions } from './peers/peer.ts';
import { figure, median, table, thisMachine } from './report.ts';
import { countOf, listOf, OWN, rotated, say, tellIfBusy, writeJson } from './rounds.ts';

/** Guests A and B; A sends. */
const GUESTS = [
  { name: 'a', mac: '52:54:00:00:00:01', ip: '10.0.0.1' },
  { name: 'b', mac: '52:54:00:00:00:02', ip: '10.0.0.2' },
] as const;
/** iperf3's port as /proc/net/tcp6 has it. */
const LISTENING = `:${PORT.toString(16).toUpperCase()} [0-9A-F]*:0000 0A`;
const SERVER_LOG = '/tmp/iperf3.log';
const BOOT_MS = 120_000;
/** What two guests can be connected to. */
interface TcpPeer {
  readonly name: string;
  readonly version: string;
  start(): Promise<void>;
  stop(): Promise<void>;
  /** How guest `i` is connected; known after `start`. `device`: what its network device is given in any case. */
  guest(i: number, device: string): Pick<QemuGuestOptions, 'socket' | 'launcher' | 'args'>;
}

function ownTcpPeer(options: BenchPeerOptions, poll: string): TcpPeer {
  const own = ownPeer(options, ['--poll', poll, '--mergeable', '1', '--tso', '1']);
  return {
    name: `${own.name} --mergeable 1 --tso 1 --poll ${poll}`,
    version: own.version,
    start: () => own.start(),
    stop: () => own.stop(),
    guest: (i) => ({ socket: own.sockets[i] }),
  };
}

function bridgeTcpPeer(vhost: boolean): TcpPeer {
  const linux = bridge(vhost);
  return {
    name: linux.name,
    version: `Linux ${linux.version}`,
    start: () => linux.start(),
    stop: () => linux.stop(),
    guest: (i, device) => ({
      launcher: linux.launcher,
      args: ['-netdev', linux.netdev(i), '-device', `virtio-net-pci,netdev=n0,${device}`],
    }),
  };
}

const BRIDGE = 'bridge';
const BRIDGE_VHOST = 'bridge-vhost';
const PEERS = [OWN, BRIDGE, BRIDGE_VHOST];

export const USAGE = `tcp: iperf3 between two Linux guests in QEMU with offloads, through ours and through a Linux bridge; needs root
  --rounds 5  --seconds 5
  --streams 1                connections at once
  --peers ${PEERS.join(',')}
  --poll adaptive|busy       of our switch (default adaptive)
  --core 0                   CPU of our switch
  --json FILE                all values`;

function parse(argv: readonly string[]) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '5' },
      streams: { type: 'string', default: '1' },
      peers: { type: 'string', default: PEERS.join(',') },
      poll: { type: 'string', default: 'adaptive' },
      core: { type: 'string', default: '0' },
      json: { type: 'string' },
    },
  });
  const { rounds, seconds, streams, poll } = values;
  if (poll !== 'adaptive' && poll !== 'busy') throw new RangeError('--poll is adaptive or busy');
  return {
    ...values,
    peers: listOf(values.peers, 'peer', PEERS),
    rounds: countOf(rounds, 'rounds'),
    seconds: countOf(seconds, 'seconds'),
    streams: countOf(streams, 'streams'),
  };
}

/** Leaves out what cannot be had here, and says why. Throws if there are no guests, or nothing is left. */
async function havePeers(keys: readonly string[]): Promise<string[]> {
  const [noGuests] = (await ensurePeers(['qemu'])).leftOut;
  if (noGuests !== undefined) throw new Error(`no guests: ${noGuests.why}`);
  const present: string[] = [];
  for (const key of keys) {
    const why = key === OWN ? undefined : await bridgeMissing(key === BRIDGE_VHOST);
    if (why === undefined) present.push(key);
    else say(`${key} is left out: ${why}`);
  }
  if (present.length === 0) throw new Error('no peer is left to be measured');
  return present;
}

interface TcpResult {
  runs: TcpRun[];
  /** what guest A's driver has negotiated, in hex */
  features: string;
  /** Why rounds have no values. */
  failures: string[];
}

/** One run from guest A to guest B. */
async function iperf(a: QemuGuest, b: QemuGuest, seconds: number, streams: number): Promise<TcpRun> {
  const listening = `for i in $(seq 100); do grep -q '${LISTENING}' /proc/net/tcp /proc/net/tcp6 && exit; sleep .1; done; exit 1`;
  await ran(b, `iperf3 -s -D -p ${PORT} --logfile ${SERVER_LOG} && { ${listening}; }`);
  return runClient(a, GUESTS[1].ip, { seconds, streams }, async () => (await b.sh(`tail -n 3 ${SERVER_LOG}`)).output);
}

/** One peer's turn: starts it, boots two guests, runs iperf3 once, and stops everything. What fails is told and noted. */
async function turn(
  label: string,
  peer: TcpPeer,
  accel: 'kvm' | 'tcg',
  options: { seconds: number; streams: number },
  result: TcpResult,
): Promise<void> {
  await tellIfBusy(label);
  let guests: QemuGuest[] = [];
  try {
    await peer.start();
    // see QemuGuestOptions.vectors for TCG; with KVM as QEMU has it for one queue pair
    const vectors = accel === 'kvm' ? 3 : 0;
    guests = GUESTS.map(({ name, mac, ip }, i) => {
      const connection = peer.guest(i, `mac=${mac},romfile=,vectors=${vectors}`);
      return new QemuGuest({ name, mac, ip: `${ip}/24`, vectors, accel, nice: 0, ...connection });
    });
    await Promise.all(guests.map((guest) => guest.start(BOOT_MS)));
    const [a, b] = guests;
    result.features = await checkOffloads(a);
    await checkOffloads(b);
    const run = await iperf(a, b, options.seconds, options.streams);
    result.runs.push(run);
    say(`${label}  ${figure(run.gbps).padStart(6)} Gbit/s, ${run.retransmits} retransmits`);
  } catch (error) {
    result.failures.push((error as Error).message);
    say(`${label}  failed: ${(error as Error).message}`);
  } finally {
    await Promise.all(guests.map((guest) => guest.stop()));
    await peer.stop();
  }
}

function resultTable(results: Record<string, TcpResult>, keys: readonly string[]): string {
  const rates = (key: string) => results[key].runs.map(({ gbps }) => gbps);
  const rows = keys.map((key) => {
    const all = rates(key);
    const spread = all.length < 2 ? '' : ` (${figure(Math.min(...all))}–${figure(Math.max(...all))})`;
    const retransmits = figure(median(results[key].runs.map((run) => run.retransmits)), 0);
    const ratio = key === OWN || !keys.includes(OWN) ? '' : `${figure(median(rates(OWN)) / median(all))} ×`;
    return [key, `${figure(median(all))}${spread}`, retransmits, ratio];
  });
  return table([['peer', 'Gbit/s', 'retransmits', `${OWN} against it`], ...rows]);
}

/** Runs the benchmark; prints its table. A run that fails makes it fail at the end. */
export async function tcp(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const keys = await havePeers(options.peers);
  const accel = (await kvmWorks()) ? 'kvm' : 'tcg';
  const dir = makeTempDir('bench');
  const core = Number(options.core);
  const make = (key: string) =>
    key === OWN ? ownTcpPeer({ core, dir }, options.poll) : bridgeTcpPeer(key === BRIDGE_VHOST);
  const peers = new Map(keys.map((key) => [key, make(key)]));
  const results = Object.fromEntries(keys.map((key): [string, TcpResult] => [key, noTcpResult()]));
  for (let round = 1; round <= options.rounds; round++) {
    for (const key of rotated(keys, round - 1)) {
      const label = `round ${round}/${options.rounds}  ${key.padEnd(12)}`;
      await turn(label, peers.get(key) as TcpPeer, accel, options, results[key]);
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const qemu = packageVersion('qemu-system-x86') ?? 'unknown';
  const versions = [...peers].map(([key, { name, version }]) => ({ key, name, version }));
  console.log(`\nTCP payload from guest to guest: median of ${options.rounds} (lowest–highest)\n`);
  console.log(resultTable(results, keys));
  console.log(
    `\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}; QEMU ${qemu}, ${accel}`,
  );
  for (const { key, name, version } of versions) console.log(`${key}: ${name} (${version})`);
  writeJson(options.json, { date, machine, options, qemu, accel, peers: versions, results });
  const failures = keys.flatMap((key) => results[key].failures.map((why) => `${key}: ${why}`));
  if (failures.length > 0) throw new Error(`\n${failures.length} runs failed:\n${failures.join('\n')}`);
}

const noTcpResult = (): TcpResult => ({ runs: [], features: '', failures: [] });
