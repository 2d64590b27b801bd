/**
 * How ports whose frames are in memory of their own fill a burst, and count.
 */
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { type Burst, FRONT_BYTES, FRONT_WORDS } from '../virtio-net/burst.ts';

/** Adds a frame that lies in one piece and asks nothing of its receiver as the burst's last; there is room for it. */
export function addFrame(burst: Burst, views: WindowViews, off: number, len: number): void {
  const { segments, front } = burst;
  const i = burst.count++;
  burst.first[i] = segments.count;
  segments.push(views.id, off, len);
  burst.first[i + 1] = segments.count;
  burst.len[i] = len;
  const word = FRONT_WORDS * i;
  if (len >= FRONT_BYTES) {
    const { dv } = views;
    front[word] = dv.getInt32(off, true);
    front[word + 1] = dv.getInt32(off + 4, true);
    front[word + 2] = dv.getInt32(off + 8, true);
    front[word + 3] = dv.getInt32(off + 12, true);
    return;
  }
  const { u8 } = views;
  for (let k = 0; k < FRONT_BYTES; k++) burst.frontBytes[FRONT_BYTES * i + k] = k < len ? u8[off + k] : 0;
}

/** Counts what `receive` has put into the burst. @returns packets */
export function countReceived(counters: Float64Array, { count, len }: Burst): number {
  if (count === 0) return 0;
  let bytes = 0;
  for (let i = 0; i < count; i++) bytes += len[i];
  counters[PORT_SLOTS.tx_packets] += count;
  counters[PORT_SLOTS.tx_bytes] += bytes;
  return count;
}

/** What became of the packets of one `transmit`. */
export class Sent {
  readonly #counters: Float64Array;
  readonly #burst: Burst;
  #packets = 0;
  #bytes = 0;

  /** @param counters a block of PORT_SLOTS */
  constructor(counters: Float64Array, burst: Burst) {
    this.#counters = counters;
    this.#burst = burst;
  }

  /** The port has taken packet `i`. */
  add(i: number): void {
    this.#burst.delivered[i]++;
    this.#packets++;
    this.#bytes += this.#burst.len[i];
  }

  /** Counts what has been added. @returns packets */
  count(): number {
    const packets = this.#packets;
    this.#counters[PORT_SLOTS.rx_packets] += packets;
    this.#counters[PORT_SLOTS.rx_bytes] += this.#bytes;
    this.#packets = 0;
    this.#bytes = 0;
    return packets;
  }
}
