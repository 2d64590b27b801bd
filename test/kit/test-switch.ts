/**
 * An lcore on the test's own thread, with guests whose rings the test drives by hand.
 */
import assert from 'node:assert/strict';
import { Lcore } from '../../src/lcore/lcore.ts';
import {
  counterBlock,
  LCORE_SLOTS,
  PORT_SLOTS,
  type PortCounter,
  readCounters,
  txDropped,
  VRING_SLOTS,
  type VringCounter,
} from '../../src/stats/counters.ts';
import type { PortVlan, SwitchConfig } from '../../src/switch/switch-config.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { FAULTS } from '../../src/virtqueue/fault.ts';
import { pool, Ram, type RamPlace } from './ram.ts';
import type { Format, RawRing, RingOptions } from './raw-ring.ts';
import { makeRing } from './rings.ts';

export const CONFIG: SwitchConfig = {
  learning: 'dynamic',
  vm2vm: 1,
  macAgeing: 300,
  macTableSize: 1024,
  macLimit: 512,
  maxPorts: 8,
};

/** More than any test fills its rings for. */
const MAX_ROUNDS = 10_000;

/** What an lcore has told, one line each, e.g. `registered 0`. */
export class TestSwitch {
  readonly lcore: Lcore;
  readonly events: string[] = [];

  constructor(config: Partial<SwitchConfig> = {}) {
    const tell =
      (what: string) =>
      (port: number): void => {
        this.events.push(`${what} ${port}`);
      };
    this.lcore = new Lcore(
      { ...CONFIG, ...config },
      new Float64Array(counterBlock(LCORE_SLOTS)),
      new Caller(new Int32Array(1), 0),
      pool.acquire(),
      {
        onRegistered: tell('registered'),
        onDuplicate: tell('duplicate'),
        onMiss: (port, vring, iova, write) =>
          this.events.push(`miss ${port}/${vring} 0x${iova.toString(16)} ${write ? 'write' : 'read'}`),
        onFault: (port, vring, fault) => this.events.push(`fault ${port}/${vring} ${FAULTS[fault].name}`),
      },
    );
  }

  /** Polls until nothing comes any more. */
  settle(): void {
    for (let rounds = 0; this.lcore.poll() > 0; rounds++) assert.ok(rounds < MAX_ROUNDS, 'the rings run dry');
  }
}

/** Checks that every frame a guest sent is counted once more: as forwarded, or as dropped for one reason. */
export function assertCounted(...guests: readonly TestGuest[]): void {
  for (const { id, counters } of guests) {
    const drops = Object.entries(counters).filter(([name]) => name.startsWith('tx_drop_'));
    const known = drops.reduce((sum, [, n]) => sum + n, counters.tx_forwarded);
    assert.equal(counters.tx_packets, known, `frames of guest ${id}: ${JSON.stringify(Object.fromEntries(drops))}`);
    assert.equal(txDropped(counters), known - counters.tx_forwarded);
  }
}

/** The format of rings that no test asks for: `variants.test.ts` runs whole files again with the other one. */
const FORMAT: Format = process.env.RING_FORMAT === 'packed' ? 'packed' : 'split';

export interface GuestOptions extends RingOptions {
  readonly num?: number;
  /** receive buffers of each pair: how many, and their bytes without the header */
  readonly buffers?: number;
  readonly bufferBytes?: number;
  readonly enabled?: boolean;
  readonly ram?: Ram;
  readonly pairs?: number;
  /** no ring is started yet */
  readonly stopped?: boolean;
  /** VLANs of its own */
  readonly vlan?: PortVlan;
}

/** Where a guest is plugged in. */
export interface GuestPlace {
  readonly lcore: Pick<Lcore, 'addPort' | 'setMemory' | 'startVring'>;
}

/** Bytes of a transmit slot: header and the longest frame tried. */
const TX_SLOT = 12288;

/** The two rings of a queue pair. A receive buffer is descriptor i with buffer i; a sent frame is one descriptor. */
class TestPair {
  readonly ram: Ram;
  readonly rx: RawRing;
  readonly tx: RawRing;
  readonly blocks = { rx: counterBlock(VRING_SLOTS), tx: counterBlock(VRING_SLOTS) };
  readonly #rxBuffers: RamPlace;
  readonly #rxBytes: number;
  readonly #txSlots: RamPlace;
  #rxSeen: number;
  #txNext = 0;

  constructor(ram: Ram, num: number, buffers: number, bufferBytes: number, options: RingOptions) {
    this.ram = ram;
    this.rx = makeRing(ram, num, options);
    this.tx = makeRing(ram, num, options);
    this.#rxBytes = bufferBytes + this.rx.headerLen;
    this.#rxBuffers = ram.alloc(num * this.#rxBytes);
    this.#txSlots = ram.alloc(num * TX_SLOT);
    this.#rxSeen = this.rx.usedIdx;
    for (let i = 0; i < num; i++) {
      const addr = this.#rxBuffers.addr + i * this.#rxBytes;
      this.rx.describe(i, { addr, len: this.#rxBytes }, VRING_DESC_F_WRITE);
      if (i < buffers) this.rx.offer(i);
    }
    this.rx.publish();
  }

  /** Where a frame's header goes: of the next one, unless `i` says of which. */
  txSlot(i = this.#txNext): RamPlace {
    return { addr: this.#txSlots.addr + i * TX_SLOT, off: this.#txSlots.off + i * TX_SLOT };
  }

  /** Where receive buffer `i` begins, with its header. */
  rxBuffer(i: number): RamPlace {
    return { addr: this.#rxBuffers.addr + i * this.#rxBytes, off: this.#rxBuffers.off + i * this.#rxBytes };
  }

  send(frames: readonly Buffer[]): void {
    const { headerLen } = this.tx;
    for (const bytes of frames) {
      const id = this.#txNext;
      const slot = this.txSlot(id);
      bytes.copy(this.ram.bytes, slot.off + headerLen);
      this.tx.describe(id, { addr: slot.addr, len: headerLen + bytes.length }, 0);
      this.tx.offer(id);
      this.#txNext = (id + 1) % this.tx.num;
    }
    this.tx.publish();
  }

  received(): Buffer[] {
    const { headerLen } = this.rx;
    const frames: Buffer[] = [];
    const used = this.rx.usedIdx;
    while (this.#rxSeen !== used) {
      const parts: Buffer[] = [];
      let chains = 1;
      for (let c = 0; c < chains; c++) {
        const { id, len } = this.rx.used(this.#rxSeen);
        const off = this.#rxBuffers.off + id * this.#rxBytes;
        if (c === 0 && headerLen === 12) chains = this.ram.views.dv.getUint16(off + 10, true);
        parts.push(Buffer.from(this.ram.bytes.subarray(off + (c === 0 ? headerLen : 0), off + len)));
        this.rx.offer(id);
        this.#rxSeen = (this.#rxSeen + 1) & 0xffff;
      }
      frames.push(Buffer.concat(parts));
    }
    this.rx.publish();
    return frames;
  }
}

/** A port with one queue pair or several. */
export class TestGuest {
  readonly id: number;
  readonly ram: Ram;
  readonly pairs: readonly TestPair[];
  readonly #switch: GuestPlace;
  readonly #block = counterBlock(PORT_SLOTS);

  constructor(target: GuestPlace, id: number, options: GuestOptions = {}) {
    const { num = 64, buffers = num, bufferBytes = 2048, enabled = true, ...others } = options;
    const { ram = new Ram(), pairs = 1, stopped = false, vlan, ...more } = others;
    const ring = { format: FORMAT, ...more };
    this.id = id;
    this.ram = ram;
    this.#switch = target;
    this.pairs = Array.from({ length: pairs }, () => new TestPair(ram, num, buffers, bufferBytes, ring));
    target.lcore.addPort(id, this.#block, vlan);
    target.lcore.setMemory(id, ram.memory);
    if (!stopped) this.start(enabled);
  }

  /** The rings of the first pair. */
  get rx(): RawRing {
    return this.pairs[0].rx;
  }

  get tx(): RawRing {
    return this.pairs[0].tx;
  }

  start(enabled = true): void {
    for (let pair = 0; pair < this.pairs.length; pair++) this.startPair(pair, enabled);
  }

  startPair(pair: number, enabled = true): void {
    const { rx, tx, blocks } = this.pairs[pair];
    this.#switch.lcore.startVring(this.id, 2 * pair, rx.vring(enabled), blocks.rx);
    this.#switch.lcore.startVring(this.id, 2 * pair + 1, tx.vring(enabled), blocks.tx);
  }

  get counters(): Record<PortCounter, number> {
    return readCounters(PORT_SLOTS, this.#block);
  }

  /** The counters of a vring. */
  vringCounters(vring: number): Record<VringCounter, number> {
    const { blocks } = this.pairs[vring >> 1];
    return readCounters(VRING_SLOTS, vring % 2 === 0 ? blocks.rx : blocks.tx);
  }

  /** The counters that are not zero, of those named `prefix`…. */
  nonZero(prefix: string): Record<string, number> {
    return Object.fromEntries(Object.entries(this.counters).filter(([name, n]) => name.startsWith(prefix) && n > 0));
  }

  /** Where a frame's header goes in the first pair: of the next one, unless `i` says of which. */
  txSlot(i?: number): RamPlace {
    return this.pairs[0].txSlot(i);
  }

  /** Where receive buffer `i` of the first pair begins, with its header. */
  rxBuffer(i: number): RamPlace {
    return this.pairs[0].rxBuffer(i);
  }

  /** Puts frames on the first pair's TX ring, one descriptor each, without polling. */
  send(...frames: readonly Buffer[]): void {
    this.pairs[0].send(frames);
  }

  sendOn(pair: number, ...frames: readonly Buffer[]): void {
    this.pairs[pair].send(frames);
  }

  /** The frames received since the last call, pair by pair; their buffers are offered again. */
  received(): Buffer[] {
    return this.pairs.flatMap((pair) => pair.received());
  }
}
