/** The doctor's checks, each on a machine that is broken in one way: it finds that, and nothing else. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { type Examination, examine } from '../../src/doctor/doctor.ts';
import { CHECKS, type CheckName, type Finding, type Severity } from '../../src/doctor/finding.ts';
import { DoctorMachine, GOOD_LINE, QEMU_PID, SOCKET, SWITCH_PID } from '../kit/doctor-machine.ts';

const NOTHING: Examination = { sockets: [], lcores: [], ports: [] };
const GUEST: Examination = { ...NOTHING, qemu: QEMU_PID };

/** What the doctor finds on a machine that `change` has had its way with. */
async function examined(t: TestContext, change: (machine: DoctorMachine) => void, wanted = GUEST): Promise<Finding[]> {
  const machine = new DoctorMachine();
  t.after(() => machine.remove());
  change(machine);
  return examine(machine, wanted);
}

const bad = (findings: readonly Finding[]) => findings.filter(({ severity }) => severity !== 'ok');

/** A command line with a word replaced, or words added. */
const lineWith = (from: string | RegExp, to: string) => GOOD_LINE.map((word) => word.replace(from, to));
const lineAnd = (...words: string[]) => [...GOOD_LINE, ...words];

/** One way to be broken. */
interface Case {
  readonly name: string;
  readonly change: (machine: DoctorMachine) => unknown;
  readonly wanted?: Examination;
  /** what is found, and nothing else */
  readonly finds: readonly [check: CheckName, severity: Severity, what: RegExp][];
  /** what one of the commands is */
  readonly mend?: RegExp;
}

const NOBODY = { uid: 1000, gid: 1000 };
const PRIVATE_MAPS = '7f0000000000-7f0040000000 rw-p 00000000 00:01 1026  /memfd:memory-backend-memfd (deleted)';
const without = (bit: number) => (0x1ffffffffffn & ~(1n << BigInt(bit))).toString(16);

const MACHINE: readonly Case[] = [
  {
    name: 'a kernel older than Node takes',
    change: (m) => m.write('/proc/sys/kernel/osrelease', '4.15.0-20-generic\n'),
    finds: [
      ['kernel.version', 'error', /Linux 4\.15\.0-20-generic is too old/],
      ['rights.net_af_xdp', 'warning', /takes Linux 5\.9; this is 4\.15/],
    ],
  },
  {
    name: 'a kernel without AF_XDP that we can use',
    change: (m) => m.write('/proc/sys/kernel/osrelease', '5.4.0\n'),
    finds: [
      ['kernel.version', 'warning', /Linux 5\.4\.0 has no AF_XDP/],
      ['rights.net_af_xdp', 'warning', /this is 5\.4\.0/],
    ],
  },
  {
    name: 'a kernel that cannot steer',
    change: (m) => m.write('/proc/sys/kernel/osrelease', '5.15.0-91-generic\n'),
    finds: [['kernel.version', 'warning', /cannot steer frames/]],
  },
  {
    name: 'all hugepages taken',
    change: (m) => m.hugepages({ total: 1024, free: 0 }),
    finds: [['hugepages.pool', 'warning', /hugepages of 2 MiB: 1024, 0 free: none is left/]],
    mend: /^echo 2048 >\/sys\/kernel\/mm\/hugepages\/hugepages-2048kB\/nr_hugepages$/,
  },
  {
    name: 'all free hugepages promised to others',
    change: (m) => m.write('/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages', '800\n'),
    finds: [['hugepages.pool', 'warning', /800 free, 800 of them promised: none is left/]],
  },
  {
    name: 'hugepages on one node only',
    change: (m) => m.hugepages({ node: 1 }),
    finds: [['hugepages.nodes', 'warning', /node 0: 512, 400 free; node 1: 0, 0 free/]],
    mend: /^echo 512 >\/sys\/devices\/system\/node\/node1\/hugepages\/hugepages-2048kB\/nr_hugepages$/,
  },
  {
    name: 'hugepages of 1 GiB without a mount',
    change: (m) => {
      m.hugepages({ size: 1048576, total: 4 });
      for (const node of [0, 1]) m.hugepages({ size: 1048576, node, total: 2 });
    },
    finds: [['hugepages.mount', 'warning', /there are hugepages of 1 GiB, but no hugetlbfs of that size/]],
    mend: /^mkdir -p \/dev\/hugepages-1024M && mount -t hugetlbfs -o pagesize=1024M hugetlbfs \/dev\/hugepages-1024M$/,
  },
  {
    name: 'fewer hugepages than the kernel was asked for',
    change: (m) => m.write('/proc/cmdline', 'quiet hugepagesz=2M hugepages=2048\n'),
    finds: [['hugepages.boot', 'warning', /asked for 2048 hugepages of 2 MiB when it booted, and has 1024/]],
    mend: /^echo 2048 >/,
  },
  {
    name: 'hugepages asked for of a size that there is not',
    change: (m) => m.write('/proc/cmdline', 'hugepagesz=1G hugepages=4\n'),
    finds: [['hugepages.boot', 'warning', /asked for 4 hugepages of 1 GiB when it booted, and has 0/]],
    mend: /no pages of 1 GiB/,
  },
  {
    name: 'a user without CAP_NET_RAW',
    change: (m) => m.status('self', { capabilities: without(13) }),
    finds: [
      ['rights.net_af_packet', 'warning', /takes CAP_NET_RAW; this user lacks CAP_NET_RAW/],
      ['rights.net_af_xdp', 'warning', /this user lacks CAP_NET_RAW$/],
      ['rights.steer', 'warning', /takes CAP_NET_RAW, CAP_BPF; this user lacks CAP_NET_RAW \(/],
    ],
    mend: /^in the systemd unit of the switch: AmbientCapabilities=CAP_NET_RAW$/,
  },
  {
    name: 'a user without CAP_NET_ADMIN',
    change: (m) => m.status('self', { capabilities: without(12) }),
    finds: [
      ['rights.net_tap', 'warning', /net_tap takes CAP_NET_ADMIN/],
      ['rights.net_af_xdp', 'warning', /lacks CAP_NET_ADMIN$/],
    ],
    mend: /setpriv .*--ambient-caps=\+net_admin vhost-switch/,
  },
  {
    name: 'a user with neither CAP_BPF nor CAP_SYS_ADMIN',
    change: (m) =>
      m.status('self', { capabilities: ((1n << 12n) | (1n << 13n) | (1n << 14n) | (1n << 1n)).toString(16) }),
    finds: [
      ['rights.net_af_xdp', 'warning', /lacks CAP_BPF$/],
      ['rights.steer', 'warning', /lacks CAP_BPF \(kernel\.unprivileged_bpf_disabled is 2\)$/],
      ['rights.namespace', 'warning', /another network namespace takes CAP_SYS_ADMIN/],
    ],
  },
  {
    name: 'a user with neither, where all may load programs for sockets',
    change: (m) =>
      m
        .status('self', { capabilities: ((1n << 12n) | (1n << 13n) | (1n << 14n) | (1n << 1n)).toString(16) })
        .write('/proc/sys/kernel/unprivileged_bpf_disabled', '0\n'),
    finds: [
      ['rights.net_af_xdp', 'warning', /lacks CAP_BPF$/],
      ['rights.namespace', 'warning', /another network namespace/],
    ],
  },
  {
    name: 'root of a rootless container',
    change: (m) => m.write('/proc/self/uid_map', '         0       1000          1\n'),
    finds: [['rights.net_af_xdp', 'warning', /this user namespace is not the first one/]],
  },
  {
    name: 'a kernel without XDP sockets',
    change: (m) => m.write('/proc/config.gz', gzipSync('CONFIG_BPF_SYSCALL=y\nCONFIG_TUN=y\nCONFIG_CUSE=y\n')),
    finds: [['rights.net_af_xdp', 'warning', /built without CONFIG_XDP_SOCKETS/]],
    mend: /net_af_packet instead/,
  },
  {
    name: 'a kernel without XDP sockets, by the file of its package',
    change: (m) => m.erase('/proc/config.gz').write('/boot/config-6.12.0-5-amd64', '# CONFIG_XDP_SOCKETS is not set\n'),
    finds: [
      ['rights.net_af_xdp', 'warning', /built without CONFIG_XDP_SOCKETS/],
      ['rights.net_af_xdp', 'warning', /built without CONFIG_BPF_SYSCALL/],
    ],
  },
  {
    name: 'BPF programs interpreted',
    change: (m) => m.write('/proc/sys/net/core/bpf_jit_enable', '0\n'),
    finds: [['rights.net_af_xdp', 'warning', /interprets BPF programs/]],
    mend: /^sysctl -w net\.core\.bpf_jit_enable=1$/,
  },
  {
    name: 'little memory that may be locked',
    change: (m) => m.status('self', { capabilities: without(14) }).limit('Max locked memory', '65536'),
    finds: [['limits.memlock', 'warning', /may lock 64 KiB of memory; net_af_xdp takes 12 MiB/]],
    mend: /^ulimit -l unlimited$/,
  },
  {
    name: 'limited address space',
    change: (m) => m.limit('Max address space', String(8 * 2 ** 30)),
    finds: [['limits.address-space', 'error', /limited to 8 GiB/]],
    mend: /^ulimit -v unlimited$/,
  },
  {
    name: 'no /dev/net/tun',
    change: (m) => m.erase('/dev/net/tun'),
    finds: [['rights.net_tap', 'warning', /\/dev\/net\/tun is not there/]],
    mend: /^modprobe tun$/,
  },
  {
    name: 'no TAP in the kernel',
    change: (m) =>
      m.erase('/dev/net/tun').write('/proc/config.gz', gzipSync('CONFIG_XDP_SOCKETS=y\nCONFIG_BPF_SYSCALL=y\n')),
    finds: [['rights.net_tap', 'warning', /\/dev\/net\/tun is not there/]],
    mend: /this kernel has no TAP/,
  },
  {
    name: 'no /dev/cuse',
    change: (m) => m.erase('/dev/cuse'),
    finds: [['device.cuse', 'warning', /\/dev\/cuse is not there/]],
    mend: /^modprobe cuse$/,
  },
  {
    name: '/dev/kvm is for a group that the user is not in',
    change: (m) =>
      m.status('self', { ...NOBODY, capabilities: without(1) }).node('/dev/kvm', { mode: 0o20660, gid: 109 }),
    finds: [['device.kvm', 'warning', /\/dev\/kvm may not be opened by user 1000: its mode is 0660, its group kvm/]],
    mend: /^usermod -aG kvm 1000/,
  },
  {
    name: 'no /dev/kvm',
    change: (m) => m.erase('/dev/kvm'),
    finds: [['device.kvm', 'warning', /\/dev\/kvm is not there/]],
    mend: /modprobe kvm-intel/,
  },
];

const CPUS: readonly Case[] = [
  {
    name: 'lcores on CPUs that they may not have',
    change: (m) => m.status('self', { cpus: '0-3' }).write('/sys/devices/system/cpu/isolated', '2-3,7\n'),
    wanted: { ...NOTHING, lcores: [2, 7] },
    finds: [['cpu.allowed', 'error', /are to run on CPU 7, but may run on 0-3 only/]],
    mend: /AllowedCPUs=2,7; .*--cpuset-cpus=2,7/,
  },
  {
    name: 'lcores that share their CPUs',
    change: () => {},
    wanted: { ...NOTHING, lcores: [2, 5] },
    finds: [
      [
        'cpu.isolation',
        'warning',
        /lcores share CPU 5 with other programs \(isolated CPUs: 2-3; without timer ticks: 2-3\)/,
      ],
    ],
    mend: /isolcpus=2,5 nohz_full=2,5/,
  },
  {
    name: 'lcores on one core',
    change: (m) => m.write('/sys/devices/system/cpu/isolated', '0-7\n'),
    wanted: { ...NOTHING, lcores: [2, 3, 6] },
    finds: [['cpu.siblings', 'warning', /the lcores on CPUs 2,6 share one core/]],
  },
  {
    name: 'limited processor time, by a group above',
    change: (m) => m.write('/proc/self/cgroup', '0::/a/b\n').write('/sys/fs/cgroup/a/cpu.max', '150000 100000\n'),
    finds: [['cpu.quota', 'warning', /limited to 1\.50 CPUs \(\/sys\/fs\/cgroup\/a\/cpu\.max\)/]],
    mend: /^echo max >\/sys\/fs\/cgroup\/a\/cpu\.max$/,
  },
  {
    name: 'a governor that saves power',
    change: (m) => m.write('/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor', 'powersave\n'),
    wanted: NOTHING,
    finds: [['cpu.governor', 'warning', /governor of CPU 3 is powersave/]],
    mend: /^cpupower -c 3 frequency-set -g performance$/,
  },
];

const QEMU: readonly Case[] = [
  {
    name: 'no such process',
    change: () => {},
    wanted: { ...NOTHING, qemu: 5 },
    finds: [['guest.process', 'error', /there is no process 5/]],
  },
  {
    name: 'a process that is not QEMU',
    change: () => {},
    wanted: { ...NOTHING, qemu: SWITCH_PID },
    finds: [['guest.process', 'error', /process 777 is vhost-switch, not QEMU/]],
  },
  {
    name: 'no such domain',
    change: () => {},
    wanted: { ...NOTHING, domain: 'db' },
    finds: [['guest.process', 'error', /no domain db runs/]],
    mend: /^virsh start db$/,
  },
  {
    name: 'a QEMU whose memory may not be seen',
    change: (m) => {
      for (const name of ['maps', 'fd', 'numa_maps', 'cwd', 'exe', 'ns']) m.forbid(`/proc/${QEMU_PID}/${name}`);
    },
    finds: [
      ['guest.process', 'unseen', /this user may not see its memory/],
      ['guest.version', 'unseen', /does not tell its version/],
      ['memory.shared', 'unseen', /by its command line the memory is shared/],
      ['memory.seals', 'unseen', /\/proc\/4242\/fd may not be read/],
      ['memory.numa', 'unseen', /numa_maps may not be read/],
    ],
    mend: /run the doctor as root/,
  },
  {
    name: 'QEMU 7.2 emulating, with MSI-X',
    change: (m) =>
      m.beGuest(lineWith(/^kvm$/, 'tcg')).program('/usr/bin/qemu-system-x86_64', 'QEMU emulator version 7.2.22'),
    finds: [
      ['guest.version', 'warning', /QEMU 7\.2\.22 under emulation \(tcg\) crashes when a guest uses MSI-X/],
      ['guest.accelerator', 'warning', /emulated/],
    ],
    mend: /vectors=0/,
  },
  {
    name: 'QEMU 7.2 and packed rings',
    change: (m) =>
      m
        .beGuest(lineWith('virtio-net-pci,netdev=n0', 'virtio-net-pci,netdev=n0,packed=on'))
        .program('/usr/bin/qemu-system-x86_64', 'QEMU emulator version 7.2.22'),
    finds: [['guest.version', 'warning', /forgets where a packed ring stood/]],
  },
  {
    name: 'QEMU 11.0.0 and reconnect-ms',
    change: (m) =>
      m
        .beGuest(lineWith('reconnect=1', 'reconnect-ms=500'))
        .program('/usr/bin/qemu-system-x86_64', 'QEMU emulator version 11.0.0'),
    finds: [['guest.version', 'warning', /aborts when the switch is not there yet/]],
  },
  {
    name: 'a QEMU of before memfd',
    change: (m) => m.program('/usr/bin/qemu-system-x86_64', 'QEMU emulator version 2.11.1(Debian)'),
    finds: [['guest.version', 'warning', /QEMU 2\.11\.1 has no memfd/]],
  },
  {
    name: 'a QEMU that anybody may write to is not asked',
    change: (m) => m.node('/usr/bin/qemu-system-x86_64', { mode: 0o100757 }),
    finds: [['guest.version', 'unseen', /does not tell its version/]],
  },
  {
    name: 'no vhost-user interface',
    change: (m) => m.beGuest(GOOD_LINE.slice(0, -6)),
    finds: [['guest.interface', 'warning', /without a vhost-user interface/]],
    mend: /-netdev vhost-user/,
  },
  {
    name: 'an interface without a socket',
    change: (m) => m.beGuest(lineWith('chardev=c0', 'chardev=c9')),
    finds: [['guest.interface', 'warning', /n0 names the chardev c9, which is no socket/]],
  },
  {
    name: 'an interface without a card',
    change: (m) => m.beGuest(lineWith('netdev=n0', 'netdev=n1')),
    finds: [['guest.interface', 'warning', /n0 has no card/]],
    mend: /-device virtio-net-pci,netdev=n0/,
  },
  {
    name: 'no reconnect',
    change: (m) => m.beGuest(lineWith(',reconnect=1', '')),
    finds: [['guest.reconnect', 'warning', /n0 connects once and never again/]],
    mend: /-chardev socket,id=c0,path=\/run\/vm\/sock,reconnect=1$/,
  },
  {
    name: 'no reconnect, and a QEMU that takes milliseconds',
    change: (m) =>
      m
        .beGuest(lineAnd('-qmp', 'unix:qmp.sock,server=on').map((word) => word.replace(',reconnect=1', '')))
        .answering('/var/lib/vm/qmp.sock', { version: '10.1.0', memory: [] }),
    finds: [['guest.reconnect', 'warning', /connects once/]],
    mend: /reconnect-ms=1000$/,
  },
  {
    name: 'queue pairs without mq=on',
    change: (m) => m.beGuest(lineWith('chardev=c0', 'chardev=c0,queues=4')),
    finds: [['guest.queues', 'warning', /n0 has 4 queue pairs, but its card has not mq=on/]],
    mend: /mq=on,vectors=10$/,
  },
  {
    name: 'too few vectors',
    change: (m) =>
      m.beGuest(
        lineWith('chardev=c0', 'chardev=c0,queues=4').map((word) =>
          word.replace('netdev=n0', 'netdev=n0,mq=on,vectors=5'),
        ),
      ),
    finds: [['guest.queues', 'warning', /4 queue pairs and 5 interrupt vectors; it takes 10/]],
  },
];

const MEMORY: readonly Case[] = [
  {
    name: 'share=off',
    change: (m) => m.beGuest(lineWith('share=on', 'share=off')),
    finds: [['memory.shared', 'error', /memory mem \(memory-backend-memfd, 1 GiB\) is private: share=on is missing/]],
    mend: /-object memory-backend-memfd,id=mem,…,share=on$/,
  },
  {
    name: 'a file without share=on',
    change: (m) =>
      m.beGuest(
        lineWith(/memory-backend-memfd.*/, 'memory-backend-file,id=mem,size=1G,mem-path=/dev/hugepages,prealloc=on'),
      ),
    finds: [['memory.shared', 'error', /mem \(memory-backend-file, 1 GiB\) is private/]],
  },
  {
    name: 'one of two NUMA nodes not shared, in JSON',
    change: (m) =>
      m.beGuest(
        lineAnd('-object', '{"qom-type":"memory-backend-ram","id":"other","size":1073741824,"share":false}').concat(
          ...['-numa', 'node,nodeid=0,memdev=mem', '-numa', 'node,nodeid=1,memdev=other'],
        ),
      ),
    finds: [['memory.shared', 'error', /memory other is memory-backend-ram/]],
  },
  {
    name: 'a monitor that knows better than the command line',
    change: (m) =>
      m.beGuest(lineAnd('-qmp', 'unix:/run/vm/qmp,server=on,wait=off')).answering('/run/vm/qmp', {
        version: '8.2.2',
        memory: [{ id: 'mem', size: 2 ** 30, prealloc: false, share: false }],
      }),
    finds: [['memory.shared', 'error', /memory mem .* is private/]],
  },
  {
    name: 'no memory backend',
    change: (m) =>
      m.beGuest(lineWith(/memory-backend.*|q35.*/, 'q35').map((word) => (word === '-object' ? '-M' : word))),
    finds: [['memory.shared', 'error', /the guest has 1 GiB of memory of its own: no shared memory backend/]],
    mend: /-object memory-backend-memfd,id=mem,size=1024M,share=on -machine memory-backend=mem$/,
  },
  {
    name: 'a memory backend that nobody uses',
    change: (m) => m.beGuest(lineWith(',memory-backend=mem', '')),
    finds: [['memory.shared', 'error', /the object mem is not used/]],
    mend: /-machine memory-backend=mem$/,
  },
  {
    name: '-mem-path, as in the original, without an object',
    change: (m) =>
      m.beGuest(
        [
          ...lineWith(/^-object$/, '-M').map((word) => word.replace(/memory-backend-m.*/, 'q35')),
          '-mem-path',
          '/dev/hugepages',
          '-mem-prealloc',
        ].map((word) => word.replace(',memory-backend=mem', '')),
      ),
    finds: [['memory.shared', 'error', /1 GiB of memory in \/dev\/hugepages, private/]],
  },
  {
    name: 'shared memory without a file',
    change: (m) => m.beGuest(lineWith('memory-backend-memfd', 'memory-backend-ram')),
    finds: [['memory.shared', 'error', /memory mem is memory-backend-ram: no file that the switch could map/]],
  },
  {
    name: 'memory that is mapped privately, whatever the command line says',
    change: (m) => m.beGuest(GOOD_LINE, { maps: PRIVATE_MAPS }),
    finds: [['memory.shared', 'error', /1 GiB of \/memfd:memory-backend-memfd \(deleted\) are mapped privately/]],
  },
  {
    name: 'nothing that is mapped shared',
    change: (m) => m.beGuest(GOOD_LINE, { maps: '7f0000000000-7f0040000000 rw-p 00000000 00:00 0 ' }),
    finds: [['memory.shared', 'error', /maps no memory file shared/]],
  },
  {
    name: 'private memory of a domain of libvirt',
    change: (m) =>
      m
        .beGuest(lineWith('share=on', 'share=off').concat('-chardev', 'socket,id=m,path=/var/lib/libvirt/qemu/m'))
        .write('/run/libvirt/qemu/web.pid', `${QEMU_PID}\n`),
    wanted: { ...NOTHING, domain: 'web' },
    finds: [['memory.shared', 'error', /is private/]],
    mend: /^virsh edit web: <memoryBacking><source type='memfd'\/><access mode='shared'\/><\/memoryBacking>$/,
  },
  {
    name: 'hugepages that are not taken at the start',
    change: (m) => m.beGuest(lineWith('share=on', 'share=on,hugetlb=on')),
    finds: [['memory.prealloc', 'warning', /memory mem is of hugepages that are not taken at the start/]],
    mend: /prealloc=on/,
  },
  {
    name: 'a file on hugetlbfs that is not taken at the start',
    change: (m) =>
      m.beGuest(
        lineWith(/memory-backend-memfd.*/, 'memory-backend-file,id=mem,size=1G,share=on,mem-path=/dev/hugepages'),
        {
          maps: '7f0000000000-7f0040000000 rw-s 00000000 00:01 1026  /dev/hugepages/qemu_back_mem.mem.Xy (deleted)',
        },
      ),
    finds: [['memory.prealloc', 'warning', /not taken at the start/]],
  },
  {
    name: 'a memory file on a file system of another machine',
    change: (m) =>
      m
        .beGuest(lineWith(/memory-backend-memfd.*/, 'memory-backend-file,id=mem,size=1G,share=on,mem-path=/mnt/a'), {
          maps: '7f0000000000-7f0040000000 rw-s 00000000 00:01 1026  /mnt/a/qemu_back_mem.mem.Xy (deleted)',
        })
        .write(
          `/proc/${QEMU_PID}/mounts`,
          '/dev/vda1 / ext4 rw 0 0\nsrv:/a /mnt/a nfs4 rw 0 0\ntmpfs /mnt/ab tmpfs rw 0 0\n',
        ),
    finds: [['memory.file', 'error', /Xy \(deleted\) is on a file system of type nfs4/]],
    mend: /mem-path=\/dev\/shm/,
  },
  {
    name: 'memory sealed against writing',
    change: (m) => m.sealed(`/proc/${QEMU_PID}/fd/12`, 1 | 16),
    finds: [['memory.seals', 'error', /sealed against writing \(SEAL, FUTURE_WRITE\)/]],
  },
  {
    name: 'memory far from the lcores that were named',
    change: (m) => m.write('/sys/devices/system/cpu/isolated', '0-7\n'),
    wanted: { ...GUEST, lcores: [5] },
    finds: [['memory.numa', 'warning', /guest memory by NUMA node: node 0: 1 GiB; the lcores are on node 1/]],
    mend: /numactl --cpunodebind=1 --membind=1/,
  },
  {
    name: 'memory far from the lcores of the switch that listens',
    change: (m) =>
      m
        .write('/sys/devices/system/cpu/isolated', '0-7\n')
        .lcoreOf(SWITCH_PID, 5)
        .erase(`/proc/${SWITCH_PID}/task/${SWITCH_PID + 2}`),
    finds: [['memory.numa', 'warning', /the lcores are on node 1/]],
  },
];

const onSocket = (path: string): Examination => ({ ...NOTHING, sockets: [path] });

const SOCKETS: readonly Case[] = [
  {
    name: 'no such socket',
    change: () => {},
    wanted: onSocket('/run/vm/other'),
    finds: [['socket.file', 'error', /\/run\/vm\/other is not there/]],
    mend: /^vhost-switch --socket-file \/run\/vm\/other$/,
  },
  {
    name: "the guest's socket is not there, in the folder of QEMU",
    change: (m) => m.beGuest(lineWith(`path=${SOCKET}`, "path=it's")),
    finds: [['socket.file', 'error', /\/var\/lib\/vm\/it's is not there/]],
    mend: /^vhost-switch --socket-file '\/var\/lib\/vm\/it'\\''s'$/,
  },
  {
    name: 'a path that is too long',
    change: () => {},
    wanted: onSocket(`/run/${'x'.repeat(120)}`),
    finds: [['socket.file', 'error', /is longer than a socket's may be \(107 bytes\)/]],
  },
  {
    name: 'a file that is no socket',
    change: (m) => m.node('/run/vm/file', { mode: 0o100644 }),
    wanted: onSocket('/run/vm/file'),
    finds: [['socket.file', 'error', /\/run\/vm\/file is there, but is no socket/]],
  },
  {
    name: 'a stale socket',
    change: (m) => m.listening([9002, '/run/systemd/private']),
    wanted: onSocket(SOCKET),
    finds: [['socket.listener', 'error', /nobody listens on \/run\/vm\/sock/]],
    mend: /vhost-switch --socket-file \/run\/vm\/sock/,
  },
  {
    name: 'a second switch on the same socket',
    change: (m) =>
      m.listening([9001, SOCKET], [9003, SOCKET]).listener(888, ['/usr/bin/python3', '-u', '/opt/other.py'], 9003),
    wanted: onSocket(SOCKET),
    finds: [
      [
        'socket.listener',
        'error',
        /2 sockets are bound to \/run\/vm\/sock: of vhost-switch \(pid 777\) and other\.py \(pid 888\)/,
      ],
    ],
    mend: /^kill 888$/,
  },
  {
    name: 'a second switch, in another network namespace and by a relative path',
    change: (m) =>
      m
        .listener(888, ['/opt/dpdk-vhost'], 9003)
        .namespaces(888, 'net:[2]')
        .point('/proc/888/cwd', '/run/vm')
        .write('/proc/888/net/unix', '00: 00000002 00000000 00010000 0001 01 9003 sock\n'),
    wanted: onSocket(SOCKET),
    finds: [['socket.listener', 'error', /of vhost-switch \(pid 777\) and dpdk-vhost \(pid 888\)/]],
  },
  {
    name: 'a listener that may not be seen',
    change: (m) => m.forbid(`/proc/${SWITCH_PID}/fd`),
    wanted: onSocket(SOCKET),
    finds: [['socket.listener', 'unseen', /somebody listens on \/run\/vm\/sock; this user may not see who/]],
  },
  {
    name: 'QEMU listens itself where it should connect',
    change: (m) => m.point(`/proc/${QEMU_PID}/fd/30`, 'socket:[9001]').erase(`/proc/${SWITCH_PID}`),
    wanted: { ...NOTHING, qemu: QEMU_PID },
    finds: [['socket.listener', 'error', /QEMU itself listens on \/run\/vm\/sock/]],
    mend: /^vhost-switch --client --socket-file \/run\/vm\/sock$/,
  },
  {
    name: "QEMU's user may not connect",
    change: (m) => m.node(SOCKET, { mode: 0o140755 }),
    finds: [
      [
        'socket.rights',
        'error',
        /QEMU runs as libvirt-qemu, who may not connect: .* belongs to root and group root, mode 0755/,
      ],
    ],
    mend: /--socket-group kvm --socket-mode 0660$/,
  },
  {
    name: "QEMU's user may not enter the folder",
    change: (m) => m.node('/run/vm', { mode: 0o40700 }),
    finds: [['socket.rights', 'error', /QEMU runs as libvirt-qemu, who may not enter \/run\/vm/]],
    mend: /^chmod o\+x \/run\/vm$/,
  },
  {
    name: 'everybody may connect',
    change: (m) => m.node(SOCKET, { mode: 0o140777, gid: 109 }),
    wanted: onSocket(SOCKET),
    finds: [['socket.rights', 'warning', /everybody may connect: .* mode 0777/]],
    mend: /^chmod o-rw/,
  },
  {
    name: 'a socket in a folder that may not be seen',
    change: (m) => m.forbid('/run/vm'),
    wanted: onSocket(SOCKET),
    finds: [['socket.file', 'unseen', /\/run\/vm\/sock may not be read by this user/]],
  },
];

for (const [room, cases] of Object.entries({
  machine: MACHINE,
  cpus: CPUS,
  guest: QEMU,
  memory: MEMORY,
  sockets: SOCKETS,
}))
  for (const { name, change, wanted, finds, mend } of cases)
    test(`doctor, ${room}: ${name}`, async (t) => {
      const found = bad(await examined(t, change, wanted));
      assert.deepEqual(
        found.map(({ check, severity }) => [check, severity]),
        finds.map(([check, severity]) => [check, severity]),
        JSON.stringify(found, undefined, 1),
      );
      found.forEach(({ what, severity, shows, mend: commands }, at) => {
        assert.match(what, finds[at][2]);
        assert.ok((commands?.length ?? 0) > 0, `${what}: how it is mended`);
        if (severity !== 'unseen') assert.ok(shows, `${what}: how it shows`);
      });
      if (mend !== undefined)
        assert.ok(
          found.some((one) => one.mend?.some((command) => mend.test(command))),
          `${mend} in ${JSON.stringify(found.map((one) => one.mend))}`,
        );
    });

test('doctor: a machine, guest and socket in good health are fine, and every check looks', async (t) => {
  const findings = await examined(t, () => {});
  assert.deepEqual(bad(findings), []);
  const looked = new Set(findings.map(({ check }) => check));
  const quiet: CheckName[] = ['hugepages.boot']; // nothing was asked for
  assert.deepEqual(
    Object.keys(CHECKS).filter((check) => !looked.has(check as CheckName)),
    quiet,
  );
});

test('doctor: every check is seen to find something', () => {
  const broken = [MACHINE, CPUS, QEMU, MEMORY, SOCKETS].flat().flatMap(({ finds }) => finds.map(([check]) => check));
  assert.deepEqual(new Set(Object.keys(CHECKS)), new Set(broken));
});

test('doctor: kinds of ports that must work are errors, and the others are not looked at', async (t) => {
  const nobody = (m: DoctorMachine) => m.status('self', NOBODY);
  const all = bad(await examined(t, nobody, NOTHING));
  assert.deepEqual(new Set(all.map(({ severity }) => severity)), new Set(['warning']));
  const some = await examined(t, nobody, { ...NOTHING, ports: ['net_tap', 'namespace'] });
  assert.deepEqual(
    bad(some).map(({ check, severity }) => [check, severity]),
    [
      ['rights.net_tap', 'error'],
      ['rights.namespace', 'error'],
    ],
  );
  assert.ok(!some.some(({ check }) => check === 'rights.net_af_packet'));
});

test('doctor: what only slows a port down is no error, however much the port is wanted', async (t) => {
  const slow = (m: DoctorMachine) => m.write('/proc/sys/net/core/bpf_jit_enable', '0\n');
  const found = bad(await examined(t, slow, { ...NOTHING, ports: ['net_af_xdp'] }));
  assert.deepEqual(
    found.map(({ check, severity }) => [check, severity]),
    [['rights.net_af_xdp', 'warning']],
  );
});

test('doctor: what processes are called is a word of the shell in what is to be copied', async (t) => {
  const evil = '$(reboot)`x`;';
  const change = (m: DoctorMachine) =>
    m.beGuest(
      lineWith('share=on', 'share=off').map((word) =>
        word.replace('id=mem', `id=${evil}`).replace('memory-backend=mem', `memory-backend=${evil}`),
      ),
    );
  const [{ mend = [] }] = bad(await examined(t, change));
  assert.deepEqual(mend, [`start QEMU with: -object 'memory-backend-memfd,id=${evil},…,share=on'`]);
});

test("doctor: a guest's domain is found by libvirt's file, and by its name without one", async (t) => {
  const wanted = { ...NOTHING, domain: 'web' };
  assert.deepEqual(bad(await examined(t, () => {}, wanted)), [], 'by -name');
  const decoy = (m: DoctorMachine) => m.write('/run/libvirt/qemu/web.pid', '999999\n');
  assert.match(bad(await examined(t, decoy, wanted))[0].what, /there is no process 999999/);
});

test('doctor: a domain with a slash in its name reads no file outside of the folder', async (t) => {
  const change = (m: DoctorMachine) => m.write('/run/libvirt/secret.pid', `${QEMU_PID}\n`);
  const [first] = bad(await examined(t, change, { ...NOTHING, domain: '../secret' }));
  assert.equal(first.check, 'guest.process');
});

test('doctor: a program is run for its version only if it is QEMU, and of root', async (t) => {
  const machine = new DoctorMachine();
  t.after(() => machine.remove());
  machine
    .point(`/proc/${QEMU_PID}/exe`, '/home/me/qemu-system-x86_64')
    .node('/home/me/qemu-system-x86_64', { mode: 0o100755, uid: 1000 });
  await examine(machine, GUEST);
  machine.point(`/proc/${QEMU_PID}/exe`, '/usr/bin/rm').node('/usr/bin/rm', { mode: 0o100755 });
  await examine(machine, GUEST);
  assert.deepEqual(machine.asked, []);
});
