/**
 * A virtio-user port on the test's own thread, with a back end of ours at its rings: a vhost port, or the test's own hand.
 */

import { PortTable } from '../../src/lcore/port-table.ts';
import type { WindowViews } from '../../src/mem/window.ts';
import { ringLayout } from '../../src/port/net-pair.ts';
import { makeUserRing, PAIR_WANTED, pairControl, type VirtioUserSpec } from '../../src/port/user-pair.ts';
import { type UserRing, type UserRingPlan, userRingState } from '../../src/port/user-ring.ts';
import type { VhostPort } from '../../src/port/vhost-port.ts';
import { VirtioUserPort } from '../../src/port/virtio-user-port.ts';
import { counterBlock, PORT_SLOTS, type PortCounter, readCounters } from '../../src/stats/counters.ts';
import { Caller, createEventfds } from '../../src/sys/eventfd.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { Burst } from '../../src/virtio-net/burst.ts';
import { acceptsOf, maySendOf } from '../../src/virtio-net/offload.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { pool, Ram } from './ram.ts';

export interface UserBenchOptions {
  readonly format?: 'split' | 'packed';
  readonly inOrder?: boolean;
  readonly eventIdx?: boolean;
  readonly mergeable?: boolean;
  readonly size?: number;
  /** features beside these */
  readonly features?: bigint;
  /** bytes of a receive buffer, header included */
  readonly rxRoom?: number;
  readonly txRoom?: number;
}

const GUEST_BASE = 0x4000_0000;

export class UserBench {
  readonly ram = new Ram({ base: GUEST_BASE });
  readonly windows: WindowViews[] = [];
  readonly ringStage = new RingStage();
  readonly burst: Burst = this.ringStage.burst;
  readonly plans: readonly [rx: UserRingPlan, tx: UserRingPlan];
  readonly rings: readonly [rx: UserRing, tx: UserRing];
  readonly control = pairControl();
  readonly spec: VirtioUserSpec;
  readonly headerLen = 12;
  /** the back end */
  readonly table: PortTable;
  readonly device: VhostPort;
  readonly #options: UserBenchOptions;
  readonly #block = counterBlock(PORT_SLOTS);
  port: VirtioUserPort;

  constructor(options: UserBenchOptions = {}) {
    this.#options = options;
    const { rxRoom = 2048, txRoom = 2048, mergeable = false } = options;
    this.windows[this.ram.handle.id] = this.ram.views;
    this.plans = [this.#plan(rxRoom, true), this.#plan(txRoom, false)];
    this.rings = [makeUserRing(this.plans[0], this.ram.views), makeUserRing(this.plans[1], this.ram.views)];
    for (const ring of this.rings) ring.reset();
    const [rxKickFd, rxCallFd, txKickFd] = createEventfds(3);
    const [rx, tx] = this.plans;
    const { features = 0n } = options;
    const control = this.control.buffer as SharedArrayBuffer;
    this.spec = {
      windows: [this.ram.handle],
      headerLen: this.headerLen,
      mergeable,
      accepts: acceptsOf(features),
      maySend: maySendOf(features),
      pairs: [{ control, rx, tx, rxKickFd, rxCallFd, txKickFd }],
    };
    this.port = this.newPort();
    this.table = new PortTable(1, new Caller(new Int32Array(1), 0), pool.acquire(), { onFault() {}, onMiss() {} });
    this.table.addPort(0, counterBlock(PORT_SLOTS));
    this.table.setMemory(0, this.ram.memory);
    this.device = this.table.ports[0] as VhostPort;
  }

  #plan(room: number, receives: boolean): UserRingPlan {
    const { format = 'split', size = 64, inOrder = false, eventIdx = true } = this.#options;
    const layout = ringLayout(format === 'packed', size);
    const { off } = this.ram.alloc(layout.bytes, 4096);
    const stride = Math.ceil(room / 64) * 64;
    const buffers = this.ram.alloc(size * stride);
    return {
      format,
      place: { descOff: off + layout.descOff, availOff: off + layout.availOff, usedOff: off + layout.usedOff },
      ...{ size, eventIdx, inOrder, receives, stride, room },
      buffersOff: buffers.off,
      addressDelta: buffers.addr - buffers.off,
      state: userRingState(size),
    };
  }

  /** What another thread would make of the same card. */
  newPort(): VirtioUserPort {
    const tools = { ringStage: this.ringStage, windows: this.windows };
    return new VirtioUserPort(0, new Float64Array(this.#block), this.spec, tools);
  }

  /** Connects the back end: it begins where the rings stand. */
  connect(connection = 1, bases: readonly number[] = this.rings.map(({ freshBase }) => freshBase)): void {
    for (const [vring, plan] of this.plans.entries()) {
      const { place, size, format, eventIdx } = plan;
      const at = (off: number) => ({ window: this.ram.handle.id, off });
      const basic = featureMask(VIRTIO_F_VERSION_1, ...(this.spec.mergeable ? [VIRTIO_NET_F_MRG_RXBUF] : []));
      const features = basic | (this.#options.features ?? 0n);
      this.table.startVring(0, vring, {
        ring: {
          ...{ format, num: size, eventIdx, indirect: false, base: bases[vring], kickFd: NO_FD, callFd: NO_FD },
          ...{ desc: at(place.descOff), avail: at(place.availOff), used: at(place.usedOff) },
        },
        features,
        enabled: true,
        errFd: NO_FD,
      });
    }
    Atomics.store(this.control, PAIR_WANTED, connection);
  }

  /** The back end goes, as one that is killed. */
  disconnect(): void {
    for (const vring of [0, 1]) this.table.stopVring(0, vring);
    Atomics.store(this.control, PAIR_WANTED, 0);
  }

  get counters(): Record<PortCounter, number> {
    return readCounters(PORT_SLOTS, this.#block);
  }

  /** The frames of the port's burst. */
  frames(): Buffer[] {
    const { first, segments, count } = this.burst;
    return Array.from({ length: count }, (_, i) => {
      const pieces: Buffer[] = [];
      for (let s = first[i]; s < first[i + 1]; s++) {
        const { u8 } = this.windows[segments.window[s]];
        pieces.push(Buffer.from(u8.slice(segments.off[s], segments.off[s] + segments.len[s])));
      }
      return Buffer.concat(pieces);
    });
  }

  /** Receives a burst and completes it. */
  receive(): Buffer[] {
    this.port.receive();
    const frames = this.frames();
    this.port.complete();
    return frames;
  }

  /** The back end puts frames into receive buffers. @returns how many found room */
  deliver(...frames: readonly Buffer[]): number {
    const { burst } = this.table;
    let delivered = 0;
    for (const bytes of frames) {
      const { off } = this.#scratch;
      bytes.copy(this.ram.bytes, off);
      burst.putOne(this.ram.handle.id, off, bytes);
      delivered += this.device.transmit(Int32Array.of(0), 0, 1);
    }
    return delivered;
  }

  /** The same for one with needs, whose header is in the back end's burst. */
  deliverWith(bytes: Buffer, needs: number): void {
    const { burst } = this.table;
    bytes.copy(this.ram.bytes, this.#scratch.off);
    burst.putOne(this.ram.handle.id, this.#scratch.off, bytes);
    burst.needs[0] = needs;
    this.device.transmit(Int32Array.of(0), 0, 1);
  }

  readonly #scratch = this.ram.alloc(65536);

  /** Sends frames from the port. @returns how many were taken */
  send(...frames: readonly Buffer[]): number {
    const { burst } = this;
    burst.segments.count = 0;
    burst.count = 0;
    const at = this.#sending.off;
    for (const [i, bytes] of frames.entries()) {
      const off = at + i * 16384;
      bytes.copy(this.ram.bytes, off);
      burst.first[i] = burst.segments.count;
      burst.segments.push(this.ram.handle.id, off, bytes.length);
      burst.len[i] = bytes.length;
      burst.needs[i] = 0;
      burst.first[i + 1] = burst.segments.count;
      burst.count = i + 1;
    }
    const list = Int32Array.from({ length: frames.length }, (_, i) => i);
    return this.port.transmit(list, 0, frames.length);
  }

  readonly #sending = this.ram.alloc(32 * 16384);

  /** The back end takes what has been sent, a burst at most. */
  taken(): Buffer[] {
    const { burst, windows } = this.table;
    const n = this.device.receive(0);
    const frames = Array.from({ length: n }, (_, i) => {
      const s = burst.first[i];
      const { u8 } = windows[burst.segments.window[s]];
      return Buffer.from(u8.slice(burst.segments.off[s], burst.segments.off[s] + burst.segments.len[s]));
    });
    this.device.complete(0);
    return frames;
  }
}
