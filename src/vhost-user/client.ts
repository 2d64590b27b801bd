/**
 * A vhost-user socket on which the front end listens (QEMU with `server=on`, DPDK's virtio-user with `server=1`): connects to it, serves
 * it, and begins again for ever when that fails or ends. One connection at a time.
 *
 * A connection counts from the front end's first message on: the kernel connects to any listening socket, also to that of a
 * program that is dying, is stopped, or serves somebody else, and will never accept.
 * @see QEMU docs/interop/vhost-user.rst "Communication"
 */
import { closeSync } from 'node:fs';
import { SysError } from '../errors.ts';
import { AGAIN, connectUnix, peek, ReadWatch } from '../sys/unix-socket.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { BackEnds, type SocketOptions, type VhostUserSocket } from './back-ends.ts';
import { LimitedLog, type LogLevel } from './limited-log.ts';

/** Nobody listens: what waiting is for. */
const NOBODY_THERE = ['ENOENT', 'ECONNREFUSED'];
/** Different troubles told while waiting for one front end. */
const MAX_TOLD = 16;

export interface VhostUserClientOptions extends SocketOptions {
  /** The socket to connect to. */
  readonly path: string;
  /** How long a front end may take until its first message, ms; then the connection is closed. Default 5000. */
  readonly firstMessageMs?: number;
  /** First and longest pause before trying again, ms; each is twice the one before. Default 100 and 1000. */
  readonly retryMs?: readonly [first: number, longest: number];
}

/** A connection whose front end has not said anything yet. */
interface Silent {
  readonly fd: number;
  readonly watch: ReadWatch;
}

export class VhostUserClient implements VhostUserSocket {
  readonly path: string;
  readonly #firstMessageMs: number;
  readonly #retryMs: readonly [first: number, longest: number];
  readonly #log: LimitedLog;
  readonly #backEnds: BackEnds;
  /** what has been told since the last front end */
  readonly #told = new Set<string>();
  #pauseMs: number;
  /** the pause before the next try, or the wait for the first message */
  #timer: NodeJS.Timeout | undefined;
  #silent: Silent | undefined;
  #closing: Promise<void> | undefined;

  /** Tries at once, and goes on trying until closed. Throws RangeError for a path longer than a socket's can be. */
  constructor(options: VhostUserClientOptions) {
    this.path = options.path;
    this.#firstMessageMs = options.firstMessageMs ?? 5000;
    this.#retryMs = options.retryMs ?? [100, 1000];
    this.#pauseMs = this.#retryMs[0];
    this.#log = new LimitedLog(options.log);
    this.#backEnds = new BackEnds({
      ...options,
      maxConnections: 1,
      log: this.#log.log,
      onRefused: (level, _, why) => this.#tell(level, `connection refused, ${why}`),
    });
    this.#connect();
  }

  get connectionCount(): number {
    return this.#backEnds.count;
  }

  /** The front end may have the next connection: the client goes on trying. */
  disconnect(device: VhostDevice): void {
    this.#backEnds.disconnect(device);
  }

  /** Stops trying, closes the connection if there is one, and waits for its device. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearTimeout(this.#timer);
    if (this.#silent !== undefined) closeSync(this.#takeSilent(this.#silent));
    await this.#backEnds.close();
    this.#log.flush();
  }

  readonly #connect = (): void => {
    let fd: number;
    try {
      fd = connectUnix(this.path);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      if (!NOBODY_THERE.includes(error.code)) this.#tell('warn', error.message);
      this.#tryAgainLater();
      return;
    }
    this.#tellWaiting();
    const silent = { fd, watch: new ReadWatch(fd, () => this.#onReadable(silent)) };
    this.#silent = silent;
    const seconds = this.#firstMessageMs / 1000;
    const giveUp = () => this.#giveUp(silent, `the program that listens has said nothing for ${seconds} s`);
    this.#timer = setTimeout(giveUp, this.#firstMessageMs);
  };

  #onReadable(silent: Silent): void {
    let n: number;
    try {
      n = peek(silent.fd);
    } catch (error) {
      this.#giveUp(silent, (error as SysError).message);
      return;
    }
    if (n === 0) this.#giveUp(silent, 'the program that listens has closed the connection without a word');
    else if (n !== AGAIN) this.#serve(this.#takeSilent(silent));
  }

  #giveUp(silent: Silent, why: string): void {
    closeSync(this.#takeSilent(silent));
    this.#tell('warn', why);
    this.#tryAgainLater();
  }

  /** Ends the wait for a first message. @returns the connection, which is the caller's */
  #takeSilent({ fd, watch }: Silent): number {
    clearTimeout(this.#timer);
    watch.close();
    this.#silent = undefined;
    return fd;
  }

  /** Owns `fd`. */
  #serve(fd: number): void {
    const from = performance.now();
    const backEnd = this.#backEnds.serve(fd);
    if (backEnd === undefined) {
      this.#tryAgainLater();
      return;
    }
    this.#told.clear();
    backEnd.ended.then(() => {
      // A front end that comes and goes at once is not tried any faster than one that is not there.
      const [first, longest] = this.#retryMs;
      if (performance.now() - from > longest) this.#pauseMs = first;
      this.#tryAgainLater();
    });
  }

  #tryAgainLater(): void {
    if (this.#closing !== undefined) return;
    this.#tellWaiting();
    this.#timer = setTimeout(this.#connect, this.#pauseMs);
    this.#pauseMs = Math.min(2 * this.#pauseMs, this.#retryMs[1]);
  }

  #tellWaiting(): void {
    this.#tell('info', 'waiting for a front end that listens on it');
  }

  /** Says something once until there is a front end. */
  #tell(level: LogLevel, text: string): void {
    if (this.#told.has(text) || this.#told.size >= MAX_TOLD) return;
    this.#told.add(text);
    this.#log.log(level, `socket ${this.path}: ${text}`);
  }
}
