/**
 * A running QEMU: finding it, and reading once all that the checks look at.
 */
import { basename, isAbsolute } from 'node:path';
import { type Finding, failure, fine, unseen } from './finding.ts';
import type { MemoryDevice } from './monitor.ts';
import { allProcesses, argumentsOf, type Credentials, credentialsOf, placeOf, programOf } from './process.ts';
import { type QemuLine, readQemuLine } from './qemu-line.ts';
import { ifAllowed, type Source } from './source.ts';

/** The name says so: QEMU as it is built, and as distributions rename it. */
const QEMU = /^(qemu-(system-|kvm)|qemu$|kvm$)/;
/** Where libvirtd notes the process of each domain. */
const PID_FOLDERS = ['/run/libvirt/qemu', '/var/run/libvirt/qemu'];

/** A mapping of /proc/PID/maps. */
export interface Mapping {
  /** as numa_maps names it too: hexadecimal */
  readonly start: string;
  readonly len: number;
  readonly writable: boolean;
  readonly shared: boolean;
  /** what it is of; empty for anonymous memory */
  readonly path: string;
}

/** What there is to know of a guest. */
export interface Guest {
  readonly pid: number;
  readonly line: QemuLine;
  readonly credentials: Credentials;
  /** undefined: they may not be read */
  readonly mappings?: readonly Mapping[];
  /** such as 7.2.22; undefined: nobody says */
  readonly version?: string;
  /** memory as the monitor tells it; undefined: no monitor answers */
  readonly memory?: readonly MemoryDevice[];
  /** A path of the guest's QEMU as it is found from here: absolute, and in QEMU's own root folder. */
  place(path: string): string;
}

/** The process of a domain of libvirt; undefined if it does not run. */
export function findDomain(source: Source, name: string): number | undefined {
  // a name with a slash would leave the folder
  for (const folder of name.includes('/') ? [] : PID_FOLDERS) {
    const pid = Number(source.text(`${folder}/${name}.pid`)?.trim() ?? 0);
    if (pid > 0) return pid;
  }
  // a domain of a user's own session, or another manager's
  return allProcesses(source).find((pid) => {
    const [program = '', ...words] = argumentsOf(source, pid);
    return QEMU.test(basename(program)) && readQemuLine(words).name === name;
  });
}

/** guest.process; and the guest, if there is one. */
export async function examineProcess(source: Source, pid: number): Promise<{ guest?: Guest; findings: Finding[] }> {
  const [program, ...words] = argumentsOf(source, pid);
  const credentials = credentialsOf(source, pid);
  const mend = ['find it: pgrep -a qemu'];
  if (program === undefined || credentials === undefined) {
    const shows = 'nothing of the guest can be looked at';
    return { findings: [failure('guest.process', `there is no process ${pid}`, { shows, mend })] };
  }
  if (!QEMU.test(basename(program))) {
    const what = `process ${pid} is ${programOf(source, pid)}, not QEMU`;
    return { findings: [failure('guest.process', what, { shows: 'nothing of the guest can be looked at', mend })] };
  }
  const line = readQemuLine(words);
  const place = (path: string) => placeOf(source, pid, path) ?? path;
  const told = await askMonitors(source, line.monitors.map(place));
  const mappings = ifAllowed(() => source.text(`/proc/${pid}/maps`));
  const version = told?.version ?? (await versionOf(source, pid, program));
  const guest: Guest = {
    pid,
    line,
    credentials,
    place,
    ...(mappings === undefined ? {} : { mappings: readMappings(mappings) }),
    ...(version === undefined ? {} : { version }),
    ...(told === undefined ? {} : { memory: told.memory }),
  };
  const text = `${line.name ?? 'the guest'} is QEMU, process ${pid}`;
  if (mappings !== undefined) return { guest, findings: [fine('guest.process', text)] };
  const what = `${text}; this user may not see its memory`;
  return { guest, findings: [unseen('guest.process', what, ['run the doctor as root, or as the user of QEMU'])] };
}

async function askMonitors(source: Source, paths: readonly string[]) {
  for (const path of paths) {
    const answers = await source.monitor(path);
    if (answers !== undefined) return answers;
  }
  return undefined;
}

/** Asks the program itself, if it is one of the system's: only root may change it. */
async function versionOf(source: Source, pid: number, program: string): Promise<string | undefined> {
  const path = ifAllowed(() => source.link(`/proc/${pid}/exe`)) ?? program;
  const facts = ifAllowed(() => source.stat(path));
  const mayRun = isAbsolute(path) && QEMU.test(basename(path)) && facts?.uid === 0 && (facts.mode & 0o022) === 0;
  if (!mayRun) return undefined;
  return /version (\d+\.\d+(?:\.\d+)?)/.exec((await source.run(path, ['--version'])) ?? '')?.[1];
}

/** `7f00-7f80 rw-s 00000000 00:01 1026 /memfd:memory-backend-memfd (deleted)` */
function readMappings(text: string): Mapping[] {
  return text.split('\n').flatMap((line) => {
    const [, start, end, rights, path] = /^([\da-f]+)-([\da-f]+) (\S{4}) \S+ \S+ \d+\s*(.*)$/.exec(line) ?? [];
    if (start === undefined) return [];
    const len = Number(BigInt(`0x${end}`) - BigInt(`0x${start}`));
    return { start, len, writable: rights[1] === 'w', shared: rights[3] === 's', path };
  });
}
