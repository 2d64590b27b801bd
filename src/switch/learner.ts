/**
 * What a switch knows of addresses, and how it comes to know them: the MAC table, and which devices have been registered.
 */
import { PORT_SLOTS } from '../stats/counters.ts';
import { type Burst, FRONT_WORDS } from '../virtio-net/burst.ts';
import { DEST_DROP } from './destination.ts';
import { LEARN_KNOWN, LEARN_NEW, LEARN_REFUSED, MacTable, macTableBytes, NOT_FOUND, vidBits } from './mac-table.ts';
import type { OnDuplicate, OnRegistered, SwitchConfig } from './switch-config.ts';

export const ETHERNET_HEADER = 14;
/** The group bit of an address whose first four bytes are a little-endian word (IEEE 802 §8.2). */
export const GROUP_BIT = 1;

/** What the lcores of one switch share; survives postMessage. */
export interface SharedSwitchState {
  readonly table: SharedArrayBuffer;
  readonly registered: SharedArrayBuffer;
}

export function sharedSwitchState({ macTableSize, maxPorts }: SwitchConfig): SharedSwitchState {
  return {
    table: new SharedArrayBuffer(macTableBytes(macTableSize, maxPorts)),
    registered: new SharedArrayBuffer(4 * maxPorts),
  };
}

/** The source address of packet `i`: its first four bytes, and its last two. */
export function sourceFirst(front: Int32Array, i: number): number {
  return (front[FRONT_WORDS * i + 1] >>> 16) | (front[FRONT_WORDS * i + 2] << 16);
}

export function sourceLast(front: Int32Array, i: number): number {
  return front[FRONT_WORDS * i + 2] >>> 16;
}

/** One lcore's. A last word has the bits of the address's VLAN, where there are several. */
export class Learner {
  readonly table: MacTable;
  /** by port number: it leads out of the switch */
  readonly isUplink: Uint8Array;
  readonly #first: boolean;
  readonly #onRegistered: OnRegistered;
  readonly #onDuplicate: OnDuplicate;
  /** ports that have been registered; uplinks count as such, and nobody is told */
  readonly #registered: Int32Array;
  /** by port, the second in which its last duplicate was told */
  readonly #toldDuplicate: Int32Array;

  /** @param memory what `sharedSwitchState` made, where several lcores switch together; memory of its own by default */
  constructor(config: SwitchConfig, onRegistered: OnRegistered, onDuplicate: OnDuplicate, memory?: SharedSwitchState) {
    const { learning, macTableSize, macLimit, maxPorts, uplinks = [] } = config;
    this.table = new MacTable(macTableSize, macLimit, maxPorts, memory?.table);
    this.isUplink = new Uint8Array(maxPorts);
    this.#first = learning === 'first';
    this.#onRegistered = onRegistered;
    this.#onDuplicate = onDuplicate;
    this.#registered = new Int32Array(memory?.registered ?? new ArrayBuffer(4 * maxPorts));
    this.#toldDuplicate = new Int32Array(maxPorts).fill(-1);
    for (const { port } of uplinks) {
      if (port >= maxPorts) throw new RangeError(`uplink ${port}, port numbers are below ${maxPorts}`);
      this.isUplink[port] = 1;
      this.#registered[port] = 1;
      // however many hosts there are outside, the devices find room
      this.table.setPortMax(port, Math.max(1, macTableSize >> 1));
    }
  }

  /** True if the port may be sent to: always, but with --learning first a device only once it is registered. */
  mayReceive(port: number): boolean {
    return !this.#first || this.#registered[port] === 1;
  }

  /** Forgets a port that has gone: its number may be another device's next. */
  forget(port: number): void {
    this.table.flushPort(port);
    this.#registered[port] = this.isUplink[port];
    this.#toldDuplicate[port] = -1;
  }

  /**
   * Learns addresses that the guest behind a port has used elsewhere, with --learning first the first of them.
   * @param words each address's first four bytes and its last two, as words
   * @param vid the VLAN that it is in, 0 where there are none
   * @param counters the port's own
   */
  adopt(words: readonly number[], vid: number, port: number, counters: Float64Array, now: number): void {
    for (let i = 0; i < words.length; i += 2) {
      if ((words[i] & GROUP_BIT) !== 0) continue;
      const last = words[i + 1] | vidBits(vid);
      if (this.#first && this.#claim(words[i], last, port, counters)) return;
      if (!this.#first) this.learn(words[i], last, port, counters, now);
    }
  }

  /** Notes that the port's guest uses an address. */
  learn(first: number, last: number, port: number, counters: Float64Array, now: number): void {
    if (first === 0 && (last & 0xffff) === 0) return;
    const outcome = this.table.learn(first, last, port, now);
    if (outcome === LEARN_KNOWN) return;
    if (outcome === LEARN_REFUSED) {
      counters[PORT_SLOTS.mac_refused]++;
      return;
    }
    counters[outcome === LEARN_NEW ? PORT_SLOTS.mac_learned : PORT_SLOTS.mac_moved]++;
    this.#register(port, first, last);
  }

  #register(port: number, first: number, last: number): void {
    if (Atomics.compareExchange(this.#registered, port, 0, 1) === 0) this.#onRegistered(port, first, last & 0xffff);
  }

  /**
   * The sample's rule: the source of the first frame of a device's first burst is its address, for ever. If another device has
   * it, the whole burst is lost and the device stays where it was. @param vid as in `adopt` @returns true if the burst may pass
   */
  admit(burst: Burst, vid: number, port: number, counters: Float64Array, now: number): boolean {
    if (this.#registered[port] === 1) return true;
    const first = sourceFirst(burst.front, 0);
    const last = sourceLast(burst.front, 0);
    if (burst.len[0] >= ETHERNET_HEADER && this.#claim(first, last | vidBits(vid), port, counters)) return true;
    counters[PORT_SLOTS.mac_refused]++;
    counters[PORT_SLOTS.tx_drop_unregistered] += burst.count;
    burst.dest.fill(DEST_DROP, 0, burst.count);
    if (this.#toldDuplicate[port] !== now) {
      this.#toldDuplicate[port] = now;
      this.#onDuplicate(port, first, last);
    }
    return false;
  }

  /** Registers a device under an address. @returns true if it is registered now, under this or, by another lcore, under another */
  #claim(first: number, last: number, port: number, counters: Float64Array): boolean {
    if (first === 0 && (last & 0xffff) === 0) return false;
    const holder = this.table.lookup(first, last);
    if (holder !== NOT_FOUND) return holder === port;
    const outcome = this.table.claim(first, last, port, 0);
    if (outcome !== LEARN_NEW) return outcome === LEARN_KNOWN;
    counters[PORT_SLOTS.mac_learned]++;
    this.#register(port, first, last);
    return true;
  }
}
