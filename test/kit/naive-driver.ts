/**
 * A driver that lays its buffers out in every way the specification allows, and a model of what a device may do with them.
 * Slow and literal on purpose: it shares no code with what it tests but the byte layouts.
 */
import assert from 'node:assert/strict';
import {
  VRING_DESC,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
} from '../../src/uapi/virtio-ring.ts';
import { Ram, type RamPlace } from './ram.ts';
import type { Piece, RawRing, RingOptions } from './raw-ring.ts';
import { makeRing } from './rings.ts';

/** A random number generator that a seed repeats (mulberry32). */
export class Dice {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** An integer from `min` to `max`. */
  int(min: number, max: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return min + (((t ^ (t >>> 14)) >>> 0) % (max - min + 1));
  }

  chance(percent: number): boolean {
    return this.int(1, 100) <= percent;
  }
}

/** A chain on offer: its pieces in order, as places in memory. */
export interface Chain {
  readonly head: number;
  readonly descriptors: readonly number[];
  readonly slot: number;
  readonly pieces: readonly { readonly off: number; readonly len: number }[];
  readonly bytes: number;
}

const CANARY = 0xee;
const MAX_PIECES = 8;
const TABLE_BYTES = VRING_DESC.size * (MAX_PIECES + 1);
const MAX_GAP = 9;

export class NaiveDriver {
  readonly ring: RawRing;
  readonly ram: Ram;
  readonly dice: Dice;
  /** all memory: that of the buffers, and what the ring's parts lie in */
  readonly rams: readonly Ram[];
  /** chains on offer, in order */
  readonly offered: Chain[] = [];
  /** the memory of all slots, and where it begins */
  readonly arena: Buffer;
  readonly #arenaAt: RamPlace;
  readonly #slotBytes: number;
  readonly #write: boolean;
  readonly #freeDescriptors: number[];
  readonly #freeSlots: number[];
  readonly #tables: RamPlace;
  #usedSeen: number;

  /** @param write the device writes the buffers. `slotBytes` is the room for one chain's bytes */
  constructor(dice: Dice, num: number, write: boolean, slotBytes: number, slots: number, options: RingOptions) {
    this.dice = dice;
    const ringRam = dice.chance(10) ? new Ram() : undefined;
    const areas = dice.chance(10) ? new Ram() : undefined;
    // memory is cut here and there: pieces lie across two chunks
    const cuts = Array.from({ length: 12 }, (_, i) => 300_000 * (i + 1) + dice.int(0, 9999));
    this.ram = new Ram({ base: 2 ** 32 - 4096 * dice.int(1, 300), size: 32 * 2 ** 20, cuts });
    this.ring = makeRing(this.ram, num, { ...options, ringRam, areas });
    this.rams = [...new Set([this.ram, this.ring.ringRam, this.ring.areas])];
    this.#write = write;
    this.#slotBytes = slotBytes + MAX_GAP * (MAX_PIECES + 2);
    this.#tables = this.ram.alloc(TABLE_BYTES * slots);
    this.#arenaAt = this.ram.alloc(this.#slotBytes * slots);
    this.arena = this.ram.bytes.subarray(this.#arenaAt.off, this.#arenaAt.off + this.#slotBytes * slots);
    this.arena.fill(CANARY);
    this.#freeDescriptors = Array.from({ length: num }, (_, i) => i);
    this.#freeSlots = Array.from({ length: slots }, (_, i) => i);
    this.#usedSeen = this.ring.usedIdx;
  }

  /** Sizes of pieces that make up `bytes`: often one, at most eight, some of one byte. */
  #cut(bytes: number): number[] {
    const sizes: number[] = [];
    let left = bytes;
    const pieces = this.dice.chance(40) ? 1 : this.dice.int(1, MAX_PIECES);
    while (sizes.length < pieces - 1 && left > 1) {
      const kind = this.dice.int(0, 3);
      const most = kind === 0 ? 1 : kind === 1 ? Math.min(12, left - 1) : left - 1;
      sizes.push(this.dice.int(1, most));
      left -= sizes[sizes.length - 1];
    }
    return [...sizes, left];
  }

  /** Offers a chain of `bytes` bytes in any layout, unpublished. @returns undefined if the driver has no room for one */
  offer(bytes: number): Chain | undefined {
    const indirect = this.ring.config.indirect && (this.#freeDescriptors.length < MAX_PIECES || this.dice.chance(30));
    let sizes = this.#cut(bytes);
    if (!indirect && sizes.length > this.#freeDescriptors.length) sizes = [bytes];
    if (this.#freeSlots.length === 0 || this.#freeDescriptors.length === 0) return undefined;
    const slot = this.#freeSlots.shift() as number;
    const pieces = this.#placeIn(slot, sizes);
    const asPieces = pieces.map(({ off, len }) => ({
      addr: this.ram.base + off - this.ram.offsetOf(this.ram.base),
      len,
    }));
    // a packed ring's indirect descriptor is a chain of its own (§2.8.7)
    const mostDirect = this.#packed ? 0 : Math.min(asPieces.length, this.#freeDescriptors.length) - 1;
    const direct = indirect ? this.dice.int(0, mostDirect) : asPieces.length;
    const descriptors = this.#takeDescriptors(direct + (indirect ? 1 : 0));
    const flags = this.#write ? VRING_DESC_F_WRITE : 0;
    this.ring.chain(descriptors, asPieces.slice(0, direct), flags);
    if (indirect) this.#describeIndirect(slot, descriptors, asPieces, direct, flags);
    const chain = { head: descriptors[0], descriptors, slot, pieces, bytes };
    this.offered.push(chain);
    this.ring.offer(chain.head);
    return chain;
  }

  /** Puts pieces of those sizes into a slot, in order or not, with gaps between them. */
  #placeIn(slot: number, sizes: readonly number[]): { off: number; len: number }[] {
    const backwards = this.dice.chance(30);
    let off = this.#arenaAt.off + this.#slotBytes * slot;
    const placed = (backwards ? sizes.toReversed() : sizes).map((len) => {
      off += this.dice.int(0, MAX_GAP);
      const piece = { off, len };
      off += len;
      return piece;
    });
    return backwards ? placed.reverse() : placed;
  }

  get #packed(): boolean {
    return this.ring.config.format === 'packed';
  }

  /** With IN_ORDER descriptors are taken one after the other (§2.7.5, §2.8.9). */
  #takeDescriptors(n: number): number[] {
    const free = this.#freeDescriptors;
    if (this.ring.inOrder) return free.splice(0, n);
    return Array.from({ length: n }, () => free.splice(this.dice.int(0, free.length - 1), 1)[0]);
  }

  /** The pieces from number `direct` on go into an indirect table, which ends the chain of those before it. */
  #describeIndirect(
    slot: number,
    descriptors: readonly number[],
    pieces: readonly Piece[],
    direct: number,
    flags: number,
  ): void {
    const rest = pieces.slice(direct);
    const at = TABLE_BYTES * slot;
    const straight = this.#packed || this.dice.chance(50);
    const ids = straight ? rest.map((_, i) => i) : [0, ...rest.slice(1).map((_, i) => rest.length - 1 - i)];
    this.ring.chain(ids, rest, flags, this.#tables.off + at);
    const table = { addr: this.#tables.addr + at, len: VRING_DESC.size * rest.length };
    this.ring.describe(descriptors[direct], table, VRING_DESC_F_INDIRECT);
    if (direct === 0) return;
    const before = descriptors[direct - 1];
    const { addr, len } = pieces[direct - 1];
    this.ring.describe(before, { addr, len }, flags | VRING_DESC_F_NEXT, descriptors[direct]);
  }

  /** Writes `data` over a chain's pieces, in memory or in a copy of the arena. */
  write(chain: Chain, data: Buffer, arena: Buffer = this.arena): void {
    let at = 0;
    for (const { off, len } of chain.pieces) at += data.copy(arena, off - this.#arenaAt.off, at, at + len);
  }

  /** Makes the first chain on offer, too short for a header, long enough for one: as its driver should have. */
  growFirst(): void {
    const [{ slot, head, descriptors, pieces }] = this.offered;
    const longer = { off: this.#arenaAt.off + this.#slotBytes * slot, len: this.#slotBytes };
    const addr = this.ram.base + longer.off - this.ram.offsetOf(this.ram.base);
    this.ring.redescribe(head, { addr, len: longer.len }, VRING_DESC_F_WRITE);
    // its other descriptors stay in the chain: a packed ring has them in the slots that follow
    const more = descriptors.length === 1 ? [] : pieces.slice(1);
    const bytes = more.reduce((sum, { len }) => sum + len, longer.len);
    this.offered[0] = { head, descriptors, slot, pieces: [longer, ...more], bytes };
  }

  /** Checks that the device has used exactly the first `lens.length` chains on offer, in order, and takes them back. */
  takeBack(lens: readonly number[]): Chain[] {
    const { ring } = this;
    assert.equal((ring.usedIdx - this.#usedSeen) & 0xffff, lens.length, 'chains used');
    const chains = this.offered.splice(0, lens.length);
    chains.forEach((chain, i) => {
      assert.deepEqual(ring.used(this.#usedSeen + i), { id: chain.head, len: lens[i] }, `used entry ${i}`);
      this.#freeDescriptors.push(...chain.descriptors);
      this.#freeSlots.push(chain.slot);
    });
    this.#usedSeen = ring.usedIdx;
    ring.assertIntact();
    return chains;
  }

  /** Makes a slot look untouched again, in memory and in a copy of the arena. */
  refill({ slot }: Chain, copy: Buffer): void {
    for (const arena of [this.arena, copy]) arena.fill(CANARY, this.#slotBytes * slot, this.#slotBytes * (slot + 1));
  }
}
