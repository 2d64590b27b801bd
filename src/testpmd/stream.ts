/**
 * A forwarding stream, on the thread that moves its packets: from one port's receive queue to one port's transmit queue.
 */
import type { DevicePort } from '../port/device-port.ts';
import { BURST_SIZE, type Burst } from '../virtio-net/burst.ts';
import type { VerifierMemory } from './traffic/flow-verifier.ts';
import type { Workshop } from './workshop.ts';

/** Places of a stream's counters. */
export const STREAM_SLOTS = {
  rx_packets: 0,
  tx_packets: 1,
  tx_dropped: 2,
  tx_retries: 3,
  bad_ip_checksum: 4,
  bad_l4_checksum: 5,
  /** where that is recorded: ns of the turns that have moved packets */
  busy_ns: 6,
  /** and bursts by their packets, 0 to 32 */
  rx_bursts: 7,
  tx_bursts: 7 + BURST_SIZE + 1,
} as const;
const STREAM_COUNTERS = STREAM_SLOTS.tx_bursts + BURST_SIZE + 1;
export const streamCounters = () => new SharedArrayBuffer(8 * STREAM_COUNTERS);

/** The document's wait and retry: after so many µs what was not taken is offered again, so many times at most. */
export interface Retry {
  /** µs */
  readonly delay: number;
  readonly times: number;
}

/** What a stream is, in plain values. */
export interface StreamPlan {
  /** by number in the thread's ports */
  readonly rxPort: number;
  readonly txPort: number;
  /** of the thread's queues of these ports */
  readonly rxQueue: number;
  readonly txQueue: number;
  /** what the queues are called; default: `rxQueue` */
  readonly queue?: number;
  /** addresses that frames get: of the peer behind the transmitting port, and of that port */
  readonly peer: Uint8Array;
  readonly own: Uint8Array;
  /** STREAM_SLOTS */
  readonly counters: SharedArrayBuffer;
  /** what packets that are made here call their first flow */
  readonly firstFlow?: number;
  /** where it is counted what became of those that arrive */
  readonly verifier?: VerifierMemory;
}

const US_PER_MS = 1000;

/** Lets `us` microseconds pass without giving the CPU away. */
function spin(us: number): void {
  const until = performance.now() + us / US_PER_MS;
  while (performance.now() < until);
}

export class Stream {
  readonly plan: StreamPlan;
  readonly rx: DevicePort;
  readonly tx: DevicePort;
  readonly burst: Burst;
  readonly counters: Float64Array;
  readonly #workshop: Workshop;
  #rxQueue: number;
  /** queues that are received from by turns; 0 for the plan's alone */
  readonly #turns: number;
  readonly #txQueue: number;
  readonly #queue: number;
  readonly #retry: Retry | undefined;
  readonly #recordBursts: boolean;

  /** @param alone no other stream receives from the port: all its queues on this thread are this one's */
  constructor(
    plan: StreamPlan,
    ports: readonly DevicePort[],
    workshop: Workshop,
    retry: Retry | undefined,
    alone = false,
    recordBursts = false,
  ) {
    this.#recordBursts = recordBursts;
    this.plan = plan;
    this.rx = ports[plan.rxPort];
    this.tx = ports[plan.txPort];
    this.#workshop = workshop;
    this.burst = workshop.burst;
    this.counters = new Float64Array(plan.counters);
    this.#rxQueue = plan.rxQueue;
    this.#turns = alone && this.rx.queues > 1 ? this.rx.queues : 0;
    this.#txQueue = plan.txQueue;
    this.#queue = plan.queue ?? plan.rxQueue;
    this.#retry = retry;
  }

  /** The burst becomes what has arrived. @returns packets; if there are any, `complete` must follow */
  receive(): number {
    if (this.#turns > 0) this.#rxQueue = (this.#rxQueue + 1) % this.#turns;
    const n = this.rx.receive(this.#rxQueue);
    if (this.#recordBursts) this.counters[STREAM_SLOTS.rx_bursts + n]++;
    if (n === 0) return 0;
    this.counters[STREAM_SLOTS.rx_packets] += n;
    this.#workshop.restoreTags();
    this.#workshop.dump?.received(this.#workshop, this.rx.id, this.#turns > 0 ? this.#rxQueue : this.#queue);
    return n;
  }

  complete(): void {
    this.rx.complete(this.#rxQueue);
  }

  /** Throws away what waits in each of its queues of `rx`, its port, `bursts` bursts at most. */
  flush(rx: DevicePort, bursts: number): void {
    const first = this.#turns > 0 ? 0 : this.#rxQueue;
    const end = this.#turns > 0 ? this.#turns : first + 1;
    for (let queue = first; queue < end; queue++)
      for (let n = 0; n < bursts && rx.receive(queue) > 0; n++) rx.complete(queue);
  }

  /** Sends the whole burst. @returns packets sent, from the first on */
  sendAll(): number {
    return this.send(this.burst.all, this.burst.count);
  }

  /** Sends packets list[0] … list[n − 1]; with retry what is not taken is offered again. @returns packets sent, from the first on */
  send(list: Int32Array, n: number): number {
    if (n === 0) return 0;
    const { tx, counters } = this;
    if (tx.txQueue !== undefined) tx.txQueue = this.#txQueue;
    let sent = tx.transmit(list, 0, n);
    if (sent < n && this.#retry !== undefined) {
      const { delay, times } = this.#retry;
      for (let retry = 0; sent < n && retry < times; retry++) {
        spin(delay);
        counters[STREAM_SLOTS.tx_retries]++;
        sent += tx.transmit(list, sent, n);
      }
    }
    if (this.#recordBursts) counters[STREAM_SLOTS.tx_bursts + sent]++;
    counters[STREAM_SLOTS.tx_packets] += sent;
    counters[STREAM_SLOTS.tx_dropped] += n - sent;
    this.#workshop.dump?.sent(this.#workshop, tx.id, this.#queue, list, sent);
    return sent;
  }
}
