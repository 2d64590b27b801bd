/**
 * A character device whose kernel is a FakeCuse, with the ioctls of vhost-net by name. The opener is this process.
 */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { after } from 'node:test';
import { mapShared, mapZero, reserve } from '../../src/sys/memory.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import type { VhostDevice } from '../../src/vhost/vhost-device.ts';
import { VhostCuseServer } from '../../src/vhost-cuse/vhost-cuse-server.ts';
import type { ConnectionInfo } from '../../src/vhost-user/back-ends.ts';
import type { LogLevel } from '../../src/vhost-user/limited-log.ts';
import { pool } from './device-bench.ts';
import { type CallerMemory, FakeCuse } from './fake-cuse.ts';

/** What a failed test leaves open: closed at the end of the file, which would otherwise never come. */
const leftOpen = new Set<{ close(): unknown }>();
after(async () => {
  await Promise.all([...leftOpen].map((each) => each.close()));
});

/** Where the arguments of ioctls are said to lie. */
const ARGUMENT = 0x7ffd_0000_1000;

export const u64 = (value: bigint): Uint8Array => new Uint8Array(new BigUint64Array([value]).buffer);
export const u32s = (...values: number[]): Uint8Array => new Uint8Array(new Uint32Array(values).buffer);

/** A region as SET_MEM_TABLE has it. */
export interface TableRegion {
  readonly guestAddr: number;
  readonly size: number;
  readonly userAddr: number;
}

/** The argument of SET_MEM_TABLE. @param count as the head tells */
export function memoryTable(regions: readonly TableRegion[], count = regions.length): Uint8Array {
  const words = regions.flatMap(({ guestAddr, size, userAddr }) => [guestAddr, size, userAddr, 0].map(BigInt));
  return new Uint8Array(new BigUint64Array([BigInt(count), ...words]).buffer);
}

/** The argument of SET_VRING_ADDR. */
export function vringAddr(
  index: number,
  desc: number,
  used: number,
  avail: number,
  { flags = 0, log = 0 } = {},
): Uint8Array {
  return Uint8Array.from(
    Buffer.concat([u32s(index, flags), ...[desc, used, avail, log].map((address) => u64(BigInt(address)))]),
  );
}

/** Shared memory of this process, mapped from a file, until `close`; or a hole, or private memory. */
export class OwnMemory {
  readonly address: number;
  readonly size: number;
  readonly #start: bigint;

  constructor(size: number) {
    this.size = size;
    this.#start = reserve(size);
    this.address = Number(this.#start);
  }

  /** Maps `len` bytes of a file from `fileOff` at `off`. The fd stays the caller's. */
  map(fd: number, off = 0, len = this.size, fileOff = 0): this {
    mapShared(this.#start + BigInt(off), len, fd, fileOff);
    return this;
  }

  close(): void {
    mapZero(this.#start, this.size);
  }
}

export interface CuseBenchOptions {
  readonly createDevice: (info: ConnectionInfo) => VhostDevice | undefined;
  readonly tapFeatures?: bigint;
}

export class CuseBench {
  readonly kernel = new FakeCuse();
  readonly lines: [LogLevel, string][] = [];
  readonly gone: string[] = [];
  readonly server: VhostCuseServer;

  constructor({ createDevice, tapFeatures = 0n }: CuseBenchOptions) {
    leftOpen.add(this);
    this.server = new VhostCuseServer(this.kernel.deviceFd, {
      name: 'usvhost-1',
      log: (level, text) => this.lines.push([level, text]),
      createDevice,
      tapFeatures,
      pool,
      onGone: (error) => this.gone.push(error.message),
    });
  }

  static async start(options: CuseBenchOptions): Promise<CuseBench> {
    const bench = new CuseBench(options);
    const answer = await bench.kernel.init();
    assert.equal(answer.error, 0);
    await bench.server.ready;
    return bench;
  }

  /** Lines that tell of a refusal. */
  get refusals(): string[] {
    return this.lines.filter(([level]) => level !== 'info').map(([, text]) => text);
  }

  async close(): Promise<void> {
    leftOpen.delete(this);
    await this.kernel.close();
    await this.server.close();
  }
}

/** One open of the device. */
export class VhostCaller {
  readonly handle: bigint;
  readonly #kernel: FakeCuse;

  constructor(kernel: FakeCuse, handle: bigint) {
    this.#kernel = kernel;
    this.handle = handle;
  }

  static async open(kernel: FakeCuse): Promise<VhostCaller> {
    const handle = await kernel.open();
    assert.ok(handle > 0n, `open: ${handle}`);
    return new VhostCaller(kernel, handle);
  }

  /** @returns the ioctl's result or a negative errno; `bytes` are the argument, and what comes out is in them */
  async call(cmd: number, bytes?: Uint8Array): Promise<number> {
    const memory: CallerMemory | undefined = bytes && { base: ARGUMENT, bytes };
    return (await this.#kernel.ioctl(this.handle, cmd, memory)).result;
  }

  /** As `call`; anything but 0 is a failure of the test. */
  async must(cmd: number, bytes?: Uint8Array): Promise<void> {
    assert.equal(await this.call(cmd, bytes), 0, `ioctl 0x${cmd.toString(16)}`);
  }

  async features(): Promise<bigint> {
    const bytes = new Uint8Array(8);
    await this.must(vhost.VHOST_GET_FEATURES, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }

  async vringBase(index: number): Promise<number> {
    const bytes = u32s(index, 0xdead);
    await this.must(vhost.VHOST_GET_VRING_BASE, bytes);
    const view = new DataView(bytes.buffer);
    assert.equal(view.getUint32(0, true), index);
    return view.getUint32(4, true);
  }

  release = () => this.#kernel.release(this.handle);
}

/** Closes what a test has made of descriptors. */
export function closeFds(fds: readonly number[]): void {
  for (const fd of fds) closeSync(fd);
}
