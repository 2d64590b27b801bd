/** An opener of /dev/vhost-net, or of a device that is like it: the ioctls, with any argument. */
import { closeSync, constants, openSync } from 'node:fs';
import { errno, libc } from '../../src/sys/libc.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import { u32s } from './cuse-bench.ts';

const c = {
  ioctl: libc.func('ioctl', 'int', ['int', 'ulong', 'void *']),
  /** the same call with a number in place of the address */
  ioctlValue: libc.func('ioctl', 'int', ['int', 'ulong', 'uintptr_t']),
};

/** An ioctl that was refused. */
export class IoctlError extends Error {
  readonly errno: number;

  constructor(what: string, code: number) {
    super(`${what}: errno ${code}`);
    this.errno = code;
  }
}

export class CuseClient {
  readonly fd: number;

  /** Opens the device; throws what open(2) does. */
  constructor(path: string) {
    this.fd = openSync(path, constants.O_RDWR);
  }

  /** One ioctl with an argument of so many bytes, or with any number as its address. @returns its result, or −errno */
  call(cmd: number, argument: Uint8Array | bigint = 0n): number {
    const result =
      typeof argument === 'bigint' ? c.ioctlValue(this.fd, cmd, argument) : c.ioctl(this.fd, cmd, argument);
    return result < 0 ? -errno() : result;
  }

  /** As `call`, for what must not be refused. Throws IoctlError. */
  must(cmd: number, argument: Uint8Array | bigint = 0n): number {
    const result = this.call(cmd, argument);
    if (result < 0) throw new IoctlError(`ioctl 0x${cmd.toString(16)}`, -result);
    return result;
  }

  features(): bigint {
    const word = new BigUint64Array(1);
    this.must(vhost.VHOST_GET_FEATURES, new Uint8Array(word.buffer));
    return word[0];
  }

  vringBase(index: number): number {
    const state = u32s(index, 0xdead);
    this.must(vhost.VHOST_GET_VRING_BASE, state);
    return new DataView(state.buffer).getUint32(4, true);
  }

  /** A tap or −1 for a ring. */
  setBackend(index: number, fd: number): void {
    this.must(vhost.VHOST_NET_SET_BACKEND, u32s(index, fd));
  }

  close(): void {
    closeSync(this.fd);
  }
}
