/**
 * The guest's network as QEMU was told to make it: interfaces, reconnecting, queues; and what is known of QEMU's versions.
 */
import { type Finding, fine, qemuOptions, shellWord, unseen, warning } from './finding.ts';
import type { Guest } from './guest.ts';
import { isAtLeast, kernelRelease } from './kernel.ts';
import type { SocketChardev, VhostUserNet } from './qemu-line.ts';
import type { Source } from './source.ts';

/** An interface with the socket behind it. */
interface Interface extends VhostUserNet {
  readonly socket: SocketChardev;
}

/** guest.version, guest.accelerator, guest.interface, guest.reconnect, guest.queues. */
export function checkNetwork(source: Source, guest: Guest): Finding[] {
  const { line } = guest;
  const interfaces = line.nets.flatMap((net) => {
    const socket = line.sockets.get(net.chardev);
    return socket === undefined ? [] : { ...net, socket };
  });
  return [
    ...checkVersion(source, guest, interfaces),
    checkAccelerator(guest),
    ...checkInterfaces(guest),
    ...checkReconnect(guest, interfaces),
    ...line.nets.flatMap(checkQueues),
  ];
}

/** Release numbers, for comparing. */
function versionAtLeast(version: string, than: string): boolean {
  const [a, b] = [version, than].map((text) => text.split('.').map(Number));
  for (let i = 0; i < 3; i++) if ((a[i] ?? 0) !== (b[i] ?? 0)) return (a[i] ?? 0) > (b[i] ?? 0);
  return true;
}

/** Trouble that versions of QEMU are known for. */
function checkVersion(source: Source, { version, line }: Guest, interfaces: readonly Interface[]): Finding[] {
  if (version === undefined) {
    const what = 'QEMU does not tell its version: it has no QMP monitor, or the monitor is taken';
    return [unseen('guest.version', what, [qemuOptions('-qmp', 'unix:/run/qmp.sock,server=on,wait=off')])];
  }
  const is = `QEMU ${version}`;
  const older = (than: string) => !versionAtLeast(version, than);
  const findings: Finding[] = [];
  const trouble = (what: string, shows: string, ...mend: string[]) =>
    findings.push(warning('guest.version', what, { shows, mend }));
  if (older('2.12')) {
    const shows = 'memory-backend-memfd is not there: memory takes hugetlbfs or /dev/shm';
    trouble(`${is} has no memfd`, shows, 'install QEMU 2.12 or later');
  }
  // an INTx interrupt is none of MSI-X: vectors=0 is what avoids it
  const msix = interfaces.filter(({ card }) => card?.driver.startsWith('virtio-net-pci') && card.vectors !== 0);
  const isDebianBookworm = versionAtLeast(version, '7.2') && older('7.3');
  if (isDebianBookworm && line.accelerator === 'tcg' && msix.length > 0)
    trouble(
      `${is} under emulation (tcg) crashes when a guest uses MSI-X on a vhost-user card`,
      'QEMU ends with a segmentation fault while the guest boots',
      qemuOptions('-device', `virtio-net-pci,netdev=${msix[0].id},vectors=0`),
      'or use KVM, or a later QEMU',
    );
  const packed = interfaces.filter(({ card, socket }) => card?.packed && !socket.server);
  if (older('7.3') && packed.length > 0)
    trouble(
      `${is} forgets where a packed ring stood when the switch is restarted (packed=on)`,
      'after a restart of the switch the guest stays without network until its driver is bound again',
      'leave packed=on out',
    );
  if (versionAtLeast(version, '11.0.0') && older('11.0.1') && interfaces.some(({ socket }) => socket.reconnects))
    trouble(
      `${is} aborts when the switch is not there yet and the socket has reconnect-ms`,
      'QEMU started before the switch ends with SIGABRT',
      'start the switch first, or use another QEMU',
    );
  if (isDebianBookworm && isAtLeast(kernelRelease(source), 6, 18))
    findings.push(
      fine('guest.version', `${is}: cannot be the target of postcopy migration on this kernel (Linux 6.18)`),
    );
  return findings.some(({ severity }) => severity === 'warning') ? findings : [...findings, fine('guest.version', is)];
}

function checkAccelerator({ line }: Guest): Finding {
  if (line.accelerator !== 'tcg') return fine('guest.accelerator', `the guest runs with ${line.accelerator}`);
  return warning('guest.accelerator', 'the guest is emulated (tcg)', {
    shows: 'it is ten times slower than with KVM, and its network too',
    mend: [qemuOptions('-accel', 'kvm')],
  });
}

function checkInterfaces({ line }: Guest): Finding[] {
  const shows = 'the guest has no interface on the switch';
  if (line.nets.length === 0) {
    const chardev = ['-chardev', 'socket,id=c0,path=SOCKET,reconnect=1', '-netdev', 'vhost-user,id=n0,chardev=c0'];
    const mend = [qemuOptions(...chardev, '-device', 'virtio-net-pci,netdev=n0')];
    return [warning('guest.interface', 'QEMU was started without a vhost-user interface', { shows, mend })];
  }
  return line.nets.map(({ id, chardev, card }) => {
    const name = `the interface ${id}`;
    if (!line.sockets.has(chardev)) {
      const mend = [qemuOptions('-chardev', `socket,id=${chardev},path=SOCKET,reconnect=1`)];
      return warning('guest.interface', `${name} names the chardev ${chardev}, which is no socket`, { shows, mend });
    }
    if (card === undefined) {
      const mend = [qemuOptions('-device', `virtio-net-pci,netdev=${id}`)];
      return warning('guest.interface', `${name} has no card`, { shows, mend });
    }
    return fine(
      'guest.interface',
      `${name} is ${card.driver} on ${line.sockets.get(chardev)?.path ?? 'a passed socket'}`,
    );
  });
}

function checkReconnect({ version, line }: Guest, interfaces: readonly Interface[]): Finding[] {
  const option = version !== undefined && versionAtLeast(version, '9.2') ? 'reconnect-ms=1000' : 'reconnect=1';
  return interfaces.map(({ id, chardev, socket: { server, path, reconnects } }) => {
    if (server)
      return fine('guest.reconnect', `QEMU listens for the interface ${id}: the switch connects, with --client`);
    if (reconnects) return fine('guest.reconnect', `the interface ${id} connects again`);
    const target = (path ?? 'SOCKET').replaceAll(',', ',,');
    const libvirt = `virsh edit ${shellWord(line.name ?? 'DOMAIN')}: <reconnect enabled='yes' timeout='1'/> inside <source … mode='client'>`;
    const command = qemuOptions('-chardev', `socket,id=${chardev},path=${target},${option}`);
    return warning('guest.reconnect', `the interface ${id} connects once and never again`, {
      shows: 'when the switch is restarted the guest stays without network until QEMU is started again',
      mend: [line.isLibvirt ? libvirt : command],
    });
  });
}

function checkQueues({ id, queues, card }: VhostUserNet): Finding[] {
  if (card === undefined) return [];
  const wanted = 2 * queues + 2;
  if (queues > 1 && !card.mq) {
    const shows = 'the guest uses one of them: ethtool -l says "Combined: 1" at most';
    const mend = [qemuOptions('-device', `${card.driver},netdev=${id},mq=on,vectors=${wanted}`)];
    return [
      warning('guest.queues', `the interface ${id} has ${queues} queue pairs, but its card has not mq=on`, {
        shows,
        mend,
      }),
    ];
  }
  const { vectors } = card;
  if (queues > 1 && vectors !== undefined && vectors < wanted) {
    const what = `the interface ${id} has ${queues} queue pairs and ${vectors} interrupt vectors; it takes ${wanted}`;
    const shows = 'queues share an interrupt, and one CPU of the guest serves them all';
    const mend = [qemuOptions('-device', `${card.driver},netdev=${id},mq=on,vectors=${wanted}`)];
    return [warning('guest.queues', what, { shows, mend })];
  }
  return [fine('guest.queues', `the interface ${id} has ${queues === 1 ? 'one queue pair' : `${queues} queue pairs`}`)];
}
