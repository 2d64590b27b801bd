/**
 * What is known of one vring: what the front end has told, and where the datapath has it.
 * When it runs is decided in `vring-runner.ts`.
 */
import type { Place } from '../mem/guest-memory.ts';
import {
  VIRTQ_MAX_SIZE,
  VRING_AVAIL_ALIGN,
  VRING_DESC_ALIGN,
  VRING_PACKED_DESC_ALIGN,
  VRING_PACKED_DESC_EVENT,
  VRING_PACKED_EVENT_ALIGN,
  VRING_USED_ALIGN,
  vringAvailBytes,
  vringDescBytes,
  vringPackedDescBytes,
  vringUsedBytes,
} from '../uapi/virtio-ring.ts';
import type { RingConfig } from '../virtqueue/ring-config.ts';
import type { VringAddresses } from './vhost-device.ts';
import { VringEvent } from './vring-event.ts';

export type RingFormat = RingConfig['format'];

/** Where a vring's three parts lie. */
export interface RingPlaces {
  readonly desc: Place;
  readonly avail: Place;
  readonly used: Place;
}

/** A ring as the datapath has it. */
export interface RunningRing extends RingPlaces {
  /** RingConfig.usedLogAddr */
  readonly usedLogAddr: number | undefined;
}

/** A part of a ring as the front end gave it. */
export interface RingPart {
  readonly name: keyof RingPlaces;
  /** for people */
  readonly what: string;
  readonly addr: number;
  /** bytes */
  readonly len: number;
  readonly align: number;
  /** the device writes it */
  readonly write: boolean;
}

/** A packed ring that nobody gave a base begins at 0 with both wrap counters 1 (VIRTIO 1.2 §2.8.1). */
const PACKED_START = 0x8000_8000;

export class Vring {
  readonly index: number;
  /** descriptors; 0 takes the vring away */
  num = 0;
  addresses: VringAddresses | undefined;
  /** as SET_VRING_BASE has it; undefined where it begins anew */
  base: number | undefined;
  /**
   * Where the ring stood when it was last stopped, until it is told otherwise: QEMU 7.2 resets the device by SET_STATUS and
   * RESET_DEVICE, and only then asks GET_VRING_BASE.
   */
  stoppedAt: number | undefined;
  /** the kick has come: the front end has started the vring */
  started = false;
  enabled = false;
  /** where the datapath has it, or undefined if it does not */
  running: RunningRing | undefined;
  readonly kick = new VringEvent();
  readonly call = new VringEvent();
  readonly err = new VringEvent();

  constructor(index: number) {
    this.index = index;
  }

  /** Where it goes on, in the form that its format has. */
  baseOf(format: RingFormat): number {
    return this.base ?? (format === 'packed' ? PACKED_START : 0);
  }

  /** The ring's parts, once the addresses are known. */
  parts(format: RingFormat): RingPart[] {
    const { num } = this;
    const { descAddr, availAddr, usedAddr } = this.addresses as VringAddresses;
    if (format === 'split')
      return [
        part('desc', 'descriptor table', descAddr, vringDescBytes(num), VRING_DESC_ALIGN, false),
        part('avail', 'avail ring', availAddr, vringAvailBytes(num), VRING_AVAIL_ALIGN, false),
        part('used', 'used ring', usedAddr, vringUsedBytes(num), VRING_USED_ALIGN, true),
      ];
    const event = VRING_PACKED_DESC_EVENT.size;
    return [
      part('desc', 'descriptor ring', descAddr, vringPackedDescBytes(num), VRING_PACKED_DESC_ALIGN, true),
      part('avail', 'driver event area', availAddr, event, VRING_PACKED_EVENT_ALIGN, false),
      part('used', 'device event area', usedAddr, event, VRING_PACKED_EVENT_ALIGN, true),
    ];
  }

  /** What of its numbers does not suit the format, or undefined. */
  problem(format: RingFormat): string | undefined {
    return numProblem(format, this.num) ?? baseProblem(format, this.num, this.baseOf(format));
  }

  /** Forgets everything but the eventfds, as for a stopped ring. */
  reset(): void {
    this.num = 0;
    this.addresses = undefined;
    this.base = undefined;
    this.started = false;
    this.enabled = false;
  }

  closeEvents(): void {
    this.kick.close();
    this.call.close();
    this.err.close();
  }
}

function part(name: RingPart['name'], what: string, addr: number, len: number, align: number, write: boolean) {
  return { name, what, addr, len, align, write };
}

/** What is wrong with a ring of `num` descriptors, or undefined; none at all takes the ring away. */
export function numProblem(format: RingFormat, num: number): string | undefined {
  if (num > VIRTQ_MAX_SIZE) return `${num} descriptors, a ring has at most ${VIRTQ_MAX_SIZE}`;
  if (format === 'split' && (num & (num - 1)) !== 0) return `${num} is no power of two up to ${VIRTQ_MAX_SIZE}`;
  return undefined;
}

function baseProblem(format: RingFormat, num: number, base: number): string | undefined {
  if (format === 'split') return base > 0xffff ? `index ${base} is above 65535` : undefined;
  const avail = base & 0x7fff;
  const used = (base >>> 16) & 0x7fff;
  if (Math.max(avail, used) < num) return undefined;
  return `it is to go on at descriptors ${avail} and ${used}, and has ${num}`;
}

const samePlace = (a: Place, b: Place) => a.window === b.window && a.off === b.off;

export function samePlaces(a: RingPlaces, b: RingPlaces): boolean {
  return samePlace(a.desc, b.desc) && samePlace(a.avail, b.avail) && samePlace(a.used, b.used);
}
