/**
 * The front end's half of the protocol: what QEMU and DPDK's virtio-user say to a switch. For embedded guests, tests and
 * benchmarks. It speaks the messages and keeps no device state: rings and memory are the caller's.
 * @see QEMU docs/interop/vhost-user.rst "Front-end message types"
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type SwitchError, SysError } from '../errors.ts';
import { connectUnix } from '../sys/unix-socket.ts';
import {
  REQUEST,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY,
  VHOST_USER_VERSION,
  VHOST_USER_VRING_NOFD_MASK,
} from '../uapi/vhost-user.ts';
import { hasFeature } from '../uapi/virtio.ts';
import { type MemoryRegion, NO_FD, type VringAddresses } from '../vhost/vhost-device.ts';
import { Connection } from './connection.ts';
import {
  EMPTY,
  encodeMessage,
  MEMORY_REGION,
  MEMORY_TABLE,
  type Message,
  type Payload,
  protocolError,
  U64,
  VRING_ADDR,
  VRING_STATE,
} from './message.ts';

const CONNECT_RETRY_MS = 20;
const NOT_THERE_YET = ['ENOENT', 'ECONNREFUSED', 'EAGAIN'];

export interface FrontEndOptions {
  /** Ask for an acknowledgement of every request once REPLY_ACK is negotiated, and fail when it is a refusal. Default true. */
  awaitAck?: boolean;
  /** How long an answer may take, ms; then the connection is closed. Default 10 000. */
  replyTimeoutMs?: number;
}

export interface ConnectOptions extends FrontEndOptions {
  /** How long to retry while nobody listens, ms. Default 0: fail at once. */
  deadlineMs?: number;
}

/** Someone waiting for an answer. */
interface Waiter {
  readonly request: number;
  readonly timer: NodeJS.Timeout;
  resolve(message: Message): void;
  reject(error: Error): void;
}

/**
 * A connection to a back end. Each method sends one request; it resolves with the answer where the protocol has one, after
 * the acknowledgement where one is awaited, otherwise when the kernel has the message. It rejects with ProtocolError when
 * the back end refuses, with SwitchError when the connection is closed.
 * File descriptors given to a method stay the caller's and may be closed when its promise has settled.
 */
export class FrontEnd {
  /** Resolves when the connection is closed: with the reason, or undefined when one side just closed. */
  readonly onClose: Promise<Error | undefined>;
  readonly #connection: Connection;
  readonly #awaitAck: boolean;
  readonly #replyTimeoutMs: number;
  readonly #waiting: Waiter[] = [];
  #replyAck = false;
  #logShmfd = false;
  #closeReason: Error | undefined;

  /** Connects to the back end listening on `path`. Throws SysError (ENOENT, ECONNREFUSED, EACCES, …). */
  static async connect(path: string, options: ConnectOptions = {}): Promise<FrontEnd> {
    const giveUpAt = performance.now() + (options.deadlineMs ?? 0);
    for (;;) {
      try {
        return new FrontEnd(connectUnix(path), options);
      } catch (error) {
        const retry = error instanceof SysError && NOT_THERE_YET.includes(error.code);
        if (!retry || performance.now() >= giveUpAt) throw error;
      }
      await sleep(CONNECT_RETRY_MS);
    }
  }

  /** @param fd a connected, non-blocking socket, for example an accepted one; owned by the front end from now on. */
  constructor(fd: number, options: FrontEndOptions = {}) {
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

  getFeatures(): Promise<bigint> {
    return this.#ask(REQUEST.GET_FEATURES, EMPTY.encode(), U64);
  }

  /** @param features virtio bits, and bit 30 to acknowledge protocol features. */
  setFeatures(features: bigint): Promise<void> {
    return this.#tell(REQUEST.SET_FEATURES, U64.encode(features));
  }

  getProtocolFeatures(): Promise<bigint> {
    return this.#ask(REQUEST.GET_PROTOCOL_FEATURES, EMPTY.encode(), U64);
  }

  async setProtocolFeatures(features: bigint): Promise<void> {
    await this.#tell(REQUEST.SET_PROTOCOL_FEATURES, U64.encode(features));
    this.#replyAck = hasFeature(features, VHOST_USER_PROTOCOL_F_REPLY_ACK);
    this.#logShmfd = hasFeature(features, VHOST_USER_PROTOCOL_F_LOG_SHMFD);
  }

  setOwner(): Promise<void> {
    return this.#tell(REQUEST.SET_OWNER, EMPTY.encode());
  }

  resetOwner(): Promise<void> {
    return this.#tell(REQUEST.RESET_OWNER, EMPTY.encode());
  }

  /** At most 8 regions. */
  setMemTable(regions: readonly MemoryRegion[]): Promise<void> {
    return this.#tell(
      REQUEST.SET_MEM_TABLE,
      MEMORY_TABLE.encode(regions),
      regions.map(({ fd }) => fd),
    );
  }

  /** Memory slots the back end has; needs CONFIGURE_MEM_SLOTS, as adding and removing regions does. */
  async getMaxMemSlots(): Promise<number> {
    return Number(await this.#ask(REQUEST.GET_MAX_MEM_SLOTS, EMPTY.encode(), U64));
  }

  addMemReg(region: MemoryRegion): Promise<void> {
    return this.#tell(REQUEST.ADD_MEM_REG, MEMORY_REGION.encode(region), [region.fd]);
  }

  /** Addresses and size name the region; its `fd` and `fileOff` are not looked at. */
  remMemReg(region: Omit<MemoryRegion, 'fd' | 'fileOff'>): Promise<void> {
    return this.#tell(REQUEST.REM_MEM_REG, MEMORY_REGION.encode({ ...region, fileOff: 0 }));
  }

  /** Queue pairs the back end has. */
  async getQueueNum(): Promise<number> {
    return Number(await this.#ask(REQUEST.GET_QUEUE_NUM, EMPTY.encode(), U64));
  }

  setVringNum(index: number, num: number): Promise<void> {
    return this.#tell(REQUEST.SET_VRING_NUM, VRING_STATE.encode({ index, num }));
  }

  setVringAddr(index: number, addresses: VringAddresses): Promise<void> {
    return this.#tell(REQUEST.SET_VRING_ADDR, VRING_ADDR.encode({ index, ...addresses }));
  }

  setVringBase(index: number, num: number): Promise<void> {
    return this.#tell(REQUEST.SET_VRING_BASE, VRING_STATE.encode({ index, num }));
  }

  /** Stops the ring. @returns where it stood: for a split ring the next available index. */
  async getVringBase(index: number): Promise<number> {
    const state = await this.#ask(REQUEST.GET_VRING_BASE, VRING_STATE.encode({ index, num: 0 }), VRING_STATE);
    if (state.index === index) return state.num;
    throw protocolError(
      'PROTOCOL_REPLY',
      REQUEST.GET_VRING_BASE,
      `the answer is about vring ${state.index}, not ${index}`,
    );
  }

  /** Starts the ring; NO_FD has it polled. */
  setVringKick(index: number, fd: number): Promise<void> {
    return this.#setVringFd(REQUEST.SET_VRING_KICK, index, fd);
  }

  setVringCall(index: number, fd: number): Promise<void> {
    return this.#setVringFd(REQUEST.SET_VRING_CALL, index, fd);
  }

  setVringErr(index: number, fd: number): Promise<void> {
    return this.#setVringFd(REQUEST.SET_VRING_ERR, index, fd);
  }

  setVringEnable(index: number, enabled: boolean): Promise<void> {
    return this.#tell(REQUEST.SET_VRING_ENABLE, VRING_STATE.encode({ index, num: enabled ? 1 : 0 }));
  }

  /** Has the back end announce `mac` (48 bits, first byte lowest) by a fake RARP. */
  sendRarp(mac: bigint): Promise<void> {
    return this.#tell(REQUEST.SEND_RARP, U64.encode(mac));
  }

  netSetMtu(mtu: number): Promise<void> {
    return this.#tell(REQUEST.NET_SET_MTU, U64.encode(BigInt(mtu)));
  }

  /** "Log description": `size` bytes at `offset` of `fd` are the dirty log; answered when LOG_SHMFD is negotiated. */
  async setLogBase(size: bigint, offset: bigint, fd: number): Promise<void> {
    const payload = Buffer.concat([U64.encode(size), U64.encode(offset)]);
    if (!this.#logShmfd) return this.#tell(REQUEST.SET_LOG_BASE, payload, [fd]);
    await this.#ask(REQUEST.SET_LOG_BASE, payload, U64, [fd]); // back ends differ in what they answer
  }

  setLogFd(fd: number): Promise<void> {
    return this.#tell(REQUEST.SET_LOG_FD, EMPTY.encode(), [fd]);
  }

  /** Sends any bytes with any descriptors, for tests of a back end's manners. No answer may be awaited for them. */
  sendRaw(bytes: Uint8Array, fds: readonly number[] = []): Promise<void> {
    this.#connection.send(bytes, fds);
    return this.#connection.drained();
  }

  #setVringFd(request: number, index: number, fd: number): Promise<void> {
    if (fd !== NO_FD) return this.#tell(request, U64.encode(BigInt(index)), [fd]);
    return this.#tell(request, U64.encode(BigInt(index | VHOST_USER_VRING_NOFD_MASK)));
  }

  /** Sends a request without an answer of its own; waits for the acknowledgement if there is to be one. */
  async #tell(request: number, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    if (!(this.#replyAck && this.#awaitAck)) {
      this.#send(request, VHOST_USER_VERSION, payload, fds);
      await this.#connection.drained();
      if (this.#connection.closed) throw this.#closedError(request);
      return;
    }
    const reply = this.#expect(request);
    this.#send(request, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY, payload, fds);
    const result = U64.decode(request, (await reply).payload);
    if (result !== 0n) throw protocolError('PROTOCOL_REPLY', request, `the back end refuses (answer ${result})`);
  }

  /** Sends a request and decodes its answer. */
  async #ask<T>(request: number, payload: Uint8Array, answer: Payload<T>, fds: readonly number[] = []): Promise<T> {
    const reply = this.#expect(request);
    this.#send(request, VHOST_USER_VERSION, payload, fds);
    return answer.decode(request, (await reply).payload);
  }

  #send(request: number, flags: number, payload: Uint8Array, fds: readonly number[]): void {
    this.#connection.send(encodeMessage(request, flags, payload), fds);
  }

  #expect(request: number): Promise<Message> {
    if (this.#connection.closed) return Promise.reject(this.#closedError(request));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#connection.close(protocolError('PROTOCOL_REPLY', request, `no answer within ${this.#replyTimeoutMs} ms`));
      }, this.#replyTimeoutMs);
      this.#waiting.push({ request, timer, resolve, reject });
    });
  }

  /** Answers come in the order of the requests. */
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
      waiter.resolve(message);
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
