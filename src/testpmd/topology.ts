/**
 * Which streams there are, from a port's receive queue to a port's transmit queue, and which of them one thread must have together.
 */

/** How ports are joined: 0–1 and 2–3, the last of an odd number with itself; 0→1→2→0; or each with itself. */
export type Topology = 'paired' | 'chained' | 'loop';

/** Numbers of ports; a queue has the same number on both sides. */
export interface StreamPlace {
  readonly rxPort: number;
  readonly txPort: number;
  readonly queue: number;
}

/** What streams are planned from. */
export interface StreamsWanted {
  /** the ports that forward, in their order */
  readonly ports: readonly number[];
  readonly topology: Topology;
  /** of each port */
  readonly queues: number;
  /** at most */
  readonly threads: number;
}

/** Ports that send each other what they receive, in the order in which each sends to the next. */
function circles(ports: readonly number[], topology: Topology): (readonly number[])[] {
  const size = topology === 'chained' ? ports.length : topology === 'paired' ? 2 : 1;
  const all: (readonly number[])[] = [];
  for (let at = 0; at < ports.length; at += size) all.push(ports.slice(at, at + size));
  return all;
}

/** The streams of each thread. A queue of a circle of ports is one thread's: it receives on it, and it sends on it. */
export function planStreams({ ports, topology, queues, threads }: StreamsWanted): StreamPlace[][] {
  const groups = circles(ports, topology).flatMap((circle) =>
    Array.from({ length: queues }, (_, queue) =>
      circle.map((rxPort, i): StreamPlace => ({ rxPort, txPort: circle[(i + 1) % circle.length], queue })),
    ),
  );
  const n = Math.min(threads, groups.length);
  return Array.from({ length: n }, (_, t) => groups.filter((_, g) => g % n === t).flat());
}
