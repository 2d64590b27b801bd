/** What the benchmark knows of a switch to compare with: something that offers two vhost-user sockets. */
import { availableParallelism } from 'node:os';

/** A vhost-user back end that passes frames between its two sockets. One object may be started and stopped again. */
export interface BenchPeer {
  /** What tables call it. */
  readonly name: string;
  /** Of the program that is measured. */
  readonly version: string;
  /** The sockets it listens on, for front ends A and B, from `start` to `stop`. */
  readonly sockets: [string, string];
  /** What its packet memory is made of, in words; known after `start`. */
  readonly memory: string;
  /** Returns when both sockets accept connections. Its core polls from now on. Leaves nothing behind on failure. */
  start(): Promise<void>;
  /** Ends its processes and gives back hugepages. May be called at any time. */
  stop(): Promise<void>;
}

/** What every peer is given. */
export interface BenchPeerOptions {
  /** CPU for the one thread that moves packets. */
  core: number;
  /** An existing folder for sockets and state; the caller's to remove. Short: a socket's path has at most 107 bytes. */
  dir: string;
}

/** Addresses of the two front ends, for peers that have to be told. */
export const MAC_A = '52:54:00:00:00:01';
export const MAC_B = '52:54:00:00:00:02';

/** A CPU for threads that do not move packets: another than `core` when there is one. */
export function otherCpu(core: number): number {
  return core === 0 && availableParallelism() > 1 ? 1 : 0;
}
