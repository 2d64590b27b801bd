/**
 * What traffic to make: how many flows, what tells them apart, and how long the packets are. Plain data, which survives postMessage.
 */
import { ETHHDR, IPHDR, UDPHDR, VLAN_HLEN } from '../../uapi/ip.ts';
import { MAX_FRAME_BYTES } from '../../virtio-net/burst.ts';
import { HEAD_BYTES } from './payload.ts';

/** `count` numbers from `first` on. Flow n has number n modulo `count`. */
export interface NumberRange {
  readonly first: number;
  readonly count: number;
}

/** Bytes of the frames, without frame check sequence: one after the other, over and over; or any from `min` to `max`. */
export type FrameSizes = { readonly list: readonly number[] } | { readonly min: number; readonly max: number };

export interface TrafficPlan {
  readonly flows: number;
  readonly sizes: FrameSizes;
  /** VLAN of each flow, in an 802.1Q tag; absent: no tag */
  readonly vlan?: NumberRange;
  /** 48 bits */
  readonly srcMac: NumberRange;
  readonly dstMac: NumberRange;
  /** 32 bits */
  readonly srcIp: NumberRange;
  readonly dstIp: NumberRange;
  readonly srcPort: NumberRange;
  readonly dstPort: NumberRange;
  /** of random sizes */
  readonly seed: number;
}

/** The simple mix of the Internet's sizes, 7 : 4 : 1, so interleaved that each stretch is like the whole (RFC 6985 §2). */
export const IMIX: readonly number[] = [64, 590, 64, 64, 590, 64, 1514, 64, 590, 64, 64, 590];

/** Bytes of the largest frame that is made. */
export const MAX_MADE_FRAME = MAX_FRAME_BYTES;

/** Bytes in front of the payload. */
export function headersOf({ vlan }: Pick<TrafficPlan, 'vlan'>): number {
  return ETHHDR.size + (vlan === undefined ? 0 : VLAN_HLEN) + IPHDR.size + UDPHDR.size;
}

/** Bytes of the smallest frame that has room for what a packet says about itself. */
export function leastFrame(plan: Pick<TrafficPlan, 'vlan'>): number {
  return headersOf(plan) + HEAD_BYTES;
}

/** Bytes of the largest and of the smallest frame. */
export function extremes(sizes: FrameSizes): { min: number; max: number } {
  return 'list' in sizes ? { min: Math.min(...sizes.list), max: Math.max(...sizes.list) } : sizes;
}

/** What a flow has of a range. */
export const memberOf = ({ first, count }: NumberRange, flow: number) => first + (flow % count);

/** The most flows that some range tells apart; 1 where none does. */
export function widest(plan: Omit<TrafficPlan, 'flows' | 'sizes' | 'seed'>): number {
  const { vlan, srcMac, dstMac, srcIp, dstIp, srcPort, dstPort } = plan;
  return Math.max(...[srcMac, dstMac, srcIp, dstIp, srcPort, dstPort].map(({ count }) => count), vlan?.count ?? 1);
}
