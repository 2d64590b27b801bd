/**
 * A ring whose buffers are used later than others behind them, or much later than they are taken: its own position is where buffers are
 * taken from, and this one where used ones are put. The driver must not count on buffers being used in order (IN_ORDER), and the
 * ring has no records of what is inflight.
 */
import type { PackedRing } from './packed-ring.ts';
import type { Vring } from './vring.ts';

/** Words of a position that several threads share. */
export const USED_POSITION_WORDS = 4;

export class UsedPosition {
  #next = 0;
  #wrap = 0;
  /** slots taken and slots used since the beginning, modulo 2³²: a position comes again each lap */
  #nTaken = 0;
  #nUsed = 0;
  /** the ring's own while `turn` has put this one in its place */
  #taken = 0;
  #takenWrap = 0;
  #ready = 0;

  /** From the ring's position on: nothing has been taken that is not used. */
  begin(ring: Vring): void {
    this.#next = ring.next;
    this.#wrap = wrapOf(ring);
    this.#nTaken = 0;
    this.#nUsed = 0;
  }

  /** From shared words, USED_POSITION_WORDS from `at` on. */
  load(words: Int32Array, at: number): void {
    this.#next = words[at];
    this.#wrap = words[at + 1];
    this.#nTaken = words[at + 2];
    this.#nUsed = words[at + 3];
  }

  save(words: Int32Array, at: number): void {
    words[at] = this.#next;
    words[at + 1] = this.#wrap;
    words[at + 2] = this.#nTaken;
    words[at + 3] = this.#nUsed;
  }

  /** Moves the ring's position over `slots` slots: they are taken. @returns the serial number of the first */
  take(ring: Vring, slots: number): number {
    const serial = this.#nTaken;
    this.#nTaken = (serial + slots) | 0;
    takeSlots(ring, slots);
    return serial;
  }

  /** True if all slots before the one with this serial number have been used, and no other. */
  reaches(serial: number): boolean {
    return this.#nUsed === serial;
  }

  /** Has the ring's `putUsed`, `publish` and `notify` work here, until `turnBack`. */
  turn(ring: Vring): void {
    this.#taken = ring.next;
    this.#takenWrap = wrapOf(ring);
    this.#ready = ring.ready;
    this.#put(ring, this.#next, this.#wrap);
  }

  /** @param slots used meanwhile */
  turnBack(ring: Vring, slots: number): void {
    this.#next = ring.next;
    this.#wrap = wrapOf(ring);
    this.#nUsed = (this.#nUsed + slots) | 0;
    this.#put(ring, this.#taken, this.#takenWrap);
    ring.ready = this.#ready;
  }

  /** Has the ring take the buffers again that have been taken and not used, which must be the last ones taken. */
  untake(ring: Vring): void {
    this.#put(ring, this.#next, this.#wrap);
    this.#nTaken = this.#nUsed;
    ring.ready = 0;
  }

  #put(ring: Vring, next: number, wrap: number): void {
    ring.next = next;
    if (ring.packed) (ring as PackedRing).wrap = wrap;
  }
}

const wrapOf = (ring: Vring) => (ring.packed ? (ring as PackedRing).wrap : 0);

function takeSlots(ring: Vring, slots: number): void {
  if (!ring.packed) {
    ring.next = (ring.next + slots) & 0xffff;
    ring.ready -= slots;
    return;
  }
  const packed = ring as PackedRing;
  const wrap = packed.wrapAt(slots);
  packed.next = packed.slotAt(slots);
  packed.wrap = wrap;
  packed.ready = 0;
}
