/**
 * Which transmit queue should be polled by another lcore: one that takes load from the busiest to the one with the most time to spare.
 */

/** What a transmit queue has cost lately. */
export interface QueueLoad<Queue> {
  readonly queue: Queue;
  /** index of the lcore that polls it */
  readonly at: number;
  /** in any unit, the same for all */
  readonly load: number;
}

/** An lcore with less to do needs no relief. */
const BUSY_SHARE = 0.5;
/** A move must take so much of its time from the busiest lcore; one for less is followed by the next one back. */
const MIN_GAIN = 0.1;

/**
 * @param busy for each lcore, the share of its time with packets, 0 to 1
 * @returns the queue to move, and the index of the lcore to move it to; undefined where that would not help
 */
export function chooseMove<Queue>(
  busy: readonly number[],
  queues: readonly QueueLoad<Queue>[],
): { queue: Queue; to: number } | undefined {
  const most = Math.max(...busy);
  const least = Math.min(...busy);
  if (most < BUSY_SHARE) return undefined;
  const from = busy.indexOf(most);
  const to = busy.indexOf(least);
  const there = queues.filter(({ at }) => at === from);
  const total = there.reduce((sum, { load }) => sum + load, 0);
  if (total === 0) return undefined;
  let best: Queue | undefined;
  let bestMost = most - MIN_GAIN;
  for (const { queue, load } of there) {
    const share = (most * load) / total;
    const after = Math.max(most - share, least + share);
    if (after > bestMost) continue;
    best = queue;
    bestMost = after;
  }
  return best === undefined ? undefined : { queue: best, to };
}
