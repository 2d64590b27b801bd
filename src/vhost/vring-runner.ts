/**
 * Starts and stops the vrings of a device: each runs while the front end has started it and everything it needs is there.
 * @see QEMU docs/interop/vhost-user.rst "Ring states"
 */
import { ProtocolError } from '../errors.ts';
import type { Place } from '../mem/guest-memory.ts';
import { VHOST_VRING_F_LOG } from '../uapi/vhost-user.ts';
import {
  hasFeature,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../uapi/virtio.ts';
import type { InflightPlace } from '../virtqueue/ring-config.ts';
import type { Datapath, VringConfig } from './datapath.ts';
import type { DeviceSpace } from './device-space.ts';
import { PrivateMemoryWatch } from './private-memory.ts';
import { type FrontEndChannel, IOTLB_READ, IOTLB_WRITE, type VringAddresses } from './vhost-device.ts';
import { type RingFormat, type RingPlaces, type RunningRing, samePlaces, Vring } from './vring.ts';

/** What becomes of the vrings. */
export interface RunnerEvents {
  /** All vrings of `readyVrings` run. */
  onReady(): void;
  /** One of them has stopped. */
  onStopped(): void;
  /** The guest's memory turns out to be of no use. */
  onUnusable(problem: string): void;
}

/** How often rings that wait for a translation ask again: the guest may not have mapped them yet. */
const ASK_MS = 1000;

const privateText = (region: number) => `guest memory region ${region} is private: start QEMU with share=on`;

export class VringRunner {
  readonly vrings: readonly Vring[];
  channel: FrontEndChannel | undefined;
  inBand = false;
  /** Memory must not be touched yet: a migration is still bringing it. */
  held = false;
  /** Memory comes page by page, so that files without pages prove nothing. */
  incoming = false;
  readonly #port: number;
  readonly #datapath: Datapath;
  readonly #space: DeviceSpace;
  readonly #readyVrings: readonly number[];
  readonly #events: RunnerEvents;
  readonly #memoryWatch = new PrivateMemoryWatch();
  #features = 0n;
  /** The driver has spoken, so a ring that does not suit its features is wrong and not early. */
  #negotiated = false;
  #ready = false;
  #askTimer: NodeJS.Timeout | undefined;

  constructor(
    port: number,
    vrings: number,
    readyVrings: readonly number[],
    space: DeviceSpace,
    datapath: Datapath,
    events: RunnerEvents,
  ) {
    this.vrings = Array.from({ length: vrings }, (_, index) => new Vring(index));
    this.#port = port;
    this.#readyVrings = readyVrings;
    this.#space = space;
    this.#datapath = datapath;
    this.#events = events;
  }

  get features(): bigint {
    return this.#features;
  }

  /** For vrings that are stopped, or where nothing changes for them. */
  setFeatures(features: bigint): void {
    this.#features = features;
    this.#negotiated = true;
  }

  get format(): RingFormat {
    return hasFeature(this.#features, VIRTIO_F_RING_PACKED) ? 'packed' : 'split';
  }

  get isNegotiated(): boolean {
    return this.#negotiated;
  }

  get isSuspended(): boolean {
    return this.vrings.every(({ running }) => running === undefined);
  }

  /** Changes a vring while it is stopped, and starts it again if it can run. */
  async change(vring: Vring, request: string, change: (vring: Vring) => void): Promise<void> {
    await this.stop(vring);
    change(vring);
    await this.start(vring, request, true);
  }

  /**
   * Starts the vrings that can run now. Those whose memory is gone or yet to come wait for it.
   * @param must as for `start`
   */
  async startAll(request: string, must = false): Promise<void> {
    for (const vring of this.vrings) await this.start(vring, request, must);
  }

  async stopAll(): Promise<void> {
    for (const vring of this.vrings) await this.stop(vring);
  }

  /** Stops those vrings whose parts do not lie any more where the datapath has them. */
  async stopMoved(): Promise<void> {
    for (const vring of this.vrings) {
      if (vring.running === undefined) continue;
      const places = this.#places(vring, 'stop', false);
      if (places === undefined || !samePlaces(places, vring.running)) await this.stop(vring);
    }
  }

  /** @param must what it lacks is part of the request: ProtocolError if it is no good, and not merely yet to come */
  async start(vring: Vring, request: string, must: boolean): Promise<void> {
    if (vring.running !== undefined || !vring.started || vring.num === 0 || vring.addresses === undefined) return;
    if (this.#space.isEmpty || this.held) return;
    const inflight = this.#suits(vring, request, must && this.#negotiated);
    if (inflight === false) return;
    const places = this.#places(vring, request, must);
    if (places === undefined) return;
    const hidden = this.incoming ? -1 : this.#space.findPrivate(vring.addresses.descAddr);
    if (hidden >= 0) throw new ProtocolError('PRIVATE_MEMORY', request, privateText(hidden));
    if (this.inBand) this.#makeOwnEvents(vring);
    const running = { ...places, usedLogAddr: this.#usedLogAddr(vring, places) };
    await this.#datapath.startVring(this.#port, vring.index, this.#config(vring, running, inflight));
    vring.running = running;
    if (vring.index === this.#readyVrings[0]) this.#watchMemory(vring);
    if (!this.#ready && this.#readyVrings.every((index) => this.vrings[index].running !== undefined)) {
      this.#ready = true;
      this.#events.onReady();
    }
  }

  /** @param drain as for Datapath.stopVring */
  async stop(vring: Vring, drain = true): Promise<void> {
    if (vring.running === undefined) return;
    if (vring.index === this.#readyVrings[0]) this.#memoryWatch.stop();
    vring.base = (await this.#datapath.stopVring(this.#port, vring.index, drain)) ?? vring.base;
    vring.stoppedAt = vring.base;
    vring.running = undefined;
    vring.call.flush();
    vring.err.flush();
    if (!this.#ready || !this.#readyVrings.includes(vring.index)) return;
    this.#ready = false;
    this.#events.onStopped();
  }

  /** Forgets features and everything that was told of the vrings, which are stopped; their eventfds stay. */
  reset(): void {
    this.stopAsking();
    for (const vring of this.vrings) vring.reset();
    this.#features = 0n;
    this.#negotiated = false;
  }

  /** Asks the front end for a translation, unless it is there or has just been asked for. */
  askFor(iova: number, permissions: number): void {
    const { channel } = this;
    const { iotlb, translated } = this.#space;
    if (channel === undefined || !translated || iotlb.missing(iova, 1, permissions) === undefined) return;
    if (iotlb.ask(iova, permissions, performance.now())) channel.iotlbMiss(iova, permissions);
  }

  /** Asks for the translations that started vrings wait for, now and until they are there. */
  askForRings(): void {
    this.stopAsking();
    for (const vring of this.vrings)
      if (vring.running === undefined && vring.started && vring.num > 0 && vring.addresses !== undefined)
        this.#places(vring, 'ask', false);
  }

  stopAsking(): void {
    clearTimeout(this.#askTimer);
    this.#askTimer = undefined;
  }

  #askForRing(iova: number, permissions: number): void {
    this.askFor(iova, permissions);
    this.#askTimer ??= setTimeout(() => this.askForRings(), ASK_MS).unref();
  }

  /** Its inflight records, undefined if there are none; false if its numbers do not suit. ProtocolError if they `must`. */
  #suits(vring: Vring, request: string, must: boolean): InflightPlace | undefined | false {
    const { format } = this;
    const inflight = this.#space.inflight?.placeOf(vring.index, format);
    const problem =
      vring.problem(format) ??
      (inflight !== undefined && vring.num > inflight.num
        ? `it has ${vring.num} descriptors, its inflight records are for ${inflight.num}`
        : undefined);
    if (problem === undefined) return inflight;
    if (!must) return false;
    throw new ProtocolError('BAD_VRING', request, `vring ${vring.index}: ${problem}`);
  }

  /** Where the vring's parts lie; asks for what has no translation. Where one is no good: ProtocolError if `must`, else undefined. */
  #places(vring: Vring, request: string, must: boolean): RingPlaces | undefined {
    const found: { -readonly [name in keyof RingPlaces]?: Place } = {};
    for (const part of vring.parts(this.format)) {
      const located = this.#space.locate(part);
      if (located.place !== undefined) found[part.name] = located.place;
      else if (located.missing !== undefined)
        this.#askForRing(located.missing, part.write ? IOTLB_READ | IOTLB_WRITE : IOTLB_READ);
      else if (must) throw new ProtocolError('BAD_VRING', request, `vring ${vring.index}: ${located.problem}`);
    }
    const { desc, avail, used } = found;
    return desc === undefined || avail === undefined || used === undefined ? undefined : { desc, avail, used };
  }

  /**
   * Where a split ring's used ring is logged, if not where it lies. A ring without VHOST_VRING_F_LOG need not be logged at all, but a page
   * marked once too often harms nobody, and QEMU sets the flag a moment after LOG_ALL. Of packed rings, and where addresses are
   * translated, front ends say what helps nobody: the device area only, or an I/O virtual address.
   */
  #usedLogAddr({ addresses }: Vring, { used }: RingPlaces): number | undefined {
    if (this.format !== 'split' || this.#space.translated) return undefined;
    const { flags, logAddr } = addresses as VringAddresses;
    return (flags & VHOST_VRING_F_LOG) === 0 || logAddr === this.#space.guestAddrOf(used) ? undefined : logAddr;
  }

  /** Starts a running ring anew if what its addresses say of logging is not what it does. */
  async relog(vring: Vring): Promise<void> {
    const { running } = vring;
    if (running === undefined || running.usedLogAddr === this.#usedLogAddr(vring, running)) return;
    await this.stop(vring);
    await this.start(vring, 'SET_VRING_ADDR', true);
  }

  #config(vring: Vring, running: RunningRing, inflight: InflightPlace | undefined): VringConfig {
    return {
      ring: {
        ...running,
        format: this.format,
        num: vring.num,
        base: vring.baseOf(this.format),
        eventIdx: hasFeature(this.#features, VIRTIO_RING_F_EVENT_IDX),
        indirect: hasFeature(this.#features, VIRTIO_RING_F_INDIRECT_DESC),
        kickFd: vring.kick.fd,
        callFd: vring.call.fd,
        inflight,
      },
      features: this.#features,
      enabled: vring.enabled,
      errFd: vring.err.fd,
    };
  }

  #makeOwnEvents({ index, call, err }: Vring): void {
    call.makeOwn(() => this.channel?.vringCall(index));
    err.makeOwn(() => this.channel?.vringError(index));
  }

  #watchMemory(vring: Vring): void {
    if (this.incoming) return;
    const [{ addr, len }] = vring.parts(this.format);
    const isBlank = () => this.#space.isBlank(addr, len);
    this.#memoryWatch.start(vring.kick.fd, isBlank, () =>
      this.#events.onUnusable(privateText(this.#space.regionAt(addr))),
    );
  }
}
