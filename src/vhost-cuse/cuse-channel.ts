/**
 * One connection to the kernel's CUSE: agrees on the protocol, makes the device, hands requests on, and sends their answers.
 * It waits for nothing but the event loop. What requests ask is not known here.
 * @see linux/fuse.h; kernel fs/fuse/cuse.c
 */
import { closeSync } from 'node:fs';
import { SwitchError } from '../errors.ts';
import { NO_REQUEST, readRequest, writeAnswer } from '../sys/cuse.ts';
import { ReadWatch } from '../sys/unix-socket.ts';
import {
  CUSE_INIT,
  CUSE_INIT_IN,
  CUSE_UNRESTRICTED_IOCTL,
  FUSE_DESTROY,
  FUSE_INTERRUPT,
  FUSE_KERNEL_VERSION,
} from '../uapi/fuse.ts';
import {
  type DeviceNumber,
  decodeInit,
  decodeRequest,
  encodeAnswer,
  encodeInit,
  type FuseRequest,
  holds,
  LEAST_MINOR,
} from './fuse-message.ts';

/** Bytes of one READ or WRITE, at most. */
const MAX_TRANSFER = 4096;
/** A request's bytes at most: the largest that an ioctl asks for is a table of 509 memory regions. */
const BUFFER_BYTES = 32768;
/** Requests taken before others on the event loop get their turn. */
const REQUESTS_PER_TURN = 16;
/** Requests that may wait for their answers; the kernel keeps the others. */
const MAX_PENDING = 256;

export const EIO = 5;

/** What becomes of a request: an errno, or 0 and what its answer says. */
export interface FuseAnswer {
  readonly error: number;
  readonly body?: Uint8Array;
}

export interface CuseHandlers {
  /** Answers a request other than CUSE_INIT, INTERRUPT and DESTROY. Never rejects. */
  onRequest(request: FuseRequest): Promise<FuseAnswer>;
  /** The kernel has given the device up; comes once, not after `close`. */
  onGone(error: Error | undefined): void;
}

export class CuseChannel {
  /** Resolves when the device is there; rejects with a SwitchError when the kernel does not make it. */
  readonly ready: Promise<void>;
  readonly #fd: number;
  readonly #devName: string;
  readonly #number: DeviceNumber | undefined;
  readonly #handlers: CuseHandlers;
  readonly #watch: ReadWatch;
  readonly #buffer = new Uint8Array(BUFFER_BYTES);
  readonly #ready = Promise.withResolvers<void>();
  #initialised = false;
  #closed = false;
  #pending = 0;

  /**
   * @param fd from `openCuse`, not blocking; the channel owns it from now on
   * @param number of the device; by default the kernel chooses
   */
  constructor(fd: number, devName: string, handlers: CuseHandlers, number?: DeviceNumber) {
    this.#fd = fd;
    this.#devName = devName;
    this.#number = number;
    this.#handlers = handlers;
    this.ready = this.#ready.promise;
    this.ready.catch(() => {});
    try {
      this.#watch = new ReadWatch(fd, this.#onReadable);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Sends a message that answers nothing: a notification. */
  notify(message: Uint8Array): void {
    if (!this.#closed && this.#initialised) this.#write(message);
  }

  /** Gives the device up: whoever waits for an answer gets an error from the kernel. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch.close();
    closeSync(this.#fd);
    this.#ready.reject(refused(this.#devName, 'it was closed'));
  }

  readonly #onReadable = (): void => {
    for (let left = REQUESTS_PER_TURN; left > 0 && !this.#closed; left--) {
      if (this.#pending >= MAX_PENDING) {
        this.#watch.pause();
        return;
      }
      if (!this.#readOne()) return;
    }
  };

  /** @returns false where there is no other to be read */
  #readOne(): boolean {
    try {
      const n = readRequest(this.#fd, this.#buffer);
      if (n === NO_REQUEST) {
        if (this.#initialised) this.#ready.resolve();
        return false;
      }
      if (n === 0) this.#fail(undefined);
      else this.#take(decodeRequest(this.#buffer.subarray(0, n)));
    } catch (error) {
      this.#fail(error as Error);
    }
    return !this.#closed;
  }

  #take(request: FuseRequest | undefined): void {
    if (request === undefined) throw refused(this.#devName, 'a request has a length other than its header says');
    if (request.opcode === CUSE_INIT) this.#initialise(request);
    else if (!this.#initialised) throw refused(this.#devName, `request ${request.opcode} came before CUSE_INIT`);
    else if (request.opcode === FUSE_DESTROY) this.#fail(undefined);
    // what it would interrupt is under way, and is answered soon: the caller waits for that
    else if (request.opcode !== FUSE_INTERRUPT) void this.#answer(request);
  }

  #initialise(request: FuseRequest): void {
    if (this.#initialised) throw refused(this.#devName, 'CUSE_INIT came twice');
    if (!holds(request, CUSE_INIT_IN)) throw refused(this.#devName, 'CUSE_INIT is cut off');
    const { major, minor, flags } = decodeInit(request);
    const speaks = `the kernel speaks FUSE ${major}.${minor}`;
    if (major !== FUSE_KERNEL_VERSION || minor < LEAST_MINOR)
      throw refused(this.#devName, `${speaks}, it must be ${FUSE_KERNEL_VERSION}.${LEAST_MINOR} or a later 7`);
    if ((flags & CUSE_UNRESTRICTED_IOCTL) === 0) throw refused(this.#devName, `${speaks} without unrestricted ioctls`);
    this.#initialised = true;
    this.#write(encodeAnswer(request.unique, 0, encodeInit(minor, this.#devName, MAX_TRANSFER, this.#number)));
  }

  async #answer(request: FuseRequest): Promise<void> {
    this.#pending++;
    const { error, body } = await this.#handlers.onRequest(request);
    this.#pending--;
    if (this.#closed) return;
    this.#write(encodeAnswer(request.unique, error, body));
    if (!this.#closed && this.#pending === MAX_PENDING - 1) this.#watch.resume(this.#onReadable);
  }

  #write(message: Uint8Array): void {
    try {
      writeAnswer(this.#fd, message);
    } catch (error) {
      this.#fail(error as Error);
    }
  }

  #fail(error: Error | undefined): void {
    if (this.#closed) return;
    const why = error?.message ?? 'the kernel has closed it';
    this.#ready.reject(
      error instanceof SwitchError && error.code === 'CUSE_REFUSED' ? error : refused(this.#devName, why),
    );
    this.close();
    this.#handlers.onGone(error);
  }
}

function refused(devName: string, why: string): SwitchError {
  return new SwitchError('CUSE_REFUSED', `/dev/${devName} cannot be made: ${why}`);
}
