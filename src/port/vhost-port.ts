/**
 * A guest's network device as the lcore sees it: one TX and one RX virtqueue behind the Port contract.
 */
import type { AddressMap } from '../mem/address-map.ts';
import { type CopyStage, PEEK_WORDS } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import type { Caller } from '../sys/eventfd.ts';
import type { Burst } from '../virtqueue/burst.ts';
import { completeBurst, dequeueBurst } from '../virtqueue/dequeue.ts';
import { DROP_FAULT, DROP_NO_BUFFER, DROP_TOO_BIG, type Enqueuer } from '../virtqueue/enqueue.ts';
import { FAULT_NONE, FAULTS } from '../virtqueue/fault.ts';
import { SplitRing, type VringConfig } from '../virtqueue/split-ring.ts';
import { NO_FD } from '../virtqueue/vhost-device.ts';
import type { Port } from './port.ts';

/** The front of a frame that classification looks at; a frame whose first segment is shorter has it gathered. */
const HEAD_BYTES = 16;
const NO_WINDOW = -1;
/** A net device's vrings, by number (VIRTIO 1.2 §5.1.2). */
const RX_VRING = 0;
const TX_VRING = 1;

const FAULT_SLOTS = FAULTS.map(({ name }) => PORT_SLOTS[`ring_fault_${name}` as keyof typeof PORT_SLOTS]);

/** What the ports of one lcore share. */
export interface PortTools {
  readonly stage: CopyStage;
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

  receive(burst: Burst): number {
    const tx = this.#tx;
    if (tx === undefined) {
      burst.count = 0;
      return 0;
    }
    const n = dequeueBurst(tx.ring, burst);
    if (n > 0) {
      this.#count(burst, n);
      if (tx.enabled) this.#peek(burst, n);
      else this.#throwAway(burst, n);
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
    this.complete(burst);
    burst.count = 0;
  }

  /** Takes the front of every packet to scratch, a run of one window at a time. */
  #peek(burst: Burst, n: number): void {
    const { stage, windows } = this.#tools;
    const { segments, first } = burst;
    let runFrom = 0;
    let runWindow = NO_WINDOW;
    let short = false;
    for (let i = 0; i < n; i++) {
      const s = first[i];
      if (s === first[i + 1]) {
        stage.peekList[i] = 0;
        short = true;
        continue;
      }
      if (segments.len[s] < HEAD_BYTES) short = true;
      const window = segments.window[s];
      if (window !== runWindow) {
        if (runWindow !== NO_WINDOW) stage.peek(windows[runWindow], runFrom, i);
        runFrom = i;
        runWindow = window;
      }
      stage.peekList[i] = segments.off[s];
    }
    if (runWindow !== NO_WINDOW) stage.peek(windows[runWindow], runFrom, n);
    if (short) for (let i = 0; i < n; i++) this.#gatherHead(burst, i);
  }

  /** The front of a packet whose first segment does not hold it all; missing bytes are zero. */
  #gatherHead(burst: Burst, packet: number): void {
    const { stage, windows } = this.#tools;
    const { segments, first } = burst;
    let s = first[packet];
    if (s < first[packet + 1] && segments.len[s] >= HEAD_BYTES) return;
    let at = 0;
    for (; s < first[packet + 1] && at < HEAD_BYTES; s++) {
      const { u8 } = windows[segments.window[s]];
      for (let i = 0; i < segments.len[s] && at < HEAD_BYTES; i++)
        stage.setHeadByte(packet, at++, u8[segments.off[s] + i]);
    }
    while (at < PEEK_WORDS * 4) stage.setHeadByte(packet, at++, 0);
  }

  transmit(burst: Burst, list: Int32Array, from: number, to: number): number {
    const { counters } = this;
    const rx = this.#rx;
    if (rx === undefined || !rx.enabled) {
      counters[PORT_SLOTS.rx_drop_not_ready] += to - from;
      return 0;
    }
    const { enqueuer } = this.#tools;
    const delivered = enqueuer.enqueue(rx.ring, burst, list, from, to);
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

  complete(burst: Burst): void {
    const ring = this.#vrings[TX_VRING]?.ring;
    if (ring === undefined) return;
    completeBurst(ring, burst);
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
