/**
 * One vhost-user socket: cuts the byte stream into messages, hands them on one after the other, and sends without waiting.
 * It never reads beyond the message at hand, so descriptors always belong to it. What messages mean is not known here.
 * @see QEMU docs/interop/vhost-user.rst "Communication"
 */
import { closeSync } from 'node:fs';
import { SwitchError, type SysError } from '../errors.ts';
import { AGAIN, ReadWatch, receive, send } from '../sys/unix-socket.ts';
import {
  VHOST_USER_HEADER,
  VHOST_USER_MAX_FDS,
  VHOST_USER_MAX_PAYLOAD,
  VHOST_USER_VERSION,
  VHOST_USER_VERSION_MASK,
} from '../uapi/vhost-user.ts';
import { decodeHeader, type Header, type Message, type MessageErrorCode, protocolError } from './message.ts';

/** Messages handled before other connections get their turn. */
const MESSAGES_PER_TURN = 16;
/** Bytes of answers kept for a peer that does not read them. */
const MAX_PENDING_OUT = 64 * 1024;
/** Descriptors that go with them. */
const MAX_PENDING_FDS = VHOST_USER_MAX_FDS;

/** What a connection tells its owner. */
export interface ConnectionHandlers {
  /**
   * A whole message. No other is read before the promise has settled; then the descriptors still in `message.fds` are
   * closed: take out those you keep. A rejection closes the connection with that error.
   */
  onMessage(message: Message): Promise<void>;
  /** Called once, perhaps while `onMessage` is still at work. `error` is undefined when either side just closed. */
  onClose(error: Error | undefined): void;
  /**
   * The peer has closed its end while `onMessage` is at work; `onClose` comes when that has ended. What it waits for may be the peer.
   */
  onPeerGone?(): void;
  /** What errors call a message of this number; by default the front end's request. */
  nameOf?(request: number): string;
}

/** Output the kernel has not taken yet; `fds` go with its first byte. */
interface Pending {
  data: Uint8Array;
  fds: readonly number[];
  /** of them, those to be closed when they have gone */
  owned: number[];
}

/** Closes every descriptor of `fds` and empties it. */
export function closeAll(fds: number[]): void {
  for (const fd of fds.splice(0)) closeSync(fd);
}

export class Connection {
  readonly #fd: number;
  readonly #handlers: ConnectionHandlers;
  readonly #watch: ReadWatch;
  #closed = false;
  #handling = false;

  readonly #headerBytes = new Uint8Array(VHOST_USER_HEADER.size);
  #header: Header | undefined;
  #payload: Uint8Array | undefined;
  /** bytes of the current part (header or payload) that have arrived */
  #got = 0;
  #fds: number[] = [];

  readonly #pending: Pending[] = [];
  #pendingLen = 0;
  #pendingFds = 0;
  #drainWaiters: (() => void)[] = [];

  /** @param fd a connected, non-blocking socket; the connection owns it from now on. */
  constructor(fd: number, handlers: ConnectionHandlers) {
    this.#fd = fd;
    this.#handlers = handlers;
    try {
      this.#watch = new ReadWatch(fd, this.#onReady);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Sends `data`, or keeps it until the peer reads. `fds` stay the caller's, who leaves them open until {@link drained}.
   * More than 64 KiB kept closes the connection.
   */
  send(data: Uint8Array, fds: readonly number[] = []): void {
    this.#send({ data, fds, owned: [] });
  }

  /** As {@link send}, but the connection owns `fds` and closes them. More than 8 kept closes the connection. */
  sendOwned(data: Uint8Array, fds: number[]): void {
    if (this.#closed) closeAll(fds);
    else this.#send({ data, fds, owned: [...fds] });
  }

  #send(out: Pending): void {
    if (this.#closed) return;
    this.#pending.push(out);
    this.#pendingLen += out.data.length;
    this.#pendingFds += out.owned.length;
    if (this.#pending.length === 1) this.#flush();
    if (this.#pendingLen > MAX_PENDING_OUT || this.#pendingFds > MAX_PENDING_FDS) {
      const unread = `${this.#pendingLen} bytes${this.#pendingFds > 0 ? ` and ${this.#pendingFds} file descriptors` : ''}`;
      this.close(transportError('PROTOCOL_UNREAD_ANSWERS', `the peer left ${unread} unread`));
    } else if (this.#pendingLen > 0) {
      this.#rearm();
    }
  }

  /** Resolves when the kernel has taken everything sent so far, or the connection is closed. */
  drained(): Promise<void> {
    if (this.#pendingLen === 0) return Promise.resolve();
    return new Promise((resolve) => this.#drainWaiters.push(resolve));
  }

  /** Closes the socket and every descriptor not handed on. Only the first call does anything. */
  close(error?: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch.close();
    closeSync(this.#fd);
    closeAll(this.#fds);
    for (const { owned } of this.#pending) closeAll(owned);
    this.#pending.length = 0;
    this.#pendingLen = 0;
    this.#wakeDrainWaiters();
    this.#handlers.onClose(error);
  }

  readonly #onReady = (): void => {
    if (this.#closed || this.#handling) return;
    this.#flush();
    if (!this.#closed) void this.#handleSome();
  };

  /** Handles what has arrived, a bounded number of messages, with the watch off meanwhile. */
  async #handleSome(): Promise<void> {
    this.#handling = true;
    const { onPeerGone } = this.#handlers;
    if (onPeerGone === undefined) this.#watch.pause();
    else this.#watch.pauseUntilGone(() => onPeerGone());
    for (let left = MESSAGES_PER_TURN; left > 0 && !this.#closed; left--) {
      const message = this.#receiveMessage();
      if (message === undefined) break;
      try {
        await this.#handlers.onMessage(message);
      } catch (error) {
        this.close(error as Error);
      } finally {
        closeAll(message.fds);
      }
    }
    this.#handling = false;
    this.#rearm();
  }

  #rearm(): void {
    if (!this.#closed && !this.#handling) this.#watch.resume(this.#onReady, this.#pendingLen > 0);
  }

  /** Reads on without waiting: a whole message, or undefined when more must arrive or the connection has been closed. */
  #receiveMessage(): Message | undefined {
    try {
      while (this.#receivePart()) {
        const message = this.#completePart();
        if (message !== undefined) return message;
      }
    } catch (error) {
      this.close(error as Error);
    }
    return undefined;
  }

  /** Fills the current part. @returns false when it is not complete yet, or the connection is closed. */
  #receivePart(): boolean {
    const part = this.#payload ?? this.#headerBytes;
    while (this.#got < part.length) {
      const first = this.#payload === undefined && this.#got === 0;
      const fdsBefore = this.#fds.length;
      const n = receive(this.#fd, part.subarray(this.#got), this.#fds);
      if (this.#fds.length > fdsBefore && !first) throw this.#error('PROTOCOL_FD_COUNT', STRAY_FDS);
      if (this.#fds.length > VHOST_USER_MAX_FDS) {
        throw this.#error(
          'PROTOCOL_FD_COUNT',
          `${this.#fds.length} file descriptors, must be at most ${VHOST_USER_MAX_FDS}`,
        );
      }
      if (n === AGAIN) return false;
      if (n === 0) {
        const midway = this.#got > 0 || this.#payload !== undefined;
        this.close(
          midway ? this.#error('PROTOCOL_TRUNCATED', 'the peer closed in the middle of the message') : undefined,
        );
        return false;
      }
      this.#got += n;
    }
    return true;
  }

  /** Goes on to the payload when the header is there; @returns the message once both are. */
  #completePart(): Message | undefined {
    if (this.#header === undefined) {
      this.#header = decodeHeader(new DataView(this.#headerBytes.buffer));
      this.#checkHeader(this.#header);
      this.#payload = new Uint8Array(this.#header.size);
      this.#got = 0;
      if (this.#header.size > 0) return undefined;
    }
    const { request, flags } = this.#header;
    const payload = this.#payload as Uint8Array;
    const message: Message = { request, flags, payload: new DataView(payload.buffer), fds: this.#fds };
    this.#header = undefined;
    this.#payload = undefined;
    this.#got = 0;
    this.#fds = [];
    return message;
  }

  #checkHeader({ flags, size }: Header): void {
    const version = flags & VHOST_USER_VERSION_MASK;
    if (version !== VHOST_USER_VERSION) {
      throw this.#error('PROTOCOL_HEADER', `version ${version} in the header, must be ${VHOST_USER_VERSION}`);
    }
    if (size > VHOST_USER_MAX_PAYLOAD) {
      throw this.#error('PROTOCOL_HEADER', `a payload of ${size} bytes, must be at most ${VHOST_USER_MAX_PAYLOAD}`);
    }
  }

  #error(code: MessageErrorCode, problem: string): Error {
    if (this.#header === undefined) return transportError(code, problem);
    const { request } = this.#header;
    return protocolError(code, this.#handlers.nameOf?.(request) ?? request, problem);
  }

  /** Gives the kernel what it takes of the pending output. */
  #flush(): void {
    try {
      for (let next = this.#pending[0]; next !== undefined; next = this.#pending[0]) {
        const n = send(this.#fd, next.data, next.fds);
        if (n === AGAIN) return;
        this.#pendingLen -= n;
        next.fds = [];
        this.#pendingFds -= next.owned.length;
        closeAll(next.owned);
        next.data = next.data.subarray(n);
        if (next.data.length === 0) this.#pending.shift();
      }
    } catch (error) {
      this.close(error as SysError);
    }
    this.#wakeDrainWaiters();
  }

  #wakeDrainWaiters(): void {
    const waiters = this.#drainWaiters;
    this.#drainWaiters = [];
    for (const wake of waiters) wake();
  }
}

const STRAY_FDS = 'file descriptors came behind the first byte of the message';

/** An error before it is known which request it is about. */
function transportError(code: MessageErrorCode, problem: string): SwitchError {
  return new SwitchError(code, problem);
}
