/**
 * A port as the engine has it: the opened device, and what all threads have counted on it.
 */
import type { Vdev } from '../port/vdev.ts';
import { addBlock, PORT_SLOTS, type PortCounter } from '../stats/counters.ts';
import type { PortInfo, PortStats } from './engine.ts';
import type { TestPort } from './port-kinds.ts';

const DEFAULT_DESCRIPTORS = 256;
const SLOTS = Object.keys(PORT_SLOTS).length;
/** What could not be sent at all. */
const TX_ERRORS: readonly PortCounter[] = [
  ...(['rx_drop_too_big', 'rx_drop_bad_offload', 'rx_drop_mtu', 'rx_drop_refused'] as const),
];
/** What found no room: it is offered again, or the stream counts it. */
const TX_FULL: readonly PortCounter[] = ['rx_drop_no_buffer', 'rx_drop_not_ready', 'rx_drop_fault'];

const macText = (mac: Uint8Array) => [...mac].map((byte) => byte.toString(16).padStart(2, '0')).join(':');

export class EnginePort {
  readonly id: number;
  readonly kind: Vdev['kind'];
  readonly device: TestPort;
  /** its own address; zeros if it has none */
  readonly mac: Uint8Array;
  started = true;
  /** PORT_SLOTS of the threads that have the port, of those that had it, and at the last clear */
  #blocks: SharedArrayBuffer[] = [];
  readonly #before = new Float64Array(SLOTS);
  #cleared: Float64Array = new Float64Array(SLOTS);

  constructor(id: number, kind: Vdev['kind'], device: TestPort) {
    this.id = id;
    this.kind = kind;
    this.device = device;
    this.mac = device.mac ?? new Uint8Array(6);
  }

  get queues(): number {
    return this.device.queues ?? 1;
  }

  /** Counters of a thread that will have the port. */
  addCounters(block: SharedArrayBuffer): void {
    this.#blocks.push(block);
  }

  /** No thread has the port any more. */
  keepCounters(): void {
    for (const block of this.#blocks) addBlock(this.#before, block);
    this.#blocks = [];
  }

  #total(): Float64Array {
    const total = this.#before.slice();
    for (const block of this.#blocks) addBlock(total, block);
    return total;
  }

  /** A counter of the port, which counts as a switch sees it: what comes in is what the other side transmits. */
  #count(): (name: PortCounter) => number {
    const total = this.#total();
    return (name) => total[PORT_SLOTS[name]] - this.#cleared[PORT_SLOTS[name]];
  }

  clearStats(): void {
    this.#cleared = this.#total();
  }

  stats(): PortStats {
    const count = this.#count();
    return {
      rxPackets: count('tx_packets'),
      rxBytes: count('tx_bytes'),
      rxMissed: count('tx_missed'),
      rxErrors: 0,
      rxNoMbuf: 0,
      txPackets: count('rx_packets'),
      txBytes: count('rx_bytes'),
      txErrors: TX_ERRORS.reduce((sum, name) => sum + count(name), 0),
    };
  }

  xstats(): ReadonlyMap<string, number> {
    const count = this.#count();
    const { rxPackets, rxBytes, rxMissed, rxErrors, rxNoMbuf, txPackets, txBytes, txErrors } = this.stats();
    return new Map([
      ['rx_good_packets', rxPackets],
      ['tx_good_packets', txPackets],
      ['rx_good_bytes', rxBytes],
      ['tx_good_bytes', txBytes],
      ['rx_missed_errors', rxMissed],
      ['rx_errors', rxErrors],
      ['tx_errors', txErrors],
      ['rx_mbuf_allocation_errors', rxNoMbuf],
      ['tx_full', TX_FULL.reduce((sum, name) => sum + count(name), 0)],
      ['tx_too_long', count('rx_drop_too_big')],
    ]);
  }

  /** @param queues used of it */
  info(queues: number): PortInfo {
    const { name, link, mtu, maxMtu, queueSize } = this.device;
    return {
      port: this.id,
      name,
      mac: macText(this.mac),
      up: link.up,
      reason: link.gone ?? link.reason ?? '',
      started: this.started,
      promiscuous: this.device.promiscuous ?? true,
      mtu,
      ...(maxMtu === undefined ? {} : { maxMtu }),
      maxQueues: this.queues,
      speed: link.speed,
      rxQueues: queues,
      txQueues: queues,
      descriptors: queueSize ?? DEFAULT_DESCRIPTORS,
    };
  }
}
