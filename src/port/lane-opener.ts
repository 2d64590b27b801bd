/**
 * Lanes on the main thread: makes a guest's virtual cable, the AF_XDP socket over its memory at the far end, and the programs at both.
 *
 * The near end is in the uplink's namespace, the far end in one that has no name: it goes with this process, however that ends,
 * and the cable with it.
 */
import { closeSync } from 'node:fs';
import { SwitchError, SysError } from '../errors.ts';
import type { MappedFile } from '../mem/guest-memory.ts';
import { firstOffset, mapInto, unmapFrom, type WindowHandle, type WindowPool } from '../mem/window.ts';
import { farProgram, nearProgram, silentProgram } from '../net/zero-copy-program.ts';
import { attachTcx, attachXdp, BpfMap, loadProgram, mapIndex } from '../sys/bpf.ts';
import { createMemfd } from '../sys/memory.ts';
import { findInterface } from '../sys/netlink.ts';
import { inNetns, inOpenNetns, newNetns } from '../sys/netns.ts';
import { addVethPair, removeLink, setLinkUp } from '../sys/veth.ts';
import { bindXdpSocket, makeXdpRing, openXdpSocket, type RingParts, ringParts } from '../sys/xdp-socket.ts';
import {
  BPF_F_MMAPABLE,
  BPF_MAP_TYPE_ARRAY,
  BPF_MAP_TYPE_XSKMAP,
  BPF_PROG_TYPE_SCHED_CLS,
  BPF_PROG_TYPE_XDP,
} from '../uapi/bpf.ts';
import { ETHHDR, VLAN_HLEN } from '../uapi/ip.ts';
import {
  XDP_COPY,
  XDP_DESC,
  XDP_FLAGS_DRV_MODE,
  XDP_PACKET_HEADROOM,
  XDP_PGOFF_RX_RING,
  XDP_PGOFF_TX_RING,
  XDP_RX_RING,
  XDP_TX_RING,
  XDP_UMEM_COMPLETION_RING,
  XDP_UMEM_FILL_RING,
  XDP_UMEM_PGOFF_COMPLETION_RING,
  XDP_UMEM_PGOFF_FILL_RING,
  XDP_USE_NEED_WAKEUP,
} from '../uapi/xdp.ts';
import { GuestUmem, UMEM_CHUNK, UMEM_PAD } from './guest-umem.ts';
import type { LaneSpec } from './lane-spec.ts';
import type { LaneExit, LaneSteering } from './lane-steering.ts';
import { ELEMENTS_PER_FRAME } from './lane-transmit.ts';
import type { XdpRingPlace } from './xdp-rings.ts';

const PAGE = 4096;
/** A frame may go on in the next element. C headers have it from Linux 6.6 on. */
const XDP_USE_SG = 16;
const ADDRESS_BYTES = 8;
const COUNT_BYTES = 8;
/** The cable's MTU at least: so what is too long for the guest comes as far as the program that counts it. Native XDP takes little more. */
const MIN_CABLE_MTU = 3400;
/** A name of ours that another process's cable has: so many others are tried. */
const NAME_TRIES = 8;

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;

/** What a lane is to be. */
export interface LaneRequest {
  /** its number: the guest's */
  readonly lane: number;
  /** port number of the uplink */
  readonly uplink: number;
  readonly steering: LaneSteering;
  /** the guest's memory */
  readonly files: readonly MappedFile[];
  /** guest buffers that the kernel may have at a time, powers of two */
  readonly rxBuffers: number;
  readonly txBuffers: number;
  /** False once it is not wanted any more. */
  wanted(): boolean;
}

/** Where lanes are made. */
export class LaneOpener {
  readonly #pool: WindowPool;
  readonly #netns: number;
  #made = 0;

  /** Throws SwitchError (LANE_NO_RIGHTS), SysError. */
  constructor(pool: WindowPool) {
    this.#pool = pool;
    try {
      this.#netns = newNetns();
    } catch (error) {
      throw laneRefusal(error);
    }
  }

  /** Opens a lane. @returns undefined if it was not wanted any more. Rejects with SwitchError (LANE_…, BPF_REJECTED), SysError. */
  async open(request: LaneRequest): Promise<OpenLane | undefined> {
    const lane = new OpenLane(request, this.#pool, this.#netns);
    try {
      if (await lane.open(() => this.#made++)) return lane;
    } catch (error) {
      lane.close();
      throw laneRefusal(error);
    }
    lane.close();
    return undefined;
  }

  /** All lanes have been closed. */
  close(): void {
    closeSync(this.#netns);
  }
}

function laneRefusal(error: unknown): unknown {
  if (!(error instanceof SysError)) return error;
  if (error.code === 'EPERM')
    return new SwitchError(
      'LANE_NO_RIGHTS',
      `zero copy takes the rights CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_SYS_ADMIN: run as root (${error.message})`,
    );
  if (error.code === 'EOPNOTSUPP' || error.code === 'EINVAL' || error.code === 'ENOSYS')
    return new SwitchError(
      'LANE_NOT_SUPPORTED',
      `zero copy takes Linux 6.6, with veth and AF_XDP; use --zero-copy 0 (${error.message})`,
    );
  return error;
}

/** A lane that is open. */
export class OpenLane {
  readonly #request: LaneRequest;
  readonly #pool: WindowPool;
  readonly #netns: number;
  readonly #window: WindowHandle;
  readonly #firstOff: number;
  #nextOff: number;
  #umem: GuestUmem | undefined;
  #fd = -1;
  /** what brings frames to the guest */
  #inward = -1;
  readonly #fds: number[] = [];
  #far = 0;
  #spec: LaneSpec | undefined;

  constructor(request: LaneRequest, pool: WindowPool, netns: number) {
    this.#request = request;
    this.#pool = pool;
    this.#netns = netns;
    this.#window = pool.acquire();
    this.#firstOff = firstOffset(this.#window, PAGE);
    this.#nextOff = this.#firstOff;
  }

  /** What the lcore makes its lane from. */
  get spec(): LaneSpec {
    return this.#spec as LaneSpec;
  }

  /** @param next another number each time. @returns false if it was not wanted any more */
  async open(next: () => number): Promise<boolean> {
    const { rxBuffers, txBuffers, files, wanted, steering, uplink } = this.#request;
    const scratchBytes = txBuffers * UMEM_CHUNK;
    // a chunk more: one that begins in the guest's last bytes ends in it
    const ownBytes = scratchBytes + UMEM_CHUNK;
    const scratchOff = this.#allocate(ownBytes);
    const own = createMemfd('lane', UMEM_PAD + ownBytes);
    try {
      mapInto(this.#window, scratchOff, ownBytes, own, UMEM_PAD);
      this.#umem = new GuestUmem(files, own, ownBytes);
    } finally {
      closeSync(own);
    }
    this.#fd = inOpenNetns(this.#netns, () => openXdpSocket());
    if (!(await this.#umem.register(this.#fd, wanted))) return false;
    const elements = ELEMENTS_PER_FRAME * txBuffers;
    const received = Math.max(rxBuffers, 2);
    for (const [option, size] of [
      [XDP_UMEM_FILL_RING, received],
      [XDP_UMEM_COMPLETION_RING, elements],
      [XDP_RX_RING, received],
      [XDP_TX_RING, elements],
    ] as const)
      makeXdpRing(this.#fd, option, size);
    const { rx, tx, fr, cr } = ringParts(this.#fd);
    const maxFrame = Math.min(
      UMEM_CHUNK - XDP_PACKET_HEADROOM,
      ETHHDR.size + VLAN_HLEN + this.#request.steering.exit.mtu,
    );
    const { pieces, ownOff, bytes } = this.#umem;
    this.#spec = {
      uplink,
      fd: this.#fd,
      window: this.#window,
      rx: this.#mapRing(XDP_PGOFF_RX_RING, rx, received, XDP_DESC.size),
      tx: this.#mapRing(XDP_PGOFF_TX_RING, tx, elements, XDP_DESC.size),
      fill: this.#mapRing(XDP_UMEM_PGOFF_FILL_RING, fr, received, ADDRESS_BYTES),
      completion: this.#mapRing(XDP_UMEM_PGOFF_COMPLETION_RING, cr, elements, ADDRESS_BYTES),
      pieces: [...pieces, { window: this.#window.id, off: scratchOff, len: ownBytes, umemOff: ownOff }],
      umemBytes: bytes,
      chunk: UMEM_CHUNK,
      scratchOff,
      droppedOff: this.#allocate(PAGE),
      maxFrame,
      rxBuffers,
      txBuffers,
    };
    this.#lay(steering.exit, maxFrame, next);
    return true;
  }

  /** Lays the cable and sets the programs at its ends; then frames may come. */
  #lay(exit: LaneExit, maxFrame: number, next: () => number): void {
    const { steering, lane } = this.#request;
    const far = 'lane';
    const nearIndex = inNetns(exit.netns, () => this.#addCable(exit.mtu, far, next));
    const silent = this.#load(BPF_PROG_TYPE_SCHED_CLS, silentProgram(), 'lane_silent');
    inOpenNetns(this.#netns, () => {
      const socket = new BpfMap(BPF_MAP_TYPE_XSKMAP, 4, 4, 1, 'lane_socket');
      this.#fds.push(socket.fd);
      const dropped = new BpfMap(BPF_MAP_TYPE_ARRAY, 4, COUNT_BYTES, 1, 'lane_dropped', BPF_F_MMAPABLE);
      this.#fds.push(dropped.fd);
      mapInto(this.#window, this.spec.droppedOff, PAGE, dropped.fd, 0);
      this.#fds.push(attachTcx(silent, this.#far, 'egress'));
      const program = this.#load(BPF_PROG_TYPE_XDP, farProgram(socket.fd, dropped.fd, maxFrame), 'lane_far');
      this.#inward = attachXdp(program, this.#far, XDP_FLAGS_DRV_MODE);
      setLinkUp(this.#far);
      bindXdpSocket(this.#fd, this.#far, 0, XDP_USE_NEED_WAKEUP | XDP_COPY | XDP_USE_SG);
      socket.update(mapIndex(0), mapIndex(this.#fd));
    });
    inNetns(exit.netns, () => {
      const outward = this.#load(BPF_PROG_TYPE_SCHED_CLS, nearProgram(exit.index), 'lane_near');
      this.#fds.push(attachTcx(silent, nearIndex, 'egress'), attachTcx(outward, nearIndex, 'ingress'));
      setLinkUp(nearIndex);
      steering.setEnd(lane, nearIndex);
    });
  }

  #load(type: number, program: Uint8Array, name: string): number {
    const fd = loadProgram(type, program, name);
    this.#fds.push(fd);
    return fd;
  }

  /** In the uplink's namespace. @returns the near end's number */
  #addCable(mtu: number, far: string, next: () => number): number {
    for (let tries = 1; ; tries++) {
      const near = `vs${process.pid}z${next()}`;
      const farName = `${far}${near.slice(near.indexOf('z') + 1)}`;
      try {
        addVethPair({ near, far: farName, farNetns: this.#netns, mtu: Math.max(mtu + VLAN_HLEN, MIN_CABLE_MTU) });
      } catch (error) {
        if (!(error instanceof SysError) || error.code !== 'EEXIST' || tries === NAME_TRIES) throw error;
        continue;
      }
      this.#far = inOpenNetns(this.#netns, () => indexOf(farName));
      return indexOf(near);
    }
  }

  #allocate(bytes: number): number {
    const off = this.#nextOff;
    this.#nextOff += alignUp(bytes, PAGE);
    return off;
  }

  #mapRing(pageOff: number, parts: RingParts, size: number, elementBytes: number): XdpRingPlace {
    const len = alignUp(parts.desc + size * elementBytes, PAGE);
    const off = this.#allocate(len);
    mapInto(this.#window, off, len, this.#fd, pageOff);
    const { producer, consumer, desc, flags } = parts;
    return {
      producerOff: off + producer,
      consumerOff: off + consumer,
      flagsOff: off + flags,
      descOff: off + desc,
      size,
    };
  }

  /** Nothing comes any more: when this returns, the kernel writes no more to the guest's memory. */
  quiet(): void {
    if (this.#inward < 0) return;
    this.#request.steering.removeEnd(this.#request.lane);
    closeSync(this.#inward);
    this.#inward = -1;
  }

  /** Closes everything. No lcore uses it any more. */
  close(): void {
    this.quiet();
    if (this.#nextOff > this.#firstOff) unmapFrom(this.#window, this.#firstOff, this.#nextOff - this.#firstOff);
    for (const fd of this.#fds) closeSync(fd);
    if (this.#fd >= 0) closeSync(this.#fd);
    if (this.#far > 0) inOpenNetns(this.#netns, () => removeLink(this.#far));
    this.#umem?.close();
    this.#pool.release(this.#window);
  }
}

/** The number of an interface of the calling thread's namespace that has just been made. */
function indexOf(name: string): number {
  const found = findInterface(name);
  if (found === undefined) throw new SwitchError('UPLINK_NO_INTERFACE', `${name} was removed as soon as it was made`);
  return found.index;
}
