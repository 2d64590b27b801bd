import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';

const FILES = [
  'test/property/split-ring.test.ts',
  'test/unit/hostile-ring.test.ts',
  'test/unit/switching.test.ts',
  'test/unit/receiving.test.ts',
  'test/unit/offload-stage.test.ts',
];

test('windows of koffi views: rings and switching do the same without WebAssembly', () => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const run = spawnSync(process.execPath, ['--test', ...FILES], {
    env: { ...env, WINDOW_KIND: 'view' },
    encoding: 'utf8',
  });
  assert.equal(run.status, 0, run.stdout.slice(-4000));
  assert.match(run.stdout, /^ℹ fail 0$/m);
  assert.doesNotMatch(run.stdout, /^ℹ pass 0$/m);
});
