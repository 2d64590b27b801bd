/**
 * Patience with guests whose receive ring is full, for frames that come from an uplink: those cannot be held back where they come
 * from. An lcore that waits does nothing else, so there is one allowance for each burst, however many guests share it.
 */

/** The longest that a burst may be held up, µs: more waits, or longer ones, are not waited. */
export const MAX_RETRY_US = 1000;

export class RxRetry {
  /** waits that the burst at hand still has */
  left = 0;
  readonly #num: number;
  readonly #delayMs: number;

  /** At most `num` waits of `delayUs` µs a burst. */
  constructor(num = 0, delayUs = 0) {
    const delay = Math.min(delayUs, MAX_RETRY_US);
    this.#num = Math.min(num, Math.floor(MAX_RETRY_US / Math.max(delay, 1)));
    this.#delayMs = delay / 1000;
  }

  /** A new burst begins. @param outside it comes from an uplink; others are not waited for */
  begin(outside: boolean): void {
    this.left = outside ? this.#num : 0;
  }

  /** Waits once; the burst has one wait less. There must be one. */
  wait(): void {
    this.left--;
    const until = performance.now() + this.#delayMs;
    while (performance.now() < until);
  }
}
