/**
 * Translations of I/O virtual addresses over the character device: what is missing is read from it, what is known is written to it.
 * @see linux/vhost_types.h "vhost_msg_v2"; kernel drivers/vhost/vhost.c
 */
import { ProtocolError } from '../errors.ts';
import { VHOST_IOTLB_MSG, VHOST_IOTLB_MSG_V2, VHOST_MSG_V2 } from '../uapi/vhost-ioctl.ts';
import { VHOST_IOTLB_MESSAGE, VHOST_IOTLB_MISS } from '../uapi/vhost-user.ts';
import type { FrontEndChannel } from '../vhost/vhost-device.ts';
import { IOTLB, type IotlbPayload } from '../vhost-user/payloads.ts';

/** Translations that may be asked for before the front end reads; the device asks again for what is lost. */
const MAX_MISSES = 1024;
const { off: MESSAGE, size: MESSAGE_BYTES } = VHOST_MSG_V2;
/** Bytes of a message that are looked at. */
const LEAST_BYTES = MESSAGE.padding + VHOST_IOTLB_MESSAGE.size;

/** What the device asks of a front end that reads. */
export class Translations implements FrontEndChannel {
  /** messages have an address space's number: VHOST_BACKEND_F_IOTLB_MSG_V2 was agreed on */
  hasSpaces = false;
  readonly #onAsked: () => void;
  #misses: Uint8Array[] = [];

  /** @param onAsked there is something to read where there was nothing */
  constructor(onAsked: () => void) {
    this.#onAsked = onAsked;
  }

  get areAsked(): boolean {
    return this.#misses.length > 0;
  }

  iotlbMiss(iova: number, permissions: number): void {
    if (this.#misses.length >= MAX_MISSES) return;
    const message = new Uint8Array(MESSAGE_BYTES);
    const type = this.hasSpaces ? VHOST_IOTLB_MSG_V2 : VHOST_IOTLB_MSG;
    new DataView(message.buffer).setUint32(MESSAGE.type, type, true);
    const miss = { iova: BigInt(iova), size: 0n, userAddr: 0n, permissions, type: VHOST_IOTLB_MISS };
    message.set(IOTLB.encode(miss), MESSAGE.padding);
    this.#misses.push(message);
    if (this.#misses.length === 1) this.#onAsked();
  }

  /** The next message, if there is one. */
  read(): Uint8Array | undefined {
    return this.#misses.shift();
  }

  forget(): void {
    this.#misses = [];
  }

  // kicks, calls and errors go by eventfds, and there is no config space
  configChanged(): void {}
  vringCall(): void {}
  vringError(): void {}
}

/** What a message that is written says. Throws ProtocolError. */
export function decodeTranslation(view: DataView): IotlbPayload {
  const fail = (problem: string): never => {
    throw new ProtocolError('PROTOCOL_VALUE', 'IOTLB_MSG', problem);
  };
  if (view.byteLength < LEAST_BYTES) fail(`${view.byteLength} bytes, must be at least ${LEAST_BYTES}`);
  const type = view.getUint32(MESSAGE.type, true);
  if (type !== VHOST_IOTLB_MSG && type !== VHOST_IOTLB_MSG_V2) fail(`a message of type ${type}, must be 1 or 2`);
  const space = view.getUint32(MESSAGE.asid, true);
  if (type === VHOST_IOTLB_MSG_V2 && space !== 0) fail(`address space ${space}, must be 0`);
  return IOTLB.decode(
    'IOTLB_MSG',
    new DataView(view.buffer, view.byteOffset + MESSAGE.padding, VHOST_IOTLB_MESSAGE.size),
  );
}
