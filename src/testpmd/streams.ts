/**
 * Which streams there are: from a port's receive queue to another port's transmit queue, and which lcore has which.
 */

/** How ports are joined: 0–1 and 2–3; 0→1→2→0; or each with itself. */
export type Topology = 'paired' | 'chained' | 'loop';

export interface StreamPlan {
  readonly rxPort: number;
  readonly rxQueue: number;
  readonly txPort: number;
  readonly txQueue: number;
}

/** The place, among `count` forwarding ports, of the one that what port number `at` of them receives is sent on. */
function peerOf(at: number, count: number, topology: Topology): number {
  if (topology === 'loop') return at;
  if (topology === 'chained') return (at + 1) % count;
  const peer = at ^ 1;
  return peer < count ? peer : at;
}

/** The streams of `queues` queues of each of the ports, in DPDK's order: all ports' first queues first. */
export function planStreams(ports: readonly number[], topology: Topology, queues: number): StreamPlan[] {
  return Array.from({ length: queues * ports.length }, (_, i) => {
    const at = i % ports.length;
    const queue = Math.floor(i / ports.length);
    const txPort = ports[peerOf(at, ports.length, topology)];
    return { rxPort: ports[at], rxQueue: queue, txPort, txQueue: queue };
  });
}

/** Shares streams among at most `cores` lcores; the last ones get one more where it does not come out even. */
export function shareStreams<T>(streams: readonly T[], cores: number): T[][] {
  const n = Math.min(cores, streams.length);
  const shares: T[][] = [];
  for (let core = 0, from = 0; core < n; core++) {
    const to = from + Math.floor((streams.length - from) / (n - core));
    shares.push(streams.slice(from, to));
    from = to;
  }
  return shares;
}
