/**
 * net_af_packet on the main thread: opens the sockets, where rights or the interface may be missing, and watches the interface.
 */
import { closeSync } from 'node:fs';
import { ConfigError, SysError } from '../errors.ts';
import { firstOffset, mapInto, unmapFrom, WINDOW_USABLE_BYTES, type WindowHandle } from '../mem/window.ts';
import type { InterfaceInfo } from '../sys/netlink.ts';
import { inNetns } from '../sys/netns.ts';
import {
  bindPacketSocket,
  bypassQdisc,
  openPacketSocket,
  type RingShape,
  setPromiscuous,
  setUpRing,
  shareByProgram,
  shareFlows,
} from '../sys/packet-socket.ts';
import { TPACKET_ALIGNMENT, TPACKET2_HDR } from '../uapi/packet.ts';
import { type AfPacketQueue, type AfPacketSpec, QUEUE_EXTRA_BYTES } from './af-packet-port.ts';
import type { DeviceOpening, OpenedDevice } from './device-port.ts';
import { kernelAccepts } from './kernel-frame.ts';
import { LinkWatch } from './link-watch.ts';
import { MADE_BYTES } from './made-frames.ts';
import { Steering, steerFanout } from './steering.ts';
import { findUplink, type InterfacePlace, interfacePlace, withAdvice } from './uplink-interface.ts';
import type { VdevOf } from './vdev.ts';

const PAGE = 4096;
/** Bytes in front of the frame in a slot, at most: the slot's header, an address, the Ethernet header rounded up, and ours. */
const SLOT_OVERHEAD = TPACKET2_HDR.size + 64;
/** What a frame has beyond the MTU: Ethernet header and a tag. */
const FRAME_OVERHEAD = 18;
/** By default the ring takes so much, and has so many slots, whichever is less, but 512 at least. */
const RING_BYTES = 2 ** 24;
const RING_FRAMES = 4096;
const MIN_FRAMES = 512;
const BLOCK_BYTES = 2 ** 17;
/** The kernel's memory, and no other program's: no more than this. */
const MAX_RING_BYTES = 2 ** 29;
/** Room for frames that do not fit a slot, and for frames that wait to be sent. */
const QUEUE_BYTES = 2 ** 23;
const SEND_BYTES = 2 ** 22;

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;

type Values = VdevOf<'net_af_packet'>['values'];

/** The ring that fits the MTU, as far as it is not said. Throws ConfigError for sizes that do not go together. */
function ringShape(name: string, { framesz, framecnt, blocksz }: Values, mtu: number): RingShape {
  const fault = (key: string, value: number, problem: string) =>
    new ConfigError('CONFIG_INVALID_VALUE', '--vdev', `${name}: ${key} ${problem}`, { value: `${key}=${value}` });
  const fitting = 2 ** Math.ceil(Math.log2(SLOT_OVERHEAD + mtu + FRAME_OVERHEAD));
  const frameBytes = framesz ?? Math.min(fitting, BLOCK_BYTES);
  if (frameBytes % TPACKET_ALIGNMENT !== 0 || frameBytes < 2 * SLOT_OVERHEAD)
    throw fault('framesz', frameBytes, `must be a multiple of ${TPACKET_ALIGNMENT}, and ${2 * SLOT_OVERHEAD} at least`);
  const blockBytes = blocksz ?? alignUp(BLOCK_BYTES, leastBlock(frameBytes));
  if (blockBytes % PAGE !== 0 || blockBytes % frameBytes !== 0)
    throw fault('blocksz', blockBytes, `must be a multiple of ${PAGE} and of framesz, which is ${frameBytes}`);
  const wanted = framecnt ?? Math.max(MIN_FRAMES, Math.min(RING_FRAMES, RING_BYTES / frameBytes));
  const perBlock = blockBytes / frameBytes;
  const blocks = Math.ceil(wanted / perBlock);
  if (blocks * blockBytes > MAX_RING_BYTES)
    throw fault('framecnt', wanted, `makes a ring of more than ${MAX_RING_BYTES / 2 ** 20} MiB`);
  return { blockBytes, blocks, frameBytes, frames: blocks * perBlock };
}

/** The least that is both whole pages and whole frames. */
function leastBlock(frameBytes: number): number {
  let block = PAGE;
  while (block % frameBytes !== 0) block += PAGE;
  return block;
}

/** Opens `net_af_packet…`. Throws SwitchError (UPLINK_…), ConfigError, SysError; nothing is left open then. */
export function openAfPacket(vdev: VdevOf<'net_af_packet'>, opening: DeviceOpening): OpenedDevice<AfPacketSpec> {
  const place = interfacePlace(vdev.values.iface);
  const opened = new OpenedAfPacket(vdev, place, findUplink(vdev.name, place), opening);
  try {
    inNetns(place.netns, () => opened.open());
    return opened;
  } catch (error) {
    opened.closeAll();
    const byProgram = error instanceof SysError && error.syscall === 'bpf';
    throw withAdvice(error, vdev.name, place, byProgram ? 'CAP_BPF' : 'CAP_NET_RAW');
  }
}

class OpenedAfPacket implements OpenedDevice<AfPacketSpec> {
  readonly name: string;
  readonly mac: Uint8Array;
  readonly mtu: number;
  /** if frames are shared by {address, VLAN}, and not by flows: the key `steer` */
  steering: Steering | undefined;
  readonly #values: Values;
  readonly #index: number;
  readonly #opening: DeviceOpening;
  readonly #ring: RingShape;
  readonly #watch: LinkWatch;
  promiscuous = true;
  readonly #sendFds: number[] = [];
  readonly #receiveFds: number[] = [];
  #window: WindowHandle | undefined;

  constructor(vdev: VdevOf<'net_af_packet'>, place: InterfacePlace, found: InterfaceInfo, opening: DeviceOpening) {
    this.name = vdev.name;
    this.mac = found.address;
    this.mtu = found.mtu;
    this.#values = vdev.values;
    this.#index = found.index;
    this.#opening = opening;
    this.#ring = ringShape(vdev.name, vdev.values, found.mtu);
    this.#watch = new LinkWatch(place, found);
  }

  get #ringBytes(): number {
    return this.#ring.blocks * this.#ring.blockBytes;
  }

  get #queueBytes(): number {
    return alignUp(this.#ringBytes + QUEUE_EXTRA_BYTES, PAGE);
  }

  /** Opens everything, in the interface's namespace. What fails is closed by `closeAll`. */
  open(): void {
    const { pool, lcores } = this.#opening;
    const { qpairs, qdisc_bypass, steer } = this.#values;
    for (let i = 0; i < lcores; i++) {
      const fd = openPacketSocket(SEND_BYTES);
      this.#sendFds.push(fd);
      if (qdisc_bypass) bypassQdisc(fd);
      bindPacketSocket(fd, this.#index, false);
    }
    this.#window = pool.acquire();
    for (let queue = 0; queue < qpairs; queue++) {
      if (this.#ringOff(queue + 1) + lcores * MADE_BYTES > WINDOW_USABLE_BYTES)
        throw new RangeError(`${this.name}: the rings take too much`);
      const fd = openPacketSocket(SEND_BYTES);
      this.#receiveFds.push(fd);
      setUpRing(fd, this.#ring, QUEUE_BYTES);
      mapInto(this.#window, this.#ringOff(queue), this.#ringBytes, fd, 0);
      setPromiscuous(fd, this.#index);
      bindPacketSocket(fd, this.#index, true);
    }
    if (steer) this.#steer(qpairs);
    else if (qpairs > 1) shareFlows(this.#receiveFds);
  }

  #steer(queues: number): void {
    this.steering = new Steering(queues);
    shareByProgram(this.#receiveFds);
    steerFanout(this.#receiveFds[0], this.steering);
  }

  #ringOff(queue: number): number {
    return firstOffset(this.#window as WindowHandle, PAGE) + queue * this.#queueBytes;
  }

  get link() {
    return this.#watch.state;
  }

  /** The interface takes only what is for it, unless somebody else has it take more. */
  setPromiscuous(on: boolean): void {
    if (on === this.promiscuous) return;
    for (const fd of this.#receiveFds) setPromiscuous(fd, this.#index, on);
    this.promiscuous = on;
  }

  onLink(told: Parameters<OpenedDevice<AfPacketSpec>['onLink']>[0]): void {
    this.#watch.onLink(told);
  }

  /** Receive queue q belongs to lcore q modulo their number. */
  spec(lcore: number, lcores: number): AfPacketSpec {
    const window = this.#window as WindowHandle;
    const { frames, frameBytes } = this.#ring;
    const queues: AfPacketQueue[] = [];
    for (let queue = lcore; queue < this.#receiveFds.length; queue += lcores)
      queues.push({ fd: this.#receiveFds[queue], ringOff: this.#ringOff(queue), frames, frameBytes });
    const madeOff = this.#ringOff(this.#values.qpairs) + lcore * MADE_BYTES;
    const accepts = kernelAccepts();
    return { windows: [window], window, queues, sendFd: this.#sendFds[lcore], madeOff, accepts };
  }

  closeAll(): void {
    this.#watch.close();
    for (const fd of [...this.#receiveFds, ...this.#sendFds]) closeSync(fd);
    this.steering?.close();
    if (this.#window === undefined) return;
    const end = this.#ringOff(this.#values.qpairs) + this.#opening.lcores * MADE_BYTES;
    unmapFrom(this.#window, this.#ringOff(0), end - this.#ringOff(0));
    this.#opening.pool.release(this.#window);
  }

  close(): Promise<void> {
    this.closeAll();
    return Promise.resolve();
  }
}
