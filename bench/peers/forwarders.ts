/** Forwarders: a testpmd, ours or DPDK's, that sends packets of its own making to one vhost-user back end as fast as it can. */
import { fileURLToPath } from 'node:url';
import { DpdkTestpmd, ealLcores, virtioUserPort } from '../../test/peers/dpdk.ts';
import { describeMemory, type Hugepages, reserveHugepages } from '../../test/peers/hugepages.ts';
import { packageVersion } from '../../test/peers/packages.ts';
import { PeerProcess } from '../../test/peers/process.ts';
import { MAC_A, MAC_B, otherCpu } from './peer.ts';

const TESTPMD = fileURLToPath(new URL('../../dist/cli/testpmd.js', import.meta.url));
const PROMPT = 'testpmd> ';
const TIMEOUT_MS = 20_000;
const MEMORY_MIB = 256;

/** A testpmd at its prompt. */
export interface Forwarder {
  readonly name: string;
  readonly version: string;
  readonly memory: string;
  /** Connects; the back end must be there. Leaves nothing behind on failure. */
  start(): Promise<void>;
  /** Does a command. @returns what it printed */
  command(line: string): Promise<string>;
  stop(): Promise<void>;
}

/** What a forwarder is given. */
export interface ForwarderOptions {
  /** CPU of the forwarding thread */
  readonly core: number;
  readonly socket: string;
  /** of the packets, without FCS */
  readonly size: number;
}

/** Packets come from port 0, which always has some, and go out of port 1. */
const vdevs = ({ socket, size }: ForwarderOptions) => [
  `net_null0,size=${size}`,
  virtioUserPort(0, { socket, mac: MAC_A }),
];

/** Our own, as it is published. */
export function ownForwarder(options: ForwarderOptions): Forwarder {
  let child: PeerProcess | undefined;
  const prompted = async (mark: number) => {
    const running = child as PeerProcess;
    await running.waitUntil('the prompt', () => running.outputSince(mark).includes(PROMPT), TIMEOUT_MS);
    return running.outputSince(mark);
  };
  return {
    name: 'vhost-testpmd',
    version: `Node ${process.version}`,
    memory: 'no packet buffers',
    async start() {
      child = new PeerProcess({
        name: 'vhost-testpmd',
        command: process.execPath,
        args: [
          TESTPMD,
          ...ealLcores(1, { main: otherCpu(options.core), forwarding: [options.core] }),
          ...vdevs(options).flatMap((vdev) => ['--vdev', vdev]),
          ...['--', '-i', '--forward-mode=mac', `--eth-peer=1,${MAC_B}`],
        ],
      });
      try {
        await prompted(0);
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async command(line) {
      const mark = (child as PeerProcess).outputLen;
      child?.write(`${line}\n`);
      return await prompted(mark);
    },
    async stop() {
      await child?.stop();
      child = undefined;
    },
  };
}

/** DPDK's; needs the packages of peer "dpdk". */
export function dpdkForwarder(options: ForwarderOptions): Forwarder {
  let pages: Hugepages | undefined;
  let testpmd: DpdkTestpmd | undefined;
  return {
    name: 'DPDK testpmd',
    version: packageVersion('dpdk-dev') ?? 'unknown',
    get memory() {
      return pages === undefined ? 'not started' : describeMemory(pages);
    },
    async start() {
      pages = reserveHugepages(MEMORY_MIB);
      testpmd = new DpdkTestpmd({
        name: 'bench',
        vdevs: vdevs(options),
        forwardMode: 'mac',
        app: [`--eth-peer=1,${MAC_B}`],
        pin: { main: otherCpu(options.core), forwarding: [options.core] },
        memoryMiB: MEMORY_MIB,
        mbufs: 16384,
        hugepages: pages.obtained,
      });
      try {
        await testpmd.start();
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async command(line) {
      return await (testpmd as DpdkTestpmd).command(line);
    },
    async stop() {
      await testpmd?.stop();
      testpmd = undefined;
      pages?.release();
    },
  };
}
