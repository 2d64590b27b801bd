/**
 * Shows that the peers work: `node bench/peers/check.ts [testpmd] [dpdk-vhost] [ovs]`.
 * Two virtio_user ports of a testpmd send frames round and round through the peer; prints packets a second.
 * Not the benchmark: the load generator is DPDK's, and shares the machine's other CPU with everything else.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { DpdkTestpmd } from '../../test/peers/dpdk.ts';
import { ensurePeers, type Peer } from '../../test/peers/packages.ts';
import { makeTempDir, removeTempDir } from '../../test/peers/process.ts';
import { dpdkVhostPeer } from './dpdk-vhost.ts';
import { ovsPeer } from './ovs.ts';
import { type BenchPeer, type BenchPeerOptions, MAC_A, MAC_B, otherCpu } from './peer.ts';
import { testpmdPeer } from './testpmd.ts';

const CORE = 1;
const PEERS: Record<string, { needs: Peer; make: (options: BenchPeerOptions) => BenchPeer }> = {
  testpmd: { needs: 'dpdk', make: testpmdPeer },
  'dpdk-vhost': { needs: 'dpdk-vhost', make: dpdkVhostPeer },
  ovs: { needs: 'ovs', make: ovsPeer },
};

const asked = process.argv.slice(2);
const names = asked.length > 0 ? asked : Object.keys(PEERS);
const { leftOut } = await ensurePeers(['dpdk', ...names.map((name) => PEERS[name].needs)]);
for (const { peer, why } of leftOut) console.log(`${peer} left out: ${why}`);

for (const name of names) {
  if (leftOut.some(({ peer }) => peer === PEERS[name].needs)) continue;
  const dir = makeTempDir('check');
  const peer = PEERS[name].make({ core: CORE, dir });
  try {
    const started = performance.now();
    await peer.start();
    const startMs = Math.round(performance.now() - started);
    console.log(`${peer.name} ${peer.version}, ${peer.memory}, ready in ${startMs} ms`);
    for (const length of [64, 1500]) await measure(peer, length);
  } finally {
    await peer.stop();
    removeTempDir(dir);
  }
}

async function measure(peer: BenchPeer, length: number): Promise<void> {
  const port = { queueSize: 1024, mrgRxbuf: false, inOrder: false, vectorized: true };
  const generator = DpdkTestpmd.virtioUser(
    [
      { ...port, socket: peer.sockets[0], mac: MAC_A },
      { ...port, socket: peer.sockets[1], mac: MAC_B },
    ],
    { name: 'generator', forwardMode: 'mac', pin: { main: otherCpu(CORE), forwarding: [otherCpu(CORE)] } },
  );
  try {
    await generator.start();
    await generator.setEthPeer(0, MAC_B);
    await generator.setEthPeer(1, MAC_A);
    await generator.setTxLength(length);
    await generator.startForwarding(1); // learning peers get to know both addresses
    await sleep(200);
    await generator.stopForwarding();
    await generator.startForwarding(8); // fewer frames than a ring has room for: none is dropped, all go on circling
    await sleep(300);
    await generator.portStats(0);
    await generator.portStats(1);
    await sleep(1000);
    const [a, b] = [await generator.portStats(0), await generator.portStats(1)];
    await generator.stopForwarding();
    const mpps = (rate: number) => (rate / 1e6).toFixed(2);
    console.log(`  ${length} bytes: received at A ${mpps(a.rxPps)}, at B ${mpps(b.rxPps)} Mpps`);
  } finally {
    await generator.stop();
  }
}
