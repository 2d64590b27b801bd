/** When frames are due: the clock fills the bucket at a steady rate, and what is sent is taken out. */

export class TokenBucket {
  /** frames that became due since the last `reset`, a part of one too */
  due = 0;
  /** of these: not offered because who sends was not there in time, more than a bucket late */
  missed = 0;
  /** of these: not taken in time by who should have taken them */
  refused = 0;
  /** how many times some were missed */
  stalls = 0;
  readonly #perNs: number;
  readonly #depth: number;
  #tokens = 0;

  /**
   * @param rate frames a second
   * @param depth frames that may be sent late, at least 1
   */
  constructor(rate: number, depth: number) {
    if (!(rate > 0) || !(depth >= 1))
      throw new RangeError(`no bucket of ${depth} frames fills with ${rate} frames a second`);
    this.#perNs = rate / 1e9;
    this.#depth = depth;
  }

  /**
   * Lets time pass. Frames that were due before and not taken out had found no room; if the bucket overflows, they are what is
   * refused, and the rest of what overflows is missed.
   * @param ns whole nanoseconds: small numbers, which cost no memory to be passed
   * @returns whole frames that are to be sent now
   */
  advance(ns: number): number {
    const became = this.#perNs * ns;
    const waiting = Math.floor(this.#tokens);
    this.due += became;
    this.#tokens += became;
    const over = this.#tokens - this.#depth;
    if (over > 0) {
      const refused = Math.min(over, waiting);
      this.refused += refused;
      if (over > refused) {
        this.missed += over - refused;
        this.stalls++;
      }
      this.#tokens = this.#depth;
    }
    return Math.floor(this.#tokens);
  }

  /** `n` frames have been sent, which were due. */
  take(n: number): void {
    this.#tokens -= n;
  }

  /** Counts anew; what is due stays so. */
  reset(): void {
    this.due = 0;
    this.missed = 0;
    this.refused = 0;
    this.stalls = 0;
  }
}
