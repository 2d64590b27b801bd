/**
 * The command line of qemu-wrap: its own options, and where QEMU's begin. Settings may come from the environment as well, since libvirt's
 * <emulator> can be given no options.
 */
import { resolve } from 'node:path';
import { ConfigError } from '../errors.ts';
import type { HugepagesWish } from '../launch/hugepages.ts';
import { choice, integer, TEXT, type ValueType } from '../port/text-values.ts';
import { allValues, FLAG, fold, formatHelp, type Given, givenValue, type Option, parseOptions } from './options.ts';

/** Everything that is said to qemu-wrap. */
export interface QemuWrapSettings {
  readonly help: boolean;
  readonly version: boolean;
  readonly showVersion: boolean;
  /** A libvirt domain's file to rewrite, in place of starting QEMU; `-` is standard input. */
  readonly libvirt: string | undefined;
  /** MAC addresses of the domain's interfaces to rewrite; undefined for all that are virtio. */
  readonly macs: readonly string[] | undefined;
  /** Show what would be run, and do not run it. */
  readonly print: boolean;
  /** Absolute paths of the switch's sockets, for the first card, the second, … */
  readonly sockets: readonly string[];
  /** Paths of the switch's character devices; none: sockets are used. */
  readonly devices: readonly string[];
  readonly hugepages: HugepagesWish;
  readonly offloads: boolean;
  /** seconds; 0 = QEMU does not connect again */
  readonly reconnect: number;
  readonly queues: number | undefined;
  /** QEMU's program, undefined for the usual one. */
  readonly qemu: string | undefined;
  /** QEMU's arguments. */
  readonly args: readonly string[];
}

/** What QEMU's virtio-net takes. */
const MAX_QUEUES = 256;
const MAX_RECONNECT_S = 3600;

const HUGEPAGES: ValueType<HugepagesWish> = {
  range: 'auto|on|off|PATH of a hugetlbfs',
  parse: (text) => {
    if (text.startsWith('/')) return { path: text.replace(/(?<=.)\/+$/, '') };
    return choice('auto', 'on', 'off').parse(text);
  },
};

const MAC: ValueType<string> = {
  range: 'such as 52:54:00:00:00:01',
  parse: (text) => (/^[\da-f]{2}(?::[\da-f]{2}){5}$/i.test(text) ? text.toLowerCase() : undefined),
};

const OPTIONS = {
  socket: {
    long: 'socket',
    value: 'PATH',
    type: TEXT,
    repeats: true,
    help: 'socket of the switch; the second one is for the second virtio card, the last one for all others',
  },
  cuse: {
    long: 'cuse',
    value: 'PATH',
    type: TEXT,
    repeats: true,
    help: 'instead: character device of the switch, such as /dev/vhost-net-1; the card keeps its tap',
  },
  hugepages: {
    long: 'hugepages',
    value: 'WHICH',
    type: HUGEPAGES,
    default: 'off',
    help: 'memory of the guest from hugetlbfs; auto: when it fits',
  },
  offloads: {
    long: 'offloads',
    value: 'on|off',
    type: choice('on', 'off'),
    default: 'on',
    help: 'off: no checksum and segmentation offloads for the guest',
  },
  reconnect: {
    long: 'reconnect',
    value: 'SECONDS',
    type: integer(0, MAX_RECONNECT_S),
    default: '1',
    help: 'how often QEMU tries to reach a switch that is gone; 0 = never',
  },
  queues: {
    long: 'queues',
    value: 'N',
    type: integer(1, MAX_QUEUES),
    help: 'queue pairs of each virtio card; without, as many as its tap has',
  },
  qemu: { long: 'qemu', value: 'PROGRAM', type: TEXT, help: "QEMU's program; all words that follow are its options" },
  libvirt: {
    long: 'libvirt',
    value: 'FILE',
    type: TEXT,
    help: 'write a libvirt domain for the switch; - reads standard input',
  },
  mac: {
    long: 'mac',
    value: 'ADDRESS',
    type: MAC,
    repeats: true,
    help: 'with --libvirt: only the interface of this MAC address',
  },
  print: { long: 'print', type: FLAG, help: 'show the command line and why it is so, and do not run it' },
  help: { long: 'help', type: FLAG, help: 'show this help and exit' },
  version: { long: 'version', type: FLAG, help: 'show the version and exit' },
} satisfies Record<string, Option>;

/** What makes no sense with `--libvirt`, and what to do instead. */
const NOT_WITH_LIBVIRT: readonly (readonly [Option, string])[] = [
  [OPTIONS.cuse, 'a domain of libvirt reaches the character device with qemu-wrap as its <emulator>'],
  [OPTIONS.hugepages, 'a domain has its hugepages by <memoryBacking><hugepages/>, which stays'],
  [OPTIONS.qemu, 'a domain has its own <emulator>'],
  [OPTIONS.print, 'the domain is printed in any case'],
];

const ROWS: readonly Option[] = Object.values(OPTIONS);
/** Options that may come from the environment instead. */
const FROM_ENVIRONMENT = ['socket', 'cuse', 'hugepages', 'offloads', 'reconnect', 'queues', 'qemu'] as const;
const variableOf = (name: string) => `VHOST_SWITCH_${name.toUpperCase()}`;

/** Number of the words that are our own: options of two dashes and their values, up to the first other word. */
function ownWords(argv: readonly string[]): number {
  let next = 0;
  while (next < argv.length && argv[next].startsWith('--') && argv[next] !== '--') {
    const typed = argv[next++].slice(2);
    const rows = ROWS.filter((row) => row.long === typed || row.long?.startsWith(typed));
    if (rows.length > 0 && rows.every((row) => row.value !== undefined)) next++;
  }
  return Math.min(next, argv.length);
}

/**
 * Reads the arguments behind qemu-wrap's name, and the environment, which counts less. Throws ConfigError.
 */
export function parseQemuWrap(argv: readonly string[], env: NodeJS.ProcessEnv = process.env): QemuWrapSettings {
  const own = ownWords(argv);
  const { given } = parseOptions(ROWS, argv.slice(0, own));
  const said = [...fromEnvironment(env, given), ...given];
  const rest = argv.slice(argv[own] === '--' ? own + 1 : own);
  const named = givenValue(said, OPTIONS.qemu);
  const programFirst =
    givenValue(given, OPTIONS.qemu) === undefined && rest[0] !== undefined && !rest[0].startsWith('-');
  const sockets = allValues(said, OPTIONS.socket);
  const devices = allValues(said, OPTIONS.cuse);
  if (sockets.length > 0 && devices.length > 0)
    throw new ConfigError('CONFIG_CONFLICT', '--cuse', 'cannot be given together with --socket: a card has one way');
  const queues = givenValue(said, OPTIONS.queues);
  if (queues !== undefined && devices.length > 0)
    throw new ConfigError('CONFIG_CONFLICT', '--queues', 'cannot be given together with --cuse: the tap has its own');
  const libvirt = givenValue(given, OPTIONS.libvirt);
  const macs = allValues(given, OPTIONS.mac);
  if (libvirt !== undefined) checkLibvirt(given, sockets, rest);
  else if (macs.length > 0)
    throw new ConfigError('CONFIG_CONFLICT', '--mac', 'chooses interfaces for --libvirt, which is not given');
  const value = <T>(row: Option<T> & { readonly default: string }) =>
    givenValue(said, row) ?? row.type.parse(row.default)!;
  return {
    help: givenValue(given, OPTIONS.help) ?? false,
    version: givenValue(given, OPTIONS.version) ?? false,
    showVersion: false,
    libvirt,
    macs: macs.length > 0 ? macs : undefined,
    print: givenValue(given, OPTIONS.print) ?? false,
    sockets: sockets.map((path) => resolve(path)),
    devices,
    hugepages: value(OPTIONS.hugepages),
    offloads: value(OPTIONS.offloads) === 'on',
    reconnect: value(OPTIONS.reconnect),
    queues,
    qemu: programFirst ? rest[0] : named,
    args: programFirst ? rest.slice(1) : rest,
  };
}

/** Throws ConfigError for what does not go with --libvirt. */
function checkLibvirt(given: readonly Given[], sockets: readonly string[], words: readonly string[]): void {
  for (const [row, why] of NOT_WITH_LIBVIRT) {
    if (given.some((one) => one.row === row))
      throw new ConfigError('CONFIG_CONFLICT', `--${row.long}`, `cannot be given together with --libvirt: ${why}`);
  }
  if (words.length > 0)
    throw new ConfigError('CONFIG_UNEXPECTED_WORD', words[0], 'has no place with --libvirt, which starts no QEMU');
  if (sockets.length === 0)
    throw new ConfigError(
      'CONFIG_CONFLICT',
      '--socket',
      'is missing: the socket of the switch, as its --socket-file says',
    );
}

/** What the environment says of options that are not given. Sockets and devices are separated by colons. */
function fromEnvironment(env: NodeJS.ProcessEnv, given: readonly Given[]): readonly Given[] {
  const way = [OPTIONS.socket, OPTIONS.cuse] as readonly Option[];
  const wayGiven = given.some(({ row }) => way.includes(row));
  return FROM_ENVIRONMENT.flatMap((name) => {
    const row: Option = OPTIONS[name];
    const text = env[variableOf(name)] ?? '';
    if (text === '' || given.some((one) => one.row === row) || (wayGiven && way.includes(row))) return [];
    const texts = row.repeats ? text.split(':').filter((part) => part !== '') : [text];
    try {
      return parseOptions(
        [row],
        texts.map((one) => `--${name}=${one}`),
      ).given;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      const problem = error.message.replace(/^[^:]*: /, '');
      throw new ConfigError(
        error.code,
        variableOf(name),
        problem,
        error.range === undefined ? {} : { range: error.range },
      );
    }
  });
}

/** The help of qemu-wrap: at most 100 columns, with a final newline. */
export function qemuWrapHelp(): string {
  const variables = FROM_ENVIRONMENT.map(variableOf).join(', ');
  return `usage: qemu-wrap [options] [--] QEMU-PROGRAM [QEMU's options]
       qemu-wrap [options] [--] [QEMU's options]
       qemu-wrap [options] --libvirt FILE

Starts QEMU with the virtio network cards of its command line on vhost-switch: guest memory is
shared, and each card gets a vhost-user socket in place of its network. All else stays as it is.
Replaces itself by QEMU: process id, signals and exit status are QEMU's.

${formatHelp(ROWS)}

Options of QEMU begin at the first word that does not begin with two dashes, or after "--".
As <emulator> of libvirt, and anywhere else, settings may come from the environment as well:
${fold(`  ${variables}`, 2)}
Several sockets or devices are separated by colons there.
`;
}
