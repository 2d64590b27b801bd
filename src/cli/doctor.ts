/**
 * `vhost-switch doctor`: looks at the machine, a guest and a socket, and says what is wrong and what mends it.
 * Exit status: 0 nothing stands in the way, 1 something does, 2 wrong usage.
 */
import { examine } from '../doctor/doctor.ts';
import { isHealthy, jsonReport, textReport } from '../doctor/report.ts';
import { PORT_KINDS, type PortKind } from '../doctor/rights.ts';
import { MachineSource } from '../doctor/source.ts';
import { ConfigError } from '../errors.ts';
import { EAL, resolveEal } from './eal.ts';
import {
  allValues,
  choice,
  FLAG,
  formatHelp,
  givenValue,
  integer,
  type Option,
  parseOptions,
  TEXT,
} from './options.ts';
import { runCommand } from './run-command.ts';
import { SOCKET_PATH } from './vlan-options.ts';

/** The largest number a process can have. */
const MAX_PID = 4194304;

const DOCTOR = {
  qemu: { long: 'qemu', value: 'PID', type: integer(1, MAX_PID), help: 'look at the guest of this QEMU process' },
  domain: { long: 'domain', value: 'NAME', type: TEXT, help: 'look at the guest of this running domain of libvirt' },
  socket: {
    long: 'socket',
    value: 'PATH',
    type: SOCKET_PATH,
    repeats: true,
    help: 'look at this vhost-user socket; those of the guest are looked at anyway',
  },
  port: {
    long: 'port',
    value: 'KIND',
    type: choice(...PORT_KINDS),
    repeats: true,
    help: 'this kind of port must work: what it lacks is an error, and other kinds are not looked at',
  },
  coreMask: EAL.coreMask,
  coreList: EAL.coreList,
  lcores: EAL.lcores,
  all: { long: 'all', type: FLAG, help: 'show what is fine, too' },
  json: { long: 'json', type: FLAG, help: 'print everything as JSON' },
  help: { short: 'h', long: 'help', type: FLAG, help: 'show this help and exit' },
} satisfies Record<string, Option>;

/** What the words behind `doctor` say. */
export interface DoctorSettings {
  readonly help: boolean;
  readonly version: false;
  readonly showVersion: false;
  readonly qemu?: number;
  readonly domain?: string;
  readonly sockets: readonly string[];
  readonly ports: readonly PortKind[];
  /** CPUs */
  readonly lcores: readonly number[];
  readonly all: boolean;
  readonly json: boolean;
}

/** Reads the words behind `doctor`. Throws ConfigError. */
export function parseDoctor(argv: readonly string[]): DoctorSettings {
  const { given, words } = parseOptions(Object.values(DOCTOR), argv);
  if (words.length > 0) throw new ConfigError('CONFIG_UNEXPECTED_WORD', words[0], 'belongs to no option');
  const qemu = givenValue(given, DOCTOR.qemu);
  const domain = givenValue(given, DOCTOR.domain);
  if (qemu !== undefined && domain !== undefined)
    throw new ConfigError('CONFIG_CONFLICT', '--domain', 'not together with --qemu: one guest at a time');
  const workers = resolveEal(given).cores?.workers ?? [];
  return {
    help: givenValue(given, DOCTOR.help) ?? false,
    version: false,
    showVersion: false,
    ...(qemu === undefined ? {} : { qemu }),
    ...(domain === undefined ? {} : { domain }),
    sockets: allValues(given, DOCTOR.socket),
    ports: allValues(given, DOCTOR.port),
    lcores: [...new Set(workers.flatMap(({ cpus }) => cpus))],
    all: givenValue(given, DOCTOR.all) ?? false,
    json: givenValue(given, DOCTOR.json) ?? false,
  };
}

/** The help: at most 100 columns, with a final newline. */
export function doctorHelp(): string {
  return `usage: vhost-switch doctor [options]

Looks at this machine, and if one is named at a guest and its sockets: what is wrong, how it shows,
and what mends it. Changes nothing, and needs no root; what this user may not see is said.

${formatHelp(Object.values(DOCTOR))}

Of -c, -l and --lcores only one: the cores the switch runs on, as it is told them. Without, those of
the switch that listens on the socket.

Exit status: 0 healthy, warnings or not; 1 errors found; 2 wrong usage.
`;
}

/** Does what the words behind `doctor` say. Sets the exit status. */
export function runDoctor(argv: readonly string[]): Promise<void> {
  const run = async ({ all, json, ...wanted }: DoctorSettings) => {
    const findings = await examine(new MachineSource(), wanted);
    process.stdout.write(json ? jsonReport(findings) : textReport(findings, all));
    process.exitCode = isHealthy(findings) ? 0 : 1;
  };
  return runCommand({ name: 'vhost-switch doctor', help: doctorHelp, parse: parseDoctor, run }, argv);
}
