/**
 * Which CPUs a thread runs on.
 * @see sched_setaffinity(2)
 */
import { readFileSync } from 'node:fs';
import { SwitchError } from '../errors.ts';
import { check, EINVAL, errno, libc } from './libc.ts';

const CPU_SET_BYTES = 128;
const c = { sched: libc.func('sched_setaffinity', 'int', ['int', 'size_t', 'void *']) };

/** Pins the calling thread to `cpus`. Throws SwitchError (NO_SUCH_CPU: none of them is online and allowed), SysError. */
export function pinThread(cpus: readonly number[]): void {
  const set = new Uint8Array(CPU_SET_BYTES);
  for (const cpu of cpus) set[cpu >> 3] |= 1 << (cpu & 7);
  const status = c.sched(0, set.length, set);
  if (status < 0 && errno() === EINVAL) {
    throw new SwitchError(
      'NO_SUCH_CPU',
      `cannot run on CPU ${cpus.join(', ')}: this process may use CPUs ${allowedCpus()}`,
    );
  }
  check(status, 'sched_setaffinity');
}

/** The CPUs this process may use, as the kernel lists them, for example `0-3,6`. */
function allowedCpus(): string {
  const status = readFileSync('/proc/self/status', 'utf8');
  return /^Cpus_allowed_list:\s*(.*)$/m.exec(status)?.[1] ?? 'unknown';
}
