/**
 * What a switch with VLANs and an uplink does, said as plainly as can be, a frame at a time: the oracle of the property tests.
 * Nothing here is shared with `src/switch`.
 */
import type { PortVlan, SwitchConfig, VlanConfig } from '../../src/switch/switch-config.ts';

/** A tag and the frame without it. */
interface Opened {
  readonly tpid: number;
  readonly tci: number;
  readonly inner: Buffer;
}

/** A frame on its way: what it carries, in which VLAN, and how it would leave. */
interface Inside {
  readonly vid: number;
  readonly priority: number;
  readonly body: Buffer;
  /** on the uplink it has no tag but its own */
  readonly bare?: boolean;
  /** from the uplink, by the tag of one device */
  readonly device?: number;
  /** the tag that it came in with from the uplink */
  readonly outer?: Opened | undefined;
}

const TPIDS = [0x8100, 0x88a8];

function typeOf(frame: Buffer): number {
  return frame.readUInt16BE(12);
}

const isTagged = (frame: Buffer) => TPIDS.includes(typeOf(frame));

function open(frame: Buffer): Opened | undefined {
  if (!isTagged(frame)) return undefined;
  const inner = Buffer.concat([frame.subarray(0, 12), frame.subarray(16)]);
  return { tpid: typeOf(frame), tci: frame.readUInt16BE(14), inner };
}

function close(frame: Buffer, tpid: number, tci: number): Buffer {
  const tag = Buffer.from([tpid >> 8, tpid & 0xff, tci >> 8, tci & 0xff]);
  return Buffer.concat([frame.subarray(0, 12), tag, frame.subarray(12)]);
}

export class SwitchModel {
  readonly #config: SwitchConfig;
  readonly #vlan: VlanConfig;
  readonly #vlans: readonly (PortVlan | undefined)[];
  readonly #uplink: number;
  /** by VLAN and address */
  readonly #table = new Map<string, number>();
  readonly #registered = new Set<number>();
  #out: [port: number, frame: Buffer][] = [];

  /** Devices 0 … n − 1 have `vlans`; the one uplink is port `uplink`. */
  constructor(config: SwitchConfig, vlan: VlanConfig, vlans: readonly (PortVlan | undefined)[], uplink: number) {
    this.#config = config;
    this.#vlan = vlan;
    this.#vlans = vlans;
    this.#uplink = uplink;
  }

  get #guests(): number[] {
    return [...this.#vlans.keys()];
  }

  #tpid(): number {
    return this.#vlan.guest === 'qinq' ? 0x88a8 : 0x8100;
  }

  /** VLANs of a guest; 0 is that of those who have none. */
  vidsOf(port: number): number[] {
    const vlan = this.#vlans[port];
    if (vlan === undefined) return [0];
    if ('access' in vlan) return [vlan.access];
    return [...vlan.trunk, ...(vlan.native === undefined ? [] : [vlan.native])];
  }

  untaggedVid(port: number): number | undefined {
    const vlan = this.#vlans[port];
    if (vlan === undefined) return 0;
    return 'access' in vlan ? vlan.access : vlan.native;
  }

  #isTrunk(port: number): boolean {
    const vlan = this.#vlans[port];
    return vlan !== undefined && 'trunk' in vlan;
  }

  /** The VID on the uplink of a guest's frames in a VLAN; 0: none. */
  #outVid(port: number, vid: number): number {
    if (vid !== 0) return vid;
    return this.#vlan.plan === 'device' ? 1000 + port : 0;
  }

  /** A burst from a port. @returns the frames that come out, by port and in order there */
  burst(port: number, frames: readonly Buffer[]): Map<number, Buffer[]> {
    this.#out = [];
    if (port === this.#uplink) for (const one of frames) this.#fromOutside(one);
    else if (this.#admit(port, frames[0])) for (const one of frames) this.#fromGuest(port, one);
    const by = new Map<number, Buffer[]>();
    for (const [to, frame] of this.#out) by.set(to, [...(by.get(to) ?? []), frame]);
    return by;
  }

  #key = (vid: number, address: Buffer) => `${vid}/${address.toString('hex')}`;

  #admit(port: number, frame: Buffer): boolean {
    if (this.#config.learning === 'dynamic' || this.#registered.has(port)) return true;
    const key = this.#key(this.untaggedVid(port) ?? 0, frame.subarray(6, 12));
    if (this.#table.has(key)) return false;
    this.#table.set(key, port);
    this.#registered.add(port);
    return true;
  }

  #enter(port: number, frame: Buffer): Inside | undefined {
    const untagged = this.untaggedVid(port);
    const tag = open(frame);
    if (tag === undefined) return untagged === undefined ? undefined : { vid: untagged, priority: 0, body: frame };
    const { tpid, tci, inner } = tag;
    const vid = tci & 0xfff;
    const priority = tci & 0xf000;
    const priorityOnly = tpid === 0x8100 && vid === 0 && !isTagged(inner);
    if (this.#isTrunk(port)) {
      if (tpid !== 0x8100 || isTagged(inner)) return undefined;
      const chosen = vid === 0 ? untagged : vid;
      if (chosen === undefined || !this.vidsOf(port).includes(chosen)) return undefined;
      return { vid: chosen, priority, body: inner };
    }
    const own = untagged as number;
    const { guest } = this.#vlan;
    if (guest === 'qinq' && this.#outVid(port, own) !== 0) return { vid: own, priority: 0, body: frame };
    if (priorityOnly) return { vid: own, priority, body: inner };
    if (guest === 'trust') return { vid: own, priority: 0, body: frame, bare: tpid === 0x8100 };
    return undefined;
  }

  #fromGuest(port: number, frame: Buffer): void {
    const inside = this.#enter(port, frame);
    if (inside === undefined) return;
    const { vid } = inside;
    const { learning, vm2vm } = this.#config;
    const [dst, src] = [frame.subarray(0, 6), frame.subarray(6, 12)];
    if (learning === 'dynamic') this.#table.set(this.#key(vid, src), port);
    const found = (dst[0] & 1) === 1 || vm2vm === 0 ? undefined : this.#table.get(this.#key(vid, dst));
    if (found === port) return;
    if (found !== undefined && vm2vm === 1) {
      if (found === this.#uplink) this.#leave(inside, this.#outVid(port, vid));
      else this.#deliver(found, inside);
      return;
    }
    if (found === undefined && vm2vm === 1 && learning === 'dynamic')
      for (const guest of this.#guests) if (guest !== port) this.#deliver(guest, inside);
    const over = found === undefined ? undefined : this.#outVid(found, vid);
    this.#leave(inside, over ?? this.#outVid(port, vid), over !== undefined);
  }

  /** By the uplink, with this VID; `instead` of a tag that the guest has put in. */
  #leave({ body, bare = false, priority }: Inside, vid: number, instead = false): void {
    const tag = open(body);
    if (bare && instead && vid !== 0) {
      const { inner, tci } = tag as Opened;
      this.#out.push([this.#uplink, close(inner, 0x8100, (tci & 0xf000) | vid)]);
    } else this.#out.push([this.#uplink, bare || vid === 0 ? body : close(body, this.#tpid(), priority | vid)]);
  }

  /** To a guest, if it is in the VLAN. */
  #deliver(port: number, { vid, priority, body, outer }: Inside): void {
    if (!this.vidsOf(port).includes(vid)) return;
    let frame = body;
    if (this.#isTrunk(port)) {
      if (vid !== this.untaggedVid(port) || isTagged(body)) frame = close(body, 0x8100, priority | vid);
    } else if (outer !== undefined && !this.#vlan.strip && (outer.tci & 0xfff) !== 0)
      frame = close(body, outer.tpid, outer.tci);
    this.#out.push([port, frame]);
  }

  #enterFromOutside(frame: Buffer): Inside | undefined {
    const tag = open(frame);
    const none = this.#vlan.plan === 'none' ? 0 : undefined;
    if (tag === undefined || tag.tpid !== this.#tpid())
      return none === undefined ? undefined : { vid: none, priority: 0, body: frame };
    const vid = tag.tci & 0xfff;
    const rest = { priority: tag.tci & 0xf000, body: tag.inner, outer: tag };
    if (vid === 0) return none === undefined ? undefined : { vid: none, ...rest };
    if (
      this.#vlan.plan === 'device' &&
      vid >= 1000 &&
      vid < 1000 + this.#vlans.length &&
      this.#vlans[vid - 1000] === undefined
    )
      return { vid: 0, device: vid - 1000, ...rest };
    return this.#guests.some((port) => this.vidsOf(port).includes(vid)) ? { vid, ...rest } : undefined;
  }

  #fromOutside(frame: Buffer): void {
    const inside = this.#enterFromOutside(frame);
    if (inside === undefined) return;
    const { vid, device } = inside;
    const { learning, vm2vm } = this.#config;
    const [dst, src] = [frame.subarray(0, 6), frame.subarray(6, 12)];
    let sender = this.#table.get(this.#key(vid, src));
    if (learning === 'dynamic' && vm2vm === 1 && (device === undefined || sender === undefined)) {
      this.#table.set(this.#key(vid, src), this.#uplink);
      sender = undefined;
    }
    const group = (dst[0] & 1) === 1;
    const found = group ? undefined : this.#table.get(this.#key(vid, dst));
    const mayHear = (port: number) => port !== sender && (learning === 'dynamic' || this.#registered.has(port));
    if (device !== undefined) {
      if ((group || found === device) && mayHear(device)) this.#deliver(device, inside);
    } else if (found !== undefined) {
      if (found !== sender && found !== this.#uplink) this.#deliver(found, inside);
    } else if (group || learning === 'dynamic')
      for (const port of this.#guests) if (mayHear(port)) this.#deliver(port, inside);
  }
}
