/**
 * The VLANs that options name: those of a socket's devices, and what becomes of all together.
 */
import { ConfigError } from '../errors.ts';
import { FIRST_DEVICE_TAG, type PortVlan, type VlanConfig } from '../switch/switch-config.ts';
import type { ValueType } from './options.ts';

/** sun_path of sockaddr_un, less the final zero. */
const MAX_SOCKET_PATH = 107;
const MAX_VID = 4094;

/** A socket, and the VLANs of its devices if they have some of their own. */
export interface SocketWithVlan {
  readonly path: string;
  readonly vlan: PortVlan | undefined;
}

export const SOCKET_PATH: ValueType<string> = {
  range: `a path of 1 to ${MAX_SOCKET_PATH} bytes`,
  parse: (text) => {
    const length = Buffer.byteLength(text);
    return length >= 1 && length <= MAX_SOCKET_PATH ? text : undefined;
  },
};

/** `PATH`, `PATH,vlan=VID` or `PATH,trunk=VIDS` with `,native=VID`. A comma without one of these behind it is the path's own. */
export const SOCKET_WITH_VLAN: ValueType<SocketWithVlan> = {
  range: `${SOCKET_PATH.range}; VID 1..${MAX_VID}; VIDS such as 10-20+30`,
  parse: (text) => {
    const [, named, rest] = /^(.*?)((?:,(?:vlan|trunk|native)=[^,]*)*)$/s.exec(text)!;
    const path = SOCKET_PATH.parse(named);
    if (path === undefined || rest === '') return path === undefined ? undefined : { path, vlan: undefined };
    const pairs = rest
      .slice(1)
      .split(',')
      .map((pair) => pair.split('=') as [string, string]);
    const values = new Map(pairs);
    const vlan = values.size === pairs.length ? portVlan(values) : undefined;
    return vlan && { path, vlan };
  },
};

function portVlan(values: ReadonlyMap<string, string>): PortVlan | undefined {
  const [access, trunk, native] = ['vlan', 'trunk', 'native'].map((key) => values.get(key));
  if (access !== undefined) {
    const vid = parseVid(access);
    return vid === undefined || values.size > 1 ? undefined : { access: vid };
  }
  const list = trunk === undefined ? undefined : parseVids(trunk);
  if (list === undefined) return undefined;
  if (native === undefined) return { trunk: list };
  const vid = parseVid(native);
  return vid === undefined ? undefined : { trunk: list, native: vid };
}

function parseVid(text: string): number | undefined {
  const vid = Number(text);
  return /^\d+$/.test(text) && vid >= 1 && vid <= MAX_VID ? vid : undefined;
}

/** Numbers and ranges with + between them: ascending, each once. */
function parseVids(text: string): number[] | undefined {
  const vids = new Set<number>();
  for (const part of text.split('+')) {
    const ends = part.split('-').map(parseVid);
    const [from] = ends;
    const to = ends.at(-1);
    if (ends.length > 2 || from === undefined || to === undefined || from > to) return undefined;
    for (let vid = from; vid <= to; vid++) vids.add(vid);
  }
  return [...vids].sort((a, b) => a - b);
}

/** What options say that bears on VLANs. */
interface VlanOptions extends Pick<VlanConfig, 'plan' | 'strip'> {
  readonly sockets: readonly SocketWithVlan[];
  /** undefined: not given */
  readonly guest: VlanConfig['guest'] | undefined;
  readonly learning: 'dynamic' | 'first';
  readonly maxDevices: number;
  readonly hasUplink: boolean;
}

/** The VLANs of the switch, or undefined if it need not look at tags. Throws ConfigError for what contradicts itself. */
export function resolveVlan(options: VlanOptions): VlanConfig | undefined {
  const { sockets, plan, guest, strip, learning, hasUplink } = options;
  checkDeviceTags(options);
  if (learning === 'first' && sockets.some(({ vlan }) => vlan !== undefined && 'trunk' in vlan))
    fail('--socket-file', 'a guest in several VLANs uses several addresses; not with --learning first');
  const planned = sockets.some(({ vlan }) => vlan === undefined);
  if (guest === 'qinq' && plan === 'none' && planned)
    fail('--guest-vlan', 'there must be a tag to put around; use --vlan auto, or give every socket a VLAN', 'qinq');
  const looks =
    guest !== undefined || sockets.some(({ vlan }) => vlan !== undefined) || (plan === 'device' && hasUplink);
  return looks ? { plan, guest: guest ?? 'drop', strip } : undefined;
}

/** No socket's VLAN may be the tag that a device without one has. */
function checkDeviceTags({ sockets, plan, maxDevices, hasUplink }: VlanOptions): void {
  if (plan === 'none' || !hasUplink || sockets.every(({ vlan }) => vlan !== undefined)) return;
  const last = FIRST_DEVICE_TAG + maxDevices - 1;
  for (const { path, vlan } of sockets) {
    const vids = vlan === undefined ? [] : 'access' in vlan ? [vlan.access] : [...vlan.trunk, vlan.native ?? 0];
    const taken = vids.find((vid) => vid >= FIRST_DEVICE_TAG && vid <= last);
    if (taken === undefined) continue;
    const tags = `${FIRST_DEVICE_TAG} to ${last} are the tags of devices that have none by their socket`;
    fail(
      '--socket-file',
      `VLAN ${taken} of ${path}: ${tags}; choose another, use --vlan off, or give every socket a VLAN`,
    );
  }
}

function fail(option: string, problem: string, value?: string): never {
  throw new ConfigError('CONFIG_CONFLICT', option, problem, value === undefined ? {} : { value });
}
