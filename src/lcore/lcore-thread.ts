/**
 * An lcore's thread as the main thread has it: starts it, sends it commands and hears from it.
 */
import type { WindowHandle } from '../mem/window.ts';
import type { DeviceRecipe } from '../port/devices.ts';
import { counterBlock, LCORE_SLOTS } from '../stats/counters.ts';
import type { SharedSwitchState } from '../switch/learner.ts';
import type { PortVlan, SwitchConfig } from '../switch/switch-config.ts';
import { drainNow, eventfdFull } from '../sys/eventfd.ts';
import type { PackedMemory, VringConfig } from '../vhost/datapath.ts';
import type { GuestAddress } from '../virtio-net/net-state.ts';
import type { LcoreEvents } from './lcore.ts';
import { type Answer, CONTROL_CALLING, CONTROL_WORDS, type Command, type LcoreSetup, type News } from './mailbox.ts';
import type { PollConfig } from './poll-pace.ts';
import { PostedThread } from './posted-thread.ts';
import { workerUrl } from './worker-url.ts';

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
  readonly counters: SharedArrayBuffer;
  readonly #control: Int32Array<SharedArrayBuffer>;
  readonly #thread: PostedThread<Command, Answer, News>;
  readonly #events: LcoreThreadEvents;
  readonly #rounds: Float64Array;
  readonly #watchTimer = setInterval(() => this.#watch(), WATCH_MS);
  #lastCalling = -1;
  #lastRounds = 0;

  private constructor(
    thread: PostedThread<Command, Answer, News>,
    control: Int32Array<SharedArrayBuffer>,
    counters: SharedArrayBuffer,
    events: LcoreThreadEvents,
  ) {
    this.#thread = thread;
    this.#control = control;
    this.counters = counters;
    this.#rounds = new Float64Array(counters);
    this.#events = events;
    this.#watchTimer.unref();
  }

  /**
   * Starts the thread; resolves when it polls. Rejects with the worker's error, e.g. a SysError when it cannot be pinned.
   */
  static async start(options: LcoreOptions, events: LcoreThreadEvents): Promise<LcoreThread> {
    const control = new Int32Array(new SharedArrayBuffer(4 * CONTROL_WORDS));
    control[CONTROL_CALLING] = -1;
    const counters = counterBlock(LCORE_SLOTS);
    const thread = await PostedThread.start<Command, Answer, News, LcoreSetup>({
      url: workerUrl(import.meta.url, './worker'),
      control,
      setup: { ...options, counters },
      onNews: (news) => hear(events, news),
      onDeath: (error) => events.onDeath(error),
    });
    return new LcoreThread(thread, control, counters, events);
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

  async addPort(port: number, counters: SharedArrayBuffer, vlan: PortVlan | undefined): Promise<void> {
    await this.#thread.post({ type: 'addPort', port, counters, vlan });
  }

  async addDevice(port: number, counters: SharedArrayBuffer, recipe: DeviceRecipe): Promise<void> {
    await this.#thread.post({ type: 'addDevice', port, counters, recipe });
  }

  async removePort(port: number): Promise<void> {
    await this.#thread.post({ type: 'removePort', port });
  }

  async setMemory(port: number, memory: PackedMemory): Promise<void> {
    await this.#thread.post({ type: 'setMemory', port, memory });
  }

  /** The vring counts into `counters` (VRING_SLOTS). `state`: what lcores share of a ring that several of them use. */
  async startVring(
    port: number,
    vring: number,
    config: VringConfig,
    counters: SharedArrayBuffer,
    state: SharedArrayBuffer | undefined,
  ): Promise<void> {
    await this.#thread.post({ type: 'startVring', port, vring, config, counters, state });
  }

  /** Switches an untagged frame as if the guest behind the port had sent it, in each of its VLANs. */
  async inject(port: number, frame: Uint8Array): Promise<void> {
    await this.#thread.post({ type: 'inject', port, frame });
  }

  /** Learns addresses, as if the guest behind the port had just used them. */
  async learn(port: number, addresses: readonly GuestAddress[]): Promise<void> {
    await this.#thread.post({ type: 'learn', port, addresses });
  }

  /** The addresses that have been learned on a port. */
  async known(port: number): Promise<readonly GuestAddress[]> {
    return (await this.#thread.post({ type: 'known', port })) as readonly GuestAddress[];
  }

  /** From now on nothing longer leaves by an uplink: see UplinkConfig. */
  async setMtu(port: number, mtu: number): Promise<void> {
    await this.#thread.post({ type: 'setMtu', port, mtu });
  }

  async stopVring(port: number, vring: number): Promise<number | undefined> {
    return (await this.#thread.post({ type: 'stopVring', port, vring })) as number | undefined;
  }

  async enableVring(port: number, vring: number, enabled: boolean): Promise<void> {
    await this.#thread.post({ type: 'enableVring', port, vring, enabled });
  }

  async setCall(port: number, vring: number, fd: number): Promise<void> {
    await this.#thread.post({ type: 'setCall', port, vring, fd });
  }

  /** Ends the thread; resolves when it has gone. */
  async stop(): Promise<void> {
    if (!this.#thread.dead) await this.#thread.post({ type: 'stop' });
    await this.#thread.gone();
    clearInterval(this.#watchTimer);
  }
}

function hear(events: LcoreThreadEvents, news: News): void {
  switch (news.type) {
    case 'registered':
      events.onRegistered(news.port, news.first, news.last);
      return;
    case 'duplicate':
      events.onDuplicate(news.port, news.first, news.last);
      return;
    case 'fault':
      events.onFault(news.port, news.vring, news.fault);
      return;
    case 'miss':
      events.onMiss(news.port, news.vring, news.iova, news.write);
      return;
  }
}
