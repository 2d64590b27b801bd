/**
 * Which CPUs a thread runs on.
 * @see sched_setaffinity(2)
 */
import { check, libc } from './libc.ts';

const CPU_SET_BYTES = 128;
const c = { sched: libc.func('sched_setaffinity', 'int', ['int', 'size_t', 'void *']) };

/** Pins the calling thread to `cpus`. Throws SysError (EINVAL: none of them is online or allowed). */
export function pinThread(cpus: readonly number[]): void {
  const set = new Uint8Array(CPU_SET_BYTES);
  for (const cpu of cpus) set[cpu >> 3] |= 1 << (cpu & 7);
  check(c.sched(0, set.length, set), 'sched_setaffinity');
}
