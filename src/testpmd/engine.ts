/**
 * What the prompt asks of testpmd's engine: ports, forwarding between them, and what it has counted. The engine's threads poll; the
 * main thread asks and shows.
 */
import type { TrafficSettings } from './traffic/traffic-settings.ts';

/** DPDK's forwarding modes (testpmd user guide, "set fwd"), less those for hardware. `mac_retry` is `mac` with `retry`. */
export const FORWARD_MODES = [
  ...['io', 'mac', 'macswap', 'flowgen', 'rxonly', 'txonly', 'csum', 'icmpecho', '5tswap', 'noisy'],
] as const;
export type ForwardMode = (typeof FORWARD_MODES)[number];

/** Addresses as 32-bit numbers. */
export interface Ipv4Flow {
  readonly source: number;
  readonly dest: number;
  readonly sourcePort: number;
  readonly destPort: number;
}

/** The packets that `txonly` and `flowgen` make, where nothing is to be verified of them. */
export interface MadeConfig {
  /** of txonly */
  readonly txFlow: Ipv4Flow;
  /** txonly has source addresses of its own: 256, one for each packet in turn */
  readonly txMultiFlow: boolean;
  /** flowgen: how many there are, and how often a packet is repeated within a burst */
  readonly flows: number;
  readonly clones: number;
}

/** DPDK's; the addresses of txonly are RFC 2544's, the port is the discard service. */
export const DEFAULT_MADE: MadeConfig = {
  txFlow: { source: 0xc6120001, dest: 0xc6120002, sourcePort: 9, destPort: 9 },
  txMultiFlow: false,
  flows: 1024,
  clones: 0,
};

/** What `noisy` does with what it forwards: all zero by default, and then nothing but io does. */
export interface NoisyConfig {
  /** packets that wait before they are sent on */
  readonly bufferPackets: number;
  /** after so many ms without sending all that wait are sent; 0: they are not */
  readonly flushMs: number;
  /** memory that is looked things up in, MiB; and how often for each packet */
  readonly memoryMiB: number;
  readonly writes: number;
  readonly reads: number;
  readonly readWrites: number;
}

/** What `set …` and the command line say; changes take effect at the next start, as in DPDK. */
export interface ForwardConfig {
  mode: ForwardMode;
  /** what a full queue did not take is offered again */
  retry: boolean;
  /** µs between two offers, and offers at most */
  retryDelay: number;
  retryNum: number;
  /** packets a burst, 1 to 32 */
  burst: number;
  /** bytes of the segments of a packet that is made here */
  txpkts: number[];
  /** by port: destination address of what leaves it */
  ethPeers: Map<number, string>;
  /** receive and transmit queues of a port, and descriptors of each */
  rxq: number;
  txq: number;
  /** threads that forward */
  cores: number;
  /** which of the engine's threads they are, by number, at least as many; absent: the first ones */
  coreOrder?: readonly number[];
  noisy?: NoisyConfig;
  /** Default {@link DEFAULT_MADE}. */
  made?: MadeConfig;
  /** numbers of the ports that forward, in order; absent: all */
  ports?: readonly number[];
  /** false: what waits in receive queues at the start is forwarded, not thrown away. Default true. */
  flushRx?: boolean;
  /** Count how long bursts are. Default false. */
  recordBursts?: boolean;
  /** Measure the time that bursts take. Default false. */
  recordCycles?: boolean;
  /** packets that tell what became of them, and capture files; files are opened with the ports */
  traffic?: TrafficSettings;
}

/** struct rte_eth_stats, as far as it means something here; since the last clear. */
export interface PortStats {
  rxPackets: number;
  rxBytes: number;
  rxMissed: number;
  rxErrors: number;
  rxNoMbuf: number;
  txPackets: number;
  txBytes: number;
  txErrors: number;
}

/** What one forwarding stream (RX port and queue → TX port and queue) has counted since `start`. */
export interface StreamStats {
  readonly rxPort: number;
  readonly rxQueue: number;
  readonly txPort: number;
  readonly txQueue: number;
  readonly rxPackets: number;
  readonly txPackets: number;
  /** what the transmitting queue did not take */
  readonly txDropped: number;
  /** offers again of what a full queue did not take */
  readonly txRetries: number;
  /** csum: bad checksums of IP and of TCP, UDP */
  readonly badIpChecksum: number;
  readonly badL4Checksum: number;
  /** where that was asked for: ns of all turns that have moved packets; bursts by their packets, from 0 on */
  readonly busyNs: number;
  readonly rxBursts: readonly number[];
  readonly txBursts: readonly number[];
}

export interface PortInfo {
  readonly port: number;
  /** as given: `net_virtio_user0` */
  readonly name: string;
  readonly mac: string;
  readonly up: boolean;
  /** why it is down, for one line; empty while it is up */
  readonly reason: string;
  readonly started: boolean;
  readonly promiscuous: boolean;
  readonly mtu: number;
  /** the largest that it can be set to; undefined: it cannot */
  readonly maxMtu?: number;
  /** Mbit/s, 0 if unknown */
  readonly speed: number;
  readonly rxQueues: number;
  readonly txQueues: number;
  /** queue pairs that it has */
  readonly maxQueues: number;
  readonly descriptors: number;
}

export interface Engine {
  readonly config: ForwardConfig;
  readonly forwarding: boolean;
  ports(): PortInfo[];
  /** Throws RangeError for a port that is not there; as do all that take one. */
  stats(port: number): PortStats;
  /** by DPDK's names */
  xstats(port: number): ReadonlyMap<string, number>;
  clearStats(port: number | 'all'): void;
  /** Starts forwarding; `txFirst` bursts are sent on every port before. */
  start(txFirst: number): Promise<void>;
  /** Stops it, and says what the streams have counted. */
  stop(): Promise<StreamStats[]>;
  /** while forwarding, or of the last run */
  streams(): StreamStats[];
  startPort(port: number): Promise<void>;
  stopPort(port: number): Promise<void>;
  /** Throws NOT_SUPPORTED if the port cannot do otherwise, as is told by DPDK's words. */
  setPromiscuous(port: number, on: boolean): void;
  /** Lines about what became of the packets that were verified in the last run, or are being; none where none are. */
  trafficReport?(): string[];
  /** From the next start on. Of a port that has a `maxMtu`. */
  setMtu(port: number, mtu: number): void;
  /** Shows packets at this level from now on: 1 what is received, 2 what is sent, above both, 0 none. @returns the level before */
  setVerbose(level: number): Promise<number>;
  /** Told about packets, in whole lines. */
  onDump(told: (text: string) => void): void;
  /** Told when streams have ended for a reason that nobody has foreseen; they begin anew with the next start. */
  onFailure(told: (reason: string) => void): void;
  /** Told when a port's link changes: for a line above the prompt. */
  onLink(told: (info: PortInfo) => void): void;
  /** Stops everything, closes all ports, joins all threads. */
  close(): Promise<void>;
}
