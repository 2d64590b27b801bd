/**
 * A driver of a virtqueue of requests, of either ring format: each request is a chain of what it says and of room for the answer.
 */
import type { WindowViews } from '../../src/mem/window.ts';
import type { DriverRing, Segment } from '../../src/virtqueue/driver-ring.ts';
import { PackedDriver, packedRingLayout } from '../../src/virtqueue/packed-driver.ts';
import { SplitDriver, splitLayout } from '../../src/virtqueue/split-driver.ts';

/** Where the driver's memory is. */
export interface RequestMemory {
  readonly views: WindowViews;
  /** memory that nobody else has */
  alloc(len: number, align?: number): { readonly addr: number; readonly off: number };
}

export interface RequestRing {
  readonly packed?: boolean;
  readonly eventIdx?: boolean;
  readonly inOrder?: boolean;
}

/** A request that has come back: the bytes written, as the device says, and all of its room. */
export interface Answer {
  readonly id: number;
  readonly written: number;
  readonly bytes: Buffer;
}

const TABLE_ENTRY = 16;

export class RequestDriver {
  readonly ring: DriverRing;
  /** guest address of the ring's first byte, and its parts as distances from there */
  readonly addr: number;
  readonly layout: { readonly descOff: number; readonly availOff: number; readonly usedOff: number };
  readonly #memory: RequestMemory;
  readonly #rooms = new Map<number, { readonly off: number; readonly len: number }[]>();

  constructor(memory: RequestMemory, size: number, { packed = false, eventIdx = false, inOrder = false }: RequestRing) {
    this.#memory = memory;
    this.layout = packed ? packedRingLayout(size) : splitLayout(size);
    const { addr, off } = memory.alloc((packed ? packedRingLayout(size) : splitLayout(size)).bytes, 4096);
    const { descOff, availOff, usedOff } = this.layout;
    const place = { descOff: off + descOff, availOff: off + availOff, usedOff: off + usedOff };
    const Driver = packed ? PackedDriver : SplitDriver;
    this.ring = new Driver(memory.views, place, size, eventIdx, inOrder);
    this.addr = addr;
  }

  /**
   * Adds a request, unpublished: the pieces that it says, and room in pieces of so many bytes. Every piece has a descriptor.
   * @returns its id, or −1 if the ring is full
   */
  add(says: readonly Uint8Array[], rooms: readonly number[], indirect = false): number {
    const { views } = this.#memory;
    const out = says.map((bytes) => {
      const { addr, off } = this.#memory.alloc(bytes.length, 1);
      views.u8.set(bytes, off);
      return { addr, len: bytes.length };
    });
    const room = rooms.map((len) => ({ ...this.#memory.alloc(len, 1), len }));
    for (const { off, len } of room) views.u8.fill(0xee, off, off + len);
    const id = this.addChain([...out, ...room.map(({ addr, len }) => ({ addr, len, write: true }))], indirect);
    if (id >= 0) this.#rooms.set(id, room);
    return id;
  }

  /** Adds any chain, also one that makes no sense. */
  addChain(chain: readonly Segment[], indirect = false): number {
    if (!indirect) return this.ring.add(chain);
    return this.ring.addIndirect(chain, this.#memory.alloc(TABLE_ENTRY * chain.length, 16));
  }

  /** The next request that has come back, in the order of the used ring. */
  take(): Answer | undefined {
    const id = this.ring.reap();
    if (id < 0) return undefined;
    const { u8 } = this.#memory.views;
    const rooms = this.#rooms.get(id) ?? [];
    const bytes = Buffer.concat(rooms.map(({ off, len }) => u8.slice(off, off + len)));
    return { id, written: this.ring.usedLen, bytes };
  }
}
