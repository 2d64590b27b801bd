/**
 * The vhost ports of one thread, by number, and the scratch they share.
 */
import { openWindow, type WindowHandle, type WindowViews } from '../mem/window.ts';
import { RxRetry } from '../port/rx-retry.ts';
import { type PortTools, VhostPort } from '../port/vhost-port.ts';
import { counterBlock, VRING_SLOTS } from '../stats/counters.ts';
import type { Caller } from '../sys/eventfd.ts';
import type { DeviceMemory, PackedMemory, VringConfig } from '../vhost/datapath.ts';
import { Enqueuer } from '../virtio-net/enqueue.ts';
import { OffloadStage } from '../virtio-net/offload-stage.ts';
import { RingStage } from '../virtio-net/ring-stage.ts';

/** What becomes of the rings of a thread's ports. */
export interface RingEvents {
  /** A ring has been stopped for a fault (virtqueue/fault.ts): told once. */
  onFault(port: number, vring: number, fault: number): void;
  /** A ring lacks the translation of an I/O virtual address. */
  onMiss(port: number, vring: number, iova: number, write: boolean): void;
}

/** A transmit queue that is polled. */
export interface PolledQueue {
  readonly port: VhostPort;
  readonly queue: number;
}

/** Where the offload stage's frames lie in the bounce window, and how much room they have, bytes. */
const BOUNCE_OFF = 2 ** 20;
const BOUNCE_BYTES = 2 ** 20;

export class PortTable {
  /** by port number */
  readonly ports: (VhostPort | undefined)[];
  /** the transmit queues in use, by port and number */
  polled: readonly PolledQueue[] = [];
  readonly #ringStage = new RingStage();
  /** what the ports receive and transmit */
  readonly burst = this.#ringStage.burst;
  /** this thread's windows, by id: where the segments of a burst lie */
  readonly windows: WindowViews[] = [];
  readonly #tools: PortTools;

  /**
   * Port numbers are below `maxPorts`. `caller` signals the guests. `bounce`: a window of the thread's own, from BOUNCE_OFF on.
   * @param retry patience with full receive rings; by default there is none
   */
  constructor(
    maxPorts: number,
    caller: Caller,
    bounce: WindowHandle,
    { onFault, onMiss }: RingEvents,
    retry = new RxRetry(),
  ) {
    const { windows } = this;
    const ringStage = this.#ringStage;
    this.ports = Array(maxPorts).fill(undefined);
    const offload = new OffloadStage(this.addWindow(bounce), BOUNCE_OFF, BOUNCE_BYTES);
    const enqueuer = new Enqueuer(ringStage, offload, windows);
    this.#tools = { ringStage, windows, caller, retry, enqueuer, onFault, onMiss };
  }

  addPort(id: number, counters: SharedArrayBuffer): void {
    this.#set(id, new VhostPort(id, new Float64Array(counters), this.#tools));
  }

  removePort(id: number): void {
    this.#set(id, undefined);
  }

  #set(id: number, port: VhostPort | undefined): void {
    this.ports[id] = port;
    this.#choosePolled();
  }

  #choosePolled(): void {
    this.polled = this.ports.flatMap((port) => port?.txQueues.map((queue) => ({ port, queue })) ?? []);
  }

  /** Makes a window known that no port brings along. */
  addWindow(window: WindowHandle): WindowViews {
    this.windows[window.id] ??= openWindow(window);
    return this.windows[window.id];
  }

  setMemory(id: number, memory: DeviceMemory | PackedMemory): void {
    for (const window of memory.windows) this.addWindow(window);
    this.#port(id).setMemory(memory);
  }

  /** `counters`: a block of VRING_SLOTS. `state`: what lcores share of a ring that several of them use. */
  startVring(
    id: number,
    vring: number,
    config: VringConfig,
    counters = counterBlock(VRING_SLOTS),
    state?: SharedArrayBuffer,
  ): void {
    this.#port(id).startVring(vring, config, new Float64Array(counters), state);
    this.#choosePolled();
  }

  stopVring(id: number, vring: number): number | undefined {
    const base = this.#port(id).stopVring(vring);
    this.#choosePolled();
    return base;
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
