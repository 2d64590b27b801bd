/**
 * Option tables: one row describes an option, and both the parser and the help text are made from it.
 * The grammar is that of getopt_long. What an option means, and what it conflicts with, is not decided here.
 */
import { ConfigError, type ConfigErrorCode } from '../errors.ts';
import { nearestName, TEXT, type ValueType } from '../port/text-values.ts';

export { choice, integer, ON_OFF, TEXT, type ValueType } from '../port/text-values.ts';

/** One row of an option table: at least one of `long` and `short` is given. */
export interface Option<T = unknown> {
  /** Long name without dashes. */
  readonly long?: string;
  /** Short letter without its dash. */
  readonly short?: string;
  /** Placeholder of the value in the help; an option without one is a flag and takes no value. */
  readonly value?: string;
  /** The value may be left out, and is given as `--long=VALUE` only. */
  readonly optionalValue?: true;
  /** How its value is read; {@link FLAG} for an option without one. */
  readonly type: ValueType<T>;
  /** Text of the default value, read by the same `type`. */
  readonly default?: string;
  /** May be given several times, each adding to the others; of other options the last one counts. */
  readonly repeats?: true;
  /** What it does, in a few words for the help. */
  readonly help: string;
  /** The option needs a later version: why, and what to do instead. */
  readonly later?: string;
  /** Said to a user who gives the option. */
  readonly note?: string;
}

/** An option found on a command line. */
export interface Given {
  readonly row: Option;
  /** Full name with its dashes. */
  readonly name: string;
  readonly text: string;
  readonly value: unknown;
}

/** A command line taken apart: the options in order, and the words that belong to none. */
export interface Parsed {
  readonly given: readonly Given[];
  readonly words: readonly string[];
}

/** Value of an option without a placeholder. */
export const FLAG: ValueType<boolean> = { range: '', parse: () => true };

/** A hexadecimal mask, with or without 0x, of at least one bit below `limit`: the numbers of its bits, ascending. */
export function hexMask(limit: number): ValueType<readonly number[]> {
  const parse = (text: string) => {
    const digits = /^\s*(?:0x)?([0-9a-f]+)\s*$/i.exec(text)?.[1];
    if (digits === undefined) return undefined;
    const bits: number[] = [];
    [...digits].reverse().forEach((digit, position) => {
      for (let bit = 0; bit < 4; bit++) {
        if ((Number.parseInt(digit, 16) >> bit) & 1) bits.push(position * 4 + bit);
      }
    });
    return bits.length > 0 && bits[bits.length - 1] < limit ? bits : undefined;
  };
  return { range: `a hexadecimal mask of bits 0 to ${limit - 1}, not zero`, parse };
}

/** Name of an option with its dashes, the long one where there is one. */
export function optionName(row: Option): string {
  return row.long === undefined ? `-${row.short}` : `--${row.long}`;
}

/**
 * Takes `args` apart as getopt_long does: `--name value`, `--name=value`, any unique beginning of a long name, `-n 4`, `-n4`,
 * several short flags in one word. Throws ConfigError at the first fault.
 */
export function parseOptions(table: readonly Option[], args: readonly string[]): Parsed {
  const given: Given[] = [];
  const words: string[] = [];
  let next = 0;
  const add = (row: Option, name: string, attached: string | undefined) => {
    if (row.value === undefined && attached !== undefined) {
      throw new ConfigError('CONFIG_UNEXPECTED_VALUE', name, `takes no value, "${attached}" is given`);
    }
    const takesNext = row.value !== undefined && !row.optionalValue;
    const text = attached ?? (takesNext ? args[next++] : '');
    if (text === undefined) {
      throw new ConfigError('CONFIG_MISSING_VALUE', name, `needs a value: ${row.type.range}`, {
        range: row.type.range,
      });
    }
    given.push({ row, name, text, value: readValue(row, name, text) });
  };
  while (next < args.length) {
    const word = args[next++];
    if (word === '-' || word === '--' || !word.startsWith('-')) {
      words.push(word);
    } else if (word.startsWith('--')) {
      const [, typed, attached] = /^--([^=]*)(?:=(.*))?$/s.exec(word)!;
      const row = findLong(table, typed);
      add(row, `--${row.long}`, attached);
    } else {
      for (let at = 1; at < word.length; at++) {
        const row = findShort(table, word[at]);
        const rest = word.slice(at + 1);
        const endsWord = row.value !== undefined;
        add(row, `-${row.short}`, endsWord && rest !== '' ? rest : undefined);
        if (endsWord) break;
      }
    }
  }
  return { given, words };
}

function readValue(row: Option, name: string, text: string): unknown {
  const value = row.type.parse(text);
  if (value !== undefined) return value;
  const noun = /^[A-Z]+$/.test(row.value ?? '') ? row.value?.toLowerCase() : 'value';
  const problem = `invalid ${noun} "${text}"; valid: ${row.type.range}`;
  throw new ConfigError('CONFIG_INVALID_VALUE', name, problem, { range: row.type.range });
}

function findShort(table: readonly Option[], letter: string): Option {
  const row = table.find((candidate) => candidate.short === letter);
  if (row === undefined) throw new ConfigError('CONFIG_UNKNOWN_OPTION', `-${letter}`, 'unknown option');
  return row;
}

function findLong(table: readonly Option[], typed: string): Option {
  const exact = table.find((row) => row.long === typed);
  if (exact !== undefined) return exact;
  const starting = table.filter((row) => row.long?.startsWith(typed));
  if (starting.length === 1) return starting[0];
  if (starting.length > 1) {
    const problem = `is the beginning of several options: ${starting.map(optionName).join(', ')}`;
    throw new ConfigError('CONFIG_AMBIGUOUS_OPTION', `--${typed}`, problem);
  }
  const names = table.flatMap((row) => row.long ?? []);
  const nearest = nearestName(typed, names);
  throw new ConfigError('CONFIG_UNKNOWN_OPTION', `--${typed}`, `unknown option; the nearest is --${nearest}`);
}

/** All values given for an option, in order. */
export function allValues<T>(given: readonly Given[], row: Option<T>): T[] {
  return given.filter((one) => one.row === row).map((one) => one.value as T);
}

/** The value of an option, undefined when it was not given; the last one counts. */
export function givenValue<T>(given: readonly Given[], row: Option<T>): T | undefined {
  return allValues(given, row).at(-1);
}

/** The value of an option, or its default. */
export function valueOrDefault<T>(given: readonly Given[], row: Option<T> & { readonly default: string }): T {
  return givenValue(given, row) ?? row.type.parse(row.default)!;
}

/** The option as the user gave it, with its name in full, for messages. */
export function spell(one: Given): string {
  return one.text === '' ? one.name : `${one.name} ${one.text}`;
}

/** The error that an option, as it was given, is at fault. */
export function faultOf(one: Given, code: ConfigErrorCode, problem: string): ConfigError {
  return new ConfigError(code, one.name, problem, { value: one.text });
}

/** The options without those that the same option, given again, has replaced. */
function lastOfEach(given: readonly Given[]): Given[] {
  return given.filter((one) => one === given.findLast(({ row }) => row === one.row));
}

/** Notes for the user on the options that carry one. */
export function notesOn(given: readonly Given[]): string[] {
  return lastOfEach(given).flatMap((one) => (one.row.note === undefined ? [] : `${spell(one)}: ${one.row.note}`));
}

/** Throws ConfigError at the first option that needs a later version. */
export function refuseLater(given: readonly Given[]): void {
  for (const one of lastOfEach(given)) {
    const { later } = one.row;
    if (later !== undefined) throw faultOf(one, 'CONFIG_NOT_YET', later);
  }
}

const HELP_WIDTH = 100;
const HELP_INDENT = 32;

/** Help for the rows of a table, at most 100 columns wide: names, what for, range, default, and what waits for a later version. */
export function formatHelp(rows: readonly Option[]): string {
  const lines = rows.flatMap((row) => {
    const what = `${namesInHelp(row).padEnd(HELP_INDENT - 1)} ${row.help}`;
    const facts = factsInHelp(row);
    if (what.length + 1 + facts.length <= HELP_WIDTH || facts === '') return `${what} ${facts}`.trimEnd();
    return [what, ' '.repeat(HELP_INDENT) + facts].map((line) => fold(line, HELP_INDENT));
  });
  return lines.join('\n');
}

/** The names of an option as the help shows them, with the placeholder of its value. */
function namesInHelp({ short, long, value }: Option): string {
  const names = [short === undefined ? '   ' : `-${short}${long === undefined ? '' : ','}`];
  if (long !== undefined) names.push(`--${long}`);
  if (value !== undefined) names.push(value);
  return `  ${names.join(' ')}`;
}

function factsInHelp(row: Option): string {
  const facts: string[] = [];
  if (row.value !== undefined && row.type !== TEXT && row.type.range !== row.value) facts.push(row.type.range);
  if (row.default !== undefined) facts.push(`default ${row.default}`);
  if (row.repeats) facts.push('may be repeated');
  if (row.later !== undefined) facts.push('later version');
  return facts.length === 0 ? '' : `(${facts.join('; ')})`;
}

/** Breaks a line between words at the width of the help; the lines that follow are indented. */
export function fold(line: string, indent: number): string {
  if (line.length <= HELP_WIDTH) return line;
  const space = line.lastIndexOf(' ', HELP_WIDTH);
  return `${line.slice(0, space)}\n${fold(' '.repeat(indent) + line.slice(space + 1), indent)}`;
}
