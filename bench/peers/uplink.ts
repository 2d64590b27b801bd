/**
 * One guest and an uplink: our switch and DPDK's testpmd with the same kind of port, and the interfaces that these ports are on. All of
 * it is in the network namespace that the calling process is in.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DpdkTestpmd, vhostPort } from '../../test/peers/dpdk.ts';
import { describeMemory, type Hugepages, reserveHugepages } from '../../test/peers/hugepages.ts';
import { ip } from '../../test/peers/netns.ts';
import { packageVersion } from '../../test/peers/packages.ts';
import { PeerProcess } from '../../test/peers/process.ts';
import { addVeth } from '../../test/peers/veth.ts';
import { type BenchPeerOptions, MAC_A, MAC_B, otherCpu } from './peer.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const START_TIMEOUT_MS = 20_000;
const MEMORY_MIB = 256;

/** A kind of port, on an interface that nothing else uses. */
export interface UplinkKind {
  /** what `--vdev` says, to both switches */
  readonly vdev: string;
  /** the interface at the other end */
  readonly far: string;
  /** Segments of 64 KiB pass it whole, with ours. */
  readonly gso: boolean;
  /** Makes the interfaces that must be there before the switch is. */
  plug(): void;
  /** Called with the switch up. */
  ready(): void;
  /** Called with the switch gone. */
  unplug(): void;
}

const NEAR = 'near';
const FAR = 'far';
const TAP = 'tap0';

/** A cable: a pair of veth interfaces. */
function cable(vdev: string, gso: boolean): UplinkKind {
  return {
    vdev,
    far: FAR,
    gso,
    plug: () => addVeth(NEAR, FAR),
    ready: () => {},
    unplug: () => {
      ip('link', 'del', NEAR);
    },
  };
}

export const KINDS: Readonly<Record<string, UplinkKind>> = {
  // past the queueing discipline, as DPDK's port is when nothing is said
  net_af_packet: cable(`net_af_packet0,iface=${NEAR},qdisc_bypass=1`, true),
  net_af_xdp: cable(`net_af_xdp0,iface=${NEAR}`, false),
  net_tap: {
    vdev: `net_tap0,iface=${TAP}`,
    far: TAP,
    gso: true,
    plug: () => {},
    ready: () => {
      ip('link', 'set', TAP, 'up');
    },
    unplug: () => {},
  },
};

/** A back end with one socket, and an uplink. One object may be started and stopped again. */
export interface UplinkPeer {
  readonly name: string;
  readonly version: string;
  /** What its packet memory is made of, in words; known after `start`. */
  readonly memory: string;
  /** The socket it listens on, from `start` to `stop`. */
  readonly socket: string;
  /** Its process, from `start` to `stop`. */
  readonly pid: number;
  /** Returns when the socket accepts connections and the uplink is open. @param gso guests may leave segmentation undone */
  start(kind: UplinkKind, gso: boolean): Promise<void>;
  /** May be called at any time. */
  stop(): Promise<void>;
}

/** How our own switch is used, where nothing else is said. */
const BUSY_MERGEABLE = ['--poll', 'busy', '--mergeable', '1'];

/** Our own switch on one lcore. @param how its options, beside uplink and socket */
export function ownUplink({ core, dir }: BenchPeerOptions, how: readonly string[] = BUSY_MERGEABLE): UplinkPeer {
  const socket = join(dir, 'ours');
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string };
  let child: PeerProcess | undefined;
  return {
    name: 'vhost-switch',
    version: `${version}, Node ${process.version}`,
    memory: 'no packet buffers',
    socket,
    get pid() {
      return child?.pid ?? 0;
    },
    async start({ vdev }, gso) {
      child = new PeerProcess({
        name: 'vhost-switch',
        command: process.execPath,
        args: [
          join(ROOT, 'dist/cli/vhost-switch.js'),
          ...['-l', String(core), '--vdev', vdev, '--', '-p', '0x1', '--vlan', 'off', ...how],
          ...[...(gso ? ['--tso', '1'] : []), '--socket-file', socket],
        ],
        cwd: dir,
      });
      try {
        await child.waitUntil('its socket', () => existsSync(socket), START_TIMEOUT_MS);
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async stop() {
      await child?.stop();
      child = undefined;
    },
  };
}

/** DPDK's testpmd, which sends what comes from the one port to the other, and sets addresses. Needs the packages of peer "dpdk". */
export function testpmdUplink({ core, dir }: BenchPeerOptions): UplinkPeer {
  const socket = join(dir, 'testpmd');
  let pages: Hugepages | undefined;
  let testpmd: DpdkTestpmd | undefined;
  return {
    name: 'DPDK testpmd, mac forwarding',
    version: packageVersion('dpdk-dev') ?? 'unknown',
    socket,
    get pid() {
      return testpmd?.pid ?? 0;
    },
    get memory() {
      return pages === undefined ? 'not started' : describeMemory(pages);
    },
    async start({ vdev }, gso) {
      if (gso) throw new Error('testpmd is not measured with segments: it would have to cut them');
      pages = reserveHugepages(MEMORY_MIB);
      testpmd = new DpdkTestpmd({
        name: 'uplink',
        vdevs: [vhostPort(0, socket), vdev],
        forwardMode: 'mac',
        app: [`--eth-peer=0,${MAC_A}`, `--eth-peer=1,${MAC_B}`],
        pin: { main: otherCpu(core), forwarding: [core] },
        memoryMiB: MEMORY_MIB,
        mbufs: 16384,
        hugepages: pages.obtained,
      });
      try {
        await testpmd.start();
        await testpmd.startForwarding();
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async stop() {
      await testpmd?.stop();
      testpmd = undefined;
      pages?.release();
    },
  };
}
