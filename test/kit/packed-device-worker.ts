/**
 * A packed ring's device on a thread of its own, which sleeps whenever it has nothing to do: if the driver does not kick it then, or
 * it does not call the driver, both sleep for ever. Uses `rounds` buffers, and ends.
 */
import { workerData } from 'node:worker_threads';
import { openWindow, type WindowHandle } from '../../src/mem/window.ts';
import type { RingPlace } from '../../src/virtqueue/driver-ring.ts';
import { NaivePackedDevice } from '../property/naive-packed-device.ts';

interface Task {
  readonly window: WindowHandle;
  readonly place: RingPlace;
  readonly size: number;
  readonly eventIdx: boolean;
  /** how often the driver has kicked, and the device called */
  readonly words: Int32Array;
  readonly rounds: number;
}

const { window, place, size, eventIdx, words, rounds } = workerData as Task;
const [KICKS, CALLS] = [0, 1];
const device = new NaivePackedDevice(openWindow(window), place, size);
/** The naive device knows no barriers: an atomic access between its plain ones is one. */
const barrier = () => Atomics.add(words, KICKS, 0);

let left = rounds;
while (left > 0) {
  const buffer = device.take();
  if (buffer !== undefined) {
    const from = { ...device.used };
    barrier();
    device.use(buffer, 0);
    barrier();
    if (device.callDue(from, buffer.descriptors)) {
      Atomics.add(words, CALLS, 1);
      Atomics.notify(words, CALLS);
    }
    left--;
    continue;
  }
  const kicks = Atomics.load(words, KICKS);
  if (eventIdx) device.wantKicks(2, device.avail);
  else device.wantKicks(0);
  barrier();
  const { at, wrap } = device.avail;
  const more = device.take();
  if (more === undefined) Atomics.wait(words, KICKS, kicks, 20_000);
  else Object.assign(device.avail, { at, wrap });
  device.wantKicks(1);
}
