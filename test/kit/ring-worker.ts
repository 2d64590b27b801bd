/**
 * A thread that sends numbered frames into a net_ring, or receives them.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { openWindow, type WindowHandle, type WindowViews } from '../../src/mem/window.ts';
import { RingPort, type RingSpec } from '../../src/port/ring-port.ts';
import { counterBlock, PORT_SLOTS } from '../../src/stats/counters.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';

export interface RingWork {
  readonly spec: RingSpec;
  /** of this thread's own */
  readonly window: WindowHandle;
  /** tells this sender's frames from others'; none: it receives */
  readonly sender: number | undefined;
  readonly frames: number;
  /** senders whose frames are received */
  readonly senders: number;
}

const { spec, window, sender, frames, senders } = workerData as RingWork;
const ringStage = new RingStage();
const windows: WindowViews[] = [];
for (const handle of [...spec.windows, window]) windows[handle.id] = openWindow(handle);
const port = new RingPort(0, new Float64Array(counterBlock(PORT_SLOTS)), spec, { ringStage, windows });
const { burst } = ringStage;
const own = windows[window.id];
const OFF = 65536;
const STRIDE = 2048;
const list = Int32Array.from({ length: 32 }, (_, i) => i);
const lenOf = (number: number) => 14 + ((number * 131) % 1500);

function send(from: number): void {
  for (let number = 0; number < frames; ) {
    const n = Math.min(32, frames - number);
    burst.segments.count = 0;
    burst.count = n;
    for (let i = 0; i < n; i++) {
      const off = OFF + i * STRIDE;
      const len = lenOf(number + i);
      own.u8.fill((number + i) & 0xff, off, off + len);
      own.dv.setInt32(off, from);
      own.dv.setInt32(off + 4, number + i);
      burst.first[i] = burst.segments.count;
      burst.segments.push(own.id, off, len);
      burst.first[i + 1] = burst.segments.count;
      burst.len[i] = len;
      burst.needs[i] = 0;
    }
    number += port.transmit(list, 0, n);
  }
}

/** @returns what is wrong, or nothing */
function receive(): string | undefined {
  const next = new Int32Array(senders);
  for (let got = 0; got < frames * senders; ) {
    const n = port.receive();
    for (let i = 0; i < n; i++) {
      const off = burst.segments.off[burst.first[i]];
      const { dv, u8 } = windows[burst.segments.window[burst.first[i]]];
      const from = dv.getInt32(off);
      const number = dv.getInt32(off + 4);
      if (number !== next[from]++) return `frame ${number} of ${from} in place of ${next[from] - 1}`;
      if (burst.len[i] !== lenOf(number)) return `frame ${number} of ${from}: ${burst.len[i]} bytes`;
      for (let k = 8; k < burst.len[i]; k++) if (u8[off + k] !== (number & 0xff)) return `frame ${number}: byte ${k}`;
    }
    got += n;
    port.complete();
  }
  return undefined;
}

if (sender === undefined) parentPort?.postMessage(receive());
else {
  send(sender);
  parentPort?.postMessage(undefined);
}
