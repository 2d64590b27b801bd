/** A thread that marks pages in a dirty log, each of them once, while others do the same. */
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { DirtyLog, type DirtyLogPlace } from '../../src/mem/dirty-log.ts';
import { openWindow, type WindowHandle } from '../../src/mem/window.ts';

interface Setup {
  readonly window: WindowHandle;
  readonly place: DirtyLogPlace;
  /** marks pages `first`, `first + step`, … below `end`, and flushes after `burst` of them */
  readonly marking: { readonly first: number; readonly step: number; readonly end: number; readonly burst: number };
  /** counts the bursts that threads are about to flush; each waits for the others, so that `of` threads flush at once */
  readonly pace: Int32Array;
  readonly of: number;
}

/** Resolves when the thread has marked its pages. */
export function markPages(setup: Setup): Promise<void> {
  const worker = new Worker(new URL(import.meta.url), { workerData: setup });
  return new Promise((resolve, reject) => {
    worker.on('error', reject);
    worker.on('exit', () => resolve());
  });
}

function run({ window, place, marking, pace, of }: Setup): void {
  const windows: ReturnType<typeof openWindow>[] = [];
  windows[window.id] = openWindow(window);
  const log = new DirtyLog(place, windows);
  const { first, step, end, burst } = marking;
  let bursts = 0;
  for (let page = first; page < end; bursts++) {
    for (let i = 0; i < burst && page < end; i++, page += step) log.markGuest(page * 4096, 1);
    Atomics.add(pace, 0, 1);
    while (Atomics.load(pace, 0) < of * (bursts + 1));
    log.flush();
  }
}

if (!isMainThread && (workerData as Partial<Setup> | null)?.marking !== undefined) run(workerData as Setup);
