/**
 * The ports of one thread, by number, and the scratch they share: the guests' vhost ports, and others, such as uplinks.
 */
import { openWindow, type WindowHandle, type WindowViews } from '../mem/window.ts';
import type { DevicePort } from '../port/device-port.ts';
import { createDevice, type DeviceRecipe } from '../port/devices.ts';
import { Lane } from '../port/lane.ts';
import type { LaneSpec } from '../port/lane-spec.ts';
import type { Port } from '../port/port.ts';
import { RxRetry } from '../port/rx-retry.ts';
import { type PortTools, VhostPort } from '../port/vhost-port.ts';
import { ZeroCopyPort } from '../port/zero-copy-port.ts';
import { Lanes, ZeroCopyUplink } from '../port/zero-copy-uplink.ts';
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

/** A queue that is polled for what a port brings: a guest's transmit queue, another port's receive queue. */
export interface PolledQueue {
  readonly port: Port;
  readonly queue: number;
}

/** A guest's transmit queue. */
interface GuestQueue {
  readonly port: VhostPort;
  readonly queue: number;
}

/** What a guest's port that may have a lane shares with its other lcores. */
export interface LanePlace {
  /** LANE_WORDS */
  readonly shared: SharedArrayBuffer;
  /** LANE_SLOTS, of this lcore */
  readonly counters: SharedArrayBuffer;
}

/** Where the offload stage's frames lie in the bounce window, and how much room they have, bytes. */
const BOUNCE_OFF = 2 ** 20;
const BOUNCE_BYTES = 2 ** 20;

export class PortTable {
  /** by port number */
  readonly ports: (Port | undefined)[];
  /** the queues in use, by port and number */
  polled: readonly PolledQueue[] = [];
  /** the guests among the ports, and of the queues those of guests */
  guests: readonly VhostPort[] = [];
  guestQueues: readonly GuestQueue[] = [];
  /** the ports that are no guests */
  devices: readonly DevicePort[] = [];
  /** the lanes of guests that have some, which are polled like devices */
  readonly #lanes = new Lanes();
  #openLanes: readonly Lane[] = [];
  readonly #ringStage = new RingStage();
  /** what the ports receive and transmit */
  readonly burst = this.#ringStage.burst;
  /** this thread's windows, by id: where the segments of a burst lie */
  readonly windows: WindowViews[] = [];
  readonly #tools: PortTools;
  readonly #zeroCopy: boolean;

  /**
   * Port numbers are below `maxPorts`. `caller` signals the guests. `bounce`: a window of the thread's own, from BOUNCE_OFF on.
   * @param retry patience with full receive rings; by default there is none @param zeroCopy guests may have lanes to the uplink
   */
  constructor(
    maxPorts: number,
    caller: Caller,
    bounce: WindowHandle,
    { onFault, onMiss }: RingEvents,
    retry = new RxRetry(),
    zeroCopy = false,
  ) {
    this.#zeroCopy = zeroCopy;
    const { windows } = this;
    const ringStage = this.#ringStage;
    this.ports = Array(maxPorts).fill(undefined);
    const offload = new OffloadStage(this.addWindow(bounce), BOUNCE_OFF, BOUNCE_BYTES);
    const enqueuer = new Enqueuer(ringStage, offload, windows);
    this.#tools = { ringStage, windows, caller, retry, enqueuer, onFault, onMiss };
  }

  /** @param lane of a switch with zero copy */
  addPort(id: number, counters: SharedArrayBuffer, lane?: LanePlace): void {
    const block = new Float64Array(counters);
    const make = (place: LanePlace) =>
      new ZeroCopyPort(id, block, this.#tools, place.shared, new Float64Array(place.counters));
    this.#set(id, lane === undefined ? new VhostPort(id, block, this.#tools) : make(lane));
  }

  /** Opens the lane of guest `id`, whose first two vrings run. Its counters are as in `addPort`. */
  openLane(id: number, spec: LaneSpec, counters: SharedArrayBuffer): Lane {
    const port = this.#port(id);
    const outside = this.device(spec.uplink);
    if (!(port instanceof ZeroCopyPort) || outside === undefined) throw new RangeError(`no lane for port ${id}`);
    this.addWindow(spec.window);
    const block = new Float64Array(counters);
    const lane = new Lane(spec, port, this.burst, this.windows, block, outside.counters);
    this.#lanes.add(lane);
    this.#setLanes([...this.#openLanes, lane]);
    return lane;
  }

  /** The lane of guest `id`, if it has one open. */
  lane(id: number): Lane | undefined {
    return this.#openLanes.find((lane) => lane.id === id);
  }

  closeLane(id: number): void {
    const lane = this.lane(id);
    if (lane === undefined) return;
    this.#setLanes(this.#openLanes.filter((one) => one !== lane));
    this.#lanes.remove(lane);
    lane.close();
  }

  #setLanes(lanes: readonly Lane[]): void {
    const rest = this.devices.filter((one) => !(one instanceof Lane));
    this.#openLanes = lanes;
    this.devices = [...rest, ...lanes];
    this.#choosePolled();
  }

  /** A port that is no guest. @returns it */
  addDevice(id: number, counters: SharedArrayBuffer, recipe: DeviceRecipe): DevicePort {
    for (const window of recipe.spec.windows) this.addWindow(window);
    const made = createDevice(id, new Float64Array(counters), recipe, this.#tools);
    const port = this.#zeroCopy ? new ZeroCopyUplink(made, this.#lanes, this.burst) : made;
    this.devices = [...this.devices, port];
    this.#set(id, port);
    return port;
  }

  /** Closes the port if it is no guest's. */
  removePort(id: number): void {
    this.closeLane(id);
    this.device(id)?.close();
    this.devices = this.devices.filter((port) => port.id !== id);
    this.#set(id, undefined);
  }

  /** Port `id` if it is a guest's. */
  guest(id: number): VhostPort | undefined {
    const port = this.ports[id];
    return port instanceof VhostPort ? port : undefined;
  }

  /** Port `id` if it is no guest's. */
  device(id: number): DevicePort | undefined {
    return this.devices.find((port) => port.id === id);
  }

  #set(id: number, port: Port | undefined): void {
    this.ports[id] = port;
    this.guests = this.ports.filter((one) => one instanceof VhostPort);
    this.#choosePolled();
  }

  #choosePolled(): void {
    this.guestQueues = this.guests.flatMap((port) => port.txQueues.map((queue) => ({ port, queue })));
    const others = this.devices.flatMap((port) => Array.from({ length: port.queues }, (_, queue) => ({ port, queue })));
    this.polled = [...this.guestQueues, ...others];
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
    const port = this.guest(id);
    if (port === undefined) throw new RangeError(`no port ${id} of a guest on this lcore`);
    return port;
  }
}
