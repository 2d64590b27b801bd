/** How the doctor prints what it has found: for people, and as JSON. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { examine } from '../../src/doctor/doctor.ts';
import { CHECKS, type Finding } from '../../src/doctor/finding.ts';
import { isHealthy, jsonReport, textReport } from '../../src/doctor/report.ts';
import { DoctorMachine, GOOD_LINE, QEMU_PID, SOCKET } from '../kit/doctor-machine.ts';

const golden = (name: string) => readFileSync(new URL(name, import.meta.url), 'utf8');

/** A machine with one trouble of each kind. */
async function troubled(): Promise<Finding[]> {
  const machine = new DoctorMachine();
  try {
    machine.beGuest(GOOD_LINE.map((word) => word.replace('share=on', 'share=off').replace(',reconnect=1', '')));
    machine.hugepages({ total: 1024, free: 0 }).erase('/dev/cuse').forbid(`/proc/${QEMU_PID}/numa_maps`);
    machine.node(SOCKET, { mode: 0o140755 });
    return await examine(machine, { qemu: QEMU_PID, sockets: [], lcores: [], ports: [] });
  } finally {
    machine.remove();
  }
}

test('doctor: the report for people, problems only', async () => {
  assert.equal(textReport(await troubled(), false), golden('doctor.golden.txt'));
});

test('doctor: the report for people, with what is fine', async () => {
  assert.equal(textReport(await troubled(), true), golden('doctor-all.golden.txt'));
});

test('doctor: the JSON holds every finding as it is, and counts them', async () => {
  const findings = await troubled();
  const report = JSON.parse(jsonReport(findings));
  assert.deepEqual(Object.keys(report), ['schema', 'healthy', 'counts', 'findings']);
  assert.equal(report.schema, 1);
  assert.equal(report.healthy, false);
  assert.deepEqual(report.findings, findings);
  const total = Object.values(report.counts as Record<string, number>).reduce((sum, n) => sum + n, 0);
  assert.equal(total, findings.length);
  assert.deepEqual(Object.keys(report.counts), ['error', 'warning', 'unseen', 'ok']);
});

test('doctor: warnings, and what could not be seen, are no sickness', () => {
  const of = (severity: Finding['severity']): Finding => ({ check: 'cpu.quota', severity, what: 'x' });
  assert.ok(isHealthy([of('ok'), of('warning'), of('unseen')]));
  assert.ok(!isHealthy([of('ok'), of('error')]));
});

test('doctor: what comes from files and processes reaches the terminal as text only', () => {
  const what = 'a\u001b[31mred\u009b2J\u202eback\nline\u0007';
  const findings: Finding[] = [{ check: 'socket.file', severity: 'error', what, shows: what, mend: [what] }];
  const json = jsonReport(findings);
  assert.deepEqual(JSON.parse(json).findings, findings);
  assert.doesNotMatch(json.replaceAll('\n', ''), /[\p{Cc}\p{Cf}]/u);
  const text = textReport(findings, false);
  assert.doesNotMatch(text.replaceAll('\n', ''), /[\p{Cc}\p{Cf}]/u);
  assert.equal(text.match(/a\\u\{1b\}\[31mred/g)?.length, 3);
  assert.doesNotMatch(text, /back\n/);
});

test('docs/doctor.md: every check, with what it looks at', () => {
  const page = readFileSync('docs/doctor.md', 'utf8');
  const rows = [...page.matchAll(/^\| `([a-z]+\.[a-z_-]+)` +\| (.*?) +\|$/gm)].map(([, check, text]) => [check, text]);
  assert.deepEqual(rows, Object.entries(CHECKS));
});
