/**
 * What the options of the switch come to: the settings of a switch, and the conflicts between options. Options whose machinery comes
 * with a later version are checked like the others and then refused.
 */
import { normalize } from 'node:path';
import { ConfigError } from '../errors.ts';
import { MAX_RETRY_US } from '../port/rx-retry.ts';
import type { PortVlan, RxRetryConfig, VlanConfig } from '../switch/switch-config.ts';
import { cuseNameOf, hasCuse } from './cuse-settings.ts';
import { allValues, type Given, givenValue, type Option, optionName, spell, valueOrDefault } from './options.ts';
import { SWITCH } from './switch-options.ts';
import { resolveVlan, type SocketWithVlan } from './vlan-options.ts';

/** What the options of the switch say, defaults included. */
export interface SwitchSettings {
  /** Paths of the sockets to listen on, or with `client` to connect to; each once, and at least one unless there is `cuse`. */
  readonly sockets: readonly string[];
  /** Name of the character device to make, without `/dev/`; absent = none. */
  readonly cuse?: string;
  /** Its number; absent = the kernel chooses. */
  readonly cuseNumber?: { readonly major: number; readonly minor: number };
  /** VLANs of the devices of sockets that have some of their own, by path. */
  readonly vlans: ReadonlyMap<string, PortVlan>;
  /** Front ends listen on the sockets. */
  readonly client: boolean;
  /** 0: guests reach each other through an uplink only; 1: the switch forwards between them; 2: the one behind the uplink does. */
  readonly vm2vm: 0 | 1 | 2;
  /** Absent: tags are not looked at. */
  readonly vlan?: VlanConfig;
  /** Absent: frames from the uplink do not wait for room in receive queues. */
  readonly rxRetry?: RxRetryConfig;
  readonly mergeable: boolean;
  readonly txCsum: boolean;
  readonly tso: boolean;
  readonly iommu: boolean;
  readonly ringReset: boolean;
  readonly configSpace: boolean;
  readonly postcopy: boolean;
  /** queue pairs a device */
  readonly queues: number;
  readonly learning: 'dynamic' | 'first';
  readonly poll: 'adaptive' | 'busy';
  /** How long an lcore looks for packets in vain before it sleeps: at most so many µs, and so much of the time that it has worked. */
  readonly spinUs: number;
  readonly spinPercent: number;
  /** Seconds between two looks at how busy the lcores are, 0 = none. */
  readonly rebalanceSeconds: number;
  /** Seconds between two tables of statistics, 0 = none; up to 2^31 - 1, more than a timer holds. */
  readonly statsSeconds: number;
  /** Stop after so many seconds, 0 = never. */
  readonly seconds: number;
  /** Seconds after which an address not seen again is forgotten, 0 = never. */
  readonly macAgeing: number;
  /** Addresses the table holds. */
  readonly macTableSize: number;
  /** Addresses one device may have in the table. */
  readonly macLimit: number;
  /** Permission bits of the sockets. */
  readonly socketMode: number;
  /** Name or number of the sockets' owner; absent = unchanged. */
  readonly socketOwner?: string | number;
  /** Name or number of the sockets' group; absent = unchanged. */
  readonly socketGroup?: string | number;
  readonly maxDevices: number;
  /** The numbers of the ports to use as uplinks. */
  readonly enabledPorts: readonly number[];
}

/** What the options of the switch among `given` say. Throws ConfigError for values that contradict each other. */
export function resolveSwitch(given: readonly Given[]): SwitchSettings {
  const cuse = cuseNameOf(given);
  checkPorts(given);
  checkZeroCopy(given);
  checkClient(given);
  checkOffloads(given);
  checkHardware(given);
  const sockets = socketsOf(given);
  const vlan = resolveVlan({
    // who comes by the device has no VLAN of its own
    sockets: cuse === undefined ? sockets : [...sockets, { path: `/dev/${cuse}`, vlan: undefined }],
    plan: valueOrDefault(given, SWITCH.vlan) === 'auto' ? 'device' : 'none',
    guest: givenValue(given, SWITCH.guestVlan),
    strip: valueOrDefault(given, SWITCH.vlanStrip),
    learning: valueOrDefault(given, SWITCH.learning),
    maxDevices: valueOrDefault(given, SWITCH.maxDevices),
    hasUplink: hasUplink(given),
  });
  const mergeable = valueOrDefault(given, SWITCH.mergeable);
  const txCsum = valueOrDefault(given, SWITCH.txCsum);
  const cuseNumber = givenValue(given, SWITCH.devNumber);
  const owner = givenValue(given, SWITCH.socketOwner);
  const group = givenValue(given, SWITCH.socketGroup);
  return {
    sockets: sockets.map(({ path }) => path),
    ...(cuse === undefined ? {} : { cuse }),
    ...(cuse === undefined || cuseNumber === undefined ? {} : { cuseNumber }),
    vlans: new Map(sockets.flatMap(({ path, vlan: own }) => (own === undefined ? [] : [[path, own]]))),
    client: givenValue(given, SWITCH.client) ?? false,
    vm2vm: valueOrDefault(given, SWITCH.vm2vm) as 0 | 1 | 2,
    ...(vlan === undefined ? {} : { vlan }),
    ...(valueOrDefault(given, SWITCH.rxRetry) ? { rxRetry: retryOf(given) } : {}),
    mergeable,
    txCsum,
    tso: givenValue(given, SWITCH.tso) ?? (mergeable && txCsum),
    iommu: valueOrDefault(given, SWITCH.iommu),
    ringReset: valueOrDefault(given, SWITCH.ringReset),
    configSpace: valueOrDefault(given, SWITCH.configSpace),
    postcopy: valueOrDefault(given, SWITCH.postcopy),
    queues: valueOrDefault(given, SWITCH.queues),
    learning: valueOrDefault(given, SWITCH.learning),
    poll: valueOrDefault(given, SWITCH.poll),
    spinUs: valueOrDefault(given, SWITCH.spinUs),
    spinPercent: valueOrDefault(given, SWITCH.spinPercent),
    rebalanceSeconds: valueOrDefault(given, SWITCH.rebalanceSeconds),
    statsSeconds: valueOrDefault(given, SWITCH.stats),
    seconds: valueOrDefault(given, SWITCH.seconds),
    macAgeing: valueOrDefault(given, SWITCH.macAgeing),
    macTableSize: valueOrDefault(given, SWITCH.macTableSize),
    macLimit: valueOrDefault(given, SWITCH.macLimit),
    socketMode: valueOrDefault(given, SWITCH.socketMode),
    ...(owner === undefined ? {} : { socketOwner: owner }),
    ...(group === undefined ? {} : { socketGroup: group }),
    maxDevices: valueOrDefault(given, SWITCH.maxDevices),
    enabledPorts: givenValue(given, SWITCH.portMask) ?? [],
  };
}

function checkPorts(given: readonly Given[]): void {
  const ports = givenValue(given, SWITCH.portMask);
  if (ports !== undefined && ports.length > 1) {
    const problem = `${ports.length} ports are enabled, but only 1 port can be enabled`;
    throw new ConfigError('CONFIG_INVALID_VALUE', '-p', problem, { range: 'one port' });
  }
}

/** There is a port that leads out. */
function hasUplink(given: readonly Given[]): boolean {
  return givenValue(given, SWITCH.portMask) !== undefined;
}

function retryOf(given: readonly Given[]): RxRetryConfig {
  return { num: valueOrDefault(given, SWITCH.rxRetryNum), delayUs: valueOrDefault(given, SWITCH.rxRetryDelay) };
}

/** What the user should know of options that do less than they seem to: without an uplink, or because a wait is bounded. */
export function uplinkNotes(given: readonly Given[]): string[] {
  const rows: Option[] = [SWITCH.vlan, SWITCH.vlanStrip, SWITCH.rxRetry, SWITCH.rxRetryNum, SWITCH.rxRetryDelay];
  const counting = given.filter(
    (one) => rows.includes(one.row) && one === given.findLast(({ row }) => row === one.row),
  );
  if (!hasUplink(given)) return counting.map((one) => `${spell(one)}: no effect without an uplink`);
  const { num, delayUs } = retryOf(given);
  const asked = counting.find(({ row }) => row === SWITCH.rxRetryNum || row === SWITCH.rxRetryDelay);
  if (asked === undefined || num * delayUs <= MAX_RETRY_US || !valueOrDefault(given, SWITCH.rxRetry)) return [];
  return [`${spell(asked)}: a burst waits ${MAX_RETRY_US} µs at most, since all other guests wait meanwhile`];
}

function checkHardware(given: readonly Given[]): void {
  if (valueOrDefault(given, SWITCH.vm2vm) !== 2 || hasUplink(given)) return;
  const problem =
    'hardware switching needs an uplink; name one with --vdev and choose it with -p, or use --vm2vm 1 (software) or --vm2vm 0 (off)';
  throw new ConfigError('CONFIG_CONFLICT', '--vm2vm', problem, { value: '2' });
}

function checkOffloads(given: readonly Given[]): void {
  if (givenValue(given, SWITCH.tso) !== true || valueOrDefault(given, SWITCH.txCsum)) return;
  const problem = 'not without checksums left to who receives; use --tx-csum 1';
  throw new ConfigError('CONFIG_CONFLICT', '--tso', problem, { value: '1' });
}

function checkZeroCopy(given: readonly Given[]): void {
  if (!valueOrDefault(given, SWITCH.zeroCopy)) return;
  if (valueOrDefault(given, SWITCH.vm2vm) === 1) {
    const problem = 'not with software switching between guests; use --vm2vm 2 (hardware) or --vm2vm 0 (off)';
    throw new ConfigError('CONFIG_CONFLICT', '--zero-copy', problem, { value: '1' });
  }
  if (valueOrDefault(given, SWITCH.mergeable)) {
    const problem = 'not with jumbo frames; use --mergeable 0';
    throw new ConfigError('CONFIG_CONFLICT', '--zero-copy', problem, { value: '1' });
  }
}

/** A client has no socket of its own to name or to give away, and one device for each that it connects to. */
function checkClient(given: readonly Given[]): void {
  if (givenValue(given, SWITCH.client) === undefined) return;
  const own = [SWITCH.devBasename, SWITCH.socketMode, SWITCH.socketOwner, SWITCH.socketGroup] as const;
  // they are the character device's then
  for (const row of hasCuse(given) ? [] : own) {
    if (givenValue<unknown>(given, row) === undefined) continue;
    const problem = 'not with --client, which creates no socket; it connects to those of --socket-file';
    throw new ConfigError('CONFIG_CONFLICT', optionName(row), problem);
  }
  const count = allValues(given, SWITCH.socketFile).length;
  if (count === 0) {
    const problem = 'needs a socket to connect to; give --socket-file, once for each guest';
    throw new ConfigError('CONFIG_CONFLICT', '--client', problem);
  }
  const max = valueOrDefault(given, SWITCH.maxDevices);
  if (count <= max) return;
  const problem = `${count} sockets with a device each, but --max-devices ${max}; raise it, or connect to fewer`;
  throw new ConfigError('CONFIG_CONFLICT', '--client', problem);
}

function socketsOf(given: readonly Given[]): SocketWithVlan[] {
  const files = allValues(given, SWITCH.socketFile);
  const client = givenValue(given, SWITCH.client) !== undefined;
  if (valueOrDefault(given, SWITCH.vhost) === 'cuse') return [];
  const basename = givenValue(given, SWITCH.devBasename);
  const sockets = [...files];
  if (!client && (basename !== undefined || files.length === 0))
    sockets.unshift({ path: valueOrDefault(given, SWITCH.devBasename), vlan: undefined });
  sockets.forEach(({ path }, at) => {
    const twice = sockets.findIndex((other) => normalize(other.path) === normalize(path)) !== at;
    if (twice) throw new ConfigError('CONFIG_CONFLICT', '--socket-file', `the socket ${path} is given twice`);
  });
  return sockets;
}
