/**
 * Who listens on a Unix socket: the kernel's list of sockets says that somebody does, the descriptors of all processes say who.
 */
import { allProcesses, placeOf } from './process.ts';
import { ifAllowed, type Source } from './source.ts';

/** A listening socket and its process. */
export interface Listener {
  /** undefined: a process of another user, which may not be looked at */
  readonly pid?: number;
}

/** The same, with the path it was bound to, which may be relative to the folder of its process. */
export interface ListeningSocket extends Listener {
  readonly bound: string;
}

/** A listening socket as /proc/net/unix has it. */
interface Listening {
  readonly inode: string;
  readonly path: string;
}

/** SO_ACCEPTCON of the flags. */
const LISTENS = 0x10000;

/** All listening sockets of the machine that have a file, and their processes as far as they may be seen. */
export function listeningSockets(source: Source): ListeningSocket[] {
  const pids = allProcesses(source);
  const sockets = listening(source, pids);
  const owners = ownersOf(source, pids, sockets);
  return sockets.map(({ inode, path }) => ({ bound: path, ...pidOf(owners.get(inode)) }));
}

const pidOf = (pid: number | undefined) => (pid === undefined ? {} : { pid });

/**
 * Those of `sockets` that are bound to the file at `path`. Paths may differ by links, mounts and folders: what counts is the file. A socket
 * whose file another one has replaced counts for the new one.
 */
export function listenersOn(source: Source, sockets: readonly ListeningSocket[], path: string): Listener[] {
  const file = source.stat(path);
  return sockets.filter(({ bound, pid }) => {
    if (pid === undefined) return bound === path;
    const place = placeOf(source, pid, bound);
    if (place === path) return true;
    const theirs = place === undefined ? undefined : ifAllowed(() => source.stat(place));
    return theirs !== undefined && theirs.ino === file?.ino && theirs.dev === file.dev;
  });
}

/** The listening sockets of all network namespaces: each has a list of its own. */
function listening(source: Source, pids: readonly number[]): Listening[] {
  const seen = new Set<string>();
  const found = new Map<string, Listening>();
  for (const who of ['self', ...pids]) {
    const namespace = ifAllowed(() => source.link(`/proc/${who}/ns/net`));
    if (who !== 'self' && (namespace === undefined || seen.has(namespace))) continue;
    if (namespace !== undefined) seen.add(namespace);
    for (const one of listeningIn(source.text(`/proc/${who}/net/unix`) ?? '')) found.set(one.inode, one);
  }
  return [...found.values()];
}

/** Lines are as `00000000095a0f2e: 00000002 00000000 00010000 0001 01 2842580 /run/sock`. */
function listeningIn(text: string): Listening[] {
  return text.split('\n').flatMap((line) => {
    const [, flags, inode, path] = /^\S+: \S+ \S+ ([\da-f]+) \S+ \S+ +(\d+) (.+)$/i.exec(line) ?? [];
    return flags === undefined || path.startsWith('@') || (Number.parseInt(flags, 16) & LISTENS) === 0
      ? []
      : { inode, path };
  });
}

/** The process of each socket, as far as descriptors may be seen. A socket that several processes have is the first one's. */
function ownersOf(source: Source, pids: readonly number[], sockets: readonly Listening[]): Map<string, number> {
  const wanted = new Map(sockets.map(({ inode }) => [`socket:[${inode}]`, inode]));
  const owners = new Map<string, number>();
  for (const pid of pids) {
    if (owners.size === wanted.size) break;
    const folder = `/proc/${pid}/fd`;
    for (const fd of ifAllowed(() => source.list(folder)) ?? []) {
      const inode = wanted.get(ifAllowed(() => source.link(`${folder}/${fd}`)) ?? '');
      if (inode !== undefined && !owners.has(inode)) owners.set(inode, pid);
    }
  }
  return owners;
}
