/**
 * A datapath that moves nothing: it records what a device asks, and checks that the device keeps to the contract.
 */
import assert from 'node:assert/strict';
import { fstatSync } from 'node:fs';
import type { Chunk } from '../../src/mem/address-map.ts';
import type { Place } from '../../src/mem/guest-memory.ts';
import { openWindow } from '../../src/mem/window.ts';
import type { DeviceMemory, VringConfig } from '../../src/vhost/datapath.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { NetDatapath } from '../../src/virtio-net/net-datapath.ts';

/** What a running vring was last told. */
interface RunningVring {
  config: VringConfig;
  enabled: boolean;
  callFd: number;
}

const assertOpen = (fd: number) => {
  if (fd !== NO_FD) fstatSync(fd);
};

/** A vring's parts and records lie in windows that were handed over. */
function assertInside({ windows }: DeviceMemory, { ring: { desc, avail, used, inflight } }: VringConfig): void {
  for (const { window } of [desc, avail, used, ...(inflight === undefined ? [] : [inflight])])
    assert.ok(
      windows.some(({ id }) => id === window),
      'a vring lies in memory that was handed over',
    );
}

export class FakeDatapath implements NetDatapath {
  /** one line a call, e.g. `start 0` */
  readonly calls: string[] = [];
  readonly running: (RunningVring | undefined)[];
  memory: DeviceMemory = { chunks: [], windows: [], iotlb: false, log: undefined };
  /** frames to be switched */
  readonly injected: Uint8Array[] = [];
  /** what `stopVring` answers; by default where the ring began */
  nextAvail: number | undefined;
  /** called when memory changes, before the device hears that it has */
  onMemory: () => void = () => {};
  #removed = false;

  constructor(vrings = 2) {
    this.running = Array(vrings).fill(undefined);
  }

  get chunks(): readonly Chunk[] {
    return this.memory.chunks;
  }

  async #call(name: string): Promise<void> {
    assert.equal(this.#removed, false, `${name} after the port was removed`);
    this.calls.push(name);
    // as a real datapath's, the answer takes its time
    await new Promise((resolve) => setImmediate(resolve));
  }

  /** A byte of what was handed over, as an lcore would see it. */
  byteAt({ window, off }: Place): number {
    const handle = this.memory.windows.find(({ id }) => id === window);
    assert.ok(handle !== undefined, 'a place’s window was handed over');
    return openWindow(handle).u8[off];
  }

  /** The first byte of a chunk. */
  byteOf({ window, windowOff }: Chunk): number {
    return this.byteAt({ window, off: windowOff });
  }

  async addPort(): Promise<void> {
    await this.#call('addPort');
  }

  async removePort(): Promise<void> {
    await this.#call('removePort');
    assert.ok(
      this.running.every((vring) => vring === undefined),
      'a port is removed with its vrings stopped',
    );
    this.#removed = true;
  }

  async setMemory(_port: number, memory: DeviceMemory): Promise<void> {
    await this.#call('memory');
    this.onMemory();
    const ids = memory.windows.map(({ id }) => id);
    for (const { window } of [...memory.chunks, ...(memory.log === undefined ? [] : [memory.log, ...memory.log.pages])])
      assert.ok(ids.includes(window), 'every window that is named is handed over');
    assertOpen(memory.log?.callFd ?? NO_FD);
    for (const vring of this.running) if (vring !== undefined) assertInside(memory, vring.config);
    this.memory = structuredClone(memory);
  }

  async startVring(_port: number, vring: number, config: VringConfig): Promise<void> {
    await this.#call(`start ${vring}`);
    assert.equal(this.running[vring], undefined, `vring ${vring} is started twice`);
    for (const fd of [config.ring.kickFd, config.ring.callFd, config.errFd]) assertOpen(fd);
    assertInside(this.memory, config);
    this.running[vring] = { config: structuredClone(config), enabled: config.enabled, callFd: config.ring.callFd };
  }

  async stopVring(_port: number, vring: number, drain: boolean): Promise<number | undefined> {
    await this.#call(drain ? `stop ${vring}` : `stop ${vring} undrained`);
    const { config } = this.#running(vring);
    assertOpen(config.ring.kickFd);
    assertOpen(config.errFd);
    this.running[vring] = undefined;
    return this.nextAvail ?? config.ring.base;
  }

  async enableVring(_port: number, vring: number, enabled: boolean): Promise<void> {
    await this.#call(`enable ${vring} ${enabled}`);
    this.#running(vring).enabled = enabled;
  }

  async setCall(_port: number, vring: number, fd: number): Promise<void> {
    await this.#call(`call ${vring}`);
    const running = this.#running(vring);
    assertOpen(running.callFd);
    assertOpen(fd);
    running.callFd = fd;
  }

  async inject(_port: number, frame: Uint8Array): Promise<void> {
    await this.#call('inject');
    this.injected.push(frame.slice());
  }

  #running(vring: number): RunningVring {
    const running = this.running[vring];
    assert.ok(running !== undefined, `vring ${vring} runs`);
    return running;
  }
}
