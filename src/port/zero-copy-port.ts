/**
 * The port of a guest that may have a lane: while it has one, its buffers are used when the kernel is done with them, and by whoever
 * polls its first queue pair. Without one it is a port like any other.
 */
import type { WindowViews } from '../mem/window.ts';
import { LANE_SLOTS } from '../stats/counters.ts';
import { BURST_SIZE } from '../virtio-net/burst.ts';
import type { NetVring } from '../virtio-net/net-vring.ts';
import type { Lane, LaneGuest } from './lane.ts';
import { LaneCopy } from './lane-copy.ts';
import { LANE_OPEN } from './lane-spec.ts';
import { type PortTools, VhostPort } from './vhost-port.ts';

export class ZeroCopyPort extends VhostPort implements LaneGuest {
  /** LANE_WORDS */
  readonly shared: Int32Array;
  /** on the thread that polls it */
  lane: Lane | undefined;
  readonly #tools: PortTools;
  readonly #copy: LaneCopy;
  readonly #laneCounters: Float64Array;

  /** @param shared LANE_WORDS, which all lcores have @param laneCounters LANE_SLOTS, this lcore's */
  constructor(
    id: number,
    counters: Float64Array,
    tools: PortTools,
    shared: SharedArrayBuffer,
    laneCounters: Float64Array,
  ) {
    super(id, counters, tools);
    this.#tools = tools;
    this.shared = new Int32Array(shared);
    this.#copy = new LaneCopy(tools.windows as readonly WindowViews[], this.shared);
    this.#laneCounters = laneCounters;
  }

  get rxVring(): NetVring | undefined {
    return this.usable(0);
  }

  get txVring(): NetVring | undefined {
    return this.usable(1);
  }

  override receive(queue = 0, limit = BURST_SIZE): number {
    const { lane } = this;
    if (queue !== 0 || lane === undefined) return super.receive(queue, limit);
    lane.open();
    const room = Math.min(lane.room, limit);
    if (room > 0) return super.receive(0, room);
    this.#tools.ringStage.burst.count = 0;
    return 0;
  }

  override complete(queue = 0): void {
    const { lane } = this;
    const net = this.txVring;
    if (queue !== 0 || lane === undefined || net === undefined) {
      super.complete(queue);
      return;
    }
    lane.completeBurst(net);
    this.settle(1);
  }

  override transmit(list: Int32Array, from: number, to: number): number {
    const net = this.rxVring;
    if (Atomics.load(this.shared, LANE_OPEN) === 0 || net === undefined) return super.transmit(list, from, to);
    const delivered = this.#copy.deliver(net, this.#tools.ringStage.burst, list, from, to, this.counters);
    this.#laneCounters[LANE_SLOTS.rx_copied] += delivered;
    this.settle(0);
    return delivered;
  }
}
