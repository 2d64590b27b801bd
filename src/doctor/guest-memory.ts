/**
 * The guest's memory: shared with the switch, there when it is wanted, not sealed against writing, near to the lcores.
 */

import { sizeText } from '../launch/size.ts';
import { SERVED_FILE_SYSTEM } from '../sys/memory.ts';
import { cpuList, listText } from './cpu-list.ts';
import { type Finding, failure, fine, qemuOptions, type Remedy, shellWord, unseen, warning } from './finding.ts';
import type { Guest, Mapping } from './guest.ts';
import { hugepageMounts, mountsOf } from './hugepages.ts';
import type { MemoryBackend } from './qemu-line.ts';
import { sizeInWords } from './size.ts';
import { guarded, ifAllowed, type Source } from './source.ts';

/** Smaller mappings are QEMU's own, and the guest's firmware. */
const MIN_RAM_BYTES = 2 ** 20;
const SEALS = { SEAL: 1, SHRINK: 2, GROW: 4, WRITE: 8, FUTURE_WRITE: 16 } as const;
const NODES = '/sys/devices/system/node';

/** memory.… */
export function checkMemory(source: Source, guest: Guest, lcores: readonly number[]): Finding[] {
  return [
    ...checkShared(guest),
    ...guarded('memory.file', () => checkFile(source, guest)),
    ...guarded('memory.prealloc', () => checkPrealloc(source, guest)),
    ...guarded('memory.seals', () => checkSeals(source, guest)),
    ...guarded('memory.numa', () => checkNuma(source, guest, lcores)),
  ];
}

const WRAP = 'or let qemu-wrap see to it: qemu-wrap --socket SOCKET qemu-system-x86_64 …';
const SHOWS = {
  withFile:
    "the guest's interface is up, but nothing passes; the switch logs that the memory is not shared (PRIVATE_MEMORY)",
  withoutFile: 'QEMU says "Failed initializing vhost-user memory map", and the guest\'s interface stays dead',
};

/** What the user has to write, for a guest of so much memory. */
function sharedOptions({ line }: Guest, shows: string, id = 'mem'): Remedy {
  const size = sizeText(line.memory);
  const libvirt = `virsh edit ${shellWord(line.name ?? 'DOMAIN')}: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>`;
  const object = `memory-backend-memfd,id=${id},size=${size},share=on`;
  const options = qemuOptions('-object', object, '-machine', `memory-backend=${id}`);
  return { shows, mend: line.isLibvirt ? [libvirt] : [options, WRAP] };
}

/** A backend, with what the monitor knows better. */
function backendsInUse({ line, memory }: Guest): MemoryBackend[] {
  return line.usedBackends.flatMap((id) => {
    const backend = line.backends.get(id);
    if (backend === undefined) return [];
    const told = memory?.find((one) => one.id === id);
    const { share = backend.share, prealloc = backend.prealloc } = told ?? {};
    return { ...backend, share, prealloc };
  });
}

function checkShared(guest: Guest): Finding[] {
  const { line } = guest;
  const backends = backendsInUse(guest);
  if (backends.length === 0 && !line.readsConfig) return [noBackend(guest)];
  const anonymous = backends.find(({ kind }) => kind === 'memory-backend-ram');
  if (anonymous !== undefined) {
    const what = `the guest's memory ${anonymous.id} is memory-backend-ram: no file that the switch could map`;
    return [failure('memory.shared', what, sharedOptions(guest, SHOWS.withoutFile, anonymous.id))];
  }
  const unshared = backends.filter(({ share }) => !share);
  if (unshared.length === 0) return [checkMappings(guest, backends)];
  return unshared.map(({ id, kind, size }) => {
    const what = `the guest's memory ${id} (${kind}, ${sizeInWords(size)}) is private: share=on is missing`;
    const remedy = sharedOptions(guest, SHOWS.withFile);
    if (line.isLibvirt) return failure('memory.shared', what, remedy);
    return failure('memory.shared', what, {
      ...remedy,
      mend: [qemuOptions('-object', `${kind},id=${id},…,share=on`)],
    });
  });
}

function noBackend(guest: Guest): Finding {
  const { line } = guest;
  const [made] = line.backends.keys();
  const kind = line.memPath === undefined ? 'of its own' : `in ${line.memPath}, private`;
  const what = `the guest has ${sizeInWords(line.memory)} of memory ${kind}: no shared memory backend`;
  const remedy = sharedOptions(guest, line.memPath === undefined ? SHOWS.withoutFile : SHOWS.withFile);
  if (made === undefined) return failure('memory.shared', what, remedy);
  const mend = [qemuOptions('-machine', `memory-backend=${made}`)];
  return failure('memory.shared', `${what}; the object ${made} is not used`, { ...remedy, mend });
}

/** The command line says that memory is shared: whether it is. */
function checkMappings(guest: Guest, backends: readonly MemoryBackend[]): Finding {
  if (guest.mappings === undefined) {
    const what = 'by its command line the memory is shared; how it is mapped could not be seen';
    return unseen('memory.shared', what, ['run the doctor as root, or as the user of QEMU']);
  }
  const ram = ramOf(guest.mappings, backends);
  const shared = ram.filter((one) => one.shared).reduce((sum, { len }) => sum + len, 0);
  const secret = ram.find((one) => !one.shared);
  if (secret !== undefined) {
    const what = `${sizeInWords(secret.len)} of ${secret.path} are mapped privately`;
    return failure('memory.shared', what, sharedOptions(guest, SHOWS.withFile));
  }
  const remedy = sharedOptions(guest, SHOWS.withoutFile);
  if (shared === 0) return failure('memory.shared', 'QEMU maps no memory file shared', remedy);
  return fine('memory.shared', `${sizeInWords(shared)} of guest memory are shared: ${pathsOf(ram)}`);
}

/** The guest's memory among all mappings: large, writable, and of a memory file or a file of a backend. */
function ramOf(mappings: readonly Mapping[], backends: readonly MemoryBackend[]): Mapping[] {
  const folders = backends.flatMap(({ path }) => path ?? []);
  return mappings.filter(({ path, writable, len }) => {
    const isMemory = /^\/memfd:memory-backend|qemu_back_mem|^\/anon_hugepage/.test(path);
    return writable && len >= MIN_RAM_BYTES && (isMemory || folders.some((folder) => path.startsWith(folder)));
  });
}

const pathsOf = (mappings: readonly Mapping[]) => [...new Set(mappings.map(({ path }) => path))].join(', ');

function checkFile(source: Source, { pid, line, mappings = [] }: Guest): Finding[] {
  const mounts = mountsOf(source, pid);
  const typeOf = (file: string) => {
    const above = mounts.filter(({ path }) => path === '/' || file === path || file.startsWith(`${path}/`));
    return above.reduce((best, one) => (one.path.length >= best.path.length ? one : best), { path: '', type: '' }).type;
  };
  const files = ramOf(mappings, [...line.backends.values()]).map(({ path }) => path);
  const served = [...new Set(files)].filter((path) => SERVED_FILE_SYSTEM.test(typeOf(path)));
  if (served.length === 0) return [fine('memory.file', 'the memory file is on this machine')];
  return served.map((path) =>
    failure('memory.file', `the memory file ${path} is on a file system of type ${typeOf(path)}, which others serve`, {
      shows: 'the switch refuses it ("is not a memory file"): whoever serves it could hold the switch up for ever',
      mend: ['start QEMU with memory-backend-memfd, or with mem-path=/dev/shm'],
    }),
  );
}

function checkPrealloc(source: Source, guest: Guest): Finding[] {
  const { line, pid } = guest;
  const mounts = ifAllowed(() => hugepageMounts(source, pid)) ?? [];
  const isHuge = (path: string | undefined) =>
    path !== undefined && mounts.some((mount) => path.startsWith(mount.path));
  const huge = backendsInUse(guest).filter(({ hugetlb, path }) => hugetlb || isHuge(path));
  const lacking = huge.filter(({ prealloc }) => !prealloc && !line.prealloc);
  const shows =
    'when hugepages run out the guest is killed by SIGBUS in the middle of its work, not refused at its start';
  if (lacking.length > 0)
    return lacking.map(({ id, kind }) =>
      warning('memory.prealloc', `the memory ${id} is of hugepages that are not taken at the start`, {
        shows,
        mend: [qemuOptions('-object', `${kind},id=${id},…,prealloc=on`), qemuOptions('-mem-prealloc')],
      }),
    );
  if (huge.length === 0 && isHuge(line.memPath) && !line.prealloc)
    return [warning('memory.prealloc', '-mem-prealloc is missing', { shows, mend: [qemuOptions('-mem-prealloc')] })];
  const what =
    huge.length === 0 ? 'ordinary pages, which are taken when they are wanted' : 'hugepages taken at the start';
  return [fine('memory.prealloc', `the guest's memory: ${what}`)];
}

function checkSeals(source: Source, { pid }: Guest): Finding[] {
  const folder = `/proc/${pid}/fd`;
  const files = source.list(folder).flatMap((fd) => {
    const path = source.link(`${folder}/${fd}`) ?? '';
    const seals = path.startsWith('/memfd:') ? source.seals(`${folder}/${fd}`) : undefined;
    return seals === undefined ? [] : { path, seals };
  });
  const locked = files.filter(({ seals }) => (seals & (SEALS.WRITE | SEALS.FUTURE_WRITE)) !== 0);
  if (locked.length > 0)
    return locked.map(({ path, seals }) =>
      failure('memory.seals', `the memory file ${path} is sealed against writing (${sealText(seals)})`, {
        shows: 'the switch cannot map it: BAD_MEMORY, EPERM, and the guest stays without network',
        mend: ['start QEMU with a memory backend of its own, not with a file that another program has sealed'],
      }),
    );
  const texts = files.map(({ path, seals }) => `${path}: ${sealText(seals)}`);
  return [fine('memory.seals', texts.length === 0 ? 'no memory file with seals' : `seals of ${texts.join('; ')}`)];
}

function sealText(seals: number): string {
  const names = Object.entries(SEALS).flatMap(([name, bit]) => ((seals & bit) === 0 ? [] : [name]));
  return names.length === 0 ? 'none' : names.join(', ');
}

function checkNuma(source: Source, { pid, mappings = [], line }: Guest, lcores: readonly number[]): Finding[] {
  const nodes = source.list(NODES).filter((name) => /^node\d+$/.test(name));
  if (nodes.length < 2) return [fine('memory.numa', 'one NUMA node')];
  const bytes = bytesByNode(source.text(`/proc/${pid}/numa_maps`) ?? '', ramOf(mappings, [...line.backends.values()]));
  const facts = [...bytes].map(([node, count]) => `node ${node}: ${sizeInWords(count)}`).join(', ') || 'none yet';
  const near = nodes
    .map((name) => Number(name.slice('node'.length)))
    .filter((node) => {
      const cpus = cpuList(source.text(`${NODES}/node${node}/cpulist`) ?? '');
      return lcores.some((cpu) => cpus.includes(cpu));
    });
  const what = `guest memory by NUMA node: ${facts}`;
  const far = [...bytes].filter(([node]) => !near.includes(node));
  if (lcores.length === 0 || far.length === 0) return [fine('memory.numa', what)];
  const [[node]] = far;
  const cpus = source.text(`${NODES}/node${node}/cpulist`)?.trim();
  return [
    warning('memory.numa', `${what}; the lcores are on node ${listText(near)}`, {
      shows: 'every packet crosses between processors: rates a third lower or worse',
      mend: [
        `start QEMU on the node of the lcores: numactl --cpunodebind=${near[0]} --membind=${near[0]} qemu-system-x86_64 …`,
        `or run the switch on the guest's node: -l with CPUs out of ${cpus}`,
      ],
    }),
  ];
}

/** Bytes of the guest's memory on each node. Lines are as `7f00 bind:1 file=/memfd:… N0=5 N1=2 kernelpagesize_kB=4`. */
function bytesByNode(text: string, ram: readonly Mapping[]): Map<number, number> {
  const starts = new Set(ram.map(({ start }) => start));
  const bytes = new Map<number, number>();
  for (const line of text.split('\n')) {
    if (!starts.has(line.slice(0, line.indexOf(' ')))) continue;
    const pageBytes = Number(/ kernelpagesize_kB=(\d+)/.exec(line)?.[1] ?? 4) * 1024;
    for (const [, node, pages] of line.matchAll(/ N(\d+)=(\d+)/g))
      bytes.set(Number(node), (bytes.get(Number(node)) ?? 0) + Number(pages) * pageBytes);
  }
  return bytes;
}
