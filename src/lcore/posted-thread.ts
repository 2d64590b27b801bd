/**
 * A thread that works by itself and carries out commands in between, as the main thread has it: starts it, posts commands, and hears what
 * became of them. Commands come through a MessagePort; how many were posted is in a shared word, which the thread looks at once a round.
 */
import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { SwitchError } from '../errors.ts';
import { createEventfd, signal } from '../sys/eventfd.ts';

/** Word of the control block: commands posted so far. */
export const CONTROL_POSTED = 0;

/** Main to thread: a command with its number. */
export interface Letter<Command> {
  readonly epoch: number;
  readonly command: Command;
}

/** Thread to main, beside what else it has to tell: it is ready for commands; it has carried out one, or could not. */
export type BasicReport<Answer> =
  | { readonly type: 'ready' }
  | { readonly type: 'done'; readonly epoch: number; readonly value?: Answer; readonly error?: string };

/** What every such thread is started with. */
export interface BasicSetup {
  readonly control: SharedArrayBuffer;
  /** eventfd that wakes the thread; it stays the main thread's */
  readonly wakeFd: number;
}

export interface PostedThreadOptions<Setup extends BasicSetup, News> {
  readonly url: URL;
  /** the control block */
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly setup: Omit<Setup, keyof BasicSetup>;
  readonly onNews: (news: News) => void;
  /** The thread has failed: no command is carried out any more. */
  readonly onDeath: (error: Error) => void;
}

interface Waiting<Answer> {
  resolve(value: Answer): void;
  reject(error: Error): void;
}

export class PostedThread<Command, Answer, News extends { readonly type: string }> {
  readonly #control: Int32Array<SharedArrayBuffer>;
  readonly #wakeFd = createEventfd();
  readonly #waiting = new Map<number, Waiting<Answer>>();
  readonly #worker: Worker;
  readonly #exited: Promise<void>;
  readonly #onNews: (news: News) => void;
  #epoch = 0;
  #death: Error | undefined;

  private constructor(
    { url, control, setup, onNews }: PostedThreadOptions<BasicSetup, News>,
    onReady: () => void,
    onDeath: (error: Error) => void,
  ) {
    this.#control = control;
    this.#onNews = onNews;
    const workerData: BasicSetup = { ...setup, control: control.buffer, wakeFd: this.#wakeFd };
    this.#worker = new Worker(url, { workerData, trackUnmanagedFds: false });
    this.#worker.on('message', (report: BasicReport<Answer> | News) =>
      report.type === 'ready' ? onReady() : this.#hear(report as Exclude<typeof report, { type: 'ready' }>),
    );
    this.#exited = new Promise((resolve) => {
      this.#worker.on('error', (error: Error) => this.#die(error, onDeath));
      this.#worker.on('exit', () => {
        this.#die(new SwitchError('LCORE_STOPPED', 'the thread has stopped'), () => {});
        resolve();
      });
    });
  }

  /** Starts a thread; resolves when it is ready. Rejects with what it fails with before, e.g. a SysError when it cannot be pinned. */
  static async start<Command, Answer, News extends { readonly type: string }, Setup extends BasicSetup>(
    options: PostedThreadOptions<Setup, News>,
  ): Promise<PostedThread<Command, Answer, News>> {
    const ready = Promise.withResolvers<void>();
    let up = false;
    const thread = new PostedThread<Command, Answer, News>(options, ready.resolve, (error) =>
      up ? options.onDeath(error) : ready.reject(error),
    );
    try {
      await ready.promise;
    } catch (error) {
      await thread.gone();
      throw error;
    }
    up = true;
    return thread;
  }

  /** It has ended. */
  get dead(): boolean {
    return this.#death !== undefined;
  }

  #die(error: Error, tell: (error: Error) => void): void {
    if (this.#death !== undefined) return;
    this.#death = error;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    tell(error);
  }

  #hear(report: Exclude<BasicReport<Answer>, { type: 'ready' }> | News): void {
    if (report.type !== 'done') {
      this.#onNews(report as News);
      return;
    }
    const { epoch, value, error } = report as BasicReport<Answer> & { type: 'done' };
    const waiting = this.#waiting.get(epoch);
    this.#waiting.delete(epoch);
    if (error === undefined) waiting?.resolve(value as Answer);
    else waiting?.reject(new SwitchError('LCORE_COMMAND', error));
  }

  /** Has a command carried out. Rejects with LCORE_COMMAND if it fails, and with what the thread has ended with. */
  post(command: Command): Promise<Answer> {
    if (this.#death !== undefined) return Promise.reject(this.#death);
    const epoch = ++this.#epoch;
    const answer = new Promise<Answer>((resolve, reject) => {
      this.#waiting.set(epoch, { resolve, reject });
    });
    this.#worker.postMessage({ epoch, command } satisfies Letter<Command>);
    Atomics.add(this.#control, CONTROL_POSTED, 1);
    signal(this.#wakeFd);
    return answer;
  }

  /** Waits until the thread has gone, which has been told to end, or has failed. */
  async gone(): Promise<void> {
    await this.#exited;
    closeSync(this.#wakeFd);
  }
}
