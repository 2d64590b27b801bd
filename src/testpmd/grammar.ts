/**
 * How commands are written: words, and places for values, `set burst (num)`. Finds the command that a line means, says what was
 * expected where it means none, and completes what is being typed.
 */
import { nearestName, type ValueType } from '../port/text-values.ts';

/** What may stand in a place. */
export interface Place<T> extends ValueType<T> {
  /** Words to complete, where some or all of its values are words. */
  readonly words?: readonly string[];
}

export type Places = Readonly<Record<string, Place<unknown>>>;

/** A way to write a command. */
export interface Pattern {
  /** words and `(place)`s, separated by single spaces */
  readonly pattern: string;
}

/** A line that means a command, with the values of its places in order. */
export interface Match<C> {
  readonly command: C;
  readonly values: readonly unknown[];
}

const wordsOf = (text: string) => text.split(/\s+/).filter((word) => word !== '');
const placeName = (token: string) => /^\((.+)\)$/.exec(token)?.[1];

interface Row<C> {
  readonly command: C;
  readonly tokens: readonly string[];
}

export class Grammar<C extends Pattern> {
  readonly #rows: readonly Row<C>[];
  readonly #places: Places;

  constructor(commands: readonly C[], places: Places) {
    this.#rows = commands.map((command) => ({ command, tokens: wordsOf(command.pattern) }));
    this.#places = places;
  }

  /** The command that a line means, or one sentence on what was expected. A line of nothing, or of a comment, means nothing. */
  parse(line: string): Match<C> | string | undefined {
    const words = wordsOf(line);
    if (words.length === 0 || words[0].startsWith('#')) return undefined;
    let rows = this.#rows;
    for (let at = 0; at < words.length; at++) {
      const fitting = this.#fitting(rows, at, words[at]);
      if (fitting.length === 0) return this.#expected(rows, words, at);
      rows = fitting;
    }
    const whole = rows.find(({ tokens }) => tokens.length === words.length);
    if (whole === undefined) return this.#expected(rows, words, words.length);
    const values = whole.tokens.flatMap((token, at) => {
      const place = placeName(token);
      return place === undefined ? [] : [this.#places[place].parse(words[at])];
    });
    return { command: whole.command, values };
  }

  /** What the last word of `line` may become, and that word, as node:readline asks for it. */
  complete(line: string): [completions: string[], typed: string] {
    const words = wordsOf(line);
    const typed = /\s$/.test(line) ? '' : (words.pop() ?? '');
    let rows = this.#rows;
    words.forEach((word, at) => {
      rows = this.#fitting(rows, at, word);
    });
    const next = new Set(rows.flatMap(({ tokens }) => this.#choices(tokens[words.length])));
    return [[...next].filter((word) => word.startsWith(typed)).map((word) => `${word} `), typed];
  }

  #fitting(rows: readonly Row<C>[], at: number, word: string): Row<C>[] {
    return rows.filter(({ tokens }) => {
      if (at >= tokens.length) return false;
      const place = placeName(tokens[at]);
      return place === undefined ? tokens[at] === word : this.#places[place].parse(word) !== undefined;
    });
  }

  /** The words that may stand for a token; of a place that takes anything else, none. */
  #choices(token: string | undefined): readonly string[] {
    if (token === undefined) return [];
    const place = placeName(token);
    return place === undefined ? [token] : (this.#places[place].words ?? []);
  }

  /** Says what may stand at word `at`, after words that fit `rows`. */
  #expected(rows: readonly Row<C>[], words: readonly string[], at: number): string {
    if (at === 0) {
      const names = [...new Set(rows.map(({ tokens }) => tokens[0]))];
      return `Command not found: ${words[0]}; the nearest is "${nearestName(words[0], names)}", and "help" lists all`;
    }
    const next = rows.map(({ tokens }) => (at < tokens.length ? this.#describe(tokens[at]) : 'nothing more'));
    const found = at < words.length ? `"${words[at]}"` : 'nothing';
    const expected = [...new Set(next)].join(' | ');
    return `Bad arguments: after "${words.slice(0, at).join(' ')}" expected ${expected}; found ${found}`;
  }

  #describe(token: string): string {
    const place = placeName(token);
    return place === undefined ? token : this.#places[place].range;
  }
}
