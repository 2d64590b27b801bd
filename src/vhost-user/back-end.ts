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
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { BackEndChannel } from './back-end-channel.ts';
import { Connection } from './connection.ts';
import { LimitedLog, type Log, type LogLevel } from './limited-log.ts';
import { checkAcknowledged } from './memory-requests.ts';
import { ClosingError, encodeMessage, type Message, protocolError, U64 } from './message.ts';
import { REQUESTS } from './requests.ts';
import { type Answer, negotiated, type RequestRow, type Session } from './session.ts';

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
  #channel: BackEndChannel | undefined;
  /** settles when what has been begun with the device is done: its calls never overlap */
  #handling: Promise<void> = Promise.resolve();
  /** makes the request at hand go on although the device is not done with it, which is to be destroyed */
  #abandon: (() => void) | undefined;

  /** @param fd a connected, non-blocking socket; the back end owns it and the device from now on. */
  constructor(fd: number, device: VhostDevice, { name, log }: BackEndOptions) {
    this.#log = new LimitedLog(log, { prefix: `${name}: ` });
    this.#session = {
      device,
      protocolFeatures: 0n,
      features: 0n,
      regions: [],
      postcopy: 'off',
      openChannel: (channelFd) => this.#openChannel(channelFd),
      whileOpen: (work) => this.#whileOpen(work),
    };
    const { promise, resolve } = Promise.withResolvers<void>();
    this.ended = promise;
    this.#connection = new Connection(fd, {
      onMessage: (message) => this.#serially(() => this.#onMessage(message)),
      onPeerGone: () => device.frontEndGone?.(),
      onClose: (error) => {
        if (error !== undefined) this.#log.log(levelOf(error), `${error.message}; connection closed`);
        device.frontEndGone?.();
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

  /** @param run never rejects */
  #serially(run: () => Promise<void>): Promise<void> {
    this.#handling = this.#handling.then(run);
    return this.#handling;
  }

  #whileOpen(work: Promise<void>): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      this.#abandon = resolve;
      work.then(resolve, reject).finally(() => {
        this.#abandon = undefined;
      });
      if (this.#connection.closed) resolve();
    });
  }

  async #destroy(): Promise<void> {
    const channel = this.#channel;
    this.#channel = undefined;
    channel?.close();
    this.#abandon?.();
    await this.#handling;
    try {
      await this.device.destroy();
    } catch (error) {
      this.#log.log('error', `the device was not destroyed cleanly: ${(error as Error).message}`);
    }
    this.#log.flush();
  }

  /** Owns `fd`. */
  #openChannel(fd: number): void {
    const { device, protocolFeatures } = this.#session;
    const channel: BackEndChannel = new BackEndChannel(fd, {
      protocolFeatures,
      onProblem: (problem) => this.#log.log('warn', problem),
      onClose: (error) => {
        if (this.#channel === channel) this.#onChannelClosed(error);
      },
    });
    const before = this.#channel;
    this.#channel = channel;
    before?.close();
    device.setChannel(channel);
  }

  #onChannelClosed(error: Error | undefined): void {
    const level = error === undefined ? 'info' : levelOf(error);
    this.#log.log(level, `back-end channel closed${error === undefined ? '' : `: ${error.message}`}`);
    this.#channel = undefined;
    void this.#serially(async () => {
      if (this.#channel !== undefined || this.#connection.closed) return;
      try {
        this.device.setChannel(undefined);
      } catch (failure) {
        this.#log.log('error', `the device failed to give the channel up: ${(failure as Error).message}`);
      }
    });
  }

  /** Never rejects. */
  async #onMessage(message: Message): Promise<void> {
    const row = REQUESTS.get(message.request);
    const asked = (message.flags & VHOST_USER_NEED_REPLY) !== 0;
    const wantsAck = asked && (negotiated(this.#session, VHOST_USER_PROTOCOL_F_REPLY_ACK) || row?.alwaysAck === true);
    try {
      checkAllowed(this.#session, message, row);
      const answer = await row.run(this.#session, message);
      if (answer !== undefined) this.#reply(message, answer);
      else if (wantsAck) this.#reply(message, { payload: U64.encode(0n) });
    } catch (error) {
      this.#onFailure(message, error as Error, row, wantsAck);
    }
  }

  /** A failure is told to a front end where an answer can, or the acknowledgement that it asks for; otherwise by closing. */
  #onFailure(message: Message, error: Error, row: RequestRow | undefined, wantsAck: boolean): void {
    if (this.#connection.closed) return; // the device may well fail while the connection goes down
    const problem =
      error instanceof ProtocolError ? error.message : `${requestName(message.request)}: ${error.message}`;
    const refusal = row?.failure(message, wantsAck) ?? (wantsAck && row?.answers !== true ? U64.encode(1n) : undefined);
    const mayTell = refusal !== undefined && !(error instanceof ClosingError);
    if (mayTell) this.#reply(message, { payload: refusal });
    if (mayTell && row !== undefined) {
      this.#log.log('error', `${problem}; request refused`);
      return;
    }
    this.#log.log('error', `${problem}; connection closed`);
    this.#connection.close();
  }

  #reply({ request }: Message, { payload, fds = [] }: Answer): void {
    this.#connection.sendOwned(encodeMessage(request, VHOST_USER_VERSION | VHOST_USER_REPLY, payload), fds);
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
  if (row.needs !== undefined && !negotiated(session, row.needs)) {
    throw protocolError('PROTOCOL_NOT_SUPPORTED', request, `protocol feature bit ${row.needs} was not negotiated`);
  }
  checkAcknowledged(session, request);
  if (fds.length <= row.maxFds) return;
  const must = row.maxFds === 0 ? 'there must be none' : `must be at most ${row.maxFds}`;
  throw protocolError('PROTOCOL_FD_COUNT', request, `${fds.length} file descriptors, ${must}`);
}
