/**
 * A datapath that moves nothing: it records what a device asks, and checks that the device keeps to the contract.
 */
import assert from 'node:assert/strict';
import { fstatSync } from 'node:fs';
import type { Chunk } from '../../src/mem/address-map.ts';
import { openWindow, type WindowHandle } from '../../src/mem/window.ts';
import type { Datapath } from '../../src/vhost/datapath.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { VringConfig } from '../../src/virtqueue/split-ring.ts';

/** What a running vring was last told. */
interface RunningVring {
  config: VringConfig;
  enabled: boolean;
  callFd: number;
}

const assertOpen = (fd: number) => {
  if (fd !== NO_FD) fstatSync(fd);
};

export class FakeDatapath implements Datapath {
  /** one line a call, e.g. `start 0` */
  readonly calls: string[] = [];
  readonly running: (RunningVring | undefined)[] = [undefined, undefined];
  chunks: readonly Chunk[] = [];
  windows: readonly WindowHandle[] = [];
  /** what `stopVring` answers */
  nextAvail = 0;
  /** called when memory changes, before the device hears that it has */
  onMemory: () => void = () => {};
  #removed = false;

  async #call(name: string): Promise<void> {
    assert.equal(this.#removed, false, `${name} after the port was removed`);
    this.calls.push(name);
    // as a real datapath's, the answer takes its time
    await new Promise((resolve) => setImmediate(resolve));
  }

  /** The first byte of a chunk, as an lcore would see it. */
  byteAt(chunk: Chunk): number {
    const window = this.windows.find(({ id }) => id === chunk.window);
    assert.ok(window !== undefined, 'a chunk’s window was handed over');
    return openWindow(window).u8[chunk.windowOff];
  }

  async addPort(): Promise<void> {
    await this.#call('addPort');
  }

  async removePort(): Promise<void> {
    await this.#call('removePort');
    assert.deepEqual(this.running, [undefined, undefined], 'a port is removed with its vrings stopped');
    this.#removed = true;
  }

  async setMemory(_port: number, chunks: readonly Chunk[], windows: readonly WindowHandle[]): Promise<void> {
    await this.#call('memory');
    this.onMemory();
    this.chunks = [...chunks];
    this.windows = [...windows];
  }

  async startVring(_port: number, vring: number, config: VringConfig): Promise<void> {
    await this.#call(`start ${vring}`);
    assert.equal(this.running[vring], undefined, `vring ${vring} is started twice`);
    const { desc, avail, used, kickFd, callFd } = config.ring;
    for (const fd of [kickFd, callFd, config.errFd]) assertOpen(fd);
    for (const { window } of [desc, avail, used])
      assert.ok(
        this.windows.some(({ id }) => id === window),
        'a vring lies in memory that was handed over',
      );
    this.running[vring] = { config, enabled: config.enabled, callFd };
  }

  async stopVring(_port: number, vring: number): Promise<number | undefined> {
    await this.#call(`stop ${vring}`);
    const { config } = this.#running(vring);
    assertOpen(config.ring.kickFd);
    assertOpen(config.errFd);
    this.running[vring] = undefined;
    return this.nextAvail;
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

  #running(vring: number): RunningVring {
    const running = this.running[vring];
    assert.ok(running !== undefined, `vring ${vring} runs`);
    return running;
  }
}
