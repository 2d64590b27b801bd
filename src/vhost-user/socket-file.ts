/**
 * The file of a listening socket: who may connect, and whose file it is.
 */
import { chmodSync, closeSync, lchownSync, lstatSync, readFileSync, type Stats, unlinkSync } from 'node:fs';
import { SwitchError, SysError } from '../errors.ts';
import { bindUnix, connectUnix, startListening } from '../sys/unix-socket.ts';

export interface SocketFileOptions {
  readonly path: string;
  /** Permission bits, for example 0o660; connecting takes write permission. Default: what the umask leaves. */
  readonly mode?: number;
  /** User and group, number or name. Default: those of this process. */
  readonly owner?: number | string;
  readonly group?: number | string;
  /** Connections that may wait to be accepted. Default 128. */
  readonly backlog?: number;
}

/** A listening, non-blocking socket and the file it is bound to; the caller owns `fd`. */
export interface SocketFile {
  readonly fd: number;
  readonly path: string;
  readonly dev: number;
  readonly ino: number;
}

/**
 * Listens on `path`. A stale socket file, on which nobody listens, is replaced; nobody can connect before mode and owner
 * are set. Throws SwitchError: SOCKET_IN_USE, SOCKET_FOREIGN_FILE, SOCKET_UNKNOWN_OWNER; SysError for the rest.
 */
export function openSocketFile({ path, mode, owner, group, backlog = 128 }: SocketFileOptions): SocketFile {
  const uid = owner === undefined ? -1 : idOf(owner, '/etc/passwd', 'user');
  const gid = group === undefined ? -1 : idOf(group, '/etc/group', 'group');
  removeStale(path);
  const fd = bindFree(path);
  try {
    if (mode !== undefined) chmodSync(path, mode);
    if (uid !== -1 || gid !== -1) lchownSync(path, uid, gid);
    const { dev, ino } = lstatSync(path);
    startListening(fd, backlog);
    return { fd, path, dev, ino };
  } catch (error) {
    closeSync(fd);
    unlinkSync(path);
    throw error;
  }
}

/** Removes the file unless another has taken its place. Call before closing the socket: that could free its inode number. */
export function removeSocketFile({ path, dev, ino }: Omit<SocketFile, 'fd'>): void {
  const now = lstat(path);
  if (now !== undefined && now.dev === dev && now.ino === ino) unlinkSync(path);
}

function lstat(path: string): Stats | undefined {
  return lstatSync(path, { throwIfNoEntry: false });
}

const inUse = (path: string) =>
  new SwitchError(
    'SOCKET_IN_USE',
    `another program already listens on ${path}: stop it, or choose another --socket-file`,
  );

function bindFree(path: string): number {
  try {
    return bindUnix(path);
  } catch (error) {
    if (error instanceof SysError && error.code === 'EADDRINUSE') throw inUse(path);
    throw error;
  }
}

/** Makes way at `path` if a socket is left there that nobody listens on. */
function removeStale(path: string): void {
  const found = lstat(path);
  if (found === undefined) return;
  if (!found.isSocket()) {
    const remedy = 'remove it, or choose another --socket-file';
    throw new SwitchError('SOCKET_FOREIGN_FILE', `${path} exists and is not a socket: ${remedy}`);
  }
  try {
    closeSync(connectUnix(path));
  } catch (error) {
    const code = error instanceof SysError ? error.code : '';
    if (code === 'EAGAIN' || code === 'EPROTOTYPE') throw inUse(path); // a full backlog, a socket of another type
    if (code !== 'ECONNREFUSED' && code !== 'ENOENT') throw error;
    removeSocketFile({ path, dev: found.dev, ino: found.ino });
    return;
  }
  throw inUse(path);
}

/** A user's or group's number, from its name where that is given. */
export function idOf(who: number | string, file: string, kind: string): number {
  if (typeof who === 'number') return who;
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    const [name, , id] = line.split(':');
    if (name === who && id !== undefined) return Number(id);
  }
  throw new SwitchError('SOCKET_UNKNOWN_OWNER', `no ${kind} named ${who} in ${file}`);
}
