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
import { QmpClient, type QmpEvent } from './qmp.ts';

/** How a guest is set up. */
export interface QemuGuestOptions {
  /** Names the guest in messages, and is its host name: letters, digits, hyphens. */
  name: string;
  /** The vhost-user socket. Without one the guest has no network device. */
  socket?: string;
  /** Default 52:54:00:00:00:01. */
  mac?: string;
  /** Address and prefix length of eth0, such as 10.0.0.1/24. */
  ip?: string;
  /** Default 192. */
  memoryMiB?: number;
  /** Virtual CPUs; default: as many as queues. */
  cpus?: number;
  /** Queue pairs; the guest uses one until `ethtool -L eth0 combined N`. Default 1. */
  queues?: number;
  /** QEMU makes the socket and listens: it then blocks, QMP too, until a back end connects. Default false. */
  server?: boolean;
  /** Seconds after which QEMU connects again to a lost back end, or to one that is not there yet. */
  reconnect?: number;
  /** Properties of virtio-net-pci, such as `csum=off` or `packed=on`. */
  device?: readonly string[];
  /** Properties of `-netdev vhost-user`. */
  netdev?: readonly string[];
  /** Added to the kernel's command line; `g_mods=a,b` loads modules. */
  kernelArgs?: readonly string[];
  /** QEMU arguments, as they are: `-incoming`, `-device`, ... */
  args?: readonly string[];
  /**
   * MSI-X vectors of the network device. Default 0, interrupts by INTx: QEMU 7.2 under TCG crashes in
   * msix_set_vector_notifiers when a guest turns MSI-X on for a vhost-user device.
   */
  vectors?: number;
  /** Default: kvm where it really works, else tcg. The variable GUEST_ACCEL decides when it is set. */
  accel?: 'kvm' | 'tcg';
  /** Of the QEMU process. Default 10: under TCG guests compete with the switch that is tested. */
  nice?: number;
  /** A program and its arguments that replaces itself by QEMU, such as `nsenter --net=FILE`. */
  launcher?: readonly string[];
}

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
    const image = await guestImage();
    const accel = this.options.accel ?? process.env.GUEST_ACCEL ?? ((await kvmWorks()) ? 'kvm' : 'tcg');
    const [command, ...before] = [...(this.options.launcher ?? []), 'qemu-system-x86_64'];
    this.qemu = new PeerProcess({
      name: `guest ${this.options.name}`,
      command,
      args: [...before, ...this.arguments(image.kernel, image.initrd, accel)],
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
      const said = this.qemu?.lastLines(10) || 'nothing';
      throw new Error(
        `guest ${name}: ${(error as Error).message}${how}\n--- QEMU of ${name} said:\n${said}` +
          `\n--- console of ${name}, last lines:\n${lastLines(this.log, 15)}`,
        { cause: error },
      );
    }
  }

  private arguments(kernel: string, initrd: string, accel: string): string[] {
    const { name, ip = '', memoryMiB = 192, queues = 1, cpus = queues } = this.options;
    const console_ = 'console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check';
    const append = [console_, `g_name=${name}`, `g_ip=${ip}`, ...(this.options.kernelArgs ?? [])];
    return [
      ...['-name', name, '-accel', accel, '-M', 'q35,memory-backend=mem', '-smp', String(cpus), '-m', `${memoryMiB}`],
      ...['-object', `memory-backend-memfd,id=mem,size=${memoryMiB}M,share=on`],
      ...['-nodefaults', '-no-user-config', '-display', 'none'],
      ...['-kernel', kernel, '-initrd', initrd, '-append', append.join(' ')],
      ...['-chardev', `file,id=log,path=${this.path('log')}`, '-serial', 'chardev:log'],
      ...['-chardev', `socket,id=agent,path=${this.path('agent')},server=on,wait=off`, '-serial', 'chardev:agent'],
      ...['-qmp', `unix:${this.path('qmp')},server=on,wait=off`],
      ...this.networkArguments(queues),
      ...(this.options.args ?? []),
    ];
  }

  private networkArguments(queues: number): string[] {
    const { socket, mac = '52:54:00:00:00:01', server, reconnect, vectors = 0 } = this.options;
    if (socket === undefined) return [];
    const chardev = ['socket', 'id=net0', `path=${socket}`];
    if (server) chardev.push('server=on', 'wait=off');
    if (reconnect !== undefined) chardev.push(`reconnect=${reconnect}`);
    const netdev = ['vhost-user', 'id=n0', 'chardev=net0', `queues=${queues}`, ...(this.options.netdev ?? [])];
    const device = ['virtio-net-pci', 'id=nic0', 'netdev=n0', `mac=${mac}`, 'romfile=', `vectors=${vectors}`];
    if (queues > 1) device.push('mq=on');
    device.push(...(this.options.device ?? []));
    return ['-chardev', chardev.join(','), '-netdev', netdev.join(','), '-device', device.join(',')];
  }
}
