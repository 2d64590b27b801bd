/**
 * A back end as a program of its own, as management software expects it: what all such programs have in common.
 * Exit status: 0 done, 1 failure, 2 wrong usage.
 * @see QEMU docs/interop/vhost-user.rst "Backend program conventions"; docs/interop/vhost-user.json
 */
import { DeviceHost, type DeviceHostOptions } from '../control/device-host.ts';
import { ConfigError } from '../errors.ts';
import { FLAG, formatHelp, givenValue, integer, type Option, parseOptions, TEXT } from './options.ts';
import { untilStopped } from './until-stopped.ts';

/** The options of a program, by the names that it knows their values by. */
export type OptionTable = Readonly<Record<string, Option>>;

/** What a command line says of the options of a table: undefined for those that were not given and have no default. */
export type OptionValues<T extends OptionTable> = { readonly [name in keyof T]: OptionValue<T[name]> };

/** What a command line says of one option. */
export type OptionValue<O extends Option> =
  O extends Option<infer V> ? (O extends Record<'default', string> ? V : V | undefined) : never;

/** What a back end is made of: its devices, how many at a time, and what is to be closed in the end. */
export interface ProgramDevices extends Pick<DeviceHostOptions, 'createDevice' | 'maxDevices' | 'iommu'> {
  /** The last of the devices is gone: releases what they shared. */
  close?(): Promise<void> | void;
}

/** A back end as a program. */
export interface BackEndProgram<T extends OptionTable> {
  /** what it calls itself in messages */
  readonly name: string;
  /** one sentence for the help */
  readonly summary: string;
  /** of vhost-user.json's VhostUserBackendType, such as `block` */
  readonly type: string;
  /** what `--print-capabilities` tells beside the type: which of the options that vhost-user.json knows there are */
  readonly features?: readonly string[];
  /** options beside those that every back end has */
  readonly options: T;
  /** Opens what the options name. Throws ConfigError for options that are no good, and any error for what cannot be had. */
  start(values: OptionValues<T>): Promise<ProgramDevices> | ProgramDevices;
}

const COMMON = {
  socketPath: { long: 'socket-path', value: 'PATH', type: TEXT, help: 'socket to listen on' },
  fd: {
    long: 'fd',
    value: 'FDNUM',
    // 0, 1 and 2 have their regular use
    type: integer(3, 2 ** 20),
    help: 'instead: an inherited socket, connected or listening',
  },
  printCapabilities: {
    long: 'print-capabilities',
    type: FLAG,
    help: 'tell in JSON what this back end can do, and exit',
  },
  help: { short: 'h', long: 'help', type: FLAG, help: 'show this help and exit' },
} satisfies OptionTable;

/**
 * Runs the program until SIGTERM, SIGINT or SIGHUP, or until there is nothing more to serve. Sets the exit status; a failure is told
 * in one sentence, on standard error as everything else.
 * @param args the command line behind the program's name
 */
export async function runBackEnd<T extends OptionTable>(
  program: BackEndProgram<T>,
  args: readonly string[] = process.argv.slice(2),
): Promise<void> {
  const { name, type, features = [] } = program;
  // Nobody reads any more, or the disk is full: no reason to take the guest's device away.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  if (args.some((word) => word === '--print-capabilities')) {
    process.stdout.write(`${JSON.stringify({ type, features }, undefined, 2)}\n`);
    return;
  }
  try {
    await run(program, args);
  } catch (error) {
    const usage = error instanceof ConfigError;
    process.stderr.write(`${name}: ${error instanceof Error ? error.message : error}\n`);
    if (usage) process.stderr.write(`Try '${name} --help'.\n`);
    process.exitCode = usage ? 2 : 1;
  }
}

async function run<T extends OptionTable>(program: BackEndProgram<T>, args: readonly string[]): Promise<void> {
  const { name, options } = program;
  const rows: readonly Option[] = [...Object.values(COMMON), ...Object.values(options)];
  const { given, words } = parseOptions(rows, args);
  if (givenValue(given, COMMON.help) === true) {
    process.stdout.write(`usage: ${name} [options]\n\n${program.summary}\n\n${formatHelp(rows)}\n`);
    return;
  }
  if (words.length > 0) throw new ConfigError('CONFIG_UNEXPECTED_WORD', words[0], 'belongs to no option');
  const socketPath = givenValue(given, COMMON.socketPath);
  const fd = givenValue(given, COMMON.fd);
  if ((socketPath === undefined) === (fd === undefined)) {
    const problem = socketPath === undefined ? 'is missing; give it, or --fd' : 'cannot be given together with --fd';
    throw new ConfigError('CONFIG_CONFLICT', '--socket-path', problem);
  }
  const valueFor = (row: Option) =>
    givenValue(given, row) ?? (row.default === undefined ? undefined : row.type.parse(row.default));
  const values = Object.fromEntries(Object.entries(options).map(([key, row]) => [key, valueFor(row)]));
  const log = (level: string, text: string) =>
    process.stderr.write(`${name}: ${level === 'info' ? '' : `${level}: `}${text}\n`);

  const stopped = untilStopped(0);
  const { close, ...devices } = await program.start(values as OptionValues<T>);
  try {
    const host = new DeviceHost({ socketPath, fd, log, ...devices });
    log('info', socketPath === undefined ? `serving file descriptor ${fd}` : `listening on ${socketPath}`);
    await Promise.race([stopped, host.ended]);
    await host.close();
  } finally {
    await close?.();
  }
}
