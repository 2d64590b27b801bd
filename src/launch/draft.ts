/**
 * A command line on its way from what the user wrote to what QEMU gets: every option is kept, changed, left out or added, and each
 * change says why.
 */
import type { OptionValue, Scalar } from './option-value.ts';
import { type LineOption, optionValue, parseLine } from './qemu-line.ts';

/** An option of the resulting command line, or one that is no longer in it. */
export interface Part {
  /** the option and its value */
  readonly words: readonly string[];
  readonly change: 'kept' | 'changed' | 'added' | 'left out';
  /** a sentence for each reason; none where it is kept */
  readonly why: readonly string[];
}

/** An option that was not there. */
export function added(name: string, value: string, why: string): Part {
  return { words: [`-${name}`, value], change: 'added', why: [why] };
}

interface Edit {
  readonly value: OptionValue;
  readonly why: string[];
}

export class Draft {
  readonly line: readonly LineOption[];
  /** What is worth knowing, and changes nothing. */
  readonly remarks: string[] = [];
  readonly #edits = new Map<number, Edit>();
  readonly #leftOut = new Map<number, string>();
  readonly #before = new Map<number, Part[]>();
  readonly #end: Part[] = [];

  constructor(args: readonly string[]) {
    this.line = parseLine(args);
  }

  /** The value of option number `at` with the changes so far. A copy: to change it, see {@link set} and {@link delete}. */
  value(at: number): OptionValue {
    return this.#edits.get(at)?.value ?? optionValue(this.line[at]);
  }

  /** Sets keys of option number `at`. */
  set(at: number, keys: Readonly<Record<string, Scalar>>, why: string): void {
    const { value } = this.#edit(at, why);
    for (const [key, scalar] of Object.entries(keys)) value.set(key, scalar);
  }

  delete(at: number, key: string, why: string): void {
    this.#edit(at, why).value.delete(key);
  }

  /** Gives option number `at` another value. */
  replaceValue(at: number, value: OptionValue, why: string): void {
    this.#edits.set(at, { value, why: [why] });
  }

  #edit(at: number, why: string): Edit {
    let edit = this.#edits.get(at);
    if (edit === undefined) {
      edit = { value: optionValue(this.line[at]), why: [] };
      this.#edits.set(at, edit);
    }
    if (!edit.why.includes(why)) edit.why.push(why);
    return edit;
  }

  leaveOut(at: number, why: string): void {
    this.#leftOut.set(at, why);
  }

  /** Puts options before option number `at`, or in its place when that is left out. */
  insert(at: number, parts: readonly Part[]): void {
    this.#before.set(at, [...(this.#before.get(at) ?? []), ...parts]);
  }

  append(...parts: readonly Part[]): void {
    this.#end.push(...parts);
  }

  /** All options, the ones left out among them, in order. */
  parts(): Part[] {
    const own = this.line.flatMap((option, at) => {
      const [part, before] = [this.#part(option, at), this.#before.get(at) ?? []];
      return part.change === 'left out' ? [part, ...before] : [...before, part];
    });
    return [...own, ...this.#end];
  }

  #part({ words }: LineOption, at: number): Part {
    const why = this.#leftOut.get(at);
    if (why !== undefined) return { words, change: 'left out', why: [why] };
    const edit = this.#edits.get(at);
    if (edit === undefined) return { words, change: 'kept', why: [] };
    return { words: [words[0], edit.value.toString()], change: 'changed', why: edit.why };
  }

  /** Whether an option of some kind has this id, and so nothing new may have it. */
  #taken(id: string): boolean {
    const parts = this.parts().filter((part) => part.change !== 'left out' && part.words.length === 2);
    return parts.some(({ words: [name, value] }) => {
      const [option] = parseLine([name, value]);
      return (
        ['chardev', 'netdev', 'nic', 'object', 'device'].includes(option.name) && optionValue(option).get('id') === id
      );
    });
  }

  /** An id for something new, `wanted` unless that is taken. */
  readonly freshId = (wanted: string): string => {
    let id = wanted;
    for (let n = 2; this.#taken(id); n++) id = `${wanted}-${n}`;
    return id;
  };
}
