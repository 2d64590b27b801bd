/**
 * A net device over a recording datapath, and the requests that set it up.
 */
import { readdirSync, writeSync } from 'node:fs';
import { WindowPool } from '../../src/mem/window.ts';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import type { MemoryRegion } from '../../src/vhost/vhost-device.ts';
import { NetDevice } from '../../src/virtio-net/net-device.ts';
import { FakeDatapath } from './fake-datapath.ts';

export const MIB = 2 ** 20;
/** Front-end addresses are guest addresses plus this. */
export const FRONTEND = 0x7f00_0000_0000;
/** Descriptors of a vring. */
export const NUM = 256;
export const MODERN = featureMask(VIRTIO_F_VERSION_1);
const pool = new WindowPool('wasm');
/** Descriptors this process has open. */
export const openFds = () => readdirSync('/proc/self/fd').length;

/** A region of guest memory with 1 in its first byte. */
export function region(guestAddr: number, size = MIB, touched = true): MemoryRegion {
  const fd = createMemfd('test', size);
  if (touched) writeSync(fd, Uint8Array.of(1), 0, 1, 0);
  return { guestAddr, size, frontendAddr: FRONTEND + guestAddr, fileOff: 0, fd };
}

/** Addresses of a vring's parts in the region at guest address `base`. */
export const addresses = (vring: number, base = 0) => {
  const at = FRONTEND + base + 0x10000 * (vring + 1);
  return { flags: 0, descAddr: at, availAddr: at + 0x4000, usedAddr: at + 0x8000, logAddr: 0 };
};

/** A device with its datapath and what it has told. */
export class DeviceBench {
  readonly datapath = new FakeDatapath();
  readonly told: string[] = [];
  readonly device: NetDevice;

  constructor(mergeable = true) {
    this.device = new NetDevice(5, mergeable, pool, this.datapath, {
      onReady: () => this.told.push('ready'),
      onStopped: () => this.told.push('stopped'),
      onDestroyed: () => this.told.push('destroyed'),
    });
  }

  /** Everything a front end does, in the usual order; memory is one region at 0. */
  async setUp(memory: readonly MemoryRegion[] = [region(0)], features = MODERN): Promise<this> {
    await this.device.setFeatures(features, true);
    await this.device.setMemory(memory);
    for (const vring of [0, 1]) {
      await this.device.setVringNum(vring, NUM);
      await this.device.setVringBase(vring, 0);
      await this.device.setVringAddr(vring, addresses(vring));
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
