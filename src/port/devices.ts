/**
 * The kinds of ports beside the guests', by the names that --vdev gives them: how one is opened on the main thread, and how a thread
 * makes its port of what has been opened.
 */
import { ConfigError } from '../errors.ts';
import { openAfPacket } from './af-packet.ts';
import { AfPacketPort, type AfPacketSpec } from './af-packet-port.ts';
import { openAfXdp } from './af-xdp.ts';
import { AfXdpPort, type AfXdpSpec } from './af-xdp-port.ts';
import type { DeviceOpening, DevicePort, DeviceSpec, DeviceTools, OpenedDevice } from './device-port.ts';
import { NullPort, type NullSpec, openNull } from './null-port.ts';
import { openPcap } from './pcap-files.ts';
import { livePort } from './pcap-interface.ts';
import { PcapPort, type PcapSpec } from './pcap-port.ts';
import { openRing, RingPort, type RingSpec } from './ring-port.ts';
import { openTapDevice } from './tap.ts';
import { TapPort, type TapSpec } from './tap-port.ts';
import type { VirtioUserSpec } from './user-pair.ts';
import type { Vdev, VdevOf } from './vdev.ts';
import { virtioUserArgs } from './virtio-user-args.ts';
import { VirtioUserDevice } from './virtio-user-device.ts';
import { VirtioUserPort } from './virtio-user-port.ts';

interface Kind<K extends Vdev['kind'], Spec extends DeviceSpec> {
  open(vdev: VdevOf<K>, opening: DeviceOpening): OpenedDevice<Spec> | Promise<OpenedDevice<Spec>>;
  create(id: number, counters: Float64Array, spec: Spec, tools: DeviceTools): DevicePort;
  /** what it is made of may go, and come again under the same name */
  readonly comesBack: boolean;
}

const kind = <K extends Vdev['kind'], Spec extends DeviceSpec>(
  open: Kind<K, Spec>['open'],
  create: Kind<K, Spec>['create'],
  comesBack = false,
): Kind<K, Spec> => ({ open, create, comesBack });

const KINDS = {
  net_null: kind<'net_null', NullSpec>(openNull, (...args) => new NullPort(...args)),
  net_ring: kind<'net_ring', RingSpec>(openRing, (...args) => new RingPort(...args)),
  net_pcap: kind<'net_pcap', PcapSpec>(openPcap, (...args) => new PcapPort(...args)),
  net_af_packet: kind<'net_af_packet', AfPacketSpec>(openAfPacket, (...args) => new AfPacketPort(...args), true),
  net_af_xdp: kind<'net_af_xdp', AfXdpSpec>(
    (vdev, opening) => openAfXdp(vdev, opening),
    (...args) => new AfXdpPort(...args),
    true,
  ),
  net_tap: kind<'net_tap', TapSpec>(openTapDevice, (...args) => new TapPort(...args)),
  net_virtio_user: kind<'net_virtio_user', VirtioUserSpec>(openVirtioUser, (...args) => new VirtioUserPort(...args)),
};

/** As an uplink: a back end must be there when the switch starts, and each lcore has a queue pair at least. */
function openVirtioUser(vdev: VdevOf<'net_virtio_user'>, { pool, lcores }: DeviceOpening): Promise<VirtioUserDevice> {
  const args = virtioUserArgs(vdev);
  const fault = (key: string, problem: string) =>
    new ConfigError('CONFIG_CONFLICT', '--vdev', `${vdev.name}: ${problem}`, { value: key });
  if (args.server) throw fault('server=1', 'a switch does not wait for what is behind its uplink; leave server=1 out');
  if (args.queues < lcores) throw fault(`queues=${args.queues}`, `${lcores} lcores use it; give it queues=${lcores}`);
  return VirtioUserDevice.open(args, { pool });
}

/** A port of any kind as lcores are told of it; survives postMessage. */
export interface DeviceRecipe {
  readonly kind: Vdev['kind'];
  readonly spec: DeviceSpec;
}

/** A port of any kind that has been opened. */
export interface UplinkDevice {
  readonly opened: OpenedDevice;
  /** For one of `lcores` lcores. */
  recipe(lcore: number, lcores: number): DeviceRecipe;
}

/** True if an interface that was removed is to be looked for again. */
export const comesBack = (vdev: Vdev): boolean => KINDS[livePort(vdev).kind].comesBack;

/** Opens a port. Rejects with ConfigError, SwitchError (UPLINK_…) or SysError, and nothing is left open then. */
export async function openDevice(vdev: Vdev, opening: DeviceOpening): Promise<UplinkDevice> {
  const port = livePort(vdev);
  const opened = await (KINDS[port.kind] as Kind<never, DeviceSpec>).open(port as never, opening);
  return { opened, recipe: (lcore, lcores) => ({ kind: port.kind, spec: opened.spec(lcore, lcores) }) };
}

/** Makes a thread's port number `id`, which counts into `counters` (PORT_SLOTS). The thread knows the windows of the recipe. */
export function createDevice(id: number, counters: Float64Array, recipe: DeviceRecipe, tools: DeviceTools): DevicePort {
  return (KINDS[recipe.kind] as Kind<never, never>).create(id, counters, recipe.spec as never, tools);
}
