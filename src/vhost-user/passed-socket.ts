/**
 * A vhost-user socket that another program has made and passed on: connected, or listening.
 * @see QEMU docs/interop/vhost-user.rst "Backend program conventions", `--fd`
 */
import { SwitchError } from '../errors.ts';
import { setNonblocking } from '../sys/eventfd.ts';
import { isListening, isUnixStream } from '../sys/unix-socket.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { BackEnds, type SocketOptions, type VhostUserSocket } from './back-ends.ts';
import { LimitedLog } from './limited-log.ts';
import { VhostUserServer } from './server.ts';

/** A socket from elsewhere, and when there is nothing more to serve on it. */
export interface PassedSocket extends VhostUserSocket {
  /** Resolves when the socket is closed, or the front end of one that was connected has gone. Never rejects. */
  readonly ended: Promise<void>;
}

/** One front end that is there already. */
class ConnectedSocket implements PassedSocket {
  readonly path: string;
  readonly ended: Promise<void>;
  readonly #log: LimitedLog;
  readonly #backEnds: BackEnds;

  constructor(fd: number, options: SocketOptions, path: string) {
    this.path = path;
    this.#log = new LimitedLog(options.log);
    this.#backEnds = new BackEnds({
      ...options,
      path,
      maxConnections: 1,
      log: this.#log.log,
      onRefused: (level, { name }, why) => this.#log.log(level, `${name}: refused, ${why}`),
    });
    this.ended = this.#backEnds.serve(fd)?.ended ?? Promise.resolve();
  }

  get connectionCount(): number {
    return this.#backEnds.count;
  }

  disconnect(device: VhostDevice): void {
    this.#backEnds.disconnect(device);
  }

  async close(): Promise<void> {
    await this.#backEnds.close();
    this.#log.flush();
  }
}

/** Front ends that are yet to come. */
class ListeningSocket extends VhostUserServer implements PassedSocket {
  readonly #closed = Promise.withResolvers<void>();

  get ended(): Promise<void> {
    return this.#closed.promise;
  }

  override async close(): Promise<void> {
    await super.close();
    this.#closed.resolve();
  }
}

/**
 * Serves what comes over `fd`, and owns it from then on. A listening socket takes as many front ends at a time as `maxConnections`
 * says. Throws SwitchError (SOCKET_WRONG_KIND) if it is no Unix stream socket, which then stays the caller's.
 */
export function servePassedSocket(fd: number, options: SocketOptions & { maxConnections?: number }): PassedSocket {
  const path = `fd ${fd}`;
  if (!isUnixStream(fd)) {
    const problem = 'is not an open Unix stream socket: pass one that is connected or listening';
    throw new SwitchError('SOCKET_WRONG_KIND', `file descriptor ${fd} ${problem}`);
  }
  if (!isListening(fd)) return new ConnectedSocket(fd, options, path);
  setNonblocking(fd);
  return new ListeningSocket({ ...options, path, listener: fd });
}
