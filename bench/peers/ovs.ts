/** Open vSwitch with its DPDK datapath: a learning switch (action NORMAL) with two vhost-user ports. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describeMemory, type Hugepages, reserveHugepages } from '../../test/peers/hugepages.ts';
import { packageVersion } from '../../test/peers/packages.ts';
import { PeerProcess, runToEnd } from '../../test/peers/process.ts';
import { type BenchPeer, type BenchPeerOptions, otherCpu } from './peer.ts';

const SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema';
/** The build with DPDK, which Debian puts beside the plain one. */
const VSWITCHD = '/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk';
/** The ports share a pool of 262144 buffers of 3 KB. */
const MEMORY_MIB = 1024;
/** With ordinary pages each of these buffers takes a page, and making them 4 s: ports get smaller pools of their own. */
const ORDINARY_MEMORY_MIB = 512;
const BRIDGE = 'br0';
const TIMEOUT_MS = 30_000;

/** The peer; needs the packages of peer "ovs". All of its state is in `dir`: the system's own OVS is left alone. */
export function ovsPeer({ core, dir }: BenchPeerOptions): BenchPeer {
  const state = join(dir, 'ovs');
  const sockets: [string, string] = [join(state, 'a'), join(state, 'b')];
  const database = `unix:${join(state, 'db.sock')}`;
  const env = { OVS_RUNDIR: state, OVS_LOGDIR: state, OVS_DBDIR: state, OVS_SYSCONFDIR: state };
  let pages: Hugepages | undefined;
  let ovsdb: PeerProcess | undefined;
  let vswitchd: PeerProcess | undefined;

  const vsctl = (...args: string[]) =>
    runToEnd(
      {
        name: `ovs-vsctl ${args.at(-1)}`,
        command: 'ovs-vsctl',
        args: [`--db=${database}`, '--timeout=20', ...args],
        env,
      },
      TIMEOUT_MS,
    );

  async function startDatabase(): Promise<void> {
    mkdirSync(state, { recursive: true });
    const file = join(state, 'conf.db');
    if (!existsSync(file)) execFileSync('ovsdb-tool', ['create', file, SCHEMA]);
    ovsdb = new PeerProcess({
      name: 'ovsdb-server',
      command: 'ovsdb-server',
      args: [file, `--remote=p${database}`, `--unixctl=${join(state, 'ovsdb.ctl')}`, '-vconsole:warn'],
      env,
    });
    await ovsdb.waitUntil('database socket', () => existsSync(join(state, 'db.sock')), TIMEOUT_MS);
    await vsctl('--no-wait', 'init');
  }

  async function startSwitch(huge: boolean): Promise<void> {
    // OVS adds --in-memory by itself, which --no-huge excludes, unless it finds --legacy-mem
    const memory = huge ? '' : ` --no-huge --legacy-mem -m ${ORDINARY_MEMORY_MIB}`;
    const settings = [
      'dpdk-init=true',
      `dpdk-extra="--no-pci --no-telemetry --file-prefix=vs${process.pid}-ovs${memory}"`,
      `dpdk-lcore-mask=0x${(1 << otherCpu(core)).toString(16)}`,
      `pmd-cpu-mask=0x${(1 << core).toString(16)}`,
    ];
    settings.push(huge ? `dpdk-socket-mem="${MEMORY_MIB}"` : 'per-port-memory=true');
    await vsctl('--no-wait', 'set', 'Open_vSwitch', '.', ...settings.map((setting) => `other_config:${setting}`));
    vswitchd = new PeerProcess({
      name: 'ovs-vswitchd',
      // in a network namespace of its own, which goes with it: a killed vswitchd leaves its tap devices behind
      command: 'unshare',
      args: ['--net', VSWITCHD, database, `--unixctl=${join(state, 'vswitchd.ctl')}`, '-vconsole:info'],
      env: { ...env, RUNTIME_DIRECTORY: state },
    });
    const initialized = () => {
      const output = vswitchd!.outputSince(0);
      if (/Unable to initialize DPDK/.test(output)) {
        throw new Error(output.match(/^.*(EAL: |\|dpdk\|).*$/gm)?.join('\n') ?? ''); // the rest is DPDK's usage
      }
      return /DPDK Enabled - initialized/.test(output);
    };
    await vswitchd.waitUntil('DPDK to be initialized', initialized, TIMEOUT_MS);
    await vsctl('add-br', BRIDGE, '--', 'set', 'bridge', BRIDGE, 'datapath_type=netdev', 'fail-mode=standalone');
    for (const port of ['a', 'b']) {
      await vsctl('add-port', BRIDGE, port, '--', 'set', 'Interface', port, 'type=dpdkvhostuser');
    }
    const listening = () => sockets.every((socket) => existsSync(socket));
    await vswitchd.waitUntil('sockets', listening, TIMEOUT_MS);
  }

  return {
    name: 'Open vSwitch with DPDK',
    version: packageVersion('openvswitch-switch-dpdk') ?? 'unknown',
    sockets,
    get memory() {
      return pages === undefined ? 'not started' : describeMemory(pages);
    },
    async start() {
      pages = reserveHugepages(MEMORY_MIB + 64);
      try {
        await startDatabase();
        await startSwitch(pages.obtained);
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async stop() {
      if (vswitchd?.endedHow === undefined && ovsdb?.endedHow === undefined && vswitchd !== undefined) {
        // takes the ports away, so that the sockets are removed
        await vsctl('--if-exists', 'del-br', BRIDGE).catch(() => {});
      }
      await vswitchd?.stop();
      await ovsdb?.stop();
      vswitchd = undefined;
      ovsdb = undefined;
      pages?.release();
    },
  };
}
