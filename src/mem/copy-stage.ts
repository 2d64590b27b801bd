/**
 * An lcore's copy stage: a list of segments in scratch memory, and the code that moves them.
 *
 * Callers append (source offset, destination offset, length) triples to `list` and call `flush` whenever the pair of windows
 * changes and at the end of the burst. Nothing is checked here but what WebAssembly checks itself: offsets come from AddressMap.
 */
import {
  COPY_ENTRY_BYTES,
  type CopyExports,
  instantiateCopy,
  PEEK_BYTES,
  PEEK_ENTRY_BYTES,
  SCRATCH_PAGES,
} from './copy-module.ts';
import type { WindowViews } from './window.ts';

const WASM_PAGE = 65536;
/** Segments that fit the list; a full list must be flushed. */
export const MAX_COPY_ENTRIES = 1024;
/** Frames that one `peek` looks at. */
export const MAX_PEEK_ENTRIES = 64;
const LIST_WORDS = 3;
/** Words of each packet's front in `heads`. */
export const PEEK_WORDS = PEEK_BYTES / 4;
const PEEK_OFF = MAX_COPY_ENTRIES * COPY_ENTRY_BYTES;
const HEADS_OFF = PEEK_OFF + MAX_PEEK_ENTRIES * PEEK_ENTRY_BYTES;
/** Pairs of windows kept; beyond it all are forgotten and made again on use. */
const MAX_PAIRS = 4096;

export class CopyStage {
  /** the segments to move: triples of source offset, destination offset, bytes */
  readonly list: Int32Array;
  /** source offsets of the frames to peek at */
  readonly peekList: Int32Array;
  /** what `peek` found: four words a frame, its first 16 bytes */
  readonly heads: Int32Array;
  readonly #headBytes: Uint8Array;
  readonly #scratch: WebAssembly.Memory;
  readonly #pairs = new Map<number, CopyExports>();
  #key = -1;
  #pair: CopyExports | undefined;

  constructor() {
    this.#scratch = new WebAssembly.Memory({ initial: SCRATCH_PAGES, maximum: SCRATCH_PAGES });
    const buffer = this.#scratch.buffer;
    if (HEADS_OFF + MAX_PEEK_ENTRIES * PEEK_BYTES > SCRATCH_PAGES * WASM_PAGE)
      throw new RangeError('scratch too small');
    this.list = new Int32Array(buffer, 0, MAX_COPY_ENTRIES * LIST_WORDS);
    this.peekList = new Int32Array(buffer, PEEK_OFF, MAX_PEEK_ENTRIES);
    this.heads = new Int32Array(buffer, HEADS_OFF, MAX_PEEK_ENTRIES * PEEK_WORDS);
    this.#headBytes = new Uint8Array(buffer, HEADS_OFF, MAX_PEEK_ENTRIES * PEEK_BYTES);
  }

  /** Moves the first `n` segments of the list from window `src` to window `dst`. */
  flush(src: WindowViews, dst: WindowViews, n: number): void {
    if (n === 0) return;
    if (src.memory === undefined || dst.memory === undefined) copySegments(this.list, n, src, dst);
    else this.#exports(src, dst).copy(0, n * COPY_ENTRY_BYTES);
  }

  /** Fills entries `from` to `to` − 1 of `heads` with the 16 bytes at each of those offsets in `peekList`, in window `src`. */
  peek(src: WindowViews, from: number, to: number): void {
    if (src.memory === undefined) peekSegments(this.peekList, from, to, src, this.heads);
    else {
      const listOff = PEEK_OFF + from * PEEK_ENTRY_BYTES;
      this.#exports(src, src).peek(listOff, PEEK_OFF + to * PEEK_ENTRY_BYTES, HEADS_OFF + from * PEEK_BYTES);
    }
  }

  /** Sets one byte of a frame's entry in `heads`. */
  setHeadByte(frame: number, at: number, byte: number): void {
    this.#headBytes[frame * PEEK_BYTES + at] = byte;
  }

  #exports(src: WindowViews, dst: WindowViews): CopyExports {
    const key = src.id * 65536 + dst.id;
    if (key === this.#key) return this.#pair as CopyExports;
    let pair = this.#pairs.get(key);
    if (pair === undefined) {
      if (this.#pairs.size >= MAX_PAIRS) this.#pairs.clear();
      pair = instantiateCopy(src.memory as WebAssembly.Memory, dst.memory as WebAssembly.Memory, this.#scratch);
      this.#pairs.set(key, pair);
    }
    this.#key = key;
    this.#pair = pair;
    return pair;
  }
}

/** The same as the module's `copy`, in TypeScript: for windows of kind 'view', and the module's oracle in the tests. */
export function copySegments(list: Int32Array, n: number, src: WindowViews, dst: WindowViews): void {
  for (let i = 0; i < n; i++) {
    let from = list[LIST_WORDS * i];
    let to = list[LIST_WORDS * i + 1];
    const end = from + list[LIST_WORDS * i + 2];
    for (; from + 4 <= end; from += 4, to += 4) dst.dv.setInt32(to, src.dv.getInt32(from, true), true);
    for (; from < end; from++, to++) dst.u8[to] = src.u8[from];
  }
}

/** The same as the module's `peek`. */
export function peekSegments(offsets: Int32Array, from: number, to: number, src: WindowViews, heads: Int32Array): void {
  for (let i = from; i < to; i++) {
    for (let word = 0; word < PEEK_WORDS; word++)
      heads[PEEK_WORDS * i + word] = src.dv.getInt32(offsets[i] + 4 * word, true);
  }
}
