/**
 * A front end's connection: sends requests and waits for their answers, which come in the order of the requests. What the requests mean is
 * not known here.
 * @see QEMU docs/interop/vhost-user.rst "Communication", "VHOST_USER_PROTOCOL_F_REPLY_ACK"
 */
import type { SwitchError } from '../errors.ts';
import { VHOST_USER_NEED_REPLY, VHOST_USER_REPLY, VHOST_USER_VERSION } from '../uapi/vhost-user.ts';
import { Connection, closeAll } from './connection.ts';
import { encodeMessage, type Message, type Payload, protocolError, U64 } from './message.ts';

export interface FrontEndOptions {
  /** Ask for an acknowledgement of every request once REPLY_ACK is negotiated, and fail when it is a refusal. Default true. */
  awaitAck?: boolean;
  /** How long an answer may take, ms; then the connection is closed. Default 10 000. */
  replyTimeoutMs?: number;
}

/** What goes with a request beside its payload. */
export interface AskOptions {
  /** they stay the caller's, who leaves them open until the promise has settled */
  readonly fds?: readonly number[];
  /** Ask for an answer by the header's flag too: for back ends that give it only then. */
  readonly needReply?: boolean;
}

/** An answer with the descriptors that came with it, which are the caller's. */
export interface AnswerWithFds<T> {
  readonly value: T;
  readonly fds: number[];
}

/** Someone waiting for an answer. */
interface Waiter {
  readonly request: number;
  readonly timer: NodeJS.Timeout;
  /** takes the message's descriptors over */
  readonly takesFds: boolean;
  resolve(message: Message): void;
  reject(error: Error): void;
}

export class FrontEndLink {
  /** Resolves when the connection is closed: with the reason, or undefined when one side just closed. */
  readonly onClose: Promise<Error | undefined>;
  /** REPLY_ACK has been negotiated. */
  replyAck = false;
  readonly #connection: Connection;
  readonly #awaitAck: boolean;
  readonly #replyTimeoutMs: number;
  readonly #waiting: Waiter[] = [];
  #closeReason: Error | undefined;

  /** @param fd a connected, non-blocking socket, owned from now on. */
  constructor(fd: number, options: FrontEndOptions) {
    this.#awaitAck = options.awaitAck ?? true;
    this.#replyTimeoutMs = options.replyTimeoutMs ?? 10_000;
    const ended = Promise.withResolvers<Error | undefined>();
    this.onClose = ended.promise;
    this.#connection = new Connection(fd, {
      onMessage: async (message) => this.#onReply(message),
      onClose: (error) => {
        this.#closeReason = error;
        for (const waiter of this.#waiting.splice(0)) {
          clearTimeout(waiter.timer);
          waiter.reject(this.#closedError(waiter.request));
        }
        ended.resolve(error);
      },
    });
  }

  get closed(): boolean {
    return this.#connection.closed;
  }

  close(): void {
    this.#connection.close();
  }

  /** Sends a request without an answer of its own; waits for the acknowledgement if there is to be one. */
  async tell(request: number, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    if (!(this.replyAck && this.#awaitAck)) return this.send(request, payload, fds);
    const result = await this.ask(request, payload, U64, { fds, needReply: true });
    if (result !== 0n) throw protocolError('PROTOCOL_REPLY', request, `the back end refuses (answer ${result})`);
  }

  /** Sends a request and waits for no answer, only until the kernel has it. */
  async send(request: number, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    this.#connection.send(encodeMessage(request, VHOST_USER_VERSION, payload), fds);
    await this.#connection.drained();
    if (this.#connection.closed) throw this.#closedError(request);
  }

  /** Sends any bytes with any descriptors. */
  sendRaw(bytes: Uint8Array, fds: readonly number[]): Promise<void> {
    this.#connection.send(bytes, fds);
    return this.#connection.drained();
  }

  /** Sends a request and decodes its answer. */
  async ask<T>(request: number, payload: Uint8Array, answer: Payload<T>, options: AskOptions = {}): Promise<T> {
    return answer.decode(request, (await this.#exchange(request, payload, options, false)).payload);
  }

  /** The same with an answer that may bring descriptors. */
  async askForFds<T>(
    request: number,
    payload: Uint8Array,
    answer: Payload<T>,
    options: AskOptions = {},
  ): Promise<AnswerWithFds<T>> {
    const message = await this.#exchange(request, payload, options, true);
    try {
      return { value: answer.decode(request, message.payload), fds: message.fds };
    } catch (error) {
      closeAll(message.fds);
      throw error;
    }
  }

  #exchange(request: number, payload: Uint8Array, { fds = [], needReply }: AskOptions, takesFds: boolean) {
    if (this.#connection.closed) return Promise.reject<Message>(this.#closedError(request));
    const reply = new Promise<Message>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#connection.close(protocolError('PROTOCOL_REPLY', request, `no answer within ${this.#replyTimeoutMs} ms`));
      }, this.#replyTimeoutMs);
      this.#waiting.push({ request, timer, takesFds, resolve, reject });
    });
    const flags = VHOST_USER_VERSION | (needReply === true ? VHOST_USER_NEED_REPLY : 0);
    this.#connection.send(encodeMessage(request, flags, payload), fds);
    return reply;
  }

  #onReply(message: Message): void {
    const waiter = this.#waiting.shift();
    if (waiter === undefined) throw protocolError('PROTOCOL_REPLY', message.request, 'an answer nobody asked for');
    clearTimeout(waiter.timer);
    const problem =
      waiter.request !== message.request
        ? 'the answer is to another request'
        : (message.flags & VHOST_USER_REPLY) === 0
          ? 'the answer lacks the reply flag'
          : undefined;
    if (problem === undefined) {
      waiter.resolve(waiter.takesFds ? { ...message, fds: message.fds.splice(0) } : message);
      return;
    }
    const error = protocolError('PROTOCOL_REPLY', message.request, problem);
    waiter.reject(error);
    throw error;
  }

  #closedError(request: number): SwitchError {
    const why = this.#closeReason === undefined ? 'by the back end' : `(${this.#closeReason.message})`;
    return protocolError('PROTOCOL_REPLY', request, `the connection was closed ${why}`);
  }
}
