/**
 * The copy stage: a list of segments, and the code that moves them from one window to another.
 *
 * Callers append (source offset, destination offset, length) triples to `list` and call `flush` whenever the pair of windows
 * changes and at the end of the burst. Nothing is checked here but what WebAssembly checks itself: offsets come from AddressMap.
 */
import { COPY_ENTRY_BYTES, type CopyExports, copyModule } from './copy-module.ts';
import { ModulePairs } from './module-pairs.ts';
import type { WindowViews } from './window.ts';

/** Segments that fit the list; a full list must be flushed. */
export const MAX_COPY_ENTRIES = 1024;
const LIST_WORDS = COPY_ENTRY_BYTES / 4;

export class CopyStage {
  /** the segments to move: triples of source offset, destination offset, bytes */
  readonly list: Int32Array;
  readonly #pairs = new ModulePairs<CopyExports>(copyModule());

  constructor() {
    this.list = new Int32Array(this.#pairs.scratch.buffer, 0, MAX_COPY_ENTRIES * LIST_WORDS);
  }

  /** Moves the first `n` segments of the list from window `src` to window `dst`. */
  flush(src: WindowViews, dst: WindowViews, n: number): void {
    if (n === 0) return;
    if (src.memory === undefined || dst.memory === undefined) copySegments(this.list, n, src, dst);
    else this.#pairs.of(src, dst).copy(0, n * COPY_ENTRY_BYTES);
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
