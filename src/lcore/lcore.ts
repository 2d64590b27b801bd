/**
 * An lcore: the ports one thread polls, the switch between them, and one round of work. It does not know of threads: the worker
 * entry runs it in a loop, a program of its own may call `poll` when it likes.
 */
import { AddressMap, type Chunk } from '../mem/address-map.ts';
import { CopyStage } from '../mem/copy-stage.ts';
import { openWindow, type WindowHandle, type WindowViews } from '../mem/window.ts';
import { type PortTools, VhostPort } from '../port/vhost-port.ts';
import { LCORE_SLOTS } from '../stats/counters.ts';
import { Classifier } from '../switch/classify.ts';
import { Forwarder } from '../switch/forward.ts';
import type { SwitchConfig } from '../switch/switch-config.ts';
import { Burst } from '../virtqueue/burst.ts';
import { Enqueuer } from '../virtqueue/enqueue.ts';
import type { VringConfig } from '../virtqueue/split-ring.ts';

/** What an lcore tells the main thread. An address is two words as in MacTable. */
export interface LcoreEvents {
  onRegistered(port: number, first: number, last: number): void;
  onDuplicate(port: number, first: number, last: number): void;
  onFault(port: number, vring: number, fault: number): void;
}

export class Lcore {
  readonly #config: SwitchConfig;
  readonly #tools: PortTools;
  readonly #windows: WindowViews[] = [];
  /** by port number */
  readonly #ports: (VhostPort | undefined)[];
  /** those in use, in the order they are polled */
  #polled: readonly VhostPort[] = [];
  readonly #classifier: Classifier;
  readonly #forwarder: Forwarder;
  readonly #burst = new Burst();
  readonly counters: Float64Array;
  #now = 0;

  /** @param counters a block of LCORE_SLOTS */
  constructor(config: SwitchConfig, counters: Float64Array, events: LcoreEvents) {
    this.#config = config;
    this.counters = counters;
    const stage = new CopyStage();
    const windows = this.#windows;
    const onFault = (port: number, vring: number, fault: number) => events.onFault(port, vring, fault);
    this.#tools = { stage, windows, enqueuer: new Enqueuer(stage, windows), onFault };
    this.#ports = Array(config.maxPorts).fill(undefined);
    this.#classifier = new Classifier(
      config,
      (port, first, last) => events.onRegistered(port, first, last),
      (port, first, last) => events.onDuplicate(port, first, last),
    );
    this.#forwarder = new Forwarder(this.#classifier, this.#ports, config.maxPorts);
  }

  get ports(): readonly VhostPort[] {
    return this.#polled;
  }

  /** One round: a burst from every port, switched. @returns packets taken */
  poll(): number {
    let packets = 0;
    for (let i = 0; i < this.#polled.length; i++) packets += this.#pollPort(this.#polled[i]);
    this.counters[LCORE_SLOTS.rounds]++;
    return packets;
  }

  #pollPort(port: VhostPort): number {
    const burst = this.#burst;
    const n = port.receive(burst);
    if (n === 0) return 0;
    this.#classifier.classify(burst, this.#tools.stage.heads, port.id, port.counters, this.#now);
    this.#forwarder.forward(burst, port);
    port.complete(burst);
    this.counters[LCORE_SLOTS.bursts]++;
    return n;
  }

  /** Tells the time, seconds; ages the MAC table. To be called about once a second. */
  tick(now: number): void {
    this.#now = now;
    const { learning, macAgeing } = this.#config;
    if (learning === 'dynamic' && macAgeing > 0) this.#classifier.table.age(now, macAgeing);
  }

  /** Asks the guests to kick from now on. @returns false if frames have come meanwhile: then it is no time to sleep */
  prepareSleep(): boolean {
    for (const { txRing } of this.#polled) {
      if (txRing === undefined) continue;
      txRing.wantKicks();
      if (txRing.refresh() > 0) return false;
    }
    return true;
  }

  /** Asks the guests to stop kicking. */
  wake(): void {
    for (const { txRing } of this.#polled) txRing?.suppressKicks();
  }

  addPort(id: number, counters: SharedArrayBuffer): void {
    this.#ports[id] = new VhostPort(id, new Float64Array(counters), this.#tools);
    this.#choosePolled();
  }

  removePort(id: number): void {
    this.#ports[id] = undefined;
    this.#classifier.forget(id);
    this.#choosePolled();
  }

  #choosePolled(): void {
    this.#polled = this.#ports.filter((port) => port !== undefined);
  }

  setMemory(id: number, chunks: readonly Chunk[], windows: readonly WindowHandle[]): void {
    for (const window of windows) this.#windows[window.id] ??= openWindow(window);
    this.#port(id).setMemory(new AddressMap(chunks));
  }

  startVring(id: number, vring: number, config: VringConfig): void {
    this.#port(id).startVring(vring, config);
  }

  stopVring(id: number, vring: number): number | undefined {
    return this.#port(id).stopVring(vring);
  }

  enableVring(id: number, vring: number, enabled: boolean): void {
    this.#port(id).enableVring(vring, enabled);
  }

  setCall(id: number, vring: number, fd: number): void {
    this.#port(id).setCall(vring, fd);
  }

  #port(id: number): VhostPort {
    const port = this.#ports[id];
    if (port === undefined) throw new RangeError(`no port ${id} on this lcore`);
    return port;
  }
}
