/**
 * What the verifier has counted, as text.
 */
import type { FlowCounter, VerifierCounters } from './flow-verifier.ts';
import type { LatencyHistogram, LatencyRow } from './latency-histogram.ts';

/** Flows with faults that are shown one by one. */
const SHOWN_FLOWS = 10;
const BAR = 40;

const FAULTS = ['lost', 'reordered', 'duplicated', 'late', 'damaged'] as const satisfies FlowCounter[];
const NAMES: Readonly<Record<(typeof FAULTS)[number], string>> = {
  lost: 'lost',
  reordered: 'out of order',
  duplicated: 'duplicated',
  late: 'too late to tell',
  damaged: 'damaged',
};

/** ns as a time of three or four digits with its unit. */
export function shortTime(ns: number): string {
  if (ns < 1000) return `${Math.round(ns)} ns`;
  const [unit, factor] = ns < 1e6 ? ['us', 1e3] : ns < 1e9 ? ['ms', 1e6] : ['s', 1e9];
  const value = ns / (factor as number);
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
}

function percent(part: number, whole: number): string {
  return part === 0 ? '' : ` (${((100 * part) / whole).toPrecision(3)} %)`;
}

/** Lines about all flows, then those with faults, then latency. @param sent packets that were sent, where that is known */
export function trafficReport(counters: VerifierCounters, sent?: number): string[] {
  const total = Object.fromEntries(FAULTS.map((name) => [name, counters.total(name)])) as Record<FlowCounter, number>;
  const received = counters.total('received');
  const all = received + total.lost;
  const faults = FAULTS.map(
    (name) => `${NAMES[name]} ${total[name]}${name === 'lost' ? percent(total.lost, all) : ''}`,
  );
  const lines = [`verified: ${received} packets, ${counters.total('bytes')} bytes`, `  ${faults.join(', ')}`];
  if (sent !== undefined)
    lines.push(`  sent ${sent}, missing at the end ${sent - received}${percent(sent - received, sent)}`);
  if (counters.foreign + counters.unknownFlow > 0)
    lines.push(`  not ours ${counters.foreign}, ours of a flow that is not expected ${counters.unknownFlow}`);
  return [...lines, ...faultyFlows(counters), ...latencyReport(counters.latency)];
}

function faultyFlows(counters: VerifierCounters): string[] {
  const lines: string[] = [];
  let more = 0;
  for (let flow = 0; flow < counters.flows; flow++) {
    const faults = FAULTS.filter((name) => counters.of(flow, name) > 0);
    if (faults.length === 0) continue;
    if (lines.length === SHOWN_FLOWS) more++;
    else {
      const counts = faults.map((name) => `${NAMES[name]} ${counters.of(flow, name)}`).join(', ');
      lines.push(`  flow ${flow}: received ${counters.of(flow, 'received')}, ${counts}`);
    }
  }
  return more === 0 ? lines : [...lines, `  and ${more} more flows with faults`];
}

/** Latency in figures and as a histogram; nothing where there is none. */
export function latencyReport(latency: LatencyHistogram): string[] {
  const lines = latency.impossible === 0 ? [] : [`  ${latency.impossible} packets seem to come from the future`];
  if (latency.count === 0) return lines;
  const at = (p: number) => `p${p} ${shortTime(latency.percentile(p))}`;
  const figures = [`min ${shortTime(latency.min)}`, `mean ${shortTime(latency.mean)}`, at(50), at(99), at(99.9)];
  const rows = latency.rows();
  const most = Math.max(...rows.map(({ count }) => count));
  const bar = ({ count }: LatencyRow) => '#'.repeat(Math.ceil((BAR * count) / most)).padEnd(BAR);
  const span = ({ from, to }: LatencyRow) =>
    `${shortTime(from).padStart(8)} - ${Number.isFinite(to) ? shortTime(to).padStart(8) : '    more'}`;
  return [
    ...lines,
    `latency: ${figures.join(', ')}, max ${shortTime(latency.max)}`,
    ...rows.map((row) => `  ${span(row)} ${bar(row)} ${row.count}`),
  ];
}
