import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { interfaceOfCard } from '../../src/port/pci-interface.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';

const sysfs = makeTempDir('sysfs');
after(() => removeTempDir(sysfs));

/** A card in a sysfs of our own. */
function card(address: string, driver: string | undefined, ...dirs: readonly string[]): string {
  const dir = join(sysfs, 'bus/pci/devices', address);
  for (const path of ['', ...dirs]) mkdirSync(join(dir, path), { recursive: true });
  if (driver === undefined) return address;
  mkdirSync(join(sysfs, 'bus/pci/drivers', driver), { recursive: true });
  symlinkSync(`../../drivers/${driver}`, join(dir, 'driver'));
  return address;
}

const fails = (address: string, message: RegExp) =>
  assert.throws(() => interfaceOfCard(address, sysfs), { code: 'UPLINK_NO_INTERFACE', message });

test("card: its interface is its driver's", () => {
  assert.equal(interfaceOfCard(card('0000:01:00.0', 'ixgbe', 'net/ens1f0'), sysfs), 'ens1f0');
  assert.equal(interfaceOfCard(card('0000:01:00.1', 'virtio-pci', 'virtio3/net/eth7'), sysfs), 'eth7');
});

test('card: why there is no interface is said, with what to do', () => {
  fails('0000:ff:1f.7', /^-a 0000:ff:1f.7: there is no such PCI device; lspci -D lists/);
  fails(card('0000:02:00.0', undefined), /it has no driver: load the one of the kernel/);
  fails(card('0000:02:00.1', 'nvme', 'nvme/nvme0'), /its driver nvme makes no network interface of it/);
  for (const [i, driver] of ['vfio-pci', 'uio_pci_generic', 'igb_uio'].entries()) {
    const how = `it is bound to ${driver}.* echo 0000:03:00.${i} > /sys/bus/pci/drivers/${driver}/unbind, then echo 0000:03:00.${i} > `;
    fails(card(`0000:03:00.${i}`, driver), RegExp(how));
  }
});
