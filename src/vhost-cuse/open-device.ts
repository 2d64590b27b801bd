/**
 * One open of the character device, from OPEN to RELEASE: answers its requests one after the other, whichever threads they come from,
 * and says in errnos what went wrong.
 * @see linux/fuse.h "fuse_ioctl_in"
 */
import { ProtocolError, SysError } from '../errors.ts';
import type { WindowPool } from '../mem/window.ts';
import {
  FUSE_IOCTL,
  FUSE_IOCTL_IN,
  FUSE_POLL,
  FUSE_POLL_IN,
  FUSE_POLL_SCHEDULE_NOTIFY,
  FUSE_READ,
  FUSE_READ_IN,
  FUSE_WRITE,
  FUSE_WRITE_IN,
} from '../uapi/fuse.ts';
import { VHOST_MSG_V2 } from '../uapi/vhost-ioctl.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { LimitedLog, type Log } from '../vhost-user/limited-log.ts';
import { EIO, type FuseAnswer } from './cuse-channel.ts';
import {
  decodeIoctl,
  decodePoll,
  decodeRead,
  decodeWrite,
  encodeIoctl,
  encodePoll,
  encodePollWakeup,
  encodeRetry,
  encodeWrite,
  type FuseRequest,
  holds,
  type IoctlCall,
  type Piece,
} from './fuse-message.ts';
import { IOCTLS, type IoctlRow } from './ioctls.ts';
import { VhostSession } from './vhost-session.ts';

/** EPOLLIN | EPOLLRDNORM */
const POLL_READABLE = 0x41;
const EPERM = 1;
const E2BIG = 7;
const EAGAIN = 11;
const EFAULT = 14;
const EBUSY = 16;
const ENODEV = 19;
const EINVAL = 22;
const ENOTTY = 25;
export const ENOSYS = 38;
const EOPNOTSUPP = 95;
const ENOBUFS = 105;

/** The errno that vhost-net has for what a ProtocolError's code says; EINVAL for all others. */
const ERRNO: ReadonlyMap<string, number> = new Map([
  ['PROTOCOL_VRING_INDEX', ENOBUFS],
  ['PROTOCOL_FEATURES', EOPNOTSUPP],
  ['PROTOCOL_ADDRESS', EFAULT],
  ['PROTOCOL_MEMORY', EFAULT],
  ['BAD_MEMORY', EFAULT],
  ['BAD_SHARED_AREA', EFAULT],
  ['PRIVATE_MEMORY', EFAULT],
  ['BAD_VRING', EFAULT],
  ['BAD_IOTLB', EFAULT],
  ['OPENER_RIGHTS', EPERM],
  ['OPENER_NOT_OWNER', EPERM],
  ['OPENER_HAS_OWNER', EBUSY],
  ['OPENER_TOO_MUCH', E2BIG],
  ['VRING_BUSY', EBUSY],
]);

function errnoOf(error: unknown): number {
  if (error instanceof SysError) return error.errno;
  if (error instanceof ProtocolError) return ERRNO.get(error.code) ?? EINVAL;
  return EIO;
}

export interface OpenDeviceOptions {
  /** what log lines call it */
  readonly name: string;
  readonly log: Log;
  /** as VhostSession's */
  readonly tapFeatures: bigint;
  readonly pool: WindowPool;
  /** Sends the kernel a message that answers nothing. */
  notify(message: Uint8Array): void;
}

export class OpenDevice {
  readonly #log: LimitedLog;
  readonly #session: VhostSession;
  /** settles when all that has been begun with the device is done: its calls never overlap */
  #handling: Promise<void> = Promise.resolve();
  #gone = false;
  readonly #notify: OpenDeviceOptions['notify'];
  /** the kernel's name for a poll that sleeps */
  #poller: bigint | undefined;

  /** Owns the device from now on. */
  constructor(device: VhostDevice, { name, log, tapFeatures, pool, notify }: OpenDeviceOptions) {
    this.#notify = notify;
    this.#log = new LimitedLog(log, { prefix: `${name}: ` });
    this.#session = new VhostSession(device, {
      tapFeatures,
      pool,
      onProblem: (problem) => this.#log.log('warn', problem),
      onAsked: () => this.#wakePoller(),
      onOwnerGone: () => void this.#serially(() => this.#onOwnerGone()),
    });
  }

  get device(): VhostDevice {
    return this.#session.device;
  }

  /** Answers any request that names this open but RELEASE. Never rejects. */
  async answer(request: FuseRequest): Promise<FuseAnswer> {
    switch (request.opcode) {
      case FUSE_IOCTL:
        return holds(request, FUSE_IOCTL_IN) ? this.#ioctl(request) : { error: EINVAL };
      case FUSE_POLL:
        return holds(request, FUSE_POLL_IN) ? this.#poll(request) : { error: EINVAL };
      case FUSE_READ:
        return holds(request, FUSE_READ_IN) ? this.#read(request) : { error: EINVAL };
      case FUSE_WRITE:
        return holds(request, FUSE_WRITE_IN) ? this.#write(request) : { error: EINVAL };
      default:
        return { error: ENOSYS };
    }
  }

  /** Who is to be told that there is something to read, is told once: it polls again. */
  #poll(request: FuseRequest): FuseAnswer {
    const { areAsked } = this.#session.translations;
    const { kh, flags } = decodePoll(request);
    if (!areAsked && (flags & FUSE_POLL_SCHEDULE_NOTIFY) !== 0) this.#poller = kh;
    return { error: 0, body: encodePoll(areAsked ? POLL_READABLE : 0) };
  }

  #wakePoller(): void {
    if (this.#poller !== undefined) this.#notify(encodePollWakeup(this.#poller));
    this.#poller = undefined;
  }

  /** One translation that is asked for. Never waits, whatever the file's flags. */
  #read(request: FuseRequest): FuseAnswer {
    if (decodeRead(request) < VHOST_MSG_V2.size) return { error: EINVAL };
    const body = this.#session.translations.read();
    return body === undefined ? { error: EAGAIN } : { error: 0, body };
  }

  async #write(request: FuseRequest): Promise<FuseAnswer> {
    const message = decodeWrite(request);
    if (message === undefined) return { error: EINVAL };
    return this.#serially(async () => {
      if (this.#gone) return { error: ENODEV };
      try {
        await this.#session.translate(message);
        return { error: 0, body: encodeWrite(message.byteLength) };
      } catch (error) {
        return this.#refuse('IOTLB_MSG', error);
      }
    });
  }

  /** Destroys the device; what is asked afterwards fails. Resolves when it is gone. Never rejects. */
  async close(): Promise<void> {
    this.device.frontEndGone?.();
    await this.#serially(() => this.#destroy());
  }

  async #destroy(): Promise<void> {
    if (this.#gone) return;
    this.#gone = true;
    try {
      await this.#session.destroy();
    } catch (error) {
      this.#log.log('error', `the device was not destroyed cleanly: ${(error as Error).message}`);
    }
    this.#log.flush();
  }

  async #onOwnerGone(): Promise<void> {
    if (this.#gone) return;
    this.#log.log('info', 'its owner has ended');
    try {
      await this.#session.reset();
    } catch (error) {
      this.#log.log('error', `the device was not reset cleanly: ${(error as Error).message}`);
    }
  }

  /** @param run never rejects */
  #serially<T>(run: () => Promise<T>): Promise<T> {
    const done = this.#handling.then(run);
    this.#handling = done.then(() => {});
    return done;
  }

  async #ioctl(request: FuseRequest): Promise<FuseAnswer> {
    const call = decodeIoctl(request);
    if (call === undefined) return { error: EINVAL };
    const row = IOCTLS.get(call.cmd);
    if (row === undefined) return { error: ENOTTY };
    try {
      const retry = missing(row, call);
      if (retry !== undefined) return { error: 0, body: retry };
    } catch (error) {
      return this.#refuse(row.name, error);
    }
    return this.#serially(() => this.#run(row, call, request.pid));
  }

  async #run(row: IoctlRow, { data }: IoctlCall, thread: number): Promise<FuseAnswer> {
    if (this.#gone) return { error: ENODEV };
    try {
      if (row.owner) this.#session.checkOwner(row.name, thread);
      return { error: 0, body: encodeIoctl(0, await row.run(this.#session, data, thread)) };
    } catch (error) {
      return this.#refuse(row.name, error);
    }
  }

  #refuse(name: string, error: unknown): FuseAnswer {
    const text = (error as Error).message;
    this.#log.log('error', `${text.startsWith(name) ? '' : `${name}: `}${text}; refused`);
    return { error: errnoOf(error) };
  }
}

/**
 * The answer that asks for the ioctl once more with what it lacks of the caller's memory, or undefined where it is all there. Never asks
 * for the same twice.
 */
function missing(row: IoctlRow, { arg, data, outSize }: IoctlCall): Uint8Array | undefined {
  const output: Piece[] = row.output === 0 ? [] : [{ base: arg, len: row.output }];
  const ask = (len: number) => encodeRetry(len === 0 ? [] : [{ base: arg, len }], output);
  const has = data.byteLength;
  if (has === 0 && outSize === 0) return row.input === 0 && row.output === 0 ? undefined : ask(row.input);
  if (has < row.input || outSize !== row.output) throw cut(row, has);
  const all = row.inputSize?.(data) ?? row.input;
  if (has === all) return undefined;
  if (has === row.input) return ask(all);
  throw cut(row, has);
}

const cut = ({ name }: IoctlRow, has: number) =>
  new ProtocolError(
    'PROTOCOL_PAYLOAD_SIZE',
    name,
    `${has} bytes of the argument are not what it says: it was changed meanwhile`,
  );
