/**
 * A guest's network device as the lcore sees it: one TX and one RX virtqueue behind the Port contract.
 */
import type { AddressMap } from '../mem/address-map.ts';
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import type { Caller } from '../sys/eventfd.ts';
import { NO_FD } from '../vhost/vhost-device.ts';
import type { Burst } from '../virtio-net/burst.ts';
import { completeBurst, dequeueBurst } from '../virtio-net/dequeue.ts';
import { DROP_FAULT, DROP_NO_BUFFER, DROP_TOO_BIG, type Enqueuer } from '../virtio-net/enqueue.ts';
import type { RingStage } from '../virtio-net/ring-stage.ts';
import { FAULT_NONE, FAULTS } from '../virtqueue/fault.ts';
import { SplitRing, type VringConfig } from '../virtqueue/split-ring.ts';
import type { Port } from './port.ts';

/** A net device's vrings, by number (VIRTIO 1.2 §5.1.2). */
const RX_VRING = 0;
const TX_VRING = 1;

const FAULT_SLOTS = FAULTS.map(({ name }) => PORT_SLOTS[`ring_fault_${name}` as keyof typeof PORT_SLOTS]);

/** What the ports of one lcore share. */
export interface PortTools {
  /** its burst is what `receive` fills and `transmit` sends */
  readonly ringStage: RingStage;
  readonly enqueuer: Enqueuer;
  /** by window id */
  readonly windows: readonly WindowViews[];
  readonly caller: Caller;
  /** Told once when a ring has been stopped for `fault`. */
  onFault(port: number, vring: number, fault: number): void;
}

/** A vring that has been started. */
class StartedVring {
  readonly ring: SplitRing;
  readonly errFd: number;
  enabled: boolean;

  constructor(config: VringConfig, map: AddressMap, { windows, caller }: PortTools) {
    this.ring = new SplitRing(config.ring, map, windows, caller);
    this.errFd = config.errFd;
    this.enabled = config.enabled;
  }
}

export class VhostPort implements Port {
  readonly id: number;
  readonly counters: Float64Array;
  readonly #tools: PortTools;
  #map: AddressMap | undefined;
  readonly #vrings: (StartedVring | undefined)[] = [undefined, undefined];
  /** the rings that may be used now: started, and not at fault */
  #rx: StartedVring | undefined;
  #tx: StartedVring | undefined;

  constructor(id: number, counters: Float64Array, tools: PortTools) {
    this.id = id;
    this.counters = counters;
    this.#tools = tools;
  }

  get canTransmit(): boolean {
    return this.#rx?.enabled === true;
  }

  /** The ring that a sleeping lcore waits for, while it is in use. */
  get txRing(): SplitRing | undefined {
    return this.#tx?.ring;
  }

  /** New guest memory. Started rings go on in it; their own places have not moved. */
  setMemory(map: AddressMap): void {
    this.#map = map;
    for (const vring of this.#vrings) if (vring !== undefined) vring.ring.map = map;
  }

  /** Starts a stopped vring. `setMemory` has come before. */
  startVring(vring: number, config: VringConfig): void {
    this.#vrings[vring] = new StartedVring(config, this.#map as AddressMap, this.#tools);
    this.#choose();
  }

  /** Stops a vring. @returns the index of the next available entry, or undefined if it was not started. */
  stopVring(vring: number): number | undefined {
    const base = this.#vrings[vring]?.ring.nextAvail;
    this.#vrings[vring] = undefined;
    this.#choose();
    return base;
  }

  enableVring(vring: number, enabled: boolean): void {
    const started = this.#vrings[vring];
    if (started !== undefined) started.enabled = enabled;
  }

  /** Replaces a started vring's call eventfd. */
  setCall(vring: number, fd: number): void {
    const ring = this.#vrings[vring]?.ring;
    if (ring !== undefined) ring.callFd = fd;
  }

  #choose(): void {
    const usable = (vring: StartedVring | undefined) => (vring?.ring.fault === FAULT_NONE ? vring : undefined);
    this.#rx = usable(this.#vrings[RX_VRING]);
    this.#tx = usable(this.#vrings[TX_VRING]);
  }

  receive(): number {
    const { burst } = this.#tools.ringStage;
    const tx = this.#tx;
    if (tx === undefined) {
      burst.count = 0;
      return 0;
    }
    const n = dequeueBurst(tx.ring, this.#tools.ringStage);
    if (n > 0) {
      this.#count(burst, n);
      if (!tx.enabled) this.#throwAway(burst, n);
    }
    if (tx.ring.fault !== FAULT_NONE) this.#stopFaulty(TX_VRING, tx);
    return burst.count;
  }

  #count(burst: Burst, n: number): void {
    let bytes = 0;
    for (let i = 0; i < n; i++) bytes += burst.len[i];
    this.counters[PORT_SLOTS.tx_packets] += n;
    this.counters[PORT_SLOTS.tx_bytes] += bytes;
  }

  /** What a disabled ring sends is taken and goes nowhere (vhost-user specification, "Ring states"). */
  #throwAway(burst: Burst, n: number): void {
    this.counters[PORT_SLOTS.tx_drop_disabled] += n;
    this.complete();
    burst.count = 0;
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const { counters } = this;
    const rx = this.#rx;
    if (rx === undefined || !rx.enabled) {
      counters[PORT_SLOTS.rx_drop_not_ready] += to - from;
      return 0;
    }
    const { enqueuer } = this.#tools;
    const delivered = enqueuer.enqueue(rx.ring, list, from, to);
    counters[PORT_SLOTS.rx_packets] += delivered;
    counters[PORT_SLOTS.rx_bytes] += enqueuer.bytes;
    if (delivered < to - from) {
      counters[PORT_SLOTS.rx_drop_no_buffer] += enqueuer.drops[DROP_NO_BUFFER];
      counters[PORT_SLOTS.rx_drop_too_big] += enqueuer.drops[DROP_TOO_BIG];
      counters[PORT_SLOTS.rx_drop_fault] += enqueuer.drops[DROP_FAULT];
      if (rx.ring.fault !== FAULT_NONE) this.#stopFaulty(RX_VRING, rx);
    }
    this.#countCalls(rx.ring);
    return delivered;
  }

  complete(): void {
    const ring = this.#vrings[TX_VRING]?.ring;
    if (ring === undefined) return;
    completeBurst(ring, this.#tools.ringStage);
    this.#countCalls(ring);
  }

  #countCalls(ring: SplitRing): void {
    this.counters[PORT_SLOTS.calls] += ring.calls;
    this.counters[PORT_SLOTS.calls_suppressed] += ring.callsSuppressed;
    this.counters[PORT_SLOTS.calls_failed] += ring.callsFailed;
    ring.calls = 0;
    ring.callsSuppressed = 0;
    ring.callsFailed = 0;
  }

  #stopFaulty(vring: number, { ring, errFd }: StartedVring): void {
    this.counters[FAULT_SLOTS[ring.fault]]++;
    this.#choose();
    if (errFd !== NO_FD) this.#tools.caller.call(errFd);
    this.#tools.onFault(this.id, vring, ring.fault);
  }
}
