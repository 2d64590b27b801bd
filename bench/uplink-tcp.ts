/**
 * iperf3 over TCP between a Linux guest in QEMU and a host beyond an uplink, with all of virtio-net's offloads: through our switch, and as
 * people connect guests without one: QEMU on a tap in a Linux bridge. In each round each in its turn is started, a guest is booted on
 * it, and all is stopped again.
 */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { kvmWorks } from '../test/peers/kvm.ts';
import { ip } from '../test/peers/netns.ts';
import { ensurePeers, packageVersion } from '../test/peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir } from '../test/peers/process.ts';
import { QemuGuest, type QemuGuestOptions } from '../test/peers/qemu.ts';
import { addVeth, enterOwnNetwork } from '../test/peers/veth.ts';
import { checkOffloads, PORT, runClient, type TcpRun } from './iperf.ts';
import { bridgeMissing } from './peers/bridge.ts';
import { figure, median, table, thisMachine } from './report.ts';
import { countOf, listOf, OWN, rotated, say, tellIfBusy, writeJson } from './rounds.ts';

const SWITCH = fileURLToPath(new URL('../dist/cli/vhost-switch.js', import.meta.url));
const GUEST = { name: 'guest', mac: '52:54:00:00:00:01', ip: '10.0.0.1/24' } as const;
const HOST_IP = '10.0.0.254';
const NEAR = 'near';
const FAR = 'far';
const TAP = 'tap0';
const BRIDGE = 'br0';
const BOOT_MS = 120_000;
const START_MS = 20_000;
const DIRECTIONS = ['up', 'down'];

/** What a guest can be connected to the host by. The cable between them is there. */
interface UplinkTcpPeer {
  readonly name: string;
  start(): Promise<void>;
  stop(): Promise<void>;
  /** How the guest is connected. `device`: what its network device is given in any case. */
  guest(device: string): Pick<QemuGuestOptions, 'socket' | 'args'>;
}

function ownPeer({ core, dir, poll }: { core: string; dir: string; poll: string }): UplinkTcpPeer {
  const socket = join(dir, 'ours');
  const options = ['--vlan', 'off', '--poll', poll, '--mergeable', '1', '--tso', '1'];
  let child: PeerProcess | undefined;
  return {
    name: `vhost-switch --vdev net_af_packet0,iface=${NEAR} ${options.join(' ')}`,
    async start() {
      const uplink = ['-l', core, '--vdev', `net_af_packet0,iface=${NEAR}`, '--', '-p', '0x1'];
      const running = new PeerProcess({
        name: 'vhost-switch',
        command: process.execPath,
        args: [SWITCH, ...uplink, ...options, '--socket-file', socket],
        cwd: dir,
      });
      child = running;
      await running.waitUntil('its socket', () => running.outputSince(0).includes('listening on'), START_MS);
    },
    async stop() {
      await child?.stop();
      child = undefined;
    },
    guest: () => ({ socket }),
  };
}

/** `vhost`: frames are moved by the kernel's vhost-net, not by QEMU. */
function bridgePeer(vhost: boolean): UplinkTcpPeer {
  return {
    name: `QEMU on a tap in a Linux bridge, ${vhost ? 'vhost-net' : 'frames moved by QEMU'}`,
    async start() {
      ip('link', 'add', BRIDGE, 'type', 'bridge', 'stp_state', '0');
      ip('tuntap', 'add', 'dev', TAP, 'mode', 'tap');
      for (const port of [TAP, NEAR]) ip('link', 'set', port, 'master', BRIDGE, 'up');
      ip('link', 'set', BRIDGE, 'up');
    },
    async stop() {
      for (const link of [TAP, BRIDGE]) ip('link', 'del', link);
    },
    guest: (device) => {
      const netdev = `tap,id=n0,ifname=${TAP},script=no,downscript=no,vhost=${vhost ? 'on' : 'off'}`;
      return { args: ['-netdev', netdev, '-device', `virtio-net-pci,netdev=n0,${device}`] };
    },
  };
}

const PEERS = [OWN, 'bridge', 'bridge-vhost'];

export const USAGE = `uplink-tcp: iperf3 between a Linux guest in QEMU and a host beyond an uplink, ours and a Linux bridge; needs root
  --rounds 5  --seconds 5
  --streams 1                connections at once
  --directions up,down       up: guest to host; down: host to guest
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
      directions: { type: 'string', default: DIRECTIONS.join(',') },
      peers: { type: 'string', default: PEERS.join(',') },
      poll: { type: 'string', default: 'adaptive' },
      core: { type: 'string', default: '0' },
      json: { type: 'string' },
    },
  });
  const { rounds, seconds, streams, poll, directions } = values;
  if (poll !== 'adaptive' && poll !== 'busy') throw new RangeError('--poll is adaptive or busy');
  return {
    ...values,
    peers: listOf(values.peers, 'peer', PEERS),
    directions: listOf(directions, 'direction', DIRECTIONS),
    rounds: countOf(rounds, 'rounds'),
    seconds: countOf(seconds, 'seconds'),
    streams: countOf(streams, 'streams'),
  };
}
type Options = ReturnType<typeof parse>;

/** By direction the runs of one peer; and why some have no values. */
interface Result {
  runs: Record<string, TcpRun[]>;
  failures: string[];
}

/** Leaves out what cannot be had here, and says why. Throws if there are no guests, no host, or nothing is left. */
async function havePeers(keys: readonly string[]): Promise<string[]> {
  const [lacking] = (await ensurePeers(['qemu', 'netns', 'iperf3'])).leftOut;
  if (lacking !== undefined) throw new Error(`no ${lacking.peer}: ${lacking.why}`);
  const present: string[] = [];
  for (const key of keys) {
    const why = key === OWN ? undefined : await bridgeMissing(key === 'bridge-vhost');
    if (why === undefined) present.push(key);
    else say(`${key} is left out: ${why}`);
  }
  if (present.length === 0) throw new Error('no peer is left to be measured');
  return present;
}

/** One peer's turn: starts it, boots a guest, runs iperf3 in each direction, and stops everything. What fails is told and noted. */
async function turn(label: string, peer: UplinkTcpPeer, accel: 'kvm' | 'tcg', options: Options, result: Result) {
  await tellIfBusy(label);
  let guest: QemuGuest | undefined;
  let server: PeerProcess | undefined;
  addVeth(NEAR, FAR);
  try {
    ip('addr', 'add', `${HOST_IP}/24`, 'dev', FAR);
    await peer.start();
    server = new PeerProcess({
      name: 'iperf3 server',
      command: 'iperf3',
      args: ['-s', '-p', String(PORT), '--forceflush'],
    });
    const said = async () => (server as PeerProcess).lastLines(3);
    await server.waitUntil('listening', () => (server as PeerProcess).outputSince(0).includes('listening'), START_MS);
    // see QemuGuestOptions.vectors for TCG; with KVM as QEMU has it for one queue pair
    const vectors = accel === 'kvm' ? 3 : 0;
    const connection = peer.guest(`mac=${GUEST.mac},romfile=,vectors=${vectors}`);
    guest = await new QemuGuest({ ...GUEST, vectors, accel, nice: 0, ...connection }).start(BOOT_MS);
    await checkOffloads(guest);
    for (const direction of options.directions) {
      const run = await runClient(guest, HOST_IP, { ...options, reverse: direction === 'down' }, said);
      result.runs[direction].push(run);
      say(`${label}  ${direction.padEnd(4)}  ${figure(run.gbps).padStart(6)} Gbit/s, ${run.retransmits} retransmits`);
    }
  } catch (error) {
    result.failures.push((error as Error).message);
    say(`${label}  failed: ${(error as Error).message}`);
  } finally {
    await guest?.stop();
    await server?.stop();
    await peer.stop();
    ip('link', 'del', NEAR);
  }
}

function resultTable(results: Record<string, Result>, keys: readonly string[], directions: readonly string[]): string {
  const rates = (key: string, direction: string) => results[key].runs[direction].map(({ gbps }) => gbps);
  const rows = directions.flatMap((direction) =>
    keys.map((key) => {
      const all = rates(key, direction);
      const spread = all.length < 2 ? '' : ` (${figure(Math.min(...all))}–${figure(Math.max(...all))})`;
      const retransmits = figure(median(results[key].runs[direction].map((run) => run.retransmits)), 0);
      const own = key === OWN || !keys.includes(OWN) ? undefined : median(rates(OWN, direction));
      const ratio = own === undefined ? '' : `${figure(own / median(all))} ×`;
      return [direction, key, `${figure(median(all))}${spread}`, retransmits, ratio];
    }),
  );
  return table([['direction', 'peer', 'Gbit/s', 'retransmits', `${OWN} against it`], ...rows]);
}

/** Runs the benchmark; prints its table. A run that fails makes it fail at the end. */
export async function uplinkTcp(argv: readonly string[]): Promise<void> {
  const options = parse(argv);
  const keys = await havePeers(options.peers);
  const accel = (await kvmWorks()) ? 'kvm' : 'tcg';
  const why = enterOwnNetwork();
  if (why !== undefined) throw new Error(why);
  ip('link', 'set', 'lo', 'up');
  const dir = makeTempDir('bench');
  const make = (key: string) => (key === OWN ? ownPeer({ ...options, dir }) : bridgePeer(key === 'bridge-vhost'));
  const peers = new Map(keys.map((key) => [key, make(key)]));
  const none = () => Object.fromEntries(options.directions.map((direction): [string, TcpRun[]] => [direction, []]));
  const results = Object.fromEntries(keys.map((key): [string, Result] => [key, { runs: none(), failures: [] }]));
  for (let round = 1; round <= options.rounds; round++) {
    for (const key of rotated(keys, round - 1)) {
      const label = `round ${round}/${options.rounds}  ${key.padEnd(12)}`;
      await turn(label, peers.get(key) as UplinkTcpPeer, accel, options, results[key]);
    }
  }
  removeTempDir(dir);
  const date = new Date().toISOString();
  const machine = thisMachine();
  const qemu = packageVersion('qemu-system-x86') ?? 'unknown';
  const names = [...peers].map(([key, { name }]) => ({ key, name }));
  console.log(`\nTCP payload between a guest and a host beyond: median of ${options.rounds} (lowest–highest)\n`);
  console.log(resultTable(results, keys, options.directions));
  console.log(
    `\n${machine.cpu}, ${machine.cpus} CPUs, Linux ${machine.kernel}, ${date.slice(0, 10)}; QEMU ${qemu}, ${accel}`,
  );
  for (const { key, name } of names) console.log(`${key}: ${name}`);
  writeJson(options.json, { date, machine, options, qemu, accel, peers: names, results });
  const failures = keys.flatMap((key) => results[key].failures.map((what) => `${key}: ${what}`));
  if (failures.length > 0) throw new Error(`\n${failures.length} runs failed:\n${failures.join('\n')}`);
}
