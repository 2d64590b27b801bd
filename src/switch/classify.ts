/**
 * Stage 2 of a packet's way: says for each packet of a burst where it goes, and learns where it came from.
 */
import { PORT_SLOTS } from '../stats/counters.ts';
import { BAD_OFFLOAD, type Burst, FRONT_WORDS, MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import { NEED_CSUM } from '../virtio-net/offload.ts';
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import { LEARN_KNOWN, LEARN_NEW, LEARN_REFUSED, MacTable, macTableBytes, NOT_FOUND } from './mac-table.ts';
import type { OnDuplicate, OnRegistered, SwitchConfig } from './switch-config.ts';

/** In `burst.dest`: to every other port, or to none. */
export const DEST_FLOOD = -1;
export const DEST_DROP = -2;

/** What `#target` answers for a frame to drop: this, less the slot of the counter. */
const TARGET_DROP = -2;

const ETHERNET_HEADER = 14;
const VLAN_TAG = 4;
/** The group bit of an address whose first four bytes are a little-endian word (IEEE 802 §8.2). */
const GROUP_BIT = 1;
/** 01:80:c2:00:00:0x as words: addresses that stay on one link (IEEE 802.1Q §8.6.3). */
const LINK_LOCAL_FIRST = 0x00c28001;
const LINK_LOCAL_LAST_MASK = 0xf0ff;

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

export class Classifier {
  readonly table: MacTable;
  readonly #config: SwitchConfig;
  readonly #onRegistered: OnRegistered;
  readonly #onDuplicate: OnDuplicate;
  /** ports that have been registered */
  readonly #registered: Int32Array;
  /** by port, the second in which its last duplicate was told */
  readonly #toldDuplicate: Int32Array;
  /** where group addresses and unknown ones go */
  readonly #unknown: number;

  /** @param memory what `sharedSwitchState` made, where several lcores switch together; memory of its own by default */
  constructor(config: SwitchConfig, onRegistered: OnRegistered, onDuplicate: OnDuplicate, memory?: SharedSwitchState) {
    this.table = new MacTable(config.macTableSize, config.macLimit, config.maxPorts, memory?.table);
    this.#config = config;
    this.#onRegistered = onRegistered;
    this.#onDuplicate = onDuplicate;
    this.#registered = new Int32Array(memory?.registered ?? new ArrayBuffer(4 * config.maxPorts));
    this.#toldDuplicate = new Int32Array(config.maxPorts).fill(-1);
    const floods = config.learning === 'dynamic' && config.vm2vm === 1;
    this.#unknown = floods ? DEST_FLOOD : TARGET_DROP - PORT_SLOTS.tx_drop_no_uplink;
  }

  /** True if the device may be sent to: always, but with --learning first only once it is registered. */
  mayReceive(port: number): boolean {
    return this.#config.learning === 'dynamic' || this.#registered[port] === 1;
  }

  /** Forgets a port that has gone: its number may be another device's next. */
  forget(port: number): void {
    this.table.flushPort(port);
    this.#registered[port] = 0;
    this.#toldDuplicate[port] = -1;
  }

  /**
   * Learns addresses that the guest behind a port has used elsewhere, with --learning first the first of them.
   * @param words each address's first four bytes and its last two, as words
   * @param counters the port's own
   */
  adopt(words: readonly number[], port: number, counters: Float64Array, now: number): void {
    const first = this.#config.learning === 'first';
    for (let i = 0; i < words.length; i += 2) {
      if ((words[i] & GROUP_BIT) !== 0) continue;
      if (first && this.#claim(words[i], words[i + 1], port, counters)) return;
      if (!first) this.#learn(words[i], words[i + 1], port, counters, now);
    }
  }

  /**
   * Fills `burst.dest` for a burst from `port`, from the packets' fronts. Packets between the same two addresses
   * mostly come in runs: each run is looked up once.
   * @param counters the port's own
   * @param now seconds
   */
  classify(burst: Burst, port: number, counters: Float64Array, now: number): void {
    const { count, len, front } = burst;
    burst.only = -1;
    if (this.#config.learning === 'first' && !this.#admit(burst, port, counters, now)) return;
    if (burst.uniform && (sourceFirst(front, 0) & GROUP_BIT) === 0) {
      const target = this.#route(front, 0, port, counters, now);
      if (target >= 0) {
        burst.only = target;
        return;
      }
      burst.dest.fill(Math.max(target, DEST_DROP), 0, count);
      if (target <= TARGET_DROP) counters[TARGET_DROP - target] += count;
      return;
    }
    for (let i = 0; i < count; ) {
      const from = i;
      const malformed = malformedSlot(len[i], burst.needs[i], sourceFirst(front, i));
      const target = malformed < 0 ? this.#route(front, i, port, counters, now) : TARGET_DROP - malformed;
      i = malformed < 0 ? spread(burst, i, target) : i + 1;
      burst.dest[from] = Math.max(target, DEST_DROP);
      if (target <= TARGET_DROP) counters[TARGET_DROP - target] += i - from;
    }
  }

  /** Learns where packet `i` comes from and says where it goes, as `#target` does. */
  #route(front: Int32Array, i: number, port: number, counters: Float64Array, now: number): number {
    if (this.#config.learning === 'dynamic')
      this.#learn(sourceFirst(front, i), sourceLast(front, i), port, counters, now);
    return this.#target(front[FRONT_WORDS * i], front[FRONT_WORDS * i + 1] & 0xffff, port);
  }

  /** Where frames to an address go: a port, DEST_FLOOD, or TARGET_DROP less the slot of the counter for their loss. */
  #target(first: number, last: number, port: number): number {
    if ((first & GROUP_BIT) !== 0) {
      if (first === LINK_LOCAL_FIRST && (last & LINK_LOCAL_LAST_MASK) === 0)
        return TARGET_DROP - PORT_SLOTS.tx_drop_link_local;
      return this.#unknown;
    }
    const found = this.#config.vm2vm === 0 ? NOT_FOUND : this.table.lookup(first, last);
    if (found === NOT_FOUND) return this.#unknown;
    return found === port ? TARGET_DROP - PORT_SLOTS.tx_drop_self : found;
  }

  #learn(first: number, last: number, port: number, counters: Float64Array, now: number): void {
    if (first === 0 && last === 0) return;
    const outcome = this.table.learn(first, last, port, now);
    if (outcome === LEARN_KNOWN) return;
    if (outcome === LEARN_REFUSED) {
      counters[PORT_SLOTS.mac_refused]++;
      return;
    }
    counters[outcome === LEARN_NEW ? PORT_SLOTS.mac_learned : PORT_SLOTS.mac_moved]++;
    if (Atomics.compareExchange(this.#registered, port, 0, 1) === 0) this.#onRegistered(port, first, last);
  }

  /**
   * The sample's rule: the source of the first frame of a device's first burst is its address, for ever. If another device has
   * it, the whole burst is lost and the device stays where it was. @returns true if the burst may pass
   */
  #admit(burst: Burst, port: number, counters: Float64Array, now: number): boolean {
    if (this.#registered[port] === 1) return true;
    const first = sourceFirst(burst.front, 0);
    const last = sourceLast(burst.front, 0);
    if (burst.len[0] >= ETHERNET_HEADER && this.#claim(first, last, port, counters)) return true;
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
    if (first === 0 && last === 0) return false;
    const holder = this.table.lookup(first, last);
    if (holder !== NOT_FOUND) return holder === port;
    const outcome = this.table.claim(first, last, port, 0);
    if (outcome !== LEARN_NEW) return outcome === LEARN_KNOWN;
    counters[PORT_SLOTS.mac_learned]++;
    if (Atomics.compareExchange(this.#registered, port, 0, 1) === 0) this.#onRegistered(port, first, last);
    return true;
  }
}

/** The source address of packet `i`: its first four bytes, and its last two. */
function sourceFirst(front: Int32Array, i: number): number {
  return (front[FRONT_WORDS * i + 1] >>> 16) | (front[FRONT_WORDS * i + 2] << 16);
}

function sourceLast(front: Int32Array, i: number): number {
  return front[FRONT_WORDS * i + 2] >>> 16;
}

/**
 * Sends packet `from`, whose length is fair, and those behind it that have the same two addresses and a fair length to the same target. No call in the
 * loop, as in `virtqueue/plain.ts`. @returns the first packet of another kind, or the burst's count
 */
function spread({ count, len, dest, front }: Burst, from: number, target: number): number {
  const word0 = front[FRONT_WORDS * from];
  const word1 = front[FRONT_WORDS * from + 1];
  const word2 = front[FRONT_WORDS * from + 2];
  const to = Math.max(target, DEST_DROP);
  let i = from + 1;
  for (; i < count; i++) {
    const at = FRONT_WORDS * i;
    if (front[at] !== word0 || front[at + 1] !== word1 || front[at + 2] !== word2) break;
    if (len[i] < ETHERNET_HEADER || len[i] > MAX_FRAME_BYTES + VLAN_TAG) break;
    dest[i] = to;
  }
  return i;
}

/** The counter for a frame whose length or source address is no good, or −1. */
function malformedSlot(len: number, needs: number, source: number): number {
  if (len === BAD_OFFLOAD) return PORT_SLOTS.tx_drop_bad_offload;
  if (len < ETHERNET_HEADER) return PORT_SLOTS.tx_drop_runt;
  const cut = (needs & ~NEED_CSUM) !== 0;
  if (len > (cut ? MAX_GSO_BYTES : MAX_FRAME_BYTES + VLAN_TAG)) return PORT_SLOTS.tx_drop_too_long;
  return (source & GROUP_BIT) === 0 ? -1 : PORT_SLOTS.tx_drop_bad_source;
}
