/**
 * Stage 2 of a packet's way: says for each packet of a burst where it goes, and learns where it came from. This is the switch that does
 * not look at VLAN tags; `vlan-classify.ts` has the one that does.
 */
import { PORT_SLOTS } from '../stats/counters.ts';
import { BAD_OFFLOAD, type Burst, FRONT_WORDS, MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import { NEED_CSUM } from '../virtio-net/offload.ts';
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import { DEST_DROP, DEST_FLOOD, DEST_UPLINKS, flood, TARGET_DROP } from './destination.ts';
import { ETHERNET_HEADER, GROUP_BIT, type Learner, sourceFirst, sourceLast } from './learner.ts';
import { NOT_FOUND } from './mac-table.ts';
import type { PortVlan, SwitchConfig } from './switch-config.ts';

const VLAN_TAG = 4;
/** 01:80:c2:00:00:0x as words: addresses that stay on one link (IEEE 802.1Q §8.6.3). */
const LINK_LOCAL_FIRST = 0x00c28001;
const LINK_LOCAL_LAST_MASK = 0xf0ff;

/** Without VLANs all is one. */
const NO_VLAN = 0;
const UNTAGGED: readonly number[] = [0];

/** Targets of frames that stay on one link, that would go back where they come from, and from outside to nobody. */
export const LINK_LOCAL = TARGET_DROP - PORT_SLOTS.tx_drop_link_local;
export const TO_SELF = TARGET_DROP - PORT_SLOTS.tx_drop_self;
export const UNKNOWN = TARGET_DROP - PORT_SLOTS.tx_drop_unknown;

/** Stage 2, whichever of the two a switch has. */
export interface Classify {
  /** What VLANs a port is in from now on; undefined: those of the switch's plan. */
  setPort(port: number, vlan: PortVlan | undefined): void;
  /** A port has gone: its number may be another device's next. */
  forget(port: number): void;
  /** The VLAN that the untagged frames of a port are in. */
  untaggedVid(port: number): number;
  /** The tags by which a guest's frames are in its VLANs, each once: 0 for untagged frames, if it may send such. */
  tagsOf(port: number): readonly number[];
  /**
   * Fills `burst.dest` for a burst from `port`, from the packets' fronts.
   * @param counters the port's own
   * @param now seconds
   */
  classify(burst: Burst, port: number, counters: Float64Array, now: number): void;
}

export class Classifier implements Classify {
  readonly #config: SwitchConfig;
  readonly #learner: Learner;
  /** where group addresses and unknown ones go */
  readonly #unknown: number;
  /** the addresses behind an uplink are learned like those of guests */
  readonly #floods: boolean;

  constructor(config: SwitchConfig, learner: Learner) {
    this.#config = config;
    this.#learner = learner;
    this.#floods = floods(config);
    this.#unknown = this.#floods ? flood(NO_VLAN, -1) : toUplinks(config);
  }

  setPort(): void {}

  untaggedVid(): number {
    return NO_VLAN;
  }

  tagsOf(): readonly number[] {
    return UNTAGGED;
  }

  forget(port: number): void {
    this.#learner.forget(port);
  }

  /** As in {@link Classify}. Packets between the same two addresses mostly come in runs: each run is looked up once. */
  classify(burst: Burst, port: number, counters: Float64Array, now: number): void {
    const { count, len, front } = burst;
    burst.only = -1;
    if (this.#config.learning === 'first' && !this.#learner.admit(burst, NO_VLAN, port, counters, now)) return;
    const { isUplink } = this.#learner;
    const outside = isUplink[port] === 1;
    if (burst.uniform && (sourceFirst(front, 0) & GROUP_BIT) === 0) {
      const target = this.#route(front, 0, port, counters, now, outside);
      if (target >= 0 && target < DEST_FLOOD && isUplink[target] === 0) {
        burst.only = target;
        return;
      }
      burst.dest.fill(Math.max(target, DEST_DROP), 0, count);
      if (target <= TARGET_DROP) counters[TARGET_DROP - target] += count;
      return;
    }
    for (let i = 0; i < count; ) {
      const from = i;
      const malformed = malformedSlot(len[i], burst.needs[i], sourceFirst(front, i));
      const target = malformed < 0 ? this.#route(front, i, port, counters, now, outside) : TARGET_DROP - malformed;
      i = malformed < 0 ? spread(burst, i, target) : i + 1;
      burst.dest[from] = Math.max(target, DEST_DROP);
      if (target <= TARGET_DROP) counters[TARGET_DROP - target] += i - from;
    }
  }

  /** Learns where packet `i` comes from, and says where it goes. @returns what goes to `burst.dest`, or TARGET_DROP less a slot */
  #route(front: Int32Array, i: number, port: number, counters: Float64Array, now: number, outside: boolean): number {
    return outside ? this.#routeIn(front, i, port, counters, now) : this.#routeOut(front, i, port, counters, now);
  }

  /** Learns which guest packet `i` comes from, and says where it goes. */
  #routeOut(front: Int32Array, i: number, port: number, counters: Float64Array, now: number): number {
    if (this.#config.learning === 'dynamic')
      this.#learner.learn(sourceFirst(front, i), sourceLast(front, i), port, counters, now);
    const first = front[FRONT_WORDS * i];
    const last = front[FRONT_WORDS * i + 1] & 0xffff;
    if ((first & GROUP_BIT) !== 0) return isLinkLocal(first, last) ? LINK_LOCAL : this.#unknown;
    const found = this.#config.vm2vm === 0 ? NOT_FOUND : this.#learner.table.lookup(first, last);
    if (found === NOT_FOUND) return this.#unknown;
    if (found === port) return TO_SELF;
    // the switch behind the uplink sends it back
    return this.#config.vm2vm === 2 ? this.#unknown : found;
  }

  /** The same for a packet from an uplink. It never goes back to the guest that has its source address. */
  #routeIn(front: Int32Array, i: number, port: number, counters: Float64Array, now: number): number {
    const srcFirst = sourceFirst(front, i);
    const srcLast = sourceLast(front, i);
    let except = NOT_FOUND;
    if (this.#floods) this.#learner.learn(srcFirst, srcLast, port, counters, now);
    else except = this.#learner.table.lookup(srcFirst, srcLast);
    const first = front[FRONT_WORDS * i];
    const last = front[FRONT_WORDS * i + 1] & 0xffff;
    if ((first & GROUP_BIT) !== 0) return isLinkLocal(first, last) ? LINK_LOCAL : flood(NO_VLAN, except);
    const found = this.#learner.table.lookup(first, last);
    if (found === NOT_FOUND) return this.#config.learning === 'first' ? UNKNOWN : flood(NO_VLAN, except);
    return this.#learner.isUplink[found] === 1 || found === except ? TO_SELF : found;
  }
}

/** True where group addresses and unknown ones go to guests too; and where it matters which addresses are outside: elsewhere all goes there. */
export const floods = ({ learning, vm2vm }: SwitchConfig) => learning === 'dynamic' && vm2vm === 1;

/** What goes out and nowhere else, as a target. */
export const toUplinks = ({ uplinks = [] }: SwitchConfig) =>
  uplinks.length > 0 ? DEST_UPLINKS : TARGET_DROP - PORT_SLOTS.tx_drop_no_uplink;

export const isLinkLocal = (first: number, last: number) =>
  first === LINK_LOCAL_FIRST && (last & LINK_LOCAL_LAST_MASK) === 0;

/**
 * Sends packet `from`, whose length is fair, and those behind it that have the same two addresses and a fair length to the same target. No call in the
 * loop, as in `virtqueue/plain.ts`. @returns the first packet of another kind, or the burst's count
 */
function spread({ count, len, dest, front }: Burst, from: number, target: number): number {
  const word0 = front[FRONT_WORDS * from];
  const word1 = front[FRONT_WORDS * from + 1];
  const word2 = front[FRONT_WORDS * from + 2];
  const to = Math.max(target, DEST_DROP);
  let i = from + 1;
  for (; i < count; i++) {
    const at = FRONT_WORDS * i;
    if (front[at] !== word0 || front[at + 1] !== word1 || front[at + 2] !== word2) break;
    if (len[i] < ETHERNET_HEADER || len[i] > MAX_FRAME_BYTES + VLAN_TAG) break;
    dest[i] = to;
  }
  return i;
}

/** The counter for a frame whose length or source address is no good, or −1. */
export function malformedSlot(len: number, needs: number, source: number): number {
  if (len === BAD_OFFLOAD) return PORT_SLOTS.tx_drop_bad_offload;
  if (len < ETHERNET_HEADER) return PORT_SLOTS.tx_drop_runt;
  const cut = (needs & ~NEED_CSUM) !== 0;
  if (len > (cut ? MAX_GSO_BYTES : MAX_FRAME_BYTES + VLAN_TAG)) return PORT_SLOTS.tx_drop_too_long;
  return (source & GROUP_BIT) === 0 ? -1 : PORT_SLOTS.tx_drop_bad_source;
}
