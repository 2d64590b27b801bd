/**
 * What a QEMU command line says of memory, sockets and network devices. Only what the doctor asks about is understood; the rest is passed
 * over. Files of -readconfig are not followed.
 */
import { parseSize } from './size.ts';

/** QEMU's default, bytes. */
const DEFAULT_MEMORY = 128 * 2 ** 20;

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

type Values = ReadonlyMap<string, string>;

interface QemuOption {
  readonly name: string;
  readonly value: string;
}

/** The options in order; a word that begins with a hyphen is one, and takes the next word if that does not. */
function optionsOf(words: readonly string[]): QemuOption[] {
  const options: QemuOption[] = [];
  words.forEach((word, at) => {
    if (!/^--?[a-z]/i.test(word)) return;
    const next = words[at + 1] ?? '';
    options.push({ name: word.replace(/^--?/, ''), value: next.startsWith('-') ? '' : next });
  });
  return options;
}

/**
 * An option's value taken apart: `first,key=value,flag`, in which two commas stand for one, or a JSON object.
 * @param implied the key of a first word without one
 */
function valuesOf(text: string, implied: string): Values {
  if (text.startsWith('{')) return jsonValues(text);
  const values = new Map<string, string>();
  const parts = text.replaceAll(',,', '\0').split(',');
  parts.forEach((part, at) => {
    const [, key, value] = /^([^=]*)=(.*)$/s.exec(part) ?? [];
    if (key !== undefined) values.set(key, value.replaceAll('\0', ','));
    else if (at === 0) values.set(implied, part.replaceAll('\0', ','));
    else values.set(part.replace(/^no(?=share|wait|server)/, ''), part.startsWith('no') ? 'off' : 'on');
  });
  return values;
}

function jsonValues(text: string): Values {
  try {
    const object: unknown = JSON.parse(text);
    if (typeof object !== 'object' || object === null) return new Map();
    return new Map(Object.entries(object).map(([key, value]) => [key, value === true ? 'on' : String(value)]));
  } catch {
    return new Map(); // QEMU would not have taken it: it is the value of an option that is none of ours
  }
}

const isOn = (text: string | undefined) => text !== undefined && /^(on|yes|true|y)$/.test(text);

/** Understands the words behind the program's name. */
export function readQemuLine(words: readonly string[]): QemuLine {
  const options = optionsOf(words);
  const all = (name: string) => options.filter((one) => one.name === name).map(({ value }) => value);
  const objects = all('object').map((text) => valuesOf(text, 'qom-type'));
  const machines = [...all('machine'), ...all('M')].map((text) => valuesOf(text, 'type'));
  const devices = all('device').map((text) => valuesOf(text, 'driver'));
  const sockets = new Map(all('chardev').flatMap(socketOf));
  const lastMachine = (key: string) => machines.findLast((one) => one.has(key))?.get(key);
  const inNuma = all('numa').map((text) => valuesOf(text, 'type').get('memdev'));
  const plugged = devices.map((device) => device.get('memdev'));
  const main = inNuma.some((id) => id !== undefined) ? inNuma : [lastMachine('memory-backend')];
  const memory = valuesOf(all('m').at(-1) ?? '', 'size').get('size');
  const name = valuesOf(all('name').at(-1) ?? '', 'guest').get('guest') || undefined;
  const memPath = all('mem-path').at(-1);
  return {
    ...(name === undefined ? {} : { name }),
    memory: parseSize(memory ?? '', 'M') ?? DEFAULT_MEMORY,
    backends: new Map(objects.flatMap(backendOf)),
    usedBackends: [...main, ...plugged].filter((id) => id !== undefined),
    ...(memPath === undefined ? {} : { memPath }),
    prealloc: all('mem-prealloc').length > 0,
    sockets,
    nets: netsOf(all('netdev'), all('nic'), devices),
    monitors: monitorsOf(all('qmp'), all('mon'), sockets),
    accelerator: acceleratorOf(options, lastMachine('accel')),
    readsConfig: all('readconfig').length > 0,
    isLibvirt: words.some((word) => word.includes('/libvirt/')),
  };
}

function backendOf(values: Values): [string, MemoryBackend][] {
  const kind = values.get('qom-type') ?? '';
  const id = values.get('id');
  if (!kind.startsWith('memory-backend-') || id === undefined) return [];
  const path = values.get('mem-path');
  // those that are made to be shared are, unless they are told not to
  const shareDefault = kind === 'memory-backend-memfd' || kind === 'memory-backend-shm' ? 'on' : 'off';
  const backend = {
    id,
    kind,
    size: parseSize(values.get('size') ?? '') ?? 0,
    share: isOn(values.get('share') ?? shareDefault),
    prealloc: isOn(values.get('prealloc')),
    hugetlb: isOn(values.get('hugetlb')),
    ...(path === undefined ? {} : { path }),
  };
  return [[id, backend]];
}

function socketOf(text: string): [string, SocketChardev][] {
  const values = valuesOf(text, 'backend');
  const id = values.get('id');
  if (values.get('backend') !== 'socket' || id === undefined) return [];
  const path = values.get('path');
  const seconds = Number(values.get('reconnect') ?? values.get('reconnect-ms') ?? 0);
  return [
    [id, { ...(path === undefined ? {} : { path }), server: isOn(values.get('server')), reconnects: seconds > 0 }],
  ];
}

function netsOf(netdevs: readonly string[], nics: readonly string[], devices: readonly Values[]): VhostUserNet[] {
  const behind = (id: string) => {
    const card = devices.find((device) => device.get('netdev') === id);
    return card === undefined ? {} : { card: cardOf(card, card.get('driver') ?? '') };
  };
  const from = (text: string, more: (values: Values, id: string) => Pick<VhostUserNet, 'card'>) => {
    const values = valuesOf(text, 'type');
    if (values.get('type') !== 'vhost-user') return [];
    const id = values.get('id') ?? '';
    return [
      { id, chardev: values.get('chardev') ?? '', queues: Number(values.get('queues') ?? 1), ...more(values, id) },
    ];
  };
  return [
    ...netdevs.flatMap((text) => from(text, (_, id) => behind(id))),
    ...nics.flatMap((text) =>
      from(text, (values) => ({ card: cardOf(values, values.get('model') ?? 'virtio-net-pci') })),
    ),
  ];
}

function cardOf(values: Values, driver: string) {
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
    text.startsWith('unix:') ? valuesOf(text.slice(5), 'path').get('path') : undefined,
  );
  const through = mons.map((text) => {
    const values = valuesOf(text, 'chardev');
    const chardev = sockets.get(values.get('chardev') ?? '');
    return values.get('mode') === 'control' && chardev?.server ? chardev.path : undefined;
  });
  return [...direct, ...through].flatMap((path) => path || []);
}

function acceleratorOf(options: readonly QemuOption[], ofMachine: string | undefined): string {
  const named = options.find(({ name }) => name === 'accel');
  if (named !== undefined) return valuesOf(named.value, 'accel').get('accel') ?? '';
  if (options.some(({ name }) => name === 'enable-kvm')) return 'kvm';
  return ofMachine ?? 'tcg';
}
