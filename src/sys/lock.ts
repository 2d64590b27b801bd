/**
 * A lock in shared memory between worker threads: one word of an Int32Array. Held for less than a burst, so it spins before it
 * sleeps. The main thread, which must not wait, takes none.
 */

const FREE = 0;
const HELD = 1;
/** held, and somebody may be asleep */
const CONTENDED = 2;

/** A burst takes a few microseconds; a holder that is not running at all takes longer. */
const MAX_SPINS = 2000;

/** Returns when the calling thread has the lock. */
export function acquire(words: Int32Array, at: number): void {
  for (let spins = 0; spins < MAX_SPINS; spins++) if (Atomics.compareExchange(words, at, FREE, HELD) === FREE) return;
  while (Atomics.exchange(words, at, CONTENDED) !== FREE) Atomics.wait(words, at, CONTENDED);
}

export function release(words: Int32Array, at: number): void {
  if (Atomics.exchange(words, at, FREE) === CONTENDED) Atomics.notify(words, at, 1);
}
