/**
 * The library's way to write a back end of one's own: a vhost-user socket whose devices' packets move on the calling thread,
 * when the program says so.
 *
 * A front end that truncates its memory can end this process (SIGBUS), unless it is sealed against that as QEMU's memfd is:
 * VhostSwitch, which moves packets on a thread of its own, can recover; a thread that is its own main thread cannot.
 */
import { EventEmitter } from 'node:events';
import { PortTable } from '../lcore/port-table.ts';
import { chooseWindowKind } from '../mem/selftest.ts';
import { WindowPool, type WindowViews } from '../mem/window.ts';
import type { VhostPort } from '../port/vhost-port.ts';
import { counterBlock, PORT_SLOTS } from '../stats/counters.ts';
import { Caller } from '../sys/eventfd.ts';
import type { VhostUserSocket } from '../vhost-user/back-ends.ts';
import { VhostUserClient } from '../vhost-user/client.ts';
import type { Log } from '../vhost-user/limited-log.ts';
import { VhostUserServer } from '../vhost-user/server.ts';
import type { Burst } from '../virtio-net/burst.ts';
import type { NetDatapath } from '../virtio-net/net-datapath.ts';
import { NetDevice, type NetDeviceOptions } from '../virtio-net/net-device.ts';
import { FAULTS } from '../virtqueue/fault.ts';

/** Where front ends are to be found, and what their network devices offer. */
export interface VhostHostOptions {
  /** socket to listen on: any number of front ends, one device each; or to connect to */
  readonly path: string;
  /** a front end listens on the socket: connect to it, again and again, one device at a time. Default false */
  readonly client?: boolean;
  /** permissions of the socket to listen on; default 0o660 */
  readonly mode?: number;
  /** offer mergeable receive buffers; default false */
  readonly mergeable?: boolean;
  /** queue pairs a device; default 1 */
  readonly queues?: number;
  /** devices at a time; default 64 */
  readonly maxDevices?: number;
  /** hears what becomes of front ends and their devices; default: nobody does */
  readonly log?: Log;
}

/**
 * A device's port moves packets between 'ready' and 'stopped'; 'fault' names why a ring of it was stopped for good.
 */
export interface VhostHostEvents {
  /** A front end has connected. */
  created: [port: VhostPort];
  /** The guest's driver has started the device: packets can move. */
  ready: [port: VhostPort];
  /** The driver has stopped it. */
  stopped: [port: VhostPort];
  /** The front end is gone, and the port of no use any more. */
  destroyed: [port: VhostPort];
  /** A ring broke the rules and was stopped for good: which, and how in words. */
  fault: [port: VhostPort, vring: number, reason: string];
  /** The guest has come here by migration: a frame that tells the network so, to be sent in its name. */
  announce: [port: VhostPort, frame: Uint8Array];
}

/** Ports whose program hears of frames to be sent in their name. */
class HostPorts extends PortTable implements NetDatapath {
  onInject: (port: VhostPort, frame: Uint8Array) => void = () => {};

  inject(id: number, frame: Uint8Array): void {
    const port = this.guest(id);
    if (port !== undefined) this.onInject(port, frame.slice());
  }
}

/** A vhost-user socket whose devices are network cards; their packets move when the program calls a port's methods. */
export class VhostHost extends EventEmitter<VhostHostEvents> {
  readonly #options: VhostHostOptions;
  readonly #pool = new WindowPool(chooseWindowKind().kind);
  readonly #table: HostPorts;
  readonly #socket: VhostUserSocket;

  /** Listens, or tries to connect, at once. Throws SwitchError or SysError when the socket to listen on cannot be had. */
  constructor(options: VhostHostOptions) {
    super();
    this.#options = options;
    this.#table = new HostPorts(options.maxDevices ?? 64, new Caller(new Int32Array(1), 0), this.#pool.acquire(), {
      onFault: (id, vring, fault) => {
        const port = this.#table.guest(id);
        if (port !== undefined) this.emit('fault', port, vring, FAULTS[fault].text);
      },
      onMiss: () => {},
    });
    this.#table.onInject = (port, frame) => this.emit('announce', port, frame);
    const { path, client = false, mode = 0o660, log = () => {} } = options;
    const createDevice = () => this.#createDevice();
    this.#socket = client
      ? new VhostUserClient({ path, log, createDevice })
      : new VhostUserServer({ path, mode, log, createDevice });
  }

  /** The packets that a port has received, and that ports transmit: one for all ports of this host. */
  get burst(): Burst {
    return this.#table.burst;
  }

  /** Where the segments of a burst lie, by window id. */
  get windows(): readonly WindowViews[] {
    return this.#table.windows;
  }

  #createDevice(): NetDevice | undefined {
    const id = this.#table.ports.indexOf(undefined);
    if (id < 0) return undefined;
    this.#table.addPort(id, counterBlock(PORT_SLOTS));
    const port = this.#table.guest(id) as VhostPort;
    const device: NetDevice = new NetDevice(this.#deviceOptions(id), this.#pool, this.#table, {
      onReady: () => this.emit('ready', port),
      onStopped: () => this.emit('stopped', port),
      onDestroyed: () => this.emit('destroyed', port),
      onUnusable: (_, problem) => {
        this.#options.log?.('error', `device ${id}: ${problem}: disconnected`);
        this.#socket.disconnect(device);
      },
    });
    this.emit('created', port);
    return device;
  }

  #deviceOptions(id: number): NetDeviceOptions {
    const { mergeable = false, queues = 1 } = this.#options;
    return { id, mergeable, pairs: queues, txCsum: false, tso: false, iommu: false };
  }

  /** Closes the socket and its connections, and waits until their devices are gone. */
  close(): Promise<void> {
    return this.#socket.close();
  }
}
