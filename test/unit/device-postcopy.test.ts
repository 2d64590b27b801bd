/** A device whose guest comes by postcopy: when its memory is registered, and that nobody waits for ever. */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { test } from 'node:test';
import type { Postcopy } from '../../src/vhost/device-model.ts';
import { UserfaultPostcopy } from '../../src/vhost/postcopy.ts';
import { DeviceBench, leakless, MIB, plainModel, region } from '../kit/device-bench.ts';
import { PageFiller } from '../kit/page-filler.ts';
import { Toucher } from '../kit/toucher.ts';

const PAGE = 4096;

/** The calls in the order in which they come. */
class ToldPostcopy implements Postcopy {
  readonly #real = new UserfaultPostcopy();
  readonly #told: string[];

  constructor(told: string[]) {
    this.#told = told;
  }

  shareFd = () => this.#real.shareFd();
  register = (...[ranges]: Parameters<Postcopy['register']>) => {
    this.#told.push(`register ${ranges.map(({ size }) => size)}`);
    this.#real.register(ranges);
  };
  unregister = () => {
    this.#told.push('unregister');
    this.#real.unregister();
  };
  close = () => {
    this.#told.push('close');
    this.#real.close();
  };
}

/** A device that listens, and its front end. */
async function listening() {
  const told: string[] = [];
  const bench = DeviceBench.of(plainModel(1), () => new ToldPostcopy(told));
  await bench.setUp({ vrings: [0] });
  const frontEnd = new PageFiller(await bench.device.postcopyAdvise());
  await bench.device.postcopyListen();
  return { ...bench, bench, device: bench.device, frontEnd, told };
}

/** A thread that touches a device's memory, at its first byte. */
function toucherOf(device: DeviceBench['device']) {
  const [address] = device.postcopyAddresses();
  const window = { id: 0, address: address - (address % BigInt(PAGE)) };
  return { thread: new Toucher(window), address };
}

test('postcopy of a device: a page comes when it is touched, and rings wait for the addresses to be known', () =>
  leakless(async () => {
    const { device, bench, frontEnd, told } = await listening();
    const memory = region(0, MIB, false);
    await device.setMemory([memory]);
    assert.deepEqual(told, ['unregister', `register ${MIB}`]);
    assert.deepEqual(bench.runs, [false]);
    await device.postcopyReady();
    assert.deepEqual(bench.runs, [true]);

    const { thread, address } = toucherOf(device);
    thread.touch(3 * PAGE + 5);
    assert.equal(await frontEnd.fault(), address + BigInt(3 * PAGE));
    frontEnd.copy(address + BigInt(3 * PAGE), Buffer.alloc(PAGE, 0x42));
    assert.equal(await thread.done(), 0x42);

    await device.postcopyEnd();
    assert.deepEqual(told.slice(2), ['close']);
    thread.touch(5 * PAGE);
    assert.equal(await thread.done(), 0);
    await thread.stop();
    frontEnd.close();
    await device.destroy();
  }));

test('postcopy of a device: a front end that goes away frees who waits before any ring is stopped', () =>
  leakless(async () => {
    const { device, bench, frontEnd } = await listening();
    await device.setMemory([region(0, MIB, false)]);
    await device.postcopyReady();
    const { thread } = toucherOf(device);
    thread.touch(PAGE);
    await frontEnd.fault();
    let waited: boolean | undefined;
    const stop = bench.datapath.stopVring.bind(bench.datapath);
    bench.datapath.stopVring = (...args) => {
      waited ??= thread.waiting;
      return stop(...args);
    };
    device.frontEndGone();
    assert.equal(await thread.done(), 0);
    await device.destroy();
    assert.equal(waited, false);
    await thread.stop();
    frontEnd.close();
  }));

test('postcopy of a device: memory is unregistered before other memory takes its place', () =>
  leakless(async () => {
    const { device, frontEnd, told } = await listening();
    await device.setMemory([region(0, MIB, false)]);
    await device.setMemory([region(0, 2 * MIB, false)]);
    assert.deepEqual(told, ['unregister', `register ${MIB}`, 'unregister', `register ${2 * MIB}`]);
    await device.destroy();
    assert.equal(told.at(-1), 'close');
    frontEnd.close();
  }));

test('postcopy of a device: looking for holes in files does not fill them meanwhile', () =>
  leakless(async () => {
    const { device, frontEnd } = await listening();
    const memory = region(0, MIB, false);
    await device.setMemory([memory]);
    await device.postcopyReady();
    assert.equal(device.coverHoles(), false);
    const { thread, address } = toucherOf(device);
    thread.touch(0);
    assert.equal(await frontEnd.fault(), address, 'the first page is still missing');
    writeSync(memory.fd, Buffer.alloc(PAGE, 7), 0, PAGE, 0);
    frontEnd.wake(address);
    assert.equal(await thread.done(), 7);
    await thread.stop();
    await device.destroy();
    frontEnd.close();
  }));
