/**
 * A rewritten command line for people, and for a shell.
 */
import type { Part } from './draft.ts';
import type { Rewritten } from './rewrite.ts';

/** The word as a POSIX shell takes it. */
export function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** The command, an option a line, and below it as comments what was changed, and why. With a final newline. */
export function printRewritten(program: string, { parts, remarks }: Rewritten): string {
  const shown = ({ words }: Part) => words.map(shellWord).join(' ');
  const command = [shellWord(program), ...parts.filter(({ change }) => change !== 'left out').map(shown)];
  const changes = parts.filter(({ change }) => change !== 'kept');
  const comments = [
    ...changes.flatMap((part) => ['', `${shown(part)}`, `  ${part.change}: ${part.why.join('; ')}`]),
    ...remarks.flatMap((remark) => ['', remark]),
  ];
  // a word may hold a line break, which would end the comment
  const commented = comments.flatMap((text) => text.split('\n')).map((text) => (text === '' ? '#' : `# ${text}`));
  return `${[command.join(' \\\n  '), ...commented].join('\n')}\n`;
}
