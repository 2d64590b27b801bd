/**
 * A device that records what the transport tells it, and checks the contract: calls never overlap, none after destroy.
 */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { ProtocolError } from '../../src/errors.ts';
import { featureMask, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import { type MemoryRegion, NO_FD, type VhostDevice, type VringAddresses } from '../../src/vhost/vhost-device.ts';

/** One call: the method's name and its arguments, with descriptors shown as `fd` or `NO_FD`. */
export type Call = readonly unknown[];

const shown = (fd: number) => (fd === NO_FD ? 'NO_FD' : 'fd');

export class FakeDevice implements VhostDevice {
  offeredFeatures = featureMask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF);
  maxVrings = 4;
  maxMemSlots = 509;
  readonly calls: Call[] = [];
  /** Every call takes this long, ms. */
  delayMs = 0;
  /** The next call fails with this. */
  failNext: Error | undefined;
  vringBase = 0;
  destroyed = false;
  busy = false;

  async #call(fds: readonly number[], ...call: Call): Promise<void> {
    assert.equal(this.busy, false, `${call[0]} overlaps another call`);
    assert.equal(this.destroyed, false, `${call[0]} after destroy`);
    this.busy = true;
    for (const fd of fds) if (fd !== NO_FD) closeSync(fd);
    if (this.delayMs > 0) await sleep(this.delayMs);
    this.busy = false;
    const failure = this.failNext;
    this.failNext = undefined;
    if (failure !== undefined) throw failure;
    this.calls.push(call);
  }

  setFeatures = (features: bigint, protocolFeatures: boolean) =>
    this.#call([], 'setFeatures', features, protocolFeatures);
  setMemory = (regions: readonly MemoryRegion[]) =>
    this.#call(
      regions.map(({ fd }) => fd),
      'setMemory',
      regions.map((region) => ({ ...region, fd: shown(region.fd) })),
    );
  addMemory = (region: MemoryRegion) => this.#call([region.fd], 'addMemory', { ...region, fd: shown(region.fd) });
  removeMemory = (guestAddr: number, size: number, frontendAddr: number) =>
    this.#call([], 'removeMemory', guestAddr, size, frontendAddr);
  setVringNum = (vring: number, num: number) => this.#call([], 'setVringNum', vring, num);
  setVringAddr = (vring: number, addresses: VringAddresses) => this.#call([], 'setVringAddr', vring, addresses);
  setVringBase = (vring: number, base: number) => this.#call([], 'setVringBase', vring, base);
  getVringBase = async (vring: number) => {
    await this.#call([], 'getVringBase', vring);
    return this.vringBase;
  };
  setVringKick = (vring: number, fd: number) => this.#call([fd], 'setVringKick', vring, shown(fd));
  setVringCall = (vring: number, fd: number) => this.#call([fd], 'setVringCall', vring, shown(fd));
  setVringErr = (vring: number, fd: number) => this.#call([fd], 'setVringErr', vring, shown(fd));
  setVringEnable = (vring: number, enabled: boolean) => this.#call([], 'setVringEnable', vring, enabled);
  reset = () => this.#call([], 'reset');
  destroy = async () => {
    await this.#call([], 'destroy');
    this.destroyed = true;
  };
}

/** The error a device refuses with. */
export const refusal = () => new ProtocolError('DEVICE_REFUSES', 'SET_VRING_NUM', 'the device refuses');
