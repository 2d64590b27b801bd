/**
 * What forwarding has done since it was started, or since the statistics were cleared: by port and by stream. After `stop` the
 * figures stand until the next start.
 */
import type { Engine, PortStats, StreamStats } from './engine.ts';

/**
 * One port's share, of what was sent first, too; not what was received only to be thrown away, before forwarding. Packets are counted by
 * the streams, what was lost before them by the port.
 */
export interface PortForwarded {
  readonly port: number;
  readonly rxPackets: number;
  /** came, but found no place */
  readonly rxDropped: number;
  readonly rxErrors: number;
  readonly rxNoMbuf: number;
  readonly txPackets: number;
  readonly txDropped: number;
  readonly txRetries: number;
  readonly badIpChecksum: number;
  readonly badL4Checksum: number;
  /** by their packets, where that is counted */
  readonly rxBursts: readonly number[];
  readonly txBursts: readonly number[];
}

/** What forwarding has done, as it is shown. */
export interface Forwarded {
  readonly ports: readonly PortForwarded[];
  readonly streams: readonly StreamStats[];
}

interface Look {
  readonly ports: ReadonlyMap<number, PortStats>;
  readonly streams: readonly StreamStats[];
}

const STREAM_COUNTS = [
  'rxPackets',
  'txPackets',
  'txDropped',
  'txRetries',
  'badIpChecksum',
  'badL4Checksum',
  'busyNs',
] as const;

const sum = <T>(items: readonly T[], count: (item: T) => number) =>
  items.reduce((total, item) => total + count(item), 0);

/** Adds up, place by place. */
const sumAll = (lists: readonly (readonly number[])[]) =>
  (lists[0] ?? []).map((_, at) => sum(lists, (list) => list[at]));
const less = (list: readonly number[], before: readonly number[]) => list.map((n, at) => n - before[at]);

const sameStream = (a: StreamStats, b: StreamStats) =>
  a.rxPort === b.rxPort && a.rxQueue === b.rxQueue && a.txPort === b.txPort && a.txQueue === b.txQueue;

export class ForwardStats {
  readonly #engine: Engine;
  /** the ports that take part */
  #ports: readonly number[];
  #base: Look;
  /** the figures at the end; undefined while forwarding */
  #end: Look | undefined;

  constructor(engine: Engine, ports: readonly number[]) {
    this.#engine = engine;
    this.#ports = ports;
    this.#base = this.#look([]);
    this.#end = this.#base;
  }

  /** Before forwarding between `ports` starts, and before what is sent first. */
  begin(ports: readonly number[]): void {
    this.#ports = ports;
    this.#base = this.#look([]);
    this.#end = undefined;
  }

  /** Forwarding has stopped, and `streams` is what the engine said. */
  end(streams: readonly StreamStats[]): void {
    this.#end = this.#look(streams);
  }

  /** From here on, everything counts from zero. */
  clear(): void {
    this.#base = this.#end ?? this.#look(this.#engine.streams());
  }

  /** The port's own counters have been cleared while it forwards. */
  portCleared(port: number): void {
    if (this.#end !== undefined || !this.#ports.includes(port)) return;
    this.#base = { ...this.#base, ports: new Map([...this.#base.ports, [port, this.#engine.stats(port)]]) };
  }

  get forwarded(): Forwarded {
    const now = this.#end ?? this.#look(this.#engine.streams());
    const streams = now.streams.map((stream) => this.#sinceBase(stream));
    return { ports: this.#ports.map((port) => this.#port(port, now, streams)), streams };
  }

  #look(streams: readonly StreamStats[]): Look {
    return { ports: new Map(this.#ports.map((port) => [port, { ...this.#engine.stats(port) }])), streams };
  }

  #sinceBase(stream: StreamStats): StreamStats {
    const before = this.#base.streams.find((one) => sameStream(one, stream));
    if (before === undefined) return stream;
    const counts = STREAM_COUNTS.map((name) => [name, stream[name] - before[name]]);
    const rxBursts = less(stream.rxBursts, before.rxBursts);
    const txBursts = less(stream.txBursts, before.txBursts);
    return { ...stream, ...Object.fromEntries(counts), rxBursts, txBursts };
  }

  #port(port: number, now: Look, streams: readonly StreamStats[]): PortForwarded {
    const [after, before] = [now.ports.get(port)!, this.#base.ports.get(port)!];
    const received = streams.filter((stream) => stream.rxPort === port);
    const sent = streams.filter((stream) => stream.txPort === port);
    return {
      port,
      rxPackets: sum(received, (stream) => stream.rxPackets),
      rxDropped: after.rxMissed - before.rxMissed,
      rxErrors: after.rxErrors - before.rxErrors,
      rxNoMbuf: after.rxNoMbuf - before.rxNoMbuf,
      txPackets: sum(sent, (stream) => stream.txPackets),
      txDropped: sum(sent, (stream) => stream.txDropped),
      txRetries: sum(sent, (stream) => stream.txRetries),
      badIpChecksum: sum(received, (stream) => stream.badIpChecksum),
      badL4Checksum: sum(received, (stream) => stream.badL4Checksum),
      rxBursts: sumAll(received.map(({ rxBursts }) => rxBursts)),
      txBursts: sumAll(sent.map(({ txBursts }) => txBursts)),
    };
  }
}
