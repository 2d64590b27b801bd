/**
 * Copies packets of a burst into memory of a port's own, each into one piece.
 */
import { CopyStage, MAX_COPY_ENTRIES } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import type { Burst } from '../virtio-net/burst.ts';

/** A thread's burst, and the windows that its packets lie in. */
export interface BurstTools {
  readonly burst: Burst;
  /** by id */
  readonly windows: readonly WindowViews[];
}

/** One port's. */
export class BurstCopy {
  readonly #tools: BurstTools;
  readonly #dst: WindowViews;
  readonly #stage = new CopyStage();
  #src = 0;
  #entries = 0;

  /** @param dst the window that packets go to */
  constructor(tools: BurstTools, dst: WindowViews) {
    this.#tools = tools;
    this.#dst = dst;
  }

  /** Lists packet `i` of the burst to be copied to `off`, where there is room for all of it. It is there after `flush`. */
  add(i: number, off: number): void {
    const { segments, first } = this.#tools.burst;
    const { list } = this.#stage;
    let to = off;
    for (let s = first[i]; s < first[i + 1]; s++) {
      const src = segments.window[s];
      if (src !== this.#src || this.#entries === MAX_COPY_ENTRIES) {
        this.flush();
        this.#src = src;
      }
      const at = 3 * this.#entries++;
      list[at] = segments.off[s];
      list[at + 1] = to;
      list[at + 2] = segments.len[s];
      to += segments.len[s];
    }
  }

  /** Copies what is listed. */
  flush(): void {
    if (this.#entries === 0) return;
    this.#stage.flush(this.#tools.windows[this.#src], this.#dst, this.#entries);
    this.#entries = 0;
  }
}
