/**
 * Network namespaces as iproute2 names them.
 * @see setns(2), ip-netns(8)
 */
import { closeSync, openSync } from 'node:fs';
import { check, libc } from './libc.ts';

const CLONE_NEWNET = 0x40000000;
const OWN = '/proc/thread-self/ns/net';

const c = { setns: libc.func('setns', 'int', ['int', 'int']), unshare: libc.func('unshare', 'int', ['int']) };

/** Where a namespace's name is found. */
export const netnsPath = (name: string): string => `/run/netns/${name}`;

/**
 * Calls `use` with the calling thread in a network namespace: the sockets it opens belong to it for good. With no name it is called as
 * things are. Throws what `use` throws; an Error with `code` ENOENT or SysError (EPERM) where the namespace cannot be entered.
 */
export function inNetns<T>(name: string | undefined, use: () => T): T {
  if (name === undefined) return use();
  return andBack(() => {
    const other = openSync(netnsPath(name), 'r');
    try {
      check(c.setns(other, CLONE_NEWNET), 'setns', name);
    } finally {
      closeSync(other);
    }
    return use;
  });
}

/** The same for a namespace that is open as `fd`. */
export function inOpenNetns<T>(fd: number, use: () => T): T {
  return andBack(() => {
    check(c.setns(fd, CLONE_NEWNET), 'setns');
    return use;
  });
}

/** A new namespace, which has no name and goes with the last that uses it. The caller owns the descriptor. Throws SysError (EPERM). */
export function newNetns(): number {
  return andBack(() => {
    check(c.unshare(CLONE_NEWNET), 'unshare', 'CLONE_NEWNET');
    return () => openSync(OWN, 'r');
  });
}

/** Has `enter` bring the calling thread elsewhere, calls what it returns, and brings the thread back. */
function andBack<T>(enter: () => () => T): T {
  const own = openSync(OWN, 'r');
  try {
    const use = enter();
    try {
      return use();
    } finally {
      check(c.setns(own, CLONE_NEWNET), 'setns');
    }
  } finally {
    closeSync(own);
  }
}
