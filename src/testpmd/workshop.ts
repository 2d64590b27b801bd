/**
 * What the forwarding modes of one thread share: its windows, and memory of its own, where frames are made and where those lie that
 * come in small pieces.
 */
import { CopyStage } from '../mem/copy-stage.ts';
import { WINDOW_USABLE_BYTES, type WindowViews } from '../mem/window.ts';
import { ETHHDR } from '../uapi/ip.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES } from '../virtio-net/burst.ts';
import { FrontStage } from '../virtio-net/front-stage.ts';

const FRAMES_OFF = 2 ** 20;
/** Room for a frame that comes in pieces; more than a port's longest. */
const FLAT_BYTES = 2 ** 18;
const FLAT_OFF = 2 ** 24;
/** Behind the room for a burst of those: the fronts of frames whose tags are put back, some bytes each. */
const FRONTS_OFF = FLAT_OFF + BURST_SIZE * FLAT_BYTES;
/** Behind that lies what takes much room. */
const MUCH_OFF = 2 ** 25;
/** The headers that any mode reads lie within this. */
export const HEADER_ROOM = 256;

const NO_CUTS = new Int32Array(BURST_SIZE);

/** Sees what is received and sent. */
export interface BurstWatch {
  /** The burst has arrived. */
  received(workshop: Workshop, port: number, queue: number): void;
  /** Packets list[0] … list[n − 1] have been sent. */
  sent(workshop: Workshop, port: number, queue: number, list: Int32Array, n: number): void;
}

export class Workshop {
  /** by id */
  readonly windows: readonly WindowViews[];
  /** the thread's own window */
  readonly own: WindowViews;
  readonly burst: Burst;
  /** shows packets, if that is asked for */
  dump: BurstWatch | undefined;
  readonly #copyStage = new CopyStage();
  readonly #fronts: FrontStage;
  #frames = FRAMES_OFF;
  #much = MUCH_OFF;

  constructor(windows: readonly WindowViews[], own: WindowViews, burst: Burst) {
    this.windows = windows;
    this.own = own;
    this.burst = burst;
    this.#fronts = new FrontStage(own, FRONTS_OFF);
  }

  /** All memory that `alloc` has given is free again. */
  reset(): void {
    this.#frames = FRAMES_OFF;
    this.#much = MUCH_OFF;
  }

  /** @returns the offset of `bytes` bytes in the thread's own window, cleared, at a multiple of 64 */
  alloc(bytes: number): number {
    const off = this.#frames;
    this.#frames += Math.ceil(bytes / 64) * 64;
    if (this.#frames > FLAT_OFF) throw new RangeError(`no room for ${bytes} bytes of frames`);
    this.own.u8.fill(0, off, off + bytes);
    return off;
  }

  /** The same without clearing it. */
  allocMuch(bytes: number): number {
    const off = this.#much;
    this.#much += Math.ceil(bytes / 64) * 64;
    if (this.#much > WINDOW_USABLE_BYTES) throw new RangeError(`no room for ${bytes} bytes of packets that wait`);
    return off;
  }

  /** Puts packet `i`, in order, into the burst: `len` bytes in one piece of the thread's own window. */
  put(i: number, off: number, len: number): void {
    const { burst } = this;
    const { dv, id } = this.own;
    burst.first[i] = burst.segments.count;
    burst.segments.push(id, off, len);
    burst.len[i] = len;
    for (let word = 0; word < 4; word++) burst.front[4 * i + word] = dv.getInt32(off + 4 * word, true);
    burst.count = i + 1;
    burst.first[i + 1] = burst.segments.count;
  }

  /** Empties the burst, to be filled by `put`. */
  clear(): void {
    this.burst.clear();
    this.burst.first[0] = 0;
  }

  /** Puts the tags that a port's kernel has taken off the frames of the burst back into them. */
  restoreTags(): void {
    const { burst } = this;
    if (!burst.tagged) return;
    burst.tagged = false;
    const { count, len, tag, frontBytes } = burst;
    this.#fronts.open(burst, NO_CUTS);
    for (let i = 0; i < count; i++) {
      if (len[i] < ETHHDR.size) continue;
      const at = FRONT_BYTES * i + ETHHDR.off.h_proto;
      this.#fronts.dress(burst, i, tag[i], (frontBytes[at] << 8) | frontBytes[at + 1]);
      if (tag[i] === 0) continue;
      for (let k = 0; k < 4; k++) frontBytes[at + k] = tag[i] >>> (24 - 8 * k);
    }
  }

  /**
   * Sees to it that the first `bytes` bytes of packet `i`, or all if it is shorter, lie in its first segment.
   * @returns how many lie there: of a longer packet at least `bytes`
   */
  flatten(i: number, bytes: number): number {
    const { first, len, segments } = this.burst;
    const s = first[i];
    if (segments.len[s] >= bytes || segments.len[s] >= len[i]) return segments.len[s];
    const total = len[i];
    if (total > FLAT_BYTES) return segments.len[s];
    const to = FLAT_OFF + i * FLAT_BYTES;
    let at = to;
    for (let k = s; k < first[i + 1]; k++) {
      this.#copyStage.list[0] = segments.off[k];
      this.#copyStage.list[1] = at;
      this.#copyStage.list[2] = segments.len[k];
      this.#copyStage.flush(this.windows[segments.window[k]], this.own, 1);
      at += segments.len[k];
      segments.len[k] = 0;
    }
    segments.window[s] = this.own.id;
    segments.off[s] = to;
    segments.len[s] = total;
    return total;
  }
}
