/**
 * The command line of vhost-switch, `[EAL options] -- [application options]`, resolved to plain values, and its help.
 * Nothing here touches files, sockets or CPUs.
 */
import { ConfigError } from '../errors.ts';
import { EAL, EAL_IGNORED, type EalSettings, resolveEal } from './eal.ts';
import {
  FLAG,
  fold,
  formatHelp,
  givenValue,
  notesOn,
  type Option,
  optionName,
  type Parsed,
  parseOptions,
  refuseLater,
} from './options.ts';
import { resolveSwitch, SWITCH, type SwitchSettings, uplinkNotes } from './switch-options.ts';

/** Everything a command line says. With `help` or `version` the other values are the defaults. */
export interface CommandLine extends EalSettings, SwitchSettings {
  /** Print the help and exit. */
  readonly help: boolean;
  /** Print the version and exit. */
  readonly version: boolean;
  /** Print the version at start. */
  readonly showVersion: boolean;
}

const COMMON = {
  help: { short: 'h', long: 'help', type: FLAG, help: 'show this help and exit' },
  version: { long: 'version', type: FLAG, help: 'show the version and exit' },
} satisfies Record<string, Option>;

const COMMON_ROWS: readonly Option[] = Object.values(COMMON);
const EAL_ROWS: readonly Option[] = [...Object.values(EAL), ...EAL_IGNORED];
const SWITCH_ROWS: readonly Option[] = Object.values(SWITCH);

/**
 * Reads the arguments after the program's name. With `--`, what is left of the first one are EAL options and what is right of it
 * options of the switch; without, both kinds may be mixed. A value `--` can be given as `--name=--` only.
 * Throws ConfigError: unknown options and invalid values first, then contradictions, then options of later versions.
 */
export function parseCommandLine(argv: readonly string[]): CommandLine {
  const { given, words } = takeApart(argv);
  const help = givenValue(given, COMMON.help) ?? false;
  const version = givenValue(given, COMMON.version) ?? false;
  if (help || version) return { ...parseCommandLine([]), help, version };
  const eal = resolveEal(given);
  const app = resolveSwitch(given);
  refuseLater(given);
  return {
    help,
    version,
    showVersion: givenValue(given, EAL.showVersion) ?? false,
    ...eal,
    ...app,
    ignored: [...eal.ignored, ...words],
    notes: [...eal.notes, ...uplinkNotes(given), ...notesOn(given)],
  };
}

/** Stray words left of `--` are kept, as in DPDK; elsewhere they are errors. */
function takeApart(argv: readonly string[]): Parsed {
  const split = argv.indexOf('--');
  if (split < 0) {
    const both = parseOptions([...COMMON_ROWS, ...EAL_ROWS, ...SWITCH_ROWS], argv);
    refuseWords(both.words);
    return both;
  }
  const left = parseSide(EAL_ROWS, argv.slice(0, split), SWITCH_ROWS, 'right');
  const right = parseSide(SWITCH_ROWS, argv.slice(split + 1), EAL_ROWS, 'left');
  refuseWords(right.words);
  return { given: [...left.given, ...right.given], words: left.words };
}

function refuseWords(words: readonly string[]): void {
  if (words.length > 0) throw new ConfigError('CONFIG_UNEXPECTED_WORD', words[0], 'belongs to no option');
}

/** Parses one side of the `--`; an option of the other side's table is an error that says so. */
function parseSide(table: readonly Option[], args: readonly string[], other: readonly Option[], side: string): Parsed {
  try {
    return parseOptions([...COMMON_ROWS, ...table], args);
  } catch (error) {
    const misplaced =
      error instanceof ConfigError &&
      error.code === 'CONFIG_UNKNOWN_OPTION' &&
      other.some((row) => error.option === `-${row.short}` || error.option === `--${row.long}`);
    if (misplaced) throw new ConfigError('CONFIG_UNKNOWN_OPTION', error.option, `belongs to the ${side} of --`);
    throw error;
  }
}

/** The help of vhost-switch: at most 100 columns, with a final newline. */
export function helpText(): string {
  const ignoredNames = EAL_IGNORED.map(optionName).join(', ');
  return `usage: vhost-switch [EAL options] -- [application options]
       vhost-switch [options of both kinds]

Switches Ethernet packets between virtual machines that connect to its vhost-user sockets.

${formatHelp(COMMON_ROWS)}

EAL options, as in DPDK; of -c, -l and --lcores only one:
${formatHelp(Object.values(EAL))}

Accepted for DPDK's sake, without meaning here:
${fold(`  ${ignoredNames}`, 2)}

Application options:
${formatHelp(SWITCH_ROWS)}

Long options may be shortened as long as they stay unique, and take their value as --name VALUE or
--name=VALUE. Options marked "later version" are checked and refused.
`;
}
