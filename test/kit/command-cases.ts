/**
 * Command lines for qemu-wrap in text files, each with what is made of it:
 *
 *     === title
 *     $ qemu-wrap --socket /run/vhost.sock qemu-system-x86_64 …
 *         … of any number of lines, each but the last with a backslash at its end
 *     what `--print` says, or `error: …`
 */
import { globSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseQemuWrap, type QemuWrapSettings } from '../../src/cli/qemu-wrap-options.ts';
import { deviceLink, reconnectKeys, socketLink } from '../../src/launch/link.ts';
import { type Rewritten, rewriteQemuLine } from '../../src/launch/rewrite.ts';

export interface CommandCase {
  readonly title: string;
  /** as written in the file */
  readonly command: string;
  /** what is told of it there */
  readonly expected: string;
}

/** The files, with their paths. */
export const CASE_FILES: readonly string[] = globSync(
  fileURLToPath(new URL('../unit/qemu-wrap/*.txt', import.meta.url)),
).sort();

export function readCases(file: string): CommandCase[] {
  const chunks = readFileSync(file, 'utf8').split(/^=== /m).slice(1);
  return chunks.map((chunk) => {
    const [, title, command, expected] = /^(.*)\n(\$ (?:.*\\\n)*.*\n)([\s\S]*)$/.exec(chunk) ?? [];
    if (expected === undefined) throw new Error(`${file}: no command after "${chunk.split('\n')[0]}"`);
    return { title, command, expected };
  });
}

/** The words of a command as a shell takes them: quotes, backslashes, no expansion of any kind. */
export function shellWords(command: string): string[] {
  const piece = /'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(\n|.)|([^\s'"\\]+)|(\s+)/gs;
  const words: string[] = [];
  let word: string | undefined;
  for (const [, single, double, escaped, plain, space] of command.matchAll(piece)) {
    if (space !== undefined) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (escaped !== '\n') {
      word = (word ?? '') + (single ?? double?.replace(/\\(.)/gs, '$1') ?? escaped ?? plain);
    }
  }
  return word === undefined ? words : [...words, word];
}

/** The settings of a case: the words after `$ qemu-wrap`. */
export function settingsOf({ command }: CommandCase): QemuWrapSettings {
  return parseQemuWrap(shellWords(command).slice(2), {});
}

/** The machine that the cases are rewritten for: QEMU 7.2, 6 GiB of free 2 MiB pages, some files. */
export function rewriteFor(settings: QemuWrapSettings): Rewritten {
  const link =
    settings.devices.length > 0
      ? deviceLink(settings.devices, () => 'FD')
      : socketLink(settings.sockets, () => (settings.reconnect === 0 ? {} : reconnectKeys(settings.reconnect, [7, 2])));
  const { hugepages, offloads, queues } = settings;
  const pageBytes = 2 * 2 ** 20;
  return rewriteQemuLine(settings.args, {
    network: { link, offloads, queues },
    memory: {
      hugepages,
      mounts: () => [{ path: '/dev/hugepages', pageBytes, freeBytes: 6 * 2 ** 30 }],
      fileKind: (path) => (path.endsWith('.ram') ? 'file' : path.startsWith('/dev/') ? 'folder' : 'nothing'),
    },
  });
}
