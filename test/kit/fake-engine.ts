/** testpmd's engine as the prompt sees it, without packets: the test sets what has been counted, and reads what was asked. */
import { SwitchError } from '../../src/errors.ts';
import type { Engine, ForwardConfig, PortInfo, PortStats, StreamStats } from '../../src/testpmd/engine.ts';

type Writable<T> = { -readonly [Key in keyof T]: T[Key] };

const NO_STATS: PortStats = {
  rxPackets: 0,
  rxBytes: 0,
  rxMissed: 0,
  rxErrors: 0,
  rxNoMbuf: 0,
  txPackets: 0,
  txBytes: 0,
  txErrors: 0,
};

/** A stream that has done nothing but what is given. */
export function stream(rxPort: number, txPort: number, counts: Partial<StreamStats> = {}): StreamStats {
  return {
    ...{ rxPort, rxQueue: 0, txPort, txQueue: 0, rxPackets: 0, txPackets: 0, txDropped: 0 },
    ...{ txRetries: 0, badIpChecksum: 0, badL4Checksum: 0, busyNs: 0, rxBursts: [], txBursts: [] },
    ...counts,
  };
}

export class FakeEngine implements Engine {
  readonly config: ForwardConfig = {
    mode: 'io',
    retry: false,
    retryDelay: 1,
    retryNum: 64,
    burst: 32,
    txpkts: [64],
    ethPeers: new Map(),
    rxq: 1,
    txq: 1,
    cores: 1,
  };
  /** what was asked, in order */
  readonly asked: string[] = [];
  readonly infos: Writable<PortInfo>[];
  readonly counted: PortStats[];
  forwardedStreams: StreamStats[] = [];
  forwarding = false;
  closed = 0;
  /** port whose device cannot be promiscuous */
  stubborn = -1;
  #told: (info: PortInfo) => void = () => {};
  readonly #failed: ((reason: string) => void)[] = [];

  constructor(macs: readonly string[]) {
    this.infos = macs.map((mac, port) => ({
      port,
      name: `net_null${port}`,
      mac,
      up: true,
      reason: '',
      started: true,
      promiscuous: true,
      mtu: 1500,
      speed: 10_000,
      rxQueues: 1,
      txQueues: 1,
      maxQueues: 4,
      descriptors: 256,
    }));
    this.counted = macs.map(() => ({ ...NO_STATS }));
  }

  ports(): PortInfo[] {
    return this.infos.map((info) => ({ ...info }));
  }

  stats(port: number): PortStats {
    return { ...this.counted[this.#check(port)] };
  }

  xstats(port: number): ReadonlyMap<string, number> {
    const { rxPackets, txPackets } = this.counted[this.#check(port)];
    return new Map([
      ['rx_good_packets', rxPackets],
      ['tx_good_packets', txPackets],
    ]);
  }

  clearStats(port: number | 'all'): void {
    this.asked.push(`clear ${port}`);
    for (const one of port === 'all' ? this.counted : [this.counted[this.#check(port)]]) Object.assign(one, NO_STATS);
  }

  async start(txFirst: number): Promise<void> {
    this.asked.push(`start ${txFirst}`);
    this.forwarding = true;
    this.forwardedStreams = this.forwardedStreams.map(({ rxPort, txPort }) => stream(rxPort, txPort));
  }

  async stop(): Promise<StreamStats[]> {
    this.asked.push('stop');
    this.forwarding = false;
    return this.forwardedStreams;
  }

  streams(): StreamStats[] {
    return this.forwardedStreams;
  }

  async startPort(port: number): Promise<void> {
    this.asked.push(`start port ${this.#check(port)}`);
    this.infos[port].started = true;
  }

  async stopPort(port: number): Promise<void> {
    this.asked.push(`stop port ${this.#check(port)}`);
    this.infos[port].started = false;
  }

  setPromiscuous(port: number, on: boolean): void {
    if (port === this.stubborn) throw new SwitchError('EOPNOTSUPP', 'the device cannot');
    this.asked.push(`promiscuous ${this.#check(port)} ${on}`);
    this.infos[port].promiscuous = on;
  }

  setMtu(port: number, mtu: number): void {
    this.asked.push(`mtu ${this.#check(port)} ${mtu}`);
    this.infos[port].mtu = mtu;
  }

  #verbose = 0;

  async setVerbose(level: number): Promise<number> {
    const before = this.#verbose;
    this.#verbose = level;
    return before;
  }

  onDump(told: (text: string) => void): void {
    this.dump = told;
  }

  /** Shows packets. */
  dump: (text: string) => void = () => {};

  onFailure(told: (reason: string) => void): void {
    this.#failed.push(told);
  }

  /** Forwarding threads fail. */
  fail(reason: string): void {
    for (const told of this.#failed) told(reason);
  }

  onLink(told: (info: PortInfo) => void): void {
    this.#told = told;
  }

  /** A port's link goes up, or down for a reason. */
  link(port: number, up: boolean, reason = ''): void {
    Object.assign(this.infos[port], { up, reason });
    this.#told({ ...this.infos[port] });
  }

  async close(): Promise<void> {
    this.asked.push('close');
    this.closed++;
  }

  #check(port: number): number {
    if (this.infos[port] === undefined) throw new RangeError(`port ${port}`);
    return port;
  }
}
