/** DPDK's testpmd with two net_vhost ports: copies frames from one to the other and sets addresses, without a lookup. */
import { join } from 'node:path';
import { DpdkTestpmd } from '../../test/peers/dpdk.ts';
import { describeMemory, type Hugepages, reserveHugepages } from '../../test/peers/hugepages.ts';
import { packageVersion } from '../../test/peers/packages.ts';
import { type BenchPeer, type BenchPeerOptions, MAC_A, MAC_B, otherCpu } from './peer.ts';

const MEMORY_MIB = 256;

/** The peer; needs the packages of peer "dpdk". */
export function testpmdPeer({ core, dir }: BenchPeerOptions): BenchPeer {
  const sockets: [string, string] = [join(dir, 'testpmd-a'), join(dir, 'testpmd-b')];
  let pages: Hugepages | undefined;
  let testpmd: DpdkTestpmd | undefined;
  return {
    name: 'DPDK testpmd, mac forwarding',
    version: packageVersion('dpdk-dev') ?? 'unknown',
    sockets,
    get memory() {
      return pages === undefined ? 'not started' : describeMemory(pages);
    },
    async start() {
      pages = reserveHugepages(MEMORY_MIB);
      testpmd = DpdkTestpmd.vhost(sockets, {
        name: 'bench',
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
