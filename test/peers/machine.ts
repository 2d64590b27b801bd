/**
 * A computer of the tests' own, for what this one may lack: a Linux with chosen kernel modules, in QEMU, with root's rights, this
 * project, Node, DPDK and a QEMU inside. What is done in it harms nobody and is forgotten when it stops.
 * Needs the packages of peer "machine" (see packages.ts).
 */
import type { ShellResult } from './guest-agent.ts';
import { BUSYBOX, COMPILE_CACHE, machineDisks, PROJECT } from './machine-image.ts';
import { makeTempDir, removeTempDir } from './process.ts';
import { QemuGuest } from './qemu.ts';

/** How the machine is set up. */
export interface MachineOptions {
  /** Names it in messages: letters, digits, hyphens. */
  name: string;
  /** Kernel modules to load; mkguest.sh says which there are. Default none. */
  modules?: readonly string[];
  /** Files of the project whose modules are compiled before, beside the switch's: their paths from its root. Default none. */
  compiled?: readonly string[];
  /** Default 2048. */
  memoryMiB?: number;
}

/** Where the root disk is mounted on the way in. */
const MOUNTED = '/mnt';
const PATH = `PATH=/usr/sbin:/usr/bin:${BUSYBOX}`;
/** Patience of what runs inside: see waitUntil. */
const SLOWNESS = 'TEST_SLOWNESS=8';
const BOOT_MS = 120_000;
const SHORT_MS = 60_000;

/** One machine: `start`, then `sh`, then `stop`. */
export class Machine {
  readonly name: string;
  readonly #dir: string;
  readonly #guest: QemuGuest;

  private constructor(name: string, dir: string, guest: QemuGuest) {
    this.name = name;
    this.#dir = dir;
    this.#guest = guest;
  }

  /** Boots a machine with the project as it is now. On failure nothing is left behind. */
  static async start({ name, modules = [], compiled = [], memoryMiB = 2048 }: MachineOptions): Promise<Machine> {
    const dir = makeTempDir(`machine-${name}`);
    try {
      const { programs, project } = await machineDisks(dir, compiled);
      const guest = new QemuGuest({
        name,
        memoryMiB,
        // With two, QEMU 7.2 under TCG now and then runs code that another processor has just changed: every second Node dies.
        cpus: 1,
        nice: 0,
        // on a busy computer the kernel takes a processor's clock, when it looks at it, for many times slower than it is
        kernelArgs: ['clocksource=hpet', `g_mods=${['virtio_blk', ...modules]}`],
        // what DPDK and V8's SIMD take at least: emulation is the faster the less a processor has
        args: ['-cpu', 'Nehalem', ...disk('programs', programs), ...disk('project', project)],
      });
      await guest.start(BOOT_MS);
      const machine = new Machine(name, dir, guest);
      try {
        await machine.#enter();
        return machine;
      } catch (error) {
        await guest.stop();
        throw error;
      }
    } catch (error) {
      removeTempDir(dir);
      throw error;
    }
  }

  /** Makes the disks what commands see. */
  async #enter(): Promise<void> {
    const bind = ['proc', 'sys', 'dev', 'tmp'].map((name) => `mount --rbind /${name} ${MOUNTED}/${name}`);
    const steps = [
      `mount -t ext4 /dev/vda ${MOUNTED}`,
      `mount -t ext4 /dev/vdb ${MOUNTED}${PROJECT}`,
      ...bind,
      `mount --bind /bin ${MOUNTED}${BUSYBOX}`,
      `mount -t tmpfs shm ${MOUNTED}/dev/shm`,
      `mount -t tmpfs run ${MOUNTED}/run`,
      'ip link set lo up',
    ];
    const { status, output } = await this.#guest.sh(steps.join(' && '), SHORT_MS);
    if (status !== 0) throw new Error(`machine ${this.name}: the disks are not mounted: ${output}`);
  }

  /** Runs a shell command as root in the project's folder. After a time-out it still runs, and later ones wait for it. */
  sh(command: string, timeoutMs = SHORT_MS): Promise<ShellResult> {
    const script = Buffer.from(
      `export ${PATH} ${SLOWNESS} ${COMPILE_CACHE}; cd ${PROJECT} && { ${command}\n}`,
    ).toString('base64');
    return this.#guest.sh(
      `echo ${script} | base64 -d >/tmp/.command; chroot ${MOUNTED} /bin/sh /tmp/.command`,
      timeoutMs,
    );
  }

  /** {@link sh}, which must end with status 0. @returns what it printed */
  async run(command: string, timeoutMs = SHORT_MS): Promise<string> {
    const { status, output } = await this.sh(command, timeoutMs);
    if (status !== 0) throw new Error(`machine ${this.name}: status ${status} of: ${command}\n${output}`);
    return output;
  }

  /** A file of the machine. */
  async read(path: string, timeoutMs = SHORT_MS): Promise<Buffer> {
    return Buffer.from(await this.run(`base64 ${path}`, timeoutMs), 'base64');
  }

  /** Ends it as a power cut does, and removes its disks. May be called at any time, and again. */
  async stop(): Promise<void> {
    await this.#guest.stop();
    removeTempDir(this.#dir);
  }
}

/** A disk whose changes are forgotten. */
function disk(id: string, file: string): string[] {
  const drive = ['if=none', `id=${id}`, 'format=raw', 'snapshot=on', 'cache=unsafe', `file=${file}`];
  return ['-drive', drive.join(','), '-device', `virtio-blk-pci,drive=${id}`];
}
