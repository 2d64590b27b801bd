/**
 * Time in seconds and nanoseconds, two small numbers, so that nothing is rounded and no BigInt is made. To be read once a burst.
 */

/** CLOCK_MONOTONIC: the same in all threads of a machine. */
export class MonotonicClock {
  sec = 0;
  nsec = 0;

  read(): void {
    // The array goes no further than this: mostly optimised code does not make it, else it is 48 bytes that die at once.
    const now = process.hrtime();
    this.sec = now[0];
    this.nsec = now[1];
  }
}

/** Time since 1970 that goes on as CLOCK_MONOTONIC does: what is set to another time meanwhile is not followed. */
export class WallClock {
  sec = 0;
  nsec = 0;
  readonly #monotonic = new MonotonicClock();
  readonly #offSec: number;
  readonly #offNsec: number;

  constructor() {
    this.#monotonic.read();
    const { timeOrigin } = performance;
    const now = timeOrigin + performance.now();
    const sec = Math.floor(now / 1000);
    this.#offSec = sec - this.#monotonic.sec;
    this.#offNsec = Math.floor((now - 1000 * sec) * 1e6) - this.#monotonic.nsec;
  }

  read(): void {
    this.#monotonic.read();
    let sec = this.#monotonic.sec + this.#offSec;
    let nsec = this.#monotonic.nsec + this.#offNsec;
    if (nsec < 0) {
      nsec += 1e9;
      sec--;
    } else if (nsec >= 1e9) {
      nsec -= 1e9;
      sec++;
    }
    this.sec = sec;
    this.nsec = nsec;
  }
}
