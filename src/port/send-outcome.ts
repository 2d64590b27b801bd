/**
 * Counts what became of frames that were given to the kernel.
 */
import { PORT_SLOTS } from '../stats/counters.ts';
import { EAGAIN, EINTR } from '../sys/libc.ts';
import type { Burst } from '../virtio-net/burst.ts';

const EIO = 5;
const ENXIO = 6;
const ENODEV = 19;
const EBADFD = 77;
const EMSGSIZE = 90;
const ENETDOWN = 100;
const ENOBUFS = 105;

export class SendOutcome {
  readonly #counters: Float64Array;
  readonly #burst: Burst;

  /** @param counters a block of PORT_SLOTS */
  constructor(counters: Float64Array, burst: Burst) {
    this.#counters = counters;
    this.#burst = burst;
  }

  /** Packets list[from] … list[to − 1] have been taken. */
  sent(list: Int32Array, from: number, to: number): void {
    const { len, delivered } = this.#burst;
    let bytes = 0;
    for (let k = from; k < to; k++) {
      const i = list[k];
      delivered[i]++;
      bytes += len[i];
    }
    this.#counters[PORT_SLOTS.rx_packets] += to - from;
    this.#counters[PORT_SLOTS.rx_bytes] += bytes;
  }

  /** Frames have been taken that were made of packet `i`: with the last of them the packet has gone. */
  sentMade(i: number, frames: number, bytes: number, last: boolean): void {
    if (last) this.#burst.delivered[i]++;
    this.#counters[PORT_SLOTS.rx_packets] += frames;
    this.#counters[PORT_SLOTS.rx_bytes] += bytes;
  }

  /** A packet's headers are malformed: no frame can be made of it. */
  malformed(): void {
    this.#counters[PORT_SLOTS.rx_drop_bad_offload]++;
  }

  /** The first of `left` frames was not taken, for `errno`. @returns how many are given up for it; none: to be tried again */
  refused(errno: number, left: number): number {
    switch (errno) {
      case EINTR:
        return 0;
      case EAGAIN:
      case ENOBUFS:
        // the queue is full: it will not be emptied while we try
        this.#counters[PORT_SLOTS.rx_drop_no_buffer] += left;
        return left;
      case ENETDOWN:
      case ENODEV:
      case ENXIO:
      case EIO: // a TAP interface that is down
      case EBADFD:
        this.#counters[PORT_SLOTS.rx_drop_not_ready] += left;
        return left;
      case EMSGSIZE:
        this.#counters[PORT_SLOTS.rx_drop_too_big]++;
        return 1;
      default:
        this.#counters[PORT_SLOTS.rx_drop_refused]++;
        return 1;
    }
  }
}
