/**
 * An lcore: the ports one thread polls, the switch between them, and one round of work. It does not know of threads: the worker
 * entry runs it in a loop.
 */
import type { Chunk } from '../mem/address-map.ts';
import type { WindowHandle } from '../mem/window.ts';
import type { VhostPort } from '../port/vhost-port.ts';
import { LCORE_SLOTS } from '../stats/counters.ts';
import { Classifier } from '../switch/classify.ts';
import { Forwarder } from '../switch/forward.ts';
import type { SwitchConfig } from '../switch/switch-config.ts';
import type { Caller } from '../sys/eventfd.ts';
import type { VringConfig } from '../virtqueue/split-ring.ts';
import { PortTable } from './port-table.ts';

/** What an lcore tells the main thread. An address is two words as in MacTable. */
export interface LcoreEvents {
  onRegistered(port: number, first: number, last: number): void;
  onDuplicate(port: number, first: number, last: number): void;
  onFault(port: number, vring: number, fault: number): void;
}

export class Lcore {
  readonly #config: SwitchConfig;
  readonly #table: PortTable;
  readonly #classifier: Classifier;
  readonly #forwarder: Forwarder;
  readonly counters: Float64Array;
  #now = 0;

  /**
   * @param counters a block of LCORE_SLOTS
   * @param caller signals the guests
   */
  constructor(config: SwitchConfig, counters: Float64Array, caller: Caller, events: LcoreEvents) {
    this.#config = config;
    this.counters = counters;
    this.#table = new PortTable(config.maxPorts, caller, (port, vring, fault) => events.onFault(port, vring, fault));
    this.#classifier = new Classifier(
      config,
      (port, first, last) => events.onRegistered(port, first, last),
      (port, first, last) => events.onDuplicate(port, first, last),
    );
    this.#forwarder = new Forwarder(this.#classifier, this.#table.ports, config.maxPorts);
  }

  /** One round: a burst from every port, switched. @returns packets switched */
  poll(): number {
    const ports = this.#table.used;
    let packets = 0;
    for (let i = 0; i < ports.length; i++) packets += this.#pollPort(ports[i]);
    this.counters[LCORE_SLOTS.rounds]++;
    return packets;
  }

  #pollPort(port: VhostPort): number {
    const n = port.receive();
    if (n === 0) return 0;
    const { burst } = this.#table;
    this.#classifier.classify(burst, port.id, port.counters, this.#now);
    this.#forwarder.forward(burst, port);
    port.complete();
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
    for (const { txRing } of this.#table.used) {
      if (txRing === undefined) continue;
      txRing.wantKicks();
      if (txRing.refresh() > 0) return false;
    }
    return true;
  }

  /** Asks the guests to stop kicking. */
  wake(): void {
    for (const { txRing } of this.#table.used) txRing?.suppressKicks();
  }

  addPort(id: number, counters: SharedArrayBuffer): void {
    this.#table.addPort(id, counters);
  }

  removePort(id: number): void {
    this.#table.removePort(id);
    this.#classifier.forget(id);
  }

  setMemory(id: number, chunks: readonly Chunk[], windows: readonly WindowHandle[]): void {
    this.#table.setMemory(id, chunks, windows);
  }

  startVring(id: number, vring: number, config: VringConfig): void {
    this.#table.startVring(id, vring, config);
  }

  stopVring(id: number, vring: number): number | undefined {
    return this.#table.stopVring(id, vring);
  }

  enableVring(id: number, vring: number, enabled: boolean): void {
    this.#table.enableVring(id, vring, enabled);
  }

  setCall(id: number, vring: number, fd: number): void {
    this.#table.setCall(id, vring, fd);
  }
}
