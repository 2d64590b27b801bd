/**
 * The back end's half of the protocol: one connection, one device. Checks every message and hands it to the device;
 * a message that is wrong is logged, and refused or answered by closing the connection.
 * Rings, memory mappings and features are the device's business.
 * @see QEMU docs/interop/vhost-user.rst "Front-end message types"
 */
import { ProtocolError, SysError } from '../errors.ts';
import {
  isRequest,
  requestName,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY,
  VHOST_USER_VERSION,
} from '../uapi/vhost-user.ts';
import { hasFeature } from '../uapi/virtio.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { Connection } from './connection.ts';
import { LimitedLog, type Log, type LogLevel } from './limited-log.ts';
import { encodeMessage, type Message, protocolError, U64 } from './message.ts';
import { REQUESTS, type RequestRow, type Session } from './requests.ts';

export interface BackEndOptions {
  /** What log lines call the connection, for example `socket usvhost: device 0`. */
  name: string;
  /** Gets a bounded number of lines, however the front end behaves. */
  log: Log;
}

/** Serves one front end on behalf of one device, until either side closes; then destroys the device. */
export class BackEnd {
  /** Resolves when the connection is closed and the device destroyed. Never rejects. */
  readonly ended: Promise<void>;
  readonly #connection: Connection;
  readonly #session: Session;
  readonly #log: LimitedLog;
  /** settles when the message at hand, if any, has been dealt with: device calls never overlap */
  #handling: Promise<void> = Promise.resolve();

  /** @param fd a connected, non-blocking socket; the back end owns it and the device from now on. */
  constructor(fd: number, device: VhostDevice, { name, log }: BackEndOptions) {
    this.#log = new LimitedLog(log, { prefix: `${name}: ` });
    this.#session = { device, protocolFeatures: 0n, regions: [] };
    const { promise, resolve } = Promise.withResolvers<void>();
    this.ended = promise;
    this.#connection = new Connection(fd, {
      onMessage: (message) => {
        this.#handling = this.#onMessage(message);
        return this.#handling;
      },
      onClose: (error) => {
        if (error !== undefined) this.#log.log(levelOf(error), `${error.message}; connection closed`);
        this.#destroy().then(resolve);
      },
    });
  }

  get device(): VhostDevice {
    return this.#session.device;
  }

  /** Closes the connection. @returns {@link ended} */
  close(): Promise<void> {
    this.#connection.close();
    return this.ended;
  }

  async #destroy(): Promise<void> {
    await Promise.allSettled([this.#handling]);
    try {
      await this.device.destroy();
    } catch (error) {
      this.#log.log('error', `the device was not destroyed cleanly: ${(error as Error).message}`);
    }
    this.#log.flush();
  }

  /** Never rejects. */
  async #onMessage(message: Message): Promise<void> {
    const replyAck = hasFeature(this.#session.protocolFeatures, VHOST_USER_PROTOCOL_F_REPLY_ACK);
    const wantsAck = replyAck && (message.flags & VHOST_USER_NEED_REPLY) !== 0;
    const row = REQUESTS.get(message.request);
    try {
      checkAllowed(this.#session, message, row);
      const answer = await row.run(this.#session, message);
      if (answer !== undefined) this.#reply(message, answer);
      else if (wantsAck) this.#reply(message, U64.encode(0n));
    } catch (error) {
      this.#onFailure(message, error as Error, row, wantsAck);
    }
  }

  /** "REPLY_ACK": a failure is told to a front end that asks for it; without a way to tell, closing is the only one. */
  #onFailure(message: Message, error: Error, row: RequestRow | undefined, wantsAck: boolean): void {
    if (this.#connection.closed) return; // the device may well fail while the connection goes down
    const problem =
      error instanceof ProtocolError ? error.message : `${requestName(message.request)}: ${error.message}`;
    const canRefuse = wantsAck && row?.answers !== true;
    if (canRefuse) this.#reply(message, U64.encode(1n));
    if (canRefuse && row !== undefined) {
      this.#log.log('error', `${problem}; request refused`);
      return;
    }
    this.#log.log('error', `${problem}; connection closed`);
    this.#connection.close();
  }

  #reply({ request }: Message, payload: Uint8Array): void {
    this.#connection.send(encodeMessage(request, VHOST_USER_VERSION | VHOST_USER_REPLY, payload));
  }
}

/** A front end that was killed leaves answers unread: nobody's fault. */
function levelOf(error: Error): LogLevel {
  const gone = error instanceof SysError && (error.code === 'ECONNRESET' || error.code === 'EPIPE');
  return gone ? 'info' : 'error';
}

/** Whether the request may be sent at all, and with that many descriptors. */
function checkAllowed(session: Session, message: Message, row: RequestRow | undefined): asserts row is RequestRow {
  const { request, flags, fds } = message;
  if (!isRequest(request)) throw protocolError('PROTOCOL_NOT_SUPPORTED', request, 'not a vhost-user request');
  if (row === undefined) {
    throw protocolError('PROTOCOL_NOT_SUPPORTED', request, 'belongs to a feature that was not offered');
  }
  if ((flags & VHOST_USER_REPLY) !== 0) {
    throw protocolError('PROTOCOL_HEADER', request, 'a request must not have the reply flag');
  }
  if (row.needs !== undefined && !hasFeature(session.protocolFeatures, row.needs)) {
    throw protocolError('PROTOCOL_NOT_SUPPORTED', request, `protocol feature bit ${row.needs} was not negotiated`);
  }
  if (fds.length <= row.maxFds) return;
  const must = row.maxFds === 0 ? 'there must be none' : `must be at most ${row.maxFds}`;
  throw protocolError('PROTOCOL_FD_COUNT', request, `${fds.length} file descriptors, ${must}`);
}
