/**
 * A device over a recording datapath, and the requests that set it up.
 */
import assert from 'node:assert/strict';
import { readdirSync, writeSync } from 'node:fs';
import { WindowPool } from '../../src/mem/window.ts';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import type { DeviceModel, Postcopy } from '../../src/vhost/device-model.ts';
import type { FrontEndChannel, MemoryRegion, SharedArea } from '../../src/vhost/vhost-device.ts';
import { VirtioDevice, type VirtioDeviceEvents } from '../../src/vhost/virtio-device.ts';
import { NetDevice, type NetDeviceOptions } from '../../src/virtio-net/net-device.ts';
import { FakeDatapath } from './fake-datapath.ts';

export const MIB = 2 ** 20;
/** Front-end addresses are guest addresses plus this. */
export const FRONTEND = 0x7f00_0000_0000;
/** Descriptors of a vring. */
export const NUM = 256;
export const MODERN = featureMask(VIRTIO_F_VERSION_1);
export const pool = new WindowPool('wasm');
/** Descriptors this process has open. */
export const openFds = () => readdirSync('/proc/self/fd').length;

/** Runs `use` and checks that it leaves neither descriptors nor windows behind. */
export async function leakless(use: () => Promise<void>): Promise<void> {
  const before = [openFds(), pool.lent];
  await use();
  assert.deepEqual([openFds(), pool.lent], before, 'descriptors open and windows in use are as many as before');
}

/** A region of guest memory with 1 in its first byte. */
export function region(guestAddr: number, size = MIB, touched = true): MemoryRegion {
  const fd = createMemfd('test', size);
  if (touched) writeSync(fd, Uint8Array.of(1), 0, 1, 0);
  return { guestAddr, size, frontendAddr: FRONTEND + guestAddr, fileOff: 0, fd };
}

/** A memory file to share, of `fileOff + size` bytes, with `first` in its first byte. */
export function sharedArea(size: number, fileOff = 0, first = 0): SharedArea {
  const fd = createMemfd('test', fileOff + size);
  writeSync(fd, Uint8Array.of(first), 0, 1, fileOff);
  return { fd, size, fileOff };
}

/** Addresses of a vring's parts in the region at guest address `base`. */
export const addresses = (vring: number, base = 0, space = FRONTEND) => {
  const at = space + base + 0x10000 * (vring + 1);
  return { flags: 0, descAddr: at, availAddr: at + 0x4000, usedAddr: at + 0x8000, logAddr: 0 };
};

/** A device of no type in particular. */
export const plainModel = (vrings: number, more: Partial<DeviceModel> = {}): DeviceModel => ({
  offeredFeatures: MODERN,
  maxVrings: vrings,
  queueNum: vrings,
  readyVrings: [0],
  configOnOffer: true,
  configSpace: () => Uint8Array.of(1, 2, 3, 4),
  ...more,
});

/** What a device asks of its front end, one line each. */
export class RecordingChannel implements FrontEndChannel {
  readonly asked: string[] = [];
  iotlbMiss = (iova: number, permissions: number) => this.asked.push(`miss 0x${iova.toString(16)} ${permissions}`);
  configChanged = () => this.asked.push('config');
  vringCall = (vring: number) => this.asked.push(`call ${vring}`);
  vringError = (vring: number) => this.asked.push(`error ${vring}`);
}

/** Which vrings to set up, and what differs from the usual. */
export interface SetUp {
  readonly memory?: readonly MemoryRegion[];
  readonly features?: bigint;
  readonly vrings?: readonly number[];
  /** what is added to guest addresses for a ring's */
  readonly space?: number;
  readonly num?: number;
}

/** A device with its datapath and what it has told. */
export class DeviceBench {
  readonly datapath: FakeDatapath;
  readonly told: string[] = [];
  readonly device: VirtioDevice;

  private constructor(vrings: number, make: (datapath: FakeDatapath, events: VirtioDeviceEvents) => VirtioDevice) {
    this.datapath = new FakeDatapath(vrings);
    this.device = make(this.datapath, {
      onReady: () => this.told.push('ready'),
      onStopped: () => this.told.push('stopped'),
      onDestroyed: () => this.told.push('destroyed'),
      onUnusable: (_, problem) => this.told.push(problem),
    });
  }

  /** A network device. */
  static net(options: Partial<NetDeviceOptions> = {}): DeviceBench {
    const all = { id: 5, mergeable: true, pairs: 1, txCsum: false, tso: false, iommu: false, ...options };
    return new DeviceBench(2 * all.pairs, (datapath, events) => new NetDevice(all, pool, datapath, events));
  }

  /** A device of the model's type. */
  static of(model: DeviceModel, createPostcopy?: () => Postcopy): DeviceBench {
    return new DeviceBench(
      model.maxVrings,
      (datapath, events) => new VirtioDevice({ id: 5, model, pool, datapath, events, createPostcopy }),
    );
  }

  /** Everything a front end does, in the usual order; memory is one region at 0. */
  async setUp({
    memory = [region(0)],
    features = MODERN,
    vrings = [0, 1],
    space,
    num = NUM,
  }: SetUp = {}): Promise<this> {
    await this.device.setFeatures(features, true);
    await this.device.setMemory(memory);
    for (const vring of vrings) {
      await this.device.setVringNum(vring, num);
      await this.device.setVringAddr(vring, addresses(vring, 0, space));
      await this.device.setVringCall(vring, createEventfd());
      await this.device.setVringErr(vring, createEventfd());
      await this.device.setVringKick(vring, createEventfd());
      await this.device.setVringEnable(vring, true);
    }
    this.datapath.calls.length = 0;
    return this;
  }

  get runs(): boolean[] {
    return this.datapath.running.map((vring) => vring !== undefined);
  }
}
