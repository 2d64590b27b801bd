/**
 * Which VLANs each port of a switch is in (IEEE 802.1Q §6.9, §8.8): by port number, as flat arrays.
 */
import { ETH_P_8021AD, ETH_P_8021Q } from '../uapi/ip.ts';
import { BURST_SIZE } from '../virtio-net/burst.ts';
import { FIRST_DEVICE_TAG, type PortVlan, type SwitchConfig, type VlanConfig } from './switch-config.ts';

/** VLAN identifiers, and bits of a tag's second half. */
export const VIDS = 4096;
export const VID_MASK = 0xfff;
/** priority and drop eligibility */
export const PRIORITY_MASK = 0xf000;
const MAX_VID = 4094;

/** The VLAN of the devices that have none of their own. No frame has a tag with it: there it means a priority only. */
export const PLAN_VID = 0;
/** In place of a VLAN: the port takes no untagged frames. */
export const NO_VID = -1;

/** What a port is; its number has no port. */
export const PORT_NONE = 0;
/** a device without VLANs of its own; with one; with several; a way out, which has all */
export const PORT_PLAN = 1;
export const PORT_ACCESS = 2;
export const PORT_TRUNK = 3;
export const PORT_UPLINK = 4;

/** True for ports whose guests know of no VLANs. */
export const isUntagged = (kind: number) => kind === PORT_PLAN || kind === PORT_ACCESS;

const isVid = (vid: number) => Number.isInteger(vid) && vid >= 1 && vid <= MAX_VID;

export class PortVlans {
  /** PORT_… */
  readonly kind: Uint8Array;
  /** the VLAN of a port's untagged frames, or NO_VID */
  readonly untagged: Int32Array;
  /** of a device by the plan: the VID of its tag on the uplink, or 0 for none */
  readonly ownTag: Int32Array;
  /** EtherType of the tags on the uplink */
  readonly tagType: number;
  readonly #config: VlanConfig;
  readonly #learning: SwitchConfig['learning'];
  /** of PORT_TRUNK: the VLANs it is in, one bit each */
  readonly #member: (Uint32Array | undefined)[];
  /** devices in each VLAN */
  readonly #devices = new Int32Array(VIDS);

  constructor(config: VlanConfig, { learning, maxPorts, uplinks = [] }: SwitchConfig) {
    this.kind = new Uint8Array(maxPorts);
    this.untagged = new Int32Array(maxPorts).fill(NO_VID);
    this.ownTag = new Int32Array(maxPorts);
    this.tagType = config.guest === 'qinq' ? ETH_P_8021AD : ETH_P_8021Q;
    this.#config = config;
    this.#learning = learning;
    this.#member = Array(maxPorts).fill(undefined);
    for (const { port } of uplinks) {
      this.kind[port] = PORT_UPLINK;
      if (config.plan === 'none') this.untagged[port] = PLAN_VID;
    }
  }

  /** Puts a device's port into its VLANs; undefined: into those of the plan. Throws RangeError for VLANs that cannot be. */
  set(port: number, vlan: PortVlan | undefined): void {
    if (this.kind[port] === PORT_UPLINK) return;
    if (vlan !== undefined && 'trunk' in vlan && this.#learning === 'first')
      throw new RangeError('a device in several VLANs, where each has one address for good');
    this.remove(port);
    if (vlan === undefined) {
      this.kind[port] = PORT_PLAN;
      this.untagged[port] = PLAN_VID;
      this.ownTag[port] = this.#config.plan === 'device' ? FIRST_DEVICE_TAG + port : 0;
    } else if ('access' in vlan) {
      checkVids([vlan.access]);
      this.kind[port] = PORT_ACCESS;
      this.untagged[port] = vlan.access;
    } else {
      const vids = vlan.native === undefined ? vlan.trunk : [...vlan.trunk, vlan.native];
      checkVids(vids);
      const member = new Uint32Array(VIDS / 32);
      for (const vid of vids) member[vid >> 5] |= 1 << (vid & 31);
      this.kind[port] = PORT_TRUNK;
      this.untagged[port] = vlan.native ?? NO_VID;
      this.#member[port] = member;
    }
    this.#count(port, 1);
  }

  remove(port: number): void {
    if (this.kind[port] === PORT_UPLINK) return;
    this.#count(port, -1);
    this.kind[port] = PORT_NONE;
    this.untagged[port] = NO_VID;
    this.ownTag[port] = 0;
    this.#member[port] = undefined;
  }

  #count(port: number, by: number): void {
    for (let vid = 0; vid < VIDS; vid++) if (this.carries(port, vid)) this.#devices[vid] += by;
  }

  /** True if frames of the VLAN reach the port. */
  carries(port: number, vid: number): boolean {
    const kind = this.kind[port];
    if (kind === PORT_TRUNK) return ((this.#member[port] as Uint32Array)[vid >> 5] & (1 << (vid & 31))) !== 0;
    return kind === PORT_UPLINK || (kind !== PORT_NONE && this.untagged[port] === vid);
  }

  /** See Classify. */
  tagsOf(port: number): number[] {
    const untagged = this.untagged[port];
    const tags = untagged === NO_VID ? [] : [0];
    if (this.kind[port] !== PORT_TRUNK) return tags;
    for (let vid = 1; vid <= MAX_VID; vid++) if (vid !== untagged && this.carries(port, vid)) tags.push(vid);
    return tags;
  }

  /** True if any device is in the VLAN. */
  isUsed(vid: number): boolean {
    return this.#devices[vid] > 0;
  }

  /** The device whose tag this is by the plan, or −1. */
  deviceOf(vid: number): number {
    const port = vid - FIRST_DEVICE_TAG;
    return port >= 0 && port < this.kind.length && this.kind[port] === PORT_PLAN && this.ownTag[port] === vid
      ? port
      : -1;
  }
}

function checkVids(vids: readonly number[]): void {
  const wrong = vids.find((vid) => !isVid(vid));
  if (wrong !== undefined) throw new RangeError(`VLAN ${wrong}, must be 1 to ${MAX_VID}`);
}

/** True for the EtherTypes of VLAN tags (IEEE 802.1Q §9.5). */
export const isTagType = (type: number) => type === ETH_P_8021Q || type === ETH_P_8021AD;

/** What stage 2 finds out about the tags of a burst's packets, for stage 3. The tag to leave with is `burst.tag`. */
export class VlanMarks {
  /** the VLAN that each packet is in */
  readonly vid = new Int32Array(BURST_SIZE);
  /** bytes of its own tag that come off: 4 or 0 */
  readonly cut = new Int32Array(BURST_SIZE);
  /** the EtherType behind that tag, big-endian as a number */
  readonly type = new Int32Array(BURST_SIZE);
  /** it has a tag that stays, as part of what it carries: 1 */
  readonly nested = new Uint8Array(BURST_SIZE);
  /** some packet's tag comes off */
  cuts = false;
}
