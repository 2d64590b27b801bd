/**
 * A listening vhost-user socket: accepts front ends and gives each a device and a back end.
 * @see QEMU docs/interop/vhost-user.rst "Communication"
 */
import { closeSync } from 'node:fs';
import { acceptUnix, ReadWatch } from '../sys/unix-socket.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { BackEnds, type SocketOptions, type VhostUserSocket } from './back-ends.ts';
import { LimitedLog } from './limited-log.ts';
import { openSocketFile, removeSocketFile, type SocketFile, type SocketFileOptions } from './socket-file.ts';

/** Connections accepted before others get their turn. */
const ACCEPTS_PER_TURN = 16;
/** Pause after a failed accept, ms: the cause (no descriptors left) does not pass at once. */
const ACCEPT_RETRY_MS = 100;

export interface VhostUserServerOptions extends SocketFileOptions, SocketOptions {
  /**
   * A non-blocking socket that listens already; the server owns it once it is made. `path` is its name then, and there is no file to
   * look after.
   */
  listener?: number | undefined;
  /** Connections at a time; more are closed at once. Default 1024. */
  maxConnections?: number;
}

export class VhostUserServer implements VhostUserSocket {
  readonly path: string;
  readonly #fd: number;
  readonly #file: SocketFile | undefined;
  readonly #watch: ReadWatch;
  readonly #log: LimitedLog;
  readonly #backEnds: BackEnds;
  #retryTimer: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;

  /** Listens at once. Throws as {@link openSocketFile} does. */
  constructor(options: VhostUserServerOptions) {
    this.path = options.path;
    // all front ends together, however often they reconnect; each connection has a narrower limit of its own
    this.#log = new LimitedLog(options.log, { burst: 200, perSecond: 5 });
    this.#backEnds = new BackEnds({
      ...options,
      maxConnections: options.maxConnections ?? 1024,
      log: this.#log.log,
      onRefused: (level, { name }, why) => this.#log.log(level, `${name}: refused, ${why}`),
    });
    this.#file = options.listener === undefined ? openSocketFile(options) : undefined;
    this.#fd = options.listener ?? (this.#file as SocketFile).fd;
    this.#watch = new ReadWatch(this.#fd, this.#onReadable);
  }

  get connectionCount(): number {
    return this.#backEnds.count;
  }

  disconnect(device: VhostDevice): void {
    this.#backEnds.disconnect(device);
  }

  /** Stops listening, removes the socket file if it is still ours, closes all connections, and waits for their devices. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearTimeout(this.#retryTimer);
    this.#watch.close();
    if (this.#file !== undefined) removeSocketFile(this.#file);
    closeSync(this.#fd);
    await this.#backEnds.close();
    this.#log.flush();
  }

  readonly #onReadable = (): void => {
    for (let left = ACCEPTS_PER_TURN; left > 0 && this.#closing === undefined; left--) {
      const fd = this.#accept();
      if (fd === undefined) return;
      this.#backEnds.serve(fd);
    }
  };

  /** The next connection, or undefined when there is none, or none can be had for the moment. */
  #accept(): number | undefined {
    try {
      return acceptUnix(this.#fd);
    } catch (error) {
      this.#log.log('error', `socket ${this.path}: no connection accepted: ${(error as Error).message}`);
      this.#pauseAccepting();
      return undefined;
    }
  }

  #pauseAccepting(): void {
    this.#watch.pause();
    this.#retryTimer = setTimeout(() => this.#watch.resume(this.#onReadable), ACCEPT_RETRY_MS);
  }
}
