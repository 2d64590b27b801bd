/**
 * What a front end says of memory: the guest's, translations of its addresses, and what it shares beside it. Maps it, and has the
 * datapath let go of what was there before it is unmapped.
 */
import { closeSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import type { MemoryRegion } from '../mem/guest-memory.ts';
import { setNonblocking } from '../sys/eventfd.ts';
import type { Datapath } from './datapath.ts';
import type { DeviceSpace } from './device-space.ts';
import { InflightArea } from './inflight-area.ts';
import { mapLog } from './log-area.ts';
import type { PostcopyPhases } from './postcopy-phases.ts';
import { type IotlbEntry, NO_FD, type SharedArea } from './vhost-device.ts';
import type { VringRunner } from './vring-runner.ts';

export class MemoryRequests {
  readonly #port: number;
  readonly #space: DeviceSpace;
  readonly #runner: VringRunner;
  readonly #postcopy: PostcopyPhases;
  readonly #datapath: Datapath;

  constructor(port: number, space: DeviceSpace, runner: VringRunner, postcopy: PostcopyPhases, datapath: Datapath) {
    this.#port = port;
    this.#space = space;
    this.#runner = runner;
    this.#postcopy = postcopy;
    this.#datapath = datapath;
  }

  async set(regions: readonly MemoryRegion[]): Promise<void> {
    const { memory, iotlb } = this.#space;
    await this.#runner.stopAll();
    this.#postcopy.unregister();
    memory.clear();
    iotlb.clear();
    let taken = 0;
    try {
      this.#space.checkLog('SET_MEM_TABLE', { more: regions });
      for (const region of regions) memory.add(region, taken++, 'SET_MEM_TABLE');
      this.#postcopy.register();
    } catch (error) {
      for (const { fd } of regions.slice(taken)) closeSync(fd);
      this.#postcopy.unregister();
      memory.clear();
      throw error;
    } finally {
      // Also when it fails: the datapath must forget the old map, whose windows may be another guest's next.
      await this.share();
    }
    await this.#runner.startAll('SET_MEM_TABLE');
  }

  async add(region: MemoryRegion): Promise<void> {
    try {
      this.#space.checkLog('ADD_MEM_REG', { more: [region] });
      this.#postcopy.refuseChange('ADD_MEM_REG');
    } catch (error) {
      closeSync(region.fd);
      throw error;
    }
    this.#space.memory.add(region, this.#space.memory.regions.length, 'ADD_MEM_REG');
    await this.share();
    await this.#runner.startAll('ADD_MEM_REG');
  }

  async remove(guestAddr: number, size: number, frontendAddr: number): Promise<void> {
    this.#postcopy.refuseChange('REM_MEM_REG');
    const removal = this.#space.memory.detach(guestAddr, size, frontendAddr);
    if (removal === undefined)
      throw new ProtocolError(
        'BAD_MEMORY',
        'REM_MEM_REG',
        `no region at guest address 0x${guestAddr.toString(16)} of ${size} bytes`,
      );
    this.#space.refreshIotlb();
    await this.#runner.stopMoved();
    await this.share();
    removal();
  }

  /** Tells the datapath what there is now. */
  async share(): Promise<void> {
    await this.#datapath.setMemory(this.#port, this.#space.deviceMemory);
  }

  async setLog(area: SharedArea): Promise<void> {
    const { pool, memory } = this.#space;
    const log = mapLog(pool, area, memory.guestEnd);
    const old = this.#space.log;
    this.#space.log = log;
    if (this.#space.logging) await this.share();
    old?.release();
  }

  async setLogFd(fd: number): Promise<void> {
    if (fd !== NO_FD) setNonblocking(fd);
    const old = this.#space.logFd;
    this.#space.logFd = fd;
    if (this.#space.logging && this.#space.log !== undefined) await this.share();
    if (old !== NO_FD) closeSync(old);
  }

  async updateIotlb(entry: IotlbEntry): Promise<void> {
    this.#checkTranslated();
    this.#space.updateIotlb(entry);
    await this.#runner.stopMoved();
    await this.share();
    await this.#runner.startAll('IOTLB_MSG', true);
  }

  async invalidateIotlb(iova: number, size: number): Promise<void> {
    this.#checkTranslated();
    this.#space.iotlb.invalidate(iova, size);
    await this.#runner.stopMoved();
    await this.share();
  }

  #checkTranslated(): void {
    if (!this.#space.translated)
      throw new ProtocolError('BAD_IOTLB', 'IOTLB_MSG', 'the driver has not accepted VIRTIO_F_ACCESS_PLATFORM');
  }

  async setInflight(area: SharedArea, queues: number, queueSize: number): Promise<void> {
    const inflight = new InflightArea(
      this.#space.pool,
      area,
      this.#runner.format,
      queues,
      queueSize,
      this.#runner.vrings.length,
    );
    await this.#runner.stopAll();
    const old = this.#space.inflight;
    this.#space.inflight = inflight;
    await this.share();
    old?.mapping.release();
    await this.#runner.startAll('SET_INFLIGHT_FD');
  }

  /**
   * Forgets translations, log and inflight records, for vrings that are stopped. @returns what unmaps them, to be called when the
   * datapath has let go
   */
  forget(): () => void {
    const { log, inflight, iotlb } = this.#space;
    iotlb.clear();
    this.#space.translated = false;
    this.#space.logging = false;
    this.#space.log = undefined;
    this.#space.inflight = undefined;
    return () => {
      log?.release();
      inflight?.mapping.release();
    };
  }

  /** Guest memory and the log's eventfd. Nobody uses them any more. */
  release(): void {
    this.#space.memory.clear();
    if (this.#space.logFd !== NO_FD) closeSync(this.#space.logFd);
    this.#space.logFd = NO_FD;
  }
}
