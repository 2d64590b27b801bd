/**
 * DPDK's command lines have two sides: `[EAL options] -- [application options]`.
 */
import { ConfigError } from '../errors.ts';
import { type Option, type Parsed, parseOptions } from './options.ts';

/** Which options a program has. */
export interface Tables {
  /** on both sides */
  readonly common: readonly Option[];
  /** left of the `--` */
  readonly eal: readonly Option[];
  /** right of it */
  readonly app: readonly Option[];
}

/**
 * Takes a command line apart. Without `--` both kinds of options may be mixed, and an EAL option goes before one of the same name.
 * Stray words left of `--` are kept, as in DPDK; elsewhere they are errors. Throws ConfigError.
 */
export function takeApart(argv: readonly string[], { common, eal, app }: Tables): Parsed {
  const split = argv.indexOf('--');
  if (split < 0) {
    const both = parseOptions([...common, ...eal, ...app], argv);
    refuseWords(both.words);
    return both;
  }
  const left = parseSide([...common, ...eal], argv.slice(0, split), app, 'right');
  const right = parseSide([...common, ...app], argv.slice(split + 1), eal, 'left');
  refuseWords(right.words);
  return { given: [...left.given, ...right.given], words: left.words };
}

function refuseWords(words: readonly string[]): void {
  if (words.length > 0) throw new ConfigError('CONFIG_UNEXPECTED_WORD', words[0], 'belongs to no option');
}

/** Parses one side of the `--`; an option of the other side's table is an error that says so. */
function parseSide(table: readonly Option[], args: readonly string[], other: readonly Option[], side: string): Parsed {
  try {
    return parseOptions(table, args);
  } catch (error) {
    const misplaced =
      error instanceof ConfigError &&
      error.code === 'CONFIG_UNKNOWN_OPTION' &&
      other.some((row) => error.option === `-${row.short}` || error.option === `--${row.long}`);
    if (misplaced) throw new ConfigError('CONFIG_UNKNOWN_OPTION', error.option, `belongs to the ${side} of --`);
    throw error;
  }
}
