/**
 * Asks the C compiler for numbers: writes a program that prints them, compiles and runs it.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const hasGcc = (): boolean => spawnSync('gcc', ['--version']).status === 0;

/**
 * The values of integer C expressions, by the expression; those guarded by a macro that is not defined are absent.
 * @param expressions each with the macro that must be defined, if any.
 */
export function evaluateC(
  headers: readonly string[],
  expressions: ReadonlyMap<string, string | undefined>,
): Map<string, bigint> {
  const prints = [...expressions].map(([expression, macro]) => {
    const print = `  printf("%s %llu\\n", ${JSON.stringify(expression.replaceAll(' ', '~'))}, (unsigned long long)(${expression}));`;
    return macro === undefined ? print : `#ifdef ${macro}\n${print}\n#endif`;
  });
  const source = [
    '#define _GNU_SOURCE',
    '#include <stddef.h>',
    '#include <stdio.h>',
    ...headers.map((header) => `#include <${header}>`),
    'int main(void) {',
    ...prints,
    '  return 0;',
    '}',
    '',
  ].join('\n');
  const dir = mkdtempSync(join(tmpdir(), 'vhost-switch-abi-'));
  try {
    writeFileSync(join(dir, 'probe.c'), source);
    execFileSync('gcc', ['-Werror=implicit', '-o', join(dir, 'probe'), join(dir, 'probe.c')], { stdio: 'pipe' });
    const lines = execFileSync(join(dir, 'probe'), { encoding: 'utf8' }).trim().split('\n');
    return new Map(
      lines.map((line): [string, bigint] => {
        const [expression, value] = line.split(' ');
        return [expression.replaceAll('~', ' '), BigInt(value)];
      }),
    );
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
