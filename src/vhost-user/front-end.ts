/**
 * The front end's half of the protocol: what QEMU and DPDK's virtio-user say to a switch. For embedded guests, tests and
 * benchmarks. It speaks the messages and keeps no device state: rings and memory are the caller's.
 * @see QEMU docs/interop/vhost-user.rst "Front-end message types"
 */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SysError } from '../errors.ts';
import { connectUnix, unixPair } from '../sys/unix-socket.ts';
import {
  REQUEST,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_UPDATE,
  VHOST_SET_CONFIG_TYPE_FRONTEND,
  VHOST_SET_CONFIG_TYPE_MIGRATION,
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_DIRECTION_SAVE,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_VRING_NOFD_MASK,
} from '../uapi/vhost-user.ts';
import { hasFeature } from '../uapi/virtio.ts';
import {
  type IotlbEntry,
  type MemoryRegion,
  NO_FD,
  type SharedArea,
  type StateDirection,
  type VringAddresses,
} from '../vhost/vhost-device.ts';
import { closeAll } from './connection.ts';
import { type BackEndRequests, FrontEndChannelServer } from './front-end-channel.ts';
import { FrontEndLink, type FrontEndOptions } from './front-end-link.ts';
import {
  EMPTY,
  MEMORY_REGION,
  MEMORY_TABLE,
  type Payload,
  protocolError,
  U64,
  VRING_ADDR,
  VRING_STATE,
} from './message.ts';
import { CONFIG, INFLIGHT, IOTLB, type IotlbPayload, LOG, TRANSFER } from './payloads.ts';

const CONNECT_RETRY_MS = 20;
const NOT_THERE_YET = ['ENOENT', 'ECONNREFUSED', 'EAGAIN'];

export interface ConnectOptions extends FrontEndOptions {
  /** How long to retry while nobody listens, ms. Default 0: fail at once. */
  deadlineMs?: number;
}

/** Bytes of config space, or none: the back end does not have them. */
const CONFIG_OR_NOTHING: Payload<Uint8Array | undefined> = {
  encode: (bytes) => (bytes === undefined ? EMPTY.encode() : CONFIG.encode({ offset: 0, flags: 0, bytes })),
  decode: (request, view) => (view.byteLength === 0 ? undefined : CONFIG.decode(request, view).bytes),
};

/**
 * A connection to a back end. Each method sends one request; it resolves with the answer where the protocol has one, after
 * the acknowledgement where one is awaited, otherwise when the kernel has the message. It rejects with ProtocolError when
 * the back end refuses, with SwitchError when the connection is closed.
 * File descriptors given to a method stay the caller's and may be closed when its promise has settled; those that a method answers with
 * are the caller's too.
 */
export class FrontEnd {
  readonly #link: FrontEndLink;
  #logShmfd = false;
  #channel: FrontEndChannelServer | undefined;

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
    this.#link = new FrontEndLink(fd, options);
    void this.#link.onClose.then(() => this.#channel?.close());
  }

  /** Resolves when the connection is closed: with the reason, or undefined when one side just closed. */
  get onClose(): Promise<Error | undefined> {
    return this.#link.onClose;
  }

  get closed(): boolean {
    return this.#link.closed;
  }

  close(): void {
    this.#link.close();
    this.#channel?.close();
  }

  getFeatures(): Promise<bigint> {
    return this.#link.ask(REQUEST.GET_FEATURES, EMPTY.encode(), U64);
  }

  /** @param features virtio bits, and bit 30 to acknowledge protocol features. */
  setFeatures(features: bigint): Promise<void> {
    return this.#link.tell(REQUEST.SET_FEATURES, U64.encode(features));
  }

  getProtocolFeatures(): Promise<bigint> {
    return this.#link.ask(REQUEST.GET_PROTOCOL_FEATURES, EMPTY.encode(), U64);
  }

  async setProtocolFeatures(features: bigint): Promise<void> {
    await this.#link.tell(REQUEST.SET_PROTOCOL_FEATURES, U64.encode(features));
    this.#link.replyAck = hasFeature(features, VHOST_USER_PROTOCOL_F_REPLY_ACK);
    this.#logShmfd = hasFeature(features, VHOST_USER_PROTOCOL_F_LOG_SHMFD);
  }

  setOwner(): Promise<void> {
    return this.#link.tell(REQUEST.SET_OWNER, EMPTY.encode());
  }

  resetOwner(): Promise<void> {
    return this.#link.tell(REQUEST.RESET_OWNER, EMPTY.encode());
  }

  resetDevice(): Promise<void> {
    return this.#link.tell(REQUEST.RESET_DEVICE, EMPTY.encode());
  }

  /** At most 8 regions. */
  setMemTable(regions: readonly MemoryRegion[]): Promise<void> {
    return this.#link.tell(
      REQUEST.SET_MEM_TABLE,
      MEMORY_TABLE.encode(regions),
      regions.map(({ fd }) => fd),
    );
  }

  /** Memory slots the back end has; needs CONFIGURE_MEM_SLOTS, as adding and removing regions does. */
  async getMaxMemSlots(): Promise<number> {
    return Number(await this.#link.ask(REQUEST.GET_MAX_MEM_SLOTS, EMPTY.encode(), U64));
  }

  addMemReg(region: MemoryRegion): Promise<void> {
    return this.#link.tell(REQUEST.ADD_MEM_REG, MEMORY_REGION.encode(region), [region.fd]);
  }

  /** Addresses and size name the region; its `fd` and `fileOff` are not looked at. */
  remMemReg(region: Omit<MemoryRegion, 'fd' | 'fileOff'>): Promise<void> {
    return this.#link.tell(REQUEST.REM_MEM_REG, MEMORY_REGION.encode({ ...region, fileOff: 0 }));
  }

  /** Queue pairs of a net device, queues of others. */
  async getQueueNum(): Promise<number> {
    return Number(await this.#link.ask(REQUEST.GET_QUEUE_NUM, EMPTY.encode(), U64));
  }

  setVringNum(index: number, num: number): Promise<void> {
    return this.#link.tell(REQUEST.SET_VRING_NUM, VRING_STATE.encode({ index, num }));
  }

  setVringAddr(index: number, addresses: VringAddresses): Promise<void> {
    return this.#link.tell(REQUEST.SET_VRING_ADDR, VRING_ADDR.encode({ index, ...addresses }));
  }

  setVringBase(index: number, num: number): Promise<void> {
    return this.#link.tell(REQUEST.SET_VRING_BASE, VRING_STATE.encode({ index, num }));
  }

  /** Stops the ring. @returns where it stood: for a split ring the next available index. */
  getVringBase(index: number): Promise<number> {
    return this.#getVringBase(REQUEST.GET_VRING_BASE, index);
  }

  /** The same, with what is in flight left so, and recorded: needs GET_VRING_BASE_SKIP_DRAIN. */
  getVringBaseSkipDrain(index: number): Promise<number> {
    return this.#getVringBase(REQUEST.GET_VRING_BASE_SKIP_DRAIN, index);
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
    return this.#link.tell(REQUEST.SET_VRING_ENABLE, VRING_STATE.encode({ index, num: enabled ? 1 : 0 }));
  }

  /** Byte order of a legacy driver; needs CROSS_ENDIAN. */
  setVringEndian(index: number, bigEndian: boolean): Promise<void> {
    return this.#link.tell(REQUEST.SET_VRING_ENDIAN, VRING_STATE.encode({ index, num: bigEndian ? 1 : 0 }));
  }

  /** Kicks in-band; needs INBAND_NOTIFICATIONS. */
  kickVring(index: number): Promise<void> {
    return this.#link.tell(REQUEST.VRING_KICK, VRING_STATE.encode({ index, num: 0 }));
  }

  /** Has the back end announce `mac` (48 bits, first byte lowest) by a fake RARP. */
  sendRarp(mac: bigint): Promise<void> {
    return this.#link.tell(REQUEST.SEND_RARP, U64.encode(mac));
  }

  netSetMtu(mtu: number): Promise<void> {
    return this.#link.tell(REQUEST.NET_SET_MTU, U64.encode(BigInt(mtu)));
  }

  /** Opens the way for the back end's own requests, in place of the one there may be; needs BACKEND_REQ. It ends with the connection. */
  async openChannel(requests: BackEndRequests): Promise<void> {
    const [own, theirs] = unixPair();
    const before = this.#channel;
    const channel = new FrontEndChannelServer(own, requests);
    this.#channel = channel;
    try {
      await this.#link.tell(REQUEST.SET_BACKEND_REQ_FD, EMPTY.encode(), [theirs]);
    } catch (error) {
      channel.close();
      throw error;
    } finally {
      closeSync(theirs);
      before?.close();
    }
  }

  /** Gives a translation; needs ACCESS_PLATFORM. */
  updateIotlb({ iova, size, userAddr, permissions }: IotlbEntry): Promise<void> {
    const entry = { iova: BigInt(iova), size: BigInt(size), userAddr: BigInt(userAddr) };
    return this.#iotlb({ ...entry, permissions, type: VHOST_IOTLB_UPDATE });
  }

  invalidateIotlb(iova: bigint, size: bigint): Promise<void> {
    return this.#iotlb({ iova, size, userAddr: 0n, permissions: 0, type: VHOST_IOTLB_INVALIDATE });
  }

  /** `size` bytes of config space from `offset` on; needs CONFIG. */
  async getConfig(offset: number, size: number): Promise<Uint8Array> {
    const request = REQUEST.GET_CONFIG;
    const wanted = CONFIG.encode({ offset, flags: 0, bytes: new Uint8Array(size) });
    const bytes = await this.#link.ask(request, wanted, CONFIG_OR_NOTHING);
    if (bytes?.length === size) return bytes;
    const problem = bytes === undefined ? 'the back end refuses' : `${bytes.length} bytes came, not ${size}`;
    throw protocolError('PROTOCOL_REPLY', request, problem);
  }

  /** @param migration restored, not written by the driver */
  setConfig(offset: number, bytes: Uint8Array, migration = false): Promise<void> {
    const flags = migration ? VHOST_SET_CONFIG_TYPE_MIGRATION : VHOST_SET_CONFIG_TYPE_FRONTEND;
    return this.#link.tell(REQUEST.SET_CONFIG, CONFIG.encode({ offset, flags, bytes }));
  }

  /** The driver's device status, VIRTIO 1.2 §2.1; needs STATUS. */
  setStatus(status: number): Promise<void> {
    return this.#link.tell(REQUEST.SET_STATUS, U64.encode(BigInt(status)));
  }

  async getStatus(): Promise<number> {
    return Number(await this.#link.ask(REQUEST.GET_STATUS, EMPTY.encode(), U64));
  }

  /** The dirty log; answered when LOG_SHMFD is negotiated. */
  async setLogBase({ fd, ...area }: SharedArea): Promise<void> {
    const payload = LOG.encode(area);
    if (!this.#logShmfd) return this.#link.tell(REQUEST.SET_LOG_BASE, payload, [fd]);
    await this.#link.ask(REQUEST.SET_LOG_BASE, payload, U64, { fds: [fd] }); // back ends differ in what they answer
  }

  /** @param fd an eventfd */
  setLogFd(fd: number): Promise<void> {
    return this.#link.tell(REQUEST.SET_LOG_FD, EMPTY.encode(), [fd]);
  }

  /** @returns the back end's userfaultfd; needs PAGEFAULT, as all of postcopy. */
  async postcopyAdvise(): Promise<number> {
    const request = REQUEST.POSTCOPY_ADVISE;
    const { fds } = await this.#link.askForFds(request, EMPTY.encode(), EMPTY);
    return this.#onlyFd(request, fds);
  }

  postcopyListen(): Promise<void> {
    return this.#link.tell(REQUEST.POSTCOPY_LISTEN, EMPTY.encode());
  }

  /** SET_MEM_TABLE while listening. @returns where the back end has mapped the regions, to be acknowledged by {@link postcopyReady} */
  async setMemTablePostcopy(regions: readonly MemoryRegion[]): Promise<readonly number[]> {
    const request = REQUEST.SET_MEM_TABLE;
    const fds = regions.map(({ fd }) => fd);
    const mapped = await this.#link.ask(request, MEMORY_TABLE.encode(regions), MEMORY_TABLE, { fds });
    if (mapped.length === regions.length && mapped.every((m, i) => m.guestAddr === regions[i].guestAddr)) {
      return mapped.map(({ frontendAddr }) => frontendAddr);
    }
    throw protocolError('PROTOCOL_REPLY', request, 'the answer is about other regions');
  }

  /** The addresses are known: the back end may touch the memory. Sent as QEMU does, with 64 bits of 0. */
  postcopyReady(): Promise<void> {
    return this.#link.send(REQUEST.SET_MEM_TABLE, U64.encode(0n));
  }

  async postcopyEnd(): Promise<void> {
    this.#checkResult(REQUEST.POSTCOPY_END, await this.#link.ask(REQUEST.POSTCOPY_END, EMPTY.encode(), U64));
  }

  /** Memory for the inflight records of `queues` vrings of `queueSize` descriptors; needs INFLIGHT_SHMFD. */
  async getInflightFd(queues: number, queueSize: number): Promise<SharedArea> {
    const request = REQUEST.GET_INFLIGHT_FD;
    const wanted = INFLIGHT.encode({ size: 0, fileOff: 0, queues, queueSize });
    const { value, fds } = await this.#link.askForFds(request, wanted, INFLIGHT);
    return { fd: this.#onlyFd(request, fds), size: value.size, fileOff: value.fileOff };
  }

  setInflightFd({ fd, size, fileOff }: SharedArea, queues: number, queueSize: number): Promise<void> {
    return this.#link.tell(REQUEST.SET_INFLIGHT_FD, INFLIGHT.encode({ size, fileOff, queues, queueSize }), [fd]);
  }

  /** Begins a transfer of the device's state over `fd`. @returns the descriptor to use instead of this side's end of it, if the back end has one */
  async setDeviceStateFd(direction: StateDirection, fd: number): Promise<number | undefined> {
    const request = REQUEST.SET_DEVICE_STATE_FD;
    const load = direction === 'load';
    const transfer = TRANSFER.encode({
      direction: load ? VHOST_TRANSFER_STATE_DIRECTION_LOAD : VHOST_TRANSFER_STATE_DIRECTION_SAVE,
      phase: VHOST_TRANSFER_STATE_PHASE_STOPPED,
    });
    const { value, fds } = await this.#link.askForFds(request, transfer, U64, { fds: [fd] });
    if (value === BigInt(VHOST_USER_VRING_NOFD_MASK) && fds.length === 0) return undefined;
    if (value === 0n) return this.#onlyFd(request, fds);
    closeAll(fds);
    throw protocolError('PROTOCOL_REPLY', request, `the back end refuses (answer ${value})`);
  }

  /** Resolves when the back end has all of the state, or has passed all of it on. */
  async checkDeviceState(): Promise<void> {
    this.#checkResult(
      REQUEST.CHECK_DEVICE_STATE,
      await this.#link.ask(REQUEST.CHECK_DEVICE_STATE, EMPTY.encode(), U64),
    );
  }

  /** Sends any bytes with any descriptors, for tests of a back end's manners. No answer may be awaited for them. */
  sendRaw(bytes: Uint8Array, fds: readonly number[] = []): Promise<void> {
    return this.#link.sendRaw(bytes, fds);
  }

  #setVringFd(request: number, index: number, fd: number): Promise<void> {
    if (fd !== NO_FD) return this.#link.tell(request, U64.encode(BigInt(index)), [fd]);
    return this.#link.tell(request, U64.encode(BigInt(index | VHOST_USER_VRING_NOFD_MASK)));
  }

  async #getVringBase(request: number, index: number): Promise<number> {
    const state = await this.#link.ask(request, VRING_STATE.encode({ index, num: 0 }), VRING_STATE);
    if (state.index === index) return state.num;
    throw protocolError('PROTOCOL_REPLY', request, `the answer is about vring ${state.index}, not ${index}`);
  }

  /** Back ends answer always, or only when they are asked to. */
  async #iotlb(message: IotlbPayload): Promise<void> {
    const options = { needReply: true };
    this.#checkResult(REQUEST.IOTLB_MSG, await this.#link.ask(REQUEST.IOTLB_MSG, IOTLB.encode(message), U64, options));
  }

  #checkResult(request: number, result: bigint): void {
    if (result !== 0n) throw protocolError('PROTOCOL_REPLY', request, `the back end refuses (answer ${result})`);
  }

  /** The one descriptor of an answer; others are closed. */
  #onlyFd(request: number, fds: number[]): number {
    if (fds.length === 1) return fds[0];
    const problem =
      fds.length === 0 ? 'the back end refuses: no file descriptor came' : `${fds.length} file descriptors came, not 1`;
    closeAll(fds);
    throw protocolError('PROTOCOL_REPLY', request, problem);
  }
}
