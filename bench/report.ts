/** Medians, the table that people read, and what is known of the machine. */
import { cpus, release, totalmem } from 'node:os';

/** What one peer did under one load, a value a round. */
export interface PeerResult {
  /** frames received, both directions together, millions a second */
  mpps: number[];
  lossPercent: number[];
  /** How often the generator lost its core; more than a few: the round was disturbed. */
  preempted: number[];
  /** How often the generator looked in vain; close to none: it was the limit, not the switch. */
  waitPercent: number[];
  /** Why rounds have no values. */
  failures: string[];
}

/** One load and what each peer, by its key, did under it. */
export interface LoadResult {
  /** the ring path, where there are several */
  path?: string;
  size: number;
  touch: boolean;
  peers: Record<string, PeerResult>;
}

/** The middle value; NaN if there is none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export interface Machine {
  cpu: string;
  cpus: number;
  memoryGiB: number;
  kernel: string;
  node: string;
}

export function thisMachine(): Machine {
  const all = cpus();
  return {
    cpu: all[0]?.model ?? 'unknown',
    cpus: all.length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
  };
}

export const figure = (value: number, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : '–');

/**
 * A Markdown table: one line a load, medians in Mpps with the lowest and the highest value, and how many times the peer's rate ours
 * is: by the medians, and in parentheses by the highest values, which a machine with busy neighbours disturbs least.
 */
export function loadTable(loads: readonly LoadResult[], keys: readonly string[], own: string): string {
  const others = keys.includes(own) ? keys.filter((key) => key !== own) : [];
  const rows = [['load', ...keys, ...others.map((key) => `${own}/${key}`)]];
  for (const { path, size, touch, peers } of loads) {
    const rate = (key: string) => median(peers[key].mpps);
    const best = (key: string) => Math.max(...peers[key].mpps);
    const spread = (key: string) => {
      const { mpps } = peers[key];
      return mpps.length < 2 ? '' : ` (${figure(Math.min(...mpps), 1)}–${figure(Math.max(...mpps), 1)})`;
    };
    rows.push([
      loadName(size, touch, path),
      ...keys.map((key) => figure(rate(key)) + spread(key)),
      ...others.map((key) => `${figure(rate(own) / rate(key))} × (${figure(best(own) / best(key))})`),
    ]);
  }
  return table(rows);
}

export const loadName = (size: number, touch: boolean, path?: string) =>
  `${path === undefined ? '' : `${path}, `}${size} B ${touch ? 'touched' : 'untouched'}`;

/** A Markdown table; the first row is the heading. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const line = (row: readonly string[]) => `| ${row.map((cell, i) => cell.padEnd(widths[i])).join(' | ')} |`;
  const rule = `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`;
  return [line(rows[0]), rule, ...rows.slice(1).map(line)].join('\n');
}
