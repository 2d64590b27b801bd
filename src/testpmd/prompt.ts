/**
 * The prompt: reads commands from a terminal, with history and completion, or from a pipe, and does them one after the other.
 */
import { createInterface, type Interface } from 'node:readline';
import { GRAMMAR, runLine } from './commands.ts';
import type { Session } from './session.ts';

export const PROMPT = 'testpmd> ';

/** Where commands come from, and text goes. */
export interface Terminal {
  readonly input: NodeJS.ReadableStream & { readonly isTTY?: boolean };
  readonly output: NodeJS.WritableStream & { readonly isTTY?: boolean };
}

/** Text between other text and prompts: what is said while somebody types goes above the prompt, and the prompt comes again. */
export class Screen {
  readonly #output: Terminal['output'];
  /** a prompt is on its last line */
  #prompting: Interface | undefined;

  constructor(output: Terminal['output']) {
    this.#output = output;
  }

  get isTerminal(): boolean {
    return this.#output.isTTY === true;
  }

  /** Shows the prompt. A pipe may have ended already, with lines still to be done. */
  prompt(readline: Interface): void {
    this.#prompting = readline;
    if (readline.terminal) readline.prompt();
    else this.write(PROMPT);
  }

  /** A line was typed, or the end: what comes now comes below. */
  answered(): void {
    this.#prompting = undefined;
  }

  say = (text: string): void => {
    const readline = this.#prompting;
    if (readline === undefined) this.write(`${text}\n`);
    else if (readline.terminal) {
      this.write(`\r\x1b[J${text}\n`);
      readline.prompt(true);
    } else this.write(`\n${text}\n${PROMPT}`);
  };

  write(text: string): void {
    this.#output.write(text);
  }
}

/** Reads and does commands until `quit`, the end of the input, Ctrl-C on an empty line, or `stopped`. */
export async function runPrompt(
  session: Session,
  screen: Screen,
  { input, output }: Terminal,
  stopped: Promise<unknown>,
): Promise<void> {
  const terminal = input.isTTY === true && output.isTTY === true;
  const completer = (line: string) => GRAMMAR.complete(line);
  const readline = createInterface({
    input,
    output,
    terminal,
    completer,
    prompt: PROMPT,
    removeHistoryDuplicates: true,
  });
  readline.on('SIGINT', () => {
    if (readline.line === '') return readline.close();
    // as a shell does: the line is dropped, from its end to its beginning
    readline.write(null, { ctrl: true, name: 'e' });
    readline.write(null, { ctrl: true, name: 'u' });
  });
  let [closed, told] = [false, false];
  readline.on('close', () => {
    closed = true;
  });
  const end = () => {
    told = true;
    readline.close();
  };
  void stopped.then(end);
  const lines = readline[Symbol.asyncIterator]();
  while (!(closed && terminal)) {
    screen.prompt(readline);
    const { value: line, done } = await lines.next();
    screen.answered();
    if (done || told) break;
    // a pipe does not show what it says
    if (!terminal) screen.write(`${line}\n`);
    await runLine(session, line);
    if (session.quitting) break;
  }
  if (!session.quitting) screen.write('\n');
  readline.close();
}
