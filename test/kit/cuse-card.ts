/** A guest's network card whose front end is this process, over the ioctls of vhost-net, in the order in which QEMU has them. */
import { closeSync } from 'node:fs';
import { GuestRam, type RamRegion } from '../../src/port/guest-ram.ts';
import { NetPair } from '../../src/port/net-pair.ts';
import type { ChainLayout, NetHeader } from '../../src/port/net-queue.ts';
import { openTap } from '../../src/sys/tap.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import {
  featureMask,
  hasFeature,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../src/uapi/virtio.ts';
import { netHeaderSize, VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { memoryTable, u32s, u64, vringAddr } from './cuse-bench.ts';
import { CuseClient } from './cuse-client.ts';

const RING_SIZE = 256;
const JOINED: ChainLayout = { pieces: 'one', indirect: false };
const WANTED = featureMask(
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_NET_F_MRG_RXBUF,
);
const MEMORY: readonly RamRegion[] = [{ guestAddr: 0x4000_0000, size: 2 ** 22 }];
let taps = 0;

export interface CuseCardOptions {
  /** the character device */
  readonly path: string;
  readonly mac: string;
  /** accepted where they are offered; default VERSION_1, EVENT_IDX, INDIRECT_DESC, MRG_RXBUF */
  readonly features?: bigint;
  /** default 4 MiB that are not at the address where the process has them */
  readonly memory?: readonly RamRegion[];
}

export class CuseCard {
  readonly mac: string;
  readonly macBytes: Uint8Array;
  readonly client: CuseClient;
  readonly features: bigint;
  readonly ram: GuestRam;
  readonly pairs: readonly NetPair[];
  readonly #tap: number;

  /** Opens the device and starts both rings. Throws IoctlError. */
  constructor({ path, mac, features = WANTED, memory = MEMORY }: CuseCardOptions) {
    this.mac = mac;
    this.macBytes = Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));
    this.client = new CuseClient(path);
    this.features = this.client.features() & features;
    const headerLen = netHeaderSize(this.features);
    this.ram = new GuestRam(memory);
    const options = {
      ...{ ringSize: RING_SIZE, headerLen, maxFrame: 1522, bufferBytes: 2048, txLayout: JOINED, rxLayout: JOINED },
      eventIdx: hasFeature(this.features, VIRTIO_RING_F_EVENT_IDX),
      mergeable: hasFeature(this.features, VIRTIO_NET_F_MRG_RXBUF),
    };
    this.pairs = [new NetPair(this.ram, options)];
    this.#tap = openTap(`card${process.pid % 10000}x${taps++}`, headerLen, false);
    this.setUp();
  }

  /** All that a device is told before its first packet: after open, and after RESET_OWNER. */
  setUp(): void {
    const { client, ram } = this;
    client.must(vhost.VHOST_SET_OWNER);
    client.must(vhost.VHOST_SET_FEATURES, u64(this.features));
    const table = ram.regions.map(({ guestAddr, size }) => ({ guestAddr, size, userAddr: this.userAddrOf(guestAddr) }));
    client.must(vhost.VHOST_SET_MEM_TABLE, memoryTable(table));
    this.start();
  }

  /** Starts both rings behind what the device has used. */
  start(): void {
    for (const [index, { driver, addr, kickFd, callFd }] of this.pairs[0].rings.entries()) {
      const { place } = driver;
      const at = this.userAddrOf(addr);
      const [used, avail] = [place.usedOff, place.availOff].map((off) => at + off - place.descOff);
      this.client.must(vhost.VHOST_SET_VRING_NUM, u32s(index, driver.size));
      this.client.must(vhost.VHOST_SET_VRING_BASE, u32s(index, driver.vringBase));
      this.client.must(vhost.VHOST_SET_VRING_ADDR, vringAddr(index, at, used, avail));
      this.client.must(vhost.VHOST_SET_VRING_KICK, u32s(index, kickFd));
      this.client.must(vhost.VHOST_SET_VRING_CALL, u32s(index, callFd));
    }
    for (const index of [0, 1]) this.client.setBackend(index, this.#tap);
    for (const index of [0, 1] as const) this.pairs[0].kick(index);
  }

  /** Takes the rings their back end. @returns where each stands */
  stop(): number[] {
    for (const index of [0, 1]) this.client.setBackend(index, -1);
    return [0, 1].map((index) => this.client.vringBase(index));
  }

  /** RESET_OWNER, and all anew with empty rings. */
  reset(): void {
    this.client.must(vhost.VHOST_RESET_OWNER);
    this.pairs[0].reset();
    this.setUp();
  }

  /** Where this process has a guest address. */
  userAddrOf(guestAddr: number): number {
    return Number(this.ram.window.address) + (this.ram.offsetOf(guestAddr) as number);
  }

  send = (frame: Uint8Array, header?: Partial<NetHeader>): boolean => this.pairs[0].send(frame, header);
  flush = (): void => this.pairs[0].flush();
  receive = (): Uint8Array | undefined => this.pairs[0].receive();
  waitFrame = (ms: number): Promise<Uint8Array | undefined> => this.pairs[0].waitFrame(ms);

  /** Closes the device without a word to it, and frees everything. */
  async close(): Promise<void> {
    this.client.close();
    closeSync(this.#tap);
    await this.pairs[0].close();
    this.ram.close();
  }
}
