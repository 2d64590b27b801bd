/**
 * A ring's driver on a thread of its own, which sleeps whenever it has nothing to do: if the device does not call it then, or it does
 * not kick the device, both sleep. Adds `rounds` buffers, some of two descriptors, gets them back in order, and ends.
 */
import assert from 'node:assert/strict';
import { parentPort, workerData } from 'node:worker_threads';
import { openWindow, type WindowHandle } from '../../src/mem/window.ts';
import { Epoll, signal } from '../../src/sys/eventfd.ts';
import type { RingPlace } from '../../src/virtqueue/driver-ring.ts';
import { PackedDriver } from '../../src/virtqueue/packed-driver.ts';
import { SplitDriver } from '../../src/virtqueue/split-driver.ts';
import type { Format } from './raw-ring.ts';

export interface DriverTask {
  readonly window: WindowHandle;
  readonly place: RingPlace;
  readonly format: Format;
  readonly size: number;
  readonly eventIdx: boolean;
  readonly kickFd: number;
  readonly callFd: number;
  readonly rounds: number;
  /** guest address of memory that all buffers share */
  readonly addr: number;
  /** longer than any sleep that is not for ever, ms */
  readonly patience: number;
}

const task = workerData as DriverTask;
const { size, rounds, patience } = task;
const Driver = task.format === 'packed' ? PackedDriver : SplitDriver;
const driver = new Driver(openWindow(task.window), task.place, size, task.eventIdx);
driver.reset();
const epoll = new Epoll();
epoll.add(task.callFd);
const one = { addr: task.addr, len: 64 };
const chains = [[one], size === 1 ? [one] : [one, { addr: task.addr + 64, len: 32 }]];
const offered: number[] = [];
let added = 0;
let reaped = 0;
parentPort?.postMessage('ready');
while (reaped < rounds) {
  let full = false;
  for (let burst = 1 + ((added * 7) % 5); burst > 0 && added < rounds && !full; burst--) {
    const id = driver.add(chains[added % 3 === 0 ? 1 : 0]);
    full = id < 0;
    if (full) break;
    offered.push(id);
    added++;
  }
  if (driver.publish()) signal(task.kickFd);
  const before = reaped;
  for (let id = driver.reap(); id >= 0; id = driver.reap(), reaped++) assert.equal(id, offered.shift());
  assert.equal(driver.broken, undefined);
  if (reaped > before || (!full && added < rounds)) continue;
  if (driver.enableCalls() && !epoll.wait(patience))
    throw new Error(`asleep for ${patience} ms with ${added} added and ${reaped} reaped`);
  driver.disableCalls();
}
epoll.close();
