/** qemu-wrap's command lines: real ones of many origins, and what is made of each. GOLDEN=write writes the files anew. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { describe, test } from 'node:test';
import { ConfigError } from '../../src/errors.ts';
import { printRewritten } from '../../src/launch/print.ts';
import { CASE_FILES, type CommandCase, readCases, rewriteFor, settingsOf } from '../kit/command-cases.ts';

function told(one: CommandCase): string {
  try {
    const settings = settingsOf(one);
    return printRewritten(settings.qemu ?? 'qemu-system-x86_64', rewriteFor(settings));
  } catch (error) {
    if (error instanceof ConfigError) return `error: ${error.message}\n`;
    throw error;
  }
}

if (process.env.GOLDEN === 'write') {
  for (const file of CASE_FILES) {
    const cases = readCases(file).map((one) => `=== ${one.title}\n${one.command}${told(one)}`);
    writeFileSync(file, cases.join(''));
  }
}

for (const file of CASE_FILES) {
  describe(`qemu-wrap: ${basename(file, '.txt')}`, () => {
    for (const one of readCases(file)) test(one.title, () => assert.equal(told(one), one.expected));
  });
}
