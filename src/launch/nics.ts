/**
 * The network cards of a QEMU command line, in whichever of its three ways they are written, and the networks behind them.
 * @see QEMU docs/system/devices/net.rst, qemu-options.hx "Network options"
 */
import type { Draft } from './draft.ts';
import { mergedValue } from './qemu-line.ts';

/** How a card is written: `-device`, `-nic`, or `-net nic`, which shares a hub with other `-net`. */
export type NicForm = 'device' | 'nic' | 'net';

/** A network card. */
export interface Nic {
  readonly form: NicForm;
  /** number of its option */
  readonly at: number;
  /** as written, or what QEMU takes when nothing is; empty where that is not known, and not virtio */
  readonly model: string;
  readonly isVirtio: boolean;
  /** id of its `-netdev`; undefined for a card without, and for one whose network is in the same option or on the hub */
  readonly netdev: string | undefined;
}

const VIRTIO_DEVICE = /^virtio-net(-(pci|ccw|device))?((-non)?-transitional)?$/;
const isVirtioModel = (model: string) => model === 'virtio' || VIRTIO_DEVICE.test(model);

/** All cards, in the order of the command line. */
export function findNics(draft: Draft): Nic[] {
  return draft.line.flatMap(({ name }, at): Nic[] => {
    if (name !== 'device' && name !== 'nic' && name !== 'net') return [];
    const value = draft.value(at);
    if (name === 'device') {
      const model = value.get('driver') ?? '';
      const netdev = value.get('netdev');
      const isVirtio = VIRTIO_DEVICE.test(model);
      return isVirtio || netdev !== undefined ? [{ form: name, at, model, isVirtio, netdev }] : [];
    }
    const type = value.get('type');
    if (type === 'none' || (name === 'net' && type !== 'nic')) return [];
    const model = value.get('model') ?? defaultModel(draft);
    return [{ form: name, at, model, isVirtio: isVirtioModel(model), netdev: value.get('netdev') }];
  });
}

/** The card that a machine has where none is named: virtio for machines that never had another. */
function defaultModel(draft: Draft): string {
  const machine = mergedValue(draft.line, 'machine', 'type') ?? '';
  return /^(virt(-|$)|s390-ccw-virtio)/.test(machine) ? 'virtio' : '';
}

/** The driver of `-device` for a model of `-nic` or `-net nic`; `virtio-net` is the one that suits the machine. */
export const driverOf = (model: string): string => (model === 'virtio' ? 'virtio-net' : model);

/** Whether the driver is for PCI, and so has MSI-X vectors. */
export const isPci = (driver: string): boolean => !/^virtio-net-(device|ccw)/.test(driver);

/** Number of the `-netdev` with this id. */
export function netdevAt(draft: Draft, id: string): number | undefined {
  const at = draft.line.findIndex(({ name }, i) => name === 'netdev' && draft.value(i).get('id') === id);
  return at < 0 ? undefined : at;
}

/** Which hub a `-net` is on: there is one, but in QEMU 2 there were several, called VLANs. */
export const hubOf = (draft: Draft, at: number): string => draft.value(at).get('vlan') ?? '0';

/** Numbers of the `-net` that are networks on a hub. */
export function hubNetworks(draft: Draft, hub: string): number[] {
  return draft.line.flatMap(({ name }, at) => {
    const type = name === 'net' ? draft.value(at).get('type') : 'nic';
    return type !== 'nic' && type !== 'none' && hubOf(draft, at) === hub ? [at] : [];
  });
}

/** Queue pairs of a network: of a tap with several. */
export function queuesOf(get: (key: string) => string | undefined): number {
  const fds = get('fds');
  return Number(get('queues') ?? (fds === undefined ? 1 : fds.split(':').length));
}
