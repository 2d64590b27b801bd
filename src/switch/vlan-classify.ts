/**
 * Stage 2 for a switch with VLANs: which VLAN each packet is in, where it goes there, and with what tag it would leave by a port that
 * tells VLANs apart by tags. What comes of that at a port is `egress.ts`'s business.
 *
 * A guest does not choose its VLAN: an access guest's own tags are dropped, or travel as part of what the frame carries; a trunk
 * guest's must be on its list. A second tag behind one that comes off would be the first one for the next switch: such frames of guests
 * are dropped.
 */
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { ETH_P_8021Q, VLAN_HLEN } from '../uapi/ip.ts';
import { type Burst, FRONT_BYTES, FRONT_WORDS, MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import {
  type Classify,
  floods,
  isLinkLocal,
  LINK_LOCAL,
  malformedSlot,
  TO_SELF,
  toUplinks,
  UNKNOWN,
} from './classify.ts';
import { DEST_DROP, DEST_FLOOD, flood, TARGET_DROP } from './destination.ts';
import { typeOf } from './egress.ts';
import { ETHERNET_HEADER, GROUP_BIT, type Learner, sourceFirst, sourceLast } from './learner.ts';
import { NOT_FOUND, vidBits } from './mac-table.ts';
import {
  isTagType,
  isUntagged,
  NO_VID,
  PLAN_VID,
  PORT_PLAN,
  PORT_TRUNK,
  type PortVlans,
  PRIORITY_MASK,
  VID_MASK,
  type VlanMarks,
} from './port-vlans.ts';
import type { PortVlan, SwitchConfig, VlanConfig } from './switch-config.ts';

const TYPE_OFF = 12;
const DROP_TAGGED = TARGET_DROP - PORT_SLOTS.tx_drop_tagged;
const DROP_VLAN = TARGET_DROP - PORT_SLOTS.tx_drop_vlan;
const DROP_RUNT = TARGET_DROP - PORT_SLOTS.tx_drop_runt;

export class VlanClassifier implements Classify {
  readonly #config: SwitchConfig;
  readonly #guest: VlanConfig['guest'];
  readonly #plan: VlanConfig['plan'];
  readonly #learner: Learner;
  readonly #vlans: PortVlans;
  readonly #marks: VlanMarks;
  readonly #windows: readonly WindowViews[];
  /** group addresses and unknown ones go to guests too; and addresses outside are learned */
  readonly #floods: boolean;
  readonly #toUplinks: number;
  /** of the packet at hand: the VLAN it is in; what goes into a tag's second half beside that; its own VID on the uplink, 0 for none */
  #vid = 0;
  #priority = 0;
  #outVid = 0;
  /** from an uplink: the one device that its tag names, or −1 */
  #device = -1;

  /** @param windows where the packets' bytes lie, by window id */
  constructor(
    config: SwitchConfig,
    vlan: VlanConfig,
    learner: Learner,
    vlans: PortVlans,
    marks: VlanMarks,
    windows: readonly WindowViews[],
  ) {
    this.#config = config;
    this.#guest = vlan.guest;
    this.#plan = vlan.plan;
    this.#learner = learner;
    this.#vlans = vlans;
    this.#marks = marks;
    this.#windows = windows;
    this.#floods = floods(config);
    this.#toUplinks = toUplinks(config);
  }

  setPort(port: number, vlan: PortVlan | undefined): void {
    this.#vlans.set(port, vlan);
  }

  forget(port: number): void {
    this.#learner.forget(port);
    this.#vlans.remove(port);
  }

  untaggedVid(port: number): number {
    return Math.max(this.#vlans.untagged[port], PLAN_VID);
  }

  tagsOf(port: number): readonly number[] {
    return this.#vlans.tagsOf(port);
  }

  /** As in {@link Classify}; and fills the marks, and turns `burst.tag` from what came beside a packet into what it would leave with. */
  classify(burst: Burst, port: number, counters: Float64Array, now: number): void {
    const { count, len, front, tag } = burst;
    const marks = this.#marks;
    marks.cuts = false;
    burst.only = -1;
    if (!burst.tagged) tag.fill(0, 0, count);
    burst.tagged = false;
    if (this.#config.learning === 'first' && !this.#learner.admit(burst, this.untaggedVid(port), port, counters, now))
      return;
    const outside = this.#learner.isUplink[port] === 1;
    for (let i = 0; i < count; ) {
      const from = i;
      const beside = tag[i];
      const malformed = malformedSlot(len[i], burst.needs[i], sourceFirst(front, i));
      let target = TARGET_DROP - malformed;
      if (malformed < 0) {
        marks.cut[i] = 0;
        marks.nested[i] = 0;
        target = outside ? this.#enterIn(burst, i, beside) : this.#enter(burst, i, port, beside);
        if (target === 0)
          target = outside
            ? this.#routeIn(front, i, port, counters, now)
            : this.#routeOut(front, i, port, counters, now);
        this.#mark(burst, i);
      }
      burst.dest[from] = Math.max(target, DEST_DROP);
      i++;
      if (malformed < 0 && !isTagType(typeOf(burst, from))) i = this.#spread(burst, from, beside);
      if (target <= TARGET_DROP) counters[TARGET_DROP - target] += i - from;
      else if (burst.uniform && !marks.cuts && from === 0 && i === count && this.#isUntaggedGuest(target))
        burst.only = target;
    }
  }

  /** True for a port that gets what another guest sends untagged as it is. */
  #isUntaggedGuest(target: number): boolean {
    return target >= 0 && target < DEST_FLOOD && isUntagged(this.#vlans.kind[target]);
  }

  /** Writes down what has been found out about packet `i`. */
  #mark({ tag }: Burst, i: number): void {
    const marks = this.#marks;
    marks.vid[i] = this.#vid;
    if (marks.cut[i] !== 0) marks.cuts = true;
    tag[i] = this.#outVid === 0 ? 0 : (this.#vlans.tagType << 16) | this.#priority | this.#outVid;
  }

  /** Which VLAN a guest's packet is in. @returns 0, or a target for a packet that is dropped */
  #enter(burst: Burst, i: number, port: number, beside: number): number {
    const vlans = this.#vlans;
    const trunk = vlans.kind[port] === PORT_TRUNK;
    this.#vid = vlans.untagged[port];
    this.#priority = 0;
    this.#outVid = vlans.kind[port] === PORT_PLAN ? vlans.ownTag[port] : this.#vid;
    const { type, tci, behind } = this.#outerTag(burst, i, beside);
    if (type === 0) return this.#vid === NO_VID ? DROP_VLAN : 0;
    if (behind < 0) return DROP_RUNT;
    if (!trunk && beside === 0 && this.#keeps(type, tci, behind)) {
      this.#marks.nested[i] = 1;
      if (this.#guest === 'trust' && type === ETH_P_8021Q) {
        // never a second tag; and a priority of its own, should this one come off after all
        this.#outVid = 0;
        this.#priority = tci & PRIORITY_MASK;
      }
      return 0;
    }
    const vid = tci & VID_MASK;
    if (type !== ETH_P_8021Q || isTagType(behind) || (!trunk && vid !== 0)) return DROP_TAGGED;
    if (vid !== 0) this.#vid = this.#outVid = vid;
    if (this.#vid === NO_VID || !vlans.carries(port, this.#vid)) return DROP_VLAN;
    this.#priority = tci & PRIORITY_MASK;
    this.#cut(i, behind, beside);
    return 0;
  }

  /** True if an access guest's own tag stays where it is, part of what the frame carries. */
  #keeps(type: number, tci: number, behind: number): boolean {
    if (this.#guest === 'drop') return false;
    const priorityOnly = type === ETH_P_8021Q && (tci & VID_MASK) === 0 && !isTagType(behind);
    // without a tag of the device's own around it, it would be the frame's VLAN outside
    return this.#guest === 'trust' ? !priorityOnly : this.#outVid !== 0;
  }

  /** Which VLAN a packet from an uplink is in. @returns 0, or a target for a packet that is dropped */
  #enterIn(burst: Burst, i: number, beside: number): number {
    const vlans = this.#vlans;
    this.#vid = this.#plan === 'none' ? PLAN_VID : NO_VID;
    this.#priority = 0;
    this.#outVid = 0;
    this.#device = -1;
    const { type, tci, behind } = this.#outerTag(burst, i, beside);
    if (type !== vlans.tagType) {
      // not a tag of ours: without one it is part of what an untagged frame carries
      if (type !== 0) this.#marks.nested[i] = 1;
      return this.#vid === NO_VID || beside !== 0 ? DROP_VLAN : 0;
    }
    if (behind < 0) return DROP_RUNT;
    const vid = tci & VID_MASK;
    if (vid !== 0) {
      this.#vid = this.#outVid = vid;
      this.#device = vlans.deviceOf(vid);
      if (this.#device >= 0) this.#vid = PLAN_VID;
      else if (!vlans.isUsed(vid)) return DROP_VLAN;
    }
    if (this.#vid === NO_VID) return DROP_VLAN;
    this.#priority = tci & PRIORITY_MASK;
    if (isTagType(behind)) this.#marks.nested[i] = 1;
    this.#cut(i, behind, beside);
    return 0;
  }

  /** The tag that comes with packet `i`, beside it or in it, comes off. */
  #cut(i: number, behind: number, beside: number): void {
    if (beside !== 0) return;
    this.#marks.cut[i] = VLAN_HLEN;
    this.#marks.type[i] = behind;
  }

  readonly #tag = { type: 0, tci: 0, behind: 0 };

  /**
   * The outermost tag of packet `i`: its EtherType, 0 for none; its second half; the EtherType behind it, read once, or −1 if the packet
   * ends before that.
   */
  #outerTag(burst: Burst, i: number, beside: number): { type: number; tci: number; behind: number } {
    const { frontBytes, segments, first } = burst;
    const at = FRONT_BYTES * i + TYPE_OFF;
    const type = typeOf(burst, i);
    const tag = this.#tag;
    tag.behind = type;
    if (beside !== 0) {
      tag.type = beside >>> 16;
      tag.tci = beside & 0xffff;
    } else if (isTagType(type)) {
      tag.type = type;
      tag.tci = (frontBytes[at + 2] << 8) | frontBytes[at + 3];
      const high = byteAt(this.#windows, segments, first[i], first[i + 1], FRONT_BYTES);
      const low = byteAt(this.#windows, segments, first[i], first[i + 1], FRONT_BYTES + 1);
      tag.behind = low < 0 ? -1 : (high << 8) | low;
    } else tag.type = 0;
    return tag;
  }

  /** As in Classifier, within the packet's VLAN. */
  #routeOut(front: Int32Array, i: number, port: number, counters: Float64Array, now: number): number {
    const { vm2vm, learning } = this.#config;
    const vlan = vidBits(this.#vid);
    if (learning === 'dynamic')
      this.#learner.learn(sourceFirst(front, i), sourceLast(front, i) | vlan, port, counters, now);
    const first = front[FRONT_WORDS * i];
    const last = front[FRONT_WORDS * i + 1] & 0xffff;
    const unknown = this.#floods ? flood(this.#vid, -1) : this.#toUplinks;
    if ((first & GROUP_BIT) !== 0) return isLinkLocal(first, last) ? LINK_LOCAL : unknown;
    const found = vm2vm === 0 ? NOT_FOUND : this.#learner.table.lookup(first, last | vlan);
    if (found === NOT_FOUND) return unknown;
    if (found === port) return TO_SELF;
    if (vm2vm === 2) this.#outwards(i, found);
    return vm2vm === 2 ? this.#toUplinks : found;
  }

  /** The packet goes to another guest by way of the switch behind the uplink: in that guest's tag. */
  #outwards(i: number, to: number): void {
    const { kind, ownTag } = this.#vlans;
    const vid = kind[to] === PORT_PLAN ? ownTag[to] : this.#vid;
    if (vid === 0) return;
    const marks = this.#marks;
    if (this.#guest === 'trust' && marks.nested[i] === 1 && this.#outVid === 0) {
      const { behind } = this.#tag;
      marks.nested[i] = isTagType(behind) ? 1 : 0;
      this.#cut(i, behind, 0);
    }
    this.#outVid = vid;
  }

  /** The same for a packet from an uplink. It never goes back to the guest that has its source address. */
  #routeIn(front: Int32Array, i: number, port: number, counters: Float64Array, now: number): number {
    const vlan = vidBits(this.#vid);
    const { table, isUplink } = this.#learner;
    const srcFirst = sourceFirst(front, i);
    const srcLast = sourceLast(front, i) | vlan;
    let except = table.lookup(srcFirst, srcLast);
    if (except !== NOT_FOUND && isUplink[except] === 1) except = NOT_FOUND;
    // devices that have a tag each may hear one another by way of the network: that takes nobody's address away
    if (this.#floods && (this.#device < 0 || except === NOT_FOUND)) {
      this.#learner.learn(srcFirst, srcLast, port, counters, now);
      except = NOT_FOUND;
    }
    const first = front[FRONT_WORDS * i];
    const last = front[FRONT_WORDS * i + 1] & 0xffff;
    const group = (first & GROUP_BIT) !== 0;
    if (group && isLinkLocal(first, last)) return LINK_LOCAL;
    const found = group ? NOT_FOUND : table.lookup(first, last | vlan);
    if (this.#device >= 0) return this.#toDevice(group, found, except);
    if (found === NOT_FOUND) return group || this.#config.learning === 'dynamic' ? flood(this.#vid, except) : UNKNOWN;
    return isUplink[found] === 1 || found === except ? TO_SELF : found;
  }

  /** A device with a tag of its own gets what has that tag, and its address or one of a group. */
  #toDevice(group: boolean, found: number, except: number): number {
    const device = this.#device;
    if (device === except) return TO_SELF;
    return (group && this.#learner.mayReceive(device)) || found === device ? device : UNKNOWN;
  }

  /**
   * Treats the packets behind `from`, which has no tag but perhaps beside it, like it as far as they have the same addresses, type and
   * tag beside, and a fair length. @returns the first packet of another kind, or the burst's count
   */
  #spread({ count, len, dest, front, tag }: Burst, from: number, beside: number): number {
    const { vid, cut, nested } = this.#marks;
    const at = FRONT_WORDS * from;
    let i = from + 1;
    for (; i < count; i++) {
      const next = FRONT_WORDS * i;
      if (front[next] !== front[at] || front[next + 1] !== front[at + 1] || front[next + 2] !== front[at + 2]) break;
      if (((front[next + 3] ^ front[at + 3]) & 0xffff) !== 0 || tag[i] !== beside) break;
      if (len[i] < ETHERNET_HEADER || len[i] > MAX_FRAME_BYTES + VLAN_HLEN) break;
      dest[i] = dest[from];
      tag[i] = tag[from];
      vid[i] = vid[from];
      cut[i] = 0;
      nested[i] = 0;
    }
    return i;
  }
}

/** Byte `at` of the packet that segments `first` … `end` − 1 hold, or −1 if it is shorter. */
function byteAt(
  windows: readonly WindowViews[],
  segments: Burst['segments'],
  first: number,
  end: number,
  at: number,
): number {
  let skip = at;
  for (let s = first; s < end; s++) {
    if (skip < segments.len[s]) return windows[segments.window[s]].u8[segments.off[s] + skip];
    skip -= segments.len[s];
  }
  return -1;
}
