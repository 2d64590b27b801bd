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
} from '../../src/stats/counters.ts';
import type { SwitchConfig } from '../../src/switch/switch-config.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { FAULTS } from '../../src/virtqueue/fault.ts';
import { pool, Ram, type RamPlace } from './ram.ts';
import { RawRing, type RingOptions } from './raw-ring.ts';

const CONFIG: SwitchConfig = {
  learning: 'dynamic',
  vm2vm: 1,
  macAgeing: 300,
  macTableSize: 1024,
  macLimit: 512,
  maxPorts: 8,
};

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
        onMiss: (port, vring, iova) => this.events.push(`miss ${port}/${vring} 0x${iova.toString(16)}`),
        onFault: (port, vring, fault) => this.events.push(`fault ${port}/${vring} ${FAULTS[fault].name}`),
      },
    );
  }

  /** Polls until nothing comes any more. */
  settle(): void {
    while (this.lcore.poll() > 0);
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

export interface GuestOptions extends RingOptions {
  readonly num?: number;
  /** receive buffers: how many, and their bytes without the header */
  readonly buffers?: number;
  readonly bufferBytes?: number;
  readonly enabled?: boolean;
  readonly ram?: Ram;
}

const RX = 0;
const TX = 1;
/** Bytes of a transmit slot: header and the longest frame tried. */
const TX_SLOT = 12288;

/** A port with an RX and a TX ring. A receive buffer is descriptor i with buffer i; a sent frame is one descriptor. */
export class TestGuest {
  readonly id: number;
  readonly ram: Ram;
  readonly rx: RawRing;
  readonly tx: RawRing;
  readonly #switch: TestSwitch;
  readonly #block = counterBlock(PORT_SLOTS);
  readonly #rxBuffers: RamPlace;
  readonly #rxBytes: number;
  readonly #txSlots: RamPlace;
  readonly #headerLen: number;
  #rxSeen: number;

  constructor(target: TestSwitch, id: number, options: GuestOptions = {}) {
    const { num = 64, buffers = num, bufferBytes = 2048, enabled = true, ram = new Ram(), ...ring } = options;
    this.id = id;
    this.ram = ram;
    this.#switch = target;
    this.rx = new RawRing(ram, num, ring);
    this.tx = new RawRing(ram, num, ring);
    this.#headerLen = this.rx.headerLen;
    this.#rxBytes = bufferBytes + this.#headerLen;
    this.#rxBuffers = ram.alloc(num * this.#rxBytes);
    this.#txSlots = ram.alloc(num * TX_SLOT);
    this.#rxSeen = this.rx.availIdx;
    for (let i = 0; i < num; i++) {
      const addr = this.#rxBuffers.addr + i * this.#rxBytes;
      this.rx.describe(i, { addr, len: this.#rxBytes }, VRING_DESC_F_WRITE);
      if (i < buffers) this.rx.offer(i);
    }
    this.rx.publish();
    target.lcore.addPort(id, this.#block);
    target.lcore.setMemory(id, ram.memory);
    this.start(enabled);
  }

  start(enabled = true): void {
    this.#switch.lcore.startVring(this.id, RX, this.rx.vring(enabled));
    this.#switch.lcore.startVring(this.id, TX, this.tx.vring(enabled));
  }

  get counters(): Record<PortCounter, number> {
    return readCounters(PORT_SLOTS, this.#block);
  }

  /** The counters that are not zero, of those named `prefix`…. */
  nonZero(prefix: string): Record<string, number> {
    return Object.fromEntries(Object.entries(this.counters).filter(([name, n]) => name.startsWith(prefix) && n > 0));
  }

  /** Where the next frame's header goes. */
  txSlot(i = this.tx.availIdx & (this.tx.num - 1)): RamPlace {
    return { addr: this.#txSlots.addr + i * TX_SLOT, off: this.#txSlots.off + i * TX_SLOT };
  }

  /** Puts frames on the TX ring, one descriptor each, without polling. */
  send(...frames: readonly Buffer[]): void {
    for (const bytes of frames) {
      const slot = this.txSlot();
      const id = this.tx.availIdx & (this.tx.num - 1);
      bytes.copy(this.ram.bytes, slot.off + this.#headerLen);
      this.tx.describe(id, { addr: slot.addr, len: this.#headerLen + bytes.length }, 0);
      this.tx.offer(id);
    }
    this.tx.publish();
  }

  /** The frames received since the last call; their buffers are offered again. */
  received(): Buffer[] {
    const frames: Buffer[] = [];
    while (this.#rxSeen !== this.rx.usedIdx) {
      const parts: Buffer[] = [];
      let chains = 1;
      for (let c = 0; c < chains; c++) {
        const { id, len } = this.rx.used(this.#rxSeen);
        const off = this.#rxBuffers.off + id * this.#rxBytes;
        if (c === 0 && this.#headerLen === 12) chains = this.ram.views.dv.getUint16(off + 10, true);
        parts.push(Buffer.from(this.ram.bytes.subarray(off + (c === 0 ? this.#headerLen : 0), off + len)));
        this.rx.offer(id);
        this.#rxSeen = (this.#rxSeen + 1) & 0xffff;
      }
      frames.push(Buffer.concat(parts));
    }
    this.rx.publish();
    return frames;
  }
}
