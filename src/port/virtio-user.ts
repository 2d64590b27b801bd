/**
 * virtio-user: a guest's network card in this process. It has memory of its own, connects to a vhost-user back end as QEMU
 * does, and sends and receives frames. For embedded guests, tests and benchmarks; works on any thread with an event loop.
 * @see VIRTIO 1.2 §5.1; QEMU docs/interop/vhost-user.rst
 */
import { closeSync } from 'node:fs';
import { SwitchError } from '../errors.ts';
import {
  VHOST_USER_MAX_REGIONS,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
} from '../uapi/vhost-user.ts';
import {
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
} from '../uapi/virtio.ts';
import { netHeaderSize, VIRTIO_NET_F_MRG_RXBUF } from '../uapi/virtio-net.ts';
import type { SharedArea } from '../vhost/vhost-device.ts';
import { FrontEnd } from '../vhost-user/front-end.ts';
import { GuestRam } from './guest-ram.ts';
import { type DrivenRing, NetPair, type PairOptions, ringLayout } from './net-pair.ts';
import type { ChainLayout, NetHeader } from './net-queue.ts';
import { type Agreed, negotiate, startVring, type VirtioUserOptions, wantedBy } from './virtio-user-options.ts';

export { DEFAULT_FEATURES, type VirtioUserOptions } from './virtio-user-options.ts';

const JOINED: ChainLayout = { pieces: 'one', indirect: false };
const DEFAULT_GUEST_ADDR = 0x4000_0000;
const MEMORY_UNIT = 2 ** 21;

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;
const macBytesOf = (mac: string) => Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));

/** Bytes of guest memory that the rings and buffers of `pairs` pairs need. */
function memoryNeeded(pairs: number, options: PairOptions): number {
  const { ringSize, packed = false, headerLen, maxFrame, bufferBytes, txLayout, rxLayout } = options;
  const ringBytes = alignUp(ringLayout(packed, ringSize).bytes, 4096) + 4096;
  const queues: [number, ChainLayout][] = [
    [headerLen + maxFrame, txLayout],
    [bufferBytes, rxLayout],
  ];
  const buffers = queues.map(([bytes, { pieces }]) => {
    const n = pieces === 'one' ? 1 : pieces === 'header' ? 2 : Math.ceil(bytes / pieces);
    return ringSize * (alignUp(bytes + 32 * n, 64) + 128);
  });
  return alignUp(pairs * (2 * ringBytes + buffers[0] + buffers[1]), MEMORY_UNIT);
}

/** A guest's network card, connected to a back end. */
export class VirtioUser {
  /** What it was made with. */
  readonly options: VirtioUserOptions;
  /** Its address, as text. */
  readonly mac: string;
  /** The six bytes of `mac`. */
  readonly macBytes: Uint8Array;
  /** The virtio features in use, bit 30 included. */
  readonly features: bigint;
  /** The protocol features in use. */
  readonly protocolFeatures: bigint;
  /** Bytes of the packet header, 10 or 12. */
  readonly headerLen: 10 | 12;
  /** Guest memory; owned by the card. */
  readonly ram: GuestRam;
  readonly #pairs: NetPair[] = [];
  readonly #pairOptions: PairOptions;
  /** by pair */
  readonly #enabled: boolean[] = [];
  #frontEnd: FrontEnd;
  /** this connection has the memory in slots, which outlive a restart of the rings */
  #memoryAdded = false;
  /** what records of inflight buffers there are, for all vrings; the fd is the card's, and outlives the back end */
  #inflight: SharedArea | undefined;
  #running = false;
  #closed = false;

  /** Connects, negotiates, shares the memory and starts all rings. Throws SysError, ProtocolError. */
  static async connect(options: VirtioUserOptions): Promise<VirtioUser> {
    const frontEnd = await FrontEnd.connect(options.path, { deadlineMs: options.deadlineMs ?? 0 });
    let card: VirtioUser | undefined;
    try {
      const agreed = await negotiate(frontEnd, wantedBy(options));
      card = new VirtioUser(frontEnd, options, agreed);
      for (let n = 0; n < (options.pairs ?? 1); n++) card.#addPair();
      await card.#start();
      return card;
    } catch (error) {
      frontEnd.close();
      await card?.close();
      throw error;
    }
  }

  private constructor(frontEnd: FrontEnd, options: VirtioUserOptions, agreed: Agreed) {
    this.#frontEnd = frontEnd;
    this.options = options;
    this.mac = options.mac ?? '52:54:00:00:00:01';
    this.macBytes = macBytesOf(this.mac);
    this.features = agreed.features;
    this.protocolFeatures = agreed.protocolFeatures;
    this.headerLen = netHeaderSize(this.features);
    const { ringSize = 256, maxFrame = 1522, bufferBytes = 2048, txLayout = JOINED, rxLayout = JOINED } = options;
    this.#pairOptions = {
      ringSize,
      packed: hasFeature(this.features, VIRTIO_F_RING_PACKED),
      inOrder: hasFeature(this.features, VIRTIO_F_IN_ORDER),
      eventIdx: hasFeature(this.features, VIRTIO_RING_F_EVENT_IDX),
      mergeable: hasFeature(this.features, VIRTIO_NET_F_MRG_RXBUF),
      headerLen: this.headerLen,
      ...{ maxFrame, bufferBytes, txLayout, rxLayout },
    };
    const size = memoryNeeded(options.pairs ?? 1, this.#pairOptions);
    this.ram = new GuestRam(options.memory ?? [{ guestAddr: DEFAULT_GUEST_ADDR, size }]);
    this.#watchConnection();
  }

  #addPair(): void {
    this.#pairs.push(new NetPair(this.ram, this.#pairOptions));
    this.#enabled.push(true);
  }

  #watchConnection(): void {
    const frontEnd = this.#frontEnd;
    frontEnd.onClose.then(() => {
      if (frontEnd !== this.#frontEnd) return;
      this.#running = false;
      for (const pair of this.pairs) pair.disconnected();
    });
  }

  /** The connection, for requests that the card does not make itself. */
  get frontEnd(): FrontEnd {
    return this.#frontEnd;
  }

  /** Its queue pairs. */
  get pairs(): readonly NetPair[] {
    return this.#pairs;
  }

  /** Vring `index` and its eventfds: 2n receives and 2n + 1 transmits for pair n. Anything may be written through it. */
  ring(index: number): DrivenRing {
    return this.pairs[index >> 1].rings[index & 1];
  }

  /** Shares the memory and starts every ring where it goes on, also after a connection is lost: behind what the back end has used. */
  async #start(): Promise<void> {
    await this.#shareMemory();
    await this.#shareInflight();
    // Enabled first, as QEMU does: of a ring that runs disabled, what waits in it would be discarded.
    if (hasFeature(this.features, VHOST_USER_F_PROTOCOL_FEATURES)) {
      for (const [n, enabled] of this.#enabled.entries()) await this.#tellEnabled(n, enabled);
    }
    for (let index = 0; index < 2 * this.pairs.length; index++) await this.#startRing(index);
    // Some back ends acknowledge a request before they act on it; they act before they answer the next one.
    await this.#frontEnd.getFeatures();
    for (const pair of this.pairs) {
      pair.connected();
      // As QEMU does: buffers may have been added while nobody listened to kicks.
      pair.kick(0);
      pair.kick(1);
    }
    this.#running = true;
  }

  async #shareMemory(): Promise<void> {
    const { regions } = this.ram;
    const bySlots = this.options.memSlots ?? regions.length > VHOST_USER_MAX_REGIONS;
    if (!bySlots || !hasFeature(this.protocolFeatures, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
      await this.#frontEnd.setMemTable(regions);
      return;
    }
    if (this.#memoryAdded) return;
    for (const region of regions) await this.#frontEnd.addMemReg(region);
    this.#memoryAdded = true;
  }

  /** The records that the last back end has left, or new ones. */
  async #shareInflight(): Promise<void> {
    if (!hasFeature(this.protocolFeatures, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) return;
    const vrings = 2 * this.pairs.length;
    const { ringSize } = this.#pairOptions;
    this.#inflight ??= await this.#frontEnd.getInflightFd(vrings, ringSize);
    await this.#frontEnd.setInflightFd(this.#inflight, vrings, ringSize);
  }

  /** What was inflight is so no more: the driver has begun anew. */
  #dropInflight(): void {
    if (this.#inflight !== undefined) closeSync(this.#inflight.fd);
    this.#inflight = undefined;
  }

  async #startRing(index: number): Promise<void> {
    const { driver, addr, kickFd, callFd } = this.ring(index);
    const { place, size, vringBase: base } = driver;
    const descAddr = this.ram.frontendAddrOf(addr);
    await startVring(this.#frontEnd, index, { place, size, base, descAddr, kickFd, callFd });
  }

  /** Queues one frame on a pair. @returns false if the ring is full; then what is queued has been flushed. */
  send(frame: Uint8Array, header?: Partial<NetHeader>, pair = 0): boolean {
    return this.pairs[pair].send(frame, header);
  }

  /** Publishes what is queued and kicks the back end if it asks for that. */
  flush(pair = 0): void {
    this.pairs[pair].flush();
  }

  /** The next received frame, copied out, or undefined. Throws SwitchError (BAD_DEVICE) for a used ring that breaks the rules. */
  receive(pair = 0): Uint8Array | undefined {
    return this.pairs[pair].receive();
  }

  /** The packet header of the frame that `receive` or `waitFrame` returned last. */
  headerOf(pair = 0): NetHeader {
    return this.pairs[pair].rx.header;
  }

  /** The next received frame, or undefined if none comes within `ms`; sleeps until called. Throws SwitchError (DISCONNECTED). */
  waitFrame(ms: number, pair = 0): Promise<Uint8Array | undefined> {
    return this.pairs[pair].waitFrame(ms);
  }

  /** Flushes, and waits up to `ms` until the back end has taken some frame. @returns how many buffers came back. */
  waitSent(ms: number, pair = 0): Promise<number> {
    return this.pairs[pair].waitSent(ms);
  }

  /**
   * Enables a pair, or disables it as a driver does that uses fewer queues: the back end then sends it nothing, and throws away what it
   * is sent. Holds across `restart` and `reconnect`. Throws SwitchError (ALWAYS_ENABLED).
   */
  async enablePair(n: number, on: boolean): Promise<void> {
    if (!hasFeature(this.features, VHOST_USER_F_PROTOCOL_FEATURES)) {
      if (on) return;
      throw new SwitchError(
        'ALWAYS_ENABLED',
        'rings can be disabled only where bit 30, PROTOCOL_FEATURES, is negotiated',
      );
    }
    await this.#tellEnabled(n, on);
    this.#enabled[n] = on;
  }

  async #tellEnabled(n: number, on: boolean): Promise<void> {
    await this.#frontEnd.setVringEnable(2 * n, on);
    await this.#frontEnd.setVringEnable(2 * n + 1, on);
  }

  /** Stops all rings as QEMU does when a guest halts. @returns where each stood, as GET_VRING_BASE answers. */
  async stop(): Promise<number[]> {
    const bases: number[] = [];
    for (const index of this.pairs.flatMap((_, n) => [2 * n, 2 * n + 1])) {
      if (hasFeature(this.features, VHOST_USER_F_PROTOCOL_FEATURES)) await this.#frontEnd.setVringEnable(index, false);
      bases.push(await this.#frontEnd.getVringBase(index));
    }
    this.#running = false;
    return bases;
  }

  /**
   * Starts the rings again after `stop`: where they stood, or empty as after a reboot or a reload of the driver (`reset`;
   * frames on the way are lost).
   */
  async restart({ reset = false } = {}): Promise<void> {
    if (this.#running) await this.stop();
    if (reset) this.reset();
    await this.#start();
  }

  /** Empties all rings, which are stopped or have lost their back end, as a driver does that is loaded again; frames on the way are lost. */
  reset(): void {
    for (const pair of this.pairs) pair.reset();
    this.#dropInflight();
  }

  /** Connects again after the back end has gone, and goes on with the same features. Throws SwitchError (FEATURES_LOST). */
  async reconnect(deadlineMs = 0): Promise<void> {
    this.#frontEnd.close();
    const frontEnd = await FrontEnd.connect(this.options.path, { deadlineMs });
    this.#frontEnd = frontEnd;
    this.#memoryAdded = false;
    this.#watchConnection();
    const { features, protocolFeatures } = this;
    const agreed = await negotiate(frontEnd, { ...wantedBy(this.options), features, protocolFeatures });
    if (agreed.features !== features)
      throw new SwitchError('FEATURES_LOST', 'the back end no longer offers what it did');
    await this.#start();
  }

  /** True until the connection is lost or closed. */
  get connected(): boolean {
    return !this.#frontEnd.closed;
  }

  /** Disconnects, without stopping the rings first, and frees everything. Views of its memory read zeros afterwards. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#frontEnd.close();
    this.#dropInflight();
    for (const pair of this.pairs) await pair.close();
    this.ram.close();
  }
}
