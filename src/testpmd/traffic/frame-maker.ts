/**
 * Makes bursts of UDP packets of many flows in window memory, each with its number, the time, and a checksum (payload.ts).
 *
 * The memory has a header for each flow, ready but for lengths, and buffers for one burst, whose payloads are filled once and for
 * all: of a packet only its header and the head of its payload are written.
 */
import type { WindowViews } from '../../mem/window.ts';
import { NanosecondStamp } from '../../net/capture-format.ts';
import { onesSum } from '../../net/checksum.ts';
import { addFrame } from '../../port/frame-burst.ts';
import { MonotonicClock } from '../../sys/clock.ts';
import { ETH_P_8021Q, ETH_P_IP, ETHHDR, IPHDR, IPPROTO_UDP, UDPHDR, VLAN_HLEN } from '../../uapi/ip.ts';
import { BURST_SIZE, type Burst } from '../../virtio-net/burst.ts';
import {
  checkOf,
  fillTail,
  HEAD_BYTES,
  hashTail,
  MAGIC,
  MAX_FLOWS,
  OFF_CHECK,
  OFF_FLOW,
  OFF_NUMBER,
  OFF_TIME_HI,
  OFF_TIME_LO,
  RUNS,
  TIME_HI_MASK,
} from './payload.ts';
import { extremes, headersOf, leastFrame, MAX_MADE_FRAME, memberOf, type TrafficPlan } from './traffic-plan.ts';

/** Room of a flow's header, which is copied by whole words. */
const TEMPLATE_BYTES = 64;
const CACHE_LINE = 64;
const TTL = 64;
/** IPv4 frag_off: do not fragment. */
const IP_DF = 0x4000;

const strideOf = (plan: TrafficPlan) => Math.ceil(extremes(plan.sizes).max / CACHE_LINE) * CACHE_LINE;

/** Bytes of window memory that a maker of such traffic needs. */
export function makerBytes(plan: TrafficPlan): number {
  return plan.flows * TEMPLATE_BYTES + BURST_SIZE * strideOf(plan);
}

export class FrameMaker {
  /** packets of each flow so far, modulo 2³²; the next one's number. Other threads may read it. */
  readonly numbers: Int32Array;
  readonly #burst: Burst;
  readonly #views: WindowViews;
  readonly #dv: DataView;
  readonly #templates: number;
  readonly #buffers: number;
  readonly #stride: number;
  readonly #flows: number;
  readonly #headers: number;
  readonly #ipOff: number;
  /** of the first flow: the run and the flow as they are written */
  readonly #firstWord: number;
  /** by flow: the sum of its IPv4 header without the length */
  readonly #ipSums: Uint16Array;
  /** the sizes in turn; or, where they are random, just min and span */
  readonly #sizes: Int32Array;
  readonly #random: boolean;
  /** by size: the hash of the payload behind its head */
  readonly #tails: Int32Array;
  readonly #clock = new MonotonicClock();
  readonly #stamp = new NanosecondStamp();
  #state: number;
  #nextFlow = 0;
  #nextSize = 0;

  /**
   * @param off where in the window `makerBytes` bytes are the maker's, a multiple of 64
   * @param firstFlow what the first flow is called; those of several makers are told apart so
   * @param run tells these packets from those of earlier runs with the same flows
   * @param numbers a word for each flow, zero, which the maker alone writes
   */
  constructor(
    plan: TrafficPlan,
    burst: Burst,
    views: WindowViews,
    off: number,
    run = 0,
    firstFlow = 0,
    numbers = new SharedArrayBuffer(4 * plan.flows),
  ) {
    const { min, max } = extremes(plan.sizes);
    if (plan.flows < 1 || firstFlow + plan.flows > MAX_FLOWS)
      throw new RangeError(`${firstFlow + plan.flows} flows: 1 to ${MAX_FLOWS} can be made`);
    if (min < leastFrame(plan) || max > MAX_MADE_FRAME)
      throw new RangeError(`frames of ${min} to ${max} bytes cannot be made`);
    this.#burst = burst;
    this.#views = views;
    this.#dv = views.dv;
    this.#flows = plan.flows;
    this.#templates = off;
    this.#buffers = off + plan.flows * TEMPLATE_BYTES;
    this.#stride = strideOf(plan);
    this.#headers = headersOf(plan);
    this.#ipOff = this.#headers - IPHDR.size - UDPHDR.size;
    this.#firstWord = ((run % RUNS) << 24) | firstFlow;
    this.numbers = new Int32Array(numbers);
    this.#ipSums = new Uint16Array(plan.flows);
    for (let flow = 0; flow < plan.flows; flow++) this.#writeTemplate(plan, flow);
    this.#random = !('list' in plan.sizes);
    this.#sizes = Int32Array.from('list' in plan.sizes ? plan.sizes.list : [min, max - min + 1]);
    this.#state = plan.seed | 0 || 1;
    for (let i = 0; i < BURST_SIZE; i++)
      fillTail(this.#dv, this.#buffers + i * this.#stride + this.#headers, max - this.#headers);
    this.#tails = new Int32Array(max + 1);
    const sizes =
      'list' in plan.sizes ? new Set(plan.sizes.list) : Array.from({ length: max - min + 1 }, (_, i) => min + i);
    const tail = this.#headers + HEAD_BYTES;
    for (const size of sizes) this.#tails[size] = hashTail(this.#dv, this.#buffers + tail, size - tail);
  }

  #writeTemplate(plan: TrafficPlan, flow: number): void {
    const dv = this.#dv;
    const at = this.#templates + flow * TEMPLATE_BYTES;
    writeMac(dv, at + ETHHDR.off.h_dest, memberOf(plan.dstMac, flow));
    writeMac(dv, at + ETHHDR.off.h_source, memberOf(plan.srcMac, flow));
    let type = at + ETHHDR.off.h_proto;
    if (plan.vlan !== undefined) {
      dv.setUint16(type, ETH_P_8021Q);
      dv.setUint16(type + 2, memberOf(plan.vlan, flow));
      type += VLAN_HLEN;
    }
    dv.setUint16(type, ETH_P_IP);
    const ip = at + this.#ipOff;
    dv.setUint8(ip + IPHDR.off.version_ihl, 0x45);
    dv.setUint8(ip + IPHDR.off.tos, 0);
    dv.setUint16(ip + IPHDR.off.tot_len, 0);
    dv.setUint16(ip + IPHDR.off.id, 0);
    dv.setUint16(ip + IPHDR.off.frag_off, IP_DF);
    dv.setUint8(ip + IPHDR.off.ttl, TTL);
    dv.setUint8(ip + IPHDR.off.protocol, IPPROTO_UDP);
    dv.setUint16(ip + IPHDR.off.check, 0);
    dv.setUint32(ip + IPHDR.off.saddr, memberOf(plan.srcIp, flow));
    dv.setUint32(ip + IPHDR.off.daddr, memberOf(plan.dstIp, flow));
    this.#ipSums[flow] = onesSum(dv, ip, IPHDR.size);
    const udp = ip + IPHDR.size;
    dv.setUint16(udp + UDPHDR.off.source, memberOf(plan.srcPort, flow));
    dv.setUint16(udp + UDPHDR.off.dest, memberOf(plan.dstPort, flow));
    dv.setUint16(udp + UDPHDR.off.len, 0);
    // none, as IPv4 allows: the payload has one of its own
    dv.setUint16(udp + UDPHDR.off.check, 0);
  }

  /** Fills the burst with the next `n` packets, 1 to 32, of one time. They may be edited, and stay until the next call. */
  make(n: number): void {
    const burst = this.#burst;
    const { numbers } = this;
    burst.clear();
    this.#clock.read();
    this.#stamp.set(this.#clock.sec, this.#clock.nsec);
    const timeHi = this.#stamp.hi & TIME_HI_MASK;
    const timeLo = this.#stamp.lo | 0;
    let flow = this.#nextFlow;
    for (let i = 0; i < n; i++) {
      const size = this.#size();
      const at = this.#buffers + i * this.#stride;
      const number = numbers[flow];
      numbers[flow] = (number + 1) | 0;
      this.#writeHeaders(flow, at, size);
      this.#writeHead(at + this.#headers, this.#firstWord + flow, number, timeHi, timeLo, this.#tails[size]);
      addFrame(burst, this.#views, at, size);
      if (++flow === this.#flows) flow = 0;
    }
    this.#nextFlow = flow;
  }

  /** The next frame's bytes. */
  #size(): number {
    const sizes = this.#sizes;
    if (!this.#random) {
      const size = sizes[this.#nextSize++];
      if (this.#nextSize === sizes.length) this.#nextSize = 0;
      return size;
    }
    // xorshift, 32 bits
    let state = this.#state;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#state = state;
    return sizes[0] + ((state >>> 1) % sizes[1]);
  }

  #writeHeaders(flow: number, at: number, size: number): void {
    const dv = this.#dv;
    const from = this.#templates + flow * TEMPLATE_BYTES;
    const headers = this.#headers;
    for (let k = 0; k < headers; k += 4) dv.setInt32(at + k, dv.getInt32(from + k, true), true);
    const ip = at + this.#ipOff;
    const ipLen = size - this.#ipOff;
    dv.setUint16(ip + IPHDR.off.tot_len, ipLen);
    const sum = this.#ipSums[flow] + ipLen;
    dv.setUint16(ip + IPHDR.off.check, ~((sum & 0xffff) + (sum >>> 16)));
    dv.setUint16(ip + IPHDR.size + UDPHDR.off.len, ipLen - IPHDR.size);
  }

  #writeHead(at: number, flowWord: number, number: number, timeHi: number, timeLo: number, tail: number): void {
    const dv = this.#dv;
    dv.setUint16(at, MAGIC);
    dv.setUint16(at + OFF_CHECK, checkOf(tail, number, flowWord, timeHi, timeLo));
    dv.setInt32(at + OFF_NUMBER, number);
    dv.setInt32(at + OFF_FLOW, flowWord);
    dv.setUint16(at + OFF_TIME_HI, timeHi);
    dv.setInt32(at + OFF_TIME_LO, timeLo);
  }

  /** The last `n` packets of the burst at hand were not sent: their numbers are given to those made next. */
  takeBack(n: number): void {
    for (let i = 0; i < n; i++) {
      this.#nextFlow = this.#nextFlow === 0 ? this.#flows - 1 : this.#nextFlow - 1;
      this.numbers[this.#nextFlow]--;
    }
  }
}

function writeMac(dv: DataView, at: number, address: number): void {
  dv.setUint16(at, Math.floor(address / 2 ** 32));
  dv.setUint32(at + 2, address % 2 ** 32);
}
