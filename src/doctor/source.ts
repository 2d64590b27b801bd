/**
 * Where the doctor looks: files of the machine, QEMU's monitor, QEMU itself for its version. Nothing here changes anything, waits without
 * end or reads without end.
 */
import { execFile } from 'node:child_process';
import { closeSync, constants, openSync, readdirSync, readlinkSync, readSync, type Stats, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileSeals } from '../sys/memory.ts';
import { type CheckName, type Finding, unseen } from './finding.ts';
import { askMonitor, type MonitorAnswers } from './monitor.ts';

/** Of a file no more is read. The maps of a large process take less. */
const MAX_BYTES = 32 * 2 ** 20;
const RUN_DEADLINE_MS = 5000;
const MAX_RUN_OUTPUT = 64 * 1024;

/** This process may not look at a file. */
export class Forbidden extends Error {
  readonly path: string;

  constructor(path: string) {
    super(`${path} may not be read by this user`);
    this.path = path;
  }
}

/** What a check finds; that it may not look is a finding, too. */
export function guarded(check: CheckName, look: () => Finding[]): Finding[] {
  try {
    return look();
  } catch (error) {
    if (!(error instanceof Forbidden)) throw error;
    return [unseen(check, error.message, ['run the doctor as root'])];
  }
}

/** What a look gives, or undefined if it may not be had. */
export function ifAllowed<T>(look: () => T | undefined): T | undefined {
  try {
    return look();
  } catch (error) {
    if (error instanceof Forbidden) return undefined;
    throw error;
  }
}

/** What is asked about a machine. All paths are absolute. What is not there is undefined or empty; what may not be read throws Forbidden. */
export interface Source {
  /** What is in a file. */
  text(path: string): string | undefined;
  bytes(path: string): Buffer | undefined;
  /** Names in a folder, sorted. */
  list(path: string): readonly string[];
  /** Where a symbolic link leads. */
  link(path: string): string | undefined;
  /** Of what is at the end of symbolic links. */
  stat(path: string): FileFacts | undefined;
  /** The seals of a memory file, as bits F_SEAL_…; undefined for other files. */
  seals(path: string): number | undefined;
  /** What a program prints; undefined if it fails or takes too long. */
  run(program: string, args: readonly string[]): Promise<string | undefined>;
  /** What QEMU says on a monitor socket; undefined if nobody answers. */
  monitor(path: string): Promise<MonitorAnswers | undefined>;
}

/** What the doctor wants to know of a file. */
export type FileFacts = Pick<Stats, 'mode' | 'uid' | 'gid' | 'dev' | 'ino'>;

const ABSENT = ['ENOENT', 'ENOTDIR', 'ESRCH', 'ENODEV', 'ENXIO', 'EINVAL', 'EISDIR', 'ELOOP', 'EOPNOTSUPP'];

/** The result of a file operation, with the errors that a doctor expects put into its terms. */
function look<T>(path: string, operation: () => T): T | undefined {
  try {
    return operation();
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM') throw new Forbidden(path);
    if (ABSENT.includes(code)) return undefined;
    throw error;
  }
}

/** A machine below a root directory: `/` is this one. */
export class MachineSource implements Source {
  readonly #root: string;

  constructor(root = '/') {
    this.#root = root;
  }

  text(path: string): string | undefined {
    return this.bytes(path)?.toString('utf8');
  }

  bytes(path: string): Buffer | undefined {
    return look(path, () => readStart(this.at(path)));
  }

  list(path: string): readonly string[] {
    return look(path, () => readdirSync(this.at(path)).sort()) ?? [];
  }

  link(path: string): string | undefined {
    return look(path, () => readlinkSync(this.at(path)));
  }

  stat(path: string): FileFacts | undefined {
    return look(path, () => statSync(this.at(path)));
  }

  seals(path: string): number | undefined {
    return look(path, () => {
      const fd = openSync(this.at(path), constants.O_RDONLY | constants.O_NONBLOCK);
      try {
        return fileSeals(fd);
      } finally {
        closeSync(fd);
      }
    });
  }

  run(program: string, args: readonly string[]): Promise<string | undefined> {
    const limits = { timeout: RUN_DEADLINE_MS, killSignal: 'SIGKILL', maxBuffer: MAX_RUN_OUTPUT } as const;
    return new Promise((resolve) => {
      execFile(this.at(program), args, limits, (error, stdout) => resolve(error === null ? stdout : undefined));
    });
  }

  monitor(path: string): Promise<MonitorAnswers | undefined> {
    return askMonitor(this.at(path));
  }

  /** The path here of a path there. */
  protected at(path: string): string {
    return join(this.#root, path);
  }
}

/** Files of /proc and /sys do not tell how long they are: this reads until there is no more, or too much. */
function readStart(path: string): Buffer {
  // a FIFO or a device must not hold us up
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const parts: Buffer[] = [];
    let total = 0;
    while (total < MAX_BYTES) {
      const part = Buffer.allocUnsafe(64 * 1024);
      const got = readSync(fd, part);
      if (got === 0) break;
      parts.push(part.subarray(0, got));
      total += got;
    }
    return Buffer.concat(parts);
  } finally {
    closeSync(fd);
  }
}
