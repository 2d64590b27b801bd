/**
 * A Linux guest in QEMU whose network device is served over vhost-user.
 * Needs the packages of peer "qemu" (see packages.ts).
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GuestAgent, type ShellResult } from './guest-agent.ts';
import { guestImage } from './guest-image.ts';
import { kvmWorks } from './kvm.ts';
import { lastLines, makeTempDir, PeerProcess, removeTempDir, waitUntil } from './process.ts';
import { type QemuGuestOptions, qemuArguments } from './qemu-args.ts';
import { QmpClient, type QmpEvent } from './qmp.ts';

export type { QemuGuestOptions } from './qemu-args.ts';

const READY = /GUEST READY [^\r\n]*/g;

/** Time for a boot; on a quiet machine TCG takes 5 s. */
const BOOT_TIMEOUT_MS = 60_000;

/** One guest: `start`, then `sh` and `qmp`, then `stop`. */
export class QemuGuest {
  readonly options: QemuGuestOptions;
  private readonly dir: string;
  private readonly agent: GuestAgent;
  private readonly monitor: QmpClient;
  private qemu: PeerProcess | undefined;
  private readySeen = 0;

  constructor(options: QemuGuestOptions) {
    this.options = options;
    this.dir = makeTempDir(`guest-${options.name}`);
    this.agent = new GuestAgent(this.path('agent'));
    this.monitor = new QmpClient(this.path('qmp'));
  }

  /** Boots the guest and waits until it runs commands. On failure nothing is left behind. */
  async start(timeoutMs = BOOT_TIMEOUT_MS): Promise<this> {
    try {
      await this.launch();
      await this.waitReady(timeoutMs);
      return this;
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  /** Starts QEMU without waiting for the guest: for one that waits for its back end, or for an incoming migration. */
  async launch(): Promise<this> {
    const { kernel, initrd } = await guestImage();
    const accel = this.options.accel ?? process.env.GUEST_ACCEL ?? ((await kvmWorks()) ? 'kvm' : 'tcg');
    const [command, ...before] = [...(this.options.launcher ?? []), 'qemu-system-x86_64'];
    this.qemu = new PeerProcess({
      name: `guest ${this.options.name}`,
      command,
      args: [...before, ...qemuArguments(this.options, { kernel, initrd, accel, path: (file) => this.path(file) })],
      nice: this.options.nice ?? 10,
    });
    return this;
  }

  /** Waits until the guest has booted: the first time, or once more since the last call (after a reset). */
  async waitReady(timeoutMs = BOOT_TIMEOUT_MS): Promise<void> {
    const count = () => this.log.match(READY)?.length ?? 0;
    const givenUp = () => this.endedHow;
    await this.run(() => waitUntil('boot', () => count() > this.readySeen, timeoutMs, { givenUp, everyMs: 50 }));
    this.readySeen = count();
  }

  /** QEMU's process id. */
  get pid(): number {
    return this.process.pid;
  }

  /** How QEMU ended, in words; undefined while it runs. */
  get endedHow(): string | undefined {
    return this.qemu?.endedHow;
  }

  /** What QEMU itself said last. */
  get said(): string {
    return this.qemu?.lastLines(10) ?? '';
  }

  /** The guest's console so far. */
  get log(): string {
    const file = this.path('log');
    return existsSync(file) ? readFileSync(file, 'latin1') : '';
  }

  /** The virtio features the guest's driver of eth0 acknowledged, as bits of a number. */
  async features(): Promise<bigint> {
    const { output } = await this.sh('cat /sys/class/net/eth0/device/features');
    return [...output.trim()].reduce((bits, bit, index) => (bit === '1' ? bits | (1n << BigInt(index)) : bits), 0n);
  }

  /** Runs a shell command in the guest. */
  sh(command: string, timeoutMs = 20_000): Promise<ShellResult> {
    return this.run(() => this.agent.run(command, timeoutMs));
  }

  /** Runs a QMP command and returns its answer. */
  qmp(command: string, args: Record<string, unknown> = {}, timeoutMs = 30_000): Promise<unknown> {
    return this.run(() => this.monitor.execute(command, args, timeoutMs));
  }

  /** Waits for a QMP event that has not been taken yet; they are collected from the first `qmp` call on. */
  waitEvent(name: string, timeoutMs = 30_000): Promise<QmpEvent> {
    return this.run(() => this.monitor.waitEvent(name, timeoutMs));
  }

  /** The socket on which a guest with `incoming` is to be migrated here. */
  get migrationSocket(): string {
    return this.path('migration');
  }

  /** Plugs a DIMM; the guest has it online when this returns. Needs `hotplug`. @param id tells DIMMs apart */
  async plugMemory(id: string, mib: number, timeoutMs = 30_000): Promise<void> {
    const online = async () => Number((await this.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo")).output);
    const before = await online();
    const size = mib * 2 ** 20;
    await this.qmp('object-add', { 'qom-type': 'memory-backend-memfd', id: `${id}-mem`, size, share: true });
    await this.qmp('device_add', { driver: 'pc-dimm', id, memdev: `${id}-mem` });
    const more = async () => (await online()) - before > (mib * 1024) / 2;
    await this.run(() => waitUntil(`${mib} MiB more memory in the guest`, more, timeoutMs, { everyMs: 200 }));
  }

  /** Resets the machine and waits until it has booted again. */
  async reset(timeoutMs = BOOT_TIMEOUT_MS): Promise<void> {
    await this.qmp('system_reset');
    await this.waitReady(timeoutMs);
  }

  /** SIGKILL, as when QEMU crashes. Returns once it is gone; the console stays readable until `stop`. */
  async kill9(): Promise<void> {
    this.process.killNow();
    await this.process.ended;
  }

  /** Ends QEMU and removes its files. May be called at any time, and again. */
  async stop(): Promise<void> {
    this.agent.close();
    this.monitor.close();
    await this.qemu?.stop();
    removeTempDir(this.dir);
  }

  private get process(): PeerProcess {
    if (this.qemu === undefined) throw new Error(`guest ${this.options.name} is not started`);
    return this.qemu;
  }

  private path(file: string): string {
    return join(this.dir, file);
  }

  /** Adds to an error what the guest and QEMU said last. */
  private async run<T>(action: () => Promise<T>): Promise<T> {
    try {
      if (this.endedHow !== undefined) throw new Error('QEMU is gone');
      return await action();
    } catch (error) {
      const { name } = this.options;
      const how = this.endedHow === undefined ? '' : `\n(QEMU ${this.endedHow})`;
      const said = this.said || 'nothing';
      throw new Error(
        `guest ${name}: ${(error as Error).message}${how}\n--- QEMU of ${name} said:\n${said}` +
          `\n--- console of ${name}, last lines:\n${lastLines(this.log, 15)}`,
        { cause: error },
      );
    }
  }
}
