import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { test } from 'node:test';

const CODE = /(?:SwitchError|ProtocolError|protocolError|ConfigError)\(\s*'([A-Z_]+)'|^ {2}\| '([A-Z_]+)'/gm;

test('error codes: docs/errors.md names every code that the source throws, and no other', () => {
  const thrown = new Set<string>();
  for (const file of globSync('src/**/*.ts')) {
    for (const [, code, member] of readFileSync(file, 'utf8').matchAll(CODE)) thrown.add(code ?? member);
  }
  const documented = [...readFileSync('docs/errors.md', 'utf8').matchAll(/`([A-Z]+_[A-Z_]+|DISCONNECTED)`/g)].map(
    ([, code]) => code,
  );
  assert.deepEqual(documented.sort(), [...thrown].sort());
});
