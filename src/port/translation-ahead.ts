/**
 * Asks for translations before a frame needs them: a receive buffer without one costs a frame, and a transmit ring waits for it.
 * One for a device's addresses; it is not needed where addresses are not translated.
 */
import type { AddressMap } from '../mem/address-map.ts';
import { VRING_SLOTS } from '../stats/counters.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import type { NetVring } from '../virtio-net/net-vring.ts';
import { CHAIN_MISS } from '../virtqueue/chain.ts';
import { FAULT_NONE } from '../virtqueue/fault.ts';
import { MAX_MISSES, Misses } from '../virtqueue/misses.ts';
import { SegmentList } from '../virtqueue/segments.ts';

/** Slots looked ahead. Front ends answer one by one: many questions for receive buffers make a transmit ring wait behind them. */
const AHEAD = 16;
/** Questions remembered; one that is forgotten is asked again, and the main thread knows. */
const ASKED = 1024;
const NONE = -1;
const PAGE = 4096;
const TWO_32 = 2 ** 32;

/** How far a ring has been looked at since its memory last changed. */
export class Looked {
  /** slots from the position on */
  slots = 0;
  /** the position then */
  next = 0;
}

/** Told of a translation that a vring lacks. */
export type OnMissing = (vring: number, iova: number, write: boolean) => void;

export class TranslationAhead {
  readonly #onMissing: OnMissing;
  /** what has been asked for, and has not come: page × 2 + write, by its lowest bits */
  readonly #asked = new Float64Array(ASKED).fill(NONE);
  readonly #misses = new Misses();
  readonly #chains = new SegmentList();

  constructor(onMissing: OnMissing) {
    this.#onMissing = onMissing;
  }

  /** What has come may be asked for again, when it is gone. */
  setMap(map: AddressMap): void {
    const asked = this.#asked;
    for (let i = 0; i < ASKED; i++) {
      const key = asked[i];
      if (key === NONE) continue;
      const addr = Math.floor(key / 2) * PAGE;
      if (map.select((addr % TWO_32) | 0, Math.floor(addr / TWO_32) | 0, 1, key % 2 === 1)) asked[i] = NONE;
    }
  }

  /** What has not come is asked for again by the next looks: a front end does not answer for what the guest had not mapped yet. */
  forget(): void {
    this.#asked.fill(NONE);
  }

  /**
   * Asks for the translations that the next available chains of the ring lack, each once. What else is wrong with a chain shows when
   * its turn comes. The caller has entered the ring, and holds no chain of it. @param write it is a receive ring
   */
  look(vring: number, { ring, counters }: NetVring, looked: Looked, write: boolean): void {
    if (ring.fault !== FAULT_NONE) return;
    const from = Math.max(0, looked.slots - this.#moved(ring.next, looked.next, ring.packed ? ring.num : 65536));
    looked.next = ring.next;
    looked.slots = from;
    if (from >= AHEAD) return;
    if (ring.ready < AHEAD) ring.refresh();
    const misses = this.#misses;
    const chains = this.#chains;
    misses.clear();
    chains.count = 0;
    ring.misses = misses;
    // all chains of one look share the list, so that a guest's long ones cost no more than one packet's
    while (looked.slots < AHEAD && ring.fault === FAULT_NONE) {
      const bytes = ring.chainAt(looked.slots, write ? VRING_DESC_F_WRITE : 0, chains);
      // with a full list more of the chain may be missing; else it is its indirect table that is, and the next chain is known
      if (bytes < 0 && (bytes !== CHAIN_MISS || misses.count === MAX_MISSES)) break;
      looked.slots += ring.chainSlots;
    }
    ring.misses = undefined;
    ring.fault = FAULT_NONE;
    for (let i = 0; i < misses.count; i++) {
      const iova = (misses.hi[i] >>> 0) * TWO_32 + (misses.lo[i] >>> 0);
      const key = Math.floor(iova / PAGE) * 2 + misses.write[i];
      const slot = key % ASKED;
      if (this.#asked[slot] === key) continue;
      this.#asked[slot] = key;
      counters[VRING_SLOTS.iotlb_misses]++;
      this.#onMissing(vring, iova, misses.write[i] === 1);
    }
  }

  /** Slots that a ring has gone on from `before` to `now`: less than a lap of positions. */
  #moved(now: number, before: number, lap: number): number {
    return now >= before ? now - before : now + lap - before;
  }
}
