/**
 * DPDK's examples/vhost, the vhost sample application that vhost-switch is modelled on, switching in software.
 * Its source comes from Debian's dpdk-doc, is patched by dpdk-vhost.sed and built under .cache/bench; none is kept here.
 */
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ealLcores, ealMemory } from '../../test/peers/dpdk.ts';
import { describeMemory, type Hugepages, reserveHugepages } from '../../test/peers/hugepages.ts';
import { packageVersion } from '../../test/peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir, runToEnd } from '../../test/peers/process.ts';
import { type BenchPeer, type BenchPeerOptions, otherCpu } from './peer.ts';

const CACHE = fileURLToPath(new URL('../../.cache/bench', import.meta.url));
const PATCH = fileURLToPath(new URL('dpdk-vhost.sed', import.meta.url));
/** Its pool has 147456 buffers; `--total-num-mbufs` can only raise that. */
const MEMORY_MIB = 512;
/** With ordinary pages each of these buffers takes a page. */
const ORDINARY_MEMORY_MIB = 1024;
const START_TIMEOUT_MS = 20_000;

/** The peer; needs the packages of peer "dpdk-vhost". */
export function dpdkVhostPeer({ core, dir }: BenchPeerOptions): BenchPeer {
  const version = packageVersion('libdpdk-dev') ?? 'unknown';
  const sockets: [string, string] = [join(dir, 'dpdk-vhost-a'), join(dir, 'dpdk-vhost-b')];
  let pages: Hugepages | undefined;
  let sample: PeerProcess | undefined;
  let runDir = '';
  return {
    name: 'DPDK examples/vhost, vm2vm 1',
    version,
    sockets,
    get memory() {
      return pages === undefined ? 'not started' : describeMemory(pages);
    },
    async start() {
      const program = await buildSample(version);
      runDir = makeTempDir('dpdk-vhost');
      pages = reserveHugepages(MEMORY_MIB);
      for (const socket of sockets) rmSync(socket, { force: true }); // the sample does not bind over an old one
      sample = new PeerProcess({
        name: 'dpdk-vhost',
        command: program,
        args: [
          ...ealLcores(1, { main: otherCpu(core), forwarding: [core] }),
          ...ealMemory(pages.obtained ? MEMORY_MIB : ORDINARY_MEMORY_MIB, pages.obtained),
          ...['--file-prefix', `vs${process.pid}-sample`, '--no-pci', '--no-telemetry', '--vdev', 'net_null0,no-rx=1'],
          ...['--', '-p', '0x1', '--vm2vm', '1', '--mergeable', '0'],
          ...sockets.flatMap((socket) => ['--socket-file', socket]),
        ],
        env: { RUNTIME_DIRECTORY: runDir },
      });
      try {
        const listening = () => sockets.every((socket) => existsSync(socket));
        await sample.waitUntil('sockets', listening, START_TIMEOUT_MS);
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async stop() {
      sample?.signal('SIGINT'); // has it unregister the sockets
      if (sample !== undefined && !(await sample.endsWithin(3000))) await sample.stop(1000);
      sample = undefined;
      for (const socket of sockets) rmSync(socket, { force: true });
      removeTempDir(runDir);
      pages?.release();
    },
  };
}

/** Builds the sample unless it is built already; returns the program's path. Needs the network once (9 MB). */
async function buildSample(version: string): Promise<string> {
  const done = join(CACHE, `dpdk-vhost-${version}`);
  const program = join(done, 'build', 'dpdk-vhost');
  if (existsSync(program)) return program;
  mkdirSync(CACHE, { recursive: true });
  const work = makeTempDir('dpdk-vhost-build');
  const run = (name: string, command: string, args: string[], cwd = work) =>
    runToEnd({ name, command, args, cwd }, 5 * 60_000);
  try {
    const download = ['-q', '-o', 'APT::Sandbox::User=root', 'download', `dpdk-doc=${version}`];
    await run('apt-get download dpdk-doc', 'apt-get', download);
    await run('unpacking dpdk-doc', 'sh', ['-c', 'dpkg-deb --fsys-tarfile dpdk-doc_*.deb | tar -x ./usr/share/dpdk']);
    const source = join(work, 'usr/share/dpdk/examples/vhost');
    await run('patching dpdk-vhost', 'sed', ['-i', '-f', PATCH, 'main.c'], source);
    await run('building dpdk-vhost', 'make', ['-s', 'shared'], source);
    rmSync(done, { recursive: true, force: true });
    await run('keeping dpdk-vhost', 'cp', ['-a', source, `${done}.new`]);
    renameSync(`${done}.new`, done);
  } finally {
    removeTempDir(work);
  }
  return program;
}
