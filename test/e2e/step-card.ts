/** A guest's card each of whose steps with its back end is the test's to take; and one that can be moved to another back end. */
import { closeSync } from 'node:fs';
import { GuestRam, type RamRegion } from '../../src/port/guest-ram.ts';
import { NetPair, type PairOptions } from '../../src/port/net-pair.ts';
import type { ChainLayout, NetHeader } from '../../src/port/net-queue.ts';
import { DEFAULT_FEATURES } from '../../src/port/virtio-user.ts';
import { type Agreed, negotiate } from '../../src/port/virtio-user-options.ts';
import { addressOf } from '../../src/sys/libc.ts';
import { createMemfd, mapShared } from '../../src/sys/memory.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../../src/uapi/vhost-user.ts';
import {
  featureMask,
  hasFeature,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
} from '../../src/uapi/virtio.ts';
import { netHeaderSize, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { type MemoryRegion, NO_FD } from '../../src/vhost/vhost-device.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';

const MIB = 2 ** 20;
const JOINED: ChainLayout = { pieces: 'one', indirect: false };
export const BASIC_PROTOCOL = [
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
] as const;

export interface StepCardOptions {
  readonly path: string;
  readonly mac: string;
  /** as VirtioUserOptions has them */
  readonly features?: bigint;
  readonly pairs?: number;
  readonly ringSize?: number;
  readonly packed?: boolean;
  readonly maxFrame?: number;
  readonly bufferBytes?: number;
  readonly txLayout?: ChainLayout;
  readonly rxLayout?: ChainLayout;
  readonly memory?: readonly RamRegion[];
  /** protocol features wanted, by number. Default BASIC_PROTOCOL */
  readonly protocol?: readonly number[];
  /** What the back end is told of the memory. Default: the regions as they are. */
  readonly table?: (ram: GuestRam) => readonly MemoryRegion[];
  /** What it is told of a ring at this guest address. Default: the front end's address. */
  readonly ringAddr?: (ram: GuestRam, guestAddr: number) => number;
}

/** Cards that a failed test leaves behind keep its process alive: close them all in the end. */
const cards = new Set<StepCard>();
export async function closeStepCards(): Promise<void> {
  for (const card of cards) await card.close();
}

export class StepCard {
  readonly options: StepCardOptions;
  readonly mac: string;
  readonly macBytes: Uint8Array;
  readonly ram: GuestRam;
  readonly pairs: NetPair[] = [];
  features = 0n;
  protocolFeatures = 0n;
  /** what the back end has: memory files of their own after `moveTo` */
  regions: readonly MemoryRegion[];
  #frontEnd: FrontEnd;
  #moved = false;
  #closed = false;

  /** Connects and negotiates: nothing else. */
  static async connect(options: StepCardOptions): Promise<StepCard> {
    const frontEnd = await FrontEnd.connect(options.path, { deadlineMs: 1000 });
    return new StepCard(frontEnd, options, await negotiate(frontEnd, wanted(options)));
  }

  /** The same, and starts all rings. */
  static async started(options: StepCardOptions): Promise<StepCard> {
    const card = await StepCard.connect(options);
    await card.start();
    return card;
  }

  private constructor(frontEnd: FrontEnd, options: StepCardOptions, agreed: Agreed) {
    this.#frontEnd = frontEnd;
    this.options = options;
    this.mac = options.mac;
    this.macBytes = Uint8Array.from(options.mac.split(':'), (byte) => Number.parseInt(byte, 16));
    this.#agree(agreed);
    this.ram = new GuestRam(options.memory ?? [{ guestAddr: 2 ** 30, size: 4 * MIB }]);
    this.regions = options.table?.(this.ram) ?? this.ram.regions;
    for (let n = 0; n < (options.pairs ?? 1); n++) this.pairs.push(new NetPair(this.ram, this.#pairOptions()));
    cards.add(this);
  }

  #agree({ features, protocolFeatures }: Agreed): void {
    this.features = features;
    this.protocolFeatures = protocolFeatures;
  }

  #pairOptions(): PairOptions {
    const { ringSize = 256, maxFrame = 1522, bufferBytes = 2048, txLayout = JOINED, rxLayout = JOINED } = this.options;
    return {
      packed: hasFeature(this.features, VIRTIO_F_RING_PACKED),
      inOrder: hasFeature(this.features, VIRTIO_F_IN_ORDER),
      eventIdx: hasFeature(this.features, VIRTIO_RING_F_EVENT_IDX),
      headerLen: netHeaderSize(this.features),
      mergeable: hasFeature(this.features, VIRTIO_NET_F_MRG_RXBUF),
      ...{ ringSize, maxFrame, bufferBytes, txLayout, rxLayout },
    };
  }

  get frontEnd(): FrontEnd {
    return this.#frontEnd;
  }

  get vrings(): number[] {
    return this.pairs.flatMap((_, n) => [2 * n, 2 * n + 1]);
  }

  ring(index: number) {
    return this.pairs[index >> 1].rings[index & 1];
  }

  /** Addresses of a ring as SET_VRING_ADDR has them. */
  addresses(index: number, flags = 0) {
    const { driver, addr } = this.ring(index);
    const { descOff, availOff, usedOff } = driver.place;
    const at = this.options.ringAddr?.(this.ram, addr) ?? this.ram.frontendAddrOf(addr);
    const logAddr = flags === 0 ? 0 : addr + usedOff - descOff;
    return { flags, descAddr: at, availAddr: at + availOff - descOff, usedAddr: at + usedOff - descOff, logAddr };
  }

  /** `base`: by default what the driver says, which looks at the ring. */
  async startRing(index: number, { kick = true, call = true, base = -1 } = {}): Promise<void> {
    const { driver, kickFd, callFd } = this.ring(index);
    await this.#frontEnd.setVringNum(index, driver.size);
    await this.#frontEnd.setVringBase(index, base < 0 ? driver.vringBase : base);
    await this.#frontEnd.setVringAddr(index, this.addresses(index));
    await this.#frontEnd.setVringCall(index, call ? callFd : NO_FD);
    await this.#frontEnd.setVringKick(index, kick ? kickFd : NO_FD);
  }

  /** Shares memory and starts all rings, as VirtioUser does. */
  async start(fds: { kick?: boolean; call?: boolean } = {}): Promise<void> {
    await this.#frontEnd.setMemTable(this.regions);
    await this.enable();
    for (const index of this.vrings) await this.startRing(index, fds);
    await this.#frontEnd.getFeatures();
    this.awake();
  }

  async enable(on = true): Promise<void> {
    for (const index of this.vrings) await this.#frontEnd.setVringEnable(index, on);
  }

  /** The guest runs: it kicks, since buffers may have been added before. */
  awake(): void {
    for (const pair of this.pairs) {
      pair.connected();
      pair.kick(0);
      pair.kick(1);
    }
  }

  /** Stops all rings. @returns where each stood */
  async stop(): Promise<number[]> {
    const bases: number[] = [];
    for (const index of this.vrings) bases.push(await this.#frontEnd.getVringBase(index));
    return bases;
  }

  /**
   * Leaves the back end for the one at `path`, with `memories` (one a region) in place of what was in its own: the guest's driver goes on
   * in those. Negotiates; the rest is the caller's.
   */
  async moveTo(path: string, memories: readonly Uint8Array[]): Promise<void> {
    this.#frontEnd.close();
    const moved = this.ram.regions.map(({ size }) => createMemfd('moved', size));
    const window = addressOf(this.ram.views.u8.buffer);
    for (const [i, { guestAddr, size }] of this.ram.regions.entries()) {
      const off = this.ram.offsetOf(guestAddr) as number;
      mapShared(window + BigInt(off), size, moved[i], 0);
      if (memories.length > 0) this.ram.views.u8.set(memories[i], off);
    }
    this.#closeMoved();
    this.#moved = true;
    this.regions = this.ram.regions.map((region, i) => ({ ...region, fd: moved[i], fileOff: 0 }));
    this.#frontEnd = await FrontEnd.connect(path, { deadlineMs: 1000 });
    this.#agree(await negotiate(this.#frontEnd, wanted(this.options)));
  }

  #closeMoved(): void {
    if (this.#moved) for (const { fd } of this.regions) closeSync(fd);
    this.#moved = false;
  }

  /** A copy of all memory, one a region. */
  snapshot(): Uint8Array[] {
    return this.ram.regions.map(({ guestAddr, size }) => {
      const off = this.ram.offsetOf(guestAddr) as number;
      return this.ram.views.u8.slice(off, off + size);
    });
  }

  send(frame: Uint8Array, header?: Partial<NetHeader>, pair = 0): boolean {
    return this.pairs[pair].send(frame, header);
  }

  flush(pair = 0): void {
    this.pairs[pair].flush();
  }

  receive(pair = 0): Uint8Array | undefined {
    return this.pairs[pair].receive();
  }

  waitFrame(ms: number, pair = 0): Promise<Uint8Array | undefined> {
    return this.pairs[pair].waitFrame(ms);
  }

  waitSent(ms: number, pair = 0): Promise<number> {
    return this.pairs[pair].waitSent(ms);
  }

  /** Disconnects and frees everything. Any number of times. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    cards.delete(this);
    this.#frontEnd.close();
    for (const pair of this.pairs) await pair.close();
    this.#closeMoved();
    this.ram.close();
  }
}

function wanted({
  features = DEFAULT_FEATURES,
  packed = false,
  pairs = 1,
  protocol = BASIC_PROTOCOL,
}: StepCardOptions) {
  const more = [...(packed ? [VIRTIO_F_RING_PACKED] : []), ...(pairs > 1 ? [VIRTIO_NET_F_MQ] : [])];
  const protocolFeatures = featureMask(...protocol);
  return { features: features | featureMask(...more), protocolFeatures, negotiateProtocol: true, pairs };
}
