/**
 * The ports by which guests reach the world: opens them, hands them to the lcores, tells what becomes of their links, and takes one
 * out while its interface is not there.
 */
import type { LcoreGroup } from '../lcore/lcore-group.ts';
import type { WindowPool } from '../mem/window.ts';
import type { LinkState } from '../port/device-port.ts';
import { comesBack, openDevice, type UplinkDevice } from '../port/devices.ts';
import { interfaceOfCard, type PciRequest } from '../port/pci-interface.ts';
import type { SteeringCounts } from '../port/steering.ts';
import { parseVdev, type Vdev } from '../port/vdev.ts';
import { PORT_SLOTS, type PortCounter, readCounters } from '../stats/counters.ts';
import type { UplinkConfig } from '../switch/switch-config.ts';
import type { Log } from '../vhost-user/limited-log.ts';
import { GuestSteering } from './guest-steering.ts';

/** A port that is no guest's, as the user asks for it. */
export type PortRequest = Vdev | PciRequest;

/** An uplink as it is now. */
export interface UplinkInfo {
  /** its port number, which is above those of all devices */
  readonly id: number;
  /** as given to --vdev, or the card's address */
  readonly name: string;
  /** what is known of its link */
  readonly link: LinkState;
  /** see {@link PORT_COUNTER_HELP}; what a guest sends is what comes in here: tx_packets have come from the network */
  readonly counters: Record<PortCounter, number>;
  /** what has come by which queue, where the uplink can choose one by {address, VLAN} */
  readonly steered: SteeringCounts | undefined;
}

/** Between two looks for an interface that was removed. */
const RETRY_MS = 500;

const GONE: LinkState = { up: false, speed: 0, gone: 'it is not there' };

/** A card is reached by its interface. */
function vdevOf(request: PortRequest, number: number): Vdev {
  if (request.kind !== 'pci') return request;
  return parseVdev(`net_af_packet${number},iface=${interfaceOfCard(request.address)}`);
}

/** What a port is called in messages. */
export const portName = (request: PortRequest): string => (request.kind === 'pci' ? request.address : request.name);

/** A MAC address in text. */
export const macText = (mac: Uint8Array) => [...mac].map((byte) => byte.toString(16).padStart(2, '0')).join(':');

/** What uplinks need of the switch. */
export interface UplinkTools {
  readonly pool: WindowPool;
  /** how many lcores will use them */
  readonly lcores: number;
  readonly log: Log;
  /** the MTU of an uplink has changed */
  readonly onMtu: () => void;
}

class Uplink {
  readonly id: number;
  readonly name: string;
  readonly #vdev: Vdev;
  readonly #tools: UplinkTools;
  readonly #guests: GuestSteering;
  #device: UplinkDevice | undefined;
  /** as it was last, also while there is no interface */
  #mtu = 0;
  #up = false;
  #lcores: LcoreGroup | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;
  /** what is being done with the port at the lcores */
  #turning: Promise<void> = Promise.resolve();
  #toldProblem = '';

  constructor(request: PortRequest, number: number, id: number, tools: UplinkTools, guests: GuestSteering) {
    this.id = id;
    this.name = portName(request);
    this.#vdev = vdevOf(request, number);
    this.#tools = tools;
    this.#guests = guests;
  }

  get link(): LinkState {
    return this.#device?.opened.link ?? GONE;
  }

  get port(): UplinkConfig {
    return { port: this.id, mtu: this.#mtu };
  }

  get steered(): SteeringCounts | undefined {
    return this.#device?.opened.steering?.counts();
  }

  async open(): Promise<void> {
    const { pool, lcores } = this.#tools;
    const device = await openDevice(this.#vdev, { pool, lcores });
    this.#device = device;
    this.#mtu ||= device.opened.mtu;
    this.#up = device.opened.link.up;
    const { steering } = device.opened;
    if (steering !== undefined) this.#guests.addTable(steering);
    device.opened.onLink((link) => this.#onLink(device, link));
  }

  async addTo(lcores: LcoreGroup): Promise<void> {
    this.#lcores = lcores;
    // it may be gone before this has come to its end: a short file is
    const device = this.#device as UplinkDevice;
    await lcores.addDevice(this.id, device);
    this.#tell(device);
    this.#followMtu(device.opened.link.mtu ?? device.opened.mtu);
  }

  /** What leaves must fit from now on; what guests have been told they find out when they negotiate anew. */
  #followMtu(mtu: number): void {
    if (mtu === this.#mtu || this.#lcores === undefined) return;
    const told = `uplink ${this.name}: MTU ${mtu}, was ${this.#mtu}; guests are told when they next negotiate`;
    this.#mtu = mtu;
    this.#tools.onMtu();
    this.#lcores.setMtu(this.id, mtu).then(
      () => this.#tools.log('info', told),
      () => {}, // the lcores have ended meanwhile
    );
  }

  #tell({ opened: { mac, link, notes = [] } }: UplinkDevice): void {
    for (const note of notes) this.#tools.log('warn', `uplink ${this.name}: ${note}`);
    const address = mac === undefined ? '' : `, MAC address ${macText(mac)}`;
    this.#tools.log('info', `uplink ${this.name}: port ${this.id}${address}, link ${link.up ? 'up' : 'down'}`);
  }

  #onLink(device: UplinkDevice, { up, mtu, gone, reason }: LinkState): void {
    if (device !== this.#device || this.#closed) return;
    if (gone === undefined) {
      if (mtu !== undefined) this.#followMtu(mtu);
      if (up === this.#up) return;
      this.#up = up;
      const why = up || reason === undefined ? '' : `: ${reason}`;
      this.#tools.log(up ? 'info' : 'warn', `uplink ${this.name}: link ${up ? 'up' : 'down'}${why}`);
      return;
    }
    const then = comesBack(this.#vdev) ? 'until it is there again' : 'for good';
    this.#tools.log(
      'error',
      `uplink ${this.name}: ${gone}: the port is stopped ${then}; guests still reach each other`,
    );
    this.#device = undefined;
    this.#turning = this.#turning.then(() => this.#takeOut(device));
    if (comesBack(this.#vdev)) this.#retryLater();
  }

  async #takeOut(device: UplinkDevice): Promise<void> {
    await this.#lcores?.removeDevice(this.id);
    await this.#closeDevice(device);
  }

  async #closeDevice(device: UplinkDevice | undefined): Promise<void> {
    const steering = device?.opened.steering;
    if (steering !== undefined) this.#guests.removeTable(steering);
    await device?.opened.close();
  }

  #retryLater(): void {
    this.#retry = setTimeout(() => {
      this.#turning = this.#turning.then(() => this.#comeBack());
    }, RETRY_MS);
    this.#retry.unref();
  }

  async #comeBack(): Promise<void> {
    if (this.#closed || this.#lcores === undefined) return;
    try {
      await this.open();
      await this.addTo(this.#lcores);
    } catch (error) {
      const { message } = error as Error;
      const absent = (error as { code?: string }).code === 'UPLINK_NO_INTERFACE';
      if (!absent && message !== this.#toldProblem) this.#tools.log('error', `uplink ${this.name}: ${message}`);
      this.#toldProblem = absent ? '' : message;
      await this.#closeDevice(this.#device);
      this.#device = undefined;
      this.#retryLater();
    }
  }

  /** No lcore uses it any more. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    await this.#turning.catch(() => {}); // the lcores have ended meanwhile
    await this.#closeDevice(this.#device);
    this.#device = undefined;
  }
}

/** All uplinks of a switch. */
export class Uplinks {
  readonly #uplinks: readonly Uplink[];
  /** the guests as those uplinks know them that can choose a queue by them */
  readonly guests: GuestSteering;
  #lcores: LcoreGroup | undefined;

  private constructor(uplinks: readonly Uplink[], guests: GuestSteering) {
    this.#uplinks = uplinks;
    this.guests = guests;
  }

  /** Opens them, as ports from `firstPort` on. Rejects, with nothing left open, when one cannot be had. */
  static async open(requests: readonly PortRequest[], firstPort: number, tools: UplinkTools): Promise<Uplinks> {
    const guests = new GuestSteering(tools.lcores, () =>
      tools.log('warn', 'a table that steers is full: frames for further guests and VLANs come by queue 0'),
    );
    const uplinks = requests.map((request, i) => new Uplink(request, i, firstPort + i, tools, guests));
    const all = new Uplinks(uplinks, guests);
    try {
      for (const uplink of uplinks) await uplink.open();
      return all;
    } catch (error) {
      await all.close();
      throw error;
    }
  }

  /** What the rules of the switch know of them. */
  get ports(): UplinkConfig[] {
    return this.#uplinks.map(({ port }) => port);
  }

  /** Lets the lcores use them. */
  async addTo(lcores: LcoreGroup): Promise<void> {
    this.#lcores = lcores;
    for (const uplink of this.#uplinks) await uplink.addTo(lcores);
  }

  get info(): UplinkInfo[] {
    const lcores = this.#lcores as LcoreGroup;
    return this.#uplinks.map(({ id, name, link, steered }) => {
      return { id, name, link, counters: readCounters(PORT_SLOTS, lcores.counters(id)), steered };
    });
  }

  /** Closes them, once the lcores have ended. */
  async close(): Promise<void> {
    await Promise.all(this.#uplinks.map((uplink) => uplink.close()));
  }
}
