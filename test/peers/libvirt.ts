/**
 * A real libvirtd for tests, beside no other and without systemd or D-Bus: in mount, network and process namespaces of its own, where
 * libvirt's folders are empty and nothing outlives it. Needs root and the packages of peer "libvirt" (see packages.ts).
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { makeTempDir, PeerProcess, removeTempDir, runToEnd, waitUntil } from './process.ts';

/** Its first connection has QEMU tell what it can: under load that takes long. */
const START_DEADLINE_MS = 60_000;
const VIRSH_DEADLINE_MS = 60_000;

/** Where libvirt keeps things; `/run` and so on are hidden as a whole, since libvirt's part need not exist. */
const OWN_FOLDERS = ['/run', '/etc/libvirt', '/var/lib', '/var/cache', '/var/log'];

/** A bridge, without a way out, that domains find there. */
export const BRIDGE = 'guests';

const NAMESPACES = ['--mount', '--net', '--pid', '--fork', '--kill-child', '--mount-proc'];

/** What runs in the namespaces, as process 1, which gathers the programs that turn into daemons. $1: the daemon's folder. */
const SCRIPT = `set -e
for folder in ${OWN_FOLDERS.join(' ')}; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
cp "$1/qemu.conf" /etc/libvirt/
ip link set lo up
ip link add ${BRIDGE} up type bridge
libvirtd --config "$1/libvirtd.conf" --pid-file "$1/pid" &
wait $!
`;

const QEMU_CONF = `user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
`;

const libvirtdConf = (dir: string) => `auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_dir = "${dir}"
host_uuid = "2f6c2ab6-9d8e-4c55-a8cb-3cfa8c6ba0a1"
log_outputs = "3:stderr"
`;

/** Says by an error why libvirtd cannot be had here. */
export function probeLibvirt(): void {
  if (process.getuid?.() !== 0) throw new Error('libvirtd of its own takes root');
  const attempt = `mount -t tmpfs tmpfs /run && ip link add ${BRIDGE} type bridge`;
  execFileSync('unshare', [...NAMESPACES, 'sh', '-c', attempt], { stdio: 'pipe', timeout: 20_000 });
}

/** One libvirtd: `start`, then `virsh`, then `stop`. */
export class Libvirt {
  /** Its folder, which its domains see too. */
  readonly dir = makeTempDir('libvirt');
  readonly #daemon: PeerProcess;

  private constructor() {
    // packages make this account; libvirt wants it by name even where its domains run as somebody else
    for (const [file, line] of [
      ['passwd', 'libvirt-qemu:x:64055:64055::/:/bin/false'],
      ['group', 'libvirt-qemu:x:64055:'],
    ]) {
      const lines = readFileSync(`/etc/${file}`, 'utf8').split('\n');
      const others = lines.filter((other) => other !== '' && !other.startsWith('libvirt-qemu:'));
      writeFileSync(this.path(file), `${[...others, line].join('\n')}\n`);
    }
    writeFileSync(this.path('qemu.conf'), QEMU_CONF);
    writeFileSync(this.path('libvirtd.conf'), libvirtdConf(this.dir));
    this.#daemon = new PeerProcess({
      name: 'libvirtd',
      command: 'unshare',
      args: [...NAMESPACES, 'sh', '-c', SCRIPT, 'sh', this.dir],
    });
  }

  /** Starts it, and waits until it answers. On failure nothing is left behind. */
  static async start(): Promise<Libvirt> {
    const started = new Libvirt();
    try {
      const answers = () =>
        started.virsh('version').then(
          () => true,
          () => false,
        );
      await started.#daemon.waitUntil('an answer', answers, START_DEADLINE_MS);
      return started;
    } catch (error) {
      await started.stop();
      throw error;
    }
  }

  /** A file in its folder. */
  path(name: string): string {
    return join(this.dir, name);
  }

  /** Runs `virsh` with these arguments. Rejects with its words when it fails. @returns what it says */
  virsh(...args: readonly string[]): Promise<string> {
    const uri = `qemu:///system?socket=${this.path('libvirt-sock')}`;
    const options = { name: `virsh ${args.join(' ')}`, command: 'virsh', args: ['-q', '-c', uri, ...args] };
    return runToEnd(options, VIRSH_DEADLINE_MS);
  }

  /** What the daemon itself said last. */
  get said(): string {
    return this.#daemon.lastLines();
  }

  /** The processes in its namespace, its domains' QEMU among them. */
  processes(): number[] {
    const [init] = readFileSync(`/proc/${this.#daemon.pid}/task/${this.#daemon.pid}/children`, 'utf8').split(' ');
    const namespace = namespaceOf(init);
    if (namespace === undefined) return [];
    const all = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
    return all.filter((pid) => namespaceOf(pid) === namespace).map(Number);
  }

  /** QEMU of a running domain. */
  qemuOf(domain: string): number {
    const isIts = (pid: number) => commandLine(pid).includes(`\0-name\0guest=${domain},`);
    const pid = this.processes().find(isIts);
    if (pid === undefined) throw new Error(`domain ${domain} has no QEMU`);
    return pid;
  }

  /** Ends it and all its domains, and removes its files. Returns once every process is gone. Any number of times. */
  async stop(): Promise<void> {
    const processes = this.#daemon.endedHow === undefined ? this.processes() : [];
    this.#daemon.killNow(); // and with it its namespace
    await this.#daemon.ended;
    const left = () => processes.filter((pid) => namespaceOf(String(pid)) !== undefined);
    await waitUntil('the end of what libvirtd started', () => left().length === 0, 10_000, {
      details: () => `processes ${left()}`,
    });
    removeTempDir(this.dir);
  }
}

/** A process's namespace of processes; undefined when it has ended. */
const namespaceOf = (pid: string) => ifThere(() => readlinkSync(`/proc/${pid}/ns/pid`));

/** A process's arguments, each with a NUL behind it; empty when it has ended. */
const commandLine = (pid: number) => ifThere(() => readFileSync(`/proc/${pid}/cmdline`, 'utf8')) ?? '';

/** What is read of a process; undefined when it has ended, or ends meanwhile. */
function ifThere(read: () => string): string | undefined {
  try {
    return read();
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
}
