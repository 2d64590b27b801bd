/**
 * The switch's way of a burst: groups its packets by destination and hands each port its share, in order, in one call.
 */
import type { Port } from '../port/port.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { BURST_SIZE, type Burst } from '../virtio-net/burst.ts';
import { type Classifier, DEST_FLOOD } from './classify.ts';

export class Forwarder {
  readonly #classifier: Classifier;
  /** by port number; a port that has gone leaves undefined */
  readonly #ports: readonly (Port | undefined)[];
  /** the packets for port p are list[32 · p] … list[32 · p + count[p] − 1] */
  readonly #list: Int32Array;
  readonly #count: Int32Array;
  /** ports that get something */
  readonly #touched: Int32Array;
  #nTouched = 0;

  constructor(classifier: Classifier, ports: readonly (Port | undefined)[], maxPorts: number) {
    this.#classifier = classifier;
    this.#ports = ports;
    this.#list = new Int32Array(BURST_SIZE * maxPorts);
    this.#count = new Int32Array(maxPorts);
    this.#touched = new Int32Array(maxPorts);
  }

  /** Stage 3: delivers a classified burst that came from `source`. */
  forward(burst: Burst, source: Port): void {
    const { dest, count, only } = burst;
    if (only >= 0) {
      this.#account(source, count, this.#ports[only]?.transmit(burst.all, 0, count) ?? 0);
      return;
    }
    let sent = 0;
    let flooded = false;
    for (let i = 0; i < count; ) {
      const from = i;
      const port = dest[i];
      do i++;
      while (i < count && dest[i] === port);
      if (port >= 0) this.#append(port, from, i);
      else if (port === DEST_FLOOD && this.#flood(source, from, i)) flooded = true;
      else continue;
      sent += i - from;
    }
    if (sent === 0) return;
    if (flooded) burst.delivered.fill(0, 0, count);
    const taken = this.#transmit();
    this.#account(source, sent, flooded ? deliveredOf(burst) : taken);
  }

  /** Hands each port touched its share. @returns packets taken, of all together */
  #transmit(): number {
    let taken = 0;
    for (let t = 0; t < this.#nTouched; t++) {
      const id = this.#touched[t];
      const from = BURST_SIZE * id;
      // another lcore may have learned an address on a port that is yet to come to this one
      taken += this.#ports[id]?.transmit(this.#list, from, from + this.#count[id]) ?? 0;
      this.#count[id] = 0;
    }
    this.#nTouched = 0;
    return taken;
  }

  #account(source: Port, sent: number, forwarded: number): void {
    source.counters[PORT_SLOTS.tx_forwarded] += forwarded;
    source.counters[PORT_SLOTS.tx_drop_receiver] += sent - forwarded;
  }

  #append(port: number, from: number, to: number): void {
    const list = this.#list;
    const n = this.#count[port];
    const at = BURST_SIZE * port + n - from;
    for (let i = from; i < to; i++) list[at + i] = i;
    if (n === 0) this.#touched[this.#nTouched++] = port;
    this.#count[port] = n + to - from;
  }

  /** Lists packets for every port that takes frames, but the one they came from. @returns false if there is none */
  #flood(source: Port, from: number, to: number): boolean {
    let copies = 0;
    for (let id = 0; id < this.#ports.length; id++) {
      const port = this.#ports[id];
      if (port === undefined || id === source.id || !port.canTransmit || !this.#classifier.mayReceive(id)) continue;
      this.#append(id, from, to);
      copies++;
    }
    if (copies > 0) return true;
    source.counters[PORT_SLOTS.tx_drop_alone] += to - from;
    return false;
  }
}

/** Packets that some port has taken. */
function deliveredOf({ delivered, count }: Burst): number {
  let packets = 0;
  for (let i = 0; i < count; i++) if (delivered[i] > 0) packets++;
  return packets;
}
