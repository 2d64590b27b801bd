/**
 * The front end's end of the back end's own way: hears what the back end asks for, and answers.
 * @see QEMU docs/interop/vhost-user.rst "Back-end communication", "Back-end message types"
 */
import {
  BACKEND_REQUEST,
  backendRequestName,
  VHOST_IOTLB_MISS,
  VHOST_USER_NEED_REPLY,
  VHOST_USER_REPLY,
  VHOST_USER_VERSION,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_NOFD_MASK,
} from '../uapi/vhost-user.ts';
import type { SharedArea } from '../vhost/vhost-device.ts';
import { Connection } from './connection.ts';
import { EMPTY, encodeMessage, type Message, protocolError, U64, VRING_STATE } from './message.ts';
import { IOTLB, VRING_AREA } from './payloads.ts';

/**
 * What a back end asks for. What is left out is refused, as is what throws or rejects; a request is answered, and the next one read, when
 * the promise has settled.
 */
export interface BackEndRequests {
  /** A translation is missing: it is to be given by FrontEnd.updateIotlb before this returns, if there is one. */
  onIotlbMiss?(iova: bigint, permissions: number): Promise<void> | void;
  onConfigChange?(): Promise<void> | void;
  /** Used buffers, in-band. */
  onVringCall?(vring: number): Promise<void> | void;
  /** An error, in-band. */
  onVringError?(vring: number): Promise<void> | void;
  /** `area`: to be mapped for the guest to notify by, or undefined to take that back. Its descriptor is the handler's. */
  onHostNotifier?(vring: number, area: SharedArea | undefined): Promise<void> | void;
  /** A request has been refused, for this reason. */
  onRefusal?(error: Error): void;
  /** The channel is closed, by the back end if `error` is undefined. */
  onChannelClose?(error: Error | undefined): void;
}

type Serve = (requests: BackEndRequests, message: Message, name: string) => Promise<void> | void;

/** Says that a front end without such a handler does not serve the request. */
function handler<T>(found: T | undefined, name: string): T {
  if (found !== undefined) return found;
  throw protocolError('PROTOCOL_NOT_SUPPORTED', name, 'not served');
}

const SERVED: ReadonlyMap<number, Serve> = new Map<number, Serve>([
  [
    BACKEND_REQUEST.BACKEND_IOTLB_MSG,
    (requests, { payload }, name) => {
      const { iova, permissions, type } = IOTLB.decode(name, payload);
      if (type !== VHOST_IOTLB_MISS) throw protocolError('PROTOCOL_VALUE', name, `type ${type}, must be 1 (miss)`);
      return handler(requests.onIotlbMiss, name).call(requests, iova, permissions);
    },
  ],
  [
    BACKEND_REQUEST.BACKEND_CONFIG_CHANGE_MSG,
    (requests, { payload }, name) => {
      EMPTY.decode(name, payload);
      return handler(requests.onConfigChange, name).call(requests);
    },
  ],
  [
    BACKEND_REQUEST.BACKEND_VRING_HOST_NOTIFIER_MSG,
    (requests, { payload, fds }, name) => {
      const { index, size, fileOff } = VRING_AREA.decode(name, payload);
      const expected = (index & VHOST_USER_VRING_NOFD_MASK) === 0 ? 1 : 0;
      if (fds.length !== expected) {
        throw protocolError('PROTOCOL_FD_COUNT', name, `${fds.length} file descriptors, must be ${expected}`);
      }
      const use = handler(requests.onHostNotifier, name);
      const [fd] = fds.splice(0);
      return use.call(requests, index & VHOST_USER_VRING_IDX_MASK, expected === 0 ? undefined : { fd, size, fileOff });
    },
  ],
  [
    BACKEND_REQUEST.BACKEND_VRING_CALL,
    (requests, { payload }, name) =>
      handler(requests.onVringCall, name).call(requests, VRING_STATE.decode(name, payload).index),
  ],
  [
    BACKEND_REQUEST.BACKEND_VRING_ERR,
    (requests, { payload }, name) =>
      handler(requests.onVringError, name).call(requests, VRING_STATE.decode(name, payload).index),
  ],
]);

/** Serves one channel until either side closes it. */
export class FrontEndChannelServer {
  readonly #connection: Connection;
  readonly #requests: BackEndRequests;

  /** @param fd this side's end of the socket, owned from now on. */
  constructor(fd: number, requests: BackEndRequests) {
    this.#requests = requests;
    this.#connection = new Connection(fd, {
      onMessage: (message) => this.#onMessage(message),
      onClose: (error) => requests.onChannelClose?.(error),
      nameOf: backendRequestName,
    });
  }

  close(): void {
    this.#connection.close();
  }

  /** Without a way to refuse, what is wrong closes the channel. */
  async #onMessage(message: Message): Promise<void> {
    const { request, flags } = message;
    const asked = (flags & VHOST_USER_NEED_REPLY) !== 0;
    const name = backendRequestName(request);
    let result = 0n;
    try {
      await handler(SERVED.get(request), name)(this.#requests, message, name);
    } catch (error) {
      if (!asked) throw error;
      this.#requests.onRefusal?.(error as Error);
      result = 1n;
    }
    if (!asked) return;
    this.#connection.send(encodeMessage(request, VHOST_USER_VERSION | VHOST_USER_REPLY, U64.encode(result)));
  }
}
