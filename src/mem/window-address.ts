/**
 * Where windows lie in this process, for system calls that are told addresses.
 */
import { addressOf } from '../sys/libc.ts';
import type { WindowViews } from './window.ts';

/** One thread's. */
export class WindowAddresses {
  readonly #windows: readonly WindowViews[];
  /** of each window's first byte, by id; below 2⁴⁷, which a number holds exactly */
  #bases = new Float64Array(64);

  /** @param windows the thread's table, by window id */
  constructor(windows: readonly WindowViews[]) {
    this.#windows = windows;
  }

  /** The address of a window's byte at `off`. */
  of(window: number, off: number): number {
    if (window >= this.#bases.length || this.#bases[window] === 0) this.#learn(window);
    return this.#bases[window] + off;
  }

  #learn(window: number): void {
    if (window >= this.#bases.length) {
      const more = new Float64Array(2 * window);
      more.set(this.#bases);
      this.#bases = more;
    }
    this.#bases[window] = Number(addressOf(this.#windows[window].u8.buffer));
  }
}
