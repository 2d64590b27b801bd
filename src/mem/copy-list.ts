/**
 * What is to be copied between windows, one piece after the other: pieces wait as long as they go between the same two windows.
 */
import { CopyStage, MAX_COPY_ENTRIES } from './copy-stage.ts';
import type { WindowViews } from './window.ts';

/** A thread's, for one use. */
export class CopyList {
  readonly #windows: readonly WindowViews[];
  readonly #stage = new CopyStage();
  #entries = 0;
  #src = -1;
  #dst = -1;

  /** @param windows the thread's, by id */
  constructor(windows: readonly WindowViews[]) {
    this.#windows = windows;
  }

  /** Lists `len` bytes to be copied from an offset in window `src` to one in window `dst`. They are there after `flush`. */
  add(src: number, from: number, dst: number, to: number, len: number): void {
    if (src !== this.#src || dst !== this.#dst || this.#entries === MAX_COPY_ENTRIES) {
      this.flush();
      this.#src = src;
      this.#dst = dst;
    }
    const { list } = this.#stage;
    const at = 3 * this.#entries++;
    list[at] = from;
    list[at + 1] = to;
    list[at + 2] = len;
  }

  /** Copies what is listed. */
  flush(): void {
    if (this.#entries === 0) return;
    this.#stage.flush(this.#windows[this.#src], this.#windows[this.#dst], this.#entries);
    this.#entries = 0;
  }
}
