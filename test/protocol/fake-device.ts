/**
 * A device that records what the transport tells it, and checks the contract: calls never overlap, none after destroy.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { ProtocolError } from '../../src/errors.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import { featureMask, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../../src/uapi/virtio-net.ts';
import {
  type FrontEndChannel,
  type IotlbEntry,
  type MemoryRegion,
  NO_FD,
  type SharedArea,
  type StateDirection,
  type VhostDevice,
  type VringAddresses,
} from '../../src/vhost/vhost-device.ts';

/** One call: the method's name and its arguments, with descriptors shown as `fd` or `NO_FD`. */
export type Call = readonly unknown[];

const shown = (fd: number) => (fd === NO_FD ? 'NO_FD' : 'fd');
const shownArea = (area: SharedArea) => ({ ...area, fd: shown(area.fd) });

export class FakeDevice implements VhostDevice {
  offeredFeatures = featureMask(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_NET_F_MRG_RXBUF);
  /** All there are: the transport leaves out those that it does not serve. */
  protocolFeatures = 2n ** 64n - 1n;
  maxVrings = 4;
  queueNum = 3;
  maxMemSlots = 509;
  readonly calls: Call[] = [];
  /** Every call takes this long, ms. */
  delayMs = 0;
  /** The next call fails with this. */
  failNext: Error | undefined;
  vringBase = 0;
  config = Uint8Array.from({ length: 20 }, (_, i) => i + 1);
  status = 0;
  addresses: bigint[] = [];
  channel: FrontEndChannel | undefined;
  /** What checkState waits for. */
  transfer: Promise<void> = Promise.resolve();
  destroyed = false;
  busy = false;

  /** What may be told at any time but within another call: the part of a call that nobody waits for. */
  #tell(...call: Call): void {
    assert.equal(this.busy, false, `${call[0]} overlaps another call`);
    assert.equal(this.destroyed, false, `${call[0]} after destroy`);
    const failure = this.failNext;
    this.failNext = undefined;
    if (failure !== undefined) throw failure;
    this.calls.push(call);
  }

  async #call(fds: readonly number[], ...call: Call): Promise<void> {
    assert.equal(this.busy, false, `${call[0]} overlaps another call`);
    assert.equal(this.destroyed, false, `${call[0]} after destroy`);
    this.busy = true;
    for (const fd of fds) if (fd !== NO_FD) closeSync(fd);
    if (this.delayMs > 0) await sleep(this.delayMs);
    this.busy = false;
    this.#tell(...call);
  }

  setFeatures = (features: bigint, protocolFeatures: boolean) =>
    this.#call([], 'setFeatures', features, protocolFeatures);
  setAddressSpace = (space: 'frontend' | 'guest') => this.#tell('setAddressSpace', space);
  setMemory = (regions: readonly MemoryRegion[]) => {
    this.addresses = regions.map((_, i) => 0x7000_0000_0000n + 0x1_0000_0000n * BigInt(i));
    return this.#call(
      regions.map(({ fd }) => fd),
      'setMemory',
      regions.map((region) => ({ ...region, fd: shown(region.fd) })),
    );
  };
  addMemory = (region: MemoryRegion) => {
    this.addresses = [0x7800_0000_0000n];
    return this.#call([region.fd], 'addMemory', { ...region, fd: shown(region.fd) });
  };
  removeMemory = (guestAddr: number, size: number, frontendAddr: number) =>
    this.#call([], 'removeMemory', guestAddr, size, frontendAddr);
  setVringNum = (vring: number, num: number) => this.#call([], 'setVringNum', vring, num);
  setVringAddr = (vring: number, addresses: VringAddresses) => this.#call([], 'setVringAddr', vring, addresses);
  setVringBase = (vring: number, base: number) => this.#call([], 'setVringBase', vring, base);
  getVringBase = async (vring: number, drain: boolean) => {
    await this.#call([], 'getVringBase', vring, drain);
    return this.vringBase;
  };
  setVringKick = (vring: number, fd: number) => this.#call([fd], 'setVringKick', vring, shown(fd));
  setVringCall = (vring: number, fd: number) => this.#call([fd], 'setVringCall', vring, shown(fd));
  setVringErr = (vring: number, fd: number) => this.#call([fd], 'setVringErr', vring, shown(fd));
  setVringEnable = (vring: number, enabled: boolean) => this.#call([], 'setVringEnable', vring, enabled);
  setVringEndian = (vring: number, bigEndian: boolean) => this.#call([], 'setVringEndian', vring, bigEndian);
  setInBand = (inBand: boolean) => this.#tell('setInBand', inBand);
  kickVring = (vring: number) => this.#call([], 'kickVring', vring);

  setChannel = (channel: FrontEndChannel | undefined) => {
    this.channel = channel;
    this.#tell('setChannel', channel === undefined ? undefined : 'channel');
  };
  setLog = (area: SharedArea) => this.#call([area.fd], 'setLog', shownArea(area));
  setLogFd = (fd: number) => this.#call([fd], 'setLogFd', shown(fd));

  sendRarp = (mac: Uint8Array) => this.#call([], 'sendRarp', Buffer.from(mac).toString('hex'));
  setMtu = (mtu: number) => this.#call([], 'setMtu', mtu);

  updateIotlb = (entry: IotlbEntry) => this.#call([], 'updateIotlb', entry);
  invalidateIotlb = (iova: number, size: number) => this.#call([], 'invalidateIotlb', iova, size);

  getConfig = (offset: number, size: number) => {
    this.#tell('getConfig', offset, size);
    if (offset + size > this.config.length) throw refusal('GET_CONFIG');
    return this.config.slice(offset, offset + size);
  };
  setConfig = (offset: number, bytes: Uint8Array, migration: boolean) =>
    this.#call([], 'setConfig', offset, [...bytes], migration);

  postcopyAdvise = async () => {
    await this.#call([], 'postcopyAdvise');
    return openSync('/dev/null', 'r');
  };
  postcopyListen = () => this.#call([], 'postcopyListen');
  postcopyAddresses = () => this.addresses;
  postcopyReady = () => this.#call([], 'postcopyReady');
  postcopyEnd = () => this.#call([], 'postcopyEnd');

  getInflight = (queues: number, queueSize: number) => {
    this.#tell('getInflight', queues, queueSize);
    return { fd: createMemfd('inflight', 0x3000), size: 0x2000, fileOff: 0x1000 };
  };
  setInflight = (area: SharedArea, queues: number, queueSize: number) =>
    this.#call([area.fd], 'setInflight', shownArea(area), queues, queueSize);

  resetRings = () => this.#call([], 'resetRings');
  setStatus = (status: number) => {
    this.status = status;
    return this.#call([], 'setStatus', status);
  };
  getStatus = () => this.status;

  transferState = (direction: StateDirection, phase: number, fd: number) =>
    this.#call([fd], 'transferState', direction, phase, shown(fd));
  checkState = async () => {
    this.#tell('checkState');
    await this.transfer;
  };

  reset = () => this.#call([], 'reset');
  destroy = async () => {
    await this.#call([], 'destroy');
    this.destroyed = true;
  };
}

/** The error a device refuses with. */
export const refusal = (request = 'SET_VRING_NUM') =>
  new ProtocolError('DEVICE_REFUSES', request, 'the device refuses');
