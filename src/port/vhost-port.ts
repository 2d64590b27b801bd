/**
 * A guest's network device as the lcore sees it: its virtqueues behind the Port contract. Vring 2n receives and vring 2n + 1
 * transmits for queue pair n (VIRTIO 1.2 §5.1.2), from the guest's side.
 */
import { AddressMap } from '../mem/address-map.ts';
import { DirtyLog } from '../mem/dirty-log.ts';
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS, VRING_SLOTS } from '../stats/counters.ts';
import type { Caller } from '../sys/eventfd.ts';
import type { DeviceMemory, PackedMemory, VringConfig } from '../vhost/datapath.ts';
import { NO_FD } from '../vhost/vhost-device.ts';
import { BURST_SIZE } from '../virtio-net/burst.ts';
import { completeBurst, dequeueBurst } from '../virtio-net/dequeue.ts';
import {
  DROP_BAD_OFFLOAD,
  DROP_FAULT,
  DROP_MISS,
  DROP_NO_BUFFER,
  DROP_TOO_BIG,
  type Enqueuer,
} from '../virtio-net/enqueue.ts';
import { NetVring } from '../virtio-net/net-vring.ts';
import type { RingStage } from '../virtio-net/ring-stage.ts';
import { FAULT_NONE, FAULTS } from '../virtqueue/fault.ts';
import { PackedRing } from '../virtqueue/packed-ring.ts';
import { SplitRing } from '../virtqueue/split-ring.ts';
import type { Vring } from '../virtqueue/vring.ts';
import { flowHash } from './flow-hash.ts';
import type { Port } from './port.ts';
import type { RxRetry } from './rx-retry.ts';
import { Looked, TranslationAhead } from './translation-ahead.ts';

const FAULT_SLOTS = FAULTS.map(({ name }) => PORT_SLOTS[`ring_fault_${name}` as keyof typeof PORT_SLOTS]);

/** What the ports of one lcore share. */
export interface PortTools {
  /** its burst is what `receive` fills and `transmit` sends */
  readonly ringStage: RingStage;
  readonly enqueuer: Enqueuer;
  /** by window id */
  readonly windows: readonly WindowViews[];
  readonly caller: Caller;
  /** what is left of the patience with full receive rings */
  readonly retry: RxRetry;
  /** Told once when a ring has been stopped for `fault`. */
  onFault(port: number, vring: number, fault: number): void;
  /** Told of the translation of an I/O virtual address that a ring lacks. */
  onMiss(port: number, vring: number, iova: number, write: boolean): void;
}

/** A vring that has been started. */
interface StartedVring {
  readonly index: number;
  readonly net: NetVring;
  readonly errFd: number;
  enabled: boolean;
  readonly looked: Looked;
  /** RX: it was waited for in vain, and is not again until it has a buffer */
  givenUp: boolean;
}

/** The port of a vhost-user device. Its memory and vrings are set by who makes it. */
export class VhostPort implements Port {
  readonly id: number;
  readonly counters: Float64Array;
  readonly #tools: PortTools;
  #map: AddressMap | undefined;
  #log: DirtyLog | undefined;
  /** while addresses are translated */
  #ahead: TranslationAhead | undefined;
  /** by number */
  readonly #vrings: (StartedVring | undefined)[] = [];
  /** those that frames to the guest may be put into now: started, enabled, not at fault */
  #rx: readonly StartedVring[] = [];
  /** those that may be polled now, by pair: started, not at fault */
  #tx: readonly (StartedVring | undefined)[] = [];
  /** the packets of a burst by queue, where there are several */
  readonly #queueOf = new Int32Array(BURST_SIZE);
  readonly #list = new Int32Array(BURST_SIZE);

  constructor(id: number, counters: Float64Array, tools: PortTools) {
    this.id = id;
    this.counters = counters;
    this.#tools = tools;
  }

  get canTransmit(): boolean {
    return this.#rx.length > 0;
  }

  /** The pairs whose transmit queues may be polled now. */
  get txQueues(): number[] {
    return [...this.#tx.keys()].filter((pair) => this.#tx[pair] !== undefined);
  }

  /** The ring of a transmit queue that a sleeping lcore waits for, while it is in use; not one that waits for a translation itself. */
  txRing(queue: number): Vring | undefined {
    const net = this.#tx[queue]?.net;
    return net?.waiting === true ? undefined : net?.ring;
  }

  /** New guest memory. Started rings go on in it; their own places have not moved. */
  setMemory({ chunks, iotlb, log }: DeviceMemory | PackedMemory): void {
    this.#map = new AddressMap(chunks, iotlb);
    this.#log = log && new DirtyLog(log, this.#tools.windows);
    if (iotlb) this.#ahead ??= new TranslationAhead((vring, ...miss) => this.#tools.onMiss(this.id, vring, ...miss));
    else this.#ahead = undefined;
    this.#ahead?.setMap(this.#map);
    for (const vring of this.#vrings) {
      if (vring === undefined) continue;
      vring.net.ring.map = this.#map;
      vring.net.waiting = false;
      this.#setLog(vring.net.ring);
    }
    this.#lookAnew();
  }

  /** Time has passed: asks once more for the translations that have not come. */
  askAgain(): void {
    if (this.#ahead === undefined) return;
    this.#ahead.forget();
    for (const vring of this.#tx) if (vring !== undefined) vring.net.waiting = false;
    this.#lookAnew();
  }

  /** Asks for the translations that receive buffers lack, also of those that have been looked at. */
  #lookAnew(): void {
    if (this.#ahead === undefined) return;
    for (const vring of this.#vrings) if (vring !== undefined) vring.looked.slots = 0;
    this.lookAhead();
  }

  /** Asks for the translations that receive buffers lack which have been posted meanwhile. */
  lookAhead(): void {
    if (this.#ahead === undefined) return;
    for (const rx of this.#rx) {
      rx.net.ring.enter();
      this.#ahead.look(rx.index, rx.net, rx.looked, true);
      rx.net.ring.leave();
    }
  }

  /** The kick wish written before counts as well: the ring writes it again. */
  #setLog(ring: Vring): void {
    ring.log = this.#log;
    if (this.#log !== undefined) ring.suppressKicks();
  }

  /**
   * Starts a stopped vring, which counts into `counters` (VRING_SLOTS). `setMemory` has come before. @param state what lcores share
   * of a ring that several of them use
   */
  startVring(
    index: number,
    { ring: config, features, enabled, errFd }: VringConfig,
    counters: Float64Array,
    state?: SharedArrayBuffer,
  ): void {
    const { windows, caller } = this.#tools;
    const Ring = config.format === 'packed' ? PackedRing : SplitRing;
    const ring = new Ring(config, this.#map as AddressMap, windows, caller, state);
    this.#setLog(ring);
    const net = new NetVring(ring, features, counters);
    const started = { index, net, errFd, enabled, looked: new Looked(), givenUp: false };
    const fault = ring.start();
    this.#set(index, started);
    if (fault !== FAULT_NONE) this.#stopFaulty(started);
    this.#ahead?.forget();
    this.#lookAnew();
  }

  /** Stops a vring. @returns where it stands, or undefined if it was not started. */
  stopVring(index: number): number | undefined {
    const ring = this.#vrings[index]?.net.ring;
    this.#set(index, undefined);
    if (ring === undefined) return undefined;
    ring.enter();
    const { base } = ring;
    ring.leave();
    return base;
  }

  /** Vrings are started in any order: those before it that are not there yet are undefined, and no holes, which filter leaves out. */
  #set(index: number, vring: StartedVring | undefined): void {
    while (this.#vrings.length < index) this.#vrings.push(undefined);
    this.#vrings[index] = vring;
    this.#choose();
  }

  /** Enables or disables a started vring. */
  enableVring(index: number, enabled: boolean): void {
    const started = this.#vrings[index];
    if (started !== undefined) started.enabled = enabled;
    this.#choose();
    this.lookAhead();
  }

  /** Replaces a started vring's call eventfd. */
  setCall(index: number, fd: number): void {
    this.#vrings[index]?.net.ring.setCall(fd);
  }

  #choose(): void {
    // holes as well: this lcore has not started every vring
    const usable = Array.from(this.#vrings, (vring) => (vring?.net.ring.fault === FAULT_NONE ? vring : undefined));
    this.#rx = usable.filter(
      (vring, index) => index % 2 === 0 && vring !== undefined && vring.enabled,
    ) as StartedVring[];
    this.#tx = usable.filter((_, index) => index % 2 === 1);
  }

  /** A vring that has been started and is not at fault. */
  usable(index: number): NetVring | undefined {
    const net = this.#vrings[index]?.net;
    return net?.ring.fault === FAULT_NONE ? net : undefined;
  }

  /** After others than this port have used a vring: counts its notifications, and tells of a fault that they have met. */
  settle(index: number): void {
    const vring = this.#vrings[index];
    if (vring === undefined) return;
    this.#countCalls(vring.net);
    const known = !this.#rx.includes(vring) && !this.#tx.includes(vring);
    if (vring.net.ring.fault !== FAULT_NONE && !known) this.#stopFaulty(vring);
  }

  receive(queue = 0, limit = BURST_SIZE): number {
    const { burst } = this.#tools.ringStage;
    const tx = this.#tx[queue];
    if (tx === undefined || tx.net.waiting) {
      burst.count = 0;
      return 0;
    }
    const { net } = tx;
    const n = dequeueBurst(net, this.#tools.ringStage, limit);
    if (n > 0) {
      this.counters[PORT_SLOTS.tx_packets] += n;
      this.counters[PORT_SLOTS.tx_bytes] += net.bytes;
      if (!tx.enabled) this.#throwAway(queue, n);
    }
    if (net.ring.fault !== FAULT_NONE) this.#stopFaulty(tx);
    if (net.waiting && this.#ahead !== undefined) {
      tx.looked.slots = 0;
      this.#ahead.look(tx.index, net, tx.looked, false);
    }
    return burst.count;
  }

  /** What a disabled ring sends is taken and goes nowhere (vhost-user specification, "Ring states"). */
  #throwAway(queue: number, n: number): void {
    this.counters[PORT_SLOTS.tx_drop_disabled] += n;
    this.complete(queue);
    this.#tools.ringStage.burst.count = 0;
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const rx = this.#rx;
    if (rx.length === 1) return this.#transmitTo(rx[0], list, from, to);
    if (rx.length > 1) return this.#spread(rx, list, from, to);
    this.counters[PORT_SLOTS.rx_drop_not_ready] += to - from;
    return 0;
  }

  /** Sends each packet to its flow's queue, in order. */
  #spread(rx: readonly StartedVring[], list: Int32Array, from: number, to: number): number {
    const { ringStage, windows } = this.#tools;
    const queueOf = this.#queueOf;
    const mine = this.#list;
    const n = to - from;
    for (let i = 0; i < n; i++) queueOf[i] = flowHash(ringStage.burst, list[from + i], windows) % rx.length;
    let delivered = 0;
    for (let i = 0; i < n; i++) {
      const queue = queueOf[i];
      if (queue < 0) continue;
      let count = 0;
      for (let k = i; k < n; k++) {
        if (queueOf[k] !== queue) continue;
        mine[count++] = list[from + k];
        queueOf[k] = -1;
      }
      delivered += this.#transmitTo(rx[queue], mine, 0, count);
    }
    return delivered;
  }

  #transmitTo(rx: StartedVring, list: Int32Array, from: number, to: number): number {
    const { counters } = this;
    const { enqueuer, retry } = this.#tools;
    const { net } = rx;
    if (retry.left > 0) awaitRoom(rx, to - from, retry);
    net.ring.enter();
    if (net.ring.fault !== FAULT_NONE) {
      // another lcore has found that, and told it
      net.ring.leave();
      this.#choose();
      counters[PORT_SLOTS.rx_drop_fault] += to - from;
      return 0;
    }
    const delivered = enqueuer.enqueue(net, list, from, to);
    if (this.#ahead !== undefined) this.#ahead.look(rx.index, net, rx.looked, true);
    net.ring.leave();
    counters[PORT_SLOTS.rx_packets] += net.packets;
    counters[PORT_SLOTS.rx_bytes] += net.bytes;
    if (delivered < to - from) {
      counters[PORT_SLOTS.rx_drop_no_buffer] += enqueuer.drops[DROP_NO_BUFFER];
      counters[PORT_SLOTS.rx_drop_too_big] += enqueuer.drops[DROP_TOO_BIG];
      counters[PORT_SLOTS.rx_drop_fault] += enqueuer.drops[DROP_FAULT];
      counters[PORT_SLOTS.rx_drop_bad_offload] += enqueuer.drops[DROP_BAD_OFFLOAD];
      counters[PORT_SLOTS.rx_drop_iotlb_miss] += enqueuer.drops[DROP_MISS];
      if (net.ring.fault !== FAULT_NONE) this.#stopFaulty(rx);
    }
    this.#countCalls(net);
    return delivered;
  }

  complete(queue = 0): void {
    const vring = this.#vrings[2 * queue + 1];
    if (vring === undefined) return;
    completeBurst(vring.net, this.#tools.ringStage);
    this.#countCalls(vring.net);
  }

  #countCalls({ ring, counters }: NetVring): void {
    this.counters[PORT_SLOTS.calls] += ring.calls;
    this.counters[PORT_SLOTS.calls_suppressed] += ring.callsSuppressed;
    this.counters[PORT_SLOTS.calls_failed] += ring.callsFailed;
    counters[VRING_SLOTS.guest_notifications] += ring.calls;
    counters[VRING_SLOTS.guest_notifications_suppressed] += ring.callsSuppressed;
    counters[VRING_SLOTS.guest_notifications_error] += ring.callsFailed;
    ring.calls = 0;
    ring.callsSuppressed = 0;
    ring.callsFailed = 0;
  }

  #stopFaulty({ index, net, errFd }: StartedVring): void {
    const { fault } = net.ring;
    this.counters[FAULT_SLOTS[fault]]++;
    this.#choose();
    if (errFd !== NO_FD) this.#tools.caller.call(errFd);
    this.#tools.onFault(this.id, index, fault);
  }
}

/** Waits until the ring has `n` buffers, as long as it may; others may use the ring meanwhile. */
function awaitRoom(rx: StartedVring, n: number, retry: RxRetry): void {
  if (hasRoom(rx, n) || (rx.givenUp && !hasRoom(rx, 1))) return;
  do retry.wait();
  while (!hasRoom(rx, n) && retry.left > 0);
  rx.givenUp = !hasRoom(rx, 1);
}

/** True if the ring has `n` buffers; and where it is at fault: then there is nothing to wait for. */
function hasRoom({ net: { ring } }: StartedVring, n: number): boolean {
  ring.enter();
  const has = ring.holds(n) || ring.fault !== FAULT_NONE;
  ring.leave();
  return has;
}
