import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createEventfd, drain, eventfdCount, signal } from '../../src/sys/eventfd.ts';
import { VHOST_VRING_F_LOG } from '../../src/uapi/vhost-user.ts';
import { featureMask, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import {
  addresses,
  DeviceBench,
  FRONTEND,
  leakless,
  MIB,
  MODERN,
  NUM,
  plainModel,
  RecordingChannel,
  region,
} from '../kit/device-bench.ts';

const PACKED = featureMask(VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED);
const refuses = (call: Promise<unknown>, code: string, message: RegExp) => assert.rejects(call, { code, message });
const bench = (vrings = 1) => DeviceBench.of(plainModel(vrings));

test('virtio device: a packed ring has any size, and event areas of 4 bytes', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ features: PACKED, vrings: [0], num: 100 });
    const { ring } = datapath.running[0]!.config;
    const start = datapath.chunks[0].windowOff + 0x10000;
    assert.deepEqual(
      [ring.format, ring.num, ring.base],
      ['packed', 100, 0x8000_8000],
      'it begins with wrap counters 1',
    );
    assert.deepEqual([ring.desc.off, ring.avail.off, ring.used.off], [start, start + 0x4000, start + 0x8000]);
    const good = addresses(0);
    const end = FRONTEND + MIB;
    await device.setVringAddr(0, { ...good, availAddr: end - 4, usedAddr: end - 8, descAddr: end - 1600 });
    assert.ok(datapath.running[0], 'the parts may end with memory');
    for (const [change, message] of [
      [{ descAddr: end - 1584 }, /vring 0: its descriptor ring at .* lies outside guest memory/],
      [{ availAddr: good.availAddr + 2 }, /vring 0: its driver event area at .* is not aligned to 4 bytes/],
      [{ usedAddr: good.usedAddr + 2 }, /vring 0: its device event area at .* is not aligned to 4 bytes/],
      [{ usedAddr: end }, /vring 0: its device event area at .* lies outside/],
    ] as const)
      await refuses(device.setVringAddr(0, { ...good, ...change }), 'BAD_VRING', message);
    await device.destroy();
  }));

test('virtio device: a packed ring’s base is all 32 bits, kept over a stop, and lies in the ring', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ features: PACKED, vrings: [0], num: 100 });
    datapath.nextAvail = 0x0063_8063;
    assert.equal(await device.getVringBase(0, true), 0x0063_8063);
    await device.setVringKick(0, NO_FD);
    assert.equal(datapath.running[0]!.config.ring.base, 0x0063_8063);
    await device.setVringBase(0, 0x8063_0005);
    assert.equal(datapath.running[0]!.config.ring.base, 0x8063_0005);
    for (const bad of [0x8000_8064, 0x8064_8000])
      await refuses(
        device.setVringBase(0, bad),
        'BAD_VRING',
        /^SET_VRING_BASE: vring 0: it is to go on at descriptors/,
      );
    await device.destroy();
  }));

test('virtio device: size and base may come before the features that they suit', () =>
  leakless(async () => {
    const { device, datapath } = bench();
    await device.setMemory([region(0)]);
    await device.setVringNum(0, 100);
    await device.setVringBase(0, 0x8010_8010);
    await device.setVringAddr(0, addresses(0));
    await device.setVringKick(0, NO_FD);
    assert.equal(datapath.running[0], undefined, 'no split ring has 100 descriptors');
    await device.setFeatures(PACKED, true);
    assert.deepEqual([datapath.running[0]!.config.ring.num, datapath.running[0]!.config.ring.base], [100, 0x8010_8010]);
    await device.setFeatures(MODERN, true);
    assert.equal(datapath.running[0], undefined);
    await refuses(device.setVringKick(0, NO_FD), 'BAD_VRING', /^SET_VRING_KICK: vring 0: 100 is no power of two/);
    await device.destroy();
  }));

test('virtio device: of several vrings those that the model names make it ready; each starts and stops alone', () =>
  leakless(async () => {
    const one = DeviceBench.of(plainModel(8, { readyVrings: [0, 1] }));
    const { device, datapath, told } = one;
    await one.setUp({ vrings: [0, 2, 5] });
    assert.deepEqual(told, []);
    await one.setUp({ vrings: [1] });
    assert.deepEqual(told, ['ready']);
    await device.getVringBase(5, true);
    assert.deepEqual(one.runs, [true, true, true, false, false, false, false, false]);
    assert.deepEqual(told, ['ready'], 'the others are not asked for');
    datapath.nextAvail = 77;
    await device.getVringBase(1, true);
    await device.setVringBase(1, 0);
    await device.setVringKick(1, createEventfd());
    assert.deepEqual(told, ['ready', 'stopped', 'ready'], 'a ring that was reset by itself');
    assert.equal(datapath.running[1]!.config.ring.base, 0);
    await device.destroy();
  }));

test('virtio device: GET_VRING_BASE says whether to wait for what is in flight', () =>
  leakless(async () => {
    const { device, datapath } = await bench(2).setUp();
    await device.getVringBase(0, false);
    await device.getVringBase(1, true);
    assert.deepEqual(datapath.calls, ['stop 0 undrained', 'stop 1']);
    await device.destroy();
  }));

test('virtio device: flags alone, or the same size again, do not stop a ring', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ vrings: [0] });
    const logAddr = addresses(0).usedAddr - FRONTEND;
    await device.setVringAddr(0, { ...addresses(0), flags: VHOST_VRING_F_LOG, logAddr });
    await device.setVringAddr(0, { ...addresses(0), flags: 0, logAddr: 4096 });
    await device.setVringNum(0, NUM);
    assert.deepEqual(datapath.calls, []);
    assert.equal(datapath.running[0]!.config.ring.usedLogAddr, undefined);
    await device.setVringAddr(0, { ...addresses(0), usedAddr: addresses(0).usedAddr + 64 });
    assert.deepEqual(datapath.calls, ['stop 0', 'start 0']);
    await device.destroy();
  }));

test('virtio device: a split ring whose used ring is to be logged elsewhere goes on so', () =>
  leakless(async () => {
    const { device, datapath } = await bench().setUp({ vrings: [0] });
    const logAddr = () => datapath.running[0]!.config.ring.usedLogAddr;
    const at = (logAddr: number, flags = VHOST_VRING_F_LOG) =>
      device.setVringAddr(0, { ...addresses(0), flags, logAddr });
    await at(4096);
    assert.deepEqual([logAddr(), datapath.calls], [4096, ['stop 0', 'start 0']]);
    await at(4096);
    assert.equal(datapath.calls.length, 2);
    await at(0);
    assert.equal(logAddr(), 0);
    await at(4096, 0);
    assert.equal(logAddr(), undefined);
    await at(4096);
    await device.setFeatures(PACKED, true);
    assert.equal(logAddr(), undefined);
    await device.destroy();
  }));

test('virtio device: ring addresses are guest physical where that was agreed on', () =>
  leakless(async () => {
    const one = bench();
    one.device.setAddressSpace('guest');
    await one.setUp({ vrings: [0], space: 0 });
    assert.equal(one.datapath.running[0]!.config.ring.desc.off, one.datapath.chunks[0].windowOff + 0x10000);
    await refuses(one.device.setVringAddr(0, addresses(0)), 'BAD_VRING', /lies outside guest memory/);
    await one.device.destroy();
  }));

test('virtio device: in band, a kick starts a ring and is passed on, and calls and errors are told', () =>
  leakless(async () => {
    const one = bench(2);
    const { device, datapath } = one;
    const channel = new RecordingChannel();
    device.setInBand(true);
    device.setChannel(channel);
    await device.setFeatures(MODERN, false);
    await device.setMemory([region(0)]);
    await device.setVringNum(0, NUM);
    await device.setVringAddr(0, addresses(0));
    await device.kickVring(0);
    const { ring, errFd } = datapath.running[0]!.config;
    assert.equal(drain(ring.kickFd), 1, 'the datapath sees an eventfd like any other');
    await device.kickVring(0);
    await device.kickVring(0);
    assert.equal(drain(ring.kickFd), 2);
    signal(ring.callFd);
    signal(ring.callFd);
    signal(errFd);
    await sleep(20);
    assert.deepEqual(channel.asked.sort(), ['call 0', 'error 0'], 'signals at a time are one message');
    signal(ring.callFd);
    await device.getVringBase(0, true);
    assert.deepEqual(channel.asked.sort(), ['call 0', 'call 0', 'error 0'], 'none is lost by a stop');
    await device.kickVring(0);
    assert.ok(datapath.running[0], 'and the next kick starts it again');
    device.setChannel(undefined);
    signal(datapath.running[0]!.callFd);
    await sleep(20);
    assert.equal(channel.asked.length, 3);
    await device.destroy();
  }));

test('virtio device: in band, an eventfd that the front end gives goes before messages', () =>
  leakless(async () => {
    const one = bench();
    const { device, datapath } = one;
    const channel = new RecordingChannel();
    device.setInBand(true);
    device.setChannel(channel);
    await one.setUp({ vrings: [0] });
    const { callFd, config } = datapath.running[0]!;
    await device.kickVring(0);
    assert.equal(eventfdCount(config.ring.kickFd), 0, 'the front end’s eventfd is its own to signal');
    signal(callFd);
    signal(config.errFd);
    await sleep(20);
    assert.deepEqual(channel.asked, []);
    assert.equal(drain(callFd), 1);
    await device.setVringCall(0, NO_FD);
    await device.setVringKick(0, NO_FD);
    assert.deepEqual([datapath.running[0]!.callFd, datapath.running[0]!.config.ring.kickFd], [NO_FD, NO_FD]);
    await device.destroy();
  }));

test('virtio device: big-endian rings are refused, little-endian ones are what there is', () =>
  leakless(async () => {
    const { device } = bench();
    await device.setVringEndian(0, false);
    await refuses(device.setVringEndian(0, true), 'BAD_VRING', /^SET_VRING_ENDIAN: vring 0: big-endian is not served/);
    await device.destroy();
  }));

test('virtio device: status is kept, and 0 resets all but memory and eventfds', () =>
  leakless(async () => {
    const one = await bench().setUp({ vrings: [0] });
    const { device, datapath } = one;
    assert.equal(device.getStatus(), 0);
    await device.setStatus(15);
    assert.equal(device.getStatus(), 15);
    await refuses(device.setStatus(256), 'PROTOCOL_VALUE', /^SET_STATUS: 256/);
    const call = datapath.running[0]!.callFd;
    await device.setStatus(0);
    assert.deepEqual([device.getStatus(), device.features, device.memoryBytes], [0, 0n, MIB]);
    assert.deepEqual(datapath.calls, ['stop 0', 'memory']);
    await device.setFeatures(MODERN, true);
    await device.setVringNum(0, NUM);
    await device.setVringAddr(0, addresses(0));
    assert.deepEqual(one.runs, [false], 'the ring waits for its kick');
    await device.setVringKick(0, createEventfd());
    const { callFd, enabled } = datapath.running[0]!;
    assert.deepEqual([callFd, enabled], [call, false]);
    await device.destroy();
  }));

test('virtio device: RESET_DEVICE resets as status 0 does', () =>
  leakless(async () => {
    const one = await bench(2).setUp();
    await one.device.setStatus(7);
    one.datapath.nextAvail = 4711;
    await one.device.resetRings();
    assert.deepEqual(one.runs, [false, false]);
    assert.equal(await one.device.getVringBase(1, true), 4711, 'QEMU 7.2 asks after it has reset the device');
    assert.deepEqual([one.device.getStatus(), one.device.features, one.device.memoryBytes], [0, 0n, MIB]);
    await one.setUp();
    assert.deepEqual(one.runs, [true, true]);
    assert.equal(one.datapath.running[1]!.config.ring.base, 0);
    await one.device.destroy();
  }));

test('virtio device: config space is read within its bounds, and written only if the type has a way', () =>
  leakless(async () => {
    const { device } = bench();
    assert.deepEqual(device.getConfig(1, 2), Uint8Array.of(2, 3));
    assert.deepEqual(device.getConfig(4, 0), new Uint8Array(0));
    assert.throws(() => device.getConfig(2, 3), { code: 'BAD_CONFIG', message: /bytes 2 to 5 of a config space of 4/ });
    await refuses(device.setConfig(0, Uint8Array.of(9), false), 'BAD_CONFIG', /read-only/);
    await device.destroy();
    const written: unknown[] = [];
    const setConfig = (...args: unknown[]) => written.push(args);
    const other = DeviceBench.of(plainModel(1, { setConfig })).device;
    await refuses(other.setConfig(3, Uint8Array.of(9, 9), true), 'BAD_CONFIG', /bytes 3 to 5/);
    await other.setConfig(3, Uint8Array.of(9), true);
    assert.deepEqual(written, [[3, Uint8Array.of(9), true, 0n]]);
    await other.destroy();
  }));

test('virtio device: what a type does not have is refused', () =>
  leakless(async () => {
    const { device } = bench();
    await refuses(device.sendRarp(new Uint8Array(6)), 'PROTOCOL_NOT_SUPPORTED', /^SEND_RARP: devices of this type/);
    await refuses(device.setMtu(1500), 'PROTOCOL_NOT_SUPPORTED', /^NET_SET_MTU: devices of this type/);
    await device.destroy();
  }));
