/**
 * A log that a peer cannot flood: a token bucket of lines, and a count of those left out.
 */

/** How grave a line is. */
export type LogLevel = 'info' | 'warn' | 'error';
/** Takes a line, without its end. */
export type Log = (level: LogLevel, text: string) => void;

export interface LimitedLogOptions {
  /** Put in front of every line, for example `socket usvhost: device 0: `. */
  prefix?: string;
  /** Lines that may come at once. Default 20. */
  burst?: number;
  /** Lines a second in the long run. Default 1. */
  perSecond?: number;
}

export class LimitedLog {
  readonly #prefix: string;
  readonly #sink: Log;
  readonly #burst: number;
  readonly #perSecond: number;
  #tokens: number;
  #filledAt = performance.now();
  #suppressed = 0;

  constructor(sink: Log, { prefix = '', burst = 20, perSecond = 1 }: LimitedLogOptions = {}) {
    this.#prefix = prefix;
    this.#sink = sink;
    this.#burst = burst;
    this.#perSecond = perSecond;
    this.#tokens = burst;
  }

  readonly log: Log = (level, text) => {
    const now = performance.now();
    this.#tokens = Math.min(this.#burst, this.#tokens + ((now - this.#filledAt) / 1000) * this.#perSecond);
    this.#filledAt = now;
    if (this.#tokens < 1) {
      this.#suppressed++;
      return;
    }
    this.#tokens--;
    this.flush();
    this.#sink(level, this.#prefix + text);
  };

  /** Tells how many lines were left out since the last one, if any. */
  flush(): void {
    if (this.#suppressed === 0) return;
    this.#sink('warn', `${this.#prefix}${this.#suppressed} more lines like this suppressed`);
    this.#suppressed = 0;
  }
}
