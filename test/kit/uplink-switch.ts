/**
 * The switch on the test's own thread, with guests whose rings the test drives by hand, and uplinks that are lists of frames.
 */
import assert from 'node:assert/strict';
import { PortTable } from '../../src/lcore/port-table.ts';
import { unmapFrom, type WindowHandle, type WindowViews } from '../../src/mem/window.ts';
import type { Port } from '../../src/port/port.ts';
import { RxRetry } from '../../src/port/rx-retry.ts';
import { counterBlock, PORT_SLOTS, type PortCounter, readCounters } from '../../src/stats/counters.ts';
import { Learner } from '../../src/switch/learner.ts';
import type { SwitchConfig } from '../../src/switch/switch-config.ts';
import { makeSwitching, type Switching } from '../../src/switch/switching.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES, HEADER_BYTES } from '../../src/virtio-net/burst.ts';
import { pool, Ram } from './ram.ts';
import { CONFIG, type GuestPlace } from './test-switch.ts';

const FRONTS_OFF = 2 ** 19;
/** What the switch writes to in its own window. */
const BOUNCE_FROM = 2 ** 16;
const BOUNCE_BYTES = 2 ** 21;
const SLOT_BYTES = 16384;
const MAX_ROUNDS = 10_000;

/** A frame from outside; with the tag that the kernel took off it, as in `burst.tag`, if it did. */
export interface Incoming {
  readonly bytes: Buffer;
  readonly tag?: number;
}

/** A port that takes whatever it is sent, and has what the test gives it. */
export class ListUplink implements Port {
  readonly id: number;
  readonly counters = new Float64Array(counterBlock(PORT_SLOTS));
  canTransmit = true;
  /** frames that have left, and the headers of those that left something undone */
  readonly sent: Buffer[] = [];
  readonly headers: Buffer[] = [];
  readonly #burst: Burst;
  readonly #windows: readonly WindowViews[];
  readonly #ram = new Ram();
  readonly #slots = this.#ram.alloc(BURST_SIZE * SLOT_BYTES).off;
  readonly #waiting: Incoming[] = [];

  constructor(id: number, burst: Burst, windows: WindowViews[]) {
    this.id = id;
    this.#burst = burst;
    this.#windows = windows;
    windows[this.#ram.views.id] = this.#ram.views;
  }

  /** Frames arrive. */
  arrive(...frames: readonly (Buffer | Incoming)[]): void {
    this.#waiting.push(...frames.map((one) => (Buffer.isBuffer(one) ? { bytes: one } : one)));
  }

  receive(): number {
    const burst = this.#burst;
    const { segments } = burst;
    const frames = this.#waiting.splice(0, BURST_SIZE);
    segments.count = 0;
    burst.needs.fill(0);
    burst.offloads = false;
    // one frame is like itself; it lies in one piece
    burst.uniform = frames.length === 1 && frames[0].tag === undefined && frames[0].bytes.length >= FRONT_BYTES;
    burst.tagged = frames.some(({ tag }) => tag !== undefined);
    burst.count = frames.length;
    frames.forEach(({ bytes, tag = 0 }, i) => {
      const off = this.#slots + i * SLOT_BYTES;
      bytes.copy(this.#ram.bytes, off);
      burst.first[i] = segments.count;
      // in two pieces, as some have them
      const cut = Math.min(bytes.length, 20 * (i % 3));
      if (cut > 0) segments.push(this.#ram.views.id, off, cut);
      segments.push(this.#ram.views.id, off + cut, bytes.length - cut);
      burst.len[i] = bytes.length;
      burst.frontBytes.fill(0, FRONT_BYTES * i, FRONT_BYTES * (i + 1));
      burst.frontBytes.set(bytes.subarray(0, FRONT_BYTES), FRONT_BYTES * i);
      burst.tag[i] = tag;
      this.counters[PORT_SLOTS.tx_packets]++;
      this.counters[PORT_SLOTS.tx_bytes] += bytes.length;
    });
    burst.first[frames.length] = segments.count;
    return frames.length;
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const { segments, first, len, needs, headerBytes, delivered, uniform } = this.#burst;
    if (!this.canTransmit) {
      this.counters[PORT_SLOTS.rx_drop_not_ready] += to - from;
      return 0;
    }
    for (let k = from; k < to; k++) {
      const i = list[k];
      const parts: Buffer[] = [];
      for (let s = first[i]; s < first[i + 1]; s++) {
        const { u8 } = this.#windows[segments.window[s]];
        parts.push(Buffer.from(u8.slice(segments.off[s], segments.off[s] + segments.len[s])));
      }
      const bytes = Buffer.concat(parts);
      assert.equal(bytes.length, len[i], 'a packet’s segments are as long as it is');
      assert.ok(!uniform || parts.length === 1, 'the packets of a uniform burst lie in one piece each');
      this.sent.push(bytes);
      if (needs[i] !== 0) this.headers.push(Buffer.from(headerBytes.slice(HEADER_BYTES * i, HEADER_BYTES * i + 12)));
      delivered[i]++;
      this.counters[PORT_SLOTS.rx_packets]++;
    }
    return to - from;
  }

  complete(): void {}

  close(): void {
    this.#ram.close();
  }

  /** What has left since the last call. */
  taken(): Buffer[] {
    return this.sent.splice(0);
  }

  get named(): Record<PortCounter, number> {
    return readCounters(PORT_SLOTS, this.counters);
  }
}

/** Uplinks have the ports from 8 on; guests those below. */
export class UplinkSwitch implements GuestPlace {
  readonly events: string[] = [];
  readonly uplinks: readonly ListUplink[];
  readonly lcore: GuestPlace['lcore'] & { removePort(id: number): void };
  readonly learner: Learner;
  readonly #table: PortTable;
  readonly #ports: (Port | undefined)[];
  readonly #switching: Switching;
  readonly #retry: RxRetry;
  readonly #bounce: WindowHandle;
  #now = 0;

  constructor(config: Partial<SwitchConfig> = {}, uplinks = 1, mtu = 1500) {
    const first = config.maxPorts ?? CONFIG.maxPorts;
    const ids = Array.from({ length: uplinks }, (_, i) => first + i);
    const whole: SwitchConfig = {
      ...{ ...CONFIG, ...config, maxPorts: first + uplinks },
      uplinks: ids.map((port) => ({ port, mtu })),
    };
    const tell = (what: string) => (port: number) => void this.events.push(`${what} ${port}`);
    this.#retry = new RxRetry(whole.rxRetry?.num, whole.rxRetry?.delayUs);
    const bounce = pool.acquire();
    this.#bounce = bounce;
    const rings = { onFault: tell('fault'), onMiss: tell('miss') };
    const table = new PortTable(whole.maxPorts, new Caller(new Int32Array(1), 0), bounce, rings, this.#retry);
    this.#table = table;
    this.#ports = Array(whole.maxPorts).fill(undefined);
    this.learner = new Learner(whole, tell('registered'), tell('duplicate'));
    const memory = table.addWindow(bounce);
    this.#switching = makeSwitching(whole, this.learner, this.#ports, table.windows, memory, FRONTS_OFF);
    this.uplinks = ids.map((id) => {
      const port = new ListUplink(id, table.burst, table.windows);
      this.#ports[id] = port;
      return port;
    });
    this.lcore = {
      addPort: (id, counters, vlan) => {
        table.addPort(id, counters);
        this.#ports[id] = table.ports[id];
        this.#switching.classifier.setPort(id, vlan);
      },
      setMemory: (...args) => table.setMemory(...args),
      startVring: (...args) => table.startVring(...args),
      removePort: (id) => {
        table.removePort(id);
        this.#ports[id] = undefined;
        this.#switching.classifier.forget(id);
      },
    };
  }

  /** Gives the switch's own memory back; the guests' is theirs. */
  close(): void {
    for (const uplink of this.uplinks) uplink.close();
    unmapFrom(this.#bounce, BOUNCE_FROM, BOUNCE_BYTES);
    pool.release(this.#bounce);
  }

  get uplink(): ListUplink {
    return this.uplinks[0];
  }

  tick(now: number): void {
    this.#now = now;
  }

  #poll(port: Port, queue: number): number {
    const n = port.receive(queue);
    if (n === 0) return 0;
    const { burst } = this.#table;
    this.#retry.begin(this.learner.isUplink[port.id] === 1);
    this.#switching.classifier.classify(burst, port.id, port.counters, this.#now);
    this.#switching.forwarder.forward(burst, port);
    port.complete(queue);
    return n;
  }

  /** Polls until nothing comes any more. */
  settle(): void {
    for (let rounds = 0; ; rounds++) {
      assert.ok(rounds < MAX_ROUNDS, 'the rings run dry');
      let packets = 0;
      for (const uplink of this.uplinks) packets += this.#poll(uplink, 0);
      for (const { port, queue } of this.#table.polled) packets += this.#poll(port, queue);
      if (packets === 0) return;
    }
  }
}
