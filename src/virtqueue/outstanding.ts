/**
 * The buffers that a driver has added to its ring and not taken back yet, by id, in memory of the driver's own: no device can spoil it.
 */
import type { Segment } from './driver-ring.ts';

export class Outstanding {
  readonly #size: number;
  /** Descriptors of the buffer with this id; 0: none is outstanding. */
  readonly #descriptors: Uint16Array;
  /** Bytes that the device may write. */
  readonly #room: Float64Array;
  /** The how-manieth buffer it is since the beginning. */
  readonly #serial: Float64Array;
  /** The ids by serial modulo size: in which order an in-order device uses them. */
  readonly #order: Uint16Array;
  #added = 0;
  #published = 0;
  #returned = 0;

  /** For ids below `size`, which is the ring's. */
  constructor(size: number) {
    this.#size = size;
    this.#descriptors = new Uint16Array(size);
    this.#room = new Float64Array(size);
    this.#serial = new Float64Array(size);
    this.#order = new Uint16Array(size);
  }

  reset(): void {
    this.#descriptors.fill(0);
    this.#added = this.#published = this.#returned = 0;
  }

  /** The buffer `id`, which is not outstanding, takes `descriptors` of the ring and has the first `n` segments. */
  add(id: number, descriptors: number, chain: readonly Segment[], n: number): void {
    let room = 0;
    for (let i = 0; i < n; i++) if (chain[i].write === true) room += chain[i].len;
    this.#descriptors[id] = descriptors;
    this.#room[id] = room;
    this.#serial[id] = this.#added;
    this.#order[this.#added % this.#size] = id;
    this.#added++;
  }

  /** The device can see all that was added. */
  publish(): void {
    this.#published = this.#added;
  }

  /** Buffers that the device can see and that are not taken back. */
  get onOffer(): number {
    return this.#published - this.#returned;
  }

  /** True if a device may use a buffer with this id, which may be anything. */
  has(id: number): boolean {
    return id < this.#size && this.#descriptors[id] !== 0 && this.#serial[id] < this.#published;
  }

  descriptors(id: number): number {
    return this.#descriptors[id];
  }

  room(id: number): number {
    return this.#room[id];
  }

  /** Takes a buffer back. @returns its descriptors */
  remove(id: number): number {
    const n = this.#descriptors[id];
    this.#descriptors[id] = 0;
    this.#returned++;
    return n;
  }

  // What follows counts on buffers being taken back in order.

  /** The id of the `i`th buffer on offer, the oldest being 0. */
  idAt(i: number): number {
    return this.#order[(this.#returned + i) % this.#size];
  }

  /** Buffers up to and with this one, which is on offer. */
  countTo(id: number): number {
    return this.#serial[id] - this.#returned + 1;
  }
}
