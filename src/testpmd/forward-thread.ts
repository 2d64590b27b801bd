/**
 * A forwarding thread as the main thread has it: starts it, tells it what to do, and waits until that is done.
 */
import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { SwitchError } from '../errors.ts';
import { workerUrl } from '../lcore/worker-url.ts';
import type { WindowHandle } from '../mem/window.ts';
import { createEventfd, signal } from '../sys/eventfd.ts';
import { CONTROL_POSTED, CONTROL_WORDS, type Command, type ForwardSetup, type Letter, type Report } from './letters.ts';

interface Waiting {
  resolve(): void;
  reject(error: Error): void;
}

export interface ForwardThreadOptions {
  /** CPUs to run on, or none for any */
  readonly cpus: readonly number[];
  /** 'adaptive': a thread without work sleeps until something comes; 'busy': it never does */
  readonly poll: 'adaptive' | 'busy';
  /** a window that the thread keeps until it has ended */
  readonly window: WindowHandle;
}

export class ForwardThread {
  /** its window, for whoever takes it back */
  readonly window: WindowHandle;
  readonly #control = new Int32Array(new SharedArrayBuffer(4 * CONTROL_WORDS));
  readonly #wakeFd = createEventfd();
  readonly #waiting = new Map<number, Waiting>();
  readonly #worker: Worker;
  readonly #exited: Promise<void>;
  #posted = 0;
  #dead: Error | undefined;

  private constructor(options: ForwardThreadOptions, onReady: () => void, onDeath: (error: Error) => void) {
    this.window = options.window;
    const setup: ForwardSetup = { ...options, control: this.#control.buffer, wakeFd: this.#wakeFd };
    this.#worker = new Worker(workerUrl(import.meta.url, './forward-worker'), {
      workerData: setup,
      trackUnmanagedFds: false,
    });
    this.#worker.on('message', (report: Report) => (report.type === 'ready' ? onReady() : this.#hear(report)));
    this.#exited = new Promise((resolve) => {
      this.#worker.on('error', (error: Error) => this.#die(error, onDeath));
      this.#worker.on('exit', () => {
        this.#die(new SwitchError('LCORE_STOPPED', 'the forwarding thread has stopped'), () => {});
        resolve();
      });
    });
  }

  /** Starts the thread. Rejects when it cannot be pinned; `onDeath` hears when it fails later. */
  static async start(options: ForwardThreadOptions, onDeath: (error: Error) => void): Promise<ForwardThread> {
    const ready = Promise.withResolvers<void>();
    let up = false;
    const thread = new ForwardThread(options, ready.resolve, (error) => (up ? onDeath(error) : ready.reject(error)));
    try {
      await ready.promise;
    } catch (error) {
      await thread.end();
      throw error;
    }
    up = true;
    return thread;
  }

  #die(error: Error, tell: (error: Error) => void): void {
    if (this.#dead !== undefined) return;
    this.#dead = error;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    tell(error);
  }

  #hear({ number, error }: Report & { type: 'done' }): void {
    const waiting = this.#waiting.get(number);
    this.#waiting.delete(number);
    if (error === undefined) waiting?.resolve();
    else waiting?.reject(error);
  }

  /** Has a command carried out. */
  tell(command: Command): Promise<void> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead);
    const number = ++this.#posted;
    const done = new Promise<void>((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject });
    });
    this.#worker.postMessage({ number, command } satisfies Letter);
    Atomics.add(this.#control, CONTROL_POSTED, 1);
    signal(this.#wakeFd);
    return done;
  }

  /** Ends the thread; resolves when it has gone. */
  async end(): Promise<void> {
    if (this.#dead === undefined) await this.tell({ type: 'end' });
    await this.#exited;
    closeSync(this.#wakeFd);
  }
}
