/**
 * Findings in words and as JSON. Names and paths come from other users' processes: nothing of them reaches the terminal but text.
 */
import { CHECKS, type Finding, type Severity } from './finding.ts';

const WIDTH = 100;
const SEVERITIES: readonly Severity[] = ['error', 'warning', 'unseen', 'ok'];

/** Changes when something is taken away from the JSON or means something else; additions do not change it. */
const SCHEMA = 1;

/** Nothing stands in the way: there is no error. */
export const isHealthy = (findings: readonly Finding[]) => !findings.some(({ severity }) => severity === 'error');

const count = (findings: readonly Finding[], severity: Severity) =>
  findings.filter((one) => one.severity === severity).length;

/** The findings as one JSON object, with a final newline. docs/doctor.md describes it. */
export function jsonReport(findings: readonly Finding[]): string {
  const counts = Object.fromEntries(SEVERITIES.map((severity) => [severity, count(findings, severity)]));
  const report = { schema: SCHEMA, healthy: isHealthy(findings), counts, findings };
  const text = JSON.stringify(report, undefined, 2);
  // what JSON itself leaves as it is could still move a terminal's cursor
  return `${text.replace(/(?!\n)[\p{Cc}\p{Cf}]/gu, escapeUnits)}\n`;
}

const escapeUnits = (text: string) =>
  Array.from({ length: text.length }, (_, at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, '0')}`).join('');

/** The findings for people: a paragraph for each, grouped by what they are about. `all`: those that are fine too. */
export function textReport(findings: readonly Finding[], all: boolean): string {
  const shown = findings.filter(({ severity }) => all || severity !== 'ok');
  const groups = new Map<string, Finding[]>();
  for (const finding of shown) {
    const group = finding.check.slice(0, finding.check.indexOf('.'));
    groups.set(group, [...(groups.get(group) ?? []), finding]);
  }
  const order = Object.keys(CHECKS);
  const sorted = [...groups].map(([group, members]) => ({
    title: TITLES[group as keyof typeof TITLES],
    members: members.toSorted((a, b) => order.indexOf(a.check) - order.indexOf(b.check)),
  }));
  const sections = sorted.map(({ title, members }) => `${title}\n\n${paragraphs(members)}\n`);
  return [...sections, summary(findings, all)].join('\n');
}

const TITLES = {
  kernel: 'KERNEL',
  hugepages: 'HUGEPAGES',
  limits: 'LIMITS',
  rights: 'RIGHTS OF PORTS',
  device: 'DEVICES',
  cpu: 'CPUS',
  guest: 'GUEST',
  memory: 'MEMORY OF THE GUEST',
  socket: 'SOCKETS',
};

/** An empty line before and behind all that is no good; what is fine takes a line. */
function paragraphs(findings: readonly Finding[]): string {
  return findings.reduce((text, finding, at) => {
    const tight = finding.severity === 'ok' && findings[at - 1]?.severity === 'ok';
    return `${text}${at === 0 ? '' : tight ? '\n' : '\n\n'}${paragraph(finding)}`;
  }, '');
}

const LABELS: Readonly<Record<Severity, string>> = { ok: 'ok', unseen: 'not seen', warning: 'warning', error: 'error' };

function paragraph({ check, severity, what, shows, mend = [] }: Finding): string {
  const lines = fold(`  ${LABELS[severity]}: ${plain(what)} [${check}]`, 4);
  if (shows !== undefined) lines.push(...fold(`    how it shows: ${plain(shows)}`, 6));
  if (mend.length > 0) lines.push('    what mends it:', ...mend.map((one) => `      ${plain(one)}`));
  return lines.join('\n');
}

/** Breaks a line between words. Commands are not broken: they are to be copied. */
function fold(line: string, indent: number): string[] {
  const lines: string[] = [];
  let rest = line;
  while (rest.length > WIDTH) {
    const space = rest.lastIndexOf(' ', WIDTH);
    if (space <= indent) break; // one long word
    lines.push(rest.slice(0, space));
    rest = ' '.repeat(indent) + rest.slice(space + 1);
  }
  return [...lines, rest];
}

/** Control characters, and those that turn the direction of writing, are made visible. */
function plain(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (one) => `\\u{${one.codePointAt(0)?.toString(16)}}`);
}

function summary(findings: readonly Finding[], all: boolean): string {
  const number = (severity: Severity, one: string, more: string) => {
    const n = count(findings, severity);
    return n === 0 ? [] : [`${n} ${n === 1 ? one : more}`];
  };
  const parts = [
    ...number('error', 'error', 'errors'),
    ...number('warning', 'warning', 'warnings'),
    ...number('unseen', 'thing that could not be seen', 'things that could not be seen'),
    ...number('ok', all ? 'fine' : 'fine (--all shows it)', all ? 'fine' : 'fine (--all shows them)'),
  ];
  return `${parts.join(', ')}\n`;
}
