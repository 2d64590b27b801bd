/**
 * What one connection has agreed on, and what the rows of the request table are made of.
 * @see QEMU docs/interop/vhost-user.rst "Communication"
 */
import { hasFeature } from '../uapi/virtio.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { type Message, type Payload, protocolError, type RegionPayload } from './message.ts';

/**
 * How far postcopy migration is. `addresses`: the front end has been told where its memory is mapped, and has to acknowledge that
 * before anything else.
 */
export type Postcopy = 'off' | 'advised' | 'listening' | 'addresses';

/** A region that the device holds, and the file that it lies in. */
export interface SessionRegion extends RegionPayload {
  readonly dev: number;
  readonly ino: number;
  /** how often it has been added: QEMU up to 8 tells it once for every queue pair, and takes it away as often */
  readonly added: number;
}

/** What one connection has agreed on. */
export interface Session {
  readonly device: VhostDevice;
  /** negotiated */
  protocolFeatures: bigint;
  /** the virtio features that the driver has accepted */
  features: bigint;
  /** the regions the device holds */
  regions: readonly SessionRegion[];
  postcopy: Postcopy;
  /** Opens the way for the device's own requests, in place of one there may be; owns the socket. */
  openChannel(fd: number): void;
  /** Waits for `work`, which may take long, but no longer than the connection lasts. */
  whileOpen(work: Promise<void>): Promise<void>;
}

/** True if the protocol feature has been negotiated. */
export const negotiated = (session: Session, bit: number): boolean => hasFeature(session.protocolFeatures, bit);

/** An answer of a request's own; whoever sends it owns `fds`. */
export interface Answer {
  readonly payload: Uint8Array;
  readonly fds?: number[];
}

/** One request as the back end sees it. */
export interface RequestRow {
  /** descriptors that may come along */
  readonly maxFds: number;
  /** it always has an answer of its own, so that a failure cannot be told by an acknowledgement */
  readonly answers: boolean;
  /** the protocol feature bit that must have been negotiated */
  readonly needs: number | undefined;
  /** it is acknowledged where the header asks for it, also without REPLY_ACK */
  readonly alwaysAck: boolean;
  /**
   * The answer that tells a failure, or undefined when only closing the connection does. `asked`: the front end wants to know, as
   * its header says.
   */
  failure(message: Message, asked: boolean): Uint8Array | undefined;
  /** Decodes, checks, acts. Resolves with the answer, or undefined. Takes the descriptors it passes on out of `message.fds`. */
  run(session: Session, message: Message): Promise<Answer | undefined>;
}

/** What a handler gets beside the payload: the request's number for messages, and its descriptors. */
export type Handler<T, R> = (session: Session, value: T, message: Message) => Promise<R>;

export type RowOptions = Partial<Pick<RequestRow, 'maxFds' | 'needs' | 'alwaysAck' | 'failure'>>;

/** A request that does what `run` does. */
export function row(run: RequestRow['run'], answers: boolean, options: RowOptions = {}): RequestRow {
  return { maxFds: 0, needs: undefined, alwaysAck: false, failure: () => undefined, ...options, answers, run };
}

/** A request without an answer. */
export function tell<T>(payload: Payload<T>, handle: Handler<T, void>, options?: RowOptions): RequestRow {
  const run: RequestRow['run'] = async (session, message) => {
    await handle(session, payload.decode(message.request, message.payload), message);
    return undefined;
  };
  return row(run, false, options);
}

/** A request with an answer. */
export function ask<T, R>(
  payload: Payload<T>,
  answer: Payload<R>,
  handle: Handler<T, R>,
  options?: RowOptions,
): RequestRow {
  const run: RequestRow['run'] = async (session, message) => {
    const value = await handle(session, payload.decode(message.request, message.payload), message);
    return { payload: answer.encode(value) };
  };
  return row(run, true, options);
}

/** The vring a payload names; its index is 32 bits wide and may be anything. */
export function checkVring({ device }: Session, request: number, index: number): number {
  if (index < device.maxVrings) return index;
  throw protocolError('PROTOCOL_VRING_INDEX', request, `vring ${index}, must be below ${device.maxVrings}`);
}
