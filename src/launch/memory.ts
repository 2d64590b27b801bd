/**
 * Guest memory that the switch can map: QEMU must have it from a file descriptor, and share it.
 * @see QEMU docs/interop/vhost-user.rst "Memory sharing"
 */
import { ConfigError } from '../errors.ts';
import { added, type Draft } from './draft.ts';
import { chooseHugepages, type HugepagesWish, type HugetlbMount } from './hugepages.ts';
import { makeValue } from './option-value.ts';
import { mergedValue } from './qemu-line.ts';
import { MIB, parseSize, sizeText } from './size.ts';

/** What is asked about files that a command line names. */
export type FileKind = (path: string) => 'folder' | 'file' | 'nothing';

export interface MemoryWish {
  readonly hugepages: HugepagesWish;
  /** where hugetlbfs is mounted; asked only when it matters */
  readonly mounts: () => readonly HugetlbMount[];
  readonly fileKind: FileKind;
}

const RAM_ID = 'vhost-ram';
const SHARED = 'the switch maps guest memory, so QEMU must share it';
/** QEMU rounds up what -m says. */
const RAM_ALIGN = 8192;
/** What memory-backend-file does not know. */
const MEMFD_ONLY = ['hugetlb', 'hugetlbsize', 'seal'];
const DEFAULT_MIB = 128;
const PSERIES_MIB = 512;

/** Makes all of the guest's memory shared. Throws ConfigError for memory that is private on purpose, or cannot be shared. */
export function shareMemory(draft: Draft, wish: MemoryWish): void {
  const { line } = draft;
  const numbered = line.map(({ name }, at) => ({ name, at }));
  const objects = numbered.filter(
    ({ name, at }) => name === 'object' && draft.value(at).get('qom-type')?.startsWith('memory-backend-'),
  );
  const hasNodes = line.some(({ name }, at) => name === 'numa' && draft.value(at).get('memdev') !== undefined);
  const machineMemory = mergedValue(line, 'machine', 'memory-backend');
  const missing = !hasNodes && machineMemory === undefined;
  const pathAt = line.findLastIndex(({ name }) => name === 'mem-path');

  const size = missing ? ramSize(draft) : 0;
  const plain = objects.filter(({ at }) => isPlain(draft, at));
  const sizes = plain.map(({ at }) => parseSize(draft.value(at).get('size') ?? '', 1) ?? 0);
  const toPlace = [...sizes, ...(missing && pathAt < 0 ? [size] : [])];
  const wanted = wish.hugepages === 'off' ? undefined : chooseHugepages(wish.hugepages, wish.mounts(), toPlace);
  if (wish.hugepages === 'auto' && wanted === undefined && toPlace.length > 0)
    draft.remarks.push(
      'no hugepages: none are mounted with room for the guest; ordinary pages do as well, only slower',
    );

  for (const { at } of objects) shareObject(draft, at, wish.fileKind, wanted);
  if (machineMemory !== undefined && !objects.some(({ at }) => draft.value(at).get('id') === machineMemory))
    draft.remarks.push(
      `memory-backend=${machineMemory} is made elsewhere (-readconfig?): see to it that it has share=on`,
    );
  if (missing) addMemory(draft, size, pathAt < 0 ? undefined : (line[pathAt].value ?? ''), wish, wanted);
}

/** Anonymous memory, whose kind of pages matters to nobody. */
function isPlain(draft: Draft, at: number): boolean {
  const value = draft.value(at);
  const type = value.get('qom-type');
  return type === 'memory-backend-ram' || (type === 'memory-backend-memfd' && value.get('hugetlb') !== 'on');
}

function shareObject(draft: Draft, at: number, fileKind: FileKind, pages: HugetlbMount | undefined): void {
  const value = draft.value(at);
  const type = value.get('qom-type');
  if (isPlain(draft, at) && pages !== undefined) {
    const keys = { 'qom-type': 'memory-backend-file', 'mem-path': pages.path, prealloc: true, share: true };
    const why = `${SHARED}; from hugepages, as --hugepages says`;
    draft.set(at, keys, why);
    for (const key of MEMFD_ONLY) draft.delete(at, key, why);
  } else if (type === 'memory-backend-ram') {
    // share=on alone would not do: this kind has no file descriptor before QEMU 10
    draft.set(at, { 'qom-type': 'memory-backend-memfd', share: true }, `${SHARED}, which memory-backend-ram cannot do`);
  } else if (type === 'memory-backend-memfd') {
    if (value.get('share') === 'off') draft.set(at, { share: true }, SHARED);
  } else if (type === 'memory-backend-file') {
    if (value.get('share') === 'on') return;
    refusePrivateFile(`-object ${type},id=${value.get('id')}`, value.get('mem-path') ?? '', fileKind);
    draft.set(at, { share: true }, SHARED);
  } else if (type !== 'memory-backend-shm' && type !== 'memory-backend-epc') {
    const problem = 'the switch cannot map this kind of memory; use memory-backend-memfd with share=on';
    throw new ConfigError('CONFIG_CONFLICT', `-object ${type}`, problem);
  }
}

/** What a guest writes to private memory stays out of the file behind it; shared, it would change the file. */
function refusePrivateFile(option: string, path: string, fileKind: FileKind): void {
  if (fileKind(path) !== 'file') return;
  const problem =
    `is private, and ${path} is a file: shared, as the switch needs it, the guest would write into the file. ` +
    'Say share=on if that is meant, else use memory-backend-memfd, or a folder as the path';
  throw new ConfigError('CONFIG_CONFLICT', option, problem);
}

function addMemory(
  draft: Draft,
  bytes: number,
  path: string | undefined,
  { fileKind }: MemoryWish,
  pages: HugetlbMount | undefined,
): void {
  const id = draft.freshId(RAM_ID);
  const size = sizeText(bytes);
  if (path !== undefined) {
    refusePrivateFile('-mem-path', path, fileKind);
    draft.line.forEach(({ name }, at) => {
      if (name === 'mem-path') draft.leaveOut(at, 'QEMU does not share the memory that it makes for -mem-path');
    });
    const value = makeValue('memory-backend-file', { id, size, 'mem-path': path, share: true });
    draft.append(added('object', value, `${SHARED}; in ${path}, as -mem-path said`));
  } else if (pages !== undefined) {
    const value = makeValue('memory-backend-file', { id, size, 'mem-path': pages.path, prealloc: true, share: true });
    draft.append(added('object', value, `${SHARED}; from hugepages, as --hugepages says`));
  } else {
    draft.append(added('object', makeValue('memory-backend-memfd', { id, size, share: true }), SHARED));
  }
  draft.append(added('machine', `memory-backend=${id}`, 'this is the memory of the machine'));
}

/** What -m says, bytes. */
function ramSize(draft: Draft): number {
  const text = mergedValue(draft.line, 'm', 'size') ?? '0';
  const bytes = parseSize(text, MIB);
  if (bytes === undefined) {
    const problem = 'is no size of memory; write it like 4096 (MiB) or 4G';
    throw new ConfigError('CONFIG_INVALID_VALUE', '-m', problem, { value: text });
  }
  const isPseries = mergedValue(draft.line, 'machine', 'type')?.startsWith('pseries');
  if (bytes === 0) return (isPseries ? PSERIES_MIB : DEFAULT_MIB) * MIB;
  return Math.ceil(bytes / RAM_ALIGN) * RAM_ALIGN;
}
