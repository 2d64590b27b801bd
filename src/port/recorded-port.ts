/**
 * A port whose received frames are captured into a file, before anything is done with them: for any kind of port.
 */
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import type { BurstTools } from './burst-copy.ts';
import { CaptureSink, type CaptureSinkSpec } from './capture-sink.ts';
import type { DevicePort } from './device-port.ts';

export class RecordedPort implements DevicePort {
  readonly #port: DevicePort;
  readonly #tools: BurstTools;
  readonly #sink: CaptureSink;

  /** @param port closed by this one; the file stays the main thread's */
  constructor(port: DevicePort, spec: CaptureSinkSpec, tools: BurstTools) {
    this.#port = port;
    this.#tools = tools;
    this.#sink = new CaptureSink(spec, tools);
  }

  get id(): number {
    return this.#port.id;
  }

  get counters(): Float64Array {
    return this.#port.counters;
  }

  get canTransmit(): boolean {
    return this.#port.canTransmit;
  }

  get queues(): number {
    return this.#port.queues;
  }

  get eventFds(): readonly number[] {
    return this.#port.eventFds;
  }

  get txQueue(): number | undefined {
    return this.#port.txQueue;
  }

  set txQueue(queue: number | undefined) {
    this.#port.txQueue = queue;
  }

  /** The errno of the write that failed, or 0: frames are received all the same. */
  get failed(): number {
    return this.#sink.failed;
  }

  receive(queue: number): number {
    const n = this.#port.receive(queue);
    if (n === 0 || this.#sink.failed !== 0) return n;
    const { len } = this.#tools.burst;
    this.#sink.stamp();
    for (let i = 0; i < n; i++) if (len[i] >= 0 && len[i] <= MAX_GSO_BYTES) this.#sink.add(i);
    this.#sink.settle();
    return n;
  }

  transmit(list: Int32Array, from: number, to: number): number {
    return this.#port.transmit(list, from, to);
  }

  complete(queue: number): void {
    this.#port.complete(queue);
  }

  prepareSleep(): boolean {
    this.#sink.flush();
    return this.#port.prepareSleep();
  }

  drain(): void {
    this.#sink.drain();
    this.#port.drain();
  }

  tick(): void {
    this.#port.tick?.();
  }

  close(): void {
    this.#sink.flush();
    this.#port.close();
  }
}
