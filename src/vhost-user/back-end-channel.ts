/**
 * The back end's own way to the front end: the socket that SET_BACKEND_REQ_FD brought. It sends without waiting, and what it keeps for a
 * front end that does not read or does not answer is bounded: where REPLY_ACK was negotiated, every message asks for an answer, and
 * while one is due the same is not sent again, only remembered.
 * @see QEMU docs/interop/vhost-user.rst "Back-end communication", "Back-end message types"
 */
import {
  BACKEND_REQUEST,
  backendRequestName,
  VHOST_IOTLB_MISS,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY,
  VHOST_USER_VERSION,
  VHOST_USER_VRING_NOFD_MASK,
} from '../uapi/vhost-user.ts';
import { hasFeature } from '../uapi/virtio.ts';
import type { FrontEndChannel, SharedArea } from '../vhost/vhost-device.ts';
import { Connection } from './connection.ts';
import { EMPTY, encodeMessage, type Message, protocolError, U64, VRING_STATE } from './message.ts';
import { IOTLB, VRING_AREA } from './payloads.ts';

/** Answers that may be due at a time. */
const MAX_UNANSWERED = 1024;

export interface BackEndChannelOptions {
  /** as negotiated */
  readonly protocolFeatures: bigint;
  /** The front end refuses a request. */
  onProblem(problem: string): void;
  /** Called once, perhaps within a call that sends. `error` is undefined when either side just closed. */
  onClose(error: Error | undefined): void;
}

/** A message whose answer is due. */
interface Unanswered {
  readonly request: number;
  readonly payload: Uint8Array;
  /** tells equal messages */
  readonly key: string;
  /** it is to be sent once more when it has been answered */
  again: boolean;
}

/** Once closed, every request does nothing. */
export class BackEndChannel implements FrontEndChannel {
  readonly #connection: Connection;
  readonly #replyAck: boolean;
  readonly #sendFd: boolean;
  /** in the order they were sent, which is that of their answers */
  readonly #unanswered = new Map<string, Unanswered>();

  /** @param fd a connected Unix socket; the channel owns it from now on. */
  constructor(fd: number, { protocolFeatures, onProblem, onClose }: BackEndChannelOptions) {
    this.#replyAck = hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_REPLY_ACK);
    this.#sendFd = hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD);
    this.#connection = new Connection(fd, {
      onMessage: async (message) => this.#onAnswer(message, onProblem),
      onClose,
      nameOf: backendRequestName,
    });
  }

  close(): void {
    this.#connection.close();
  }

  iotlbMiss(iova: number, permissions: number): void {
    const miss = { iova: BigInt(iova), size: 0n, userAddr: 0n, permissions, type: VHOST_IOTLB_MISS };
    this.#request(BACKEND_REQUEST.BACKEND_IOTLB_MSG, IOTLB.encode(miss), `${iova} ${permissions}`);
  }

  configChanged(): void {
    this.#request(BACKEND_REQUEST.BACKEND_CONFIG_CHANGE_MSG, EMPTY.encode(), '');
  }

  vringCall(vring: number): void {
    this.#request(BACKEND_REQUEST.BACKEND_VRING_CALL, VRING_STATE.encode({ index: vring, num: 0 }), `${vring}`);
  }

  vringError(vring: number): void {
    this.#request(BACKEND_REQUEST.BACKEND_VRING_ERR, VRING_STATE.encode({ index: vring, num: 0 }), `${vring}`);
  }

  /**
   * Has the front end map `area` for the guest to notify the vring by, or take the mapping away. The descriptor stays the caller's, who
   * leaves it open until the promise has settled. Rejects with ProtocolError where BACKEND_SEND_FD was not negotiated.
   */
  async hostNotifier(vring: number, area: SharedArea | undefined): Promise<void> {
    const request = BACKEND_REQUEST.BACKEND_VRING_HOST_NOTIFIER_MSG;
    if (area !== undefined && !this.#sendFd) {
      const problem = `protocol feature bit ${VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD} was not negotiated`;
      throw protocolError('PROTOCOL_NOT_SUPPORTED', backendRequestName(request), problem);
    }
    const none = { index: vring | VHOST_USER_VRING_NOFD_MASK, size: 0, fileOff: 0 };
    const payload = VRING_AREA.encode(area === undefined ? none : { ...area, index: vring });
    const flags = VHOST_USER_VERSION; // no answer: a descriptor cannot be kept to be sent again
    this.#connection.send(encodeMessage(request, flags, payload), area === undefined ? [] : [area.fd]);
    await this.#connection.drained();
  }

  /** `about`: what tells this message from others of the same request. */
  #request(request: number, payload: Uint8Array, about: string): void {
    if (this.#connection.closed) return;
    if (!this.#replyAck) {
      this.#connection.send(encodeMessage(request, VHOST_USER_VERSION, payload));
      return;
    }
    const key = `${request} ${about}`;
    const due = this.#unanswered.get(key);
    if (due !== undefined) due.again = true;
    else this.#ask({ request, payload, key, again: false });
  }

  #ask(message: Unanswered): void {
    const { request, payload, key } = message;
    if (this.#unanswered.size >= MAX_UNANSWERED) {
      const problem = `${MAX_UNANSWERED} requests of the back end are unanswered`;
      this.#connection.close(protocolError('PROTOCOL_UNREAD_ANSWERS', backendRequestName(request), problem));
      return;
    }
    this.#unanswered.set(key, message);
    this.#connection.send(encodeMessage(request, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY, payload));
  }

  /** Answers come in the order of the requests. */
  #onAnswer(message: Message, onProblem: (problem: string) => void): void {
    const name = backendRequestName(message.request);
    const [asked] = this.#unanswered.values();
    if (asked?.request !== message.request) {
      throw protocolError(
        'PROTOCOL_REPLY',
        name,
        asked === undefined ? 'an answer nobody asked for' : 'the answer is to another request',
      );
    }
    if ((message.flags & VHOST_USER_REPLY) === 0) {
      throw protocolError('PROTOCOL_REPLY', name, 'the answer lacks the reply flag');
    }
    const result = U64.decode(name, message.payload);
    this.#unanswered.delete(asked.key);
    if (result !== 0n) onProblem(`${name}: the front end refuses (answer ${result})`);
    if (asked.again) this.#ask({ ...asked, again: false });
  }
}
