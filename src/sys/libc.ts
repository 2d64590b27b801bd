/**
 * The C library, and how a failed call becomes a SysError. Nothing outside `sys/` sees koffi.
 */
import koffi from 'koffi';
import { SysError } from '../errors.ts';

export const libc = koffi.load(null);

export const EAGAIN = 11;
export const EINTR = 4;
export const EINVAL = 22;

/** errno of this thread's last failed call. */
export const errno = () => koffi.errno();

/** Passes `result` on, or throws a SysError naming the call, and its object `what`, when it is negative. */
export function check(result: number, syscall: string, what?: string): number {
  if (result < 0) throw new SysError(syscall, koffi.errno(), what);
  return result;
}

/** The address of the memory behind `view`; valid while the caller keeps `view` alive. */
export function addressOf(view: ArrayBufferLike | ArrayBufferView): bigint {
  return koffi.address(view);
}

/** An ArrayBuffer over foreign memory, which the caller keeps mapped for as long as the buffer is used. */
export function viewOf(address: bigint, len: number): ArrayBuffer {
  return koffi.view(address, len);
}
