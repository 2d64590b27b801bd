import assert from 'node:assert/strict';
import { closeSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { createPipe } from '../../src/sys/pipe.ts';
import {
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RARP,
} from '../../src/uapi/vhost-user.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import type { VirtioDevice } from '../../src/vhost/virtio-device.ts';
import type { GuestAddress } from '../../src/virtio-net/net-state.ts';
import { DeviceBench, leakless, MODERN } from '../kit/device-bench.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56);
const refuses = (call: Promise<unknown>, code: string, message: RegExp) => assert.rejects(call, { code, message });

/** The numbers of the bits set. */
const bitsOf = (features: bigint) =>
  Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => hasFeature(features, bit));
const offered = (options: Parameters<typeof DeviceBench.net>[0]) =>
  bitsOf(DeviceBench.net(options).device.offeredFeatures);

test('net device: what it offers, by its options', () => {
  // GUEST_ANNOUNCE and MTU; LOG_ALL, ANY_LAYOUT, INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_PACKED, IN_ORDER, ORDER_PLATFORM,
  // NOTIFICATION_DATA
  const always = [3, 21, 26, 27, 28, 29, 32, 34, 35, 36, 38];
  const sorted = (...bits: number[]) => [...always, ...bits].sort((a, b) => a - b);
  assert.deepEqual(offered({ mergeable: false }), always);
  assert.deepEqual(offered({ mergeable: true }), sorted(15));
  assert.deepEqual(offered({ mergeable: false, pairs: 2 }), sorted(22));
  assert.deepEqual(offered({ mergeable: false, iommu: true }), sorted(33));
  assert.deepEqual(offered({ mergeable: false, ringReset: true }), sorted(40));
  assert.deepEqual(offered({ mergeable: false, mac: MAC }), sorted(5));
  assert.deepEqual(offered({ mergeable: false, txCsum: true }), sorted(0, 1));
  const segmentation = [0, 1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 54, 55, 56];
  assert.deepEqual(offered({ mergeable: false, tso: true }), sorted(...segmentation), 'which needs checksums');
  assert.deepEqual(offered({ mergeable: false, tso: true, txCsum: true }), sorted(...segmentation));
});

test('net device: protocol features of a network device', () => {
  const { protocolFeatures } = DeviceBench.net().device;
  for (const bit of [VHOST_USER_PROTOCOL_F_RARP, VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_DEVICE_STATE])
    assert.ok(hasFeature(protocolFeatures, bit), `bit ${bit}`);
  assert.ok(!hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_PAGEFAULT));
});

test('net device: pairs are two vrings each, and the first makes it ready', () =>
  leakless(async () => {
    const bench = DeviceBench.net({ pairs: 3 });
    assert.deepEqual([bench.device.maxVrings, bench.device.queueNum], [6, 3]);
    await bench.setUp({ vrings: [2, 3, 1] });
    assert.deepEqual(bench.told, []);
    await bench.setUp({ vrings: [0] });
    assert.deepEqual(bench.told, ['ready']);
    await bench.device.getVringBase(3, true);
    assert.deepEqual(bench.told, ['ready']);
    await bench.device.destroy();
    assert.deepEqual(bench.told, ['ready', 'stopped', 'destroyed']);
  }));

test('net device: options out of range are refused', () => {
  for (const options of [
    { pairs: 0 },
    { pairs: 129 },
    { pairs: 1.5 },
    { mtu: 67 },
    { mtu: 65536 },
    { mac: new Uint8Array(5) },
  ])
    assert.throws(() => DeviceBench.net(options), RangeError, JSON.stringify(options));
  assert.equal(DeviceBench.net({ pairs: 128 }).device.maxVrings, 256);
});

test('net device: config space as the specification lays it out', () => {
  const { device } = DeviceBench.net({ pairs: 4, mac: MAC, mtu: 9000, speed: 10_000 });
  const bytes = [...MAC, 1, 0, 4, 0, 0x28, 0x23, 0x10, 0x27, 0, 0, 1];
  assert.deepEqual(device.getConfig(0, 17), Uint8Array.from(bytes));
  assert.deepEqual(device.getConfig(8, 2), Uint8Array.of(4, 0));
  assert.throws(() => device.getConfig(19, 2), { code: 'BAD_CONFIG', message: /^GET_CONFIG: bytes 19 to 21 of .* 20/ });
  const plain = DeviceBench.net().device.getConfig(0, 17);
  assert.deepEqual(plain, Uint8Array.of(0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0xdc, 5, 255, 255, 255, 255, 1));
});

test('net device: a legacy driver may write its address, a migration everything, nobody else anything', () =>
  leakless(async () => {
    const { device } = DeviceBench.net();
    await device.setConfig(0, MAC, false);
    assert.deepEqual(device.getConfig(0, 6), MAC);
    await refuses(
      device.setConfig(5, Uint8Array.of(1, 2), false),
      'BAD_CONFIG',
      /^SET_CONFIG: bytes 5 to 7 .* read-only/,
    );
    await device.setConfig(5, Uint8Array.of(1, 2), true);
    assert.deepEqual(device.getConfig(5, 2), Uint8Array.of(1, 2));
    await device.setFeatures(MODERN, true);
    assert.ok(hasFeature(device.features, VIRTIO_F_VERSION_1));
    await refuses(device.setConfig(0, MAC, false), 'BAD_CONFIG', /read-only/);
    await device.destroy();
  }));

test('net device: an MTU shows in config space, and one that cannot be is refused', () =>
  leakless(async () => {
    const { device } = DeviceBench.net();
    for (const mtu of [68, 9000, 65535]) {
      await device.setMtu(mtu);
      assert.deepEqual(device.getConfig(10, 2), Uint8Array.of(mtu & 0xff, mtu >> 8));
    }
    for (const mtu of [0, 67, 65536, 2 ** 40])
      await refuses(device.setMtu(mtu), 'PROTOCOL_VALUE', new RegExp(`^NET_SET_MTU: MTU ${mtu}, must be 68 to 65535`));
    await device.destroy();
  }));

test('net device: SEND_RARP sends a reverse ARP request from the guest to all', () =>
  leakless(async () => {
    const { device, datapath } = DeviceBench.net();
    await device.sendRarp(MAC);
    const hex = `${'ff'.repeat(6)}525400123456${'8035'}${'0001'}${'0800'}${'06'}${'04'}${'0003'}`;
    const body = `525400123456${'00000000'}525400123456${'00000000'}`;
    assert.deepEqual(
      datapath.injected.map((frame) => Buffer.from(frame).toString('hex')),
      [(hex + body).padEnd(120, '0')],
    );
    await device.destroy();
  }));

/** What a device saves. */
async function saved(device: VirtioDevice): Promise<Buffer> {
  const { readFd, writeFd } = createPipe();
  await device.transferState('save', 0, writeFd);
  await device.checkState();
  const bytes = Buffer.alloc(65536);
  const n = readSync(readFd, bytes, 0, bytes.length, null);
  closeSync(readFd);
  return bytes.subarray(0, n);
}

async function load(device: VirtioDevice, bytes: Uint8Array): Promise<void> {
  const { readFd, writeFd } = createPipe();
  if (bytes.length > 0) writeSync(writeFd, bytes);
  closeSync(writeFd);
  await device.transferState('load', 0, readFd);
  await device.checkState();
}

test('net device: MTU, config space and known addresses move with the guest', () =>
  leakless(async () => {
    const known = [
      { mac: MAC, vlan: 0 },
      { mac: Uint8Array.of(2, 0, 0, 0, 0, 9), vlan: 0 },
      { mac: MAC, vlan: 100 },
      { mac: MAC, vlan: 4094 },
    ];
    const heard: (readonly GuestAddress[])[] = [];
    const source = DeviceBench.net({ mac: MAC, knownAddresses: () => known }).device;
    const target = DeviceBench.net({ onAddresses: (addresses) => void heard.push(addresses) }).device;
    await source.setMtu(4000);
    const state = await saved(source);
    const tagged = '0200' + '5254001234566400' + '525400123456fe0f';
    const head = (version: string) => `56534e53${version}a00f525400123456${'0100'}${'0200'}525400123456020000000009`;
    assert.equal(state.toString('hex'), head('0200') + tagged);
    await load(target, state);
    assert.deepEqual(heard, [known]);
    assert.deepEqual(target.getConfig(0, 12), source.getConfig(0, 12));
    await load(target, Buffer.concat([state, Buffer.from('what a later version adds')]));
    assert.equal(heard.length, 2);
    // as earlier versions said it
    await load(target, Buffer.from(head('0100'), 'hex'));
    assert.deepEqual(heard[2], known.slice(0, 2));
    await source.destroy();
    await target.destroy();
  }));

test('net device: a state that makes no sense is refused and changes nothing', () =>
  leakless(async () => {
    const heard: unknown[] = [];
    const { device } = DeviceBench.net({ onAddresses: (addresses) => void heard.push(addresses) });
    const good = await saved(device);
    const before = device.getConfig(0, 20);
    const changed = (at: number, ...bytes: number[]) => {
      const copy = Buffer.from(good);
      copy.set(bytes, at);
      return copy;
    };
    for (const [bytes, message] of [
      [Buffer.alloc(0), /0 bytes are too few/],
      [good.subarray(0, 17), /17 bytes are too few/],
      [changed(0, 0), /no network device’s state/],
      [changed(4, 0, 0), /version 0 is not understood/],
      [changed(16, 1), /1 addresses do not fit in 20 bytes/],
      [good.subarray(0, 18), /0 addresses in VLANs do not fit in 18 bytes/],
      [changed(18, 1), /1 addresses in VLANs do not fit in 20 bytes/],
      [changed(18, 0xff, 0xff), /65535 addresses in VLANs/],
      [Buffer.concat([changed(18, 1), MAC, Buffer.of(0xff, 0x0f)]), /no VLAN 4095/],
      [Buffer.concat([changed(18, 1), MAC, Buffer.of(0, 0)]), /no VLAN 0/],
      [changed(16, 0xff, 0xff), /65535 addresses/],
      [changed(6, 1, 0), /^CHECK_DEVICE_STATE: MTU 1 makes no sense/],
    ] as const)
      await refuses(load(device, bytes), 'BAD_STATE', message);
    assert.deepEqual([heard, device.getConfig(0, 20)], [[], before]);
    await device.destroy();
  }));
