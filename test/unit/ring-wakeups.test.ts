/** A ring's two sides on two threads, both asleep in turns: no kick and no call is lost. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { AddressMap } from '../../src/mem/address-map.ts';
import type { WindowViews } from '../../src/mem/window.ts';
import { Caller, createEventfd, Epoll } from '../../src/sys/eventfd.ts';
import { packedRingLayout } from '../../src/virtqueue/packed-driver.ts';
import { PackedRing } from '../../src/virtqueue/packed-ring.ts';
import { SegmentList } from '../../src/virtqueue/segments.ts';
import { splitLayout } from '../../src/virtqueue/split-driver.ts';
import { SplitRing } from '../../src/virtqueue/split-ring.ts';
import { openFds } from '../kit/device-bench.ts';
import type { DriverTask } from '../kit/driver-worker.ts';
import { Ram } from '../kit/ram.ts';
import type { Format } from '../kit/raw-ring.ts';

const ROUNDS = 50_000;
/** Longer than any sleep that is not for ever. */
const PATIENCE_MS = 10_000;
const RING_BYTES = 2 ** 20;

for (const [format, size, eventIdx] of [
  ['split', 1, true],
  ['split', 4, true],
  ['split', 4, false],
  ['split', 256, true],
  ['packed', 1, true],
  ['packed', 3, true],
  ['packed', 3, false],
  ['packed', 251, true],
] as [Format, number, boolean][])
  test(`wake-ups: none is lost by a ${format} ring of ${size} ${eventIdx ? 'with' : 'without'} EVENT_IDX`, {
    timeout: 120_000,
  }, async () => {
    const fds = openFds();
    const ram = new Ram();
    const at = ram.alloc(RING_BYTES, 4096);
    const { addr } = ram.alloc(4096);
    const place = (format === 'packed' ? packedRingLayout : splitLayout)(size, at.off);
    const [kickFd, callFd] = [createEventfd(), createEventfd()];
    const task: DriverTask = {
      ...{ window: ram.handle, place, format, size, eventIdx, kickFd, callFd, addr },
      ...{ rounds: ROUNDS, patience: PATIENCE_MS },
    };
    const driver = new Worker(new URL('../kit/driver-worker.ts', import.meta.url), {
      workerData: task,
      trackUnmanagedFds: false,
    });
    const ended = new Promise<void>((resolve, reject) => {
      driver.once('error', reject);
      driver.once('exit', () => resolve());
    });
    const windows: WindowViews[] = [];
    windows[ram.handle.id] = ram.views;
    const part = (off: number) => ({ window: ram.handle.id, off });
    await Promise.race([once(driver, 'message'), ended]);
    const Ring = format === 'packed' ? PackedRing : SplitRing;
    const ring = new Ring(
      {
        ...{ format, num: size, base: 0x8000_8000, eventIdx, indirect: false, inOrder: false, kickFd, callFd },
        ...{ desc: part(place.descOff), avail: part(place.availOff), used: part(place.usedOff) },
      },
      new AddressMap(ram.chunks),
      windows,
      new Caller(new Int32Array(1), 0),
    );
    const epoll = new Epoll();
    epoll.add(kickFd);
    const segments = new SegmentList();
    let used = 0;
    let slept = 0;
    while (used < ROUNDS) {
      ring.refresh();
      let slots = 0;
      segments.count = 0;
      while (ring.chainAt(slots, 0, segments) >= 0) {
        ring.putUsed(slots, ring.chainId, 0);
        slots += ring.chainSlots;
        used++;
      }
      assert.equal(ring.fault, 0);
      if (slots > 0) {
        ring.publish(slots, false);
        ring.notify();
        continue;
      }
      ring.wantKicks();
      if (ring.refresh() === 0) {
        slept++;
        const woken = epoll.wait(PATIENCE_MS);
        // what the driver died of, if it did
        if (!woken) await Promise.race([ended, setTimeout(1000)]);
        assert.ok(woken, `a kick comes: ${used} used`);
      }
      ring.suppressKicks();
    }
    await ended;
    assert.equal(used, ROUNDS);
    assert.ok(slept > 0 && ring.calls > 0, 'both have slept');
    assert.equal(ring.callsFailed, 0);
    epoll.close();
    for (const fd of [kickFd, callFd]) closeSync(fd);
    assert.equal(openFds(), fds);
  });
