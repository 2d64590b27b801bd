/**
 * Which streams there are, and which of them one thread must have together.
 */

/** Numbers of ports; a queue has the same number on both sides. */
export interface StreamPlace {
  readonly rxPort: number;
  readonly txPort: number;
  readonly queue: number;
}

/** Ports in pairs: 0 with 1, 2 with 3, …; the last of an odd number with itself. */
export function peerOf(port: number, ports: number): number {
  const other = port ^ 1;
  return other < ports ? other : port;
}

/**
 * The streams of `ports` ports with `queues` queues each, for at most `threads` threads: a queue of a pair of ports, in both directions,
 * is one thread's.
 * @param echo every port sends back what it receives
 */
export function planStreams(ports: number, queues: number, threads: number, echo: boolean): StreamPlace[][] {
  const groups: StreamPlace[][] = [];
  for (let port = 0; port < ports; port += echo ? 1 : 2) {
    const peer = echo ? port : peerOf(port, ports);
    for (let queue = 0; queue < queues; queue++) {
      const back = peer === port ? [] : [{ rxPort: peer, txPort: port, queue }];
      groups.push([{ rxPort: port, txPort: peer, queue }, ...back]);
    }
  }
  const n = Math.min(threads, groups.length);
  return Array.from({ length: n }, (_, t) => groups.filter((_, g) => g % n === t).flat());
}
