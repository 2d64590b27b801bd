/**
 * testpmd's engine: opens the ports, has threads forward between them, and says what has been counted.
 */
import { SwitchError } from '../errors.ts';
import { chooseWindowKind } from '../mem/selftest.ts';
import { type WindowHandle, WindowPool } from '../mem/window.ts';
import type { Vdev } from '../port/vdev.ts';
import { counterBlock, PORT_SLOTS } from '../stats/counters.ts';
import { BURST_SIZE, MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import {
  DEFAULT_MADE,
  type Engine,
  type ForwardConfig,
  type NoisyConfig,
  type PortInfo,
  type PortStats,
  type StreamStats,
} from './engine.ts';
import { EnginePort } from './engine-port.ts';
import { ForwardThread } from './forward-thread.ts';
import type { PortPlan, RunPlan } from './letters.ts';
import { MIN_MADE_BYTES } from './modes/txonly.ts';
import { openPort } from './port-kinds.ts';
import { STREAM_SLOTS, type StreamPlan, streamCounters } from './stream.ts';
import { planStreams, type StreamPlace, type Topology } from './topology.ts';
import { VerifierCounters, type VerifierMemory, verifierMemory } from './traffic/flow-verifier.ts';
import { OpenTrafficFiles } from './traffic/open-files.ts';
import { MAX_FLOWS } from './traffic/payload.ts';
import { trafficReport } from './traffic/traffic-report.ts';

/** What an engine is made of. */
export interface EngineOptions {
  /** what `--vdev` says of each port, in order */
  readonly vdevs: readonly Vdev[];
  /** Default paired. */
  readonly topology?: Topology;
  /** Changes to it take effect at the next start. */
  readonly config: ForwardConfig;
  /** 'adaptive': threads without work sleep until something comes; 'busy': they never do. Default adaptive. */
  readonly poll?: 'adaptive' | 'busy';
  /** CPUs of each forwarding thread, by turns; none: any */
  readonly cpus?: readonly (readonly number[])[];
  /** Hears what opening the ports waits for. */
  readonly onWait?: (text: string) => void;
  /** Ends that waiting: `open` rejects. */
  readonly signal?: AbortSignal;
}

/** A stream with its counters on the main thread. */
interface StreamEntry extends StreamPlace {
  readonly counters: SharedArrayBuffer;
  readonly firstFlow?: number;
  readonly verifier?: VerifierMemory;
}

const MAC = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i;
const QUIET: NoisyConfig = { bufferPackets: 0, flushMs: 0, memoryMiB: 0, writes: 0, reads: 0, readWrites: 0 };
const LOCAL_ADMIN = 0x02;

export class ForwardEngine implements Engine {
  readonly config: ForwardConfig;
  readonly #options: EngineOptions;
  readonly #pool = new WindowPool(chooseWindowKind().kind);
  readonly #ports: EnginePort[] = [];
  /** Each has a window, as long as there is the engine. */
  readonly #threads: (ForwardThread | undefined)[] = [];
  readonly #threadWindows: WindowHandle[] = [];
  /** those that forward now, and what they were given to do */
  #running: ForwardThread[] = [];
  #plans: readonly RunPlan[] = [];
  #streams: readonly StreamEntry[] = [];
  #files: OpenTrafficFiles | undefined;
  /** starts so far */
  #runs = 0;
  #listeners: ((info: PortInfo) => void)[] = [];
  #verbose = 0;
  readonly #dumpListeners: ((text: string) => void)[] = [];
  readonly #failureListeners: ((reason: string) => void)[] = [];
  #forwarding = false;
  #closing: Promise<void> | undefined;

  /** Opens all ports, in order. Rejects, with nothing left behind, when one cannot be opened. */
  static async open(options: EngineOptions): Promise<ForwardEngine> {
    const engine = new ForwardEngine(options);
    try {
      for (const vdev of options.vdevs) await engine.#open(vdev);
      engine.#openFiles();
      return engine;
    } catch (error) {
      await engine.close();
      throw error;
    }
  }

  private constructor(options: EngineOptions) {
    this.config = options.config;
    this.#options = options;
  }

  async #open(vdev: Vdev): Promise<void> {
    const { onWait = () => {}, signal } = this.#options;
    const device = await openPort(vdev, { pool: this.#pool, onWait, signal });
    const port = new EnginePort(this.#ports.length, vdev.kind, device);
    this.#ports.push(port);
    device.onLink(() => {
      for (const told of this.#listeners) told(this.#info(port));
    });
    await device.usePairs?.(this.#queues([port]));
  }

  #openFiles(): void {
    const { traffic } = this.config;
    if (traffic === undefined) return;
    this.#files = new OpenTrafficFiles(
      traffic,
      this.#ports.map(({ device }) => device.name),
    );
  }

  get forwarding(): boolean {
    return this.#forwarding;
  }

  #port(n: number): EnginePort {
    const port = this.#ports[n];
    if (port === undefined) throw new RangeError(`no port ${n}: there are ${this.#ports.length}`);
    return port;
  }

  /** The ports that forward. */
  get #forwarders(): EnginePort[] {
    return this.config.ports?.map((n) => this.#port(n)) ?? this.#ports;
  }

  /** Queues of each port that are used. */
  #queues(ports: readonly EnginePort[]): number {
    return Math.min(Math.max(1, this.config.rxq, this.config.txq), ...ports.map(({ queues }) => queues));
  }

  #info(port: EnginePort): PortInfo {
    const queues = this.#queues([port]);
    return port.info(queues);
  }

  ports(): PortInfo[] {
    return this.#ports.map((port) => this.#info(port));
  }

  stats(port: number): PortStats {
    return this.#port(port).stats();
  }

  xstats(port: number): ReadonlyMap<string, number> {
    return this.#port(port).xstats();
  }

  clearStats(port: number | 'all'): void {
    const ports = port === 'all' ? this.#ports : [this.#port(port)];
    for (const one of ports) one.clearStats();
  }

  setPromiscuous(port: number, on: boolean): void {
    const { device } = this.#port(port);
    if (device.setPromiscuous !== undefined) device.setPromiscuous(on);
    else if (!on) throw new SwitchError('NOT_SUPPORTED', 'Operation not supported');
  }

  setMtu(port: number, mtu: number): void {
    const { device } = this.#port(port);
    if (device.setMtu === undefined) throw new SwitchError('NOT_SUPPORTED', 'Operation not supported');
    device.setMtu(mtu);
  }

  onLink(told: (info: PortInfo) => void): void {
    this.#listeners.push(told);
  }

  async setVerbose(level: number): Promise<number> {
    const before = this.#verbose;
    this.#verbose = level;
    await this.#tell(() => ({ type: 'verbose', level }));
    return before;
  }

  onDump(told: (text: string) => void): void {
    this.#dumpListeners.push(told);
  }

  onFailure(told: (reason: string) => void): void {
    this.#failureListeners.push(told);
  }

  async startPort(n: number): Promise<void> {
    const port = this.#port(n);
    await port.device.usePairs?.(this.#queues([port]));
    port.started = true;
  }

  async stopPort(n: number): Promise<void> {
    const port = this.#port(n);
    if (this.#forwarding) throw new SwitchError('ALREADY_FORWARDING', `port ${n} is forwarded: stop forwarding first`);
    await port.device.usePairs?.(0);
    port.started = false;
  }

  async start(txFirst: number): Promise<void> {
    if (this.#forwarding)
      throw new SwitchError('ALREADY_FORWARDING', 'packets are forwarded already: stop forwarding first');
    if (this.#forwarders.length === 0)
      throw new SwitchError('NO_PORTS', 'there are no ports to forward between: give --vdev');
    const stopped = this.#forwarders.find(({ started }) => !started);
    if (stopped !== undefined)
      throw new SwitchError('PORT_STOPPED', `port ${stopped.id} is stopped: start it first (port start ${stopped.id})`);
    this.#checkConfig();
    this.#forwarding = true;
    try {
      await this.#begin(txFirst);
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  #checkConfig(): void {
    const { txpkts, ethPeers, burst } = this.config;
    const bytes = txpkts.reduce((sum, len) => sum + len, 0);
    if (bytes < MIN_MADE_BYTES || bytes > MAX_FRAME_BYTES || txpkts.some((len) => len < 1))
      throw new RangeError(`txpkts: ${bytes} bytes a packet; must be ${MIN_MADE_BYTES} to ${MAX_FRAME_BYTES}`);
    if (!(burst >= 1 && burst <= 32)) throw new RangeError(`burst ${burst}: must be 1 to 32`);
    for (const mac of ethPeers.values())
      if (!MAC.test(mac)) throw new RangeError(`eth-peer ${mac}: must be six bytes like 02:00:00:00:00:00`);
  }

  async #begin(txFirst: number): Promise<void> {
    const { topology = 'paired' } = this.#options;
    const { mode, cores, coreOrder, flushRx = true } = this.config;
    const ports = this.#forwarders;
    const queues = this.#queues(ports);
    for (const { device } of ports) await device.usePairs?.(queues);
    const places = planStreams({
      ports: ports.map(({ id }) => id),
      topology: mode === 'icmpecho' ? 'loop' : topology,
      queues,
      threads: Math.max(1, cores),
    });
    const threads: ForwardThread[] = [];
    for (let i = 0; i < places.length; i++) threads.push(await this.#thread(coreOrder?.[i] ?? i));
    const lcores = Math.min(places.length, queues);
    const entries: StreamEntry[] = [];
    this.#runs++;
    const plans = places.map((mine): RunPlan => {
      const own = mine.map((place) => ({ ...place, ...this.#trafficOf(place, places), counters: streamCounters() }));
      entries.push(...own);
      return this.#planOf(own, lcores);
    });
    this.#streams = entries.sort((a, b) => a.queue - b.queue || a.rxPort - b.rxPort);
    this.#running = threads;
    this.#plans = plans;
    await this.#tell((t) => ({ type: 'prepare', plan: plans[t], flush: flushRx }));
    await this.#tell(() => ({ type: 'verbose', level: this.#verbose }));
    if (txFirst > 0) await this.#tell(() => ({ type: 'first', bursts: txFirst }));
    await this.#tell(() => ({ type: 'go' }));
  }

  /** Of a stream: which flows it makes, so that all streams' are told apart, and where it counts what it verifies. */
  #trafficOf(place: StreamPlace, places: readonly (readonly StreamPlace[])[]): Partial<StreamEntry> {
    const { mode, traffic } = this.config;
    if (traffic === undefined) return {};
    const all = places.flat();
    const { plan, verify } = traffic;
    const made = plan?.flows ?? 0;
    const verifies = verify !== undefined && (mode === 'rxonly' || (mode === 'flowgen' && plan !== undefined));
    return {
      firstFlow: all.indexOf(place) * made,
      ...(verifies ? { verifier: verifierMemory(Math.min(MAX_FLOWS, Math.max(verify.flows, made * all.length))) } : {}),
    };
  }

  /** What one thread is to do. Of each port it has the queues q with q % lcores alike. */
  #planOf(streams: readonly StreamEntry[], lcores: number): RunPlan {
    const { mode, retry, retryDelay, retryNum, burst, txpkts, noisy = QUIET, made = DEFAULT_MADE } = this.config;
    const { recordBursts = false, recordCycles = false } = this.config;
    const numbers = [...new Set(streams.flatMap(({ rxPort, txPort }) => [rxPort, txPort]))];
    const ports = numbers.map((n): PortPlan => {
      const port = this.#ports[n];
      const { queue } = streams.find(({ rxPort, txPort }) => rxPort === n || txPort === n) as StreamEntry;
      const spec = port.device.spec(queue % lcores, lcores);
      const counters = counterBlock(PORT_SLOTS);
      port.addCounters(counters);
      return { id: n, kind: port.kind, spec, counters };
    });
    return {
      ports,
      streams: streams.map(({ rxPort, txPort, queue, ...more }): StreamPlan => {
        const local = Math.floor(queue / lcores);
        return {
          ...more,
          queue,
          rxPort: numbers.indexOf(rxPort),
          txPort: numbers.indexOf(txPort),
          rxQueue: local,
          txQueue: local,
          peer: this.#peerOf(txPort),
          own: this.#ports[txPort].mac,
        };
      }),
      settings: { mode, burst, txpkts: [...txpkts], noisy, made, recordBursts, recordCycles, ...this.#threadTraffic },
      retry: retry ? { delay: retryDelay, times: retryNum } : undefined,
    };
  }

  get #threadTraffic() {
    const { traffic } = this.config;
    return traffic === undefined ? {} : { traffic: { ...traffic, ...this.#files?.fds, run: this.#runs } };
  }

  trafficReport(): string[] {
    const memories = this.#streams.flatMap(({ verifier }) => verifier ?? []);
    if (memories.length === 0) return [];
    const sent = this.streams().reduce((sum, { txPackets }) => sum + txPackets, 0);
    return trafficReport(new VerifierCounters(...memories), sent > 0 ? sent : undefined);
  }

  /** Destination of what leaves a port. */
  #peerOf(port: number): Uint8Array {
    const mac = this.config.ethPeers.get(port);
    if (mac === undefined) return Uint8Array.of(LOCAL_ADMIN, 0, 0, 0, 0, port);
    return Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));
  }

  /** Thread `t`, which is started if there is none, or none that lives. */
  async #thread(t: number): Promise<ForwardThread> {
    const before = this.#threads[t];
    if (before !== undefined && !before.dead) return before;
    this.#threads[t] = undefined;
    await before?.end();
    const { poll = 'adaptive', cpus = [] } = this.#options;
    this.#threadWindows[t] ??= this.#pool.acquire();
    const own = cpus.length > 0 ? cpus[t % cpus.length] : [];
    const onFailure = (reason: string) => {
      for (const told of this.#failureListeners) told(`forwarding thread ${t}: ${reason}`);
    };
    const onDeath = ({ message }: Error) => {
      this.#abandon(this.#running.indexOf(this.#threads[t] as ForwardThread));
      onFailure(message);
    };
    const options = { cpus: own, poll, window: this.#threadWindows[t] };
    const onDump = (text: string) => {
      for (const told of this.#dumpListeners) told(text);
    };
    const thread = await ForwardThread.start(options, { onFailure, onDeath, onDump });
    this.#threads[t] = thread;
    return thread;
  }

  /** Number `i` of the running threads has gone without closing its ports. */
  #abandon(i: number): void {
    if (i < 0) return;
    for (const { id, spec } of this.#plans[i].ports) this.#ports[id].device.abandoned?.(spec);
  }

  async #tell(command: (thread: number) => Parameters<ForwardThread['tell']>[0]): Promise<void> {
    await Promise.all(this.#running.map((thread, t) => thread.tell(command(t))));
  }

  async stop(): Promise<StreamStats[]> {
    if (!this.#forwarding) throw new SwitchError('NOT_FORWARDING', 'nothing is forwarded');
    await Promise.all(this.#running.map((thread) => thread.tellLast({ type: 'stop' })));
    this.#running = [];
    for (const port of this.#ports) port.keepCounters();
    this.#forwarding = false;
    return this.streams();
  }

  streams(): StreamStats[] {
    return this.#streams.map(({ rxPort, txPort, queue, counters }) => {
      const at = new Float64Array(counters);
      return {
        ...{ rxPort, rxQueue: queue, txPort, txQueue: queue },
        rxPackets: at[STREAM_SLOTS.rx_packets],
        txPackets: at[STREAM_SLOTS.tx_packets],
        txDropped: at[STREAM_SLOTS.tx_dropped],
        txRetries: at[STREAM_SLOTS.tx_retries],
        badIpChecksum: at[STREAM_SLOTS.bad_ip_checksum],
        badL4Checksum: at[STREAM_SLOTS.bad_l4_checksum],
        busyNs: at[STREAM_SLOTS.busy_ns],
        rxBursts: [...at.subarray(STREAM_SLOTS.rx_bursts, STREAM_SLOTS.rx_bursts + BURST_SIZE + 1)],
        txBursts: [...at.subarray(STREAM_SLOTS.tx_bursts, STREAM_SLOTS.tx_bursts + BURST_SIZE + 1)],
      };
    });
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#forwarding = false;
    await Promise.all(this.#threads.map((thread) => thread?.end()));
    for (const { device } of this.#ports) await device.close();
    this.#files?.close();
  }
}
