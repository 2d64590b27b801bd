/**
 * virtio-user: a guest's network card in this process. It has memory of its own, connects to a vhost-user back end as QEMU
 * does, and sends and receives frames. For embedded guests, tests and benchmarks; works on any thread with an event loop.
 * @see VIRTIO 1.2 §5.1; QEMU docs/interop/vhost-user.rst
 */
import { SwitchError } from '../errors.ts';
import {
  VHOST_USER_MAX_REGIONS,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../uapi/vhost-user.ts';
import {
  featureMask,
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../uapi/virtio.ts';
import { netHeaderSize, VIRTIO_NET_F_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { FrontEnd } from '../vhost-user/front-end.ts';
import { splitLayout } from '../virtqueue/split-driver.ts';
import { GuestRam, type RamRegion } from './guest-ram.ts';
import { type DrivenRing, NetPair } from './net-pair.ts';
import type { ChainLayout, NetHeader } from './net-queue.ts';

export const DEFAULT_FEATURES = featureMask(
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
);
const DEFAULT_PROTOCOL_FEATURES = featureMask(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
);
const JOINED: ChainLayout = { pieces: 'one', indirect: false };
const DEFAULT_GUEST_ADDR = 0x4000_0000;
const MEMORY_UNIT = 2 ** 21;

export interface VirtioUserOptions {
  /** the back end's socket */
  readonly path: string;
  /** How long to retry while nobody listens, ms. Default 0. */
  readonly deadlineMs?: number;
  /** As text, `52:54:00:00:00:01`. The card does not filter by it, nor put it into frames. */
  readonly mac?: string;
  /** Virtio features wanted; used as far as the back end offers them. Default VERSION_1, MRG_RXBUF, EVENT_IDX, INDIRECT_DESC. */
  readonly features?: bigint;
  /** Protocol features wanted; 0n acknowledges bit 30 with none, undefined wants MQ, REPLY_ACK, CONFIGURE_MEM_SLOTS. */
  readonly protocolFeatures?: bigint;
  /** false: bit 30 is not acknowledged, so that rings are enabled from the start. Default true. */
  readonly negotiateProtocol?: boolean;
  /** Queue pairs. Default 1. */
  readonly pairs?: number;
  /** Descriptors of each ring, a power of two. Default 256. */
  readonly ringSize?: number;
  /** Bytes of the largest frame to be sent. Default 1522. */
  readonly maxFrame?: number;
  /** Bytes of a receive buffer, header included. Default 2048. */
  readonly bufferBytes?: number;
  /** How buffers are cut into descriptors. Default: one descriptor, not indirect. */
  readonly txLayout?: ChainLayout;
  readonly rxLayout?: ChainLayout;
  /** Guest memory; the rings lie in the first region. Default: one region, large enough, at 1 GiB. */
  readonly memory?: readonly RamRegion[];
  /** Hand memory over by ADD_MEM_REG, where negotiated. Default: only if there are more than 8 regions. */
  readonly memSlots?: boolean;
}

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;
const macBytesOf = (mac: string) => Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));

/** Bytes of guest memory that the rings and buffers of the default region need. */
function memoryNeeded(ringSize: number, pairs: number, bytes: number, layouts: readonly ChainLayout[]): number {
  const ringBytes = alignUp(splitLayout(ringSize).bytes, 4096) + 4096;
  const buffers = layouts.map(({ pieces }) => {
    const n = pieces === 'one' ? 1 : pieces === 'header' ? 2 : Math.ceil(bytes / pieces);
    return ringSize * (alignUp(bytes + 32 * n, 64) + 128);
  });
  return alignUp(pairs * (2 * ringBytes + buffers[0] + buffers[1]), MEMORY_UNIT);
}

export class VirtioUser {
  readonly options: VirtioUserOptions;
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
  readonly pairs: readonly NetPair[];
  #frontEnd: FrontEnd;
  /** this connection has the memory in slots, which outlive a restart of the rings */
  #memoryAdded = false;
  #running = false;
  #closed = false;

  /** Connects, negotiates, shares the memory and starts all rings. Throws SysError, ProtocolError. */
  static async connect(options: VirtioUserOptions): Promise<VirtioUser> {
    const frontEnd = await FrontEnd.connect(options.path, { deadlineMs: options.deadlineMs ?? 0 });
    let card: VirtioUser | undefined;
    try {
      const agreed = await negotiate(frontEnd, options);
      card = new VirtioUser(frontEnd, options, agreed);
      await card.#start(card.#ringBases());
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
    const { ringSize = 256, pairs = 1, maxFrame = 1522, bufferBytes = 2048 } = options;
    const { txLayout = JOINED, rxLayout = JOINED } = options;
    const bytes = Math.max(maxFrame + this.headerLen, bufferBytes);
    const size = memoryNeeded(ringSize, pairs, bytes, [txLayout, rxLayout]);
    this.ram = new GuestRam(options.memory ?? [{ guestAddr: DEFAULT_GUEST_ADDR, size }]);
    const eventIdx = hasFeature(this.features, VIRTIO_RING_F_EVENT_IDX);
    const mergeable = hasFeature(this.features, VIRTIO_NET_F_MRG_RXBUF);
    const { headerLen } = this;
    const pairOptions = { ringSize, eventIdx, mergeable, headerLen, maxFrame, bufferBytes, txLayout, rxLayout };
    this.pairs = Array.from({ length: pairs }, () => new NetPair(this.ram, pairOptions));
    this.#watchConnection();
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

  /** Vring `index` and its eventfds: 2n receives and 2n + 1 transmits for pair n. Anything may be written through it. */
  ring(index: number): DrivenRing {
    return this.pairs[index >> 1].rings[index & 1];
  }

  /** Where each ring goes on after a connection is lost: behind what the back end has used. */
  #ringBases(): number[] {
    return this.pairs.flatMap(({ rings }) => rings.map(({ driver }) => driver.sharedUsedIdx));
  }

  /** Shares the memory and starts every ring at its base. */
  async #start(bases: readonly number[]): Promise<void> {
    await this.#shareMemory();
    for (const [index, base] of bases.entries()) await this.#startRing(index, base);
    if (hasFeature(this.features, VHOST_USER_F_PROTOCOL_FEATURES)) {
      for (const index of bases.keys()) await this.#frontEnd.setVringEnable(index, true);
    }
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

  async #startRing(index: number, base: number): Promise<void> {
    const { driver, addr, kickFd, callFd } = this.ring(index);
    const { descOff, availOff, usedOff } = driver.place;
    const descAddr = this.ram.frontendAddrOf(addr);
    await this.#frontEnd.setVringNum(index, driver.size);
    await this.#frontEnd.setVringBase(index, base);
    await this.#frontEnd.setVringAddr(index, {
      flags: 0,
      descAddr,
      availAddr: descAddr + availOff - descOff,
      usedAddr: descAddr + usedOff - descOff,
      logAddr: 0,
    });
    await this.#frontEnd.setVringCall(index, callFd);
    await this.#frontEnd.setVringKick(index, kickFd);
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

  /** Stops all rings as QEMU does when a guest halts. @returns where each stood. */
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
    if (reset) for (const pair of this.pairs) pair.reset();
    await this.#start(this.#ringBases());
  }

  /** Connects again after the back end has gone, and goes on with the same features. Throws SwitchError (FEATURES_LOST). */
  async reconnect(deadlineMs = 0): Promise<void> {
    this.#frontEnd.close();
    const frontEnd = await FrontEnd.connect(this.options.path, { deadlineMs });
    this.#frontEnd = frontEnd;
    this.#memoryAdded = false;
    this.#watchConnection();
    const { features, protocolFeatures } = this;
    const agreed = await negotiate(frontEnd, { ...this.options, features, protocolFeatures });
    if (agreed.features !== features)
      throw new SwitchError('FEATURES_LOST', 'the back end no longer offers what it did');
    await this.#start(this.#ringBases());
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
    for (const pair of this.pairs) await pair.close();
    this.ram.close();
  }
}

interface Agreed {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
}

/** SET_OWNER and both kinds of features. */
async function negotiate(frontEnd: FrontEnd, options: VirtioUserOptions): Promise<Agreed> {
  const offered = await frontEnd.getFeatures();
  const bit30 = featureMask(VHOST_USER_F_PROTOCOL_FEATURES) & offered;
  const withProtocol = bit30 !== 0n && (options.negotiateProtocol ?? true);
  let protocolFeatures = 0n;
  if (withProtocol) {
    protocolFeatures = (await frontEnd.getProtocolFeatures()) & (options.protocolFeatures ?? DEFAULT_PROTOCOL_FEATURES);
    await frontEnd.setProtocolFeatures(protocolFeatures);
    if (hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_MQ)) await checkPairs(frontEnd, options.pairs ?? 1);
  }
  await frontEnd.setOwner();
  const features = ((options.features ?? DEFAULT_FEATURES) & ~bit30 & offered) | (withProtocol ? bit30 : 0n);
  await frontEnd.setFeatures(features);
  return { features, protocolFeatures };
}

async function checkPairs(frontEnd: FrontEnd, pairs: number): Promise<void> {
  const max = await frontEnd.getQueueNum();
  if (pairs > max) throw new SwitchError('TOO_MANY_PAIRS', `the back end has ${max} queue pairs, ${pairs} are wanted`);
}
