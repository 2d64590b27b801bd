/** The character device, in a machine with CUSE; what is done there is in cuse-inside.ts. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Machine } from '../peers/machine.ts';
import { ensurePeers } from '../peers/packages.ts';
import { testOutcomes } from '../peers/tap-output.ts';

const [leftOut] = (await ensurePeers(['machine'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;
const TAP = '/tmp/cuse.tap';
const REPORTERS = [
  '--test-reporter=spec --test-reporter-destination=stdout',
  `--test-reporter=tap --test-reporter-destination=${TAP}`,
];
const INSIDE = ['node', ...REPORTERS, 'test/e2e/cuse-inside.ts'].join(' ');
/** What it imports; importing the file itself would run its tests. */
const COMPILED = [
  'e2e/cuse-ioctls',
  'e2e/switch-process',
  'e2e/traffic',
  'kit/cuse-card',
  'kit/dhcp-server',
  'kit/ip-host',
  'peers/machine-image',
  'peers/dpdk',
];
const INSIDE_MS = 270_000;

describe('vhost-cuse', { skip, timeout: 290_000 }, () => {
  let machine: Machine;

  before(async () => {
    const compiled = [
      'src/cli/qemu-wrap-options.ts',
      'src/launch/rewrite.ts',
      'src/sys/exec.ts',
      ...COMPILED.map((name) => `test/${name}.ts`),
    ];
    machine = await Machine.start({ name: 'cuse', modules: ['tun', 'cuse', 'vhost_net'], compiled });
  });
  after(() => machine?.stop());

  test('in a machine with CUSE', async (t) => {
    const { status, output } = await machine.sh(INSIDE, INSIDE_MS);
    const outcomes = testOutcomes((await machine.read(TAP)).toString());
    for (const { name, ok, details } of outcomes) await t.test(name, () => assert.ok(ok, details));
    assert.ok(outcomes.length > 0 && status === 0, output);
  });

  test('its kernel has nothing to complain of', async () => {
    const messages = await machine.run('dmesg');
    assert.match(messages, /Linux version/);
    assert.doesNotMatch(messages, /BUG:|Oops|WARNING:|blocked for more than/);
  });
});
