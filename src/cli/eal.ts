/**
 * The options DPDK's environment layer (EAL) takes, so that command lines written for DPDK work here. Only the choice of cores and of
 * devices has a meaning; the rest is accepted and reported as ignored. Whether the CPUs exist is left to the caller.
 */

import type { PortRequest } from '../control/uplinks.ts';
import { ConfigError } from '../errors.ts';
import type { PciRequest } from '../port/pci-interface.ts';
import { parseVdevs } from '../port/vdev.ts';
import {
  allValues,
  FLAG,
  faultOf,
  type Given,
  givenValue,
  hexMask,
  integer,
  type Option,
  spell,
  TEXT,
  type ValueType,
} from './options.ts';

/** An lcore and the CPUs its thread may run on, ascending and at least one. */
export interface LcoreCpus {
  readonly lcore: number;
  readonly cpus: readonly number[];
}

/** Where the threads run: the main thread, which handles no packets, and the polling ones. With one core they are the same. */
export interface Cores {
  readonly main: LcoreCpus;
  readonly workers: readonly LcoreCpus[];
}

/** What the EAL options say. Without core options `cores` is absent, and the caller chooses. */
export interface EalSettings {
  readonly cores?: Cores;
  /** the ports that -p chooses from, by number: first the cards of -a, then the devices of --vdev */
  readonly ports: readonly PortRequest[];
  /** Options without a meaning here, as they were given. */
  readonly ignored: readonly string[];
  readonly notes: readonly string[];
}

/** CPU_SETSIZE of glibc. */
export const MAX_LCORES = 1024;

const ownCpu = (lcore: number): LcoreCpus => ({ lcore, cpus: [lcore] });

const CORE_MASK: ValueType<LcoreCpus[]> = {
  range: hexMask(MAX_LCORES).range,
  parse: (text) => hexMask(MAX_LCORES).parse(text)?.map(ownCpu),
};

const CORE_LIST: ValueType<LcoreCpus[]> = {
  range: `numbers and ranges below ${MAX_LCORES}, for example 0-3,6`,
  parse: (text) => parseNumbers(text)?.map(ownCpu),
};

const CORE_MAP: ValueType<LcoreCpus[]> = {
  range:
    'LCORES[@CPUS] separated by commas; each a number, a range (the lcores not before @) or a group, for example 0@1,(2-3)@(4,6)',
  parse: parseCoreMap,
};

/** Numbers and ranges separated by commas: ascending, each once. */
function parseNumbers(text: string): number[] | undefined {
  const numbers = new Set<number>();
  for (const part of text.split(',')) {
    const range = /^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$/.exec(part);
    if (range === null) return undefined;
    const from = Number(range[1]);
    const to = Number(range[2] ?? from);
    if (Math.max(from, to) >= MAX_LCORES) return undefined;
    for (let n = Math.min(from, to); n <= Math.max(from, to); n++) numbers.add(n);
  }
  return [...numbers].sort((a, b) => a - b);
}

/**
 * DPDK's lcore map. Lcores without `@CPUS` run on the CPUs of the same numbers: those of a group on all of the group's,
 * those of a range each on its own.
 */
function parseCoreMap(text: string): LcoreCpus[] | undefined {
  const item = /\s*(\([^()]*\)|\d[\d\s-]*)(?:@\s*(\([^()]*\)|\d[\d\s-]*))?\s*(,|$)/y;
  const ungroup = (set: string) => parseNumbers(set.replace(/[()]/g, ''));
  const cpusOf = new Map<number, number[]>();
  let separator: string | undefined;
  do {
    const match = item.exec(text);
    if (match === null) return undefined;
    const lcoreSet = match[1];
    const cpuSet: string | undefined = match[2];
    separator = match[3];
    const isRange = /^\d.*-/.test(lcoreSet);
    const lcores = ungroup(lcoreSet);
    const cpus = ungroup(cpuSet ?? lcoreSet);
    if (lcores === undefined || cpus === undefined || (isRange && cpuSet !== undefined)) return undefined;
    for (const lcore of lcores) cpusOf.set(lcore, isRange ? [lcore] : cpus);
  } while (separator === ',');
  return [...cpusOf].map(([lcore, cpus]) => ({ lcore, cpus })).sort((a, b) => a.lcore - b.lcore);
}

/** The EAL options that mean something here. */
export const EAL = {
  coreMask: { short: 'c', value: 'COREMASK', type: CORE_MASK, help: 'cores to run on' },
  coreList: { short: 'l', value: 'CORELIST', type: CORE_LIST, help: 'cores to run on' },
  lcores: { long: 'lcores', value: 'COREMAP', type: CORE_MAP, help: 'lcores to run, and the CPUs of each' },
  mainLcore: {
    long: 'main-lcore',
    value: 'LCORE',
    type: integer(0, MAX_LCORES - 1),
    help: 'lcore of the main thread, which handles no packets; the lowest if left out',
  },
  vdev: {
    long: 'vdev',
    value: 'NAME[,KEY=VALUE]',
    type: TEXT,
    repeats: true,
    help: 'virtual device, such as net_af_packet0,iface=eth1: a port that -p may make the uplink',
  },
  allow: {
    short: 'a',
    long: 'allow',
    value: 'DEVICE',
    type: TEXT,
    repeats: true,
    help: 'network card by its PCI address: a port that -p may make the uplink; not together with -b',
  },
  showVersion: { short: 'v', type: FLAG, help: 'show the version at start' },
} satisfies Record<string, Option>;

const BLOCK = withoutMeaning({ short: 'b', long: 'block', value: 'DEVICE' });

const WITHOUT_MEANING: readonly OptionNames[] = [
  { short: 'd', value: 'LIBRARY' },
  { short: 'm', value: 'MB' },
  { short: 'n', value: 'CHANNELS' },
  { short: 'r', value: 'RANKS' },
  { short: 's', value: 'COREMASK' },
  { short: 'S', value: 'CORELIST' },
  { long: 'base-virtaddr', value: 'ADDRESS' },
  { long: 'create-uio-dev' },
  { long: 'file-prefix', value: 'PREFIX' },
  { long: 'force-max-simd-bitwidth', value: 'BITS' },
  { long: 'huge-dir', value: 'DIR' },
  { long: 'huge-unlink', value: 'WHEN', optionalValue: true },
  { long: 'huge-worker-stack', value: 'SIZE', optionalValue: true },
  { long: 'in-memory' },
  { long: 'iova-mode', value: 'MODE' },
  { long: 'legacy-mem' },
  { long: 'log-level', value: 'LEVEL' },
  { long: 'match-allocations' },
  { long: 'mbuf-pool-ops-name', value: 'NAME' },
  { long: 'no-hpet' },
  { long: 'no-huge' },
  { long: 'no-pci' },
  { long: 'no-shconf' },
  { long: 'no-telemetry' },
  { long: 'proc-type', value: 'TYPE' },
  { long: 'single-file-segments' },
  { long: 'socket-limit', value: 'MB[,MB]' },
  { long: 'socket-mem', value: 'MB[,MB]' },
  { long: 'syslog', value: 'FACILITY' },
  { long: 'telemetry' },
  { long: 'trace', value: 'PATTERN' },
  { long: 'trace-bufsz', value: 'SIZE' },
  { long: 'trace-dir', value: 'DIR' },
  { long: 'trace-mode', value: 'MODE' },
  { long: 'vfio-intr', value: 'MODE' },
  { long: 'vfio-vf-token', value: 'UUID' },
  { long: 'vmware-tsc-map' },
];

/** The EAL options that are accepted and have no meaning here. */
export const EAL_IGNORED: readonly Option[] = [BLOCK, ...WITHOUT_MEANING.map(withoutMeaning)];

type OptionNames = Pick<Option, 'short' | 'long' | 'value' | 'optionalValue'>;

function withoutMeaning(names: OptionNames): Option {
  return { ...names, type: names.optionalValue || names.value === undefined ? FLAG : TEXT, help: '' };
}

/** What the EAL options among `given` say. Throws ConfigError for options that contradict each other. */
export function resolveEal(given: readonly Given[]): EalSettings {
  const blocked = given.find((one) => one.row === BLOCK);
  if (blocked !== undefined && givenValue(given, EAL.allow) !== undefined) {
    throw faultOf(blocked, 'CONFIG_CONFLICT', 'devices are either allowed (-a) or blocked (-b), not both');
  }
  const ignored = given.filter((one) => EAL_IGNORED.includes(one.row)).map(spell);
  const { notes, ...cores } = resolveCores(given);
  const vdevs = parseVdevs(allValues(given, EAL.vdev));
  const ports = [...allValues(given, EAL.allow).map(allowedCard), ...vdevs];
  return { ...cores, ports, ignored, notes: [...notes, ...vdevs.flatMap((vdev) => vdev.notes)] };
}

/** A card as -a names it, leading zeros left out or not; what may follow its address is meant for DPDK's drivers. */
function allowedCard(text: string): PciRequest {
  const form = /^(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])(?:,.*)?$/i;
  const [, domain = '', bus, device, part] = form.exec(text) ?? [];
  if (bus === undefined) {
    const range = 'a PCI address, for example 0000:03:00.0';
    throw new ConfigError('CONFIG_INVALID_VALUE', '--allow', `is none; valid: ${range}`, { value: text, range });
  }
  const address = `${domain.padStart(4, '0')}:${bus.padStart(2, '0')}:${device.padStart(2, '0')}.${part}`;
  return { kind: 'pci', address: address.toLowerCase() };
}

function resolveCores(given: readonly Given[]): { cores?: Cores; notes: string[] } {
  const coreRows: Option[] = [EAL.coreMask, EAL.coreList, EAL.lcores];
  const [chosen, second] = given.filter((one) => coreRows.includes(one.row));
  if (second !== undefined) {
    throw faultOf(second, 'CONFIG_CONFLICT', `only one of -c, -l and --lcores, and ${spell(chosen)} is given`);
  }
  const mainLcore = givenValue(given, EAL.mainLcore);
  if (chosen === undefined) {
    return {
      notes: mainLcore === undefined ? [] : [`--main-lcore ${mainLcore}: no effect without -c, -l or --lcores`],
    };
  }
  const lcores = chosen.value as LcoreCpus[];
  const main = mainLcore === undefined ? lcores[0] : lcores.find(({ lcore }) => lcore === mainLcore);
  if (main === undefined) {
    throw new ConfigError('CONFIG_CONFLICT', '--main-lcore', `not one of the lcores of ${spell(chosen)}`, {
      value: `${mainLcore}`,
    });
  }
  const others = lcores.filter((one) => one !== main);
  return { cores: { main, workers: others.length > 0 ? others : [main] }, notes: [] };
}
