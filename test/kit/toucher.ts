/** A thread that touches bytes of a window when told to: it may have to wait for a page, and its owner not with it. */
import { setTimeout as sleep } from 'node:timers/promises';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { openWindow, type WindowHandle } from '../../src/mem/window.ts';

interface Setup {
  readonly window: WindowHandle;
  /** [0]: commands given, [1]: done, [2]: offset, or −1 to end; [3]: byte to write, or −1 to read; [4]: the byte found */
  readonly words: Int32Array;
}

export class Toucher {
  readonly #words = new Int32Array(new SharedArrayBuffer(20));
  readonly #exited: Promise<void>;

  constructor(window: WindowHandle) {
    const setup: Setup = { window, words: this.#words };
    const worker = new Worker(new URL(import.meta.url), { workerData: setup });
    this.#exited = new Promise((resolve, reject) => {
      worker.on('error', reject);
      worker.on('exit', () => resolve());
    });
  }

  /** Has the thread read the byte at `off`, or write it. Does not wait. */
  touch(off: number, write = -1): void {
    this.#words[2] = off;
    this.#words[3] = write;
    Atomics.add(this.#words, 0, 1);
    Atomics.notify(this.#words, 0);
  }

  /** True while the thread is at it. */
  get waiting(): boolean {
    return Atomics.load(this.#words, 1) !== Atomics.load(this.#words, 0);
  }

  /** Resolves with the byte touched last when it has been. */
  async done(timeoutMs = 5000): Promise<number> {
    const deadline = Date.now() + timeoutMs;
    while (this.waiting) {
      if (Date.now() > deadline) throw new Error(`the thread still waits after ${timeoutMs} ms`);
      await sleep(1);
    }
    return this.#words[4];
  }

  /** Ends the thread, which must not be waiting. */
  async stop(): Promise<void> {
    this.touch(-1);
    await this.#exited;
  }
}

function obey({ window, words }: Setup): void {
  const { u8 } = openWindow(window);
  for (let n = 0; ; n++) {
    Atomics.wait(words, 0, n);
    const off = words[2];
    if (off < 0) return;
    if (words[3] >= 0) u8[off] = words[3];
    words[4] = u8[off];
    Atomics.add(words, 1, 1);
  }
}

if (!isMainThread && (workerData as Partial<Setup> | null)?.words !== undefined) obey(workerData as Setup);
