/** A guest's card whose buffers lie where the test says, and every byte around them is watched. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { DriverRing } from '../../src/virtqueue/driver-ring.ts';
import type { StepCard } from './step-card.ts';

/** Bytes of the packet header. */
export const HEADER = 12;

/** A piece of a buffer: bytes of the watched area `area` from `off` on. */
export interface Place {
  readonly area: number;
  readonly off: number;
  readonly len: number;
}

/** Watched memory: what the guest has there, as far as the test knows. */
interface Area {
  readonly addr: number;
  readonly off: number;
  readonly expected: Uint8Array;
}

/** A buffer that has come back. */
export interface Used {
  readonly places: readonly Place[];
  /** as the device says */
  readonly len: number;
}

export class PlacedCard {
  readonly card: StepCard;
  readonly #areas: Area[] = [];
  /** buffers that are out, by ring and id */
  readonly #out = [new Map<number, readonly Place[]>(), new Map<number, readonly Place[]>()] as const;

  /** @param card not started: its rings are emptied @param bytes of each watched area: one in each region of its memory */
  constructor(card: StepCard, bytes: number) {
    this.card = card;
    for (const index of [0, 1] as const) {
      this.#ring(index).reset();
      this.#ring(index).disableCalls();
    }
    for (let region = 0; region < card.ram.regions.length; region++) {
      const { addr, off } = card.ram.alloc(bytes, 4096, region);
      const expected = Uint8Array.from({ length: bytes }, (_, i) => (i * 31 + (i >> 8) * 7 + region * 101) & 0xff);
      card.ram.views.u8.set(expected, off);
      this.#areas.push({ addr, off, expected });
    }
  }

  #ring(index: 0 | 1): DriverRing {
    return this.card.pairs[0].rings[index].driver;
  }

  #offer(index: 0 | 1, places: readonly Place[]): void {
    const ring = this.#ring(index);
    const chain = places.map(({ area, off, len }) => ({ addr: this.#areas[area].addr + off, len, write: index === 0 }));
    const id = ring.add(chain);
    assert.ok(id >= 0, 'the ring has room');
    assert.ok(!this.#out[index].has(id), 'a buffer is out once');
    this.#out[index].set(id, places);
  }

  /** Offers a receive buffer; `kick` shows it. */
  offer(...places: readonly Place[]): void {
    this.#offer(0, places);
  }

  /** Writes a packet, header first, over the places, and offers it to be sent. */
  send(packet: Uint8Array, ...places: readonly Place[]): void {
    this.#write(packet, places);
    this.#offer(1, places);
  }

  /** The guest writes: that is expected there from now on. */
  #write(bytes: Uint8Array, places: readonly Place[]): void {
    let at = 0;
    for (const { area, off, len } of places) {
      const part = bytes.subarray(at, at + len);
      this.#areas[area].expected.set(part, off);
      this.card.ram.views.u8.set(part, this.#areas[area].off + off);
      at += len;
    }
  }

  /** Shows the device what has been offered, and kicks. */
  kick(index: 0 | 1): void {
    this.#ring(index).publish();
    this.card.pairs[0].kick(index);
  }

  /** Waits for the next buffer that comes back. */
  async used(index: 0 | 1, ms = 10_000): Promise<Used> {
    const ring = this.#ring(index);
    const giveUpAt = performance.now() + ms;
    for (;;) {
      const id = ring.reap();
      assert.equal(ring.broken, undefined);
      if (id >= 0) {
        const places = this.#out[index].get(id);
        assert.ok(places, `buffer ${id} came back, which was not out`);
        this.#out[index].delete(id);
        return { places, len: ring.usedLen };
      }
      assert.ok(performance.now() < giveUpAt, 'a buffer comes back');
      await sleep(1);
    }
  }

  /** Buffers that are out. */
  outstanding(index: 0 | 1): number {
    return this.#out[index].size;
  }

  /** A frame has come into a buffer: header and frame must be there, and are expected from now on. */
  assertFrame({ places, len }: Used, frame: Uint8Array): void {
    assert.equal(len, HEADER + frame.length);
    const packet = new Uint8Array(HEADER + frame.length);
    packet[HEADER - 2] = 1; // num_buffers
    packet.set(frame, HEADER);
    let at = 0;
    for (const { area, off, len: room } of places) {
      const part = packet.subarray(at, at + room);
      this.#areas[area].expected.set(part, off);
      at += part.length;
    }
  }

  /** Every byte of the watched areas is what it must be. */
  assertIntact(): void {
    for (const [n, { off, expected }] of this.#areas.entries()) {
      const is = Buffer.from(this.card.ram.views.u8.slice(off, off + expected.length));
      if (is.equals(expected)) continue;
      const at = expected.findIndex((byte, i) => byte !== is[i]);
      assert.fail(`area ${n}, byte ${at}: ${is[at]} instead of ${expected[at]}`);
    }
  }
}
