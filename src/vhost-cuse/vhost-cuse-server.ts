/**
 * A character device that speaks the ioctls of /dev/vhost-net: each open of it gets a vhost device.
 * @see linux/vhost.h; linux/fuse.h
 */
import { SwitchError } from '../errors.ts';
import type { WindowPool } from '../mem/window.ts';
import { FUSE_OPEN, FUSE_OPEN_IN, FUSE_RELEASE, FUSE_RELEASE_IN } from '../uapi/fuse.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import type { ConnectionInfo, SocketOptions, VhostUserSocket } from '../vhost-user/back-ends.ts';
import { LimitedLog } from '../vhost-user/limited-log.ts';
import { CuseChannel, type FuseAnswer } from './cuse-channel.ts';
import { connectCuse, type NodeOptions, setNodeOwner } from './device-node.ts';
import { type DeviceNumber, encodeOpen, type FuseRequest, handleOf, holds } from './fuse-message.ts';
import { OpenDevice } from './open-device.ts';

const EBADF = 9;
const EBUSY = 16;
const EINVAL = 22;
/** Every struct that names an open file has the handle first. */
const HANDLE_BYTES = 8;

export interface VhostCuseOptions extends SocketOptions, NodeOptions {
  /** of the device, without `/dev/` */
  readonly name: string;
  /** its number; by default the kernel chooses one */
  readonly number?: DeviceNumber | undefined;
  /**
   * Features that drivers have by their front end's tap, of which the ioctls do not tell: what they may leave undone in packets.
   */
  readonly tapFeatures: bigint;
  /** for the dirty logs of guests that are being migrated */
  readonly pool: WindowPool;
  /** The kernel has given the device up: nobody can open it any more. */
  onGone?(error: Error): void;
}

export class VhostCuseServer implements VhostUserSocket {
  readonly path: string;
  readonly #options: VhostCuseOptions;
  readonly #channel: CuseChannel;
  readonly #log: LimitedLog;
  readonly #opens = new Map<bigint, { readonly open: OpenDevice; readonly info: ConnectionInfo }>();
  #opened = 0;

  /** @param fd a connection to CUSE, which the server owns. Devices come as soon as `ready` resolves. */
  constructor(fd: number, options: VhostCuseOptions) {
    this.path = `/dev/${options.name}`;
    this.#options = options;
    // all opens together, however often they come; each has a narrower limit of its own
    this.#log = new LimitedLog(options.log, { burst: 200, perSecond: 5 });
    this.#channel = new CuseChannel(
      fd,
      options.name,
      {
        onRequest: (request) => this.#answer(request),
        onGone: (error) => void this.#onGone(error),
      },
      options.number,
    );
  }

  /**
   * Makes /dev/NAME. Rejects with SwitchError: CUSE_MISSING, CUSE_RIGHTS, CUSE_NAME_TAKEN, CUSE_REFUSED, CUSE_NO_NODE,
   * SOCKET_UNKNOWN_OWNER; nothing is left behind then.
   */
  static async create(options: VhostCuseOptions): Promise<VhostCuseServer> {
    const server = new VhostCuseServer(connectCuse(options.name), options);
    try {
      await server.ready;
      setNodeOwner(options.name, options);
      return server;
    } catch (error) {
      await server.close();
      throw error;
    }
  }

  /** Resolves when the kernel has made the device; rejects with SwitchError CUSE_REFUSED. */
  get ready(): Promise<void> {
    return this.#channel.ready;
  }

  get connectionCount(): number {
    return this.#opens.size;
  }

  /** Takes the device from who opened it, whose ioctls fail from now on. */
  disconnect(device: VhostDevice): void {
    for (const { open } of this.#opens.values()) if (open.device === device) void open.close();
  }

  /** Takes the character device away, and waits for the devices of all who have it open; their ioctls fail from now on. */
  async close(): Promise<void> {
    this.#channel.close();
    await this.#closeAll();
    this.#log.flush();
  }

  async #onGone(error: Error | undefined): Promise<void> {
    const problem = `${this.path}: the kernel has taken it away${error === undefined ? '' : `: ${error.message}`}`;
    this.#log.log('error', problem);
    await this.#closeAll();
    this.#options.onGone?.(error ?? new SwitchError('CUSE_REFUSED', problem));
  }

  async #closeAll(): Promise<void> {
    await Promise.all([...this.#opens.keys()].map((handle) => this.#release(handle)));
  }

  async #answer(request: FuseRequest): Promise<FuseAnswer> {
    if (request.opcode === FUSE_OPEN) return holds(request, FUSE_OPEN_IN) ? this.#open() : { error: EINVAL };
    if (request.body.byteLength < HANDLE_BYTES) return { error: EINVAL };
    const handle = handleOf(request);
    const found = this.#opens.get(handle);
    if (found === undefined) return { error: EBADF };
    if (request.opcode !== FUSE_RELEASE) return found.open.answer(request);
    if (!holds(request, FUSE_RELEASE_IN)) return { error: EINVAL };
    await this.#release(handle);
    return { error: 0 };
  }

  #open(): FuseAnswer {
    const { createDevice, tapFeatures, pool, onConnect } = this.#options;
    const connection = this.#opened++;
    const info: ConnectionInfo = { path: this.path, connection, name: `${this.path}: open ${connection}` };
    let device: VhostDevice | undefined;
    try {
      device = createDevice(info);
    } catch (error) {
      this.#log.log('error', `${info.name}: refused, no device could be created: ${(error as Error).message}`);
      return { error: EBUSY };
    }
    if (device === undefined) {
      this.#log.log('warn', `${info.name}: refused, there is no device for it`);
      return { error: EBUSY };
    }
    const handle = BigInt(connection) + 1n;
    this.#opens.set(handle, {
      open: new OpenDevice(device, {
        name: info.name,
        log: this.#log.log,
        tapFeatures,
        pool,
        notify: (message) => this.#channel.notify(message),
      }),
      info,
    });
    this.#log.log('info', `${info.name}: opened`);
    onConnect?.(device, info);
    return { error: 0, body: encodeOpen(handle) };
  }

  /** Ends an open; resolves when its device is gone. */
  async #release(handle: bigint): Promise<void> {
    const found = this.#opens.get(handle);
    if (found === undefined) return;
    this.#opens.delete(handle);
    const { open, info } = found;
    await open.close();
    this.#log.log('info', `${info.name}: closed`);
    this.#options.onDisconnect?.(open.device, info);
  }
}
