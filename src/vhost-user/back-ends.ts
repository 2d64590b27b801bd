/**
 * The back ends of one socket: a device and a back end for every connection, whichever side listens. How connections come about
 * is the business of the server and of the client.
 */
import { closeSync } from 'node:fs';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { BackEnd } from './back-end.ts';
import type { Log, LogLevel } from './limited-log.ts';

/** One connection of a socket. */
export interface ConnectionInfo {
  /** The socket's path. */
  readonly path: string;
  /** Connections of this socket before this one. */
  readonly connection: number;
  /** What log lines call it; `createDevice` may give a better name, for example `socket usvhost: device 0`. */
  name: string;
}

/** What the owner of a socket wants to have done and to know. */
export interface SocketOptions {
  log: Log;
  /** A device for a new connection, owned by the socket from then on, or undefined to refuse the connection. */
  createDevice(info: ConnectionInfo): VhostDevice | undefined;
  /** A front end is connected. */
  onConnect?(device: VhostDevice, info: ConnectionInfo): void;
  /** A front end is gone and its device destroyed. */
  onDisconnect?(device: VhostDevice, info: ConnectionInfo): void;
}

/** A socket on which front ends are served, as its owner sees it. */
export interface VhostUserSocket {
  readonly path: string;
  /** Front ends connected now. */
  readonly connectionCount: number;
  /** Closes the connection that `device` belongs to, if it is one of this socket's. */
  disconnect(device: VhostDevice): void;
  /** Closes the socket and its connections, and waits for their devices. */
  close(): Promise<void>;
}

interface BackEndsOptions extends SocketOptions {
  readonly path: string;
  readonly maxConnections: number;
  /** A connection was refused, and why. */
  onRefused(level: LogLevel, info: ConnectionInfo, why: string): void;
}

export class BackEnds {
  readonly #options: BackEndsOptions;
  readonly #backEnds = new Set<BackEnd>();
  #connections = 0;

  constructor(options: BackEndsOptions) {
    this.#options = options;
  }

  /** Front ends connected now. */
  get count(): number {
    return this.#backEnds.size;
  }

  /** Serves a connection; owns `fd`, a connected, non-blocking socket. @returns undefined, with `fd` closed, if it is refused. */
  serve(fd: number): BackEnd | undefined {
    const { path, log, onConnect, onDisconnect } = this.#options;
    const connection = this.#connections++;
    const info: ConnectionInfo = { path, connection, name: `socket ${path}: connection ${connection}` };
    const device = this.#deviceFor(info);
    if (device === undefined) {
      closeSync(fd);
      return undefined;
    }
    const backEnd = new BackEnd(fd, device, { name: info.name, log });
    this.#backEnds.add(backEnd);
    log('info', `${info.name}: connected`);
    backEnd.ended.then(() => {
      this.#backEnds.delete(backEnd);
      log('info', `${info.name}: disconnected`);
      onDisconnect?.(device, info);
    });
    onConnect?.(device, info);
    return backEnd;
  }

  /** A device for the connection, or undefined when it is refused, which has been told. */
  #deviceFor(info: ConnectionInfo): VhostDevice | undefined {
    const { maxConnections, createDevice, onRefused } = this.#options;
    if (this.#backEnds.size >= maxConnections) {
      onRefused('warn', info, `${maxConnections} front ends are connected already`);
      return undefined;
    }
    try {
      const device = createDevice(info);
      if (device === undefined) onRefused('warn', info, 'there is no device for it');
      return device;
    } catch (error) {
      onRefused('error', info, `no device could be created: ${(error as Error).message}`);
      return undefined;
    }
  }

  disconnect(device: VhostDevice): void {
    for (const backEnd of this.#backEnds) if (backEnd.device === device) backEnd.close();
  }

  /** Closes all connections, and waits for their devices. */
  async close(): Promise<void> {
    await Promise.all([...this.#backEnds].map((backEnd) => backEnd.close()));
  }
}
