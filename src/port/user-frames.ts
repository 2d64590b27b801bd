/**
 * Plain frames in a virtio-user port's buffers: those of one buffer each, which ask nothing of their receiver. In WebAssembly where
 * memory lies in windows of kind 'wasm'; else in TypeScript, which is also the oracle of `user-module.ts` in the tests.
 */
import type { CopyStage } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { type Burst, FRONT_BYTES, FRONT_WORDS, SCRATCH } from '../virtio-net/burst.ts';
import type { VirtioUserSpec } from './user-pair.ts';
import type { UserRing } from './user-ring.ts';
import type { UserStage } from './user-stage.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;

/** Zeros, up to num_buffers, which is never anything else in what is sent. */
export function clearHeader(dv: DataView, off: number): void {
  dv.setInt32(off, 0, true);
  dv.setInt32(off + 4, 0, true);
  dv.setInt16(off + 8, 0, true);
}

export class UserFrames {
  /** bytes of the packets that the last call has dealt with */
  bytes = 0;
  readonly #burst: Burst;
  readonly #windows: readonly WindowViews[];
  readonly #window: WindowViews;
  readonly #copyStage: CopyStage;
  readonly #stage: UserStage | undefined;
  readonly #headerLen: number;
  readonly #mergeable: boolean;
  readonly #offloads: boolean;
  readonly #clear: boolean;
  readonly #maxFrame: number;

  /** @param stage what runs the rings; undefined: TypeScript does */
  constructor(
    { headerLen, mergeable, accepts, maySend, maxFrame, windows: [{ id }] }: VirtioUserSpec,
    burst: Burst,
    windows: readonly WindowViews[],
    copyStage: CopyStage,
    stage: UserStage | undefined,
  ) {
    this.#burst = burst;
    this.#windows = windows;
    this.#window = windows[id];
    this.#copyStage = copyStage;
    this.#stage = stage;
    this.#headerLen = headerLen;
    this.#maxFrame = maxFrame ?? Number.MAX_SAFE_INTEGER;
    this.#mergeable = mergeable;
    this.#offloads = accepts !== 0;
    // a buffer's header stays zero, unless offloads have been in it
    this.#clear = maySend !== 0;
  }

  /** Bytes of the longest frame that `tx` sends. */
  maxLen(tx: UserRing): number {
    return Math.min(tx.plan.room - this.#headerLen, this.#maxFrame);
  }

  /** Makes what lies in the first `n` of the ring's own buffers the burst's packets, as long as it is plain. @returns how many */
  list(rx: UserRing, n: number): number {
    const { module, size, head, buffersOff, stride } = rx;
    const headerLen = this.#headerLen;
    if (module === undefined || this.#stage === undefined || n === 0) return this.#list(rx, n);
    const [numMask, flagMask] = [this.#mergeable ? -1 : 0, this.#offloads ? -1 : 0];
    const { run, off } = module;
    const frames = buffersOff + headerLen;
    const listed = run.list(off, size, head, frames, stride, headerLen, numMask, flagMask, this.#window.id, n);
    this.bytes = this.#stage.bytes;
    return listed;
  }

  #list(rx: UserRing, n: number): number {
    const { first, len: lens, front, segments } = this.#burst;
    const { window: segWindow, off: segOff, len: segLen } = segments;
    const { own, ownLen, head, mask, buffersOff, stride } = rx;
    const { dv, id } = this.#window;
    const headerLen = this.#headerLen;
    const mergeable = this.#mergeable;
    const offloads = this.#offloads;
    let bytes = 0;
    let i = 0;
    for (; i < n; i++) {
      const at = (head + i) & mask;
      const off = buffersOff + own[at] * stride + headerLen;
      const len = ownLen[at] - headerLen;
      if (len < FRONT_BYTES || (mergeable && dv.getUint16(off - headerLen + HDR.num_buffers, true) !== 1)) break;
      // flags and gso_type
      if (offloads && dv.getUint16(off - headerLen, true) !== 0) break;
      first[i] = i;
      lens[i] = len;
      segWindow[i] = id;
      segOff[i] = off;
      segLen[i] = len;
      front[FRONT_WORDS * i] = dv.getInt32(off, true);
      front[FRONT_WORDS * i + 1] = dv.getInt32(off + 4, true);
      front[FRONT_WORDS * i + 2] = dv.getInt32(off + 8, true);
      front[FRONT_WORDS * i + 3] = dv.getInt32(off + 12, true);
      bytes += len;
    }
    this.bytes = bytes;
    return i;
  }

  /**
   * Copies packets list[from] … list[to − 1], 32 at most, into the ring's first own buffers, of which there are as many, as long as each fits, needs
   * nothing and is one piece in the window of the first. @returns the first that is something else, or `to`
   */
  place(tx: UserRing, list: Int32Array, from: number, to: number): number {
    this.bytes = 0;
    if (from >= to) return from;
    const { first, segments, all, list: room } = this.#burst;
    const src = this.#windows[segments.window[first[list[from]]]];
    const { module, size, head, buffersOff, stride } = tx;
    if (module === undefined || this.#stage === undefined || src.memory === undefined)
      return this.#place(tx, src, list, from, to);
    // the functions find the packets' numbers in the burst's memory only
    if (list !== all) for (let k = from; k < to; k++) room[k - from] = list[k];
    const numbers = list === all ? SCRATCH.all + 4 * from : SCRATCH.list;
    const headerLen = this.#headerLen;
    const frames = buffersOff + headerLen;
    const maxLen = this.maxLen(tx);
    const { place } = this.#stage.from(src);
    const clear = this.#clear ? 1 : 0;
    const placed = place(module.off, size, head, frames, stride, headerLen, maxLen, clear, src.id, numbers, to - from);
    this.bytes = this.#stage.bytes;
    return from + placed;
  }

  #place(tx: UserRing, src: WindowViews, list: Int32Array, from: number, to: number): number {
    const { first, len: lens, needs, delivered, segments } = this.#burst;
    const { window: segWindow, off: segOff } = segments;
    const { own, ownLen, head, mask, stride } = tx;
    const { list: copies } = this.#copyStage;
    const headerLen = this.#headerLen;
    const framesOff = tx.buffersOff + headerLen;
    const maxLen = this.maxLen(tx);
    const clear = this.#clear;
    const { dv } = this.#window;
    let bytes = 0;
    let at = head;
    let entry = 0;
    let k = from;
    for (; k < to; k++) {
      const packet = list[k];
      const len = lens[packet];
      const s = first[packet];
      if (len < 0 || len > maxLen || needs[packet] !== 0 || first[packet + 1] - s !== 1 || segWindow[s] !== src.id)
        break;
      const dst = framesOff + own[at] * stride;
      if (clear) clearHeader(dv, dst - headerLen);
      copies[entry] = segOff[s];
      copies[entry + 1] = dst;
      copies[entry + 2] = len;
      ownLen[at] = len + headerLen;
      delivered[packet]++;
      bytes += len;
      entry += 3;
      at = (at + 1) & mask;
    }
    this.bytes = bytes;
    this.#copyStage.flush(src, this.#window, k - from);
    return k;
  }
}
