/**
 * An lcore's thread as the main thread has it: starts it, sends it commands and hears from it.
 */
import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { SwitchError } from '../errors.ts';
import type { WindowHandle } from '../mem/window.ts';
import type { DeviceRecipe } from '../port/devices.ts';
import type { LaneSpec } from '../port/lane-spec.ts';
import { counterBlock, LCORE_SLOTS } from '../stats/counters.ts';
import type { SharedSwitchState } from '../switch/learner.ts';
import type { PortVlan, SwitchConfig } from '../switch/switch-config.ts';
import { createEventfd, drainNow, eventfdFull, signal } from '../sys/eventfd.ts';
import type { PackedMemory, VringConfig } from '../vhost/datapath.ts';
import type { LcoreEvents } from './lcore.ts';
import {
  type Answer,
  CONTROL_CALLING,
  CONTROL_POSTED,
  CONTROL_WORDS,
  type Command,
  type LcoreSetup,
  type Letter,
  type Report,
} from './mailbox.ts';
import type { PollConfig } from './poll-pace.ts';
import type { LanePlace } from './port-table.ts';
import { workerUrl } from './worker-url.ts';

interface Waiting {
  resolve(value: Answer): void;
  reject(error: Error): void;
}

/** How often the thread is looked at, ms: no longer can a guest's eventfd hold it up than twice that. */
const WATCH_MS = 50;

/** What the main thread hears of an lcore. */
export interface LcoreThreadEvents extends LcoreEvents {
  /** The lcore hung while it signalled this eventfd, a guest's. It goes on now; the guest should not. */
  onStuckCall(fd: number): void;
  /** The lcore has failed: nothing is switched any more. */
  onDeath(error: Error): void;
}

export interface LcoreOptions {
  readonly config: SwitchConfig;
  readonly poll: PollConfig;
  /** CPUs to run on, or none for any */
  readonly cpus: readonly number[];
  /** a window of the lcore's own, which it keeps until it is stopped */
  readonly bounce: WindowHandle;
  /** what the lcores of one switch share, where there are several */
  readonly shared: SharedSwitchState | undefined;
}

export class LcoreThread {
  /** The lcore's counters, LCORE_SLOTS. */
  readonly counters = counterBlock(LCORE_SLOTS);
  readonly #control = new Int32Array(new SharedArrayBuffer(4 * CONTROL_WORDS));
  readonly #wakeFd = createEventfd();
  readonly #waiting = new Map<number, Waiting>();
  readonly #worker: Worker;
  readonly #events: LcoreThreadEvents;
  readonly #exited: Promise<void>;
  readonly #rounds = new Float64Array(this.counters);
  readonly #watchTimer = setInterval(() => this.#watch(), WATCH_MS);
  #lastCalling = -1;
  #lastRounds = 0;
  #epoch = 0;
  #dead: Error | undefined;

  private constructor(options: LcoreOptions, events: LcoreThreadEvents, onReady: () => void) {
    this.#events = events;
    this.#control[CONTROL_CALLING] = -1;
    this.#watchTimer.unref();
    const setup: LcoreSetup = {
      ...options,
      control: this.#control.buffer,
      counters: this.counters,
      wakeFd: this.#wakeFd,
    };
    this.#worker = new Worker(workerUrl(import.meta.url, './worker'), { workerData: setup, trackUnmanagedFds: false });
    this.#worker.on('message', (message: Report) => (message.type === 'ready' ? onReady() : this.#hear(message)));
    this.#exited = new Promise((resolve) => {
      this.#worker.on('error', (error: Error) => this.#die(error, () => events.onDeath(error)));
      this.#worker.on('exit', () => {
        this.#die(new SwitchError('LCORE_STOPPED', 'the lcore has stopped'), () => {});
        resolve();
      });
    });
  }

  /**
   * Starts the thread; resolves when it polls. Rejects with the worker's error, e.g. a SysError when it cannot be pinned.
   */
  static async start(options: LcoreOptions, events: LcoreThreadEvents): Promise<LcoreThread> {
    const ready = Promise.withResolvers<void>();
    let up = false;
    const onDeath = (error: Error) => (up ? events.onDeath(error) : ready.reject(error));
    const thread = new LcoreThread(options, { ...events, onDeath }, ready.resolve);
    try {
      await ready.promise;
    } catch (error) {
      await thread.stop();
      throw error;
    }
    up = true;
    return thread;
  }

  /**
   * A write to a guest's eventfd that has not returned since the last look hangs if the eventfd is full: the guest has filled it and
   * made it blocking. If it is not, the machine is busy: waking who waits for the eventfd is where a thread likes to lose its CPU.
   */
  #watch(): void {
    const calling = this.#control[CONTROL_CALLING];
    const rounds = this.#rounds[LCORE_SLOTS.rounds];
    const hangs = calling >= 0 && calling === this.#lastCalling && rounds === this.#lastRounds;
    this.#lastCalling = calling;
    this.#lastRounds = rounds;
    if (!hangs || !eventfdFull(calling)) return;
    drainNow(calling);
    this.#events.onStuckCall(calling);
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
      case 'miss':
        this.#events.onMiss(message.port, message.vring, message.iova, message.write);
        return;
    }
  }

  #post(command: Command): Promise<Answer> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead);
    const epoch = ++this.#epoch;
    const answer = new Promise<Answer>((resolve, reject) => {
      this.#waiting.set(epoch, { resolve, reject });
    });
    this.#worker.postMessage({ epoch, command } satisfies Letter);
    Atomics.add(this.#control, CONTROL_POSTED, 1);
    signal(this.#wakeFd);
    return answer;
  }

  async addPort(
    port: number,
    counters: SharedArrayBuffer,
    vlan: PortVlan | undefined,
    lane: LanePlace | undefined,
  ): Promise<void> {
    await this.#post({ type: 'addPort', port, counters, vlan, lane });
  }

  async openLane(port: number, spec: LaneSpec, counters: SharedArrayBuffer): Promise<void> {
    await this.#post({ type: 'openLane', port, spec, counters });
  }

  /** @returns buffers that the guest has yet to get back */
  async settleLane(port: number): Promise<number> {
    return (await this.#post({ type: 'settleLane', port })) as number;
  }

  async closeLane(port: number): Promise<void> {
    await this.#post({ type: 'closeLane', port });
  }

  async addDevice(port: number, counters: SharedArrayBuffer, recipe: DeviceRecipe): Promise<void> {
    await this.#post({ type: 'addDevice', port, counters, recipe });
  }

  async removePort(port: number): Promise<void> {
    await this.#post({ type: 'removePort', port });
  }

  async setMemory(port: number, memory: PackedMemory): Promise<void> {
    await this.#post({ type: 'setMemory', port, memory });
  }

  /** The vring counts into `counters` (VRING_SLOTS). `state`: what lcores share of a ring that several of them use. */
  async startVring(
    port: number,
    vring: number,
    config: VringConfig,
    counters: SharedArrayBuffer,
    state: SharedArrayBuffer | undefined,
  ): Promise<void> {
    await this.#post({ type: 'startVring', port, vring, config, counters, state });
  }

  /** Switches a frame as if the guest behind the port had sent it. */
  async inject(port: number, frame: Uint8Array): Promise<void> {
    await this.#post({ type: 'inject', port, frame });
  }

  /** Learns addresses, 6 bytes each, as if the guest behind the port had just used them. */
  async learn(port: number, macs: Uint8Array): Promise<void> {
    await this.#post({ type: 'learn', port, macs });
  }

  /** The addresses that have been learned on a port, 6 bytes each. */
  async known(port: number): Promise<Uint8Array> {
    return (await this.#post({ type: 'known', port })) as Uint8Array;
  }

  async stopVring(port: number, vring: number): Promise<number | undefined> {
    return (await this.#post({ type: 'stopVring', port, vring })) as number | undefined;
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
    clearInterval(this.#watchTimer);
    closeSync(this.#wakeFd);
  }
}
