import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';

const SWITCHING = ['test/unit/switching.test.ts', 'test/unit/receiving.test.ts', 'test/unit/learning-first.test.ts'];
const UPLINKS = ['test/unit/uplink-rules.test.ts', 'test/unit/vlan-rules.test.ts', 'test/unit/rx-retry.test.ts'];

for (const { name, env, files } of [
  {
    name: 'windows of koffi views: rings and switching do the same without WebAssembly',
    env: { WINDOW_KIND: 'view' },
    files: [
      'test/property/rings.test.ts',
      'test/unit/hostile-ring.test.ts',
      'test/unit/offload-stage.test.ts',
      'test/unit/null-ring-ports.test.ts',
      'test/unit/pcap-port.test.ts',
      ...SWITCHING,
    ],
  },
  { name: 'packed rings: switching does the same', env: { RING_FORMAT: 'packed' }, files: [...SWITCHING, ...UPLINKS] },
])
  test(name, () => {
    const { NODE_TEST_CONTEXT: _, ...outer } = process.env;
    const run = spawnSync(process.execPath, ['--test', ...files], { env: { ...outer, ...env }, encoding: 'utf8' });
    assert.equal(run.status, 0, run.stdout.slice(-4000));
    assert.match(run.stdout, /^ℹ fail 0$/m);
    assert.doesNotMatch(run.stdout, /^ℹ pass 0$/m);
  });
