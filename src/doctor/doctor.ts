/**
 * The whole examination: the machine, and if they are named a guest and a socket. Changes nothing.
 */
import { resolve } from 'node:path';
import { checkCpus } from './cpus.ts';
import { type Finding, failure, shellWord } from './finding.ts';
import { examineProcess, findDomain, type Guest } from './guest.ts';
import { checkMemory } from './guest-memory.ts';
import { checkNetwork } from './guest-network.ts';
import { checkHugepages } from './hugepages.ts';
import { checkKernel } from './kernel.ts';
import { listenersOn, listeningSockets } from './listeners.ts';
import { credentialsOf } from './process.ts';
import { checkRights, type PortKind } from './rights.ts';
import { checkSocket, type SocketPlace } from './socket.ts';
import { guarded, ifAllowed, type Source } from './source.ts';

/** What to look at besides the machine. */
export interface Examination {
  /** process of QEMU */
  readonly qemu?: number;
  /** domain of libvirt */
  readonly domain?: string;
  /** sockets, relative to the current folder or absolute */
  readonly sockets: readonly string[];
  /** CPUs of the lcores; empty: those of the switch that listens, if it is found */
  readonly lcores: readonly number[];
  /** kinds of ports that must work */
  readonly ports: readonly PortKind[];
}

/** Looks at everything, and says what it found, in the order of {@link CHECKS}. */
export async function examine(source: Source, wanted: Examination): Promise<Finding[]> {
  const { guest, findings } = await findGuest(source, wanted);
  const places = socketsOf(source, wanted, guest);
  const seen = places.flatMap((place) => lcoresOf(source, place));
  const lcores = wanted.lcores.length > 0 ? wanted.lcores : [...new Set(seen)].sort((a, b) => a - b);
  return [
    ...guarded('kernel.version', () => checkKernel(source)),
    ...guarded('hugepages.pool', () => checkHugepages(source)),
    ...guarded('rights.net_af_packet', () => checkRights(source, wanted.ports)),
    ...checkCpus(source, lcores),
    ...findings,
    ...(guest === undefined ? [] : guarded('guest.interface', () => checkNetwork(source, guest))),
    ...(guest === undefined ? [] : checkMemory(source, guest, lcores)),
    ...places.flatMap((place) => guarded('socket.file', () => checkSocket(source, place))),
  ];
}

async function findGuest(source: Source, { qemu, domain }: Examination) {
  if (qemu === undefined && domain === undefined) return { findings: [] };
  const pid = qemu ?? findDomain(source, domain!);
  if (pid !== undefined) return examineProcess(source, pid);
  const what = `no domain ${domain} runs: neither /run/libvirt/qemu nor any QEMU's -name has it`;
  const remedy = {
    shows: 'nothing of the guest can be looked at',
    mend: ['virsh list --all', `virsh start ${shellWord(domain!)}`],
  };
  return { findings: [failure('guest.process', what, remedy)] };
}

/** The sockets that were named, and those of the guest's interfaces. */
function socketsOf(source: Source, { sockets }: Examination, guest: Guest | undefined): SocketPlace[] {
  const own = (guest?.line.nets ?? []).flatMap(({ chardev }) => {
    const socket = guest?.line.sockets.get(chardev);
    return socket?.path === undefined ? [] : { path: guest!.place(socket.path), qemuListens: socket.server };
  });
  const named = sockets.map((path) => ({ path: resolve(path), qemuListens: false }));
  const all = [...named.filter(({ path }) => !own.some((one) => one.path === path)), ...own];
  if (all.length === 0) return [];
  const listening = listeningSockets(source);
  return all.map((place) => {
    const listeners = ifAllowed(() => listenersOn(source, listening, place.path)) ?? [];
    return { ...place, listeners, ...(guest && { guest }) };
  });
}

/** Lcores are threads of a switch that run on fewer CPUs than its main thread. */
function lcoresOf(source: Source, { listeners }: SocketPlace): number[] {
  return listeners.flatMap(({ pid }) => {
    if (pid === undefined) return [];
    const main = ifAllowed(() => credentialsOf(source, pid))?.cpus.length ?? 0;
    const threads = ifAllowed(() => source.list(`/proc/${pid}/task`)) ?? [];
    return threads.flatMap((tid) => {
      const cpus = ifAllowed(() => credentialsOf(source, `${pid}/task/${tid}`))?.cpus ?? [];
      return cpus.length < main ? cpus : [];
    });
  });
}
