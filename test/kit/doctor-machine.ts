/** A machine made of files for the doctor to look at: in good health, until a test breaks something. */
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { MonitorAnswers } from '../../src/doctor/monitor.ts';
import { type FileFacts, Forbidden, MachineSource } from '../../src/doctor/source.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';

/** The process of the guest's QEMU, and of the switch that it is connected to. */
export const QEMU_PID = 4242;
export const SWITCH_PID = 777;
export const SOCKET = '/run/vm/sock';
const SOCKET_INODE = 9001;

const ALL_CAPABILITIES = '000001ffffffffff';

/** What a status file says. */
interface Status {
  readonly uid?: number;
  readonly gid?: number;
  /** hexadecimal; default: none for users, all for root */
  readonly capabilities?: string;
  readonly cpus?: string;
}

/** Words of QEMU's command line that give a guest 1 GiB of shared memory and a card on {@link SOCKET}. */
export const GOOD_LINE: readonly string[] = [
  ...['qemu-system-x86_64', '-name', 'web', '-accel', 'kvm', '-m', '1G'],
  ...['-object', 'memory-backend-memfd,id=mem,size=1G,share=on', '-machine', 'q35,memory-backend=mem'],
  ...['-chardev', `socket,id=c0,path=${SOCKET},reconnect=1`, '-netdev', 'vhost-user,id=n0,chardev=c0'],
  ...['-device', 'virtio-net-pci,netdev=n0'],
];

/** A machine below a temporary folder, with 8 CPUs on two NUMA nodes, a guest and a switch. */
export class DoctorMachine extends MachineSource {
  readonly root: string;
  readonly #nodes = new Map<string, FileFacts>();
  readonly #forbidden: string[] = [];
  readonly #seals = new Map<string, number>();
  readonly #monitors = new Map<string, MonitorAnswers>();
  readonly #programs = new Map<string, string>();
  /** what was run, and who was asked */
  readonly asked: string[] = [];

  constructor() {
    const root = makeTempDir('doctor');
    super(root);
    this.root = root;
    this.#beMachine();
    this.#beSwitch();
    this.beGuest(GOOD_LINE);
  }

  /** Removes the folder. */
  remove(): void {
    removeTempDir(this.root);
  }

  write(path: string, text: string | Buffer): this {
    mkdirSync(dirname(join(this.root, path)), { recursive: true });
    writeFileSync(join(this.root, path), text);
    return this;
  }

  /** Makes a symbolic link, in place of one that is there. */
  point(path: string, target: string): this {
    mkdirSync(dirname(join(this.root, path)), { recursive: true });
    rmSync(join(this.root, path), { force: true });
    symlinkSync(target, join(this.root, path));
    return this;
  }

  erase(path: string): this {
    rmSync(join(this.root, path), { recursive: true, force: true });
    this.#nodes.delete(path);
    return this;
  }

  /** Has a device, socket or folder with these facts at a path. */
  node(path: string, facts: Partial<FileFacts>): this {
    this.#nodes.set(path, { mode: 0o20666, uid: 0, gid: 0, dev: 1, ino: this.#nodes.size + 1, ...facts });
    return this;
  }

  /** Nothing at or below a path may be looked at. */
  forbid(path: string): this {
    this.#forbidden.push(path);
    return this;
  }

  status(who: number | string, { uid = 0, gid = uid, capabilities, cpus = '0-7' }: Status): this {
    const rights = capabilities ?? (uid === 0 ? ALL_CAPABILITIES : '0');
    const ids = (id: number) => Array(4).fill(id).join('\t');
    const lines = [`Name:\tit`, `Uid:\t${ids(uid)}`, `Gid:\t${ids(gid)}`, `Groups:\t${gid} `, `CapEff:\t${rights}`];
    return this.write(`/proc/${who}/status`, [...lines, `Cpus_allowed_list:\t${cpus}`, ''].join('\n'));
  }

  limit(name: string, soft: string): this {
    return this.write(
      '/proc/self/limits',
      `Limit Soft Hard Units\n${name.padEnd(26)}${soft.padEnd(21)}unlimited bytes\n`,
    );
  }

  /** Listening sockets: of the whole machine. */
  listening(...sockets: [inode: number, path: string][]): this {
    const lines = sockets.map(([inode, path]) => `00: 00000002 00000000 00010000 0001 01 ${inode} ${path}`);
    return this.write(
      '/proc/self/net/unix',
      ['Num RefCount Protocol Flags Type St Inode Path', ...lines, ''].join('\n'),
    );
  }

  /** A process with a command line that has a socket. */
  listener(pid: number, line: readonly string[], inode: number): this {
    this.status(pid, {});
    this.write(`/proc/${pid}/cmdline`, `${line.join('\0')}\0`);
    this.point(`/proc/${pid}/fd/20`, `socket:[${inode}]`);
    return this.namespaces(pid);
  }

  namespaces(pid: number | 'self', net = 'net:[1]', mnt = 'mnt:[1]'): this {
    return this.point(`/proc/${pid}/ns/net`, net).point(`/proc/${pid}/ns/mnt`, mnt);
  }

  /** The guest's QEMU has this command line, and mappings of 1 GiB of it. */
  beGuest(line: readonly string[], { maps, uid = 64055 }: { maps?: string; uid?: number } = {}): this {
    const memory = '7f0000000000-7f0040000000 rw-s 00000000 00:01 1026  /memfd:memory-backend-memfd (deleted)';
    const others =
      '55d000000000-55d000400000 rw-p 00000000 00:00 0  [heap]\n55d000400000-55d000800000 r-xp 0 08:01 7 /usr/bin/qemu';
    const numa =
      '7f0000000000 default file=/memfd:memory-backend-memfd\\040(deleted) dirty=9 N0=262144 kernelpagesize_kB=4';
    this.status(QEMU_PID, { uid, gid: 109 });
    this.write(`/proc/${QEMU_PID}/cmdline`, `${line.join('\0')}\0`);
    this.write(`/proc/${QEMU_PID}/maps`, `${others}\n${maps ?? memory}\n`);
    this.write(`/proc/${QEMU_PID}/numa_maps`, `${numa}\n55d000000000 default heap N1=5 kernelpagesize_kB=4\n`);
    this.write(`/proc/${QEMU_PID}/mounts`, 'hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n');
    this.point(`/proc/${QEMU_PID}/exe`, '/usr/bin/qemu-system-x86_64').point(`/proc/${QEMU_PID}/cwd`, '/var/lib/vm');
    this.point(`/proc/${QEMU_PID}/fd/12`, '/memfd:memory-backend-memfd (deleted)').sealed(`/proc/${QEMU_PID}/fd/12`, 7);
    this.node('/usr/bin/qemu-system-x86_64', { mode: 0o100755 }).namespaces(QEMU_PID);
    return this.program('/usr/bin/qemu-system-x86_64', 'QEMU emulator version 8.2.2 (Debian 1:8.2.2)\n');
  }

  sealed(path: string, seals: number): this {
    this.#seals.set(path, seals);
    return this;
  }

  /** What a program prints. */
  program(path: string, prints: string): this {
    this.#programs.set(path, prints);
    return this;
  }

  /** What QEMU answers on its monitor socket. */
  answering(path: string, answers: MonitorAnswers): this {
    this.#monitors.set(path, answers);
    return this;
  }

  override stat(path: string): FileFacts | undefined {
    this.at(path);
    return this.#nodes.get(path) ?? super.stat(path);
  }

  override seals(path: string): number | undefined {
    return this.#seals.get(path);
  }

  override async run(program: string): Promise<string | undefined> {
    this.asked.push(program);
    return this.#programs.get(program);
  }

  override async monitor(path: string): Promise<MonitorAnswers | undefined> {
    this.asked.push(path);
    return this.#monitors.get(path);
  }

  protected override at(path: string): string {
    const isBelow = (folder: string) => path === folder || path.startsWith(`${folder}/`);
    if (this.#forbidden.some(isBelow)) throw new Forbidden(path);
    return super.at(path);
  }

  #beMachine(): void {
    this.write('/proc/sys/kernel/osrelease', '6.12.0-5-amd64\n');
    const config = ['CONFIG_TUN=m', 'CONFIG_CUSE=m', 'CONFIG_XDP_SOCKETS=y', 'CONFIG_BPF_SYSCALL=y', ''];
    this.write('/proc/config.gz', gzipSync(config.join('\n')));
    this.write('/proc/cmdline', 'root=/dev/vda1 isolcpus=2-3\n').write(
      '/proc/meminfo',
      'Hugepagesize:       2048 kB\n',
    );
    this.write('/proc/self/mounts', 'hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n');
    for (const node of [0, 1]) this.hugepages({ node, total: 512, free: 400 });
    this.hugepages({ total: 1024, free: 800 });
    this.status('self', {}).namespaces('self').write('/proc/self/uid_map', '         0          0 4294967295\n');
    this.write('/proc/self/cgroup', '0::/user.slice\n').write('/sys/fs/cgroup/user.slice/cpu.max', 'max 100000\n');
    this.write('/proc/sys/net/core/bpf_jit_enable', '1\n').write('/proc/sys/kernel/unprivileged_bpf_disabled', '2\n');
    for (const device of ['/dev/net/tun', '/dev/cuse', '/dev/kvm']) this.node(device, {});
    const cpu = '/sys/devices/system/cpu';
    this.write(`${cpu}/online`, '0-7\n').write(`${cpu}/isolated`, '2-3\n').write(`${cpu}/nohz_full`, '2-3\n');
    for (let n = 0; n < 8; n++) {
      this.write(`${cpu}/cpu${n}/cpufreq/scaling_governor`, 'performance\n');
      this.write(`${cpu}/cpu${n}/topology/thread_siblings_list`, `${n % 4},${(n % 4) + 4}\n`);
    }
    this.write('/sys/devices/system/node/node0/cpulist', '0-3\n').write(
      '/sys/devices/system/node/node1/cpulist',
      '4-7\n',
    );
    this.write('/etc/passwd', 'root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:109::/:/bin/false\n');
    this.write('/etc/group', 'root:x:0:\nkvm:x:109:\n');
  }

  /** Hugepages of a size, of one node or altogether. */
  hugepages({
    node,
    size = 2048,
    total = 0,
    free = total,
  }: {
    node?: number;
    size?: number;
    total?: number;
    free?: number;
  }): this {
    const base = node === undefined ? '/sys/kernel/mm' : `/sys/devices/system/node/node${node}`;
    const folder = `${base}/hugepages/hugepages-${size}kB`;
    return this.write(`${folder}/nr_hugepages`, `${total}\n`).write(`${folder}/free_hugepages`, `${free}\n`);
  }

  #beSwitch(): void {
    this.listener(
      SWITCH_PID,
      ['/usr/bin/node', '/usr/bin/vhost-switch', '-l', '1,2', '--socket-file', SOCKET],
      SOCKET_INODE,
    );
    this.listening([SOCKET_INODE, SOCKET], [9002, '/run/systemd/private']);
    this.node(SOCKET, { mode: 0o140660, gid: 109 });
    for (const folder of ['/', '/run', '/run/vm']) this.node(folder, { mode: 0o40755 });
    this.lcoreOf(SWITCH_PID, 2);
  }

  /** The switch polls on this CPU. */
  lcoreOf(pid: number, cpu: number): this {
    return this.status(`${pid}/task/${pid}`, {}).status(`${pid}/task/${pid + cpu}`, { cpus: String(cpu) });
  }
}
