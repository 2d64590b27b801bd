/**
 * A device of any type behind a front end: features, memory and vrings, and everything else that is agreed on. It keeps state on the
 * main thread and tells the datapath; buffers never come here. What its type adds is in its DeviceModel.
 * @see vhost-user specification; VIRTIO 1.2 §2
 */
import { ProtocolError } from '../errors.ts';
import type { MappedFile, MemoryRegion } from '../mem/guest-memory.ts';
import type { WindowPool } from '../mem/window.ts';
import { hasFeature, VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM } from '../uapi/virtio.ts';
import type { Datapath, DeviceMemory } from './datapath.ts';
import type { DeviceModel, Postcopy } from './device-model.ts';
import { DeviceSpace } from './device-space.ts';
import { DeviceState } from './device-state.ts';
import { makeInflightArea } from './inflight-area.ts';
import { MemoryRequests } from './memory-requests.ts';
import { PostcopyPhases } from './postcopy-phases.ts';
import { protocolFeaturesOf } from './protocol-features.ts';
import {
  type FrontEndChannel,
  IOTLB_READ,
  IOTLB_WRITE,
  type IotlbEntry,
  type SharedArea,
  type StateDirection,
  type VhostDevice,
  type VringAddresses,
} from './vhost-device.ts';
import { VringRequests } from './vring-requests.ts';
import { VringRunner } from './vring-runner.ts';

const MAX_MEM_SLOTS = 509;
const NO_MEMORY: DeviceMemory = { chunks: [], windows: [], iotlb: false, log: undefined };

/** What becomes of the device, for those who own it. */
export interface VirtioDeviceEvents {
  /** The vrings that the model names run: the device is of use. */
  onReady(device: VirtioDevice): void;
  /** One of them has stopped. */
  onStopped(device: VirtioDevice): void;
  onDestroyed(device: VirtioDevice): void;
  /** The guest's memory turns out to be of no use: the device should be disconnected. */
  onUnusable?(device: VirtioDevice, problem: string): void;
}

export interface VirtioDeviceOptions {
  /** the device's number: its port in the datapath, which exists there */
  readonly id: number;
  readonly model: DeviceModel;
  readonly pool: WindowPool;
  readonly datapath: Datapath;
  readonly events: VirtioDeviceEvents;
  /** Opens a userfaultfd, or throws SysError; without it postcopy migration is not on offer. */
  readonly createPostcopy?: (() => Postcopy) | undefined;
}

const notOfThisType = (request: string) =>
  new ProtocolError('PROTOCOL_NOT_SUPPORTED', request, 'devices of this type do not have it');

export class VirtioDevice implements VhostDevice {
  readonly id: number;
  readonly offeredFeatures: bigint;
  readonly maxVrings: number;
  readonly queueNum: number;
  /** The protocol features that the device can serve; the transport may offer fewer. */
  readonly protocolFeatures: bigint;
  readonly maxMemSlots = MAX_MEM_SLOTS;
  readonly #model: DeviceModel;
  readonly #datapath: Datapath;
  readonly #events: VirtioDeviceEvents;
  readonly #space: DeviceSpace;
  readonly #runner: VringRunner;
  readonly #postcopy: PostcopyPhases;
  readonly #memory: MemoryRequests;
  readonly #requests: VringRequests;
  readonly #state: DeviceState;
  #status = 0;

  constructor({ id, model, pool, datapath, events, createPostcopy }: VirtioDeviceOptions) {
    this.id = id;
    this.offeredFeatures = model.offeredFeatures;
    this.maxVrings = model.maxVrings;
    this.queueNum = model.queueNum;
    this.#model = model;
    this.#datapath = datapath;
    this.#events = events;
    this.#space = new DeviceSpace(pool);
    this.#runner = new VringRunner(id, model.maxVrings, model.readyVrings, this.#space, datapath, {
      onReady: () => events.onReady(this),
      onStopped: () => events.onStopped(this),
      onUnusable: (problem) => events.onUnusable?.(this, problem),
    });
    this.#requests = new VringRequests(id, this.#runner, datapath);
    this.#state = new DeviceState(model);
    this.#postcopy = new PostcopyPhases(this.#space.memory, this.#runner, createPostcopy);
    this.#memory = new MemoryRequests(id, this.#space, this.#runner, this.#postcopy, datapath);
    this.protocolFeatures = protocolFeaturesOf(model, createPostcopy !== undefined);
  }

  /** Feature bits that the driver has accepted. */
  get features(): bigint {
    return this.#runner.features;
  }

  /** Bytes of guest memory mapped. */
  get memoryBytes(): number {
    return this.#space.memory.regions.reduce((sum, { size }) => sum + size, 0);
  }

  /** The files of the guest's memory as they are now; their fds stay the device's. */
  get memoryFiles(): MappedFile[] {
    return this.#space.memory.files;
  }

  /** LOG_ALL comes and goes while the rings run: it is not the driver's. Everything else starts them anew. */
  async setFeatures(features: bigint, protocolFeatures: boolean): Promise<void> {
    const changed = features ^ this.features;
    const logging = hasFeature(features, VHOST_F_LOG_ALL);
    const translated = hasFeature(features, VIRTIO_F_ACCESS_PLATFORM);
    this.#space.checkLog('SET_FEATURES', { logging });
    if ((changed & ~(1n << BigInt(VHOST_F_LOG_ALL))) !== 0n) await this.#runner.stopAll();
    this.#runner.setFeatures(features);
    const retranslate = translated !== this.#space.translated;
    const relog = logging !== this.#space.logging && this.#space.log !== undefined;
    if (retranslate) this.#space.iotlb.clear();
    this.#space.translated = translated;
    this.#space.logging = logging;
    if (retranslate || relog) await this.#memory.share();
    if (!protocolFeatures) for (const { index } of this.#runner.vrings) await this.setVringEnable(index, true);
    await this.#runner.startAll('SET_FEATURES');
  }

  setAddressSpace(space: 'frontend' | 'guest'): void {
    this.#space.ringSpace = space;
  }

  setMemory(regions: readonly MemoryRegion[]): Promise<void> {
    return this.#memory.set(regions);
  }

  addMemory(region: MemoryRegion): Promise<void> {
    return this.#memory.add(region);
  }

  removeMemory(guestAddr: number, size: number, frontendAddr: number): Promise<void> {
    return this.#memory.remove(guestAddr, size, frontendAddr);
  }

  setVringNum(vring: number, num: number): Promise<void> {
    return this.#requests.setNum(vring, num);
  }

  setVringAddr(vring: number, addresses: VringAddresses): Promise<void> {
    return this.#requests.setAddr(vring, addresses);
  }

  setVringBase(vring: number, base: number): Promise<void> {
    return this.#requests.setBase(vring, base);
  }

  getVringBase(vring: number, drain: boolean): Promise<number> {
    return this.#requests.getBase(vring, drain);
  }

  setVringKick(vring: number, fd: number): Promise<void> {
    return this.#requests.setKick(vring, fd);
  }

  setVringCall(vring: number, fd: number): Promise<void> {
    return this.#requests.setCall(vring, fd);
  }

  setVringErr(vring: number, fd: number): Promise<void> {
    return this.#requests.setErr(vring, fd);
  }

  setVringEnable(vring: number, enabled: boolean): Promise<void> {
    return this.#requests.setEnable(vring, enabled);
  }

  async setVringEndian(vring: number, bigEndian: boolean): Promise<void> {
    this.#requests.setEndian(vring, bigEndian);
  }

  setInBand(inBand: boolean): void {
    this.#runner.inBand = inBand;
  }

  kickVring(vring: number): Promise<void> {
    return this.#requests.kick(vring);
  }

  setChannel(channel: FrontEndChannel | undefined): void {
    this.#runner.channel = channel;
    if (channel !== undefined) this.#runner.askForRings();
  }

  setLog(area: SharedArea): Promise<void> {
    return this.#memory.setLog(area);
  }

  setLogFd(fd: number): Promise<void> {
    return this.#memory.setLogFd(fd);
  }

  async sendRarp(mac: Uint8Array): Promise<void> {
    if (this.#model.sendRarp === undefined) throw notOfThisType('SEND_RARP');
    await this.#model.sendRarp(mac);
  }

  async setMtu(mtu: number): Promise<void> {
    if (this.#model.setMtu === undefined) throw notOfThisType('NET_SET_MTU');
    this.#model.setMtu(mtu);
  }

  updateIotlb(entry: IotlbEntry): Promise<void> {
    return this.#memory.updateIotlb(entry);
  }

  invalidateIotlb(iova: number, size: number): Promise<void> {
    return this.#memory.invalidateIotlb(iova, size);
  }

  /** The datapath has met an address without a translation, or one that must not be written. It may say so often. */
  onIotlbMiss(_vring: number, iova: number, write: boolean): void {
    this.#runner.askFor(iova, write ? IOTLB_WRITE : IOTLB_READ);
  }

  getConfig(offset: number, size: number): Uint8Array {
    this.#checkConfig('GET_CONFIG', offset, size);
    return this.#model.configSpace().slice(offset, offset + size);
  }

  async setConfig(offset: number, bytes: Uint8Array, migration: boolean): Promise<void> {
    this.#checkConfig('SET_CONFIG', offset, bytes.length);
    if (this.#model.setConfig === undefined)
      throw new ProtocolError('BAD_CONFIG', 'SET_CONFIG', 'the config space is read-only');
    this.#model.setConfig(offset, bytes, migration, this.features);
  }

  #checkConfig(request: string, offset: number, size: number): void {
    const { length } = this.#model.configSpace();
    if (offset + size <= length) return;
    throw new ProtocolError(
      'BAD_CONFIG',
      request,
      `bytes ${offset} to ${offset + size} of a config space of ${length}`,
    );
  }

  async postcopyAdvise(): Promise<number> {
    return this.#postcopy.advise();
  }

  async postcopyListen(): Promise<void> {
    this.#postcopy.listen();
  }

  postcopyAddresses(): readonly bigint[] {
    return this.#space.memory.firstBytes;
  }

  async postcopyReady(): Promise<void> {
    this.#postcopy.ready();
    await this.#runner.startAll('SET_MEM_TABLE');
  }

  async postcopyEnd(): Promise<void> {
    this.#postcopy.end();
    await this.#runner.startAll('POSTCOPY_END');
  }

  getInflight(queues: number, queueSize: number): SharedArea {
    return makeInflightArea(this.#runner.format, queues, queueSize, this.maxVrings);
  }

  setInflight(area: SharedArea, queues: number, queueSize: number): Promise<void> {
    return this.#memory.setInflight(area, queues, queueSize);
  }

  async resetRings(): Promise<void> {
    await this.#runner.stopAll();
    const release = this.#forgetAgreements();
    await this.#memory.share();
    release();
  }

  /** Forgets what has been agreed on beyond memory and eventfds. @returns as MemoryRequests.forget */
  #forgetAgreements(): () => void {
    this.#runner.reset();
    this.#state.reset();
    this.#status = 0;
    return this.#memory.forget();
  }

  /** 0 resets the device (VIRTIO 1.2 §2.1). */
  async setStatus(status: number): Promise<void> {
    if (status > 0xff)
      throw new ProtocolError('PROTOCOL_VALUE', 'SET_STATUS', `${status} is no device status of 8 bits`);
    if (status === 0) await this.resetRings();
    this.#status = status;
  }

  getStatus(): number {
    return this.#status;
  }

  async transferState(direction: StateDirection, phase: number, fd: number): Promise<void> {
    await this.#state.start(direction, phase, fd, this.#runner.isSuspended);
  }

  checkState(): Promise<void> {
    return this.#state.check();
  }

  async reset(): Promise<void> {
    this.#postcopy.end();
    await this.#runner.stopAll();
    const release = this.#forgetAgreements();
    await this.#datapath.setMemory(this.id, NO_MEMORY);
    release();
    this.#releaseAll();
  }

  frontEndGone(): void {
    this.#postcopy.end();
    this.#state.abort('the front end is gone');
  }

  async destroy(): Promise<void> {
    this.frontEndGone();
    await this.#runner.stopAll();
    const release = this.#forgetAgreements();
    await this.#datapath.removePort(this.id);
    release();
    this.#releaseAll();
    this.#events.onDestroyed(this);
  }

  #releaseAll(): void {
    this.#memory.release();
    for (const vring of this.#runner.vrings) vring.closeEvents();
  }

  /** True if `fd` is an eventfd that the datapath signals. */
  hasCallFd(fd: number): boolean {
    return this.#space.logFd === fd || this.#runner.vrings.some(({ call, err }) => call.fd === fd || err.fd === fd);
  }

  /** Covers what the front end has cut off its files. @returns true if it has cut something */
  coverTruncated(): boolean {
    return this.#space.coverTruncated();
  }

  /**
   * Covers memory whose files have holes without room to fill them. @returns true if there was some. Where postcopy fills the holes
   * they are left alone: to try whether there is room would put zeros there.
   */
  coverHoles(): boolean {
    return !this.#runner.incoming && this.#space.coverHoles();
  }
}
