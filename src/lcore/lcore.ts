/**
 * An lcore: the ports one thread polls, the switch between them, and one round of work. It does not know of threads: the worker
 * entry runs it in a loop.
 */
import type { WindowHandle, WindowViews } from '../mem/window.ts';
import type { DevicePort } from '../port/device-port.ts';
import type { DeviceRecipe } from '../port/devices.ts';
import type { Port } from '../port/port.ts';
import { RxRetry } from '../port/rx-retry.ts';
import { LCORE_SLOTS, PORT_SLOTS } from '../stats/counters.ts';
import { Learner, type SharedSwitchState } from '../switch/learner.ts';
import { vidOf } from '../switch/mac-table.ts';
import type { PortVlan, SwitchConfig } from '../switch/switch-config.ts';
import { makeSwitching, type Switching } from '../switch/switching.ts';
import type { Caller } from '../sys/eventfd.ts';
import { ETH_P_8021Q, VLAN_HLEN } from '../uapi/ip.ts';
import type { DeviceMemory, PackedMemory, VringConfig } from '../vhost/datapath.ts';
import { NO_FD } from '../vhost/vhost-device.ts';
import type { GuestAddress } from '../virtio-net/net-state.ts';
import { PortTable, type RingEvents } from './port-table.ts';

/** What an lcore tells the main thread. An address is two words as in MacTable. */
export interface LcoreEvents extends RingEvents {
  onRegistered(port: number, first: number, last: number): void;
  onDuplicate(port: number, first: number, last: number): void;
}

/** Where injected frames lie in the bounce window, and where the switch's own fronts do. */
const INJECT_OFF = 65536;
const FRONTS_OFF = 2 ** 19;
/** The longest sleep: the MAC table ages meanwhile. */
const MAX_SLEEP_MS = 1000;
/** The longest sleep while a ring has no kick eventfd: its guest waits for us as long. */
const MAX_NAP_MS = 1;
/** What comes before the EtherType. */
const ADDRESSES_BYTES = 12;

/** A frame with a VLAN's tag behind its addresses. */
function withTag(frame: Uint8Array, vid: number): Uint8Array {
  const tagged = new Uint8Array(frame.length + VLAN_HLEN);
  tagged.set(frame.subarray(0, ADDRESSES_BYTES));
  const view = new DataView(tagged.buffer);
  view.setUint16(ADDRESSES_BYTES, ETH_P_8021Q);
  view.setUint16(ADDRESSES_BYTES + 2, vid);
  tagged.set(frame.subarray(ADDRESSES_BYTES), ADDRESSES_BYTES + VLAN_HLEN);
  return tagged;
}

/** An address as the MAC table has it, and back. */
function wordsOf(mac: Uint8Array): [first: number, last: number] {
  const view = new DataView(mac.buffer, mac.byteOffset, mac.byteLength);
  return [view.getInt32(0, true), view.getUint16(4, true)];
}

function macOf(first: number, last: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(6));
  view.setInt32(0, first, true);
  view.setUint16(4, last, true);
  return new Uint8Array(view.buffer);
}

export class Lcore {
  readonly #config: SwitchConfig;
  readonly #table: PortTable;
  readonly #learner: Learner;
  readonly #switching: Switching;
  readonly #retry: RxRetry;
  readonly #bounce: WindowViews;
  readonly counters: Float64Array;
  #now = 0;

  /**
   * @param counters a block of LCORE_SLOTS
   * @param caller signals the guests
   * @param bounce memory of the lcore's own, in a window: for frames that no guest has sent
   * @param shared what the lcores of one switch share, where there are several
   */
  constructor(
    config: SwitchConfig,
    counters: Float64Array,
    caller: Caller,
    bounce: WindowHandle,
    events: LcoreEvents,
    shared?: SharedSwitchState,
  ) {
    this.#config = config;
    this.counters = counters;
    this.#retry = new RxRetry(config.rxRetry?.num, config.rxRetry?.delayUs);
    this.#table = new PortTable(config.maxPorts, caller, bounce, events, this.#retry);
    this.#bounce = this.#table.addWindow(bounce);
    this.#learner = new Learner(
      config,
      (port, first, last) => events.onRegistered(port, first, last),
      (port, first, last) => events.onDuplicate(port, first, last),
      shared,
    );
    const { ports, windows } = this.#table;
    this.#switching = makeSwitching(config, this.#learner, ports, windows, this.#bounce, FRONTS_OFF);
  }

  /** One round: a burst from every queue, switched. @returns packets switched */
  poll(): number {
    const { polled } = this.#table;
    let packets = 0;
    for (let i = 0; i < polled.length; i++) packets += this.#pollQueue(polled[i].port, polled[i].queue);
    this.counters[LCORE_SLOTS.rounds]++;
    return packets;
  }

  #pollQueue(port: Port, queue: number): number {
    const n = port.receive(queue);
    if (n === 0) return 0;
    this.#switchBurst(port);
    port.complete(queue);
    this.counters[LCORE_SLOTS.bursts]++;
    return n;
  }

  /** What the burst has comes from `port`. */
  #switchBurst(port: Port): void {
    const { burst } = this.#table;
    this.#retry.begin(this.#learner.isUplink[port.id] === 1);
    this.#switching.classifier.classify(burst, port.id, port.counters, this.#now);
    this.#switching.forwarder.forward(burst, port);
  }

  /** Tells the time, seconds; ages the MAC table, and asks again for translations that have not come. To be called about once a second. */
  tick(now: number): void {
    this.#now = now;
    const { learning, macAgeing } = this.#config;
    if (learning === 'dynamic' && macAgeing > 0) this.#learner.table.age(now, macAgeing);
    for (const port of this.#table.guests) port.askAgain();
    for (const port of this.#table.devices) port.tick?.();
  }

  /** Queues that are polled in a round. */
  get queues(): number {
    return this.#table.polled.length;
  }

  /**
   * Asks the guests to kick from now on. @returns how long to sleep at most, ms: 0 if frames have come meanwhile, and not long while some
   * guest has given no eventfd to kick by, or another port has none: those must be looked at again and again
   */
  prepareSleep(): number {
    const { guests, guestQueues, devices } = this.#table;
    let ms = MAX_SLEEP_MS;
    for (const port of guests) port.lookAhead();
    for (const { port, queue } of guestQueues) {
      const ring = port.txRing(queue);
      if (ring === undefined) continue;
      if (ring.kickFd === NO_FD) ms = MAX_NAP_MS;
      ring.wantKicks();
      if (ring.refresh() > 0) return 0;
    }
    for (const port of devices) {
      if (!port.prepareSleep()) return 0;
      if (port.queues > 0 && port.eventFds.length === 0) ms = MAX_NAP_MS;
    }
    return ms;
  }

  /** Has the ports send what they hold back: to be called about every 100 µs while busy, and in every round with nothing to do. */
  drain(): void {
    const { devices } = this.#table;
    for (let i = 0; i < devices.length; i++) devices[i].drain();
  }

  /** Asks the guests to stop kicking. */
  wake(): void {
    for (const { port, queue } of this.#table.guestQueues) port.txRing(queue)?.suppressKicks();
  }

  /** Switches an untagged frame (at most MAX_FRAME_BYTES) as if the guest behind port `id` had sent it, in each of its VLANs. */
  inject(id: number, frame: Uint8Array): void {
    const port = this.#port(id);
    for (const vid of this.#switching.classifier.tagsOf(id)) {
      const bytes = vid === 0 ? frame : withTag(frame, vid);
      this.#bounce.u8.set(bytes, INJECT_OFF);
      this.#table.burst.putOne(this.#bounce.id, INJECT_OFF, bytes);
      port.counters[PORT_SLOTS.tx_packets]++;
      port.counters[PORT_SLOTS.tx_bytes] += bytes.length;
      this.#switchBurst(port);
    }
  }

  #port(id: number): Port {
    const port = this.#table.ports[id];
    if (port === undefined) throw new RangeError(`no port ${id} on this lcore`);
    return port;
  }

  /** Learns addresses, as if the guest behind port `id` had just used them; not those in VLANs that it is not in. */
  learn(id: number, addresses: readonly GuestAddress[]): void {
    const { counters } = this.#port(id);
    const { classifier } = this.#switching;
    for (const tag of classifier.tagsOf(id)) {
      const words = addresses.filter(({ vlan }) => vlan === tag).flatMap(({ mac }) => wordsOf(mac));
      const vid = tag === 0 ? classifier.untaggedVid(id) : tag;
      if (words.length > 0) this.#learner.adopt(words, vid, id, counters, this.#now);
    }
  }

  /** The addresses that have been learned on port `id`. */
  known(id: number): GuestAddress[] {
    const { classifier } = this.#switching;
    const untagged = classifier.untaggedVid(id);
    const words = this.#learner.table.addressesOf(id);
    return Array.from({ length: words.length / 2 }, (_, i) => {
      const vid = vidOf(words[2 * i + 1]);
      return { mac: macOf(words[2 * i], words[2 * i + 1]), vlan: vid === untagged ? 0 : vid };
    });
  }

  /** From now on nothing longer leaves by an uplink: see UplinkConfig. */
  setMtu(id: number, mtu: number): void {
    this.#switching.forwarder.setMtu(id, mtu);
  }

  /** @param vlan the device's own VLANs; without, it is in those of the switch's plan */
  addPort(id: number, counters: SharedArrayBuffer, vlan?: PortVlan): void {
    this.#table.addPort(id, counters);
    this.#switching.classifier.setPort(id, vlan);
  }

  /** A port that is no guest: an uplink. @returns it */
  addDevice(id: number, counters: SharedArrayBuffer, recipe: DeviceRecipe): DevicePort {
    return this.#table.addDevice(id, counters, recipe);
  }

  /** Port `id` if it is no guest's. */
  device(id: number): DevicePort | undefined {
    return this.#table.device(id);
  }

  /** Closes the port if it is no guest's. */
  removePort(id: number): void {
    this.#table.removePort(id);
    this.#switching.classifier.forget(id);
  }

  /** Closes the ports that are no guests': the thread is about to end. */
  close(): void {
    for (const { id } of this.#table.devices) this.removePort(id);
  }

  setMemory(id: number, memory: DeviceMemory | PackedMemory): void {
    this.#table.setMemory(id, memory);
  }

  /** `counters`: a block of VRING_SLOTS. `state`: what lcores share of a ring that several of them use. */
  startVring(
    id: number,
    vring: number,
    config: VringConfig,
    counters?: SharedArrayBuffer,
    state?: SharedArrayBuffer,
  ): void {
    this.#table.startVring(id, vring, config, counters, state);
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
