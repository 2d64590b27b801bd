/**
 * The library's way to write a device of one's own: a vhost-user socket whose front ends each get a device that answers requests,
 * on the calling thread's event loop.
 *
 * A front end that truncates its memory can end this process (SIGBUS), unless it is sealed against that as QEMU's memfd is.
 */
import { ProtocolError } from '../errors.ts';
import { chooseWindowKind } from '../mem/selftest.ts';
import { WindowPool } from '../mem/window.ts';
import { featureMask, VIRTIO_F_ACCESS_PLATFORM } from '../uapi/virtio.ts';
import type { DeviceModel } from '../vhost/device-model.ts';
import { RequestDatapath, type RequestHandler } from '../vhost/request-datapath.ts';
import { RING_FEATURES } from '../vhost/ring-features.ts';
import { VirtioDevice } from '../vhost/virtio-device.ts';
import type { ConnectionInfo, VhostUserSocket } from '../vhost-user/back-ends.ts';
import type { Log } from '../vhost-user/limited-log.ts';
import { type PassedSocket, servePassedSocket } from '../vhost-user/passed-socket.ts';
import { VhostUserServer } from '../vhost-user/server.ts';
import { FAULTS } from '../virtqueue/fault.ts';

/** VHOST_USER_MAX_CONFIG_SIZE: all that a front end can ask for. */
const CONFIG_BYTES = 256;

/** A device as its type makes it: what it has beyond any virtio device. One object serves one front end. */
export interface DeviceType {
  /** feature bits of the device's type, such as VIRTIO_BLK_F_FLUSH; those of rings and transport are on offer beside them */
  readonly features?: bigint;
  /** virtqueues; 1 to 256, default 1 */
  readonly queues?: number;
  /**
   * The config space as it is now, at most 256 bytes; without it front ends cannot ask for one. Front ends ask for as much as their
   * own edition of the specification has: what is missing reads as zeros.
   */
  readonly config?: Uint8Array;
  /** The driver writes `bytes` to the config space at `offset`. Throws {@link ReadOnlyConfig} where it may not; without it, it never may. */
  writeConfig?(offset: number, bytes: Uint8Array): void;
  /** Does what a request asks. @returns bytes written to `request.writable`, from its first on; or a promise of it */
  onRequest: RequestHandler;
  /** The front end is gone, and nothing is under way any more. */
  close?(): void;
}

/** What `writeConfig` throws for bytes that a driver must not write. */
export class ReadOnlyConfig extends ProtocolError {
  /** For `length` bytes from `offset` on. */
  constructor(offset: number, length: number) {
    super('BAD_CONFIG', 'SET_CONFIG', `bytes ${offset} to ${offset + length} of the config space are read-only`);
  }
}

/** Where a device is to be found, and who makes it. */
export interface DeviceHostOptions {
  /** where to listen */
  readonly socketPath?: string | undefined;
  /** or else: a Unix stream socket that is connected or listening, owned by the host once it is made */
  readonly fd?: number | undefined;
  /** permissions of the socket at `socketPath`; default 0o660 */
  readonly mode?: number;
  /** front ends at a time; more are disconnected. Default 1 */
  readonly maxDevices?: number;
  /** addresses may be those of the guest's IOMMU (VIRTIO_F_ACCESS_PLATFORM); default false */
  readonly iommu?: boolean;
  /** Makes the device for a front end that has connected. */
  createDevice(): DeviceType;
  /** Hears what becomes of front ends and their devices; default: nobody does. */
  readonly log?: Log;
}

/** A type's own part as a VirtioDevice asks for it. */
class TypeModel implements DeviceModel {
  readonly offeredFeatures: bigint;
  readonly maxVrings: number;
  readonly queueNum: number;
  readonly readyVrings = [0];
  readonly configOnOffer: boolean;
  readonly #type: DeviceType;

  constructor(type: DeviceType, iommu: boolean) {
    const { features = 0n, queues = 1, config } = type;
    if (!Number.isInteger(queues) || queues < 1 || queues > 256)
      throw new RangeError(`${queues} queues, must be 1 to 256`);
    if (config !== undefined && config.length > CONFIG_BYTES)
      throw new RangeError(`a config space of ${config.length} bytes, must be at most ${CONFIG_BYTES}`);
    this.offeredFeatures = RING_FEATURES | features | (iommu ? featureMask(VIRTIO_F_ACCESS_PLATFORM) : 0n);
    this.maxVrings = queues;
    this.queueNum = queues;
    this.configOnOffer = config !== undefined;
    this.#type = type;
  }

  configSpace(): Uint8Array {
    const space = new Uint8Array(CONFIG_BYTES);
    space.set(this.#type.config ?? []);
    return space;
  }

  setConfig(offset: number, bytes: Uint8Array): void {
    if (this.#type.writeConfig === undefined) throw new ReadOnlyConfig(offset, bytes.length);
    this.#type.writeConfig(offset, bytes);
  }
}

/** A vhost-user socket and the devices behind it, at work from the constructor to {@link DeviceHost.close}. */
export class DeviceHost {
  /** Resolves when there is nothing more to serve: the host is closed, or the front end of a connected `fd` has gone. */
  readonly ended: Promise<void>;
  readonly #options: DeviceHostOptions;
  readonly #log: Log;
  readonly #pool = new WindowPool(chooseWindowKind().kind);
  readonly #socket: VhostUserSocket;
  readonly #closed = Promise.withResolvers<void>();
  #made = 0;

  /** Listens, or serves `fd`, at once. Throws SwitchError or SysError when the socket cannot be had; then `fd` stays the caller's. */
  constructor(options: DeviceHostOptions) {
    this.#options = options;
    const { socketPath, fd, mode = 0o660, maxDevices: maxConnections = 1, log = () => {} } = options;
    this.#log = log;
    const createDevice = (info: ConnectionInfo) => this.#createDevice(info);
    if ((socketPath === undefined) === (fd === undefined)) throw new TypeError('either socketPath or fd must be given');
    if (fd !== undefined) {
      const passed: PassedSocket = servePassedSocket(fd, { maxConnections, log, createDevice });
      this.#socket = passed;
      this.ended = passed.ended;
    } else {
      this.#socket = new VhostUserServer({ path: socketPath as string, mode, maxConnections, log, createDevice });
      this.ended = this.#closed.promise;
    }
  }

  #createDevice(info: ConnectionInfo): VirtioDevice {
    const type = this.#options.createDevice();
    try {
      return this.#deviceOf(type, info);
    } catch (error) {
      type.close?.();
      throw error;
    }
  }

  #deviceOf(type: DeviceType, info: ConnectionInfo): VirtioDevice {
    const model = new TypeModel(type, this.#options.iommu ?? false);
    const drop = (problem: string) => {
      this.#log('error', `${info.name}: ${problem}: disconnected`);
      this.#socket.disconnect(device);
    };
    const datapath = new RequestDatapath((request) => type.onRequest(request), {
      onFault: (vring, fault) => this.#log('error', `${info.name}: vring ${vring} stopped: ${FAULTS[fault].text}`),
      onMiss: (vring, iova, write) => device.onIotlbMiss(vring, iova, write),
      onFailure: (error) => drop(`the device has failed: ${error.message}`),
    });
    const device: VirtioDevice = new VirtioDevice({
      id: this.#made++,
      model,
      pool: this.#pool,
      datapath,
      events: {
        onReady: () => this.#log('info', `${info.name}: ready`),
        onStopped: () => this.#log('info', `${info.name}: stopped`),
        onDestroyed: () => type.close?.(),
        onUnusable: (_, problem) => drop(problem),
      },
    });
    return device;
  }

  /** Closes the socket and its connections, and waits until their devices are gone and nothing is under way. */
  async close(): Promise<void> {
    await this.#socket.close();
    this.#closed.resolve();
  }
}
