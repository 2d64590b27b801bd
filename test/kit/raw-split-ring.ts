/**
 * RawRing for a split virtqueue: `describe` writes into its descriptor table.
 */
import {
  VRING_DESC,
  VRING_DESC_F_NEXT,
  vringAvailBytes,
  vringDescBytes,
  vringUsedBytes,
} from '../../src/uapi/virtio-ring.ts';
import type { Ram } from './ram.ts';
import { type Piece, RawRing, type RingOptions } from './raw-ring.ts';

export class RawSplitRing extends RawRing {
  constructor(ram: Ram, num: number, options: RingOptions = {}) {
    const { start = 0, ringRam = ram, areas = ringRam } = options;
    // with room behind the table for one descriptor too many
    const desc = ringRam.alloc(vringDescBytes(num) + VRING_DESC.size);
    const parts = { desc, avail: areas.alloc(vringAvailBytes(num)), used: areas.alloc(vringUsedBytes(num)) };
    super(ram, num, parts, start, options);
    areas.views.dv.setUint16(parts.used.off + 2, start, true);
    this.publish();
  }

  describe(i: number, { addr, len }: Piece, flags: number, next = 0, table?: number): void {
    const { dv } = (table === undefined ? this.ringRam : this.ram).views;
    const at = (table ?? this.parts.desc.off) + VRING_DESC.size * i;
    dv.setBigUint64(at, BigInt.asUintN(64, BigInt(addr)), true);
    dv.setUint32(at + 8, len, true);
    dv.setUint16(at + 12, flags, true);
    dv.setUint16(at + 14, next, true);
  }

  redescribe(head: number, piece: Piece, flags: number): void {
    const { dv } = this.ringRam.views;
    const at = this.descOff(head);
    const more = dv.getUint16(at + 12, true) & VRING_DESC_F_NEXT;
    this.describe(head, piece, flags | more, dv.getUint16(at + 14, true));
  }

  get room(): number {
    return this.num - ((this.availIdx - this.usedIdx) & 0xffff);
  }

  offer(head: number): void {
    const at = this.parts.avail.off + 4 + 2 * (this.availIdx & (this.num - 1));
    this.areas.views.dv.setUint16(at, head, true);
    this.availIdx = (this.availIdx + 1) & 0xffff;
  }

  publish(): void {
    Atomics.store(this.areas.views.u16, (this.parts.avail.off + 2) >> 1, this.availIdx);
  }

  repeat(n: number): void {
    this.availIdx = (this.availIdx + n) & 0xffff;
    this.publish();
  }

  withdraw(): void {
    this.availIdx = this.usedIdx;
    this.publish();
  }

  set noInterrupt(on: boolean) {
    this.areas.views.u16[this.parts.avail.off >> 1] = on ? 1 : 0;
  }

  set usedEvent(index: number) {
    this.areas.views.u16[(this.parts.avail.off + 4 + 2 * this.num) >> 1] = index;
  }

  askForNext(): void {
    this.usedEvent = this.usedIdx;
  }

  get kicksWanted(): boolean {
    const { u16 } = this.areas.views;
    const { off } = this.parts.used;
    if (this.config.eventIdx) return u16[(off + 4 + 8 * this.num) >> 1] === this.availIdx;
    return u16[off >> 1] === 0;
  }

  get usedIdx(): number {
    return Atomics.load(this.areas.views.u16, (this.parts.used.off + 2) >> 1);
  }

  get base(): number {
    return this.usedIdx;
  }

  used(index: number): { id: number; len: number } {
    const { dv } = this.areas.views;
    const at = this.parts.used.off + 4 + 8 * (index & (this.num - 1));
    return { id: dv.getUint32(at, true), len: dv.getUint32(at + 4, true) };
  }

  /** The device has no business in descriptor table and avail ring, and the tests of it compare their guests' memory whole. */
  assertIntact(): void {}
}
