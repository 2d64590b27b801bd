/**
 * The switch's way of a burst: groups its packets by destination and hands each port its share, in order, in one call.
 */
import type { Port } from '../port/port.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { BURST_SIZE, type Burst } from '../virtio-net/burst.ts';
import { DEST_FLOOD, DEST_UPLINKS, floodExcept, floodVid } from './destination.ts';
import type { Egress } from './egress.ts';
import type { Learner } from './learner.ts';
import type { SwitchConfig, UplinkConfig } from './switch-config.ts';
import { keepFitting } from './uplink-mtu.ts';

export class Forwarder {
  readonly #learner: Learner;
  /** by port number; a port that has gone leaves undefined */
  readonly #ports: readonly (Port | undefined)[];
  readonly #uplinks: readonly UplinkConfig[];
  /** by port number: the MTU of an uplink, 0 of others */
  readonly #mtu: Int32Array;
  readonly #egress: Egress;
  /** the packets for port p are list[32 · p] … list[32 · p + count[p] − 1] */
  readonly #list: Int32Array;
  readonly #count: Int32Array;
  /** ports that get something */
  readonly #touched: Int32Array;
  #nTouched = 0;

  constructor(config: SwitchConfig, learner: Learner, ports: readonly (Port | undefined)[], egress: Egress) {
    const { maxPorts, uplinks = [] } = config;
    this.#learner = learner;
    this.#ports = ports;
    this.#uplinks = uplinks;
    this.#mtu = new Int32Array(maxPorts);
    for (const { port, mtu } of uplinks) this.#mtu[port] = mtu;
    this.#egress = egress;
    this.#list = new Int32Array(BURST_SIZE * maxPorts);
    this.#count = new Int32Array(maxPorts);
    this.#touched = new Int32Array(maxPorts);
  }

  /** The MTU of an uplink is another one from now on. */
  setMtu(port: number, mtu: number): void {
    this.#mtu[port] = mtu;
  }

  /** Stage 3: delivers a classified burst that came from `source`. */
  forward(burst: Burst, source: Port): void {
    const { dest, count, only } = burst;
    if (only >= 0) {
      this.#account(source, count, this.#ports[only]?.transmit(burst.all, 0, count) ?? 0);
      return;
    }
    let sent = 0;
    let several = false;
    for (let i = 0; i < count; ) {
      const from = i;
      const to = dest[i];
      do i++;
      while (i < count && dest[i] === to);
      if (to >= DEST_FLOOD) {
        if (!this.#flood(source, to, from, i)) continue;
        several = true;
      } else if (to >= 0) this.#append(to, from, i);
      else if (to === DEST_UPLINKS) {
        for (const { port } of this.#uplinks) this.#append(port, from, i);
        several ||= this.#uplinks.length > 1;
      } else continue;
      sent += i - from;
    }
    const dressing = this.#egress.begin(burst);
    if (sent === 0) return;
    if (several) burst.delivered.fill(0, 0, count);
    const outside = this.#learner.isUplink[source.id] === 1;
    const taken = dressing ? this.#sendDressed(burst, outside) : this.#sendAsTheyAre(burst);
    this.#nTouched = 0;
    this.#account(source, sent, several ? deliveredOf(burst) : taken);
  }

  #account(source: Port, sent: number, forwarded: number): void {
    source.counters[PORT_SLOTS.tx_forwarded] += forwarded;
    source.counters[PORT_SLOTS.tx_drop_receiver] += sent - forwarded;
  }

  /** Hands each port touched its share. @returns packets taken, of all together */
  #sendAsTheyAre(burst: Burst): number {
    let taken = 0;
    for (let t = 0; t < this.#nTouched; t++) {
      const id = this.#touched[t];
      if (this.#mtu[id] !== 0) this.#leaveOutLong(burst, id);
      taken += this.#send(id);
    }
    return taken;
  }

  /** The same, first to the ports that take the packets as they are, then to those that want other fronts. */
  #sendDressed(burst: Burst, outside: boolean): number {
    const egress = this.#egress;
    let taken = 0;
    // lengths are those that came, until something is dressed
    for (let t = 0; t < this.#nTouched; t++)
      if (this.#mtu[this.#touched[t]] !== 0) this.#leaveOutLong(burst, this.#touched[t]);
    for (let t = 0; t < this.#nTouched; t++)
      if (egress.asTheyAre(this.#touched[t], outside)) taken += this.#send(this.#touched[t]);
    for (let t = 0; t < this.#nTouched; t++) {
      const id = this.#touched[t];
      const n = this.#count[id];
      if (n === 0) continue;
      egress.dress(burst, this.#list, BURST_SIZE * id, BURST_SIZE * id + n, id, outside);
      taken += this.#send(id);
    }
    return taken;
  }

  #send(id: number): number {
    const from = BURST_SIZE * id;
    const n = this.#count[id];
    this.#count[id] = 0;
    // another lcore may have learned an address on a port that is yet to come to this one
    return n > 0 ? (this.#ports[id]?.transmit(this.#list, from, from + n) ?? 0) : 0;
  }

  /** Takes what is longer than the uplink's MTU off its list. */
  #leaveOutLong(burst: Burst, id: number): void {
    const n = this.#count[id];
    const kept = keepFitting(burst, this.#list, BURST_SIZE * id, n, this.#mtu[id]);
    if (kept === n) return;
    this.#count[id] = kept;
    const port = this.#ports[id];
    if (port !== undefined) port.counters[PORT_SLOTS.rx_drop_mtu] += n - kept;
  }

  #append(port: number, from: number, to: number): void {
    const list = this.#list;
    const n = this.#count[port];
    const at = BURST_SIZE * port + n - from;
    for (let i = from; i < to; i++) list[at + i] = i;
    if (n === 0) this.#touched[this.#nTouched++] = port;
    this.#count[port] = n + to - from;
  }

  /** Lists packets for every port of their VLAN that takes frames, but the one they came from. @returns false if there is none */
  #flood(source: Port, dest: number, from: number, to: number): boolean {
    const vid = floodVid(dest);
    const except = floodExcept(dest);
    const { isUplink } = this.#learner;
    let copies = 0;
    for (let id = 0; id < this.#ports.length; id++) {
      const port = this.#ports[id];
      if (port === undefined || id === source.id || !port.canTransmit || !this.#learner.mayReceive(id)) continue;
      if (id === except || !this.#egress.carries(id, vid) || (isUplink[id] & isUplink[source.id]) !== 0) continue;
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
