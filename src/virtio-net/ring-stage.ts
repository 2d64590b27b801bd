/**
 * The plain packets' way through the rings, in WebAssembly where a ring lies in one window with its buffers, else in TypeScript.
 */
import { ModulePairs } from '../mem/module-pairs.ts';
import type { WindowViews } from '../mem/window.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import type { SplitRing } from '../virtqueue/split-ring.ts';
import { Burst } from './burst.ts';
import { completePlain, fillPlain, takePlain } from './plain.ts';
import { type RingExports, ringModule } from './ring-module.ts';

/** num_buffers in the last word of a 12-byte virtio_net_hdr: always 1 where a packet takes one chain (VIRTIO §5.1.6.3). */
const ONE_BUFFER = 1 << 16;

/** One thread's; its functions work on its own burst. */
export class RingStage {
  readonly #pairs = new ModulePairs<RingExports>(ringModule());
  readonly burst = new Burst(this.#pairs.scratch.buffer);

  /**
   * Takes packets `from` to `n` − 1 of the ring's available ones into the burst, as long as each is one plain descriptor in the
   * memory chunk at hand and has 16 bytes. @returns the first packet that is something else, or `n`
   */
  take(ring: SplitRing, from: number, n: number): number {
    const { burst } = this;
    const { map } = ring;
    const window = ring.windows[map.window];
    const { count } = burst.segments;
    let to: number;
    if (map.window !== ring.window || window.memory === undefined) to = takePlain(ring, burst, from, n);
    else {
      const { descOff, availRingOff, num, mask, headerLen, nextAvail } = ring;
      const { lo, hi, reach, base } = map;
      to = this.#pairs
        .of(window, window)
        .take(descOff, availRingOff, num, mask, headerLen, lo, hi, reach, base, nextAvail, map.window, from, n, count);
    }
    burst.segments.count = count + to - from;
    return to;
  }

  /**
   * Copies packets list[from] … list[end − 1] of the burst into the ring's next buffers and fills their used entries, as long as
   * each is one piece in `src` and fits one plain descriptor in the memory chunk at hand. `from` < `end`, and as many buffers
   * are there. @param filled used entries filled before @returns the first that is something else, or `end`; the bytes of those
   * before it are in `burst.bytes`
   */
  fill(ring: SplitRing, src: WindowViews, from: number, end: number, filled: number): number {
    const { burst } = this;
    const { map, headerLen } = ring;
    const dst = ring.windows[map.window];
    const lastWord = headerLen === VIRTIO_NET_HDR_MRG_RXBUF.size ? ONE_BUFFER : 0;
    if (map.window !== ring.window || dst.memory === undefined || src.memory === undefined)
      return fillPlain(ring, burst, src, lastWord, from, end, filled);
    const { descOff, availRingOff, usedRingOff, num, mask, nextAvail, nextUsed } = ring;
    const { lo, hi, reach, base } = map;
    const pair = this.#pairs.of(src, dst);
    // biome-ignore format: one line for what both functions are told
    return pair.fill(
      descOff, availRingOff, num, mask, headerLen, lo, hi, reach, base, nextAvail,
      usedRingOff, nextUsed, lastWord, src.id, from, end, filled,
    );
  }

  /** Fills used entries of length 0 with the heads of the whole burst, which came from `ring`. */
  complete(ring: SplitRing): void {
    const { burst } = this;
    const window = ring.windows[ring.window];
    if (window?.memory === undefined) completePlain(ring, burst);
    else if (burst.count > 0)
      this.#pairs.of(window, window).complete(ring.usedRingOff, ring.mask, ring.nextUsed, burst.count);
  }
}
