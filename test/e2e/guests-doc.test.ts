/** docs/guests.md: every command in it that can run here runs, in the order of the page: on the host, in one guest, in testpmd. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Finding } from '../../src/doctor/finding.ts';
import { shellWord } from '../../src/doctor/finding.ts';
import { GuestAgent } from '../peers/guest-agent.ts';
import { dpdkInitrd } from '../peers/guest-dpdk.ts';
import { guestImage } from '../peers/guest-image.ts';
import { reserveHugepages } from '../peers/hugepages.ts';
import { kvmWorks } from '../peers/kvm.ts';
import { ensurePeers } from '../peers/packages.ts';
import { makeTempDir, PeerProcess, removeTempDir, waitUntil } from '../peers/process.ts';
import { MAIN } from './switch-process.ts';

const [leftOut] = (await ensurePeers(['qemu', 'dpdk'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const PAGE = fileURLToPath(new URL('../../docs/guests.md', import.meta.url));
const TESTPMD = fileURLToPath(new URL('../../src/cli/testpmd.ts', import.meta.url));
const WRAP = fileURLToPath(new URL('../../src/cli/qemu-wrap.ts', import.meta.url));
const PATIENCE_MS = 30_000;
const BOOT_MS = 90_000;
const PROMPT = 'testpmd> ';

/** A block of the page that is marked for running. */
interface Block {
  readonly place: string;
  readonly needs: string | undefined;
  readonly text: string;
  readonly line: number;
}

function blocksOf(page: string): Block[] {
  return [...page.matchAll(/^```sh run=(\S+)(?: needs=(\S+))?\n(.*?)^```$/gms)].map(
    ({ 1: place, 2: needs, 3: text, index }) => ({
      ...{ place, needs, text },
      line: page.slice(0, index).split('\n').length,
    }),
  );
}

const page = readFileSync(PAGE, 'utf8');
const blocks = blocksOf(page);

test('docs/guests.md: what is not run says so', () => {
  const all = [...page.matchAll(/^```sh(.*)\n(\S+)/gm)];
  const still = all.filter(([, mark]) => mark === '').map(([, , program]) => program);
  assert.deepEqual(still, ['cloud-hypervisor', 'crosvm']);
  assert.equal(all.length - still.length, blocks.length);
  const places = new Set(blocks.map(({ place }) => place));
  assert.deepEqual(
    places,
    new Set(['switch', 'boot', 'host', 'guest', 'peer', 'qemu', 'qemu-server', 'guest-testpmd']),
  );
});

describe('docs/guests.md', { skip, timeout: 280_000 }, () => {
  let dir: string;
  let agent: GuestAgent | undefined;
  let accel: string;
  let peer: PeerProcess | undefined;
  const started: PeerProcess[] = [];
  const path = (name: string) => join(dir, name);

  before(async () => {
    dir = makeTempDir('guests-doc');
    accel = (await kvmWorks()) ? 'kvm' : 'tcg';
    mkdirSync(path('bin'));
    program('vhost-switch', `exec ${shellWord(process.execPath)} ${shellWord(MAIN)} "$@"`);
    program('qemu-wrap', `exec ${shellWord(process.execPath)} ${shellWord(WRAP)} "$@"`);
    program('vhost-testpmd', `exec ${shellWord(process.execPath)} ${shellWord(TESTPMD)} "$@"`);
    writeFileSync(path('disk.img'), '');
    truncateSync(path('disk.img'), 2 ** 20);
  });
  after(async () => {
    agent?.close();
    await Promise.all(started.map((one) => one.stop()));
    removeTempDir(dir);
  });

  /** A program that the page's commands find before those of the system. */
  function program(name: string, line: string): void {
    writeFileSync(path(`bin/${name}`), `#!/bin/sh\n${line}\n`);
    chmodSync(path(`bin/${name}`), 0o755);
  }

  /** QEMU with what the page leaves out. QEMU 7.2 crashes under emulation when a guest uses MSI-X on a vhost-user card. */
  function qemuWith(more: readonly string[]): void {
    const change = accel === 'kvm' ? '' : '; s/^kvm$/tcg/; s/vectors=[0-9]*/vectors=0/';
    const rest = ['-nodefaults', '-no-user-config', '-display', 'none', ...more].map(shellWord).join(' ');
    const loop = `for word; do shift; set -- "$@" "$(printf %s "$word" | sed 's/x/x/${change}')"; done`;
    program('qemu-system-x86_64', `${loop}\nexec /usr/bin/qemu-system-x86_64 "$@" ${rest}`);
  }

  const environment = () => ({ PATH: `${path('bin')}:${process.env.PATH}` });

  function start(name: string, text: string): PeerProcess {
    const one = new PeerProcess({ name, command: 'sh', args: ['-c', `exec ${text}`], cwd: dir, env: environment() });
    started.push(one);
    return one;
  }

  function onHost(text: string): string {
    const env = { ...process.env, ...environment() };
    const { status, stdout, stderr } = spawnSync('sh', ['-ec', text], {
      cwd: dir,
      env,
      encoding: 'utf8',
      timeout: PATIENCE_MS,
    });
    assert.equal(status, 0, `${text}${stdout}${stderr}`);
    return stdout;
  }

  async function inGuest(text: string, timeoutMs = PATIENCE_MS): Promise<string> {
    assert.ok(agent, 'the guest has been started');
    const { status, output } = await agent.run(`set -e\n${text}`, timeoutMs);
    assert.equal(status, 0, `${text}${output}`);
    return output;
  }

  async function boot(text: string): Promise<void> {
    const { kernel } = await guestImage();
    const initrd = await dpdkInitrd(dir);
    const serial = (id: string, options: string) => ['-chardev', `${options},id=${id}`, '-serial', `chardev:${id}`];
    qemuWith([
      ...['-kernel', kernel, '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=-1 mitigations=off'],
      ...serial('log', `file,path=${path('console')}`),
      ...serial('agent', `socket,path=${path('agent')},server=on,wait=off`),
    ]);
    const guest = start('the guest', text);
    const console_ = () => (existsSync(path('console')) ? readFileSync(path('console'), 'latin1') : '');
    const details = () => `${guest.lastLines()}\n${console_().slice(-1000)}`;
    const givenUp = () => guest.endedHow;
    await waitUntil('the guest', () => console_().includes('GUEST READY'), BOOT_MS, { givenUp, details, everyMs: 50 });
    agent = new GuestAgent(path('agent'));
    // as every system has it that is not made for tests
    await inGuest('mkdir -p /var && ln -s /run /var/run');
  }

  /** The doctor sees nothing wrong with a QEMU, nor with its socket. */
  function assertSound(qemu: PeerProcess): void {
    const env = { ...process.env, ...environment() };
    const { stdout } = spawnSync(path('bin/vhost-switch'), ['doctor', '--qemu', String(qemu.pid), '--json'], {
      cwd: dir,
      env,
      encoding: 'utf8',
    });
    const { findings } = JSON.parse(stdout) as { findings: Finding[] };
    const wrong = findings.filter(
      ({ severity, check }) => severity === 'error' || (severity === 'warning' && /^memory/.test(check)),
    );
    assert.deepEqual(wrong, []);
    assert.ok(findings.some(({ check, severity }) => check === 'memory.shared' && severity === 'ok'));
  }

  /** A QEMU that is stopped before its first instruction and has its back end. */
  async function stopped(text: string, { needs }: Block, t: TestContext): Promise<void> {
    if (needs === 'hugepages') {
      const pages = reserveHugepages(64);
      t.after(() => pages.release());
      if (!pages.obtained) {
        assert.notEqual(process.env.CI, 'true', pages.why);
        return t.skip(pages.why);
      }
    }
    qemuWith(['-S', '-qmp', `unix:${path('qmp')},server=on,wait=off`]);
    const mark = firstSwitch().outputLen;
    const qemu = start('QEMU', text);
    await qemu.waitUntil('its connection', () => /connected/.test(firstSwitch().outputSince(mark)), PATIENCE_MS);
    assertSound(qemu);
    await qemu.stop();
  }

  const firstSwitch = () => started.find(({ name }) => name === 'switch')!;

  /** Types a block's lines into testpmd in the guest, each when the last one is done. @returns what testpmd printed */
  async function typeIntoTestpmd(text: string): Promise<string> {
    const [command, ...lines] = text.trimEnd().split('\n');
    const words = lines.map((line) => {
      assert.ok(line.startsWith(PROMPT), line);
      return line.slice(PROMPT.length);
    });
    // frames need a moment to go round; testpmd reads on only when a command has ended
    const typed = words.map((line) => `echo '${line}'; ${line.startsWith('start') ? 'sleep 3' : 'sleep 0'}`);
    const script = `(until grep -q 'testpmd>' /tmp/out; do usleep 100000; done; ${typed.join('; ')}) | ${command} >/tmp/out 2>&1`;
    const output = await inGuest(`: >/tmp/out; ${script} || { cat /tmp/out; exit 1; }; cat /tmp/out`, 120_000);
    for (const line of words) assert.ok(output.includes(line), `${line}: ${output}`);
    assert.doesNotMatch(output, /Bad arguments|Command not found|Ambiguous|Cannot|EAL: Error/);
    return output;
  }

  const run: Record<string, (text: string, block: Block, t: TestContext) => Promise<unknown> | unknown> = {
    host: onHost,
    guest: (text) => inGuest(text),
    boot,
    qemu: stopped,
    async switch(text) {
      const one = start('switch', text);
      await one.waitUntil('to be up', () => /listening on|connected/.test(one.outputSince(0)), PATIENCE_MS);
      const listener = started.find(({ name }) => name === 'QEMU listening');
      if (text.includes('--client')) {
        assertSound(listener!);
        await listener?.stop();
        await one.stop();
      }
    },
    async peer(text) {
      await peer?.stop();
      const mark = firstSwitch().outputLen;
      peer = start('peer', text);
      await peer.waitUntil('its port', () => /ready/.test(firstSwitch().outputSince(mark)), PATIENCE_MS);
    },
    async 'qemu-server'(text) {
      qemuWith(['-S']);
      const qemu = start('QEMU listening', text);
      await qemu.waitUntil('its socket', () => existsSync(path('guest.sock')), PATIENCE_MS);
    },
    async 'guest-testpmd'(text) {
      const output = await typeIntoTestpmd(text);
      const count = (name: string) => Number(new RegExp(`${name}: +(\\d+)`).exec(output)?.[1]);
      assert.ok(count('RX-packets') > 64, output);
      assert.ok(count('TX-packets') > 64, output);
      assert.match(output, /MAC address: 52:54:00:00:00:10|52:54:00:00:00:10/i);
    },
  };

  for (const block of blocks)
    test(`line ${block.line}, ${block.place}: ${block.text.split('\n')[0].slice(0, 60)}`, async (t) => {
      await run[block.place](block.text, block, t);
    });
});
