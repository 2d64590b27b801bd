/**
 * net_af_xdp on the main thread: opens the sockets of an interface's queues, lays out their memory in one window, and attaches the
 * program that hands frames to them.
 *
 * Every queue of the interface has a UMEM, and several sockets where frames are steered, or where more lcores send than there are
 * queues. The program is attached by a link: it goes with this process, however that ends.
 */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError, SwitchError, SysError } from '../errors.ts';
import { firstOffset, mapInto, openWindow, unmapFrom, WINDOW_USABLE_BYTES, type WindowHandle } from '../mem/window.ts';
import { type SteeringMaps, xdpProgram } from '../net/steering-program.ts';
import { attachXdp, BpfMap, loadProgram, mapIndex } from '../sys/bpf.ts';
import { RxFilters, takesTagsOff } from '../sys/ethtool.ts';
import { createMemfd } from '../sys/memory.ts';
import type { InterfaceInfo } from '../sys/netlink.ts';
import { inNetns } from '../sys/netns.ts';
import { openPacketSocket, setPromiscuous } from '../sys/packet-socket.ts';
import {
  bindXdpSocket,
  isZeroCopy,
  makeXdpRing,
  openXdpSocket,
  type RingParts,
  registerUmem,
  ringParts,
} from '../sys/xdp-socket.ts';
import { BPF_F_XDP_HAS_FRAGS, BPF_MAP_TYPE_XSKMAP, BPF_PROG_TYPE_XDP } from '../uapi/bpf.ts';
import { ETHHDR, VLAN_HLEN } from '../uapi/ip.ts';
import {
  XDP_COPY,
  XDP_DESC,
  XDP_FLAGS_DRV_MODE,
  XDP_FLAGS_SKB_MODE,
  XDP_PACKET_HEADROOM,
  XDP_PGOFF_RX_RING,
  XDP_PGOFF_TX_RING,
  XDP_RX_RING,
  XDP_SHARED_UMEM,
  XDP_TX_RING,
  XDP_UMEM_COMPLETION_RING,
  XDP_UMEM_FILL_RING,
  XDP_UMEM_PGOFF_COMPLETION_RING,
  XDP_UMEM_PGOFF_FILL_RING,
  XDP_USE_NEED_WAKEUP,
  XDP_USE_SG,
  XDP_ZEROCOPY,
} from '../uapi/xdp.ts';
import { MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import { type AfXdpSpec, XDP_BOUNCE_BYTES } from './af-xdp-port.ts';
import { xdpRefusal } from './af-xdp-refusal.ts';
import { CardFilters } from './card-filters.ts';
import type { DeviceOpening, OpenedDevice } from './device-port.ts';
import { LinkWatch } from './link-watch.ts';
import { Steering, type SteeringTable } from './steering.ts';
import { describeInterface, findUplink, type InterfacePlace, interfacePlace } from './uplink-interface.ts';
import type { VdevOf } from './vdev.ts';
import { groupState, XdpGroup, type XdpGroupPlace, type XdpRingPlace } from './xdp-rings.ts';

const PAGE = 4096;
/** Elements of a ring, powers of two: frames that may wait to be received, and frames of one thread that may wait to be sent. */
interface RingSizes {
  readonly receive: number;
  readonly transmit: number;
}
/** With less than 4096 to receive into, frames are lost while the compiler still works on us. */
const RING_SIZES: RingSizes = { receive: 4096, transmit: 2048 };
/** An element of a ring of chunks. */
const ADDRESS_BYTES = 8;
/** A UMEM's chunks, bytes: the kernel takes from 2048 up to a page. */
const CHUNKS = [2048, 4096];
/** The kernel lets go of a closed socket's queue, or of a program, some 20 ms later. */
const BUSY_TRIES = 50;
const BUSY_WAIT_MS = 20;
/** Errors of a program's attaching that another way of attaching does not mend. */
const NO_OTHER_WAY = ['EPERM', 'ENOSYS', 'EBUSY', 'EEXIST', 'ENODEV'];

/** How frames come and go: by the kernel's generic way, by the driver with a copy, or where the driver puts them. */
export type XdpMode = 'skb' | 'native' | 'zc';

type Values = VdevOf<'net_af_xdp'>['values'];

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;

/** A socket that is to be. */
interface PlannedSocket {
  /** queue of the interface, from the first one that is used on */
  readonly group: number;
  /** which of the group's steered queues it receives; none: it only transmits */
  readonly steered: number | undefined;
  readonly lcore: number;
  /** its number among the group's transmitting sockets; none: it only receives */
  sender: number | undefined;
}

/** The sockets of `groups` queues, of which each lcore transmits by one: of each group its receiving ones first. */
function plan(groups: number, steered: number, lcores: number): PlannedSocket[] {
  const sockets: PlannedSocket[] = [];
  for (let group = 0; group < groups; group++) {
    for (let queue = 0; queue < steered; queue++) {
      const lcore = (steered > 1 ? queue : group) % lcores;
      sockets.push({ group, steered: queue, lcore, sender: undefined });
    }
  }
  const senders = Array(groups).fill(0);
  for (let lcore = 0; lcore < lcores; lcore++) {
    const group = lcore % groups;
    let socket = sockets.find((one) => one.group === group && one.lcore === lcore);
    if (socket === undefined) {
      socket = { group, steered: undefined, lcore, sender: undefined };
      sockets.push(socket);
    }
    socket.sender = senders[group]++;
  }
  return sockets;
}

function tagsLost(place: InterfacePlace): string {
  const problem = `${describeInterface(place)} takes VLAN tags off, and AF_XDP does not pass them on`;
  const how = `ethtool -K ${place.name} rxvlan off; of a veth pair, txvlan off at the other end`;
  return `${problem}: to keep them: ${how}`;
}

interface OpenSocket extends PlannedSocket {
  readonly fd: number;
  receive?: XdpRingPlace;
  transmit?: XdpRingPlace;
}

/** Calls `attempt` until it is refused for another reason than EBUSY, or for too long. */
async function whileBusy<T>(attempt: () => T): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return attempt();
    } catch (error) {
      if (!(error instanceof SysError) || error.code !== 'EBUSY' || tries === BUSY_TRIES) throw error;
      await sleep(BUSY_WAIT_MS);
    }
  }
}

/**
 * Opens `net_af_xdp…`. Rejects with SwitchError (UPLINK_…, BPF_REJECTED), SysError; nothing is left open then.
 * @param sizes of the rings; by default what suits a fast interface
 */
export async function openAfXdp(
  vdev: VdevOf<'net_af_xdp'>,
  opening: DeviceOpening,
  sizes: RingSizes = RING_SIZES,
): Promise<AfXdpDevice> {
  const place = interfacePlace(vdev.values.iface);
  const { ntuple, steer_queues } = vdev.values;
  if (ntuple && steer_queues > 1) {
    const problem = `${vdev.name}: the card steers with ntuple=1, the program with steer_queues: give one of them`;
    throw new ConfigError('CONFIG_CONFLICT', '--vdev', problem, { value: 'ntuple=1' });
  }
  const device = new AfXdpDevice(vdev, place, findUplink(vdev.name, place), opening, sizes);
  try {
    await device.open();
    return device;
  } catch (error) {
    device.closeAll();
    throw xdpRefusal(error, vdev, place);
  }
}

/** What an interface gives and takes by AF_XDP sockets. */
export class AfXdpDevice implements OpenedDevice<AfXdpSpec> {
  readonly name: string;
  readonly mac: Uint8Array;
  readonly mtu: number;
  /**
   * Which queue each {address, VLAN} goes to, where there are several to choose from: `steer_queues`, or the card's own with `ntuple`.
   * Queue n is lcore n's, modulo their number.
   */
  steering: SteeringTable | undefined;
  /** how frames come and go */
  mode: XdpMode = 'skb';
  notes: readonly string[] = [];
  readonly #values: Values;
  readonly #place: InterfacePlace;
  readonly #index: number;
  readonly #opening: DeviceOpening;
  readonly #sizes: RingSizes;
  readonly #chunk: number;
  /** bytes of a frame that a chunk holds */
  readonly #chunkFrame: number;
  /** bytes of the longest frame with a tag; and whether it takes several chunks, which the kernel must know how to do */
  readonly #longest: number;
  #several: boolean;
  readonly #watch: LinkWatch;
  readonly #sockets: OpenSocket[] = [];
  readonly #groups: XdpGroupPlace[] = [];
  /** what else is open, to be closed in this order: the program's link first */
  promiscuous = true;
  /** the one of `#fds` by which the interface is promiscuous */
  #memberFd = -1;
  readonly #fds: number[] = [];
  readonly #window: WindowHandle;
  readonly #firstOff: number;
  /** from here on the window is free */
  #nextOff: number;
  /** where each lcore has memory for what it makes of frames */
  #bounceOff = 0;
  #closed = false;

  constructor(
    { name, values }: VdevOf<'net_af_xdp'>,
    place: InterfacePlace,
    found: InterfaceInfo,
    opening: DeviceOpening,
    sizes: RingSizes,
  ) {
    this.name = name;
    this.mac = found.address;
    this.mtu = found.mtu;
    this.#values = values;
    this.#place = place;
    this.#index = found.index;
    this.#opening = opening;
    this.#sizes = sizes;
    this.#longest = Math.min(ETHHDR.size + VLAN_HLEN + found.mtu, MAX_FRAME_BYTES + VLAN_HLEN);
    const bytes = XDP_PACKET_HEADROOM + this.#longest;
    this.#chunk = CHUNKS.find((chunk) => chunk >= bytes) ?? CHUNKS[CHUNKS.length - 1];
    this.#chunkFrame = this.#chunk - XDP_PACKET_HEADROOM;
    this.#several = this.#longest > this.#chunkFrame;
    this.#watch = new LinkWatch(place, found);
    this.#window = opening.pool.acquire();
    this.#firstOff = firstOffset(this.#window, PAGE);
    this.#nextOff = this.#firstOff;
  }

  get link() {
    return this.#watch.state;
  }

  /** The interface takes only what is for it, unless somebody else has it take more. */
  setPromiscuous(on: boolean): void {
    if (on === this.promiscuous) return;
    setPromiscuous(this.#memberFd, this.#index, on);
    this.promiscuous = on;
  }

  onLink(told: Parameters<OpenedDevice<AfXdpSpec>['onLink']>[0]): void {
    this.#watch.onLink(told);
  }

  /** Opens everything. What fails is closed by `closeAll`. */
  async open(): Promise<void> {
    const { start_queue, queue_count, steer_queues } = this.#values;
    const { lcores } = this.#opening;
    this.#inNetns(() => {
      for (const planned of plan(queue_count, steer_queues, lcores))
        this.#sockets.push({ ...planned, fd: openXdpSocket() });
    });
    const maps = steer_queues > 1 ? this.#steer(steer_queues) : undefined;
    const map = new BpfMap(BPF_MAP_TYPE_XSKMAP, 4, 4, (start_queue + queue_count) * steer_queues, 'sockets');
    this.#fds.push(map.fd);
    await this.#attach(xdpProgram(map.fd, steer_queues, maps));
    for (let group = 0; group < queue_count; group++) await this.#openGroup(group);
    this.#bounceOff = this.#allocate(lcores * XDP_BOUNCE_BYTES);
    for (const { fd, group, steered } of this.#sockets) {
      if (steered === undefined) continue;
      map.update(mapIndex((start_queue + group) * steer_queues + steered), new Uint8Array(Uint32Array.of(fd).buffer));
    }
    this.#inNetns(() => {
      const fd = openPacketSocket(PAGE);
      this.#fds.push(fd);
      this.#memberFd = fd;
      setPromiscuous(fd, this.#index);
      if (this.#values.ntuple) this.#filter();
      if (takesTagsOff(this.#place.name)) this.notes = [...this.notes, tagsLost(this.#place)];
      if (this.#longest > this.#chunkFrame && !this.#several) this.notes = [...this.notes, this.#tooLong()];
    });
  }

  #steer(queues: number): SteeringMaps {
    const steering = new Steering(queues);
    this.steering = steering;
    return steering.maps;
  }

  /** Has the card choose the queue; one that has no filters goes on as it would without. */
  #filter(): void {
    const { start_queue, queue_count } = this.#values;
    const filters = new RxFilters(this.#place.name);
    try {
      this.steering = new CardFilters(filters, start_queue, queue_count);
    } catch (error) {
      filters.close();
      if (!(error instanceof SysError) || error.code !== 'ENOTSUP') throw error;
      const what = `${describeInterface(this.#place)} has no filters that choose a queue`;
      this.notes = [
        ...this.notes,
        `ntuple=1 has no effect: ${what}; see ethtool -k for ntuple-filters, or use steer_queues`,
      ];
    }
  }

  #tooLong(): string {
    const most = this.#chunkFrame - ETHHDR.size - VLAN_HLEN;
    const why = 'this kernel, or the driver, has no frames of several buffers for AF_XDP';
    return `of MTU ${this.mtu} only ${most} can be used: ${why}; lower the MTU, or use net_af_packet`;
  }

  #inNetns<T>(use: () => T): T {
    return inNetns(this.#place.netns, use);
  }

  /** Loads the program, as one that may be given frames of several pieces if it must and the kernel can: since Linux 5.18. */
  #load(program: Uint8Array): number {
    const load = (flags: number) => loadProgram(BPF_PROG_TYPE_XDP, program, 'vhost_switch', flags);
    if (!this.#several) return load(0);
    try {
      return load(BPF_F_XDP_HAS_FRAGS);
    } catch (error) {
      if (!(error instanceof SysError) || error.code !== 'EINVAL') throw error;
      this.#several = false;
      return load(0);
    }
  }

  /** Attaches the program as `mode` says: by the driver if it can, unless it must. */
  async #attach(program: Uint8Array): Promise<void> {
    const fd = this.#load(program);
    this.#fds.unshift(fd);
    const attach = (flags: number) => this.#inNetns(() => attachXdp(fd, this.#index, flags));
    const { mode } = this.#values;
    if (mode !== 'skb') {
      try {
        this.#fds.unshift(await whileBusy(() => attach(XDP_FLAGS_DRV_MODE)));
        this.mode = 'native';
        return;
      } catch (error) {
        if (mode !== 'auto' || !(error instanceof SysError) || NO_OTHER_WAY.includes(error.code)) throw error;
      }
    }
    this.#fds.unshift(await whileBusy(() => attach(XDP_FLAGS_SKB_MODE)));
  }

  /** Gives the sockets of a queue their memory and rings, and binds them. */
  async #openGroup(group: number): Promise<void> {
    const sockets = this.#sockets.filter((socket) => socket.group === group);
    const senders = sockets.filter(({ sender }) => sender !== undefined).length;
    const rxChunks = this.#sizes.receive;
    const txChunks = this.#sizes.transmit;
    const [{ fd }] = sockets;
    const umemOff = this.#allocate((rxChunks + senders * txChunks) * this.#chunk);
    const umemBytes = this.#nextOff - umemOff;
    const memfd = createMemfd(this.name, umemBytes);
    try {
      mapInto(this.#window, umemOff, umemBytes, memfd, 0);
    } finally {
      closeSync(memfd);
    }
    registerUmem(fd, this.#window.address + BigInt(umemOff), umemBytes, this.#chunk);
    const done = 2 ** Math.ceil(Math.log2(Math.max(senders * txChunks, 2)));
    makeXdpRing(fd, XDP_UMEM_FILL_RING, rxChunks);
    makeXdpRing(fd, XDP_UMEM_COMPLETION_RING, done);
    const { fr, cr } = ringParts(fd);
    const fill = this.#mapRing(fd, XDP_UMEM_PGOFF_FILL_RING, fr, rxChunks, ADDRESS_BYTES);
    const completion = this.#mapRing(fd, XDP_UMEM_PGOFF_COMPLETION_RING, cr, done, ADDRESS_BYTES);
    const state = groupState(senders, { rxChunks, txChunks, chunk: this.#chunk });
    const shared = new Set(sockets.map(({ lcore }) => lcore)).size > 1;
    const place = { umemOff, chunk: this.#chunk, rxChunks, txChunks, fill, completion, state, shared };
    this.#groups.push(place);
    new XdpGroup(openWindow(this.#window), place).refill(
      Int32Array.from({ length: rxChunks }, (_, i) => i * this.#chunk),
      rxChunks,
    );
    for (const socket of sockets) await this.#bind(socket, fd);
  }

  /** Gives a socket its own rings and binds it; to the memory of `base`, if that is another. */
  async #bind(socket: OpenSocket, base: number): Promise<void> {
    const { fd, steered, sender } = socket;
    if (steered !== undefined) makeXdpRing(fd, XDP_RX_RING, this.#sizes.receive);
    if (sender !== undefined) makeXdpRing(fd, XDP_TX_RING, this.#sizes.transmit);
    const { rx, tx } = ringParts(fd);
    if (steered !== undefined)
      socket.receive = this.#mapRing(fd, XDP_PGOFF_RX_RING, rx, this.#sizes.receive, XDP_DESC.size);
    if (sender !== undefined)
      socket.transmit = this.#mapRing(fd, XDP_PGOFF_TX_RING, tx, this.#sizes.transmit, XDP_DESC.size);
    const queue = this.#values.start_queue + socket.group;
    if (fd !== base) return bindXdpSocket(fd, this.#index, queue, XDP_SHARED_UMEM, base);
    const { mode, force_copy } = this.#values;
    const copy = this.mode === 'skb' || mode === 'native' || force_copy;
    const way = mode === 'zc' ? XDP_ZEROCOPY : copy ? XDP_COPY : 0;
    await this.#bindFirst(fd, queue, XDP_USE_NEED_WAKEUP | way);
    if (isZeroCopy(fd)) this.mode = 'zc';
  }

  /** Binds the first socket of a queue, as one whose frames may take several chunks if they must and the kernel can: since Linux 6.6. */
  async #bindFirst(fd: number, queue: number, flags: number): Promise<void> {
    const bind = (more: number) => whileBusy(() => bindXdpSocket(fd, this.#index, queue, flags | more));
    if (!this.#several) return bind(0);
    try {
      await bind(XDP_USE_SG);
    } catch (error) {
      if (!(error instanceof SysError) || !['EINVAL', 'ENOTSUP'].includes(error.code)) throw error;
      await bind(0);
      this.#several = false;
    }
  }

  /** Room in the window for `bytes`, in whole pages. */
  #allocate(bytes: number): number {
    const off = this.#nextOff;
    const next = off + alignUp(bytes, PAGE);
    if (next > WINDOW_USABLE_BYTES) {
      const { queue_count, steer_queues } = this.#values;
      const problem = `${queue_count} queues with ${steer_queues} sockets take more than 2 GiB; use fewer`;
      throw new SwitchError('UPLINK_TOO_LARGE', `${this.name}: ${problem}`);
    }
    this.#nextOff = next;
    return off;
  }

  #mapRing(fd: number, pageOff: number, parts: RingParts, size: number, elementBytes: number): XdpRingPlace {
    const len = alignUp(parts.desc + size * elementBytes, PAGE);
    const off = this.#allocate(len);
    mapInto(this.#window, off, len, fd, pageOff);
    return {
      producerOff: off + parts.producer,
      consumerOff: off + parts.consumer,
      flagsOff: off + parts.flags,
      descOff: off + parts.desc,
      size,
    };
  }

  /** Steered queue n, or queue n of the interface, belongs to lcore n modulo their number. */
  spec(lcore: number): AfXdpSpec {
    const window = this.#window;
    const mine = this.#sockets.filter((socket) => socket.lcore === lcore);
    const receive = mine.flatMap(({ fd, group, receive: ring }) => (ring === undefined ? [] : [{ fd, group, ring }]));
    const [transmit] = mine.flatMap(({ fd, group, transmit: ring, sender }) =>
      ring === undefined || sender === undefined ? [] : [{ fd, group, ring, sender }],
    );
    return {
      windows: [window],
      window,
      groups: this.#groups,
      receive,
      transmit,
      maxFrame: this.#several ? this.#longest : this.#chunkFrame,
      chunkFrame: this.#chunkFrame,
      bounceOff: this.#bounceOff + lcore * XDP_BOUNCE_BYTES,
    };
  }

  /** Detaches the program first, so that nothing is on its way when the memory goes. */
  closeAll(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch.close();
    for (const fd of this.#fds) closeSync(fd);
    this.steering?.close();
    if (this.#nextOff > this.#firstOff) unmapFrom(this.#window, this.#firstOff, this.#nextOff - this.#firstOff);
    for (const { fd } of this.#sockets) closeSync(fd);
    this.#opening.pool.release(this.#window);
  }

  close(): Promise<void> {
    this.closeAll();
    return Promise.resolve();
  }
}
