/**
 * RawRing for a packed virtqueue: `describe` writes into a table of the driver's own, and `offer` puts the chain into the ring's next
 * slots. Buffer ids have nothing to do with slots, nor with the numbers of descriptors; those that mean nothing are garbage.
 */
import assert from 'node:assert/strict';
import {
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC,
  VRING_PACKED_DESC_EVENT,
  vringPackedDescBytes,
} from '../../src/uapi/virtio-ring.ts';
import type { Ram } from './ram.ts';
import { type Piece, RawRing, type RingOptions } from './raw-ring.ts';

const { size: SIZE, off: DESC } = VRING_PACKED_DESC;
const AVAIL = 1 << 7;
const USED = 1 << 15;
const GARBAGE_ID = 0xdead;
/** `flags` of an event suppression structure (VIRTIO 1.2 §2.8.14). */
export const EVENTS = { enable: 0, disable: 1, desc: 2, reserved: 3 } as const;

interface Described {
  readonly addr: bigint;
  readonly len: number;
  readonly flags: number;
  readonly next: number;
}

interface Offered {
  readonly head: number;
  /** the slot of its first descriptor */
  readonly slot: number;
  readonly slots: number;
}

/** A slot and the wrap counter of the lap in which it is meant. */
export interface Position {
  readonly slot: number;
  readonly wrap: number;
}

/** A buffer id that says nothing about the descriptor's number; different for different ones. */
const idOf = (head: number) => (head * 40503 + 12345) & 0xffff;

export class RawPackedRing extends RawRing {
  /** descriptors by the driver's numbers */
  readonly #table: Described[] = [];
  /** where the next descriptor goes */
  #next: Position;
  /** where the next used element is looked for */
  #usedNext: Position;
  /** first descriptors whose flags wait for `publish`, as window offsets and flags */
  #held: { off: number; flags: number }[] = [];
  /** chains on offer, by buffer id, oldest first */
  readonly #offered = new Map<number, Offered[]>();
  #slotsOffered = 0;
  #usedCount: number;
  /** slots that the device has handed back, as far as it has been looked at */
  slotsUsed = 0;
  readonly #usedElements: { id: number; len: number }[] = [];
  /** what the ring must look like */
  readonly #image: Buffer;
  /** what each slot was when it was last offered, but for the flags AVAIL and USED */
  readonly #template: Int32Array;

  constructor(ram: Ram, num: number, options: RingOptions = {}) {
    const { start = 0x8000, ringRam = ram, areas = ringRam } = options;
    const event = () => areas.alloc(VRING_PACKED_DESC_EVENT.size, 4);
    const parts = { desc: ringRam.alloc(vringPackedDescBytes(num), 16), avail: event(), used: event() };
    const position = { slot: (start & 0x7fff) % num, wrap: start >> 15 };
    const half = position.slot | (position.wrap << 15);
    super(ram, num, parts, ((half << 16) | half) >>> 0, { ...options, format: 'packed', start: 0 });
    this.#next = this.#usedNext = position;
    this.#usedCount = 0;
    this.#image = Buffer.alloc(SIZE * num);
    this.#template = new Int32Array(4 * num);
    // the lap before has been used up
    for (let slot = 0; slot < num; slot++) {
      const lap = slot < position.slot ? position.wrap : position.wrap ^ 1;
      this.#put(this.descOff(slot) + DESC.flags, lap === 1 ? AVAIL | USED : 0, 2);
    }
  }

  #put(off: number, value: number, bytes: 2 | 4): void {
    const { dv } = this.ringRam.views;
    const at = off - this.parts.desc.off;
    if (bytes === 2) {
      dv.setUint16(off, value, true);
      this.#image.writeUInt16LE(value, at);
    } else {
      dv.setInt32(off, value | 0, true);
      this.#image.writeInt32LE(value | 0, at);
    }
  }

  #after({ slot, wrap }: Position, n: number): Position {
    return slot + n < this.num ? { slot: slot + n, wrap } : { slot: slot + n - this.num, wrap: wrap ^ 1 };
  }

  describe(i: number, { addr, len }: Piece, flags: number, next = 0, table?: number): void {
    if (table === undefined) {
      this.#table[i] = { addr: BigInt.asUintN(64, BigInt(addr)), len, flags, next };
      return;
    }
    const { dv } = this.ram.views;
    const at = table + SIZE * i;
    dv.setBigUint64(at, BigInt.asUintN(64, BigInt(addr)), true);
    dv.setUint32(at + DESC.len, len, true);
    dv.setUint16(at + DESC.id, GARBAGE_ID, true);
    dv.setUint16(at + DESC.flags, flags, true);
  }

  redescribe(head: number, { addr, len }: Piece, flags: number): void {
    const offered = this.#offered.get(idOf(head))?.[0];
    assert.ok(offered, 'the chain is on offer');
    const off = this.descOff(offered.slot);
    const kept = this.ringRam.views.dv.getUint16(off + DESC.flags, true) & (AVAIL | USED | VRING_DESC_F_NEXT);
    this.#putBuffer(off, BigInt.asUintN(64, BigInt(addr)), len);
    this.#put(off + DESC.flags, flags | kept, 2);
  }

  #putBuffer(off: number, addr: bigint, len: number): void {
    this.#put(off, Number(BigInt.asIntN(32, addr)), 4);
    this.#put(off + 4, Number(BigInt.asIntN(32, addr >> 32n)), 4);
    this.#put(off + DESC.len, len, 4);
  }

  get room(): number {
    this.#poll();
    return this.num - this.#slotsOffered;
  }

  /** A chain that is longer than the room, or never ends, fills it. */
  offer(head: number): void {
    const { room } = this;
    assert.ok(room > 0, 'the ring has room');
    const id = idOf(head);
    const { slot } = this.#next;
    let slots = 0;
    for (let i = head; slots < room; i = this.#table[i].next) {
      const { addr, len, flags } = this.#table[i];
      const last = (flags & VRING_DESC_F_NEXT) === 0;
      const off = this.descOff(this.#next.slot);
      this.#putBuffer(off, addr, len);
      this.#put(off + DESC.id, last ? id : GARBAGE_ID, 2);
      const template = this.#template.subarray(4 * this.#next.slot, 4 * this.#next.slot + 4);
      for (let word = 0; word < 4; word++) template[word] = this.ringRam.views.dv.getInt32(off + 4 * word, true);
      template[3] = (template[3] & 0xffff) | (flags << 16);
      const available = flags | (this.#next.wrap === 1 ? AVAIL : USED);
      if (slots === 0) this.#held.push({ off: off + DESC.flags, flags: available });
      else this.#put(off + DESC.flags, available, 2);
      this.#next = this.#after(this.#next, 1);
      slots++;
      if (last) break;
    }
    this.#slotsOffered += slots;
    const same = this.#offered.get(id);
    if (same === undefined) this.#offered.set(id, [{ head, slot, slots }]);
    else same.push({ head, slot, slots });
    this.availIdx = (this.availIdx + 1) & 0xffff;
  }

  /** Shows the first chain last, as a driver that publishes a batch at once. */
  publish(): void {
    for (const { off, flags } of this.#held.reverse()) {
      Atomics.store(this.ringRam.views.u16, off >> 1, flags);
      this.#image.writeUInt16LE(flags, off - this.parts.desc.off);
    }
    this.#held = [];
  }

  /** Of what is offered so nothing is known any more: `used` and the like do not go with it. */
  repeat(n: number): void {
    const { i32, u16 } = this.ringRam.views;
    let { slot, wrap } = this.#next;
    const first = (this.descOff(slot) + DESC.flags) >> 1;
    const firstFlags = (this.#template[4 * slot + 3] >>> 16) | (wrap === 1 ? AVAIL : USED);
    for (let i = 0; i < n; i++) {
      const at = this.descOff(slot) >> 2;
      for (let word = 0; word < 3; word++) i32[at + word] = this.#template[4 * slot + word];
      const idFlags = this.#template[4 * slot + 3] | ((wrap === 1 ? AVAIL : USED) << 16);
      if (i > 0) i32[at + 3] = idFlags;
      else u16[first - 1] = idFlags & 0xffff;
      if (++slot === this.num) {
        slot = 0;
        wrap ^= 1;
      }
    }
    Atomics.store(u16, first, firstFlags);
    this.#next = { slot, wrap };
  }

  withdraw(): void {
    this.#poll();
    const from = this.#usedNext;
    for (let ahead = 0; ahead < this.#slotsOffered; ahead++) {
      const { slot, wrap } = this.#after(from, ahead);
      this.#put(this.descOff(slot) + DESC.flags, wrap === 1 ? 0 : AVAIL | USED, 2);
    }
    this.#held = [];
    this.#offered.clear();
    this.#slotsOffered = 0;
    this.#next = from;
    this.availIdx = this.#usedCount;
  }

  /** Sees what the device has used. */
  #poll(): void {
    for (;;) {
      const { slot, wrap } = this.#usedNext;
      const off = this.descOff(slot);
      const flags = Atomics.load(this.ringRam.views.u16, (off + DESC.flags) >> 1);
      if ((flags & (AVAIL | USED)) !== (wrap === 1 ? AVAIL | USED : 0)) return;
      this.#use(off, flags);
    }
  }

  #use(off: number, flags: number): void {
    const { dv } = this.ringRam.views;
    const id = dv.getUint16(off + DESC.id, true);
    const len = dv.getUint32(off + DESC.len, true);
    const offered = this.#offered.get(id);
    const chain = offered?.shift();
    assert.ok(chain, `used element with buffer id ${id}, which is not on offer`);
    if (offered?.length === 0) this.#offered.delete(id);
    assert.equal(chain.slot, this.#usedNext.slot, 'a chain’s used element stands where the chain begins');
    const rest = flags & ~(AVAIL | USED);
    assert.equal(rest, len > 0 ? VRING_DESC_F_WRITE : 0, 'flags of a used element');
    this.#image.writeUInt32LE(len, off + DESC.len - this.parts.desc.off);
    this.#image.writeUInt16LE(id, off + DESC.id - this.parts.desc.off);
    this.#image.writeUInt16LE(flags, off + DESC.flags - this.parts.desc.off);
    this.#usedElements[this.#usedCount] = { id: chain.head, len };
    this.#usedCount = (this.#usedCount + 1) & 0xffff;
    this.#usedNext = this.#after(this.#usedNext, chain.slots);
    this.#slotsOffered -= chain.slots;
    this.slotsUsed += chain.slots;
  }

  get usedIdx(): number {
    this.#poll();
    return this.#usedCount;
  }

  used(index: number): { id: number; len: number } {
    this.#poll();
    return this.#usedElements[index & 0xffff];
  }

  /** Where the next used element is looked for. */
  get usedPosition(): Position {
    this.#poll();
    return this.#usedNext;
  }

  get base(): number {
    const { slot, wrap } = this.usedPosition;
    const half = slot | (wrap << 15);
    return ((half << 16) | half) >>> 0;
  }

  /** Writes the driver's event suppression structure. */
  setEvent(flags: number, { slot, wrap }: Position): void {
    const { u16 } = this.areas.views;
    const at = this.parts.avail.off >> 1;
    u16[at] = slot | (wrap << 15);
    Atomics.store(u16, at + 1, flags);
  }

  set noInterrupt(on: boolean) {
    this.setEvent(on ? EVENTS.disable : EVENTS.enable, { slot: 0, wrap: 0 });
  }

  askForNext(): void {
    this.setEvent(EVENTS.desc, this.usedPosition);
  }

  get kicksWanted(): boolean {
    const { u16 } = this.areas.views;
    const at = this.parts.used.off >> 1;
    if (u16[at + 1] !== EVENTS.desc) return u16[at + 1] === EVENTS.enable;
    return u16[at] === (this.#next.slot | (this.#next.wrap << 15));
  }

  assertIntact(): void {
    this.#poll();
    const { off } = this.parts.desc;
    const ring = this.ringRam.bytes.subarray(off, off + SIZE * this.num);
    assert.ok(this.#image.equals(ring), 'the device writes used elements into the ring and nothing else');
  }
}
