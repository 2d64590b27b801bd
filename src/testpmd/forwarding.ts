/**
 * What a forwarding thread does from start to stop: ports, streams between them, and one turn of work. It does not know of threads.
 */
import type { DevicePort } from '../port/device-port.ts';
import { RecordedPort } from '../port/recorded-port.ts';
import type { Mode, ModeSettings } from './modes/mode.ts';
import { MODES } from './modes/table.ts';
import { trafficMode } from './modes/traffic.ts';
import { type Retry, STREAM_SLOTS, Stream, type StreamPlan } from './stream.ts';
import type { Workshop } from './workshop.ts';

/** Turns with something to do after which ports may send what they hold back: about 100 µs. */
const TURNS_PER_DRAIN = 64;
/** How often ports take over what is counted elsewhere. */
const TICK_MS = 1000;
const NS_PER_MS = 1e6;
/** Bursts of a queue that are thrown away at the start; what comes faster than that is forwarded. */
const MAX_FLUSHED = 2048;

/** What all of a thread's streams have in common. */
export interface ForwardingOptions {
  readonly streams: readonly StreamPlan[];
  readonly settings: ModeSettings;
  readonly retry: Retry | undefined;
}

export class Forwarding {
  /** without what records them */
  readonly #given: readonly DevicePort[];
  readonly #ports: readonly DevicePort[];
  readonly #streams: readonly Stream[];
  readonly #modes: readonly Mode[];
  readonly #first: () => readonly Mode[];
  /** every port says by an eventfd when something comes */
  readonly #allWake: boolean;
  readonly #generates: boolean;
  readonly #recordsCycles: boolean;
  #turns = 0;
  #tickedAt = 0;

  /** The ports are its own from now on. They share the workshop's burst. */
  constructor(given: readonly DevicePort[], workshop: Workshop, { streams, settings, retry }: ForwardingOptions) {
    const { burst } = workshop;
    workshop.reset();
    const ports = recorded(given, workshop, settings);
    this.#given = given;
    this.#ports = ports;
    burst.limit = settings.burst;
    this.#streams = streams.map((plan) => {
      const alone = streams.every((other) => other === plan || other.rxPort !== plan.rxPort);
      return new Stream(plan, ports, workshop, retry, alone, settings.recordBursts);
    });
    this.#modes = this.#streams.map(
      (stream) => trafficMode(stream, workshop, settings) ?? MODES[settings.mode](stream, workshop, settings),
    );
    this.#first = () => this.#streams.map((stream) => MODES.txonly(stream, workshop, settings));
    this.#recordsCycles = settings.recordCycles;
    this.#generates = settings.mode === 'txonly' || settings.mode === 'flowgen';
    this.#allWake = ports.every(({ eventFds }) => eventFds.length > 0);
  }

  /** What becomes readable when there is something to do. */
  get eventFds(): number[] {
    return this.#ports.flatMap(({ eventFds }) => eventFds);
  }

  /** Throws away what has arrived so far: it is not this run's. */
  flush(): void {
    for (const stream of this.#streams) stream.flush(this.#given[stream.plan.rxPort], MAX_FLUSHED);
  }

  /** Sends `bursts` bursts on every stream, as txonly does. */
  sendFirst(bursts: number): void {
    const modes = this.#first();
    for (let n = 0; n < bursts; n++) for (const mode of modes) mode.turn();
    for (const port of this.#ports) port.drain();
  }

  /** One turn of every stream. @returns packets received or sent */
  turn(): number {
    const packets = this.#recordsCycles ? this.#timedTurn() : this.#turn();
    if (packets === 0 || ++this.#turns % TURNS_PER_DRAIN === 0) this.#drain();
    return packets;
  }

  #turn(): number {
    const modes = this.#modes;
    let packets = 0;
    for (let i = 0; i < modes.length; i++) packets += modes[i].turn();
    return packets;
  }

  /** The same, with the time that each stream takes if it moves packets. */
  #timedTurn(): number {
    const modes = this.#modes;
    let packets = 0;
    for (let i = 0, from = performance.now(); i < modes.length; i++) {
      const moved = modes[i].turn();
      const now = performance.now();
      if (moved > 0) this.#streams[i].counters[STREAM_SLOTS.busy_ns] += (now - from) * NS_PER_MS;
      packets += moved;
      from = now;
    }
    return packets;
  }

  #drain(): void {
    const ports = this.#ports;
    for (let i = 0; i < ports.length; i++) ports[i].drain();
    const now = performance.now();
    if (now - this.#tickedAt < TICK_MS) return;
    this.#tickedAt = now;
    this.#tick();
  }

  #tick(): void {
    for (const port of this.#given) port.tick?.();
  }

  /** Before the thread sleeps. @returns ms that it may sleep: 0 if there is something to do, −1 until an eventfd wakes it */
  prepareSleep(): number {
    let soon = false;
    if (this.#generates && this.#ports.some(({ canTransmit }) => canTransmit)) {
      for (const { nap = 0 } of this.#modes) {
        if (nap === 0) return 0;
        soon ||= nap > 0;
      }
    }
    for (const port of this.#ports) if (!port.prepareSleep()) return 0;
    return this.#allWake && !soon ? -1 : 1;
  }

  /** Closes the ports. */
  close(): void {
    this.#tick();
    for (const port of this.#ports) {
      port.drain();
      port.close();
    }
  }
}

/** Bytes of the buffer of what a port receives on its way to the file. */
const RECORD_BYTES = 2 ** 20;

/** The ports, each with what it receives going into the file that is asked for, if one is. */
function recorded(ports: readonly DevicePort[], workshop: Workshop, { traffic }: ModeSettings): readonly DevicePort[] {
  const { recordFd: fd, recordTo: path = '' } = traffic ?? {};
  if (fd === undefined) return ports;
  return ports.map((port) => {
    const off = workshop.allocMuch(RECORD_BYTES);
    const spec = { fd, path, format: 'pcapng', window: workshop.own, off, bytes: RECORD_BYTES } as const;
    return new RecordedPort(port, { ...spec, interface: port.id }, workshop);
  });
}
