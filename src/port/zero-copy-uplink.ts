/**
 * The uplink of a switch with zero copy: frames of guests that have lanes leave by those, all others as ever.
 */
import { LANE_SLOTS } from '../stats/counters.ts';
import { BURST_SIZE, type Burst } from '../virtio-net/burst.ts';
import type { DevicePort } from './device-port.ts';
import type { Lane } from './lane.ts';

/** The lanes of one thread, by the windows that their guests' memory lies in: each window is one guest's. */
export class Lanes {
  readonly #byWindow: (Lane | undefined)[] = [];

  /** The lane of the guest whose memory lies in a window. */
  of(window: number): Lane | undefined {
    return window < this.#byWindow.length ? this.#byWindow[window] : undefined;
  }

  add(lane: Lane): void {
    for (const { window } of lane.spec.pieces) {
      while (this.#byWindow.length <= window) this.#byWindow.push(undefined);
      if (window !== lane.spec.window.id) this.#byWindow[window] = lane;
    }
  }

  remove(lane: Lane): void {
    for (const [window, one] of this.#byWindow.entries()) if (one === lane) this.#byWindow[window] = undefined;
  }
}

export class ZeroCopyUplink implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues: number;
  readonly eventFds: readonly number[];
  readonly #port: DevicePort;
  readonly #lanes: Lanes;
  readonly #burst: Burst;
  /** packets of each way */
  readonly #plain = new Int32Array(BURST_SIZE);
  readonly #other = new Int32Array(BURST_SIZE);

  /** @param port the uplink as it is without zero copy, whose owner this becomes */
  constructor(port: DevicePort, lanes: Lanes, burst: Burst) {
    this.id = port.id;
    this.counters = port.counters;
    this.queues = port.queues;
    this.eventFds = port.eventFds;
    this.#port = port;
    this.#lanes = lanes;
    this.#burst = burst;
  }

  get canTransmit(): boolean {
    return this.#port.canTransmit;
  }

  receive(queue: number): number {
    return this.#port.receive(queue);
  }

  complete(queue: number): void {
    this.#port.complete(queue);
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const { first, segments, offloads } = this.#burst;
    // of one burst all bytes are one guest's, but the fronts that the switch has made
    const lane = this.#lanes.of(segments.window[first[list[from] + 1] - 1]);
    if (lane === undefined || !lane.canSend) return this.#port.transmit(list, from, to);
    return offloads ? this.#split(lane, list, from, to) : lane.send(list, from, to, this.counters);
  }

  /** What asks something of its receiver is made into frames by the port. */
  #split(lane: Lane, list: Int32Array, from: number, to: number): number {
    const { needs } = this.#burst;
    let plain = 0;
    let other = 0;
    for (let k = from; k < to; k++) {
      if (needs[list[k]] === 0) this.#plain[plain++] = list[k];
      else this.#other[other++] = list[k];
    }
    const sent = plain > 0 ? lane.send(this.#plain, 0, plain, this.counters) : 0;
    const copied = other > 0 ? this.#port.transmit(this.#other, 0, other) : 0;
    lane.laneCounters[LANE_SLOTS.tx_copied] += copied;
    return sent + copied;
  }

  prepareSleep(): boolean {
    return this.#port.prepareSleep();
  }

  drain(): void {
    this.#port.drain();
  }

  tick(): void {
    this.#port.tick?.();
  }

  close(): void {
    this.#port.close();
  }
}
