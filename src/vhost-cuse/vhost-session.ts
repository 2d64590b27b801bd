/**
 * What one open of the device has agreed on, and what its ioctls do: checks the numbers, fetches what lies in the opener, and tells the
 * device, which keeps the state machine. Here is only what vhost-net has and the device has not: an owner, and back ends.
 *
 * A ring of vhost-net is at work while it has a back end (NET_SET_BACKEND) and a kick. So the kick is kept here, and the device gets a
 * duplicate of it, which starts the ring, when both are there. The back end itself, a tap, is left alone: packets go to the switch.
 * @see linux/vhost.h; kernel drivers/vhost/vhost.c, net.c
 */
import { closeSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import type { WindowPool } from '../mem/window.ts';
import { duplicateFd } from '../sys/descriptor.ts';
import { isEventfd, isEventfdName, setNonblocking, signal } from '../sys/eventfd.ts';
import { VHOST_BACKEND_F_IOTLB_MSG_V2, VHOST_FILE_UNBIND, VHOST_NET_F_VIRTIO_NET_HDR } from '../uapi/vhost-ioctl.ts';
import { VHOST_VRING_F_LOG } from '../uapi/vhost-user.ts';
import {
  featureMask,
  hasFeature,
  VHOST_F_LOG_ALL,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
} from '../uapi/virtio.ts';
import { VIRTQ_MAX_SIZE, VRING_AVAIL_ALIGN, VRING_USED_ALIGN } from '../uapi/virtio-ring.ts';
import { NO_FD, type VhostDevice } from '../vhost/vhost-device.ts';
import { changeIotlb } from '../vhost-user/device-requests.ts';
import type { VringAddrPayload, VringState } from '../vhost-user/message.ts';
import { checkRegions } from '../vhost-user/regions.ts';
import { closeLater, Opener, processOf } from './opener.ts';
import { logBytes, OpenerLog } from './opener-log.ts';
import { type OpenerRegion, openMemory } from './opener-memory.ts';
import { decodeTranslation, Translations } from './translations.ts';

/** How often the dirty log is carried over while the guest runs. */
const LOG_MS = 100;
/** of a split ring */
const MAX_INDEX = 0xffff;
const HEADER_BIT = featureMask(VHOST_NET_F_VIRTIO_NET_HDR);

/** A vring, and an eventfd or a tap: `fd` is the opener's. */
export interface VringFile {
  readonly index: number;
  readonly fd: number;
}

/** What vhost-net knows of a ring and the device does not. */
interface NetRing {
  /** the opener's eventfd, a descriptor of our own, or NO_FD */
  kick: number;
  hasBackend: boolean;
}

export interface SessionOptions {
  /**
   * Features that a driver has by its tap, of which SET_FEATURES does not tell: what it may leave undone in packets, where their
   * headers are the tap's.
   */
  readonly tapFeatures: bigint;
  /** for the dirty log */
  readonly pool: WindowPool;
  /** Something that is no reason to refuse. */
  onProblem(problem: string): void;
  /** There is a translation to be read. */
  onAsked(): void;
  /** The owner has ended, although another process keeps the device open. */
  onOwnerGone(): void;
}

export class VhostSession {
  readonly device: VhostDevice;
  /** what the device asks to have translated */
  readonly translations: Translations;
  readonly #options: SessionOptions;
  readonly #rings: NetRing[];
  #owner: Opener | undefined;
  /** RING_PACKED was accepted */
  #packed = false;
  /** ACCESS_PLATFORM was accepted */
  #translated = false;
  /** where the guest's memory ends, as the table has it */
  #guestEnd = 0;
  /** where the dirty log lies in the owner's memory, and what carries it there once there is a guest's memory */
  #logBase: number | undefined;
  #log: OpenerLog | undefined;
  /** the owner's eventfd that hears of writes to its log, or NO_FD */
  #logFd = NO_FD;
  #logTimer: NodeJS.Timeout | undefined;

  constructor(device: VhostDevice, options: SessionOptions) {
    this.device = device;
    this.#options = options;
    this.translations = new Translations(() => options.onAsked());
    this.#rings = Array.from({ length: device.maxVrings }, () => ({ kick: NO_FD, hasBackend: false }));
  }

  /** Bit 27 is VHOST_NET_F_VIRTIO_NET_HDR here. */
  get offeredFeatures(): bigint {
    return this.device.offeredFeatures | HEADER_BIT;
  }

  /** Where the tap's packets have headers, those are the driver's own, and say what it has left undone. */
  async setFeatures(features: bigint): Promise<void> {
    checkOffered('SET_FEATURES', features, this.offeredFeatures);
    this.#packed = hasFeature(features, VIRTIO_F_RING_PACKED);
    this.#translated = hasFeature(features, VIRTIO_F_ACCESS_PLATFORM);
    if (this.#translated) this.device.setChannel(this.translations);
    const byTap = hasFeature(features, VHOST_NET_F_VIRTIO_NET_HDR) ? 0n : this.#options.tapFeatures;
    await this.device.setFeatures((features & ~HEADER_BIT) | byTap, false);
    this.#flushLog();
    clearInterval(this.#logTimer);
    if (hasFeature(features, VHOST_F_LOG_ALL)) this.#logTimer = setInterval(() => this.#flushLog(), LOG_MS).unref();
  }

  /** Those of translations, where there may be some. */
  get backendFeatures(): bigint {
    const translates = hasFeature(this.device.offeredFeatures, VIRTIO_F_ACCESS_PLATFORM);
    return translates ? featureMask(VHOST_BACKEND_F_IOTLB_MSG_V2) : 0n;
  }

  setBackendFeatures(features: bigint): void {
    checkOffered('SET_BACKEND_FEATURES', features, this.backendFeatures);
    this.translations.hasSpaces = hasFeature(features, VHOST_BACKEND_F_IOTLB_MSG_V2);
  }

  /** A message of translations that was written to the device. */
  async translate(message: DataView): Promise<void> {
    const translation = decodeTranslation(message);
    if (!this.#translated)
      throw new ProtocolError('BAD_IOTLB', 'IOTLB_MSG', 'the driver has not accepted VIRTIO_F_ACCESS_PLATFORM');
    await changeIotlb(this.device, 'IOTLB_MSG', translation);
  }

  setOwner(thread: number): void {
    if (this.#owner !== undefined)
      throw new ProtocolError('OPENER_HAS_OWNER', 'SET_OWNER', `process ${this.#owner.pid} owns it already`);
    this.#owner = new Opener(processOf('SET_OWNER', thread), () => this.#options.onOwnerGone());
  }

  /** @throws ProtocolError unless the thread is the owner's */
  checkOwner(request: string, thread: number): void {
    const pid = processOf(request, thread);
    if (this.#owner?.pid === pid) return;
    const owner = this.#owner === undefined ? 'nobody does: SET_OWNER comes first' : `process ${this.#owner.pid} does`;
    throw new ProtocolError('OPENER_NOT_OWNER', request, `process ${pid} does not own the device, ${owner}`);
  }

  /** RESET_OWNER, also in the name of an owner that has ended. */
  async reset(): Promise<void> {
    await this.device.reset();
    this.#forget();
  }

  /** The device goes. */
  async destroy(): Promise<void> {
    this.#forget();
    await this.device.destroy();
  }

  #forget(): void {
    this.#owner?.close();
    this.#owner = undefined;
    clearInterval(this.#logTimer);
    this.#log?.close();
    this.#log = undefined;
    this.#logBase = undefined;
    closeIfAny(this.#logFd);
    this.#logFd = NO_FD;
    this.#guestEnd = 0;
    this.#packed = false;
    this.#translated = false;
    this.translations.forget();
    for (const ring of this.#rings) {
      closeIfAny(ring.kick);
      ring.kick = NO_FD;
      ring.hasBackend = false;
    }
  }

  async setMemTable(table: readonly OpenerRegion[]): Promise<void> {
    const { device } = this;
    if (table.length > device.maxMemSlots)
      throw new ProtocolError(
        'OPENER_TOO_MUCH',
        'SET_MEM_TABLE',
        `${table.length} regions, must be at most ${device.maxMemSlots}`,
      );
    checkRegions(
      'SET_MEM_TABLE',
      [],
      table.map((region) => ({ ...region, fileOff: 0 })),
    );
    const guestEnd = table.reduce((end, { guestAddr, size }) => Math.max(end, guestAddr + size), 0);
    if (this.#logBase !== undefined) await this.#coverByLog(this.#logBase, Math.max(guestEnd, this.#guestEnd));
    const regions = openMemory(this.#opener, table, device.maxMemSlots, this.#options.onProblem);
    this.#guestEnd = guestEnd;
    await device.setMemory(regions);
  }

  /** Its size is what guest memory takes: the table may come later, and may grow. */
  async setLogBase(base: number): Promise<void> {
    await this.#coverByLog(base, this.#guestEnd, true);
    this.#logBase = base;
  }

  /** Has the device log to a bitmap that reaches to `guestEnd`, unless it does. @param anew the one there is is another's */
  async #coverByLog(base: number, guestEnd: number, anew = false): Promise<void> {
    const size = logBytes(guestEnd);
    if (!anew && this.#log !== undefined && this.#log.size >= size) return;
    const log = new OpenerLog(this.#options.pool, this.#opener.pid, base, size);
    try {
      await this.device.setLog(log.area);
    } catch (error) {
      log.close();
      throw error;
    }
    this.#flushLog();
    this.#log?.close();
    this.#log = log;
  }

  setLogFd(fd: number): void {
    const logFd = this.#takeEventfd('SET_LOG_FD', fd);
    if (logFd !== NO_FD) setNonblocking(logFd);
    closeIfAny(this.#logFd);
    this.#logFd = logFd;
  }

  /** Has the owner know of all that has been written to its guest's memory. */
  #flushLog(): void {
    try {
      if (this.#log?.flush() === true && this.#logFd !== NO_FD) signal(this.#logFd);
    } catch (error) {
      this.#options.onProblem(`the dirty log cannot be written, and migration fails: ${(error as Error).message}`);
    }
  }

  get #opener(): Opener {
    return this.#owner as Opener;
  }

  async setVringNum({ index, num }: VringState): Promise<void> {
    this.#checkIdle('SET_VRING_NUM', index);
    if (num === 0 || num > VIRTQ_MAX_SIZE || (!this.#packed && (num & (num - 1)) !== 0))
      throw outOfRange('SET_VRING_NUM', index, `${num} descriptors, must be a power of two up to ${VIRTQ_MAX_SIZE}`);
    await this.device.setVringNum(index, num);
  }

  async setVringBase({ index, num }: VringState): Promise<void> {
    this.#checkIdle('SET_VRING_BASE', index);
    if (!this.#packed && num > MAX_INDEX)
      throw outOfRange('SET_VRING_BASE', index, `index ${num}, must be at most ${MAX_INDEX}`);
    await this.device.setVringBase(index, num);
  }

  /** vhost-net tells where a ring stands and lets it run on. */
  async getVringBase({ index }: VringState): Promise<VringState> {
    this.#ring('GET_VRING_BASE', index);
    const num = await this.#stop(index);
    await this.#start('GET_VRING_BASE', index);
    return { index, num };
  }

  async setVringAddr({ index, ...addresses }: VringAddrPayload): Promise<void> {
    this.#ring('SET_VRING_ADDR', index);
    const unknown = addresses.flags & ~VHOST_VRING_F_LOG;
    if (unknown !== 0)
      throw new ProtocolError('PROTOCOL_FEATURES', 'SET_VRING_ADDR', `unknown flags 0x${unknown.toString(16)}`);
    const { availAddr, usedAddr, logAddr } = addresses;
    if (availAddr % VRING_AVAIL_ALIGN !== 0 || usedAddr % VRING_USED_ALIGN !== 0 || logAddr % VRING_USED_ALIGN !== 0)
      throw outOfRange('SET_VRING_ADDR', index, 'its available or used ring is not aligned as VIRTIO has it');
    await this.device.setVringAddr(index, addresses);
  }

  async setVringKick({ index, fd }: VringFile): Promise<void> {
    const ring = this.#ring('SET_VRING_KICK', index);
    const kick = this.#takeEventfd('SET_VRING_KICK', fd);
    closeIfAny(ring.kick);
    ring.kick = kick;
    if (!ring.hasBackend) return;
    if (kick === NO_FD) await this.#stop(index);
    else await this.#start('SET_VRING_KICK', index);
  }

  async setVringCall({ index, fd }: VringFile): Promise<void> {
    this.#ring('SET_VRING_CALL', index);
    await this.device.setVringCall(index, this.#takeEventfd('SET_VRING_CALL', fd));
  }

  async setVringErr({ index, fd }: VringFile): Promise<void> {
    this.#ring('SET_VRING_ERR', index);
    await this.device.setVringErr(index, this.#takeEventfd('SET_VRING_ERR', fd));
  }

  /** A ring begins with a back end, whatever that is, and ends without. */
  async setBackend({ index, fd }: VringFile): Promise<void> {
    const ring = this.#ring('NET_SET_BACKEND', index);
    if (fd === VHOST_FILE_UNBIND) {
      ring.hasBackend = false;
      await this.#stop(index);
      return;
    }
    this.#opener.nameOf('NET_SET_BACKEND', fd); // it must be there
    if (ring.hasBackend) return;
    ring.hasBackend = true;
    try {
      await this.#start('NET_SET_BACKEND', index);
    } catch (error) {
      ring.hasBackend = false;
      await this.#stop(index);
      throw error;
    }
  }

  /** @returns where it stands; the owner's log has all that it wrote */
  async #stop(index: number): Promise<number> {
    const base = await this.device.getVringBase(index, true);
    this.#flushLog();
    return base;
  }

  /** Starts a ring that has all that it takes. */
  async #start(request: string, index: number): Promise<void> {
    const { kick, hasBackend } = this.#ring(request, index);
    if (hasBackend && kick !== NO_FD) await this.device.setVringKick(index, duplicateFd(kick));
  }

  #ring(request: string, index: number): NetRing {
    const ring = this.#rings[index];
    if (ring !== undefined) return ring;
    throw new ProtocolError('PROTOCOL_VRING_INDEX', request, `vring ${index}, must be below ${this.#rings.length}`);
  }

  #checkIdle(request: string, index: number): void {
    if (this.#ring(request, index).hasBackend)
      throw new ProtocolError('VRING_BUSY', request, `vring ${index} runs; NET_SET_BACKEND with -1 stops it`);
  }

  /** A duplicate of the opener's eventfd, or NO_FD for −1. */
  #takeEventfd(request: string, fd: number): number {
    if (fd === VHOST_FILE_UNBIND) return NO_FD;
    if (isEventfdName(this.#opener.nameOf(request, fd))) {
      const taken = this.#opener.takeFd(request, fd);
      if (isEventfd(taken)) return taken;
      closeLater(taken);
    }
    throw new ProtocolError('PROTOCOL_FD_KIND', request, `descriptor ${fd} is not an eventfd`);
  }
}

/** Fails if `features` has a bit that `offered` lacks. */
function checkOffered(request: string, features: bigint, offered: bigint): void {
  const extra = features & ~offered;
  if (extra === 0n) return;
  const bits = Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => hasFeature(extra, bit));
  throw new ProtocolError('PROTOCOL_FEATURES', request, `feature bits that were not offered: ${bits.join(', ')}`);
}

const outOfRange = (request: string, index: number, problem: string) =>
  new ProtocolError('PROTOCOL_VALUE', request, `vring ${index}: ${problem}`);

function closeIfAny(fd: number): void {
  if (fd !== NO_FD) closeSync(fd);
}
