/**
 * Stage 3's part in VLANs: what a packet begins with at the port that it leaves by. Fronts are made for those ports only where they
 * differ from what the source has, or where what was looked at must be what arrives; a burst that stays between untagged guests is left alone.
 */
import type { WindowViews } from '../mem/window.ts';
import { ETH_P_8021Q } from '../uapi/ip.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES } from '../virtio-net/burst.ts';
import { FrontStage } from '../virtio-net/front-stage.ts';
import { isUntagged, PORT_TRUNK, PORT_UPLINK, type PortVlans, PRIORITY_MASK, type VlanMarks } from './port-vlans.ts';

const TYPE_OFF = 12;
const NO_CUTS = new Int32Array(BURST_SIZE);

/** The EtherType of packet `i`, big-endian as a number, from its front. */
export const typeOf = ({ frontBytes }: Burst, i: number) =>
  (frontBytes[FRONT_BYTES * i + TYPE_OFF] << 8) | frontBytes[FRONT_BYTES * i + TYPE_OFF + 1];

/** What the forwarder asks about tags. */
export interface Egress {
  /** True if frames of the VLAN reach the port. */
  carries(port: number, vid: number): boolean;
  /** Before any port is sent to: true if some packet of this burst is not for every port as it is. */
  begin(burst: Burst): boolean;
  /** True if the port may get the burst's packets as they are. @param outside it comes from an uplink */
  asTheyAre(port: number, outside: boolean): boolean;
  /** Makes packets list[from] … list[to − 1] begin as they leave by the port. */
  dress(burst: Burst, list: Int32Array, from: number, to: number, port: number, outside: boolean): void;
}

/** A switch that does not look at tags: one that came beside a frame goes back into it. */
export class TransparentEgress implements Egress {
  readonly #fronts: FrontStage;
  #open = false;

  constructor(memory: WindowViews, off: number) {
    this.#fronts = new FrontStage(memory, off);
  }

  carries(): boolean {
    return true;
  }

  begin(burst: Burst): boolean {
    this.#open = false;
    const { tagged } = burst;
    burst.tagged = false;
    return tagged;
  }

  asTheyAre(): boolean {
    return false;
  }

  dress(burst: Burst, list: Int32Array, from: number, to: number): void {
    if (!this.#open) this.#fronts.open(burst, NO_CUTS);
    this.#open = true;
    for (let k = from; k < to; k++) this.#fronts.dress(burst, list[k], burst.tag[list[k]], typeOf(burst, list[k]));
  }
}

export class VlanEgress implements Egress {
  readonly #fronts: FrontStage;
  readonly #vlans: PortVlans;
  readonly #marks: VlanMarks;
  /** guests get frames from an uplink without their tag */
  readonly #strip: boolean;
  #open = false;

  constructor(vlans: PortVlans, marks: VlanMarks, strip: boolean, memory: WindowViews, off: number) {
    this.#fronts = new FrontStage(memory, off);
    this.#vlans = vlans;
    this.#marks = marks;
    this.#strip = strip;
  }

  carries(port: number, vid: number): boolean {
    return this.#vlans.carries(port, vid);
  }

  begin(): boolean {
    this.#open = false;
    return true;
  }

  asTheyAre(port: number, outside: boolean): boolean {
    if (this.#marks.cuts || (outside && !this.#strip)) return false;
    return isUntagged(this.#vlans.kind[port]);
  }

  dress(burst: Burst, list: Int32Array, from: number, to: number, port: number, outside: boolean): void {
    const { cut, type } = this.#marks;
    if (!this.#open) this.#fronts.open(burst, cut);
    this.#open = true;
    for (let k = from; k < to; k++) {
      const i = list[k];
      this.#fronts.dress(burst, i, this.#tagAt(burst, i, port, outside), cut[i] === 0 ? typeOf(burst, i) : type[i]);
    }
  }

  /** The tag that packet `i` has when it leaves by the port, or 0. */
  #tagAt({ tag }: Burst, i: number, port: number, outside: boolean): number {
    const { kind, untagged } = this.#vlans;
    if (kind[port] === PORT_UPLINK) return tag[i];
    if (kind[port] !== PORT_TRUNK) return outside && !this.#strip ? tag[i] : 0;
    const vid = this.#marks.vid[i];
    // a tag within would else be taken for the frame's VLAN
    if (vid === untagged[port] && this.#marks.nested[i] === 0) return 0;
    return (ETH_P_8021Q << 16) | (tag[i] & PRIORITY_MASK) | vid;
  }
}
