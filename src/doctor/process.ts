/**
 * What the kernel says of a process: who it is, what it may do, which CPUs it may run on.
 */
import { basename, isAbsolute, resolve } from 'node:path';
import { cpuList } from './cpu-list.ts';
import { type FileFacts, ifAllowed, type Source } from './source.ts';

/** Rights that Linux gives singly, by their bit. @see linux/capability.h */
export const CAPABILITY = {
  CAP_DAC_OVERRIDE: 1,
  CAP_NET_ADMIN: 12,
  CAP_NET_RAW: 13,
  CAP_IPC_LOCK: 14,
  CAP_SYS_ADMIN: 21,
  CAP_BPF: 39,
} as const;

export type Capability = keyof typeof CAPABILITY;

/** Whose rights a process has. */
export interface Credentials {
  readonly uid: number;
  /** the group, and the others it is in */
  readonly gids: readonly number[];
  /** effective, as bits */
  readonly capabilities: bigint;
  /** CPUs it may run on */
  readonly cpus: readonly number[];
}

/** Of a process, or as `PID/task/TID` of a thread; undefined when there is none. */
export function credentialsOf(source: Source, who: number | string): Credentials | undefined {
  const status = source.text(`/proc/${who}/status`);
  if (status === undefined) return undefined;
  const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1].trim().split(/\s+/) ?? [];
  const [, uid = '0'] = field('Uid');
  const [, gid = '0'] = field('Gid');
  const [capabilities = '0'] = field('CapEff');
  return {
    uid: Number(uid),
    gids: [gid, ...field('Groups')].filter((text) => text !== '').map(Number),
    capabilities: BigInt(`0x${capabilities}`),
    cpus: cpuList(field('Cpus_allowed_list')[0] ?? ''),
  };
}

/** CAP_SYS_ADMIN includes what was split off it in Linux 5.8. */
export function hasCapability({ capabilities }: Credentials, name: Capability): boolean {
  const has = (bit: number) => ((capabilities >> BigInt(bit)) & 1n) === 1n;
  return has(CAPABILITY[name]) || (name === 'CAP_BPF' && has(CAPABILITY.CAP_SYS_ADMIN));
}

/** What one may want to do with a file, as bits of its mode. */
export const ACCESS = { read: 4, write: 2, search: 1 } as const;

/** Whether the mode of a file lets somebody do all of `wanted`. Access control lists and security modules are not looked at. */
export function modeAllows({ mode, uid, gid }: FileFacts, who: Credentials, wanted: number): boolean {
  if (hasCapability(who, 'CAP_DAC_OVERRIDE')) return true;
  const shift = who.uid === uid ? 6 : who.gids.includes(gid) ? 3 : 0;
  return ((mode >> shift) & wanted) === wanted;
}

/** Permission bits as `ls` prints them in octal: `0660`. */
export const modeText = ({ mode }: FileFacts) => (mode & 0o7777).toString(8).padStart(4, '0');

/** The arguments a process was started with, as it has them now; empty when it has gone, or is one of the kernel's. */
export function argumentsOf(source: Source, pid: number): readonly string[] {
  const text = source.text(`/proc/${pid}/cmdline`) ?? '';
  return text === '' ? [] : text.replace(/\0$/, '').split('\0');
}

/** The name of the program that a process runs; of a script, the script's. */
export function programOf(source: Source, pid: number): string {
  const [program = '', ...rest] = argumentsOf(source, pid);
  const name = basename(program);
  const script = /^(node|nodejs|python[\d.]*)$/.test(name) ? rest.find((word) => !word.startsWith('-')) : undefined;
  return basename(script ?? program) || 'a program without a name';
}

/** A process in words: `vhost-switch.ts (pid 12)`. */
export const describeProcess = (source: Source, pid: number) => `${programOf(source, pid)} (pid ${pid})`;

/** The numbers of all processes. */
export function allProcesses(source: Source): number[] {
  return source
    .list('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

/** The name of a user or group, as `root`; its number where there is none. @param file /etc/passwd or /etc/group */
export function accountName(source: Source, file: '/etc/passwd' | '/etc/group', id: number): string {
  for (const line of (source.text(file) ?? '').split('\n')) {
    const [name, , number] = line.split(':');
    if (number === String(id) && name !== '') return name;
  }
  return String(id);
}

/** One of the limits of a process, in bytes; Infinity where there is none, undefined where nobody says. */
export function softLimit(source: Source, pid: number | 'self', name: string): number | undefined {
  const line = source
    .text(`/proc/${pid}/limits`)
    ?.split('\n')
    .find((one) => one.startsWith(name));
  const value = line?.slice(name.length).trim().split(/\s+/)[0];
  if (value === undefined) return undefined;
  return value === 'unlimited' ? Infinity : Number(value);
}

/**
 * A path of a process as it is found from here: absolute, and below the process's own root where that is another, as in a container.
 * Undefined for a relative path if nobody says in which folder the process is.
 */
export function placeOf(source: Source, pid: number, path: string): string | undefined {
  const mounts = (of: number | 'self') => ifAllowed(() => source.link(`/proc/${of}/ns/mnt`));
  const theirs = mounts(pid);
  const root = theirs === undefined || theirs === mounts('self') ? '' : `/proc/${pid}/root`;
  if (isAbsolute(path)) return `${root}${path}`;
  const cwd = ifAllowed(() => source.link(`/proc/${pid}/cwd`));
  return cwd === undefined ? undefined : `${root}${resolve(cwd, path)}`;
}
