/**
 * Finds the network interface that Linux has made of a network card.
 */
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import { SwitchError } from '../errors.ts';

/** A network card, by where it is. */
export interface PciRequest {
  /** tells it from a virtual device */
  readonly kind: 'pci';
  /** with its domain, as sysfs has it: 0000:03:00.0 */
  readonly address: string;
}

/** Drivers that give a card away to programs. */
const GIVEN_AWAY = ['vfio-pci', 'uio_pci_generic', 'igb_uio'];

/**
 * The interface of a card. Throws SwitchError (UPLINK_NO_INTERFACE) that says why there is none, and what to do.
 * @param sysfs where it is mounted
 */
export function interfaceOfCard(address: string, sysfs = '/sys'): string {
  const fail = (problem: string) => new SwitchError('UPLINK_NO_INTERFACE', `-a ${address}: ${problem}`);
  const dir = join(sysfs, 'bus/pci/devices', address);
  if (!existsSync(dir)) throw fail('there is no such PCI device; lspci -D lists those that there are');
  const names = namesIn(join(dir, 'net')) ?? virtioNames(dir);
  if (names[0] !== undefined) return names[0];
  const link = join(dir, 'driver');
  if (!existsSync(link)) throw fail('it has no driver: load the one of the kernel that makes it a network interface');
  const driver = basename(readlinkSync(link));
  if (!GIVEN_AWAY.includes(driver)) throw fail(`its driver ${driver} makes no network interface of it`);
  throw fail(
    `it is bound to ${driver}, and so is no network interface; give it back to the kernel's own driver: ` +
      `echo ${address} > /sys/bus/pci/drivers/${driver}/unbind, then echo ${address} > /sys/bus/pci/drivers_probe`,
  );
}

const namesIn = (dir: string): string[] | undefined => (existsSync(dir) ? readdirSync(dir).sort() : undefined);

/** A virtio card's interface hangs on the virtio device within. */
function virtioNames(dir: string): string[] {
  const devices = readdirSync(dir).filter((name) => /^virtio\d+$/.test(name));
  return devices.flatMap((name) => namesIn(join(dir, name, 'net')) ?? []);
}
