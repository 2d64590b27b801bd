/**
 * io, which sends frames on as they are; mac, which gives them the addresses of the peer and of the port they leave by; and macswap,
 * which swaps the two they have.
 */
import { ETHHDR } from '../../uapi/ip.ts';
import { FRONT_WORDS } from '../../virtio-net/burst.ts';
import type { Stream } from '../stream.ts';
import type { Workshop } from '../workshop.ts';
import { EditingMode } from './mode.ts';

const ADDRESSES = 2 * ETHHDR.off.h_source;

export class IoMode extends EditingMode {
  protected edit(): void {}
}

/** Writes both addresses of packet `i`, twelve bytes in three words, where it lies and in the burst. */
function putAddresses(workshop: Workshop, i: number, word0: number, word1: number, word2: number): void {
  const { burst, windows } = workshop;
  const { first, front, segments } = burst;
  const s = first[i];
  const { dv } = windows[segments.window[s]];
  const off = segments.off[s];
  dv.setInt32(off, word0, true);
  dv.setInt32(off + 4, word1, true);
  dv.setInt32(off + 8, word2, true);
  front[FRONT_WORDS * i] = word0;
  front[FRONT_WORDS * i + 1] = word1;
  front[FRONT_WORDS * i + 2] = word2;
}

export class MacMode extends EditingMode {
  readonly #words: Int32Array;

  constructor(stream: Stream, workshop: Workshop) {
    super(stream, workshop);
    this.#words = new Int32Array(Uint8Array.of(...stream.plan.peer, ...stream.plan.own).buffer);
  }

  protected edit(): void {
    const { workshop } = this;
    const [word0, word1, word2] = [this.#words[0], this.#words[1], this.#words[2]];
    const { count } = workshop.burst;
    for (let i = 0; i < count; i++)
      if (workshop.flatten(i, ADDRESSES) >= ADDRESSES) putAddresses(workshop, i, word0, word1, word2);
  }
}

export class MacSwapMode extends EditingMode {
  protected edit(): void {
    const { workshop } = this;
    const { front, count } = workshop.burst;
    for (let i = 0; i < count; i++) {
      if (workshop.flatten(i, ADDRESSES) < ADDRESSES) continue;
      const word0 = front[FRONT_WORDS * i];
      const word1 = front[FRONT_WORDS * i + 1];
      const word2 = front[FRONT_WORDS * i + 2];
      // in 16-bit units: d0 d1 d2 s0 s1 s2 becomes s0 s1 s2 d0 d1 d2
      putAddresses(
        workshop,
        i,
        (word1 >>> 16) | (word2 << 16),
        (word2 >>> 16) | (word0 << 16),
        (word0 >>> 16) | (word1 << 16),
      );
    }
  }
}
