/**
 * Copies packets of a burst into memory of a port's own, each into one piece.
 */
import { CopyList } from '../mem/copy-list.ts';
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
  readonly #dst: number;
  readonly #list: CopyList;

  /** @param dst the window that packets go to, one of them */
  constructor(tools: BurstTools, dst: WindowViews) {
    this.#tools = tools;
    this.#dst = dst.id;
    this.#list = new CopyList(tools.windows);
  }

  /** Lists packet `i` of the burst to be copied to `off`, where there is room for all of it. It is there after `flush`. */
  add(i: number, off: number): void {
    const { segments, first } = this.#tools.burst;
    let to = off;
    for (let s = first[i]; s < first[i + 1]; s++) {
      this.#list.add(segments.window[s], segments.off[s], this.#dst, to, segments.len[s]);
      to += segments.len[s];
    }
  }

  /** Copies what is listed. */
  flush(): void {
    this.#list.flush();
  }
}
