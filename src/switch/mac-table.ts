/**
 * Which port a MAC address lives behind: a hash table over flat arrays, bounded in size, in probes and per port.
 *
 * Linear probing at most half full; the hash is seeded, so that a guest cannot choose addresses that collide.
 * An address is two words as they lie in a frame: its first four bytes, and its last two.
 */
import { randomBytes } from 'node:crypto';

/** No port has the address. */
export const NOT_FOUND = -1;

export const LEARN_KNOWN = 0;
export const LEARN_NEW = 1;
export const LEARN_MOVED = 2;
/** The table or the port is full. */
export const LEARN_REFUSED = 3;

/** A probe that goes on longer than this gives up: an unlucky address is not learned, and its frames are flooded. */
const MAX_PROBES = 64;
/** Slots looked at by one call of `age`. */
const AGE_STEP = 4096;
/** Marks a used slot in the word that holds the last two bytes. */
const USED = 0x10000;

export class MacTable {
  readonly #mask: number;
  readonly #first: Int32Array;
  readonly #last: Int32Array;
  readonly #port: Int32Array;
  readonly #seen: Int32Array;
  readonly #perPort: Int32Array;
  readonly #max: number;
  readonly #portMax: number;
  readonly #seed: number;
  #size = 0;
  #ageAt = 0;

  /** Holds `max` addresses, `portMax` of any one of `ports` ports. */
  constructor(max: number, portMax: number, ports: number) {
    const slots = 2 ** Math.ceil(Math.log2(2 * max));
    this.#mask = slots - 1;
    this.#first = new Int32Array(slots);
    this.#last = new Int32Array(slots);
    this.#port = new Int32Array(slots);
    this.#seen = new Int32Array(slots);
    this.#perPort = new Int32Array(ports);
    this.#max = max;
    this.#portMax = portMax;
    this.#seed = randomBytes(4).readInt32LE();
  }

  /** Addresses in the table. */
  get size(): number {
    return this.#size;
  }

  #home(first: number, last: number): number {
    let h = Math.imul(first ^ this.#seed, 0x9e3779b1);
    h = Math.imul(h ^ (h >>> 15) ^ last, 0x85ebca77);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae3d);
    return (h ^ (h >>> 16)) & this.#mask;
  }

  /** The address's slot, or −1. */
  #find(first: number, last: number): number {
    const key = last | USED;
    let slot = this.#home(first, last);
    for (let probes = 0; probes < MAX_PROBES; probes++) {
      const there = this.#last[slot];
      if (there === key && this.#first[slot] === first) return slot;
      if (there === 0) return -1;
      slot = (slot + 1) & this.#mask;
    }
    return -1;
  }

  /** The port that the address was last seen on, or NOT_FOUND. */
  lookup(first: number, last: number): number {
    const slot = this.#find(first, last);
    return slot < 0 ? NOT_FOUND : this.#port[slot];
  }

  /** Notes that the address was seen on `port` at `now` seconds. @returns one of LEARN_… */
  learn(first: number, last: number, port: number, now: number): number {
    const slot = this.#find(first, last);
    if (slot < 0) return this.#insert(first, last, port, now);
    const before = this.#port[slot];
    if (before !== port && this.#perPort[port] >= this.#portMax) return LEARN_REFUSED;
    this.#seen[slot] = now;
    if (before === port) return LEARN_KNOWN;
    this.#perPort[before]--;
    this.#perPort[port]++;
    this.#port[slot] = port;
    return LEARN_MOVED;
  }

  #insert(first: number, last: number, port: number, now: number): number {
    if (this.#size >= this.#max || this.#perPort[port] >= this.#portMax) return LEARN_REFUSED;
    let slot = this.#home(first, last);
    for (let probes = 0; this.#last[slot] !== 0; probes++) {
      if (probes === MAX_PROBES - 1) return LEARN_REFUSED;
      slot = (slot + 1) & this.#mask;
    }
    this.#first[slot] = first;
    this.#last[slot] = last | USED;
    this.#port[slot] = port;
    this.#seen[slot] = now;
    this.#perPort[port]++;
    this.#size++;
    return LEARN_NEW;
  }

  /** Empties a slot and moves up those behind it that would no longer be found. */
  #delete(slot: number): void {
    this.#perPort[this.#port[slot]]--;
    this.#size--;
    let hole = slot;
    for (let next = (slot + 1) & this.#mask; this.#last[next] !== 0; next = (next + 1) & this.#mask) {
      const home = this.#home(this.#first[next], this.#last[next] & 0xffff);
      if (((next - home) & this.#mask) < ((next - hole) & this.#mask)) continue;
      this.#first[hole] = this.#first[next];
      this.#last[hole] = this.#last[next];
      this.#port[hole] = this.#port[next];
      this.#seen[hole] = this.#seen[next];
      hole = next;
    }
    this.#last[hole] = 0;
  }

  /** Forgets addresses not seen for `maxAge` seconds, a few thousand slots a call: call it every second. */
  age(now: number, maxAge: number): void {
    for (let step = 0; step < AGE_STEP; step++) {
      const slot = this.#ageAt & this.#mask;
      if (this.#last[slot] !== 0 && now - this.#seen[slot] > maxAge) this.#delete(slot);
      else this.#ageAt = slot + 1;
    }
  }

  /** Forgets every address of `port`. */
  flushPort(port: number): void {
    for (let slot = 0; slot <= this.#mask && this.#perPort[port] > 0; ) {
      if (this.#last[slot] !== 0 && this.#port[slot] === port) this.#delete(slot);
      else slot++;
    }
  }
}
