/**
 * The vhost ports of one thread, by number, and the scratch they share.
 */
import { AddressMap, type Chunk } from '../mem/address-map.ts';
import { openWindow, type WindowHandle, type WindowViews } from '../mem/window.ts';
import { type PortTools, VhostPort } from '../port/vhost-port.ts';
import type { Caller } from '../sys/eventfd.ts';
import { Enqueuer } from '../virtio-net/enqueue.ts';
import { RingStage } from '../virtio-net/ring-stage.ts';
import type { VringConfig } from '../virtqueue/split-ring.ts';

/** Told once when a port's ring has been stopped for a fault (virtqueue/fault.ts). */
export type OnFault = (port: number, vring: number, fault: number) => void;

export class PortTable {
  /** by port number */
  readonly ports: (VhostPort | undefined)[];
  /** those in use, by number */
  used: readonly VhostPort[] = [];
  readonly #ringStage = new RingStage();
  /** what the ports receive and transmit */
  readonly burst = this.#ringStage.burst;
  /** this thread's windows, by id: where the segments of a burst lie */
  readonly windows: WindowViews[] = [];
  readonly #tools: PortTools;

  /** Port numbers are below `maxPorts`. `caller` signals the guests. */
  constructor(maxPorts: number, caller: Caller, onFault: OnFault) {
    const { windows } = this;
    const ringStage = this.#ringStage;
    this.ports = Array(maxPorts).fill(undefined);
    this.#tools = { ringStage, windows, caller, enqueuer: new Enqueuer(ringStage, windows), onFault };
  }

  addPort(id: number, counters: SharedArrayBuffer): void {
    this.#set(id, new VhostPort(id, new Float64Array(counters), this.#tools));
  }

  removePort(id: number): void {
    this.#set(id, undefined);
  }

  #set(id: number, port: VhostPort | undefined): void {
    this.ports[id] = port;
    this.used = this.ports.filter((port) => port !== undefined);
  }

  setMemory(id: number, chunks: readonly Chunk[], windows: readonly WindowHandle[]): void {
    for (const window of windows) this.windows[window.id] ??= openWindow(window);
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
    const port = this.ports[id];
    if (port === undefined) throw new RangeError(`no port ${id} on this lcore`);
    return port;
  }
}
