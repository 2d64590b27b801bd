/**
 * A listening vhost-user socket: accepts front ends and gives each a device and a back end.
 * @see QEMU docs/interop/vhost-user.rst "Communication"
 */
import { closeSync } from 'node:fs';
import { acceptUnix, ReadWatch } from '../sys/unix-socket.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { BackEnd } from './back-end.ts';
import { LimitedLog, type Log } from './limited-log.ts';
import { openSocketFile, removeSocketFile, type SocketFile, type SocketFileOptions } from './socket-file.ts';

/** Connections accepted before others get their turn. */
const ACCEPTS_PER_TURN = 16;
/** Pause after a failed accept, ms: the cause (no descriptors left) does not pass at once. */
const ACCEPT_RETRY_MS = 100;

/** One connection of a socket. */
export interface ConnectionInfo {
  /** The socket's path. */
  readonly path: string;
  /** Connections of this socket before this one. */
  readonly connection: number;
  /** What log lines call it; `createDevice` may give a better name, for example `socket usvhost: device 0`. */
  name: string;
}

export interface VhostUserServerOptions extends SocketFileOptions {
  /** Connections at a time; more are closed at once. Default 1024. */
  maxConnections?: number;
  log: Log;
  /** A device for a new connection, owned by the server from then on, or undefined to refuse the connection. */
  createDevice(info: ConnectionInfo): VhostDevice | undefined;
  /** A front end is connected. */
  onConnect?(device: VhostDevice, info: ConnectionInfo): void;
  /** A front end is gone and its device destroyed. */
  onDisconnect?(device: VhostDevice, info: ConnectionInfo): void;
}

export class VhostUserServer {
  readonly #options: VhostUserServerOptions;
  readonly #socket: SocketFile;
  readonly #watch: ReadWatch;
  readonly #log: LimitedLog;
  readonly #backEnds = new Set<BackEnd>();
  #retryTimer: NodeJS.Timeout | undefined;
  #connections = 0;
  #closing: Promise<void> | undefined;

  /** Listens at once. Throws as {@link openSocketFile} does. */
  constructor(options: VhostUserServerOptions) {
    this.#options = options;
    // all front ends together, however often they reconnect; each connection has a narrower limit of its own
    this.#log = new LimitedLog(options.log, { burst: 200, perSecond: 5 });
    this.#socket = openSocketFile(options);
    this.#watch = new ReadWatch(this.#socket.fd, this.#onReadable);
  }

  get path(): string {
    return this.#options.path;
  }

  /** Front ends connected now. */
  get connectionCount(): number {
    return this.#backEnds.size;
  }

  /** Closes the connection that `device` belongs to, if it is one of ours. */
  disconnect(device: VhostDevice): void {
    for (const backEnd of this.#backEnds) if (backEnd.device === device) backEnd.close();
  }

  /** Stops listening, removes the socket file if it is still ours, closes all connections, and waits for their devices. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearTimeout(this.#retryTimer);
    this.#watch.close();
    removeSocketFile(this.#socket);
    closeSync(this.#socket.fd);
    await Promise.all([...this.#backEnds].map((backEnd) => backEnd.close()));
    this.#log.flush();
  }

  readonly #onReadable = (): void => {
    for (let left = ACCEPTS_PER_TURN; left > 0 && this.#closing === undefined; left--) {
      const fd = this.#accept();
      if (fd === undefined) return;
      this.#serve(fd);
    }
  };

  /** The next connection, or undefined when there is none, or none can be had for the moment. */
  #accept(): number | undefined {
    try {
      return acceptUnix(this.#socket.fd);
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

  /** Owns `fd`. */
  #serve(fd: number): void {
    const info: ConnectionInfo = {
      path: this.path,
      connection: this.#connections,
      name: `socket ${this.path}: connection ${this.#connections}`,
    };
    this.#connections++;
    const device = this.#deviceFor(info);
    if (device === undefined) {
      closeSync(fd);
      return;
    }
    const backEnd = new BackEnd(fd, device, { name: info.name, log: this.#log.log });
    this.#backEnds.add(backEnd);
    this.#log.log('info', `${info.name}: connected`);
    backEnd.ended.then(() => {
      this.#backEnds.delete(backEnd);
      this.#log.log('info', `${info.name}: disconnected`);
      this.#options.onDisconnect?.(device, info);
    });
    this.#options.onConnect?.(device, info);
  }

  /** A device for the connection, or undefined when it is refused, which has been logged. */
  #deviceFor(info: ConnectionInfo): VhostDevice | undefined {
    const { maxConnections = 1024, createDevice } = this.#options;
    if (this.#backEnds.size >= maxConnections) {
      this.#log.log('warn', `${info.name}: refused, ${maxConnections} front ends are connected already`);
      return undefined;
    }
    try {
      const device = createDevice(info);
      if (device === undefined) this.#log.log('warn', `${info.name}: refused, there is no device for it`);
      return device;
    } catch (error) {
      this.#log.log('error', `${info.name}: refused, no device could be created: ${(error as Error).message}`);
      return undefined;
    }
  }
}
