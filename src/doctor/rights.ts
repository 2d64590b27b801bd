/**
 * What each kind of port takes: rights, devices, and what the kernel was built with. The rights are those of the process that asks.
 */
import { type CheckName, type Finding, failure, fine, type Remedy, warning } from './finding.ts';
import { isAtLeast, kernelOption, kernelRelease } from './kernel.ts';
import {
  ACCESS,
  accountName,
  type Capability,
  type Credentials,
  credentialsOf,
  hasCapability,
  modeAllows,
  modeText,
  softLimit,
} from './process.ts';
import { sizeInWords } from './size.ts';
import type { Source } from './source.ts';

/** Kinds of ports, and other things, that take rights; `--port` names them. */
export const PORT_KINDS = ['net_af_packet', 'net_tap', 'net_af_xdp', 'steer', 'namespace', 'vhost-cuse'] as const;

/** One of {@link PORT_KINDS}. */
export type PortKind = (typeof PORT_KINDS)[number];

/** Frames of one queue and of one lcore that net_af_xdp keeps in locked memory. @see docs/af-xdp.md */
const XDP_LOCKED_BYTES = 12 * 2 ** 20;
/** A switch with two guests: V8 reserves several GiB around each window on guest memory. No memory is taken for that. */
const MIN_ADDRESS_SPACE = 128 * 2 ** 30;

/** What stands in the way of a port. */
interface Obstacle extends Remedy {
  readonly what: string;
  /** it works all the same */
  readonly mild?: true;
}

/**
 * rights.…, device.…, limits.…
 * @param wanted the kinds that must work: what they lack is an error. None: all are looked at, and what they lack is a warning.
 */
export function checkRights(source: Source, wanted: readonly PortKind[]): Finding[] {
  const who = credentialsOf(source, 'self');
  if (who === undefined) return [];
  const report = wanted.length === 0 ? warning : failure;
  const of = (kind: PortKind, check: CheckName, works: string, obstacles: readonly Obstacle[]): Finding[] => {
    if (wanted.length > 0 && !wanted.includes(kind)) return [];
    if (obstacles.length === 0) return [fine(check, works)];
    return obstacles.map(({ what, mild, ...remedy }) => (mild ? warning : report)(check, what, remedy));
  };
  return [
    ...of('net_af_packet', 'rights.net_af_packet', 'net_af_packet and -a can be used', [
      ...lacking(who, 'net_af_packet and -a', ['CAP_NET_RAW']),
    ]),
    ...of('net_tap', 'rights.net_tap', 'net_tap can be used', [
      ...lacking(who, 'net_tap', ['CAP_NET_ADMIN']),
      ...tunObstacles(source, who),
    ]),
    ...of('net_af_xdp', 'rights.net_af_xdp', 'net_af_xdp can be used', [
      ...lacking(who, 'net_af_xdp', ['CAP_NET_ADMIN', 'CAP_NET_RAW', 'CAP_BPF']),
      ...xdpObstacles(source),
    ]),
    ...of('net_af_xdp', 'limits.memlock', 'net_af_xdp may lock memory', memlockObstacles(source, who)),
    ...of('steer', 'rights.steer', 'net_af_packet can be used with steer=1', steerObstacles(source, who)),
    ...of('namespace', 'rights.namespace', 'interfaces of other network namespaces can be used', [
      ...lacking(who, 'an interface of another network namespace', ['CAP_SYS_ADMIN']),
    ]),
    ...of('vhost-cuse', 'device.cuse', '/dev/cuse can be used', cuseObstacles(source, who)),
    ...checkKvm(source, who),
    ...checkAddressSpace(source),
  ];
}

function lacking(who: Credentials, what: string, names: readonly Capability[]): Obstacle[] {
  const missing = names.filter((name) => !hasCapability(who, name));
  if (missing.length === 0) return [];
  const inherited = names.map((name) => `+${name.slice('CAP_'.length).toLowerCase()}`).join(',');
  return [
    {
      what: `${what} takes ${names.join(', ')}; this user lacks ${missing.join(', ')}`,
      shows: 'the switch says UPLINK_NO_RIGHTS or EPERM, and does not start',
      mend: [
        `in the systemd unit of the switch: AmbientCapabilities=${names.join(' ')}`,
        `sudo setpriv --reuid="$USER" --regid="$USER" --init-groups --inh-caps=${inherited} --ambient-caps=${inherited} vhost-switch …`,
      ],
    },
  ];
}

function deviceObstacles(source: Source, who: Credentials, path: string, absent: Remedy): Obstacle[] {
  const facts = source.stat(path);
  if (facts === undefined) return [{ what: `${path} is not there`, ...absent }];
  if (modeAllows(facts, who, ACCESS.read | ACCESS.write)) return [];
  const group = accountName(source, '/etc/group', facts.gid);
  const user = accountName(source, '/etc/passwd', who.uid);
  return [
    {
      what: `${path} may not be opened by user ${user}: its mode is ${modeText(facts)}, its group ${group}`,
      shows: 'opening it fails: EACCES',
      mend: [group === 'root' ? `setfacl -m u:${user}:rw ${path}` : `usermod -aG ${group} ${user}, and log in again`],
    },
  ];
}

function tunObstacles(source: Source, who: Credentials): Obstacle[] {
  const built = kernelOption(source, 'CONFIG_TUN');
  const mend =
    built === 'n'
      ? ['this kernel has no TAP (CONFIG_TUN): boot one that has it']
      : ['modprobe tun', 'in a container: start it with --device /dev/net/tun --cap-add NET_ADMIN'];
  const shows = 'a --vdev net_tap… ends the switch: ENOENT';
  return deviceObstacles(source, who, '/dev/net/tun', { shows, mend });
}

function cuseObstacles(source: Source, who: Credentials): Obstacle[] {
  const built = kernelOption(source, 'CONFIG_CUSE');
  const mend = [built === 'n' ? 'this kernel has no CUSE (CONFIG_CUSE): boot one that has it' : 'modprobe cuse'];
  const shows = 'the character device of vhost-cuse cannot be made; vhost-user needs none';
  return deviceObstacles(source, who, '/dev/cuse', { shows, mend });
}

function xdpObstacles(source: Source): Obstacle[] {
  const obstacles: Obstacle[] = [];
  const release = kernelRelease(source);
  const instead = 'use net_af_packet instead';
  if (!isAtLeast(release, 5, 9)) {
    const shows = 'net_af_xdp ends the switch: UPLINK_NOT_SUPPORTED';
    obstacles.push({ what: `net_af_xdp takes Linux 5.9; this is ${release.text}`, shows, mend: [instead] });
  }
  for (const option of ['CONFIG_XDP_SOCKETS', 'CONFIG_BPF_SYSCALL']) {
    if (kernelOption(source, option) !== 'n') continue;
    const shows = 'net_af_xdp ends the switch: UPLINK_NOT_SUPPORTED';
    obstacles.push({ what: `this kernel was built without ${option}`, shows, mend: [instead] });
  }
  // bpf(2) counts the rights of the first user namespace only
  const map = source.text('/proc/self/uid_map')?.trim().split(/\s+/) ?? [];
  if (map.length > 0 && map.join(' ') !== '0 0 4294967295') {
    obstacles.push({
      what: 'this user namespace is not the first one: its rights do not count for bpf(2)',
      shows: 'net_af_xdp ends the switch: UPLINK_NO_RIGHTS, even as root of a rootless container',
      mend: ['run the switch outside of rootless containers', instead],
    });
  }
  if (source.text('/proc/sys/net/core/bpf_jit_enable')?.trim() === '0') {
    obstacles.push({
      what: 'the kernel interprets BPF programs (net.core.bpf_jit_enable is 0)',
      shows: 'net_af_xdp is several times slower than it could be',
      mend: ['sysctl -w net.core.bpf_jit_enable=1'],
      mild: true,
    });
  }
  return obstacles;
}

/** Programs for sockets need no right of their own where the administrator allows that to all. */
function steerObstacles(source: Source, who: Credentials): Obstacle[] {
  const [obstacle] = lacking(who, 'net_af_packet with steer=1', ['CAP_NET_RAW', 'CAP_BPF']);
  const forbidden = source.text('/proc/sys/kernel/unprivileged_bpf_disabled')?.trim() ?? '0';
  if (obstacle === undefined || (hasCapability(who, 'CAP_NET_RAW') && forbidden === '0')) return [];
  return [{ ...obstacle, what: `${obstacle.what} (kernel.unprivileged_bpf_disabled is ${forbidden})` }];
}

function memlockObstacles(source: Source, who: Credentials): Obstacle[] {
  const limit = softLimit(source, 'self', 'Max locked memory') ?? Infinity;
  if (hasCapability(who, 'CAP_IPC_LOCK') || limit >= XDP_LOCKED_BYTES) return [];
  return [
    {
      what: `this user may lock ${sizeInWords(limit)} of memory; net_af_xdp takes ${sizeInWords(XDP_LOCKED_BYTES)} with one queue and one lcore`,
      shows: 'net_af_xdp ends the switch: ENOBUFS, its frames may not be kept in memory',
      mend: ['ulimit -l unlimited', 'in the systemd unit of the switch: LimitMEMLOCK=infinity'],
    },
  ];
}

function checkKvm(source: Source, who: Credentials): Finding[] {
  const shows = 'guests are emulated: they are ten times slower, their network too';
  const mend = [
    'turn virtualization on in the firmware (in a virtual machine: nested), then modprobe kvm-intel or kvm-amd',
  ];
  const [obstacle] = deviceObstacles(source, who, '/dev/kvm', { shows, mend });
  if (obstacle === undefined) return [fine('device.kvm', '/dev/kvm can be used')];
  const { what, ...remedy } = obstacle;
  return [warning('device.kvm', what, { ...remedy, shows })];
}

function checkAddressSpace(source: Source): Finding[] {
  const limit = softLimit(source, 'self', 'Max address space') ?? Infinity;
  if (limit >= MIN_ADDRESS_SPACE) return [fine('limits.address-space', 'address space is not limited')];
  return [
    failure('limits.address-space', `address space is limited to ${sizeInWords(limit)}`, {
      shows: 'the switch does not start, or a guest cannot connect: "WebAssembly.Memory(): could not allocate memory"',
      mend: ['ulimit -v unlimited', 'in the systemd unit of the switch: LimitAS=infinity'],
    }),
  ];
}
