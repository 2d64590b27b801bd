/**
 * What qemu-wrap asks the machine it runs on: which QEMU there is, what kind a file is, which huge pages are free.
 */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, openSync, readFileSync, statSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { SwitchError } from '../errors.ts';
import { type HugetlbMount, hugetlbMounts } from '../launch/hugepages.ts';

/** Names of QEMU's architectures, by those of Node. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
  x64: 'x86_64',
  arm64: 'aarch64',
  ia32: 'i386',
  ppc64: 'ppc64',
};
/** Where some distributions hide it. */
const HIDDEN = '/usr/libexec/qemu-kvm';
const VERSION_TIMEOUT_MS = 10_000;

/** QEMU's programs for guests of this machine's kind, the usual one first. */
export function usualPrograms(arch: string = process.arch): string[] {
  return [`qemu-system-${ARCHITECTURES[arch] ?? arch}`, 'qemu-kvm', HIDDEN, 'kvm'];
}

/**
 * The file of the first of some programs that there is; names without a slash are looked for in `path`.
 * Throws SwitchError (NO_QEMU).
 */
export function findProgram(names: readonly string[], path: string): string {
  for (const name of names) {
    const files = name.includes('/') ? [name] : path.split(delimiter).map((folder) => join(folder || '.', name));
    const found = files.find(isExecutable);
    if (found !== undefined) return found;
  }
  const looked = names.length === 1 ? names[0] : `none of ${names.join(', ')}`;
  throw new SwitchError('NO_QEMU', `${looked}: no such program; give QEMU's name first, or by --qemu`);
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    // not there, or not ours to run: the next one is looked at
    return false;
  }
}

/** The version that QEMU says it has, major and minor; undefined where it says none. */
export function qemuVersion(program: string): readonly [number, number] | undefined {
  const { stdout } = spawnSync(program, ['-version'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
    timeout: VERSION_TIMEOUT_MS,
  });
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(stdout ?? '') ?? [];
  return major === undefined ? undefined : [Number(major), Number(minor)];
}

/** The mounts of this machine. Throws the errors of reading /proc and /sys. */
export function readHugetlbMounts(): HugetlbMount[] {
  const meminfo = readFileSync('/proc/meminfo', 'utf8');
  const defaultPage = Number(/^Hugepagesize:\s*(\d+) kB$/m.exec(meminfo)?.[1] ?? 0) * 1024;
  const freePages = (pageBytes: number) =>
    Number(readFileSync(`/sys/kernel/mm/hugepages/hugepages-${pageBytes / 1024}kB/free_hugepages`, 'utf8'));
  return hugetlbMounts(readFileSync('/proc/mounts', 'utf8'), defaultPage, freePages);
}

export function fileKind(path: string): 'folder' | 'file' | 'nothing' {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return 'nothing';
  return stat.isDirectory() ? 'folder' : 'file';
}

/** Opens a device of the switch for QEMU, which gets it. @returns the number of its descriptor */
export function openDevice(path: string): string {
  try {
    return String(openSync(path, 'r+'));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const ways: Record<string, string> = {
      ENOENT:
        'there is no such device; vhost-switch --vhost cuse makes it (see --dev-basename and --dev-index), and must run',
      EACCES: 'this user may not open it; chmod or chown it, or run as its owner',
      ENODEV: 'no switch serves it any more; start vhost-switch again',
    };
    throw new SwitchError('NO_DEVICE_FILE', `--cuse ${path}: ${ways[code ?? ''] ?? message}`);
  }
}
