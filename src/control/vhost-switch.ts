/**
 * A running switch: sockets, devices and the lcores between them. Packets never come here.
 */
import { LcoreGroup, type LcorePlace } from '../lcore/lcore-group.ts';
import type { LcoreThreadEvents } from '../lcore/lcore-thread.ts';
import { chooseWindowKind } from '../mem/selftest.ts';
import { WindowPool } from '../mem/window.ts';
import {
  type LcoreCounter,
  PORT_SLOTS,
  type PortCounter,
  readCounters,
  VRING_SLOTS,
  type VringCounter,
} from '../stats/counters.ts';
import { FIRST_DEVICE_TAG, type PortVlan, type SwitchConfig, type UplinkConfig } from '../switch/switch-config.ts';
import { UserfaultPostcopy } from '../vhost/postcopy.ts';
import type { NodeOptions } from '../vhost-cuse/device-node.ts';
import { VhostCuseServer } from '../vhost-cuse/vhost-cuse-server.ts';
import type { ConnectionInfo, VhostUserSocket } from '../vhost-user/back-ends.ts';
import { VhostUserClient } from '../vhost-user/client.ts';
import { LimitedLog, type Log } from '../vhost-user/limited-log.ts';
import { VhostUserServer } from '../vhost-user/server.ts';
import { MAX_MTU, MIN_MTU, NetDevice, type NetDeviceOptions } from '../virtio-net/net-device.ts';
import { TAP_FEATURES } from '../virtio-net/net-features.ts';
import type { GuestAddress } from '../virtio-net/net-state.ts';
import { FAULTS } from '../virtqueue/fault.ts';

import { Rebalancer } from './rebalancer.ts';
import { macText, type PortRequest, type UplinkInfo, Uplinks } from './uplinks.ts';

/** What a switch is made of. */
export interface VhostSwitchOptions {
  /** socket paths to listen on, one device a connection; or to connect to */
  readonly sockets: readonly string[];
  /** character device to make for front ends that take vhost-net's, one device an open; none by default */
  readonly cuse?: string | undefined;
  /** the device's number; the kernel chooses one by default */
  readonly cuseNumber?:
    | {
        /** 1 to 511 */
        readonly major: number;
        /** 0 to 1048575 */
        readonly minor: number;
      }
    | undefined;
  /** by socket: the VLANs of its devices, where these are not those of the plan */
  readonly vlans?: ReadonlyMap<string, PortVlan>;
  /** front ends listen on the sockets: connect to them, again and again, one device a socket. Default false. */
  readonly client?: boolean;
  /** permissions of the sockets to listen on, and of the character device, e.g. 0o660 */
  readonly socketMode: number;
  /** user of them, by number or name; default: this process's */
  readonly socketOwner?: string | number | undefined;
  /** group of them, by number or name; default: this process's */
  readonly socketGroup?: string | number | undefined;
  /** devices offer mergeable receive buffers */
  readonly mergeable: boolean;
  /** devices let guests leave checksums to who receives */
  readonly txCsum: boolean;
  /** devices let guests leave segmentation to who receives; includes `txCsum` */
  readonly tso: boolean;
  /** devices take addresses of the guest's IOMMU */
  readonly iommu: boolean;
  /** let guests reset queues singly; QEMU 7.2 does not tell of that */
  readonly ringReset: boolean;
  /** let front ends ask for the config space; QEMU warns at each start that it will not */
  readonly configSpace: boolean;
  /** receive guests by postcopy migration: then front ends can write all of this process's memory */
  readonly postcopy: boolean;
  /** queue pairs a device, at most 128 */
  readonly queues: number;
  /** 'adaptive': an lcore without work sleeps until a guest kicks; 'busy': it never does */
  readonly poll: 'adaptive' | 'busy';
  /** with 'adaptive': how long an lcore looks for packets in vain at most, µs; default 200 */
  readonly spinUs?: number;
  /** and for how much of the time it has worked, percent; default 50 */
  readonly spinPercent?: number;
  /** move queues from busy lcores to idle ones, looking every so many seconds; default 0: never */
  readonly rebalanceSeconds?: number;
  /** the lcores that switch, at least one */
  readonly lcores: readonly LcorePlace[];
  /** how it switches; devices are numbered below `maxPorts`, uplinks from there on */
  readonly config: SwitchConfig;
  /** the ports by which guests reach the world; none by default */
  readonly uplinks?: readonly PortRequest[];
  /** Hears what becomes of sockets, devices and uplinks. */
  readonly log: Log;
  /** Lines of the original program, to be printed as they are. */
  readonly print: (line: string) => void;
  /** The lcore has failed: nothing is switched any more. */
  readonly onFatal: (error: Error) => void;
}

/** A device as it is now. */
export interface DeviceInfo {
  /** its number, from 0 on */
  readonly id: number;
  /** path of the socket or character device it came by */
  readonly socket: string;
  /** its registered address, or undefined */
  readonly mac: string | undefined;
  /** see {@link PORT_COUNTER_HELP} */
  readonly counters: Record<PortCounter, number>;
  /** by vring: 2n receives and 2n + 1 transmits, from the guest's side, for queue pair n; undefined if it was never started */
  readonly vrings: readonly (Record<VringCounter, number> | undefined)[];
}

/** An lcore as it is now. */
export interface LcoreInfo {
  /** its number */
  readonly lcore: number;
  /** see {@link LCORE_COUNTER_HELP} */
  readonly counters: Record<LcoreCounter, number>;
}

const DEFAULT_SPIN_US = 200;
const DEFAULT_SPIN_PERCENT = 50;

interface Entry {
  readonly device: NetDevice;
  readonly socket: string;
  readonly name: string;
  mac: string | undefined;
  /** index of the lcore that polls its first queue */
  readonly lcore: number;
  /** the MTU that it has in its config space from the switch; undefined: the default */
  mtu: number | undefined;
  /** its rings are in use: the driver has been told what it has been told */
  ready: boolean;
  /** being disconnected for what it did; that is told once, however often it shows */
  doomed: boolean;
}

/** A MAC address, from its first four and last two bytes as little-endian words. */
const macBytes = (first: number, last: number) =>
  Uint8Array.of(first, first >> 8, first >> 16, first >> 24, last, last >> 8);

/** What guests are told: what leaves by every uplink. */
function guestMtu(uplinks: readonly UplinkConfig[]): number | undefined {
  if (uplinks.length === 0) return undefined;
  return Math.min(MAX_MTU, ...uplinks.map(({ mtu }) => Math.max(mtu, MIN_MTU)));
}

/** A switch at work, from {@link VhostSwitch.start} to {@link VhostSwitch.close}. */
export class VhostSwitch {
  readonly #options: VhostSwitchOptions;
  readonly #pool: WindowPool;
  /** by device number */
  readonly #entries: (Entry | undefined)[] = [];
  readonly #sockets: VhostUserSocket[] = [];
  /** devices that come and go, however fast front ends reconnect */
  readonly #comings: LimitedLog;
  #lcores: LcoreGroup | undefined;
  #uplinks: Uplinks | undefined;
  #rebalancer: Rebalancer | undefined;
  /** what guests are told; undefined: the default */
  #mtu: number | undefined;

  private constructor(options: VhostSwitchOptions) {
    this.#options = options;
    this.#comings = new LimitedLog((_, text) => options.print(text), { burst: 200, perSecond: 50 });
    const { kind, reason } = chooseWindowKind();
    this.#pool = new WindowPool(kind);
    if (reason !== undefined) options.log('warn', `guest memory is copied in TypeScript, which is slower: ${reason}`);
  }

  /** Starts the lcores, and listens or begins to connect. Rejects, with nothing left behind, when a socket or a CPU cannot be had. */
  static async start(options: VhostSwitchOptions): Promise<VhostSwitch> {
    const running = new VhostSwitch(options);
    try {
      await running.#start();
      return running;
    } catch (error) {
      await running.close();
      throw error;
    }
  }

  async #start(): Promise<void> {
    const { config, lcores, uplinks = [], log, onFatal } = this.#options;
    const { poll: mode, spinUs = DEFAULT_SPIN_US, spinPercent = DEFAULT_SPIN_PERCENT } = this.#options;
    const events: LcoreThreadEvents = {
      onRegistered: (port, first, last) => this.#onRegistered(port, macBytes(first, last)),
      onDuplicate: (port) =>
        this.#options.print(
          `DATA: (${port}) WARNING: This device is using an existing MAC address and has not been registered.`,
        ),
      onFault: (port, vring, fault) =>
        this.#options.log('error', `${this.#entries[port]?.name}: vring ${vring} stopped: ${FAULTS[fault].text}`),
      onMiss: (port, vring, iova, write) => this.#entries[port]?.device.onIotlbMiss(vring, iova, write),
      onStuckCall: (fd) => this.#disconnect((device) => device.hasCallFd(fd), 'its call eventfd is full and blocking'),
      onDeath: onFatal,
    };
    const poll = { mode, spinUs, spinShare: spinPercent / 100 };
    const pool = this.#pool;
    this.#uplinks = await Uplinks.open(uplinks, config.maxPorts, {
      pool,
      lcores: lcores.length,
      log,
      onMtu: () => this.#onMtu(),
    });
    this.#mtu = guestMtu(this.#uplinks.ports);
    const whole = { ...config, maxPorts: config.maxPorts + uplinks.length, uplinks: this.#uplinks.ports };
    this.#lcores = await LcoreGroup.start({ config: whole, poll, lcores, pool }, events);
    await this.#uplinks.addTo(this.#lcores);
    this.#rebalance(this.#lcores);
    process.on('SIGBUS', this.#onSigbus);
    for (const path of this.#options.sockets) this.#sockets.push(this.#open(path));
    const { cuse } = this.#options;
    if (cuse !== undefined) this.#sockets.push(await this.#openCuse(cuse));
  }

  #rebalance(lcores: LcoreGroup): void {
    const { rebalanceSeconds = 0, lcores: places, log, onFatal } = this.#options;
    if (rebalanceSeconds === 0 || places.length === 1) return;
    this.#rebalancer = new Rebalancer(lcores, rebalanceSeconds, {
      onMove: ({ port, pair, at }, to) => {
        const [from, now] = [places[at].lcore, places[to].lcore];
        log('info', `device ${port}: queue ${pair} moved from lcore ${from} to lcore ${now}, which has more time`);
      },
      onFailure: onFatal,
    });
  }

  #open(path: string): VhostUserSocket {
    const { client = false, log, queues: pairs } = this.#options;
    const createDevice = (info: ConnectionInfo) => this.#createDevice(info, `socket ${info.path}`, { pairs });
    if (client) return new VhostUserClient({ path, log, createDevice });
    return new VhostUserServer({ path, ...this.#permissions, log, createDevice });
  }

  /** vhost-net has one queue pair an open. */
  #openCuse(name: string): Promise<VhostCuseServer> {
    const { log, onFatal, sockets, cuseNumber: number } = this.#options;
    const createDevice = (info: ConnectionInfo) =>
      this.#createDevice(info, info.path, { pairs: 1, createPostcopy: undefined });
    return VhostCuseServer.create({
      name,
      number,
      ...this.#permissions,
      tapFeatures: TAP_FEATURES,
      pool: this.#pool,
      log,
      createDevice,
      // the server tells itself; those of the sockets go on
      onGone: (error) => (sockets.length === 0 ? onFatal(error) : undefined),
    });
  }

  get #permissions(): Pick<NodeOptions, 'mode' | 'owner' | 'group'> {
    const { socketMode: mode, socketOwner: owner, socketGroup: group } = this.#options;
    return { mode, ...(owner === undefined ? {} : { owner }), ...(group === undefined ? {} : { group }) };
  }

  /** @param place what its front end comes by, for log lines */
  #createDevice(
    info: ConnectionInfo,
    place: string,
    own: Partial<NetDeviceOptions> & { pairs: number },
  ): NetDevice | undefined {
    let id = 0;
    while (this.#entries[id] !== undefined) id++;
    if (id >= this.#options.config.maxPorts) return undefined;
    const lcores = this.#lcores as LcoreGroup;
    info.name = `${place}: device ${id}`;
    const device: NetDevice = new NetDevice({ ...this.#deviceOptions(id), ...own }, this.#pool, lcores, {
      onReady: () => this.#onReady(id, true),
      onStopped: () => this.#onReady(id, false),
      onDestroyed: () => this.#onDestroyed(id),
      onUnusable: (_, problem) => this.#disconnect((one) => one === device, problem),
    });
    const { lcore, done } = lcores.addPort(id, this.#options.vlans?.get(info.path));
    const index = this.#options.lcores.findIndex((place) => place.lcore === lcore);
    const { path: socket, name } = info;
    const entry = { device, socket, name, mac: undefined, lcore: index, mtu: this.#mtu, ready: false, doomed: false };
    this.#entries[id] = entry;
    done.catch((error) => this.#options.onFatal(error));
    this.#comings.log('info', `DATA: (${id}) Device has been added to data core ${lcore}`);
    return device;
  }

  #deviceOptions(id: number): Omit<NetDeviceOptions, 'pairs'> {
    const { mergeable, txCsum, tso, iommu, ringReset, configSpace, postcopy } = this.#options;
    const createPostcopy = postcopy ? () => new UserfaultPostcopy() : undefined;
    const lcores = this.#lcores as LcoreGroup;
    const knownAddresses = () => lcores.known(id);
    const onAddresses = (addresses: readonly GuestAddress[]) => lcores.learn(id, addresses);
    return {
      id,
      mergeable,
      txCsum,
      tso,
      iommu,
      ringReset,
      configSpace,
      mtu: this.#mtu,
      createPostcopy,
      knownAddresses,
      onAddresses,
    };
  }

  #onReady(id: number, ready: boolean): void {
    const entry = this.#entries[id];
    if (entry === undefined) return;
    this.#options.log('info', `${entry.name}: ${ready ? 'ready' : 'stopped'}`);
    entry.ready = ready;
    this.#tellMtu(entry);
  }

  #onMtu(): void {
    if (this.#uplinks === undefined) return;
    this.#mtu = guestMtu(this.#uplinks.ports);
    for (const entry of this.#entries) if (entry !== undefined) this.#tellMtu(entry);
  }

  /** A driver never sees its MTU change (VIRTIO 1.2 §5.1.4.1): the next one does. */
  #tellMtu(entry: Entry): void {
    if (entry.ready || entry.mtu === this.#mtu || this.#mtu === undefined) return;
    entry.mtu = this.#mtu;
    entry.device.setMtu(this.#mtu).catch((error) => this.#options.onFatal(error));
  }

  #onDestroyed(id: number): void {
    this.#entries[id] = undefined;
    this.#uplinks?.guests.remove(id);
    this.#comings.log('info', `DATA: (${id}) Device has been removed`);
  }

  #onRegistered(id: number, mac: Uint8Array): void {
    const entry = this.#entries[id];
    if (entry === undefined) return;
    entry.mac = macText(mac);
    const vlan = this.#tagOf(id, entry.socket);
    this.#options.print(`DATA: (${id}) MAC_ADDRESS ${entry.mac} and VLAN_TAG ${vlan} registered`);
    const own = this.#options.vlans?.get(entry.socket);
    const tags = new Set([0, vlan, ...(own !== undefined && 'trunk' in own ? own.trunk : [])]);
    this.#uplinks?.guests.add(id, mac, [...tags], entry.lcore);
  }

  /** The tag of a device's untagged frames on an uplink; 0 for none. */
  #tagOf(id: number, socket: string): number {
    const { vlans, config } = this.#options;
    const vlan = vlans?.get(socket);
    if (vlan !== undefined) return 'access' in vlan ? vlan.access : (vlan.native ?? 0);
    return config.vlan?.plan === 'none' ? 0 : FIRST_DEVICE_TAG + id;
  }

  /** Memory is gone that the lcore was using: zero pages take its place, and the device goes. */
  readonly #onSigbus = (): void => {
    this.#disconnect((device) => device.coverTruncated(), 'the front end truncated its memory');
    this.#disconnect((device) => device.coverHoles(), 'its memory file has holes, and there is no room to fill them');
  };

  #disconnect(which: (device: NetDevice) => boolean, why: string): void {
    for (const entry of this.#entries) {
      if (entry === undefined || !which(entry.device) || entry.doomed) continue;
      entry.doomed = true;
      this.#options.log('error', `${entry.name}: ${why}: disconnected`);
      for (const socket of this.#sockets) socket.disconnect(entry.device);
    }
  }

  /** The devices, by number. */
  get devices(): DeviceInfo[] {
    const lcores = this.#lcores as LcoreGroup;
    return this.#entries
      .filter((entry) => entry !== undefined)
      .map(({ device: { id }, socket, mac }) => ({
        id,
        socket,
        mac,
        counters: readCounters(PORT_SLOTS, lcores.counters(id)),
        vrings: lcores.vringCounters(id).map((block) => block && readCounters(VRING_SLOTS, block)),
      }));
  }

  /**
   * Has the lcore of this index poll a device's transmit queue, that of pair `pair`. No packet is lost, and none overtakes another.
   * Resolves to false if there is no such queue at work.
   */
  async moveQueue(device: number, pair: number, lcore: number): Promise<boolean> {
    if (this.#entries[device] === undefined || this.#options.lcores[lcore] === undefined) return false;
    return (this.#lcores as LcoreGroup).moveQueue(device, pair, lcore);
  }

  /** The lcores, in the order of the options. */
  get lcores(): LcoreInfo[] {
    return (this.#lcores as LcoreGroup).lcoreCounters;
  }

  /** The uplinks, by number. */
  get uplinks(): UplinkInfo[] {
    return (this.#uplinks as Uplinks).info;
  }

  /** Closes the sockets and their connections, ends the lcores, and closes the uplinks. */
  async close(): Promise<void> {
    await this.#rebalancer?.close();
    await Promise.all(this.#sockets.map((socket) => socket.close()));
    await this.#lcores?.stop();
    await this.#uplinks?.close();
    this.#comings.flush();
    process.off('SIGBUS', this.#onSigbus);
  }
}
