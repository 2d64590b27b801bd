/**
 * A virtio-user card as the main thread has it: its memory, its eventfds, and the connection to the back end, which it makes again
 * whenever it is lost. The rings belong to the threads that move packets, while there is a connection (user-pair.ts).
 */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SwitchError, SysError } from '../errors.ts';
import type { WindowPool } from '../mem/window.ts';
import { drainNow, eventfdFull, signal } from '../sys/eventfd.ts';
import { acceptUnix, ReadWatch } from '../sys/unix-socket.ts';
import { ETHHDR, VLAN_HLEN } from '../uapi/ip.ts';
import {
  featureMask,
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
} from '../uapi/virtio.ts';
import {
  netHeaderSize,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../uapi/virtio-net.ts';
import { FrontEnd } from '../vhost-user/front-end.ts';
import { openSocketFile, removeSocketFile, type SocketFile } from '../vhost-user/socket-file.ts';
import { MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import { acceptsOf, maySendOf } from '../virtio-net/offload.ts';
import { type LaidPair, layOutCard } from './card-layout.ts';
import type { LinkState, OpenedDevice } from './device-port.ts';
import type { GuestRam } from './guest-ram.ts';
import { USER_FAULTS } from './user-fault.ts';
import {
  PAIR_ABSENT,
  PAIR_FAULT,
  PAIR_FAULT_RING,
  PAIR_KICKING,
  PAIR_TURNS,
  PAIR_USED,
  PAIR_WANTED,
  type VirtioUserSpec,
} from './user-pair.ts';
import { abandonState } from './user-ring.ts';
import type { VirtioUserArgs } from './virtio-user-args.ts';
import { type Agreed, negotiate, startVring, wantedBy } from './virtio-user-options.ts';

/** What `offloads=1` asks for. Large packets come in several buffers. */
const CHECKSUMS = [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM];
const SEGMENTATION = [
  ...[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN],
  ...[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN],
];
/** Between two attempts to connect, ms. */
const RETRY_MS = 100;
/** How often the threads are looked at, ms. */
const WATCH_MS = 50;
const GONE = 'the back end has gone';

/** Why a connection was closed is just that: the other side is not there. */
const isGone = (error: Error | undefined): error is SysError | undefined =>
  error === undefined || error instanceof SysError;

/** A pair, and what the last look at its thread has shown: the eventfd being kicked, and the turns made. */
interface DevicePair extends LaidPair {
  kicking: number;
  turns: number;
}

export interface VirtioUserDeviceOptions {
  /** where the card's window comes from: one pool for all windows of a process */
  readonly pool: WindowPool;
  /** How long to wait for a back end that does not listen yet, ms. Default 0. It does not limit `server`. */
  readonly deadlineMs?: number;
  /** Hears that a `server` waits for its back end. */
  readonly onWait?: (text: string) => void;
  /** Ends the waiting for a first back end: `open` rejects. */
  readonly signal?: AbortSignal | undefined;
}

/** A card, from `open` to `close`. */
export class VirtioUserDevice implements OpenedDevice<VirtioUserSpec> {
  readonly name: string;
  readonly mac: Uint8Array;
  readonly maxMtu = MAX_FRAME_BYTES - ETHHDR.size;
  #mtu = this.maxMtu;
  readonly #args: VirtioUserArgs;
  readonly #options: VirtioUserDeviceOptions;
  readonly #file: SocketFile | undefined;
  readonly #watchTimer: NodeJS.Timeout;
  readonly #listeners: ((link: LinkState) => void)[] = [];
  readonly #closing = new AbortController();
  #agreed: Agreed | undefined;
  #ram: GuestRam | undefined;
  #pairs: readonly DevicePair[] = [];
  /** pairs that are enabled: the first so many */
  #inUse: number;
  #frontEnd: FrontEnd | undefined;
  #link: LinkState;
  #connections = 0;
  #kept: Promise<void> | undefined;

  /**
   * Connects to the back end, or waits until one connects, and starts the rings.
   * Throws SysError, ProtocolError, SwitchError (TOO_MANY_PAIRS, SOCKET_…), ConfigError; nothing is left behind then.
   */
  static async open(args: VirtioUserArgs, options: VirtioUserDeviceOptions): Promise<VirtioUserDevice> {
    const device = new VirtioUserDevice(args, options);
    try {
      device.#kept = device.#keep(await device.#first());
      return device;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  private constructor(args: VirtioUserArgs, options: VirtioUserDeviceOptions) {
    this.name = args.name;
    this.mac = Uint8Array.from(args.mac.split(':'), (byte) => Number.parseInt(byte, 16));
    this.#args = args;
    this.#options = options;
    this.#inUse = args.queues;
    this.#link = { up: false, speed: 0, reason: `no back end at ${args.path} yet` };
    if (args.server) this.#file = openSocketFile({ path: args.path });
    this.#watchTimer = setInterval(() => this.#watch(), WATCH_MS);
    this.#watchTimer.unref();
  }

  /** Bytes of the largest frame, without Ethernet header and tag. */
  get mtu(): number {
    return this.#mtu;
  }

  /** Frames that are longer are not sent by ports made from then on. @param mtu up to `maxMtu` */
  setMtu(mtu: number): void {
    this.#mtu = mtu;
  }

  get link(): LinkState {
    return this.#link;
  }

  /** Queue pairs that it has. */
  get queues(): number {
    return this.#args.queues;
  }

  /** Descriptors of each ring. */
  get queueSize(): number {
    return this.#args.queueSize;
  }

  onLink(told: (link: LinkState) => void): void {
    this.#listeners.push(told);
  }

  /** The pairs in use, each to one of `lcores` threads. */
  spec(lcore: number, lcores: number): VirtioUserSpec {
    const { features } = this.#agreed as Agreed;
    return {
      windows: [(this.#ram as GuestRam).window],
      headerLen: netHeaderSize(features),
      mergeable: hasFeature(features, VIRTIO_NET_F_MRG_RXBUF),
      accepts: acceptsOf(features),
      maySend: maySendOf(features),
      ...(this.#mtu < this.maxMtu ? { maxFrame: this.#mtu + ETHHDR.size + VLAN_HLEN } : {}),
      pairs: this.#pairs.slice(0, this.#inUse).flatMap(({ plan }, n) => (n % lcores === lcore ? [plan] : [])),
    };
  }

  async #first(): Promise<FrontEnd> {
    const { path, server } = this.#args;
    if (server) this.#options.onWait?.(`${this.name}: waiting for a back end to connect to ${path}`);
    for (;;) {
      const frontEnd = server
        ? await this.#accepted()
        : await FrontEnd.connect(path, { deadlineMs: this.#options.deadlineMs ?? 0 });
      try {
        await this.#begin(frontEnd);
        return frontEnd;
      } catch (error) {
        frontEnd.close();
        // who connects to us and goes away again may be anybody
        if (!server || this.#agreed !== undefined) throw error;
      }
    }
  }

  /** The next connection to our socket. */
  #accepted(): Promise<FrontEnd> {
    const { fd } = this.#file as SocketFile;
    const { promise, resolve, reject } = Promise.withResolvers<FrontEnd>();
    const closing = AbortSignal.any([this.#closing.signal, ...(this.#options.signal ? [this.#options.signal] : [])]);
    const give = () => reject(new SwitchError('DISCONNECTED', `${this.name} was closed`));
    const look = () => {
      try {
        const accepted = acceptUnix(fd);
        if (accepted !== undefined) resolve(new FrontEnd(accepted));
      } catch (error) {
        reject(error);
      }
    };
    const watch = new ReadWatch(fd, look);
    if (closing.aborted) give();
    closing.addEventListener('abort', give);
    return promise.finally(() => {
      watch.close();
      closing.removeEventListener('abort', give);
    });
  }

  /** Agrees with a back end on what the rings are, the first time, or on the same again; and starts them. */
  async #begin(frontEnd: FrontEnd): Promise<void> {
    const { packed, inOrder, mergeable, offloads, queues: pairs } = this.#args;
    const before = this.#agreed;
    const wanted = wantedBy({
      path: this.#args.path,
      features: featureMask(
        ...[VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX],
        ...(mergeable ? [VIRTIO_NET_F_MRG_RXBUF] : []),
        ...(offloads ? CHECKSUMS : []),
        ...(offloads && mergeable ? SEGMENTATION : []),
      ),
      ...{ packed, inOrder, pairs },
    });
    const agreed = await negotiate(frontEnd, before === undefined ? wanted : { ...wanted, ...before });
    if (before !== undefined && agreed.features !== before.features)
      throw new SwitchError('FEATURES_LOST', 'the back end no longer offers what it did');
    if (packed && !hasFeature(agreed.features, VIRTIO_F_RING_PACKED))
      throw new SwitchError('FEATURES_LOST', 'the back end has no packed rings: leave packed_vq=1 out');
    if (hasFeature(agreed.features, VIRTIO_NET_F_GUEST_TSO4) && !hasFeature(agreed.features, VIRTIO_NET_F_MRG_RXBUF))
      throw new SwitchError(
        'FEATURES_LOST',
        'the back end would send large packets and has no mergeable buffers: leave offloads=1 out',
      );
    if (before === undefined) this.#make(agreed);
    this.#agreed = agreed;
    await this.#start(frontEnd, before !== undefined);
    this.#frontEnd = frontEnd;
    this.#connections++;
    this.#want(this.#connections);
    this.#setLink({ up: true, speed: this.#args.speed });
  }

  #make({ features }: Agreed): void {
    const { queueSize, queues } = this.#args;
    const { ram, pairs } = layOutCard({ name: this.name, features, queueSize, queues }, this.#options.pool);
    this.#ram = ram;
    this.#pairs = pairs.map((pair) => ({ ...pair, kicking: -1, turns: 0 }));
  }

  /** Shares the memory and starts every ring, where it stands if it can go on there with a new back end. */
  async #start(frontEnd: FrontEnd, again: boolean): Promise<void> {
    const ram = this.#ram as GuestRam;
    await frontEnd.setMemTable(ram.regions);
    // Enabled first, as QEMU does: of a ring that runs disabled, what waits in it would be discarded.
    for (let n = 0; n < this.#pairs.length; n++) await this.#tellEnabled(frontEnd, n, n < this.#inUse);
    for (const [n, { plan, rings, txCallFd }] of this.#pairs.entries()) {
      const fds = [
        { kickFd: plan.rxKickFd, callFd: plan.rxCallFd },
        { kickFd: plan.txKickFd, callFd: txCallFd },
      ];
      for (const [i, ring] of rings.entries()) {
        ring.load();
        let base = again ? ring.resumeBase() : undefined;
        if (base === undefined) {
          ring.reset();
          base = ring.freshBase;
        }
        const { place, size, addressDelta } = ring.plan;
        const descAddr = ram.frontendAddrOf(place.descOff + addressDelta);
        await startVring(frontEnd, 2 * n + i, { place, size, base, descAddr, ...fds[i] });
      }
    }
    // Some back ends acknowledge a request before they act on it; they act before they answer the next one.
    await frontEnd.getFeatures();
    // As QEMU does: buffers may have been added while nobody listened to kicks. The last back end may have left the eventfds full.
    for (const { plan } of this.#pairs) {
      for (const fd of [plan.rxKickFd, plan.txKickFd]) {
        drainNow(fd);
        signal(fd);
      }
    }
  }

  async #tellEnabled(frontEnd: FrontEnd, n: number, on: boolean): Promise<void> {
    if (!hasFeature((this.#agreed as Agreed).features, VHOST_USER_F_PROTOCOL_FEATURES)) return;
    await frontEnd.setVringEnable(2 * n, on);
    await frontEnd.setVringEnable(2 * n + 1, on);
  }

  /** Uses the first `n` queue pairs, while no thread has a port of it: the back end sends nothing to the others. */
  async usePairs(n: number): Promise<void> {
    const before = this.#inUse;
    this.#inUse = n;
    const frontEnd = this.#frontEnd;
    if (frontEnd === undefined || frontEnd.closed) return;
    try {
      for (let i = Math.min(n, before); i < Math.max(n, before); i++) await this.#tellEnabled(frontEnd, i, i < n);
    } catch (error) {
      // what is lost with the connection is told again with the next one
      if (!frontEnd.closed) throw error;
    }
  }

  /**
   * The thread that had these pairs has gone without leaving them. Their rings begin anew, which takes a new connection: who knows how
   * far they have come.
   */
  abandoned({ pairs }: VirtioUserSpec): void {
    for (const { control, rx, tx } of pairs) {
      for (const { state } of [rx, tx]) abandonState(state);
      Atomics.store(new Int32Array(control), PAIR_USED, PAIR_ABSENT);
    }
    this.#giveUp('the thread that used it has gone');
  }

  /** Keeps the card connected until it is closed. */
  async #keep(frontEnd: FrontEnd): Promise<void> {
    for (let connection: FrontEnd | undefined = frontEnd; connection !== undefined; connection = await this.#again()) {
      const error = await connection.onClose;
      if (this.#closing.signal.aborted) return;
      if (this.#link.up) this.#setLink({ up: false, speed: 0, reason: isGone(error) ? GONE : error.message });
      this.#want(0);
      while (!this.#free()) await sleep(1);
      for (const { control } of this.#pairs) control[PAIR_FAULT] = 0;
    }
  }

  /** No thread uses a ring. */
  #free(): boolean {
    return this.#pairs.every(({ control }) => Atomics.load(control, PAIR_USED) <= 0);
  }

  /** The next connection that works, or undefined if the card is closed before. */
  async #again(): Promise<FrontEnd | undefined> {
    const { signal: closing } = this.#closing;
    while (!closing.aborted) {
      let frontEnd: FrontEnd | undefined;
      try {
        frontEnd = this.#file === undefined ? await FrontEnd.connect(this.#args.path) : await this.#accepted();
        await this.#begin(frontEnd);
        return frontEnd;
      } catch (error) {
        if (closing.aborted || !(error instanceof SwitchError)) frontEnd?.close();
        if (closing.aborted) return undefined;
        if (!(error instanceof SwitchError)) throw error;
        const why = frontEnd?.closed === true ? await frontEnd.onClose : error;
        frontEnd?.close();
        // that nobody is there, or not any more, is what the link says already
        if (!isGone(why)) this.#setLink({ up: false, speed: 0, reason: error.message });
      }
      await sleep(RETRY_MS, undefined, { signal: closing }).catch(() => {});
    }
    return undefined;
  }

  /** Tells the threads which connection the rings may be used on, and wakes them. */
  #want(connection: number): void {
    for (const { control, plan } of this.#pairs) {
      Atomics.store(control, PAIR_WANTED, connection);
      signal(plan.rxCallFd);
    }
  }

  #setLink(link: LinkState): void {
    if (link.up === this.#link.up && link.reason === this.#link.reason) return;
    this.#link = link;
    for (const told of this.#listeners) told(link);
  }

  /** Looks whether a thread has found a fault, or hangs in a kick: a back end can fill the eventfd and make it blocking. */
  #watch(): void {
    for (const [n, pair] of this.#pairs.entries()) {
      const { control } = pair;
      const fault = Atomics.load(control, PAIR_FAULT);
      if (fault !== 0)
        this.#giveUp(`vring ${2 * n + control[PAIR_FAULT_RING]}: the back end broke a rule: ${USER_FAULTS[fault]}`);
      const kicking = Atomics.load(control, PAIR_KICKING);
      const turns = control[PAIR_TURNS];
      const hangs = kicking >= 0 && kicking === pair.kicking && turns === pair.turns && eventfdFull(kicking);
      pair.kicking = kicking;
      pair.turns = turns;
      if (!hangs) continue;
      drainNow(kicking);
      this.#giveUp(`the back end takes no kicks: it has filled the eventfd of a vring and made it blocking`);
    }
  }

  #giveUp(reason: string): void {
    if (!this.#link.up) return;
    this.#setLink({ up: false, speed: 0, reason });
    this.#frontEnd?.close();
  }

  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort();
    clearInterval(this.#watchTimer);
    this.#frontEnd?.close();
    await this.#kept;
    if (this.#file !== undefined) {
      removeSocketFile(this.#file);
      closeSync(this.#file.fd);
    }
    for (const { plan, txCallFd } of this.#pairs)
      for (const fd of [plan.rxKickFd, plan.rxCallFd, plan.txKickFd, txCallFd]) closeSync(fd);
    this.#ram?.close();
  }
}
