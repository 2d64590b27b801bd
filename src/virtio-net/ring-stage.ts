/**
 * The plain packets' way through the rings, in WebAssembly where a ring lies in one window with its buffers. Else a split ring's
 * packets go in TypeScript, and a packed ring's the general way.
 */
import { copyFunction, PAIR_MEMORIES } from '../mem/copy-module.ts';
import { ModulePairs } from '../mem/module-pairs.ts';
import { assemble } from '../mem/wasm-assembler.ts';
import type { WindowViews } from '../mem/window.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { AVAIL, type PackedRing, USED } from '../virtqueue/packed-ring.ts';
import type { SplitRing } from '../virtqueue/split-ring.ts';
import { Burst, SCRATCH } from './burst.ts';
import type { NetVring } from './net-vring.ts';
import { type PackedExports, packedFunctions } from './packed-module.ts';
import { completePlain, fillPlain, takePlain } from './plain.ts';
import { type SplitExports, splitFunctions } from './split-module.ts';

/** num_buffers in the last word of a 12-byte virtio_net_hdr: always 1 where a packet takes one chain (VIRTIO §5.1.6.3). */
const ONE_BUFFER = 1 << 16;

const ringModule = () =>
  new WebAssembly.Module(assemble(PAIR_MEMORIES, [copyFunction(), ...splitFunctions(), ...packedFunctions()]));

/** The flags of an available descriptor `ahead` of the position. */
const availFlags = (ring: PackedRing, ahead: number) => (ring.wrapAt(ahead) === 1 ? AVAIL : USED);

/** Where the numbers of the packets being enqueued lie in scratch memory. */
const orderOff = ({ order, all }: Burst) => (order === all ? SCRATCH.all : SCRATCH.list);

/** One port gets the whole burst, which goes to no group. */
const isUniform = ({ uniform, order, all, only }: Burst) => uniform && order === all && only >= 0;

/** One thread's; its functions work on its own burst. */
export class RingStage {
  readonly #pairs = new ModulePairs<SplitExports & PackedExports>(ringModule());
  /** where the burst lies */
  readonly scratch = this.#pairs.scratch;
  readonly burst = new Burst(this.scratch.buffer);

  /**
   * Takes packets `from` to `n` − 1 of the ring's available ones into the burst, as long as each is one plain descriptor in the
   * memory chunk at hand, has 16 bytes and asks nothing of its receiver, and while nothing that a predecessor has left comes first; they
   * are counted in the burst's tally. @param ahead slots taken before, which packet `from` lies behind @returns the first packet that
   * is something else, or `n`
   */
  take({ ring, headerLen }: NetVring, from: number, n: number, ahead: number): number {
    const { burst } = this;
    const { map, records } = ring;
    if (!map.writable || (records !== undefined && records.pending > 0)) return from;
    const to = ring.packed
      ? this.#takePacked(ring as PackedRing, headerLen, from, n, ahead)
      : this.#takeSplit(ring as SplitRing, headerLen, from, n);
    burst.segments.count += to - from;
    return to;
  }

  #takeSplit(ring: SplitRing, headerLen: number, from: number, n: number): number {
    const { burst } = this;
    const { map } = ring;
    const window = ring.windows[map.window];
    if (map.window !== ring.window || window.memory === undefined) return takePlain(ring, headerLen, burst, from, n);
    const { descOff, availRingOff, num, mask, next } = ring;
    const { lo, hi, reach, base } = map;
    const pair = this.#pairs.of(window, window);
    // biome-ignore format: ring, chunk, burst
    return pair.takeSplit(
      descOff, availRingOff, num, mask, next, headerLen, lo, hi, reach, base,
      map.window, from, n, burst.segments.count,
    );
  }

  #takePacked(ring: PackedRing, headerLen: number, from: number, n: number, ahead: number): number {
    const { map, descOff, num } = ring;
    const window = ring.windows[map.window];
    if (ahead >= num || map.window !== ring.window || window.memory === undefined) return from;
    const { lo, hi, reach, base } = map;
    const pair = this.#pairs.of(window, window);
    const to = Math.min(n, from + num - ahead);
    // biome-ignore format: ring, chunk, burst
    return pair.takePacked(
      descOff, num, ring.slotAt(ahead), availFlags(ring, ahead), headerLen, lo, hi, reach, base,
      map.window, from, to, this.burst.segments.count,
    );
  }

  /**
   * Copies packets order[from] … order[end − 1] of the burst into the ring's next buffers and fills their used elements, as long as
   * each is one piece in `src`, asks nothing of its receiver, and fits one plain descriptor in the memory chunk at hand. `from` <
   * `end`; in a split ring as many buffers are there. @param filled slots filled before @returns the first that is something else or
   * finds no buffer, or `end`; those before it are counted in the burst's tally
   */
  fill({ ring, headerLen }: NetVring, src: WindowViews, from: number, end: number, filled: number): number {
    if (!ring.map.writable) return from;
    const lastWord = headerLen === VIRTIO_NET_HDR_MRG_RXBUF.size ? ONE_BUFFER : 0;
    return ring.packed
      ? this.#fillPacked(ring as PackedRing, headerLen, src, lastWord, from, end, filled)
      : this.#fillSplit(ring as SplitRing, headerLen, src, lastWord, from, end, filled);
  }

  // biome-ignore format: one line for what both formats are told
  #fillSplit(
    ring: SplitRing, headerLen: number, src: WindowViews, lastWord: number, from: number, end: number, filled: number,
  ): number {
    const { map } = ring;
    const dst = ring.windows[map.window];
    if (map.window !== ring.window || dst.memory === undefined || src.memory === undefined)
      return fillPlain(ring, headerLen, this.burst, src, lastWord, from, end, filled);
    const { descOff, availRingOff, usedRingOff, num, mask, next } = ring;
    const { lo, hi, reach, base } = map;
    const pair = this.#pairs.of(src, dst);
    const fillSplit = isUniform(this.burst) ? pair.fillSplitUniform : pair.fillSplit;
    // biome-ignore format: ring, chunk, packets
    return fillSplit(
      descOff, availRingOff, num, mask, next, headerLen, lo, hi, reach, base,
      usedRingOff, lastWord, src.id, orderOff(this.burst), from, end, filled,
    );
  }

  // biome-ignore format: one line for what both formats are told
  #fillPacked(
    ring: PackedRing, headerLen: number, src: WindowViews, lastWord: number, from: number, end: number, filled: number,
  ): number {
    const { map, descOff, num } = ring;
    const dst = ring.windows[map.window];
    const to = Math.min(end, from + num - filled);
    if (from >= to || map.window !== ring.window || dst.memory === undefined || src.memory === undefined) return from;
    const { lo, hi, reach, base } = map;
    const pair = this.#pairs.of(src, dst);
    const fillPacked = isUniform(this.burst) ? pair.fillPackedUniform : pair.fillPacked;
    // biome-ignore format: ring, chunk, packets
    return fillPacked(
      descOff, num, ring.slotAt(filled), availFlags(ring, filled), headerLen, lo, hi, reach, base,
      lastWord, src.id, orderOff(this.burst), from, to, filled,
    );
  }

  /** Fills used elements of length 0 for the whole burst, which came from `ring`; or, in a packed ring used in order, one for all. */
  complete({ ring, inOrder }: NetVring): void {
    const { burst } = this;
    if (burst.count === 0) return;
    const window = ring.windows[ring.window];
    if (window?.memory === undefined) completePlain(ring, burst);
    else if (ring.packed) {
      const { descOff, num, next } = ring as PackedRing;
      const from = inOrder ? burst.count - 1 : 0;
      const pair = this.#pairs.of(window, window);
      pair.completePacked(descOff, num, next, availFlags(ring as PackedRing, 0), from, burst.count);
    } else {
      const { usedRingOff, mask, next } = ring as SplitRing;
      this.#pairs.of(window, window).completeSplit(usedRingOff, mask, next, burst.count);
    }
  }
}
