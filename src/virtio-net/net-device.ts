/**
 * The network device behind a front end: features, memory and vrings, and when each vring runs.
 * It keeps state on the main thread and tells the datapath; packets never come here.
 * @see vhost-user specification, "Ring states"; VIRTIO 1.2 §5.1
 */
import { closeSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import { GuestMemory, type MemoryRegion, type Place } from '../mem/guest-memory.ts';
import type { WindowPool } from '../mem/window.ts';
import { setNonblocking } from '../sys/eventfd.ts';
import {
  featureMask,
  hasFeature,
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../uapi/virtio.ts';
import { netHeaderSize, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MRG_RXBUF } from '../uapi/virtio-net.ts';
import {
  VIRTQ_MAX_SIZE,
  VRING_AVAIL_ALIGN,
  VRING_DESC_ALIGN,
  VRING_USED_ALIGN,
  vringAvailBytes,
  vringDescBytes,
  vringUsedBytes,
} from '../uapi/virtio-ring.ts';
import type { Datapath } from '../vhost/datapath.ts';
import { PrivateMemoryWatch } from '../vhost/private-memory.ts';
import { NO_FD, type VhostDevice, type VringAddresses } from '../vhost/vhost-device.ts';
import type { VringConfig } from '../virtqueue/split-ring.ts';

/** One receive and one transmit queue. */
const VRINGS = 2;
const RX_VRING = 0;
const MAX_MEM_SLOTS = 509;

/** What becomes of the device, for those who own it. */
export interface NetDeviceEvents {
  /** Both vrings run: frames can pass. */
  onReady(device: NetDevice): void;
  /** A vring that ran has stopped. */
  onStopped(device: NetDevice): void;
  onDestroyed(device: NetDevice): void;
  /** The guest's memory turns out to be of no use: the device should be disconnected. */
  onUnusable?(device: NetDevice, problem: string): void;
}

interface Vring {
  num: number;
  addresses: VringAddresses | undefined;
  base: number;
  /** the kick has come: the front end has started the vring */
  started: boolean;
  enabled: boolean;
  /** the datapath has it */
  running: boolean;
  kickFd: number;
  callFd: number;
  errFd: number;
}

const newVring = (): Vring => ({
  num: 0,
  addresses: undefined,
  base: 0,
  started: false,
  enabled: false,
  running: false,
  kickFd: NO_FD,
  callFd: NO_FD,
  errFd: NO_FD,
});

const privateText = (region: number) => `guest memory region ${region} is private: start QEMU with share=on`;

export class NetDevice implements VhostDevice {
  /** The device's number: its port in the switch. */
  readonly id: number;
  readonly offeredFeatures: bigint;
  readonly maxVrings = VRINGS;
  readonly maxMemSlots = MAX_MEM_SLOTS;
  readonly #datapath: Datapath;
  readonly #events: NetDeviceEvents;
  readonly #memory: GuestMemory;
  readonly #vrings: readonly Vring[] = Array.from({ length: VRINGS }, newVring);
  readonly #memoryWatch = new PrivateMemoryWatch();
  #features = 0n;
  #ready = false;

  /** `mergeable`: offer VIRTIO_NET_F_MRG_RXBUF. The port `id` exists in the datapath. */
  constructor(id: number, mergeable: boolean, pool: WindowPool, datapath: Datapath, events: NetDeviceEvents) {
    this.id = id;
    this.offeredFeatures =
      featureMask(
        VIRTIO_F_VERSION_1,
        VIRTIO_F_ANY_LAYOUT,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_NET_F_GUEST_ANNOUNCE,
      ) | (mergeable ? featureMask(VIRTIO_NET_F_MRG_RXBUF) : 0n);
    this.#datapath = datapath;
    this.#events = events;
    this.#memory = new GuestMemory(pool);
  }

  /** Feature bits that the driver has accepted. */
  get features(): bigint {
    return this.#features;
  }

  /** Bytes of guest memory mapped. */
  get memoryBytes(): number {
    return this.#memory.regions.reduce((sum, { size }) => sum + size, 0);
  }

  async setFeatures(features: bigint, protocolFeatures: boolean): Promise<void> {
    const restart = features !== this.#features;
    if (restart) await this.#stopAll();
    this.#features = features;
    if (!protocolFeatures) for (let i = 0; i < VRINGS; i++) await this.setVringEnable(i, true);
    await this.#startAll('SET_FEATURES');
  }

  async setMemory(regions: readonly MemoryRegion[]): Promise<void> {
    await this.#stopAll();
    this.#memory.clear();
    let taken = 0;
    try {
      for (const region of regions) this.#memory.add(region, taken++, 'SET_MEM_TABLE');
    } catch (error) {
      for (const { fd } of regions.slice(taken)) closeSync(fd);
      this.#memory.clear();
      throw error;
    } finally {
      // Also when it fails: the datapath must forget the old map, whose windows may be another guest's next.
      await this.#shareMemory();
    }
    await this.#startAll('SET_MEM_TABLE');
  }

  async addMemory(region: MemoryRegion): Promise<void> {
    this.#memory.add(region, this.#memory.regions.length, 'ADD_MEM_REG');
    await this.#shareMemory();
    await this.#startAll('ADD_MEM_REG');
  }

  async removeMemory(guestAddr: number, size: number, frontendAddr: number): Promise<void> {
    const removal = this.#memory.detach(guestAddr, size, frontendAddr);
    if (removal === undefined)
      throw new ProtocolError(
        'BAD_MEMORY',
        'REM_MEM_REG',
        `no region at guest address 0x${guestAddr.toString(16)} of ${size} bytes`,
      );
    for (const [i, vring] of this.#vrings.entries())
      if (vring.running && this.#ringPlaces(vring, i, 'REM_MEM_REG', false) === undefined) await this.#stop(i);
    await this.#shareMemory();
    removal();
  }

  async #shareMemory(): Promise<void> {
    await this.#datapath.setMemory(this.id, this.#memory.chunks, this.#memory.windows);
  }

  /** 0 takes the vring away: DPDK sends it for queues that it does not use. */
  async setVringNum(vring: number, num: number): Promise<void> {
    if (num > VIRTQ_MAX_SIZE || (num & (num - 1)) !== 0)
      throw new ProtocolError(
        'BAD_VRING',
        'SET_VRING_NUM',
        `vring ${vring}: ${num} is no power of two up to ${VIRTQ_MAX_SIZE}`,
      );
    await this.#change(vring, 'SET_VRING_NUM', (v) => {
      v.num = num;
    });
  }

  async setVringAddr(vring: number, addresses: VringAddresses): Promise<void> {
    await this.#change(vring, 'SET_VRING_ADDR', (v) => {
      v.addresses = addresses;
    });
  }

  async setVringBase(vring: number, base: number): Promise<void> {
    if (base > 0xffff)
      throw new ProtocolError('BAD_VRING', 'SET_VRING_BASE', `vring ${vring}: index ${base} is above 65535`);
    this.#vrings[vring].base = base;
  }

  async getVringBase(vring: number): Promise<number> {
    const v = this.#vrings[vring];
    v.started = false;
    await this.#stop(vring);
    this.#replaceFd(v, 'kickFd', NO_FD);
    return v.base;
  }

  async setVringKick(vring: number, fd: number): Promise<void> {
    await this.#change(vring, 'SET_VRING_KICK', (v) => {
      this.#replaceFd(v, 'kickFd', fd);
      v.started = true;
    });
  }

  async setVringCall(vring: number, fd: number): Promise<void> {
    if (fd !== NO_FD) setNonblocking(fd);
    const v = this.#vrings[vring];
    if (v.running) await this.#datapath.setCall(this.id, vring, fd);
    this.#replaceFd(v, 'callFd', fd);
  }

  async setVringErr(vring: number, fd: number): Promise<void> {
    if (fd !== NO_FD) setNonblocking(fd);
    await this.#change(vring, 'SET_VRING_ERR', (v) => this.#replaceFd(v, 'errFd', fd));
  }

  async setVringEnable(vring: number, enabled: boolean): Promise<void> {
    const v = this.#vrings[vring];
    v.enabled = enabled;
    if (v.running) await this.#datapath.enableVring(this.id, vring, enabled);
  }

  async reset(): Promise<void> {
    await this.#stopAll();
    for (const vring of this.#vrings) {
      this.#closeFds(vring);
      Object.assign(vring, newVring());
    }
    this.#features = 0n;
    await this.#datapath.setMemory(this.id, [], []);
    this.#memory.clear();
  }

  async destroy(): Promise<void> {
    await this.#stopAll();
    await this.#datapath.removePort(this.id);
    this.#memory.clear();
    for (const vring of this.#vrings) this.#closeFds(vring);
    this.#events.onDestroyed(this);
  }

  /** True if `fd` is the call eventfd of one of its vrings. */
  hasCallFd(fd: number): boolean {
    return this.#vrings.some(({ callFd, errFd }) => callFd === fd || errFd === fd);
  }

  /** Covers what the front end has cut off its memory files. @returns true if it has cut something */
  coverTruncated(): boolean {
    return this.#memory.coverTruncated();
  }

  /** Covers memory whose files have holes without room to fill them. @returns true if there was some */
  coverHoles(): boolean {
    return this.#memory.coverHoles();
  }

  /** Changes a vring while it is stopped, and starts it again if it can run. */
  async #change(index: number, request: string, change: (vring: Vring) => void): Promise<void> {
    await this.#stop(index);
    change(this.#vrings[index]);
    await this.#start(index, request, true);
  }

  /** Starts the vrings that can run now. Those whose memory is gone or yet to come wait for it. */
  async #startAll(request: string): Promise<void> {
    for (let i = 0; i < VRINGS; i++) await this.#start(i, request, false);
  }

  async #stopAll(): Promise<void> {
    for (let i = 0; i < VRINGS; i++) await this.#stop(i);
  }

  /** @param must its addresses are part of the request: ProtocolError if they are no good */
  async #start(index: number, request: string, must: boolean): Promise<void> {
    const v = this.#vrings[index];
    if (v.running || !v.started || v.num === 0 || v.addresses === undefined || this.#memory.regions.length === 0)
      return;
    const places = this.#ringPlaces(v, index, request, must);
    if (places === undefined) return;
    const hidden = this.#memory.findPrivate(v.addresses.descAddr);
    if (hidden >= 0) throw new ProtocolError('PRIVATE_MEMORY', request, privateText(hidden));
    await this.#datapath.startVring(this.id, index, this.#vringConfig(v, places));
    v.running = true;
    if (index === RX_VRING) this.#watchMemory(v.num, v.addresses.descAddr, v.kickFd);
    if (!this.#ready && this.#vrings.every((vring) => vring.running)) {
      this.#ready = true;
      this.#events.onReady(this);
    }
  }

  #watchMemory(num: number, descAddr: number, kickFd: number): void {
    const isBlank = () => this.#memory.isBlank(descAddr, vringDescBytes(num));
    const onPrivate = () => this.#events.onUnusable?.(this, privateText(this.#memory.regionAt(descAddr)));
    this.#memoryWatch.start(kickFd, isBlank, onPrivate);
  }

  #vringConfig(v: Vring, places: { desc: Place; avail: Place; used: Place }): VringConfig {
    return {
      ring: {
        ...places,
        num: v.num,
        eventIdx: hasFeature(this.#features, VIRTIO_RING_F_EVENT_IDX),
        indirect: hasFeature(this.#features, VIRTIO_RING_F_INDIRECT_DESC),
        kickFd: v.kickFd,
        callFd: v.callFd,
        headerLen: netHeaderSize(this.#features),
        mergeable: hasFeature(this.#features, VIRTIO_NET_F_MRG_RXBUF),
      },
      enabled: v.enabled,
      errFd: v.errFd,
    };
  }

  /** Where the vring's parts lie. Where one does not lie in guest memory or is misaligned: ProtocolError if `must`, else undefined. */
  #ringPlaces(v: Vring, index: number, request: string, must: boolean) {
    const { descAddr, availAddr, usedAddr } = v.addresses as VringAddresses;
    const find = (what: string, addr: number, len: number, align: number): Place | undefined => {
      const place = this.#memory.placeOf(addr, len);
      if (place !== undefined && place.off % align === 0) return place;
      if (!must) return undefined;
      const problem = place === undefined ? 'lies outside guest memory' : `is not aligned to ${align} bytes`;
      throw new ProtocolError('BAD_VRING', request, `vring ${index}: its ${what} at 0x${addr.toString(16)} ${problem}`);
    };
    const desc = find('descriptor table', descAddr, vringDescBytes(v.num), VRING_DESC_ALIGN);
    const avail = find('avail ring', availAddr, vringAvailBytes(v.num), VRING_AVAIL_ALIGN);
    const used = find('used ring', usedAddr, vringUsedBytes(v.num), VRING_USED_ALIGN);
    return desc === undefined || avail === undefined || used === undefined ? undefined : { desc, avail, used };
  }

  async #stop(index: number): Promise<void> {
    const v = this.#vrings[index];
    if (!v.running) return;
    if (index === RX_VRING) this.#memoryWatch.stop();
    v.base = (await this.#datapath.stopVring(this.id, index)) ?? v.base;
    v.running = false;
    if (!this.#ready) return;
    this.#ready = false;
    this.#events.onStopped(this);
  }

  #replaceFd(v: Vring, which: 'kickFd' | 'callFd' | 'errFd', fd: number): void {
    if (v[which] !== NO_FD) closeSync(v[which]);
    v[which] = fd;
  }

  #closeFds(v: Vring): void {
    this.#replaceFd(v, 'kickFd', NO_FD);
    this.#replaceFd(v, 'callFd', NO_FD);
    this.#replaceFd(v, 'errFd', NO_FD);
  }
}
