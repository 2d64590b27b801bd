/**
 * The name of a character device: whether it can be had, and who may open it.
 */
import { accessSync, chmodSync, constants, existsSync, lchownSync, readFileSync } from 'node:fs';
import { SwitchError } from '../errors.ts';
import { openCuse } from '../sys/cuse.ts';
import { idOf } from '../vhost-user/socket-file.ts';

const CUSE = '/dev/cuse';

export interface NodeOptions {
  /** Permission bits, for example 0o660. Default: what the kernel and udev give, 0o600 as a rule. */
  readonly mode?: number;
  /** User and group, number or name. Default: root. */
  readonly owner?: number | string;
  readonly group?: number | string;
}

/**
 * A connection to CUSE for a device of a name that is free. The caller owns it.
 * Throws SwitchError: CUSE_MISSING, CUSE_RIGHTS, CUSE_NAME_TAKEN.
 */
export function connectCuse(name: string): number {
  if (existsSync(`/sys/class/cuse/${name}`) || existsSync(`/dev/${name}`))
    throw new SwitchError(
      'CUSE_NAME_TAKEN',
      `/dev/${name} is there already: stop the switch it belongs to, or choose another --dev-index or --dev-basename`,
    );
  try {
    return openCuse(CUSE);
  } catch (error) {
    throw explain(error as NodeJS.ErrnoException);
  }
}

function explain(error: NodeJS.ErrnoException): unknown {
  if (error.code === 'EACCES' || error.code === 'EPERM')
    return new SwitchError(
      'CUSE_RIGHTS',
      `${CUSE} may not be opened (${error.code}): run the switch as root for --vhost cuse`,
    );
  if (error.code !== 'ENOENT' && error.code !== 'ENODEV' && error.code !== 'ENXIO') return error;
  return new SwitchError(
    'CUSE_MISSING',
    `${CUSE} is not there: load the module (modprobe cuse); the kernel must have CONFIG_CUSE`,
  );
}

/** Sets who may open a device that has been made. Throws SwitchError: CUSE_NO_NODE, SOCKET_UNKNOWN_OWNER; an Error of the call. */
export function setNodeOwner(name: string, { mode, owner, group }: NodeOptions): void {
  const path = `/dev/${name}`;
  if (!isThere(path))
    throw new SwitchError(
      'CUSE_NO_NODE',
      `${path} has not appeared, as it does where /dev is a devtmpfs: ${makeNode(name)}`,
    );
  const uid = owner === undefined ? -1 : idOf(owner, '/etc/passwd', 'user');
  const gid = group === undefined ? -1 : idOf(group, '/etc/group', 'group');
  if (uid !== -1 || gid !== -1) lchownSync(path, uid, gid);
  if (mode !== undefined) chmodSync(path, mode);
}

function isThere(path: string): boolean {
  try {
    accessSync(path, constants.F_OK);
    return true;
  } catch {
    return false;
  }
}

function makeNode(name: string): string {
  try {
    const [major, minor] = readFileSync(`/sys/class/cuse/${name}/dev`, 'utf8').trim().split(':');
    return `run the switch where it is one (the device is c ${major} ${minor})`;
  } catch {
    return 'run the switch where it is one';
  }
}
