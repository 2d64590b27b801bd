/** DPDK's testpmd in a test guest: the host's own, with its libraries, packed behind the guest's initial RAM disk. Needs peers "qemu" and "dpdk". */
import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { GUEST_CACHE, guestImage } from './guest-image.ts';

const PROGRAM = '/usr/bin/dpdk-testpmd';
const LIBRARIES = '/usr/lib/x86_64-linux-gnu';
/** What a virtio card on a PCI bus takes; DPDK loads all that is in the folder. */
const DRIVERS = /^librte_(bus_pci|bus_vdev|mempool_ring|net_virtio)\.so/;

/** The file names of the shared libraries that a program or library needs. */
function librariesOf(file: string): string[] {
  const lines = execFileSync('ldd', [file], { encoding: 'utf8' }).split('\n');
  return lines.flatMap((line) => / => (\/\S+)/.exec(line)?.[1] ?? []);
}

/** Makes an initial RAM disk in `dir` whose guest has `dpdk-testpmd`. @returns its path */
export async function dpdkInitrd(dir: string): Promise<string> {
  const { initrd } = await guestImage();
  const root = join(dir, 'dpdk-root');
  const put = (from: string, to: string) => {
    mkdirSync(join(root, dirname(to)), { recursive: true });
    cpSync(from, join(root, to), { verbatimSymlinks: true });
  };
  const plugins = join(LIBRARIES, 'dpdk');
  const [folder] = readdirSync(plugins).filter((name) => name.startsWith('pmds-'));
  const drivers = readdirSync(join(plugins, folder)).filter((name) => DRIVERS.test(name));
  // their links stay links: a library under two names would be loaded twice
  for (const name of drivers) put(join(plugins, folder, name), join(plugins, folder, name));
  const needed = [PROGRAM, ...drivers.map((name) => join(plugins, folder, name))].flatMap(librariesOf);
  put(PROGRAM, '/bin/dpdk-testpmd');
  for (const library of new Set(needed)) {
    const name = library.slice(library.lastIndexOf('/') + 1);
    mkdirSync(join(root, 'lib64'), { recursive: true });
    copyFileSync(library, join(root, 'lib64', name));
  }
  const busybox = join(GUEST_CACHE, 'tree/bin/busybox');
  const files = execFileSync('find', ['.'], { cwd: root, encoding: 'utf8' });
  const archive = execFileSync(busybox, ['cpio', '-o', '-H', 'newc', '-R', '0:0'], {
    cwd: root,
    input: files,
    maxBuffer: 256 * 2 ** 20,
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  const path = join(dir, 'initrd');
  // the kernel takes archives one behind the other, each at a multiple of four bytes
  const base = readFileSync(initrd);
  writeFileSync(path, Buffer.concat([base, Buffer.alloc(-base.length & 3), archive]));
  return path;
}
