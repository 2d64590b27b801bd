/**
 * Disks of the test machine (see machine.ts): what this computer has of programs, with the libraries they need, at the same places.
 * The first disk holds Node and the peers' programs, and is kept in .cache until one of its files changes; the second holds the project
 * as it is now.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { GUEST_CACHE } from './guest-image.ts';
import { makeTempDir, removeTempDir, runToEnd } from './process.ts';

/** Where the project lies in the machine. */
export const PROJECT = '/project';

/** Where the machine finds the programs of its initial RAM disk. */
export const BUSYBOX = '/usr/local/bin';

/** Node's settings to find compiled what it has compiled before; under emulation a start then takes a quarter of the time. */
export const COMPILE_CACHE = `NODE_COMPILE_CACHE=${PROJECT}/.cache/node NODE_COMPILE_CACHE_PORTABLE=1`;

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const DISKS = join(GUEST_CACHE, 'machine');
const BUILD_MS = 120_000;
/** A mebibyte, and how much more than its files a disk takes. */
const MIB = 2 ** 20;
const SLACK = 1.1;

/** Firmware that boots a guest of the machine's QEMU from the network. */
export const PXE_ROM = '/usr/lib/ipxe/qemu/pxe-virtio.rom';

/** Programs by name: the peers, what the harness starts them with, and what mkguest.sh takes. The rest is the machine's busybox. */
const PROGRAMS = [
  ...['sh', 'bash', 'env', 'realpath', 'setpriv', 'nice', 'stdbuf', 'taskset', 'flock', 'nsenter', 'ip'],
  ...['dpdk-testpmd', 'qemu-system-x86_64'],
];
/** DPDK's plug-ins; it loads all that are there. */
const PLUGINS = ['librte_bus_pci', 'librte_bus_vdev', 'librte_mempool_ring', 'librte_net_vhost', 'librte_net_virtio'];
/** What programs load by themselves. */
const FILES = [
  '/usr/libexec/coreutils/libstdbuf.so',
  '/usr/share/seabios/bios-256k.bin',
  PXE_ROM,
  ...['kvmvapic.bin', 'linuxboot_dma.bin', 'pvh.bin'].map((name) => `/usr/share/qemu/${name}`),
];
const MULTIARCH = '/usr/lib/x86_64-linux-gnu';
const MODULES = `${MULTIARCH}/qemu/accel-tcg-x86_64.so`;

/** Disk images: raw, ext4. */
export interface MachineDisks {
  /** The root: Node and other programs. Shared by all machines: not to be written to. */
  programs: string;
  /** For {@link PROJECT}; the caller's to remove. */
  project: string;
}

/** Makes the disks; `project` in folder `dir`, with what the modules of files `compiled` come to. */
export async function machineDisks(dir: string, compiled: readonly string[]): Promise<MachineDisks> {
  const project = join(dir, 'project.img');
  await makeProject(project, compiled);
  return { programs: await programsDisk(), project };
}

let programs: Promise<string> | undefined;

/** The disk with the programs, built unless it is there (about 5 s). */
export function programsDisk(): Promise<string> {
  programs ??= makePrograms();
  return programs;
}

async function makePrograms(): Promise<string> {
  const files = withLibraries([process.execPath, ...PROGRAMS.map(whereIs), ...FILES, ...plugins(), MODULES]);
  const list = [...files].sort().map((file) => {
    const { size, mtimeMs } = fs.lstatSync(file);
    return `${file} ${size} ${mtimeMs}`;
  });
  const recipe = fs.readFileSync(fileURLToPath(import.meta.url));
  const key = createHash('sha256').update(recipe).update(list.join('\n')).digest('hex').slice(0, 16);
  const image = join(DISKS, `${key}.img`);
  if (fs.existsSync(image)) return image;
  fs.rmSync(DISKS, { recursive: true, force: true });
  fs.mkdirSync(DISKS, { recursive: true });
  const tree = makeTempDir('machine');
  try {
    for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
      fs.mkdirSync(join(tree, 'usr', name), { recursive: true });
      fs.symlinkSync(`usr/${name}`, join(tree, name));
    }
    const empty = ['proc', 'sys', 'dev', 'tmp', 'run', 'root', 'etc', 'var', 'usr/local', BUSYBOX, PROJECT];
    for (const name of empty) fs.mkdirSync(join(tree, name));
    fs.symlinkSync('/run', join(tree, 'var/run'));
    fs.writeFileSync(join(tree, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n');
    fs.writeFileSync(join(tree, 'etc/group'), 'root:x:0:\n');
    // Node may lie anywhere here, also where the machine mounts something else
    for (const file of files) copy(file, join(tree, file === process.execPath ? 'usr/bin/node' : file));
    await makeDisk(tree, image);
  } finally {
    removeTempDir(tree);
  }
  return image;
}

async function makeProject(image: string, compiled: readonly string[]): Promise<void> {
  const tree = makeTempDir('project');
  try {
    const packages = ['koffi', '@koromix', '@rgrove'].map((name) => `node_modules/${name}`);
    const parts = ['package.json', 'src', 'test', ...packages, '.cache/guest/image'];
    for (const part of parts) {
      const to = join(tree, part);
      fs.mkdirSync(dirname(to), { recursive: true });
      fs.cpSync(join(ROOT, part), to, { recursive: true, preserveTimestamps: true });
    }
    await compile(tree, compiled);
    await makeDisk(tree, image, 64);
  } finally {
    removeTempDir(tree);
  }
}

/** Fills the compile cache, by the switch with its threads, and by the modules of `files`. */
async function compile(tree: string, files: readonly string[]): Promise<void> {
  const env = { NODE_COMPILE_CACHE: join(tree, '.cache/node'), NODE_COMPILE_CACHE_PORTABLE: '1' };
  const run = (args: readonly string[]) =>
    runToEnd({ name: `node ${args[0]}`, command: process.execPath, args, env, cwd: tree }, BUILD_MS);
  await run(['src/cli/demo.ts', '--seconds', '1']);
  const all = files.map((file) => pathToFileURL(join(tree, file)).href);
  if (all.length > 0) await run(['-e', 'for (const file of process.argv.slice(1)) await import(file)', ...all]);
}

/** Where the shell finds a program. */
function whereIs(name: string): string {
  for (const folder of ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']) {
    if (fs.existsSync(join(folder, name))) return join(folder, name);
  }
  throw new Error(`the test machine takes ${name}, which is not on this computer`);
}

function plugins(): string[] {
  const folder = fs.globSync(`${MULTIARCH}/dpdk/pmds-*`)[0];
  const of = (name: string) => fs.globSync(`${folder}/${name}.so*`);
  return PLUGINS.flatMap(of);
}

/** The files, what they are links to, and the shared libraries of them all; each by its name in a world where /bin is /usr/bin. */
function withLibraries(paths: readonly string[]): Set<string> {
  const all = new Set<string>();
  const add = (path: string) => {
    const real = join(fs.realpathSync(dirname(path)), basename(path));
    if (all.has(real)) return;
    all.add(real);
    if (fs.lstatSync(real).isSymbolicLink()) add(resolve(dirname(real), fs.readlinkSync(real)));
  };
  for (const path of paths) add(path);
  const binaries = [...all].filter((path) => fs.lstatSync(path).isFile() && isElf(path));
  const needed = execFileSync('ldd', binaries, { encoding: 'utf8', stdio: 'pipe' });
  for (const [path] of needed.matchAll(/(?<=\s)\/\S+\.so[^\s:]*(?= \()/g)) add(path);
  return all;
}

function isElf(path: string): boolean {
  const fd = fs.openSync(path, 'r');
  try {
    const magic = Buffer.alloc(4);
    return fs.readSync(fd, magic) === 4 && magic.toString('latin1') === '\x7fELF';
  } finally {
    fs.closeSync(fd);
  }
}

/** Copies a file as it is; a link stays one, for a plug-in must not be loaded twice under two names. */
function copy(from: string, to: string): void {
  fs.mkdirSync(dirname(to), { recursive: true });
  if (fs.lstatSync(from).isSymbolicLink()) {
    fs.symlinkSync(fs.readlinkSync(from), to);
    return;
  }
  fs.copyFileSync(from, to, fs.constants.COPYFILE_FICLONE);
  fs.chmodSync(to, fs.statSync(from).mode);
}

/** Packs a folder as a disk, with `spareMiB` to write to. */
async function makeDisk(tree: string, image: string, spareMiB = 16): Promise<void> {
  const bytes = fs
    .readdirSync(tree, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .reduce((sum, entry) => sum + 4096 + fs.statSync(join(entry.parentPath, entry.name)).size, 0);
  const mib = Math.ceil((bytes * SLACK) / MIB) + spareMiB;
  const part = `${image}.${process.pid}`; // another test file may be at it too
  const options = ['-q', '-t', 'ext4', '-O', '^has_journal', '-E', 'root_owner=0:0', '-d', tree];
  await runToEnd({ name: 'mke2fs', command: whereIs('mke2fs'), args: [...options, part, `${mib}M`] }, BUILD_MS);
  fs.renameSync(part, image);
}
