/** Descriptors of whatever kind. */
import { check, libc } from './libc.ts';

const F_DUPFD_CLOEXEC = 1030;

const c = { fcntl: libc.func('fcntl', 'int', ['int', 'int', 'int']) };

/** Another descriptor of the same open file, close-on-exec and the caller's. Throws SysError: EMFILE, EBADF. */
export function duplicateFd(fd: number): number {
  return check(c.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl');
}
