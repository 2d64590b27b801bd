/**
 * The lcores of one switch together, as the devices have them: what all must know is told to all, what one does to one.
 *
 * A transmit queue is polled by one lcore: a device's first by that with the fewest devices, its others by those behind it, until they are
 * moved. Into a receive queue any lcore delivers, under the ring's lock.
 */
import { packChunks } from '../mem/address-map.ts';
import type { WindowPool } from '../mem/window.ts';
import type { UplinkDevice } from '../port/devices.ts';
import {
  addBlock,
  counterBlock,
  LCORE_SLOTS,
  type LcoreCounter,
  PORT_SLOTS,
  readCounters,
  VRING_SLOTS,
} from '../stats/counters.ts';
import { sharedSwitchState } from '../switch/learner.ts';
import type { PortVlan, SwitchConfig } from '../switch/switch-config.ts';
import type { DeviceMemory, VringConfig } from '../vhost/datapath.ts';
import type { NetDatapath } from '../virtio-net/net-datapath.ts';
import type { GuestAddress } from '../virtio-net/net-state.ts';
import { isTransmit } from '../virtio-net/net-vring.ts';
import { sharedRingState } from '../virtqueue/vring.ts';
import { LcoreThread, type LcoreThreadEvents } from './lcore-thread.ts';
import type { PollConfig } from './poll-pace.ts';

/** An lcore's number, and the CPUs its thread runs on; none for any. */
export interface LcorePlace {
  /** its number, as DPDK counts lcores */
  readonly lcore: number;
  /** numbers of the CPUs; none: any */
  readonly cpus: readonly number[];
}

export interface LcoreGroupOptions {
  readonly config: SwitchConfig;
  readonly poll: PollConfig;
  /** at least one */
  readonly lcores: readonly LcorePlace[];
  /** each lcore keeps a window of it */
  readonly pool: WindowPool;
}

/** A transmit queue that is polled. */
export interface TransmitQueue {
  readonly port: number;
  readonly pair: number;
  readonly vring: number;
  /** index of the lcore that polls it */
  readonly at: number;
}

/** What the group knows of a port. */
interface PortEntry {
  /** index of the lcore that polls its first transmit queue to begin with; undefined for a port that is no guest's: all poll their own */
  readonly home: number | undefined;
  /** by pair, the indexes of the lcores that its transmit queues have been moved to */
  readonly moved: Map<number, number>;
  /** the transmit queues that have been started, by vring */
  readonly started: Map<number, VringConfig>;
  /** while a queue is being moved: all that comes meanwhile waits */
  moving: Promise<boolean> | undefined;
  /** its counters (PORT_SLOTS), by lcore */
  readonly blocks: readonly SharedArrayBuffer[];
  /** by vring, the counters of it (VRING_SLOTS), by lcore */
  readonly vrings: (readonly SharedArrayBuffer[])[];
}

export class LcoreGroup implements NetDatapath {
  readonly #threads: LcoreThread[] = [];
  readonly #places: readonly LcorePlace[];
  readonly #ports = new Map<number, PortEntry>();

  private constructor(places: readonly LcorePlace[]) {
    this.#places = places;
  }

  /** Starts the threads; resolves when all poll. Rejects, with nothing left behind, when one cannot be started or pinned. */
  static async start(options: LcoreGroupOptions, events: LcoreThreadEvents): Promise<LcoreGroup> {
    const { config, poll, lcores, pool } = options;
    const group = new LcoreGroup(lcores);
    const shared = lcores.length > 1 ? sharedSwitchState(config) : undefined;
    try {
      for (const { cpus } of lcores) {
        const bounce = pool.acquire();
        group.#threads.push(await LcoreThread.start({ config, poll, cpus, bounce, shared }, events));
      }
      return group;
    } catch (error) {
      await group.stop();
      throw error;
    }
  }

  /** Makes port `port`, in VLANs of its own if it has any. @returns the number of the lcore that will poll its first queue */
  addPort(port: number, vlan?: PortVlan): { lcore: number; done: Promise<void> } {
    const home = this.#leastBusy();
    const blocks = this.#threads.map(() => counterBlock(PORT_SLOTS));
    this.#ports.set(port, newEntry(home, blocks));
    const done = Promise.all(this.#threads.map((thread, i) => thread.addPort(port, blocks[i], vlan))).then(() => {});
    return { lcore: this.#places[home].lcore, done };
  }

  /**
   * Makes port `port`, which is no guest's: every lcore its own, of what `device` says. It goes on counting where it was removed.
   * Rejects if an lcore cannot make it.
   */
  async addDevice(port: number, device: UplinkDevice): Promise<void> {
    const blocks = this.#ports.get(port)?.blocks ?? this.#threads.map(() => counterBlock(PORT_SLOTS));
    this.#ports.set(port, newEntry(undefined, blocks));
    const { length } = this.#threads;
    await Promise.all(this.#threads.map((thread, i) => thread.addDevice(port, blocks[i], device.recipe(i, length))));
  }

  /** The index of the lcore with the fewest devices, the first of several. */
  #leastBusy(): number {
    const devices = this.#threads.map(() => 0);
    for (const { home } of this.#ports.values()) if (home !== undefined) devices[home]++;
    return devices.indexOf(Math.min(...devices));
  }

  async removePort(port: number): Promise<void> {
    await this.#entry(port).moving;
    await Promise.all(this.#threads.map((thread) => thread.removePort(port)));
    this.#ports.delete(port);
  }

  /** As `removePort`, but the port's counters stay. */
  async removeDevice(port: number): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.removePort(port)));
  }

  /** From now on nothing longer leaves by the uplink `port`: see UplinkConfig. */
  async setMtu(port: number, mtu: number): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.setMtu(port, mtu)));
  }

  async setMemory(port: number, memory: DeviceMemory): Promise<void> {
    await this.#entry(port).moving;
    const packed = { ...memory, chunks: packChunks(memory.chunks) };
    await Promise.all(this.#threads.map((thread) => thread.setMemory(port, packed)));
  }

  async startVring(port: number, vring: number, config: VringConfig): Promise<void> {
    const { vrings, started, moving } = this.#entry(port);
    await moving;
    if (isTransmit(vring)) started.set(vring, config);
    vrings[vring] ??= this.#threads.map(() => counterBlock(VRING_SLOTS));
    const users = this.#users(port, vring);
    const state = users.length > 1 ? sharedRingState(config.ring) : undefined;
    const counters = vrings[vring];
    await Promise.all(users.map((i) => this.#threads[i].startVring(port, vring, config, counters[i], state)));
  }

  /** One lcore after the other: where the ring stands is what the last one says. Nothing is in flight between bursts. */
  async stopVring(port: number, vring: number): Promise<number | undefined> {
    const { started, moving } = this.#entry(port);
    await moving;
    started.delete(vring);
    let base: number | undefined;
    for (const i of this.#users(port, vring)) base = await this.#threads[i].stopVring(port, vring);
    return base;
  }

  async enableVring(port: number, vring: number, enabled: boolean): Promise<void> {
    const { started, moving } = this.#entry(port);
    await moving;
    const config = started.get(vring);
    if (config !== undefined) started.set(vring, { ...config, enabled });
    await Promise.all(this.#users(port, vring).map((i) => this.#threads[i].enableVring(port, vring, enabled)));
  }

  async setCall(port: number, vring: number, fd: number): Promise<void> {
    const { started, moving } = this.#entry(port);
    await moving;
    const config = started.get(vring);
    if (config !== undefined) started.set(vring, { ...config, ring: { ...config.ring, callFd: fd } });
    await Promise.all(this.#users(port, vring).map((i) => this.#threads[i].setCall(port, vring, fd)));
  }

  /** The transmit queues at work: of which pair of which port, and the index of the lcore that polls it. */
  get transmitQueues(): TransmitQueue[] {
    return [...this.#ports].flatMap(([port, { started }]) =>
      [...started.keys()].map((vring) => ({ port, pair: vring >> 1, vring, at: this.#owner(port, vring >> 1) })),
    );
  }

  /**
   * Has another lcore poll a transmit queue: that of index `to`. Its packets wait meanwhile; none is lost, and none overtakes another.
   * Resolves to false if the queue is not at work.
   */
  moveQueue(port: number, pair: number, to: number): Promise<boolean> {
    const entry = this.#entry(port);
    const before = entry.moving ?? Promise.resolve(true);
    const moving: Promise<boolean> = before
      .then(() => this.#move(port, pair, to))
      .finally(() => {
        if (entry.moving === moving) entry.moving = undefined;
      });
    entry.moving = moving;
    return moving;
  }

  async #move(port: number, pair: number, to: number): Promise<boolean> {
    const { started, moved, vrings } = this.#entry(port);
    const vring = 2 * pair + 1;
    const config = started.get(vring);
    if (config === undefined) return false;
    const base = await this.#threads[this.#owner(port, pair)].stopVring(port, vring);
    if (base === undefined) return false;
    moved.set(pair, to);
    const place = { ...config, ring: { ...config.ring, base } };
    await this.#threads[to].startVring(port, vring, place, vrings[vring][to], undefined);
    return true;
  }

  async inject(port: number, frame: Uint8Array): Promise<void> {
    await this.#threads[this.#home(port)].inject(port, frame);
  }

  /** Has the switch learn addresses on a port, as if its guest had just used them. */
  async learn(port: number, addresses: readonly GuestAddress[]): Promise<void> {
    await this.#threads[this.#home(port)].learn(port, addresses);
  }

  /** The addresses that the switch has learned on a port. */
  known(port: number): Promise<readonly GuestAddress[]> {
    return this.#threads[this.#home(port)].known(port);
  }

  /** Indexes of the lcores that use a vring. */
  #users(port: number, vring: number): number[] {
    return isTransmit(vring) ? [this.#owner(port, vring >> 1)] : [...this.#threads.keys()];
  }

  /** The index of the lcore that polls a pair's transmit queue. */
  #owner(port: number, pair: number): number {
    return this.#entry(port).moved.get(pair) ?? (this.#home(port) + pair) % this.#threads.length;
  }

  #home(port: number): number {
    const { home } = this.#entry(port);
    if (home === undefined) throw new RangeError(`port ${port} is no guest's`);
    return home;
  }

  #entry(port: number): PortEntry {
    const entry = this.#ports.get(port);
    if (entry === undefined) throw new RangeError(`no port ${port}`);
    return entry;
  }

  /** A port's counters (PORT_SLOTS), of all lcores together, as they are now. */
  counters(port: number): Float64Array {
    return sum(this.#entry(port).blocks, counterBlock(PORT_SLOTS));
  }

  /** The counters (VRING_SLOTS) of a port's vrings that have ever been started, by number. */
  vringCounters(port: number): (Float64Array | undefined)[] {
    return Array.from(this.#entry(port).vrings, (blocks) => blocks && sum(blocks, counterBlock(VRING_SLOTS)));
  }

  /** What each lcore has done, by its number. */
  get lcoreCounters(): { readonly lcore: number; readonly counters: Record<LcoreCounter, number> }[] {
    return this.#threads.map(({ counters }, i) => {
      return { lcore: this.#places[i].lcore, counters: readCounters(LCORE_SLOTS, counters) };
    });
  }

  /** Ends the threads; resolves when they have gone. */
  async stop(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.stop()));
  }
}

function newEntry(home: number | undefined, blocks: readonly SharedArrayBuffer[]): PortEntry {
  return { home, moved: new Map(), started: new Map(), moving: undefined, blocks, vrings: [] };
}

function sum(blocks: readonly SharedArrayBuffer[], into: SharedArrayBuffer): Float64Array {
  const total = new Float64Array(into);
  for (const block of blocks) addBlock(total, block);
  return total;
}
