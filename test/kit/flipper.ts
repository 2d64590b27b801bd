/**
 * A thread that keeps changing words of shared memory under the eyes of whoever reads them.
 */
import { isMainThread, Worker, workerData } from 'node:worker_threads';

/** At window offset `off` (a multiple of 4) lies one of `values` after the other. */
export interface Flip {
  readonly off: number;
  readonly values: readonly number[];
}

interface Setup {
  readonly memory: WebAssembly.Memory;
  readonly flips: readonly Flip[];
  /** [0]: rounds done; [1]: not zero to stop */
  readonly control: Int32Array;
}

/** A running flipper. */
export class Flipper {
  readonly #control = new Int32Array(new SharedArrayBuffer(8));
  readonly #worker: Worker;
  readonly #exited: Promise<void>;

  constructor(memory: WebAssembly.Memory, flips: readonly Flip[]) {
    const setup: Setup = { memory, flips, control: this.#control };
    this.#worker = new Worker(new URL(import.meta.url), { workerData: setup });
    this.#exited = new Promise((resolve, reject) => {
      this.#worker.on('error', reject);
      this.#worker.on('exit', () => resolve());
    });
  }

  get rounds(): number {
    return Atomics.load(this.#control, 0);
  }

  /** Resolves when it flips. */
  async started(): Promise<void> {
    while (this.rounds === 0) await new Promise((resolve) => setImmediate(resolve));
  }

  async stop(): Promise<void> {
    Atomics.store(this.#control, 1, 1);
    await this.#exited;
  }
}

function flipUntilStopped({ memory, flips, control }: Setup): void {
  const words = new Int32Array(memory.buffer);
  for (let round = 0; Atomics.load(control, 1) === 0; round++) {
    for (const { off, values } of flips) words[off >> 2] = values[(round + (off >> 4)) % values.length];
    Atomics.add(control, 0, 1);
  }
}

if (!isMainThread && (workerData as Partial<Setup> | null)?.flips !== undefined) flipUntilStopped(workerData as Setup);
