/**
 * The process that has made a device its own (SET_OWNER): its descriptors and its memory. It may do as it likes meanwhile, end included.
 * @see pidfd_open(2), pidfd_getfd(2), proc_pid_status(5)
 */
import { close, closeSync, readFileSync, readlinkSync } from 'node:fs';
import { ProtocolError, SysError } from '../errors.ts';
import { openPidfd, takeFd } from '../sys/process.ts';
import { ReadWatch } from '../sys/unix-socket.ts';

const EBADF = 9;
const DENIED = ['EPERM', 'EACCES'];

/** What a refusal of the kernel comes to: rights that are missing are explained, all else stays as it is. */
export function explainRights(error: unknown, request: string, pid: number): unknown {
  const { code, message } = error as SysError;
  if (!DENIED.includes(code)) return error;
  const remedy =
    'run the switch as root with CAP_SYS_PTRACE, in the PID and user namespace of the opener or one above, and with kernel.yama.ptrace_scope below 3';
  return new ProtocolError('OPENER_RIGHTS', request, `process ${pid} may not be looked into (${message}): ${remedy}`);
}

/**
 * The process that a thread belongs to. The thread waits for an ioctl's answer meanwhile, and so cannot end.
 * @throws ProtocolError if it cannot be seen from here
 */
export function processOf(request: string, thread: number): number {
  const hidden = (why: string) =>
    new ProtocolError(
      'OPENER_RIGHTS',
      request,
      `the caller cannot be seen (${why}): run the switch in its PID namespace or one above`,
    );
  if (thread === 0) throw hidden('it is in another PID namespace');
  let status: string;
  try {
    status = readFileSync(`/proc/${thread}/status`, 'utf8');
  } catch (error) {
    throw hidden((error as Error).message);
  }
  const pid = Number(/^Tgid:\s*(\d+)$/m.exec(status)?.[1]);
  if (!Number.isInteger(pid) || pid < 1) throw hidden(`/proc/${thread}/status names no process`);
  return pid;
}

export class Opener {
  readonly pid: number;
  readonly #pidfd: number;
  readonly #watch: ReadWatch;
  #ended = false;

  /** @param onEnd is called once when the process has ended, unless this is closed before. Throws SysError. */
  constructor(pid: number, onEnd: () => void) {
    this.pid = pid;
    this.#pidfd = openPidfd(pid);
    try {
      this.#watch = new ReadWatch(this.#pidfd, () => {
        if (this.#ended) return;
        this.#ended = true;
        this.#watch.pause();
        onEnd();
      });
    } catch (error) {
      closeSync(this.#pidfd);
      throw error;
    }
  }

  /** What /proc calls the process's descriptor `fd`. Throws SysError EBADF where it has none, ProtocolError. */
  nameOf(request: string, fd: number): string {
    try {
      return readlinkSync(`/proc/${this.pid}/fd/${fd}`);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT')
        throw new SysError('pidfd_getfd', EBADF, `of descriptor ${fd}`);
      throw explainRights(error, request, this.pid);
    }
  }

  /**
   * A duplicate of the process's descriptor `fd`, owned by the caller, who looks at `nameOf` first: it closes what turns out to be
   * something else by `closeLater`. Throws ProtocolError, SysError (EBADF, …).
   */
  takeFd(request: string, fd: number): number {
    try {
      return takeFd(this.#pidfd, fd);
    } catch (error) {
      throw explainRights(error, request, this.pid);
    }
  }

  close(): void {
    this.#watch.close();
    closeSync(this.#pidfd);
  }
}

/** Closes a descriptor on another thread: where a program serves the file, closing waits for that program, perhaps for ever. */
export function closeLater(fd: number): void {
  close(fd, () => {});
}
