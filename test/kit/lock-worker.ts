/** A thread that adds to plain words under a lock, again and again, while others do the same. */
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { acquire, release } from '../../src/sys/lock.ts';

interface Setup {
  /** [0]: the lock; [1], [2]: words that are always equal outside it; [3]: times they were not; [4]: threads that have begun */
  readonly words: Int32Array;
  readonly times: number;
  readonly of: number;
  /** every so many times the holder dawdles, so that others go to sleep */
  readonly dawdle: number;
}

/** Resolves when the thread has had the lock `times` times. */
export function addUnderLock(setup: Setup): Promise<void> {
  const worker = new Worker(new URL(import.meta.url), { workerData: setup });
  return new Promise((resolve, reject) => {
    worker.on('error', reject);
    worker.on('exit', () => resolve());
  });
}

function run({ words, times, of, dawdle }: Setup): void {
  Atomics.add(words, 4, 1);
  while (Atomics.load(words, 4) < of);
  for (let n = 0; n < times; n++) {
    acquire(words, 0);
    const value = words[1];
    if (words[2] !== value) words[3]++;
    words[1] = value + 1;
    if (n % dawdle === 0) for (const until = performance.now() + 1; performance.now() < until; );
    words[2] = value + 1;
    release(words, 0);
  }
}

if (!isMainThread && (workerData as Partial<Setup> | null)?.dawdle !== undefined) run(workerData as Setup);
