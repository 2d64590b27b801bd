/** A thread that learns, moves, flushes and ages addresses of a MAC table that others look up. */
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { MacTable } from '../../src/switch/mac-table.ts';

export const SIZES = { max: 512, portMax: 256, ports: 8 } as const;
/** Addresses are told from others by their first word. */
export const STABLE = 0x1000;
export const FIXED = 0x2000;
export const ROAMING = 0x3000;
/** How many of each kind. */
export const N = 60;
/** Stable ones stay on this port; fixed ones come and go, but on the port that their number says; the others roam over two. */
export const STABLE_PORT = 0;
export const fixedPort = (n: number) => 1 + (n % 3);
export const ROAMING_PORTS = [5, 6] as const;

interface Setup {
  readonly table: SharedArrayBuffer;
  /** [0]: not zero to stop; [1]: rounds done by all */
  readonly control: Int32Array;
  readonly seed: number;
}

export class MacWriter {
  readonly #exited: Promise<void>;

  constructor(setup: Setup) {
    const worker = new Worker(new URL(import.meta.url), { workerData: setup });
    this.#exited = new Promise((resolve, reject) => {
      worker.on('error', reject);
      worker.on('exit', () => resolve());
    });
  }

  /** Resolves when the thread has ended, after `control[0]` was set. */
  get ended(): Promise<void> {
    return this.#exited;
  }
}

function run({ table: memory, control, seed }: Setup): void {
  const table = new MacTable(SIZES.max, SIZES.portMax, SIZES.ports, memory);
  let random = seed;
  const next = (below: number) => {
    random = (Math.imul(random, 1103515245) + 12345) | 0;
    return (random >>> 8) % below;
  };
  for (let now = 0; Atomics.load(control, 0) === 0; now++) {
    for (let i = 0; i < 50; i++) {
      const n = next(N);
      table.learn(FIXED, n, fixedPort(n), now);
      table.learn(ROAMING, n, ROAMING_PORTS[next(2)], now);
    }
    for (let n = 0; n < N; n++) table.learn(STABLE, n, STABLE_PORT, now + 1_000_000);
    if (now % 7 === 0) table.flushPort(fixedPort(next(3)));
    if (now % 11 === 0) table.age(now, 3);
    Atomics.add(control, 1, 1);
  }
}

if (!isMainThread && (workerData as Partial<Setup> | null)?.seed !== undefined) run(workerData as Setup);
