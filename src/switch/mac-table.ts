/**
 * Which port a MAC address lives behind: a hash table over flat arrays, bounded in size, in probes and per port.
 *
 * Linear probing at most half full; the hash is seeded, so that a guest cannot choose addresses that collide.
 * An address is two words as they lie in a frame: its first four bytes, and its last two; the second with `vidBits` of its VLAN where
 * there are several. One address may live behind different ports in different VLANs (IEEE 802.1Q §8.8.1, independent learning).
 *
 * Several lcores may share a table: each makes a MacTable over the same memory. They read without a lock, and look at a version
 * before and after: it is odd while entries are moved about, which deleting one does. A new entry appears at once, by the word that is
 * written last, and one that changes its port does so in one word: they need no version, so that a guest which makes up addresses
 * does not keep the others from finding theirs.
 */
import { randomBytes } from 'node:crypto';
import { acquire, release } from '../sys/lock.ts';

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
/** Reads begun anew while others change the table; then the address counts as not found, and its frames are flooded. */
const MAX_READS = 8;
/** Marks a used slot in the word that holds the last two bytes. */
const USED = 0x10000;
const VID_SHIFT = 17;

/** What the VLAN `vid`, 0 to 4095, adds to the second word of an address. */
export const vidBits = (vid: number) => vid << VID_SHIFT;
export const vidOf = (last: number) => last >>> VID_SHIFT;

/** Words at the beginning of the memory. */
const LOCK = 0;
const VERSION = 1;
const SIZE = 2;
const AGE_AT = 3;
const SEED = 4;
const HEAD_WORDS = 5;
const SLOT_WORDS = 4;

const slotsFor = (max: number) => 2 ** Math.ceil(Math.log2(2 * max));

/** Bytes of a table of `max` addresses over `ports` ports. */
export const macTableBytes = (max: number, ports: number) => 4 * (HEAD_WORDS + ports + SLOT_WORDS * slotsFor(max));

export class MacTable {
  readonly #shared: boolean;
  readonly #head: Int32Array;
  readonly #mask: number;
  readonly #first: Int32Array;
  readonly #last: Int32Array;
  readonly #port: Int32Array;
  readonly #seen: Int32Array;
  readonly #perPort: Int32Array;
  readonly #max: number;
  /** addresses that each port may have */
  readonly #portMax: Int32Array;
  readonly #seed: number;

  /**
   * Holds `max` addresses, `portMax` of any one of `ports` ports. @param memory of `macTableBytes`, zeros or shared with another table
   * of the same sizes; memory of its own by default
   */
  constructor(max: number, portMax: number, ports: number, memory?: SharedArrayBuffer) {
    const slots = slotsFor(max);
    const buffer = memory ?? new ArrayBuffer(macTableBytes(max, ports));
    let at = 0;
    const words = (n: number) => {
      const array = new Int32Array(buffer, at, n);
      at += 4 * n;
      return array;
    };
    this.#shared = memory !== undefined;
    this.#head = words(HEAD_WORDS);
    this.#perPort = words(ports);
    this.#mask = slots - 1;
    this.#first = words(slots);
    this.#last = words(slots);
    this.#port = words(slots);
    this.#seen = words(slots);
    this.#max = max;
    this.#portMax = new Int32Array(ports).fill(portMax);
    Atomics.compareExchange(this.#head, SEED, 0, randomBytes(4).readInt32LE() | 1);
    this.#seed = Atomics.load(this.#head, SEED);
  }

  /** Lets a port have `max` addresses: alike in all tables over one memory, and before any is learned. */
  setPortMax(port: number, max: number): void {
    this.#portMax[port] = max;
  }

  /** Nobody else changes anything until `#unlock`. */
  #lock(): void {
    if (this.#shared) acquire(this.#head, LOCK);
  }

  #unlock(): void {
    if (this.#shared) release(this.#head, LOCK);
  }

  /** Addresses in the table. */
  get size(): number {
    return this.#head[SIZE];
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
    if (!this.#shared) return this.#portAt(this.#find(first, last));
    for (let reads = 0; reads < MAX_READS; reads++) {
      const version = Atomics.load(this.#head, VERSION);
      const port = this.#portAt(this.#find(first, last));
      if ((version & 1) === 0 && Atomics.load(this.#head, VERSION) === version) return port;
    }
    return NOT_FOUND;
  }

  #portAt(slot: number): number {
    return slot < 0 ? NOT_FOUND : this.#port[slot];
  }

  /** Notes that the address was seen on `port` at `now` seconds. @returns one of LEARN_… */
  learn(first: number, last: number, port: number, now: number): number {
    const known = this.#find(first, last);
    if (known >= 0 && this.#port[known] === port) {
      // at worst, while others change the table, another address counts as seen
      this.#seen[known] = now;
      return LEARN_KNOWN;
    }
    this.#lock();
    const outcome = this.#note(first, last, port, now);
    this.#unlock();
    return outcome;
  }

  /**
   * Gives `port` the address for good, as its only one. @returns LEARN_NEW, LEARN_KNOWN if the port has one already, LEARN_REFUSED if
   * another port has this one or the table is full
   */
  claim(first: number, last: number, port: number, now: number): number {
    this.#lock();
    let outcome = LEARN_KNOWN;
    if (this.#perPort[port] === 0)
      outcome = this.#find(first, last) < 0 ? this.#insert(first, last, port, now) : LEARN_REFUSED;
    this.#unlock();
    return outcome;
  }

  /** The addresses of `port`: each its two words, VLAN included. */
  addressesOf(port: number): number[] {
    const words: number[] = [];
    this.#lock();
    for (let slot = 0; slot <= this.#mask && words.length < 2 * this.#perPort[port]; slot++)
      if (this.#last[slot] !== 0 && this.#port[slot] === port) words.push(this.#first[slot], this.#last[slot] & ~USED);
    this.#unlock();
    return words;
  }

  #note(first: number, last: number, port: number, now: number): number {
    const slot = this.#find(first, last);
    if (slot < 0) return this.#insert(first, last, port, now);
    const before = this.#port[slot];
    if (before !== port && this.#perPort[port] >= this.#portMax[port]) return LEARN_REFUSED;
    this.#seen[slot] = now;
    if (before === port) return LEARN_KNOWN;
    this.#perPort[before]--;
    this.#perPort[port]++;
    this.#port[slot] = port;
    return LEARN_MOVED;
  }

  #insert(first: number, last: number, port: number, now: number): number {
    if (this.#head[SIZE] >= this.#max || this.#perPort[port] >= this.#portMax[port]) return LEARN_REFUSED;
    let slot = this.#home(first, last);
    for (let probes = 0; this.#last[slot] !== 0; probes++) {
      if (probes === MAX_PROBES - 1) return LEARN_REFUSED;
      slot = (slot + 1) & this.#mask;
    }
    this.#first[slot] = first;
    this.#port[slot] = port;
    this.#seen[slot] = now;
    Atomics.store(this.#last, slot, last | USED);
    this.#perPort[port]++;
    this.#head[SIZE]++;
    return LEARN_NEW;
  }

  /** Empties a slot and moves up those behind it that would no longer be found. */
  #delete(slot: number): void {
    this.#perPort[this.#port[slot]]--;
    this.#head[SIZE]--;
    if (this.#shared) Atomics.add(this.#head, VERSION, 1);
    let hole = slot;
    for (let next = (slot + 1) & this.#mask; this.#last[next] !== 0; next = (next + 1) & this.#mask) {
      const home = this.#home(this.#first[next], this.#last[next] & ~USED);
      if (((next - home) & this.#mask) < ((next - hole) & this.#mask)) continue;
      this.#first[hole] = this.#first[next];
      this.#last[hole] = this.#last[next];
      this.#port[hole] = this.#port[next];
      this.#seen[hole] = this.#seen[next];
      hole = next;
    }
    this.#last[hole] = 0;
    if (this.#shared) Atomics.add(this.#head, VERSION, 1);
  }

  /** Forgets addresses not seen for `maxAge` seconds, a few thousand slots a call: call it every second. */
  age(now: number, maxAge: number): void {
    this.#lock();
    for (let step = 0; step < AGE_STEP; step++) {
      const slot = this.#head[AGE_AT] & this.#mask;
      if (this.#last[slot] !== 0 && now - this.#seen[slot] > maxAge) this.#delete(slot);
      else this.#head[AGE_AT] = slot + 1;
    }
    this.#unlock();
  }

  /** Forgets every address of `port`. */
  flushPort(port: number): void {
    this.#lock();
    for (let slot = 0; slot <= this.#mask && this.#perPort[port] > 0; ) {
      if (this.#last[slot] !== 0 && this.#port[slot] === port) this.#delete(slot);
      else slot++;
    }
    this.#unlock();
  }
}
