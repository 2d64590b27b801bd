/**
 * Frames of the switch for a guest that has a lane: they are copied into receive buffers behind those that the kernel has. Broadcasts above
 * all; so one after the other will do.
 */
import { CopyStage } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import { BURST_SIZE, type Burst } from '../virtio-net/burst.ts';
import type { NetVring } from '../virtio-net/net-vring.ts';
import { tallyPacket } from '../virtio-net/tally.ts';
import { CHAIN_FULL } from '../virtqueue/chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_NONE } from '../virtqueue/fault.ts';
import { SegmentList } from '../virtqueue/segments.ts';
import { UsedPosition } from '../virtqueue/used-position.ts';
import { LANE_USED } from './lane-spec.ts';

export class LaneCopy {
  readonly #windows: readonly WindowViews[];
  readonly #shared: Int32Array;
  readonly #copyStage = new CopyStage();
  readonly #used = new UsedPosition();
  readonly #chain = new SegmentList();
  readonly #header = new Uint8Array(VIRTIO_NET_HDR_MRG_RXBUF.size);
  readonly #id = new Int32Array(BURST_SIZE);
  readonly #slots = new Int32Array(BURST_SIZE);
  readonly #len = new Int32Array(BURST_SIZE);

  /** @param windows this thread's, by id @param shared LANE_WORDS */
  constructor(windows: readonly WindowViews[], shared: Int32Array) {
    this.#windows = windows;
    this.#shared = shared;
    this.#header[VIRTIO_NET_HDR_MRG_RXBUF.off.num_buffers] = 1;
  }

  /** Delivers packets list[from] … list[to − 1] of the burst. @param counters the port's @returns how many were delivered */
  deliver(net: NetVring, burst: Burst, list: Int32Array, from: number, to: number, counters: Float64Array): number {
    const { ring } = net;
    ring.enter();
    let delivered = 0;
    let next = from;
    this.#used.load(this.#shared, LANE_USED);
    if (ring.fault === FAULT_NONE) {
      ring.refresh();
      for (; next < to; next++) {
        const packet = list[next];
        const drop = this.#take(net, burst, packet, delivered);
        if (drop >= 0) {
          counters[drop]++;
          if (ring.fault === FAULT_NONE) continue;
          next++;
          break;
        }
        burst.delivered[packet]++;
        tallyPacket(burst, packet);
        delivered++;
      }
      if (delivered > 0) this.#publish(net, delivered);
    }
    this.#used.save(this.#shared, LANE_USED);
    ring.leave();
    counters[PORT_SLOTS.rx_drop_fault] += to - next;
    net.count(burst.tally);
    counters[PORT_SLOTS.rx_packets] += net.packets;
    counters[PORT_SLOTS.rx_bytes] += net.bytes;
    return delivered;
  }

  /** Takes a buffer and fills it. @returns −1, or the slot of the counter that says why not */
  #take({ ring, headerLen }: NetVring, burst: Burst, packet: number, n: number): number {
    const chain = this.#chain;
    const need = headerLen + burst.len[packet];
    if (burst.needs[packet] !== 0) return PORT_SLOTS.rx_drop_bad_offload;
    chain.count = 0;
    const bytes = ring.chainAt(0, VRING_DESC_F_WRITE, chain);
    if (bytes === CHAIN_FULL) ring.fault = FAULT_CHAIN_LOOP;
    if (bytes < 0) return ring.fault === FAULT_NONE ? PORT_SLOTS.rx_drop_no_buffer : PORT_SLOTS.rx_drop_fault;
    if (bytes < need) return PORT_SLOTS.rx_drop_too_big;
    this.#id[n] = ring.chainId;
    this.#slots[n] = ring.chainSlots;
    this.#len[n] = need;
    this.#used.take(ring, ring.chainSlots);
    this.#scatter(burst, packet, headerLen);
    return -1;
  }

  /** Writes the header and the packet's pieces over those of the chain, which has room for them. */
  #scatter({ segments, first }: Burst, packet: number, headerLen: number): void {
    const chain = this.#chain;
    const { list } = this.#copyStage;
    let piece = 0;
    let at = 0;
    for (let i = 0; i < headerLen; i++) {
      while (at === chain.len[piece]) {
        piece++;
        at = 0;
      }
      this.#windows[chain.window[piece]].u8[chain.off[piece] + at++] = this.#header[i];
    }
    for (let s = first[packet]; s < first[packet + 1]; s++) {
      for (let done = 0; done < segments.len[s]; ) {
        while (at === chain.len[piece]) {
          piece++;
          at = 0;
        }
        const part = Math.min(segments.len[s] - done, chain.len[piece] - at);
        list[0] = segments.off[s] + done;
        list[1] = chain.off[piece] + at;
        list[2] = part;
        this.#copyStage.flush(this.#windows[segments.window[s]], this.#windows[chain.window[piece]], 1);
        done += part;
        at += part;
      }
    }
  }

  #publish({ ring }: NetVring, n: number): void {
    let slots = 0;
    this.#used.turn(ring);
    for (let i = 0; i < n; i++) {
      ring.putUsed(slots, this.#id[i], this.#len[i]);
      slots += this.#slots[i];
    }
    ring.publish(slots, true);
    ring.notify();
    this.#used.turnBack(ring, slots);
  }
}
