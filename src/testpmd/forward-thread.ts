/**
 * A forwarding thread as the main thread has it: starts it, tells it what to do, and waits until that is done.
 */
import { PostedThread } from '../lcore/posted-thread.ts';
import { workerUrl } from '../lcore/worker-url.ts';
import type { WindowHandle } from '../mem/window.ts';
import { CONTROL_SHOWN, CONTROL_WORDS, type Command, type Dumped, type Failed, type ForwardSetup } from './letters.ts';

export interface ForwardThreadOptions {
  /** CPUs to run on, or none for any */
  readonly cpus: readonly number[];
  /** 'adaptive': a thread without work sleeps until something comes; 'busy': it never does */
  readonly poll: 'adaptive' | 'busy';
  /** a window that the thread keeps until it has ended */
  readonly window: WindowHandle;
}

export interface ForwardThreadEvents {
  /** What was forwarded has ended for a reason that nobody has foreseen. The ports are closed, and the thread waits for commands. */
  onFailure(reason: string): void;
  /** The thread has ended itself, with its ports as they were. */
  onDeath(error: Error): void;
  /** Packets are shown. */
  onDump(text: string): void;
}

export class ForwardThread {
  readonly #thread: PostedThread<Command, void, Failed | Dumped>;

  private constructor(thread: PostedThread<Command, void, Failed | Dumped>) {
    this.#thread = thread;
  }

  /** Starts the thread. Rejects when it cannot be pinned. */
  static async start(options: ForwardThreadOptions, events: ForwardThreadEvents): Promise<ForwardThread> {
    const control = new Int32Array(new SharedArrayBuffer(4 * CONTROL_WORDS));
    const thread = await PostedThread.start<Command, void, Failed | Dumped, ForwardSetup>({
      url: workerUrl(import.meta.url, './forward-worker'),
      control,
      setup: options,
      onNews: (news) => {
        if (news.type === 'failed') events.onFailure(news.reason);
        else {
          events.onDump(news.text);
          Atomics.add(control, CONTROL_SHOWN, 1);
        }
      },
      onDeath: (error) => events.onDeath(error),
    });
    return new ForwardThread(thread);
  }

  /** It has ended: another one is needed. */
  get dead(): boolean {
    return this.#thread.dead;
  }

  /** Has a command carried out. */
  tell(command: Command): Promise<void> {
    return this.#thread.post(command);
  }

  /** The same for what ends something: if the thread has gone by itself meanwhile, that is as good. */
  async tellLast(command: Command): Promise<void> {
    await this.tell(command).catch((error) => {
      if (!this.dead) throw error;
    });
  }

  /** Ends the thread; resolves when it has gone. */
  async end(): Promise<void> {
    await this.tellLast({ type: 'end' });
    await this.#thread.gone();
  }
}
