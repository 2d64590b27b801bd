/**
 * What the doctor finds, and the names of its checks. How it is printed is not decided here.
 */

/** Every check by its name, with what it looks at. docs/doctor.md has the same list. */
export const CHECKS = {
  'kernel.version': 'the version of Linux',
  'hugepages.pool': 'hugepages of each size: how many there are, and how many are free',
  'hugepages.boot': 'hugepages that the kernel was asked for when it booted',
  'hugepages.nodes': 'hugepages of each NUMA node',
  'hugepages.mount': 'where hugetlbfs is mounted',
  'limits.memlock': 'the limit of locked memory, for net_af_xdp',
  'limits.address-space': 'the limit of address space',
  'rights.net_af_packet': 'what an uplink on a packet socket takes',
  'rights.net_tap': 'what an uplink on a TAP interface takes, /dev/net/tun with it',
  'rights.net_af_xdp': 'what an uplink by AF_XDP takes: rights, bpf(2), the kernel',
  'rights.steer': 'what steering by packet sockets takes (net_af_packet with steer=1)',
  'rights.namespace': 'what an uplink on an interface of another network namespace takes',
  'device.cuse': '/dev/cuse, for vhost-cuse',
  'device.kvm': '/dev/kvm, for guests that are not emulated',
  'cpu.allowed': 'whether the lcores may run on their CPUs',
  'cpu.isolation': 'whether the lcores have their CPUs for themselves',
  'cpu.siblings': 'lcores that share a core',
  'cpu.quota': 'a limit of processor time by cgroups',
  'cpu.governor': 'the frequency governor',
  'guest.process': 'the process of QEMU',
  'guest.version': 'trouble that is known of this version of QEMU',
  'guest.accelerator': 'whether the guest is emulated',
  'guest.interface': "the guest's vhost-user interfaces",
  'guest.reconnect': 'whether QEMU connects again to a switch that was restarted',
  'guest.queues': 'queue pairs, and interrupts for them',
  'memory.shared': "whether the guest's memory is shared with the switch",
  'memory.file': 'whether the switch may map the memory file: not on a file system that is served',
  'memory.prealloc': 'whether hugepages are taken when QEMU starts',
  'memory.seals': 'what the memory file may be used for',
  'memory.numa': "the NUMA nodes of the guest's memory and of the lcores",
  'socket.file': 'the file of the socket',
  'socket.listener': 'who listens on the socket, and whether it is one program',
  'socket.rights': 'who may connect',
} as const;

/** The name of a check. */
export type CheckName = keyof typeof CHECKS;

/** `unseen`: it could not be looked at, for want of rights most of the time. */
export type Severity = 'ok' | 'unseen' | 'warning' | 'error';

/** What a check found. */
export interface Finding {
  readonly check: CheckName;
  readonly severity: Severity;
  /** What is wrong, or how things are; a sentence without a full stop. */
  readonly what: string;
  /** How the trouble shows. */
  readonly shows?: string;
  /** What mends it, one of them each: a command, an option of QEMU, or a sentence. */
  readonly mend?: readonly string[];
}

/** What a finding that is no good says besides. */
export type Remedy = Required<Pick<Finding, 'shows' | 'mend'>>;

/** All is well. */
export const fine = (check: CheckName, what: string): Finding => ({ check, severity: 'ok', what });

/** It works, but worse than it could, or only in part. */
export const warning = (check: CheckName, what: string, remedy: Remedy): Finding => ({
  check,
  severity: 'warning',
  what,
  ...remedy,
});

/** It cannot work. */
export const failure = (check: CheckName, what: string, remedy: Remedy): Finding => ({
  check,
  severity: 'error',
  what,
  ...remedy,
});

/** Nobody knows. */
export const unseen = (check: CheckName, what: string, mend: readonly string[]): Finding => ({
  check,
  severity: 'unseen',
  what,
  mend,
});

/** A word as a shell takes it, whatever is in it. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./…-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** The advice to start QEMU with some more options, or other ones. */
export const qemuOptions = (...words: readonly string[]) => `start QEMU with: ${words.map(shellWord).join(' ')}`;
