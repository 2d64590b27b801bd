/**
 * An lcore's thread as the main thread has it: starts it, sends it commands and hears from it.
 */
import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { SwitchError } from '../errors.ts';
import type { Chunk } from '../mem/address-map.ts';
import type { WindowHandle } from '../mem/window.ts';
import { counterBlock, LCORE_SLOTS } from '../stats/counters.ts';
import type { SwitchConfig } from '../switch/switch-config.ts';
import { createEventfd, signal } from '../sys/eventfd.ts';
import type { Datapath } from '../virtio-net/datapath.ts';
import type { VringConfig } from '../virtqueue/split-ring.ts';
import type { LcoreEvents } from './lcore.ts';
import { CONTROL_POSTED, CONTROL_WORDS, type Command, type LcoreSetup, type Letter, type Report } from './mailbox.ts';
import { workerUrl } from './worker-url.ts';

interface Waiting {
  resolve(value: number | undefined): void;
  reject(error: Error): void;
}

export interface LcoreOptions {
  readonly config: SwitchConfig;
  readonly poll: 'adaptive' | 'busy';
  /** CPUs to run on, or none for any */
  readonly cpus: readonly number[];
}

export class LcoreThread implements Datapath {
  /** The lcore's counters, LCORE_SLOTS. */
  readonly counters = counterBlock(LCORE_SLOTS);
  readonly #control = new Int32Array(new SharedArrayBuffer(4 * CONTROL_WORDS));
  readonly #wakeFd = createEventfd();
  readonly #waiting = new Map<number, Waiting>();
  readonly #worker: Worker;
  readonly #events: LcoreEvents;
  readonly #exited: Promise<void>;
  #epoch = 0;
  #dead: Error | undefined;

  private constructor(
    options: LcoreOptions,
    events: LcoreEvents,
    onReady: () => void,
    onDeath: (error: Error) => void,
  ) {
    this.#events = events;
    const setup: LcoreSetup = {
      ...options,
      control: this.#control.buffer,
      counters: this.counters,
      wakeFd: this.#wakeFd,
    };
    this.#worker = new Worker(workerUrl(import.meta.url, './worker'), { workerData: setup, trackUnmanagedFds: false });
    this.#worker.on('message', (message: Report) => (message.type === 'ready' ? onReady() : this.#hear(message)));
    this.#exited = new Promise((resolve) => {
      this.#worker.on('error', (error: Error) => this.#die(error, onDeath));
      this.#worker.on('exit', () => {
        this.#die(new SwitchError('LCORE_STOPPED', 'the lcore has stopped'), () => {});
        resolve();
      });
    });
  }

  /**
   * Starts the thread; resolves when it polls. `onDeath` hears of an lcore that fails later.
   * Rejects with the worker's error, e.g. a SysError when it cannot be pinned.
   */
  static async start(
    options: LcoreOptions,
    events: LcoreEvents,
    onDeath: (error: Error) => void,
  ): Promise<LcoreThread> {
    const ready = Promise.withResolvers<void>();
    let up = false;
    const thread = new LcoreThread(options, events, ready.resolve, (error) =>
      up ? onDeath(error) : ready.reject(error),
    );
    await ready.promise;
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

  #hear(message: Report): void {
    switch (message.type) {
      case 'done': {
        const waiting = this.#waiting.get(message.epoch);
        this.#waiting.delete(message.epoch);
        if (message.error === undefined) waiting?.resolve(message.value);
        else waiting?.reject(new SwitchError('LCORE_COMMAND', message.error));
        return;
      }
      case 'registered':
        this.#events.onRegistered(message.port, message.first, message.last);
        return;
      case 'duplicate':
        this.#events.onDuplicate(message.port, message.first, message.last);
        return;
      case 'fault':
        this.#events.onFault(message.port, message.vring, message.fault);
        return;
    }
  }

  #post(command: Command): Promise<number | undefined> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead);
    const epoch = ++this.#epoch;
    const answer = new Promise<number | undefined>((resolve, reject) => {
      this.#waiting.set(epoch, { resolve, reject });
    });
    this.#worker.postMessage({ epoch, command } satisfies Letter);
    Atomics.add(this.#control, CONTROL_POSTED, 1);
    signal(this.#wakeFd);
    return answer;
  }

  async addPort(port: number, counters: SharedArrayBuffer): Promise<void> {
    await this.#post({ type: 'addPort', port, counters });
  }

  async removePort(port: number): Promise<void> {
    await this.#post({ type: 'removePort', port });
  }

  async setMemory(port: number, chunks: readonly Chunk[], windows: readonly WindowHandle[]): Promise<void> {
    await this.#post({ type: 'setMemory', port, chunks, windows });
  }

  async startVring(port: number, vring: number, config: VringConfig): Promise<void> {
    await this.#post({ type: 'startVring', port, vring, config });
  }

  stopVring(port: number, vring: number): Promise<number | undefined> {
    return this.#post({ type: 'stopVring', port, vring });
  }

  async enableVring(port: number, vring: number, enabled: boolean): Promise<void> {
    await this.#post({ type: 'enableVring', port, vring, enabled });
  }

  async setCall(port: number, vring: number, fd: number): Promise<void> {
    await this.#post({ type: 'setCall', port, vring, fd });
  }

  /** Ends the thread; resolves when it has gone. */
  async stop(): Promise<void> {
    if (this.#dead === undefined) await this.#post({ type: 'stop' });
    await this.#exited;
    closeSync(this.#wakeFd);
  }
}
