/**
 * A guest's lane on the thread that polls it: what comes by it, and what of the guest's own frames is on its way. It is no port of
 * the switch: frames that come by it are the guest's already.
 */
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import type { Burst } from '../virtio-net/burst.ts';
import type { NetVring } from '../virtio-net/net-vring.ts';
import type { DevicePort } from './device-port.ts';
import { LaneReceive } from './lane-receive.ts';
import { LANE_LINK, LANE_OPEN, type LaneSpec } from './lane-spec.ts';
import { LaneTransmit } from './lane-transmit.ts';

/** The port of a guest, as its lane sees it. */
export interface LaneGuest {
  readonly id: number;
  readonly counters: Float64Array;
  /** LANE_WORDS */
  readonly shared: Int32Array;
  /** the vrings of its first pair, while they may be used */
  readonly rxVring: NetVring | undefined;
  readonly txVring: NetVring | undefined;
  lane: Lane | undefined;
  /** A vring has been used by the lane. */
  settle(vring: number): void;
}

export class Lane implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues = 1;
  readonly canTransmit = false;
  readonly eventFds: readonly number[];
  readonly spec: LaneSpec;
  /** LANE_SLOTS */
  readonly laneCounters: Float64Array;
  readonly #port: LaneGuest;
  readonly #burst: Burst;
  readonly #shared: Int32Array;
  readonly #receive: LaneReceive;
  readonly #transmit: LaneTransmit;
  /** the uplink's counters, for what comes by the lane without ever being seen there */
  readonly #outside: Float64Array;
  /** no more of the guest's frames are taken */
  #closing = false;

  /** @param counters LANE_SLOTS @param outside the uplink's (PORT_SLOTS) */
  constructor(
    spec: LaneSpec,
    port: LaneGuest,
    burst: Burst,
    windows: readonly WindowViews[],
    counters: Float64Array,
    outside: Float64Array,
  ) {
    this.id = port.id;
    this.counters = port.counters;
    this.spec = spec;
    this.laneCounters = counters;
    this.eventFds = [spec.fd];
    this.#port = port;
    this.#burst = burst;
    this.#shared = port.shared;
    this.#outside = outside;
    this.#receive = new LaneReceive(spec, windows, port.shared, counters);
    this.#transmit = new LaneTransmit(spec, windows, counters);
    const { rxVring, txVring } = port;
    if (rxVring !== undefined) this.#receive.begin(rxVring);
    if (txVring !== undefined) this.#transmit.begin(txVring);
    Atomics.store(this.#shared, LANE_OPEN, 1);
    port.lane = this;
    if (rxVring !== undefined) this.#receive.post(rxVring);
  }

  /** What comes goes straight to the guest: the burst stays empty. @returns frames */
  receive(): number {
    const net = this.#port.rxVring;
    this.#burst.clear();
    if (net === undefined) return 0;
    const n = this.#receive.deliver(net, this.#burst);
    if (!this.#closing) this.#receive.post(net);
    this.#port.settle(0);
    if (n === 0) return 0;
    const { bytes } = this.#receive;
    this.counters[PORT_SLOTS.rx_packets] += n;
    this.counters[PORT_SLOTS.rx_bytes] += bytes;
    this.#outside[PORT_SLOTS.tx_packets] += n;
    this.#outside[PORT_SLOTS.tx_bytes] += bytes;
    this.#outside[PORT_SLOTS.tx_forwarded] += n;
    return n;
  }

  complete(): void {}

  transmit(): number {
    return 0;
  }

  /** Frames of the guest that may be taken now. */
  get room(): number {
    return this.#closing ? 0 : this.#transmit.free;
  }

  /** A burst of the guest's has been taken. */
  open(): void {
    this.#transmit.open();
  }

  /** Frames of the guest may leave by the lane. */
  get canSend(): boolean {
    return !this.#closing && Atomics.load(this.#shared, LANE_LINK) === 1;
  }

  /** As LaneTransmit.send. */
  send(list: Int32Array, from: number, to: number, counters: Float64Array): number {
    return this.#transmit.send(this.#burst, list, from, to, counters);
  }

  /** Stage 4 of the guest's burst. */
  completeBurst(net: NetVring): void {
    this.#transmit.close(this.#burst, net);
  }

  drain(): void {
    const net = this.#port.txVring;
    this.#transmit.kick();
    if (net === undefined) return;
    this.#transmit.reap(net);
    this.#port.settle(1);
  }

  prepareSleep(): boolean {
    this.drain();
    const net = this.#port.rxVring;
    return net === undefined || this.#receive.prepareSleep(net);
  }

  /** Nothing tells when the kernel has sent a frame. */
  get impatient(): boolean {
    return this.#transmit.busy;
  }

  tick(): void {
    this.#receive.tick();
  }

  /** No more frames come, and none of the guest's are taken. @returns buffers that it has yet to get back */
  settle(): number {
    this.#closing = true;
    this.drain();
    return this.#transmit.outstanding;
  }

  /** The guest gets back what is left; from now on it is served by copying. */
  close(): void {
    const { rxVring, txVring } = this.#port;
    if (rxVring !== undefined) {
      while (this.#receive.ready > 0) this.receive();
      this.#receive.abandon(rxVring);
    }
    if (txVring !== undefined) {
      this.#transmit.reap(txVring);
      this.#transmit.abandon(txVring);
    }
    this.tick();
    Atomics.store(this.#shared, LANE_OPEN, 0);
    this.#port.lane = undefined;
    this.#port.settle(0);
    this.#port.settle(1);
  }
}
