/**
 * What a QEMU command line says of memory, sockets and network devices. Only what the doctor asks about is understood; the rest is passed
 * over. Files of -readconfig are not followed.
 */
import { ConfigError } from '../errors.ts';
import { impliedKey, type OptionValue, parseValue } from '../launch/option-value.ts';
import { type LineOption, mergedValue, optionValue, parseLine } from '../launch/qemu-line.ts';
import { MIB, parseSize } from '../launch/size.ts';

/** QEMU's default, bytes. */
const DEFAULT_MEMORY = 128 * MIB;

/** A `-object memory-backend-…`. */
export interface MemoryBackend {
  readonly id: string;
  /** `memory-backend-memfd`, `-file`, `-ram`, … */
  readonly kind: string;
  /** bytes */
  readonly size: number;
  readonly share: boolean;
  readonly prealloc: boolean;
  /** its pages are huge ones of a memfd */
  readonly hugetlb: boolean;
  /** folder or file of memory-backend-file */
  readonly path?: string;
}

/** A `-chardev socket`. */
export interface SocketChardev {
  /** absent: the descriptor was passed, as libvirt does, or it is no Unix socket */
  readonly path?: string;
  /** QEMU listens */
  readonly server: boolean;
  readonly reconnects: boolean;
}

/** A `-netdev vhost-user` and the card in front of it. */
export interface VhostUserNet {
  readonly id: string;
  readonly chardev: string;
  readonly queues: number;
  /** absent: no -device names it */
  readonly card?: {
    readonly driver: string;
    readonly mq: boolean;
    readonly packed: boolean;
    readonly vectors?: number;
  };
}

/** A command line, as far as it matters here. */
export interface QemuLine {
  readonly name?: string;
  /** bytes of -m */
  readonly memory: number;
  /** all backends, by id */
  readonly backends: ReadonlyMap<string, MemoryBackend>;
  /** ids of those that the guest's memory is made of; empty: it is made without an object */
  readonly usedBackends: readonly string[];
  /** -mem-path */
  readonly memPath?: string;
  /** -mem-prealloc */
  readonly prealloc: boolean;
  readonly sockets: ReadonlyMap<string, SocketChardev>;
  readonly nets: readonly VhostUserNet[];
  /** Unix sockets on which QEMU listens for QMP */
  readonly monitors: readonly string[];
  /** `kvm`, `tcg`, … */
  readonly accelerator: string;
  readonly readsConfig: boolean;
  /** libvirt has made it */
  readonly isLibvirt: boolean;
}

const isOn = (text: string | undefined) => text !== undefined && /^(on|yes|true|y)$/.test(text);

/** A value by keys; undefined where JSON is none, with which QEMU would not have started: then this is another program. */
function readValue(text: string, implied: string): OptionValue | undefined {
  try {
    return parseValue(text, implied);
  } catch (error) {
    if (error instanceof ConfigError) return undefined;
    throw error;
  }
}

const isReadable = ({ name, value = '' }: LineOption) => readValue(value, impliedKey(name)) !== undefined;

/** Understands the words behind the program's name. */
export function readQemuLine(words: readonly string[]): QemuLine {
  const line = parseLine(words).filter(isReadable);
  const named = (name: string) => line.filter((one) => one.name === name);
  const texts = (name: string) => named(name).flatMap(({ value }) => value ?? []);
  const values = (name: string) => named(name).map(optionValue);
  const devices = values('device');
  const sockets = new Map(values('chardev').flatMap(socketOf));
  const inNuma = values('numa').map((value) => value.get('memdev'));
  const plugged = devices.map((device) => device.get('memdev'));
  const main = inNuma.some((id) => id !== undefined) ? inNuma : [mergedValue(line, 'machine', 'memory-backend')];
  const name = readValue(texts('name').at(-1) ?? '', 'guest')?.get('guest') || undefined;
  const memPath = texts('mem-path').at(-1);
  return {
    ...(name === undefined ? {} : { name }),
    memory: parseSize(mergedValue(line, 'm', 'size') ?? '', MIB) ?? DEFAULT_MEMORY,
    backends: new Map(values('object').flatMap(backendOf)),
    usedBackends: [...main, ...plugged].filter((id) => id !== undefined),
    ...(memPath === undefined ? {} : { memPath }),
    prealloc: named('mem-prealloc').length > 0,
    sockets,
    nets: netsOf(values('netdev'), values('nic'), devices),
    monitors: monitorsOf(texts('qmp'), texts('mon'), sockets),
    accelerator: acceleratorOf(line),
    readsConfig: named('readconfig').length > 0,
    isLibvirt: words.some((word) => word.includes('/libvirt/')),
  };
}

function backendOf(values: OptionValue): [string, MemoryBackend][] {
  const kind = values.get('qom-type') ?? '';
  const id = values.get('id');
  if (!kind.startsWith('memory-backend-') || id === undefined) return [];
  const path = values.get('mem-path');
  // those that are made to be shared are, unless they are told not to
  const shareDefault = kind === 'memory-backend-memfd' || kind === 'memory-backend-shm' ? 'on' : 'off';
  const backend = {
    id,
    kind,
    size: parseSize(values.get('size') ?? '', 1) ?? 0,
    share: isOn(values.get('share') ?? shareDefault),
    prealloc: isOn(values.get('prealloc')),
    hugetlb: isOn(values.get('hugetlb')),
    ...(path === undefined ? {} : { path }),
  };
  return [[id, backend]];
}

function socketOf(values: OptionValue): [string, SocketChardev][] {
  const id = values.get('id');
  if (values.get('backend') !== 'socket' || id === undefined) return [];
  const path = values.get('path');
  const seconds = Number(values.get('reconnect') ?? values.get('reconnect-ms') ?? 0);
  return [
    [id, { ...(path === undefined ? {} : { path }), server: isOn(values.get('server')), reconnects: seconds > 0 }],
  ];
}

function netsOf(
  netdevs: readonly OptionValue[],
  nics: readonly OptionValue[],
  devices: readonly OptionValue[],
): VhostUserNet[] {
  const behind = (id: string) => {
    const card = devices.find((device) => device.get('netdev') === id);
    return card === undefined ? {} : { card: cardOf(card, card.get('driver') ?? '') };
  };
  const netOf = (value: OptionValue) => ({
    id: value.get('id') ?? '',
    chardev: value.get('chardev') ?? '',
    queues: Number(value.get('queues') ?? 1),
  });
  const isOurs = (value: OptionValue) => value.get('type') === 'vhost-user';
  return [
    ...netdevs.filter(isOurs).map((value) => ({ ...netOf(value), ...behind(value.get('id') ?? '') })),
    ...nics
      .filter(isOurs)
      .map((value) => ({ ...netOf(value), card: cardOf(value, value.get('model') ?? 'virtio-net-pci') })),
  ];
}

function cardOf(values: OptionValue, driver: string) {
  const vectors = values.get('vectors');
  return {
    driver,
    mq: isOn(values.get('mq')),
    packed: isOn(values.get('packed')),
    ...(vectors === undefined ? {} : { vectors: Number(vectors) }),
  };
}

function monitorsOf(qmps: readonly string[], mons: readonly string[], sockets: QemuLine['sockets']): string[] {
  const direct = qmps.map((text) =>
    text.startsWith('unix:') ? readValue(text.slice(5), 'path')?.get('path') : undefined,
  );
  const through = mons.map((text) => {
    const values = readValue(text, 'chardev');
    const chardev = sockets.get(values?.get('chardev') ?? '');
    return values?.get('mode') === 'control' && chardev?.server ? chardev.path : undefined;
  });
  return [...direct, ...through].flatMap((path) => path || []);
}

function acceleratorOf(line: readonly LineOption[]): string {
  const named = line.find(({ name }) => name === 'accel');
  if (named !== undefined) return optionValue(named).get('accel') ?? '';
  if (line.some(({ name }) => name === 'enable-kvm')) return 'kvm';
  return mergedValue(line, 'machine', 'accel') ?? 'tcg';
}
