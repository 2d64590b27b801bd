/**
 * Reading and writing a pipe that somebody else holds, too, without ever waiting: the file's flags are shared, and the other side may
 * make it blocking at any time. So bytes go by way of a pipe of our own, with splice(2), which has its own flag.
 * @see pipe(7), splice(2)
 */
import { closeSync, fstatSync, readSync, writeSync } from 'node:fs';
import { check, EAGAIN, errno, libc } from './libc.ts';

const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
const SPLICE_F_NONBLOCK = 2;
/** The least that a pipe holds. */
const PIPE_BYTES = 4096;

const c = {
  pipe2: libc.func('pipe2', 'int', ['void *', 'int']),
  splice: libc.func('splice', 'int64_t', ['int', 'void *', 'int', 'void *', 'size_t', 'uint']),
};

/** A pipe: what is written to `writeFd` comes out of `readFd`. Both non-blocking, close-on-exec, and the caller's. */
export function createPipe(): { readFd: number; writeFd: number } {
  const fds = new Int32Array(2);
  check(c.pipe2(fds, O_CLOEXEC | O_NONBLOCK), 'pipe2');
  return { readFd: fds[0], writeFd: fds[1] };
}

export function isPipe(fd: number): boolean {
  return fstatSync(fd).isFIFO();
}

/** Bytes moved from one pipe into the other, 0 at the end, −1 if that would wait. Throws SysError (EPIPE, …). */
function move(from: number, to: number, len: number): number {
  const n = Number(c.splice(from, null, to, null, len, SPLICE_F_NONBLOCK));
  return n < 0 && errno() === EAGAIN ? -1 : check(n, 'splice');
}

/** One end of a foreign pipe, which it owns. */
export class PipeEnd {
  readonly fd: number;
  readonly #own = createPipe();
  /** bytes in our own pipe */
  #held = 0;

  /** Takes `fd` over once it has been made. */
  constructor(fd: number) {
    this.fd = fd;
  }

  /** @returns what there is now, at most 4096 bytes; none at the end, undefined if it would have to wait */
  read(): Uint8Array | undefined {
    const n = move(this.fd, this.#own.writeFd, PIPE_BYTES);
    if (n < 0) return undefined;
    const bytes = new Uint8Array(n);
    for (let got = 0; got < n; ) got += readSync(this.#own.readFd, bytes, got, n - got, null);
    return bytes;
  }

  /**
   * Writes as much as there is room for. Bytes that were taken must be given again until all have gone.
   * @returns bytes of `bytes` from `from` on that have gone
   */
  write(bytes: Uint8Array, from: number): number {
    let gone = 0;
    while (from + gone < bytes.length) {
      if (this.#held === 0) {
        const len = Math.min(PIPE_BYTES, bytes.length - from - gone);
        this.#held = writeSync(this.#own.writeFd, bytes, from + gone, len);
      }
      const n = move(this.#own.readFd, this.fd, this.#held);
      if (n < 0) break;
      this.#held -= n;
      gone += n;
    }
    return gone;
  }

  close(): void {
    closeSync(this.fd);
    closeSync(this.#own.readFd);
    closeSync(this.#own.writeFd);
  }
}
