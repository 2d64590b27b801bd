/**
 * Looks from time to time at what lcores and queues have done, and moves a queue where lcores differ too much: one at a time, so that the
 * next look sees what came of it.
 */
import type { LcoreGroup, TransmitQueue } from '../lcore/lcore-group.ts';
import { chooseMove } from '../lcore/rebalance.ts';
import { VRING_SLOTS } from '../stats/counters.ts';

/** A frame costs as much as copying so many bytes. */
const BYTES_PER_FRAME = 512;

interface RebalancerEvents {
  /** A queue has moved to the lcore of index `to`. */
  onMove(queue: TransmitQueue, to: number): void;
  /** An lcore has failed. */
  onFailure(error: Error): void;
}

/** What it needs of the lcores. */
type Lcores = Pick<LcoreGroup, 'lcoreCounters' | 'transmitQueues' | 'vringCounters' | 'moveQueue'>;

export class Rebalancer {
  readonly #lcores: Lcores;
  readonly #events: RebalancerEvents;
  readonly #timer: NodeJS.Timeout;
  #busyBefore: readonly number[];
  /** by port and vring: what it had cost at the last look */
  #costBefore = new Map<string, number>();
  #lookedAt = performance.now();
  #looking: Promise<void> | undefined;

  /** Looks every so many seconds. */
  constructor(lcores: Lcores, seconds: number, events: RebalancerEvents) {
    this.#lcores = lcores;
    this.#events = events;
    this.#busyBefore = this.#busyTimes();
    this.#timer = setInterval(() => {
      this.#looking ??= this.#look()
        .catch(events.onFailure)
        .finally(() => {
          this.#looking = undefined;
        });
    }, seconds * 1000);
  }

  #busyTimes(): number[] {
    return this.#lcores.lcoreCounters.map(({ counters }) => counters.busy_us);
  }

  async #look(): Promise<void> {
    const now = performance.now();
    const us = 1000 * (now - this.#lookedAt);
    const times = this.#busyTimes();
    const busy = times.map((time, i) => Math.min(1, (time - this.#busyBefore[i]) / us));
    const costs = new Map<string, number>();
    const queues = this.#lcores.transmitQueues.map((queue) => {
      const key = `${queue.port}/${queue.vring}`;
      const counters = this.#lcores.vringCounters(queue.port)[queue.vring];
      const cost =
        counters === undefined
          ? 0
          : counters[VRING_SLOTS.good_packets] + counters[VRING_SLOTS.good_bytes] / BYTES_PER_FRAME;
      costs.set(key, cost);
      // a device that has come anew under the number of another has counted less
      return { queue, at: queue.at, load: Math.max(0, cost - (this.#costBefore.get(key) ?? 0)) };
    });
    this.#busyBefore = times;
    this.#costBefore = costs;
    this.#lookedAt = now;
    const move = chooseMove(busy, queues);
    if (move === undefined) return;
    const { queue, to } = move;
    if (await this.#lcores.moveQueue(queue.port, queue.pair, to)) this.#events.onMove(queue, to);
  }

  /** Resolves when it moves nothing any more. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#looking;
  }
}
