/**
 * When an lcore without packets sleeps, and where its time goes.
 *
 * Looking on in vain is paid for by work: for every microsecond of work an lcore may look on for a share of one, up to a bound. So it
 * does not sleep in the short gaps of a full load, and with little to do it burns little. Where a gap in which it slept turns out so short
 * that looking on had been cheaper, it looks on in the next one for as long as a sleep costs.
 */
import { LCORE_SLOTS } from '../stats/counters.ts';

/** How an lcore waits for packets. */
export interface PollConfig {
  /** 'adaptive': it sleeps when it has looked on in vain for long enough; 'busy': never */
  readonly mode: 'adaptive' | 'busy';
  /** how long it looks on at most, µs */
  readonly spinUs: number;
  /** and for how much of the time it has worked, 0 to 1 */
  readonly spinShare: number;
}

/** What going to sleep and waking up costs, ms: in a gap below that it was not worth it. */
const SLEEP_COST_MS = 0.05;
const US = 1000;

/** Times are those of performance.now(), ms. */
export class PollPace {
  readonly #config: PollConfig;
  readonly #counters: Float64Array;
  readonly #maxMs: number;
  /** until when the time is accounted for; a field that begins as undefined would hold each new time as an object of its own */
  #accounted = 0;
  /** how long it may still look on in vain */
  #credit = 0;
  /** how long it has, since there was work */
  #vain = 0;
  #gapWasBrief = false;

  /** @param counters a block of LCORE_SLOTS, where the times go */
  constructor(config: PollConfig, counters: Float64Array, now: number) {
    this.#config = config;
    this.#counters = counters;
    this.#maxMs = config.spinUs / US;
    this.#accounted = now;
  }

  /** There has been work since the last call. */
  worked(now: number): void {
    const ms = this.#take(now, LCORE_SLOTS.busy_us);
    this.#credit = Math.min(this.#maxMs, this.#credit + ms * this.#config.spinShare);
    this.#vain = 0;
  }

  /** There has been none. @returns true if it is time to sleep */
  lookedInVain(now: number): boolean {
    const ms = this.#take(now, LCORE_SLOTS.idle_us);
    this.#credit -= ms;
    this.#vain += ms;
    if (this.#credit > 0 || this.#config.mode === 'busy') return false;
    this.#credit = 0;
    return !this.#gapWasBrief || this.#vain >= Math.min(SLEEP_COST_MS, this.#maxMs);
  }

  /** It has slept since the last call. */
  slept(now: number): void {
    const gap = this.#vain + this.#take(now, LCORE_SLOTS.sleep_us);
    this.#gapWasBrief = gap < SLEEP_COST_MS;
    this.#vain = 0;
  }

  #take(now: number, slot: number): number {
    const ms = now - this.#accounted;
    this.#accounted = now;
    this.#counters[slot] += ms * US;
    return ms;
  }
}
