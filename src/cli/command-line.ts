/**
 * The command line of vhost-switch, `[EAL options] -- [application options]`, resolved to plain values, and its help.
 * Nothing here touches files, sockets or CPUs.
 */
import { type PortRequest, portName } from '../control/uplinks.ts';
import { ConfigError } from '../errors.ts';
import { cuseNotes } from './cuse-settings.ts';
import { EAL, EAL_IGNORED, type EalSettings, resolveEal } from './eal.ts';
import { FLAG, fold, formatHelp, givenValue, notesOn, type Option, optionName, refuseLater } from './options.ts';
import { SWITCH } from './switch-options.ts';
import { resolveSwitch, type SwitchSettings, uplinkNotes } from './switch-settings.ts';
import { takeApart } from './two-sides.ts';

/** Everything a command line says. With `help` or `version` the other values are the defaults. */
export interface CommandLine extends EalSettings, SwitchSettings {
  /** Print the help and exit. */
  readonly help: boolean;
  /** Print the version and exit. */
  readonly version: boolean;
  /** Print the version at start. */
  readonly showVersion: boolean;
}

const COMMON = {
  help: { short: 'h', long: 'help', type: FLAG, help: 'show this help and exit' },
  version: { long: 'version', type: FLAG, help: 'show the version and exit' },
} satisfies Record<string, Option>;

const COMMON_ROWS: readonly Option[] = Object.values(COMMON);
const EAL_ROWS: readonly Option[] = [...Object.values(EAL), ...EAL_IGNORED];
const SWITCH_ROWS: readonly Option[] = Object.values(SWITCH);

/**
 * Reads the arguments after the program's name. With `--`, what is left of the first one are EAL options and what is right of it
 * options of the switch; without, both kinds may be mixed. A value `--` can be given as `--name=--` only.
 * Throws ConfigError: unknown options and invalid values first, then contradictions, then options of later versions.
 */
export function parseCommandLine(argv: readonly string[]): CommandLine {
  const { given, words } = takeApart(argv, { common: COMMON_ROWS, eal: EAL_ROWS, app: SWITCH_ROWS });
  const help = givenValue(given, COMMON.help) ?? false;
  const version = givenValue(given, COMMON.version) ?? false;
  if (help || version) return { ...parseCommandLine([]), help, version };
  const eal = resolveEal(given);
  const app = resolveSwitch(given);
  checkEnabled(app.enabledPorts, eal.ports.length);
  refuseLater(given);
  return {
    help,
    version,
    showVersion: givenValue(given, EAL.showVersion) ?? false,
    ...eal,
    ...app,
    ignored: [...eal.ignored, ...words],
    notes: [
      ...eal.notes,
      ...uplinkNotes(given),
      ...cuseNotes(given),
      ...notesOn(given),
      ...unusedPorts(eal.ports, app.enabledPorts),
    ],
  };
}

/** -p may only choose from the ports that there are. */
function checkEnabled(enabled: readonly number[], ports: number): void {
  const wrong = enabled.find((port) => port >= ports);
  if (wrong === undefined) return;
  const count = ports === 0 ? 'there is no port; name one with --vdev or -a' : `the last port is ${ports - 1}`;
  throw new ConfigError('CONFIG_INVALID_VALUE', '-p', `enables port ${wrong}, but ${count}`);
}

function unusedPorts(ports: readonly PortRequest[], enabled: readonly number[]): string[] {
  return ports.flatMap((request, port) =>
    enabled.includes(port)
      ? []
      : [`${portName(request)} is not used: -p 0x${(2 ** port).toString(16)} makes it the uplink`],
  );
}

/** The help of vhost-switch: at most 100 columns, with a final newline. */
export function helpText(): string {
  const ignoredNames = EAL_IGNORED.map(optionName).join(', ');
  return `usage: vhost-switch [EAL options] -- [application options]
       vhost-switch [options of both kinds]
       vhost-switch doctor [options], which says what is in the way: vhost-switch doctor --help

Switches Ethernet packets between virtual machines that connect to its vhost-user sockets, or open
its character device.

${formatHelp(COMMON_ROWS)}

EAL options, as in DPDK; of -c, -l and --lcores only one:
${formatHelp(Object.values(EAL))}

Accepted for DPDK's sake, without meaning here:
${fold(`  ${ignoredNames}`, 2)}

Application options:
${formatHelp(SWITCH_ROWS)}

Long options may be shortened as long as they stay unique, and take their value as --name VALUE or
--name=VALUE. Options marked "later version" are checked and refused.
`;
}
