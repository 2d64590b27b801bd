/**
 * What the commands do with the engine, and what is said about it. Knows no keyboard: `say` takes whole lines.
 */
import { SwitchError } from '../errors.ts';
import type { Engine, ForwardConfig, PortInfo } from './engine.ts';
import { ForwardStats } from './forward-stats.ts';
import {
  extendedStatistics,
  type ForwardPlan,
  forwardConfig,
  forwardStatistics,
  linkChange,
  nicStatistics,
  portInfo,
  portSummary,
  queueConfig,
  type Rates,
} from './report.ts';
import { planStreams, type StreamPlace, type Topology } from './topology.ts';

/** Packets of a burst at most: the thread's own burst. */
export const MAX_BURST = 32;

export interface SessionOptions {
  readonly topology: Topology;
  /** numbers of the lcores that may forward */
  readonly lcores: readonly number[];
  /** where text goes: whole lines, the last one without its end */
  readonly say: (text: string) => void;
  /** ns; for rates */
  readonly now?: () => bigint;
}

/** A port as it was shown before. */
interface Shown {
  readonly at: bigint;
  readonly counts: readonly number[];
}

export type PortChoice = number | 'all';

export class Session {
  readonly engine: Engine;
  readonly say: (text: string) => void;
  /** the ports that were chosen last, of which the first ones may forward */
  configuredPorts: readonly number[];
  readonly #options: SessionOptions;
  readonly #now: () => bigint;
  readonly #stats: ForwardStats;
  readonly #shown = new Map<number, Shown>();
  #quitting = false;

  /** Throws RangeError for a forwarding port that is not there. */
  constructor(engine: Engine, options: SessionOptions) {
    this.engine = engine;
    this.say = options.say;
    this.#options = options;
    this.#now = options.now ?? process.hrtime.bigint;
    this.configuredPorts = this.ports;
    this.#stats = new ForwardStats(engine, this.ports);
    engine.onLink((info) => this.say(linkChange(info)));
    engine.onDump(this.say);
    engine.onFailure((reason) =>
      this.say(`Packet forwarding failed, ${reason}\nIts streams have ended: stop, and start again`),
    );
  }

  /** The ports that forward, in order. */
  get ports(): readonly number[] {
    return this.config.ports ?? this.engine.ports().map(({ port }) => port);
  }

  get topology(): Topology {
    return this.#options.topology;
  }

  /** Numbers of the lcores that may forward. */
  get lcores(): readonly number[] {
    return this.#options.lcores;
  }

  get config(): ForwardConfig {
    return this.engine.config;
  }

  /** `quit` was said. */
  get quitting(): boolean {
    return this.#quitting;
  }

  quit(): void {
    this.#quitting = true;
  }

  /** The ports meant, or none after having said that there is no such port. */
  portsOf(choice: PortChoice): PortInfo[] {
    const infos = this.engine.ports();
    if (choice === 'all') return infos;
    const one = infos.filter(({ port }) => port === choice);
    if (one.length === 0) {
      this.say(`Invalid port ${choice}\nThe valid ports array is [ ${infos.map(({ port }) => port).join(' ')} ]`);
    }
    return one;
  }

  /** What comes when the program is up. */
  banner(): void {
    for (const { port, mac } of this.engine.ports()) {
      this.say(`Configuring Port ${port} (socket 0)\nPort ${port}: ${mac.toUpperCase()}`);
    }
    this.say('Checking link statuses...');
    for (const { port, up, reason } of this.engine.ports()) {
      if (!up) this.say(`Port ${port} Link down${reason === '' ? '' : `: ${reason}`}`);
    }
    this.say('Done');
  }

  /** @param txFirst bursts to send on every port before */
  async start(txFirst: number): Promise<void> {
    if (this.engine.forwarding) return this.say('Packet forwarding already started');
    const stopped = this.engine.ports().filter(({ port, started }) => this.ports.includes(port) && !started);
    if (stopped.length > 0) {
      const names = stopped.map(({ port }) => port).join(', ');
      return this.say(`Not all ports were started: ${names} ${stopped.length > 1 ? 'are' : 'is'} stopped`);
    }
    this.showForwardConfig();
    this.showQueueConfig();
    this.#stats.begin(this.ports);
    await this.engine.start(txFirst);
  }

  async stop(): Promise<void> {
    if (!this.engine.forwarding) return this.say('Packet forwarding not started');
    this.say('Telling cores to stop...\nWaiting for lcores to finish...');
    this.#stats.end(await this.engine.stop());
    this.showForwardStats();
    this.showTraffic();
    this.say('\nDone.');
  }

  async startPorts(choice: PortChoice): Promise<void> {
    const chosen = this.portsOf(choice);
    if (chosen.length === 0) return;
    for (const { port, mac, started } of chosen) {
      if (started) this.say(`Port ${port} is now not stopped`);
      else {
        await this.engine.startPort(port);
        this.say(`Port ${port}: ${mac.toUpperCase()}`);
      }
    }
    const none = chosen.every(({ started }) => started);
    this.say(`${none ? 'Please stop the ports first' : 'Checking link statuses...'}\nDone`);
  }

  async stopPorts(choice: PortChoice): Promise<void> {
    const chosen = this.portsOf(choice);
    if (chosen.length === 0) return;
    this.say('Stopping ports...');
    const busy = chosen.filter(({ port }) => this.engine.forwarding && this.ports.includes(port));
    for (const { port } of chosen) {
      if (busy.some((one) => one.port === port)) {
        this.say(`Please remove port ${port} from forwarding configuration.`);
      } else await this.engine.stopPort(port);
    }
    if (busy.length < chosen.length) this.say('Checking link statuses...');
    this.say('Done');
  }

  setPromiscuous(choice: PortChoice, on: boolean): void {
    for (const { port } of this.portsOf(choice)) {
      try {
        this.engine.setPromiscuous(port, on);
      } catch (error) {
        // a device that cannot is no reason to leave out the others
        if (!(error instanceof SwitchError)) throw error;
        const doing = on ? 'enabling' : 'disabling';
        this.say(`Error during ${doing} promiscuous mode for port ${port}: ${error.message}`);
      }
    }
  }

  async setVerbose(level: number): Promise<void> {
    const before = await this.engine.setVerbose(level);
    this.say(`Change verbose level from ${before} to ${level}`);
  }

  setEthPeer(port: number, mac: string): void {
    if (this.portsOf(port).length > 0) this.config.ethPeers.set(port, mac);
  }

  showPortInfo(choice: PortChoice): void {
    for (const info of this.portsOf(choice)) this.say(portInfo(info));
  }

  showPortSummary(choice: PortChoice): void {
    const infos = this.portsOf(choice);
    if (infos.length > 0) this.say(portSummary(infos, this.engine.ports().length));
  }

  showPortStats(choice: PortChoice): void {
    for (const { port } of this.portsOf(choice)) {
      const stats = this.engine.stats(port);
      const rates = this.#rates(port, [stats.rxPackets, stats.rxBytes, stats.txPackets, stats.txBytes]);
      this.say(nicStatistics(port, stats, rates));
    }
  }

  showPortXstats(choice: PortChoice): void {
    for (const { port } of this.portsOf(choice)) this.say(extendedStatistics(port, this.engine.xstats(port)));
  }

  clearPortStats(choice: PortChoice): void {
    for (const { port } of this.portsOf(choice)) {
      this.engine.clearStats(port);
      this.#stats.portCleared(port);
      this.say(`\n  NIC statistics for port ${port} cleared`);
    }
  }

  showForwardStats(): void {
    this.say(forwardStatistics(this.#stats.forwarded, this.config));
  }

  /** What became of the packets that were verified, if any were. */
  showTraffic(): void {
    const lines = this.engine.trafficReport?.() ?? [];
    if (lines.length > 0) this.say(lines.join('\n'));
  }

  clearForwardStats(): void {
    this.#stats.clear();
  }

  showForwardConfig(): void {
    this.say(forwardConfig(this.#plan()));
  }

  showQueueConfig(): void {
    this.say(queueConfig(this.#plan(), this.engine.ports()));
  }

  showCores(): void {
    this.say(
      `List of forwarding lcores:  ${this.#plan()
        .lcores.map(({ lcore }) => lcore)
        .join(' ')}`,
    );
  }

  showTxPackets(): void {
    const { txpkts } = this.config;
    this.say(`Number of segments: ${txpkts.length}\nSegment sizes: ${txpkts.join(',')}\nSplit packet: off`);
  }

  /** Stops forwarding and ports, closes all, and says so. The engine is closed even if it could not be stopped. */
  async close(): Promise<void> {
    const infos = this.engine.ports();
    try {
      if (this.engine.forwarding) await this.stop();
      for (const { port, started } of infos) {
        this.say(`\nStopping port ${port}...\nStopping ports...`);
        if (started) await this.engine.stopPort(port);
        this.say('Done');
      }
    } finally {
      await this.engine.close();
    }
    for (const { port } of infos) {
      this.say(`\nShutting down port ${port}...\nClosing ports...\nPort ${port} is closed\nDone`);
    }
    this.say('\nBye...');
  }

  #plan(): ForwardPlan {
    const { config } = this;
    const infos = this.engine.ports().filter(({ port }) => this.ports.includes(port));
    const queues = Math.min(...infos.map(({ rxQueues, txQueues }) => Math.min(rxQueues, txQueues)));
    const topology = config.mode === 'icmpecho' ? 'loop' : this.#options.topology;
    const planned = planStreams({ ports: this.ports, topology, queues, threads: config.cores });
    const { coreOrder } = config;
    const lcores = planned.map((streams, i) => ({
      lcore: this.#options.lcores[coreOrder?.[i] ?? i],
      streams: this.#inOrder(streams),
    }));
    return { config, ports: this.ports, lcores };
  }

  /** As DPDK lists streams: the first queues of all ports first. */
  #inOrder(streams: readonly StreamPlace[]): StreamPlace[] {
    const place = ({ queue, rxPort }: StreamPlace) => queue * this.ports.length + this.ports.indexOf(rxPort);
    return streams.toSorted((a, b) => place(a) - place(b));
  }

  /** Since the port was shown before; zeros the first time, and where counters have gone back. */
  #rates(port: number, counts: readonly number[]): Rates {
    const at = this.#now();
    const before = this.#shown.get(port);
    this.#shown.set(port, { at, counts });
    const seconds = before === undefined ? 0 : Number(at - before.at) / 1e9;
    const perSecond = (i: number) => {
      const more = counts[i] - (before?.counts[i] ?? 0);
      return seconds > 0 && more > 0 ? Math.floor(more / seconds) : 0;
    };
    return { rxPps: perSecond(0), rxBps: 8 * perSecond(1), txPps: perSecond(2), txBps: 8 * perSecond(3) };
  }
}
