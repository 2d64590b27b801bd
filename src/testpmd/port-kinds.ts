/**
 * The kinds of ports that testpmd has: how each is opened on the main thread, and what a forwarding thread makes of it.
 */
import type { WindowHandle, WindowPool, WindowViews } from '../mem/window.ts';
import type { DevicePort, DeviceTools, OpenedDevice } from '../port/device-port.ts';
import { createDevice, type DeviceRecipe, openDevice } from '../port/devices.ts';
import type { Vdev, VdevOf } from '../port/vdev.ts';
import { virtioUserArgs } from '../port/virtio-user-args.ts';
import { VirtioUserDevice } from '../port/virtio-user-device.ts';

/** A port as the engine has it. */
export interface TestPort extends OpenedDevice<unknown> {
  /** receive and transmit queues that it has */
  readonly queues?: number;
  /** descriptors of each */
  readonly queueSize?: number;
  /** Uses its first `n` queues, while no thread has a port of it; 0: none, the port is stopped. */
  usePairs?(n: number): Promise<void>;
  /** Frames of more bytes behind the Ethernet header, and a tag, are not sent; up to `maxMtu`. Of ports made from then on. */
  setMtu?(mtu: number): void;
  readonly maxMtu?: number;
  /** The thread that had a port made from `spec` has gone without closing it. */
  abandoned?(spec: unknown): void;
}

/** What opening a port takes. */
export interface OpenTools {
  readonly pool: WindowPool;
  /** Hears what there is to wait for. */
  readonly onWait: (text: string) => void;
  /** Ends the waiting: opening is given up. */
  readonly signal?: AbortSignal | undefined;
}

/** What making a port takes beside what all ports of a thread share. */
export interface MakeTools extends DeviceTools {
  addWindow(window: WindowHandle): WindowViews;
}

type Open<Kind extends Vdev['kind']> = (vdev: VdevOf<Kind>, tools: OpenTools) => Promise<TestPort>;

/** Kinds of which testpmd uses more than a switch does of an uplink. */
const OPEN: { readonly [Kind in Vdev['kind']]?: Open<Kind> } = {
  net_virtio_user: (vdev, tools) => VirtioUserDevice.open(virtioUserArgs(vdev), tools),
};

/** Throws ConfigError for a kind that there is not, and what the kind's own opening throws. */
export async function openPort(vdev: Vdev, tools: OpenTools): Promise<TestPort> {
  const open = OPEN[vdev.kind] as Open<Vdev['kind']> | undefined;
  if (open !== undefined) return open(vdev, tools);
  // a port has one queue pair here, and so one lcore
  return (await openDevice(vdev, { pool: tools.pool, lcores: 1 })).opened;
}

/** On the thread that uses the port. */
export function makePort(
  kind: Vdev['kind'],
  id: number,
  counters: Float64Array,
  tools: MakeTools,
  spec: unknown,
): DevicePort {
  const recipe = { kind, spec } as DeviceRecipe;
  for (const window of recipe.spec.windows) tools.addWindow(window);
  return createDevice(id, counters, recipe, tools);
}
