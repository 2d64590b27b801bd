/**
 * DPDK's testpmd: as a front end it plays guests (virtio_user ports), as a back end a switch (net_vhost ports).
 * Needs the packages of peer "dpdk" (see packages.ts). Written for DPDK 22.11; what had to be found out:
 * - `--no-huge` and `--in-memory` exclude each other. With `--no-huge` memory is one memfd, which is what lets
 *   virtio_user share it; with hugepages it needs `--single-file-segments`, as vhost-user takes 8 regions at most.
 *   `--in-memory` takes hugepages without a mounted hugetlbfs.
 * - testpmd's own output is buffered when it goes to a pipe while the prompt is not: hence `unbuffered`.
 * - It ends at the end of its input, and removes the sockets of net_vhost ports only when it ends properly.
 * - Its forwarding cores poll without pause: stop forwarding, or the program, as soon as possible.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { makeTempDir, PeerProcess, removeTempDir } from './process.ts';

/** testpmd's forwarding modes that the tests use. */
export type ForwardMode = 'io' | 'mac' | 'macswap' | 'rxonly' | 'txonly' | 'flowgen' | 'icmpecho' | 'csum';

/** How to run testpmd. */
export interface TestpmdOptions {
  /** What messages call it. */
  name: string;
  /** `--vdev` arguments; port n is vdevs[n]. See {@link virtioUserPort} and {@link vhostPort}. */
  vdevs: readonly string[];
  /** Default io. */
  forwardMode?: ForwardMode;
  /** Queue pairs of every port. Default 1. */
  queues?: number;
  /** Number of forwarding lcores. Default 1. */
  forwardingCores?: number;
  /** CPU of the command line's thread, and CPU of each forwarding lcore. Default: all float over all CPUs. */
  pin?: { main: number; forwarding: readonly number[] };
  /** EAL's memory. Default 256; one port with one queue needs about 30 for 8192 mbufs. */
  memoryMiB?: number;
  /** Default: when enough 2 MB pages are free. */
  hugepages?: boolean;
  /** Packet buffers in the pool. Default 8192. */
  mbufs?: number;
  /** Of the process. Default 0; it polls, also when it has nothing to do. */
  nice?: number;
  /** More EAL arguments. */
  eal?: readonly string[];
  /** More of testpmd's own arguments, such as `--rxd=1024`. */
  app?: readonly string[];
}

/** Counters of one port, as `show port stats` prints them; rates are since the last look. */
export interface PortStats {
  rxPackets: number;
  rxMissed: number;
  rxBytes: number;
  rxErrors: number;
  rxNombuf: number;
  txPackets: number;
  txErrors: number;
  txBytes: number;
  /** Packets a second. */
  rxPps: number;
  /** Packets a second. */
  txPps: number;
}

/** A virtio_user port: a guest's driver, connected to a vhost-user back end. */
export interface VirtioUserOptions {
  /** The back end's socket; testpmd does not start without one, except with `server`. */
  socket: string;
  mac: string;
  /** Queue pairs. Default 1. */
  queues?: number;
  /** Entries of each ring. Default 256. */
  queueSize?: number;
  /** VIRTIO_NET_F_MRG_RXBUF. Default true, as DPDK has it. */
  mrgRxbuf?: boolean;
  /** VIRTIO_F_IN_ORDER. Default true, as DPDK has it. */
  inOrder?: boolean;
  /** VIRTIO_F_RING_PACKED. Default false. */
  packed?: boolean;
  /**
   * SIMD receive path. Default false. DPDK takes it on split rings only with mrgRxbuf=false and inOrder=false and
   * without offloads; on packed rings (transmit too) only with AVX512, inOrder=true and
   * mrgRxbuf=false. Otherwise it silently takes another path: see `log`, "virtio: using ... path".
   */
  vectorized?: boolean;
  /** The port makes the socket, and the back end connects. Default false. */
  server?: boolean;
}

const PROMPT = 'testpmd> ';
/** Marks before anything is printed: on both streams, and on standard output. */
const START = { output: 0, said: 0 };

/** The `--vdev` argument of a virtio_user port; `index` tells ports of one process apart. */
export function virtioUserPort(index: number, options: VirtioUserOptions): string {
  const flag = (value: boolean | undefined, otherwise: boolean) => ((value ?? otherwise) ? 1 : 0);
  const parts = [
    `net_virtio_user${index}`,
    `path=${options.socket}`,
    `mac=${options.mac}`,
    `queues=${options.queues ?? 1}`,
    `queue_size=${options.queueSize ?? 256}`,
    `mrg_rxbuf=${flag(options.mrgRxbuf, true)}`,
    `in_order=${flag(options.inOrder, true)}`,
    `packed_vq=${flag(options.packed, false)}`,
    `vectorized=${flag(options.vectorized, false)}`,
  ];
  if (options.server) parts.push('server=1');
  return parts.join(',');
}

/** A net_vhost port: a back end. */
export interface VhostOptions {
  /** Queue pairs. Default 1. */
  queues?: number;
  /** It connects to the socket, again and again, in place of listening. Default false. */
  client?: boolean;
  /** Offers the TSO features. Default false. */
  tso?: boolean;
  /** Offers ACCESS_PLATFORM and asks the front end for translations. Default false. */
  iommu?: boolean;
  /** Offers protocol feature PAGEFAULT. Default false. */
  postcopy?: boolean;
}

/** The `--vdev` argument of a net_vhost port. */
export function vhostPort(index: number, socket: string, options: VhostOptions = {}): string {
  const flags = { client: options.client, tso: options.tso, 'iommu-support': options.iommu };
  const all = { ...flags, 'postcopy-support': options.postcopy };
  const parts = [`net_vhost${index}`, `iface=${socket}`, `queues=${options.queues ?? 1}`];
  return [...parts, ...Object.entries(all).map(([name, on]) => `${name}=${on ? 1 : 0}`)].join(',');
}

/** Free 2 MB hugepages. */
export function freeHugepages(): number {
  try {
    return Number(readFileSync('/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages', 'utf8'));
  } catch {
    return 0;
  }
}

/** EAL arguments for memory: hugepages when `useHuge`, else a memfd of ordinary pages. */
export function ealMemory(memoryMiB: number, useHuge: boolean): string[] {
  const memory = ['-m', String(memoryMiB)];
  if (useHuge) return [...memory, '--in-memory', '--single-file-segments'];
  return [...memory, '--no-huge', '--no-shconf'];
}

/** EAL arguments for lcore 0 and `workers` more, pinned or floating over all CPUs. */
export function ealLcores(workers: number, pin?: { main: number; forwarding: readonly number[] }): string[] {
  const all = `(0-${availableParallelism() - 1})`;
  const cpuOf = (lcore: number) => {
    if (pin === undefined) return all;
    return lcore === 0 ? pin.main : (pin.forwarding[lcore - 1] ?? pin.forwarding[0]);
  };
  const map = Array.from({ length: workers + 1 }, (_, lcore) => `${lcore}@${cpuOf(lcore)}`);
  return ['--lcores', map.join(','), '--main-lcore', '0'];
}

/** One testpmd: `start`, then `command`, `portStats`, and `stop`. Forwarding begins with `startForwarding`. */
export class DpdkTestpmd {
  readonly options: TestpmdOptions;
  private readonly dir: string;
  private process_: PeerProcess | undefined;
  private turn: Promise<unknown> = Promise.resolve();

  constructor(options: TestpmdOptions) {
    this.options = options;
    this.dir = makeTempDir(`testpmd-${options.name}`);
  }

  /** A front end with one port for each of `ports`. */
  static virtioUser(
    ports: readonly VirtioUserOptions[],
    options: Omit<TestpmdOptions, 'vdevs' | 'queues'>,
  ): DpdkTestpmd {
    const vdevs = ports.map((port, index) => virtioUserPort(index, port));
    const queues = Math.max(...ports.map((port) => port.queues ?? 1));
    // the log then says which receive and transmit path each port took, and its features
    const eal = ['--log-level=pmd.net.virtio.init:debug', '--log-level=pmd.net.virtio.driver:info'];
    if (ports.some((port) => port.packed && port.vectorized)) eal.push('--force-max-simd-bitwidth=512');
    return new DpdkTestpmd({ ...options, vdevs, queues, eal: [...eal, ...(options.eal ?? [])] });
  }

  /** A back end that passes what one socket's front end sends to the other's, and the other way round. */
  static vhost(
    sockets: readonly string[],
    options: Omit<TestpmdOptions, 'vdevs'>,
    ports: Omit<VhostOptions, 'queues'> = {},
  ): DpdkTestpmd {
    const { queues = 1 } = options;
    const vdevs = sockets.map((socket, i) => vhostPort(i, socket, { ...ports, queues }));
    return new DpdkTestpmd({ ...options, vdevs });
  }

  /** Starts the program and waits for its prompt. On failure nothing is left behind. */
  async start(timeoutMs = 20_000): Promise<this> {
    const { name } = this.options;
    this.process_ = new PeerProcess({
      name: `testpmd ${name}`,
      command: 'dpdk-testpmd',
      args: this.arguments(),
      env: { RUNTIME_DIRECTORY: this.dir },
      unbuffered: true,
      nice: this.options.nice ?? 0,
    });
    try {
      const printed = await this.prompt(START, 'prompt', timeoutMs);
      if (printed.includes('Start ports failed')) throw new Error(`testpmd ${name} starts no ports:\n${printed}`);
      return this;
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  /** Runs one line of testpmd's command language and returns what it printed. */
  command(line: string, timeoutMs = 10_000): Promise<string> {
    const result = this.turn.then(async () => {
      const mark = { output: this.process.outputLen, said: this.process.saidLen };
      this.process.write(`${line}\n`);
      const output = await this.prompt(mark, `prompt after "${line}"`, timeoutMs);
      const printed = output.slice(output.indexOf('\n') + 1).split(PROMPT)[0]; // without the line's echo
      if (/^(Bad arguments|Command not found|Ambiguous command|Incomplete command)/m.test(printed)) {
        throw new Error(`testpmd ${this.options.name}: "${line}": ${printed.trim()}`);
      }
      return printed;
    });
    this.turn = result.catch(() => {});
    return result;
  }

  /** Begins forwarding; `bursts` of 32 packets are sent out of every port first, for modes that only answer. */
  async startForwarding(bursts = 0): Promise<void> {
    await this.command(bursts > 0 ? `start tx_first ${bursts}` : 'start');
  }

  /** Ends forwarding; its lcores stop polling. Returns testpmd's summary. */
  stopForwarding(): Promise<string> {
    return this.command('stop');
  }

  /** The destination address of what `port` sends, in the modes mac and txonly (flowgen has its own). */
  async setEthPeer(port: number, mac: string): Promise<void> {
    await this.command(`set eth-peer ${port} ${mac}`);
  }

  /** Frame length of txonly and of `startForwarding`'s first bursts, in bytes without FCS. */
  async setTxLength(bytes: number): Promise<void> {
    await this.command(`set txpkts ${bytes}`);
  }

  /** Counters of a port. */
  async portStats(port: number): Promise<PortStats> {
    const output = await this.command(`show port stats ${port}`);
    const field = (name: string) => {
      const found = new RegExp(`${name}: +(\\d+)`).exec(output);
      if (found === null) throw new Error(`testpmd ${this.options.name}: no ${name} in:\n${output}`);
      return Number(found[1]);
    };
    return {
      rxPackets: field('RX-packets'),
      rxMissed: field('RX-missed'),
      rxBytes: field('RX-bytes'),
      rxErrors: field('RX-errors'),
      rxNombuf: field('RX-nombuf'),
      txPackets: field('TX-packets'),
      txErrors: field('TX-errors'),
      txBytes: field('TX-bytes'),
      rxPps: field('Rx-pps'),
      txPps: field('Tx-pps'),
    };
  }

  /** Packets of each queue pair of a port so far. */
  async queueStats(port: number): Promise<{ rx: number[]; tx: number[] }> {
    const output = await this.command(`show port xstats ${port}`);
    const counts = (direction: 'rx' | 'tx') => {
      const found = [...output.matchAll(new RegExp(`^${direction}_q(\\d+)_good_packets: (\\d+)`, 'gm'))];
      return found.sort((a, b) => Number(a[1]) - Number(b[1])).map((match) => Number(match[2]));
    };
    return { rx: counts('rx'), tx: counts('tx') };
  }

  /** All that testpmd printed, as far as it is kept. */
  get log(): string {
    return this.process_?.outputSince(0) ?? '';
  }

  /** testpmd's process id. */
  get pid(): number {
    return this.process.pid;
  }

  /** SIGKILL, as in a crash: sockets of net_vhost ports stay behind. */
  async kill9(): Promise<void> {
    this.process.killNow();
    await this.process.ended;
  }

  /** Quits (which removes net_vhost's sockets), by force when it must. May be called at any time, and again. */
  async stop(): Promise<void> {
    if (this.process_ !== undefined && this.process_.endedHow === undefined) {
      this.process_.write('quit\n');
      if (!(await this.process_.endsWithin(5000))) await this.process_.stop(2000);
    }
    removeTempDir(this.dir);
  }

  private get process(): PeerProcess {
    if (this.process_ === undefined) throw new Error(`testpmd ${this.options.name} is not started`);
    return this.process_;
  }

  private async prompt(mark: typeof START, what: string, timeoutMs: number): Promise<string> {
    // not at the end: messages of other threads may follow it, and those of the other stream may get into it
    await this.process.waitUntil(what, () => this.process.saidSince(mark.said).includes(PROMPT), timeoutMs);
    return this.process.outputSince(mark.output);
  }

  private arguments(): string[] {
    const { vdevs, queues = 1, forwardingCores = 1, memoryMiB = 256, pin, mbufs = 8192 } = this.options;
    const useHuge = this.options.hugepages ?? freeHugepages() * 2 >= memoryMiB;
    return [
      ...ealLcores(forwardingCores, pin),
      ...ealMemory(memoryMiB, useHuge),
      ...['--file-prefix', `vs${process.pid}-${this.options.name}`, '--no-pci', '--no-telemetry'],
      ...vdevs.flatMap((vdev) => ['--vdev', vdev]),
      ...(this.options.eal ?? []),
      ...['--', '--interactive', `--forward-mode=${this.options.forwardMode ?? 'io'}`, `--nb-cores=${forwardingCores}`],
      ...[`--total-num-mbufs=${mbufs}`, `--rxq=${queues}`, `--txq=${queues}`],
      ...(this.options.app ?? []),
    ];
  }
}
