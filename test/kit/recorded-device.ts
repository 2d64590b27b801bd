/**
 * A device that keeps inflight records, and dies, between a guest that sends and one that receives: the ports of an lcore without the
 * switch, and a network card's queues on the other side of the rings, which see to it that the device keeps to the rules.
 */
import assert from 'node:assert/strict';
import type { Place } from '../../src/mem/guest-memory.ts';
import { openWindow, type WindowViews } from '../../src/mem/window.ts';
import { GuestRam } from '../../src/port/guest-ram.ts';
import { ringLayout } from '../../src/port/net-pair.ts';
import { type ChainLayout, RxQueue, TxQueue } from '../../src/port/net-queue.ts';
import { RxRetry } from '../../src/port/rx-retry.ts';
import { type PortTools, VhostPort } from '../../src/port/vhost-port.ts';
import { counterBlock, PORT_SLOTS, readCounters, rxDropped, VRING_SLOTS } from '../../src/stats/counters.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { inflightQueueBytes } from '../../src/uapi/inflight.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import type { DeviceMemory, DirtyLogPlace } from '../../src/vhost/datapath.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import { Enqueuer } from '../../src/virtio-net/enqueue.ts';
import { OffloadStage } from '../../src/virtio-net/offload-stage.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import type { DriverRing } from '../../src/virtqueue/driver-ring.ts';
import { FAULTS } from '../../src/virtqueue/fault.ts';
import { PackedDriver } from '../../src/virtqueue/packed-driver.ts';
import type { RingConfig } from '../../src/virtqueue/ring-config.ts';
import { SplitDriver } from '../../src/virtqueue/split-driver.ts';
import { sharedRingState } from '../../src/virtqueue/vring.ts';
import { DyingWriter } from './dying-memory.ts';
import type { MortalDevice, MortalDriver } from './mortal-device.ts';
import { pool } from './ram.ts';

export interface RecordedOptions {
  readonly format: 'split' | 'packed';
  /** descriptors of the sending and of the receiving ring */
  readonly txNum: number;
  readonly rxNum: number;
  /** lower half of SET_VRING_BASE */
  readonly start: number;
  readonly mergeable: boolean;
  readonly inOrder: boolean;
  readonly txLayout: ChainLayout;
  readonly rxLayout: ChainLayout;
  /** threads that deliver to the receiving ring, by turns */
  readonly lcores: number;
}

const HEADER = 12;
/** Bytes of frames: few, since each store is one at which the device may die. */
const SHORTEST = 16;
const LONGEST = 40;
/** Of a receive buffer where several make a frame, and where each must hold one. */
const MERGEABLE_BYTES = 28;
const WHOLE_BYTES = HEADER + LONGEST;
const GUEST_ADDR = 0x4000_0000;
/** No other window here has it. */
const BOUNCE = 1000;
export const TX = 1;
export const RX = 0;
/** An lcore's scratch memory outlives the device: it holds nothing between two bursts. */
const ringStage = new RingStage();
const bounce = { ...openWindow(pool.acquire()), id: BOUNCE };
const offload = new OffloadStage(bounce, 65536, 2 ** 20);

/** Frame number `n`: its number, and bytes that follow from it. */
export function frameOf(n: number): Uint8Array {
  const bytes = Uint8Array.from(
    { length: SHORTEST + ((n * 7) % (LONGEST - SHORTEST + 1)) },
    (_, i) => (n * 31 + i) & 0xff,
  );
  new DataView(bytes.buffer).setUint32(0, n);
  return bytes;
}

interface TestRing {
  readonly driver: DriverRing;
  config: RingConfig;
  /** eventfd or NO_FD */
  errFd: number;
}

/** The guests. */
export class RecordedGuests implements MortalDriver {
  readonly options: RecordedOptions;
  readonly ram: GuestRam;
  readonly tx: TestRing;
  readonly rx: TestRing;
  /** of both ports, over all lives of the device */
  readonly counters = new Float64Array(counterBlock(PORT_SLOTS));
  readonly #sender: TxQueue;
  readonly #receiver: RxQueue;
  #sent = 0;
  /** numbers of the frames that have arrived, and the buffers that they came in */
  readonly arrived: number[] = [];
  readonly usedHeads: number[] = [];
  /** times that frames may come again */
  #repeats = 0;

  constructor(options: RecordedOptions) {
    this.options = options;
    const { txNum, rxNum, txLayout, rxLayout, mergeable } = options;
    this.ram = new GuestRam([{ guestAddr: GUEST_ADDR, size: 2 ** 20 }]);
    this.tx = this.#ring(txNum);
    this.rx = this.#ring(rxNum);
    const bytes = mergeable ? MERGEABLE_BYTES : WHOLE_BYTES;
    this.#sender = new TxQueue(this.tx.driver, this.ram, HEADER, LONGEST, txLayout);
    this.#receiver = new RxQueue(this.rx.driver, this.ram, HEADER, bytes, mergeable, rxLayout);
    this.#receiver.fill();
    this.rx.driver.publish();
  }

  #ring(num: number): TestRing {
    const { format, inOrder, start } = this.options;
    const { views } = this.ram;
    const { bytes, ...layout } = ringLayout(format === 'packed', num);
    const at = this.ram.alloc(bytes, 4096).off;
    const place = { descOff: at + layout.descOff, availOff: at + layout.availOff, usedOff: at + layout.usedOff };
    const Driver = format === 'packed' ? PackedDriver : SplitDriver;
    const driver = new Driver(views, place, num, false, inOrder);
    driver.reset(start);
    driver.disableCalls();
    const regionNum = num + 3;
    const inWindow = (off: number): Place => ({ window: views.id, off });
    const config: RingConfig = {
      format,
      num,
      desc: inWindow(place.descOff),
      avail: inWindow(place.availOff),
      used: inWindow(place.usedOff),
      base: driver.vringBase,
      eventIdx: false,
      indirect: true,
      kickFd: NO_FD,
      callFd: NO_FD,
      inflight: { ...inWindow(this.ram.alloc(inflightQueueBytes(format, regionNum), 64).off), num: regionNum },
    };
    return { driver, config, errFd: NO_FD };
  }

  /** A device begins to live: it may do once more what the one before had not finished, by default in the order of before. */
  allowRepeats(times = 1): void {
    this.#repeats += times;
  }

  get outstanding(): number {
    return this.tx.driver.size - this.tx.driver.nFree;
  }

  offer(n: number): void {
    for (let i = 0; i < n && this.#sender.add(frameOf(this.#sent)); i++) this.#sent++;
    this.tx.driver.publish();
  }

  /** The card's queues throw what a device does wrong. */
  collect(): number[] {
    this.#sender.reapAll();
    for (let frame = this.#receiver.take(); frame !== undefined; frame = this.#receiver.take()) this.#check(frame);
    this.rx.driver.publish();
    return [];
  }

  #check(frame: Uint8Array): void {
    const n = new DataView(frame.buffer).getUint32(0);
    assert.deepEqual(frame, frameOf(n), 'as it was sent');
    assert.ok(n < this.#sent, `frame ${n} of ${this.#sent}`);
    const last = this.arrived.at(-1) ?? -1;
    if (n <= last) assert.ok(this.#repeats-- > 0, `frame ${n} comes behind frame ${last}`);
    this.arrived.push(n);
    this.usedHeads.push(...this.#receiver.usedHeads);
  }

  get dropped(): number {
    return rxDropped(readCounters(PORT_SLOTS, this.counters));
  }

  /** To be called when everything sent has been handed back: uses up all receive buffers, each of which comes back. */
  assertWhole(poll: () => void): void {
    assert.equal(this.outstanding, 0);
    const seen = new Set(this.arrived).size;
    assert.ok(seen + this.dropped >= this.#sent, `${seen} frames of ${this.#sent} came`);
    const { driver } = this.rx;
    let free = -1;
    while (driver.nFree !== free) {
      free = driver.nFree;
      for (let i = 0; i < 4; i++) this.#sender.add(frameOf(this.#sent++));
      this.tx.driver.publish();
      poll();
      this.#sender.reapAll();
      while (driver.reap() >= 0);
      assert.equal(driver.broken, undefined);
    }
    const held = driver.size - driver.nFree;
    // what is left is not enough for a frame
    assert.ok(
      held < (this.options.mergeable ? 4 : 1) * descriptorsOf(this.options),
      `${held} descriptors have not come back`,
    );
    assert.ok(this.#sender.guardsIntact && this.#receiver.guardsIntact, 'nothing beside the buffers was written');
  }

  close(): void {
    this.ram.close();
  }
}

/** Descriptors of a receive buffer. */
function descriptorsOf({ rxLayout: { pieces, indirect }, mergeable }: RecordedOptions): number {
  if (indirect || pieces === 'one') return 1;
  if (pieces === 'header') return 2;
  return Math.ceil((mergeable ? MERGEABLE_BYTES : WHOLE_BYTES) / pieces);
}

/** One life of the device. */
export class RecordedDevice implements MortalDevice {
  readonly writer: DyingWriter;
  readonly wishes: readonly number[] = [];
  /** what it has told of faults */
  readonly faults: string[] = [];
  /** by vring: where what happens to it is logged */
  readonly logs: (DirtyLogPlace | undefined)[] = [];
  readonly #guests: RecordedGuests;
  readonly #anywhere: boolean;
  readonly #tools: PortTools;
  readonly #list = Int32Array.from({ length: 32 }, (_, i) => i);
  #from: VhostPort | undefined;
  #to: readonly VhostPort[] = [];
  #turn = 0;

  /** @param anywhere it goes the ways that can be stopped at each store; or else WebAssembly's, and dies between two bursts, which the writer counts */
  constructor(guests: RecordedGuests, anywhere: boolean) {
    this.#guests = guests;
    this.#anywhere = anywhere;
    guests.allowRepeats();
    const { views } = guests.ram;
    this.writer = new DyingWriter(views);
    const windows: WindowViews[] = [];
    windows[views.id] = anywhere ? this.writer.views : views;
    windows[BOUNCE] = bounce;
    this.#tools = {
      ringStage,
      enqueuer: new Enqueuer(ringStage, offload, windows),
      windows,
      caller: new Caller(new Int32Array(1), 0),
      retry: new RxRetry(),
      onFault: (_, vring, fault) => this.faults.push(`${vring} ${FAULTS[fault].name}`),
      onMiss: () => assert.fail('nothing is translated'),
    };
  }

  #memory(log: DirtyLogPlace | undefined): DeviceMemory {
    const { ram } = this.#guests;
    const { id } = ram.views;
    const chunks = ram.regions.map(({ guestAddr, size }) => ({
      ...{ guestAddr, reach: size, window: id, windowOff: ram.offsetOf(guestAddr) as number },
    }));
    return { chunks, windows: [], iotlb: false, log };
  }

  start(): void {
    const { options, tx, rx, counters } = this.#guests;
    const port = (vring: number, { config, errFd }: TestRing, state?: SharedArrayBuffer) => {
      const made = new VhostPort(vring, counters, this.#tools);
      made.setMemory(this.#memory(this.logs[vring]));
      const features = featureMask(VIRTIO_F_VERSION_1) | (options.mergeable ? featureMask(VIRTIO_NET_F_MRG_RXBUF) : 0n);
      const vringCounters = new Float64Array(counterBlock(VRING_SLOTS));
      made.startVring(vring, { ring: config, features, enabled: true, errFd }, vringCounters, state);
      return made;
    };
    const shared = options.lcores > 1 ? sharedRingState(rx.config) : undefined;
    this.#to = Array.from({ length: options.lcores }, () => port(RX, rx, shared));
    this.#from = port(TX, tx);
  }

  /** Replaces the call eventfd of the transmit or the receive ring. */
  setCall(vring: number, fd: number): void {
    for (const port of vring === TX ? [this.#from] : this.#to) port?.setCall(vring, fd);
  }

  /** A burst from one guest to the other. @returns its packets */
  poll(): number {
    if (!this.#anywhere) this.writer.step();
    const from = this.#from as VhostPort;
    const n = from.receive();
    if (n === 0) return 0;
    this.#to[this.#turn++ % this.#to.length].transmit(this.#list, 0, n);
    from.complete();
    return n;
  }

  // A network device uses at once what it takes.

  take(): void {
    this.poll();
  }

  use(): void {
    this.poll();
  }
}
