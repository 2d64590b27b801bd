import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { ProtocolError } from '../../src/errors.ts';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { createPipe } from '../../src/sys/pipe.ts';
import { featureMask, VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED } from '../../src/uapi/virtio.ts';
import type { Postcopy } from '../../src/vhost/device-model.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { VirtioDevice } from '../../src/vhost/virtio-device.ts';
import {
  addresses,
  DeviceBench,
  FRONTEND,
  leakless,
  MIB,
  MODERN,
  plainModel,
  RecordingChannel,
  region,
  sharedArea,
} from '../kit/device-bench.ts';

const VRINGS = 3;
const BITS = [VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED].map((bit) => featureMask(bit));

class FakePostcopy implements Postcopy {
  readonly #fd = createEventfd();
  shareFd = () => createEventfd();
  register = () => {};
  unregister = () => {};
  close = () => closeSync(this.#fd);
}

type Request = (device: VirtioDevice) => unknown;

const vring = fc.nat({ max: VRINGS - 1 });
const fd = (has: boolean) => (has ? createEventfd() : NO_FD);
const where = fc.constantFrom(0, 4, 8, 16);

/** Any request, with arguments that are good more often than not. */
const request: fc.Arbitrary<Request> = fc.oneof(
  fc.tuple(fc.subarray(BITS), fc.boolean()).map(([bits, protocol]): Request => {
    return (d) =>
      d.setFeatures(
        bits.reduce((all, bit) => all | bit, MODERN),
        protocol,
      );
  }),
  fc.subarray([0, 4, 8]).map(
    (at): Request =>
      (d) =>
        d.setMemory(at.map((mib) => region(mib * MIB))),
  ),
  where.map(
    (at): Request =>
      (d) =>
        d.addMemory(region(at * MIB)),
  ),
  where.map(
    (at): Request =>
      (d) =>
        d.removeMemory(at * MIB, MIB, FRONTEND + at * MIB),
  ),
  fc.tuple(vring, fc.constantFrom(0, 100, 128, 256, 40_000)).map(
    ([v, num]): Request =>
      (d) =>
        d.setVringNum(v, num),
  ),
  fc.tuple(vring, where).map(
    ([v, at]): Request =>
      (d) =>
        d.setVringAddr(v, addresses(v, at * MIB)),
  ),
  fc.tuple(vring, fc.constantFrom(0, 5, 65535, 0x8005_8005, 2 ** 32 - 1)).map(
    ([v, base]): Request =>
      (d) =>
        d.setVringBase(v, base),
  ),
  fc.tuple(vring, fc.boolean()).map(
    ([v, drain]): Request =>
      (d) =>
        d.getVringBase(v, drain),
  ),
  fc.tuple(vring, fc.boolean()).map(
    ([v, has]): Request =>
      (d) =>
        d.setVringKick(v, fd(has)),
  ),
  fc.tuple(vring, fc.boolean()).map(
    ([v, has]): Request =>
      (d) =>
        d.setVringCall(v, fd(has)),
  ),
  fc.tuple(vring, fc.boolean()).map(
    ([v, has]): Request =>
      (d) =>
        d.setVringErr(v, fd(has)),
  ),
  fc.tuple(vring, fc.boolean()).map(
    ([v, on]): Request =>
      (d) =>
        d.setVringEnable(v, on),
  ),
  vring.map(
    (v): Request =>
      (d) =>
        d.kickVring(v),
  ),
  fc.boolean().map(
    (on): Request =>
      (d) =>
        d.setInBand(on),
  ),
  fc.boolean().map(
    (there): Request =>
      (d) =>
        d.setChannel(there ? new RecordingChannel() : undefined),
  ),
  fc.constantFrom('frontend' as const, 'guest' as const).map(
    (space): Request =>
      (d) =>
        d.setAddressSpace(space),
  ),
  fc.constantFrom(128, 4096).map(
    (size): Request =>
      (d) =>
        d.setLog(sharedArea(size)),
  ),
  fc.boolean().map(
    (has): Request =>
      (d) =>
        d.setLogFd(fd(has)),
  ),
  fc.tuple(where, where, fc.integer({ min: 1, max: 3 })).map(([from, to, permissions]): Request => {
    const size = MIB;
    return (d) => d.updateIotlb({ iova: FRONTEND + from * MIB, size, userAddr: FRONTEND + to * MIB, permissions });
  }),
  where.map(
    (at): Request =>
      (d) =>
        d.invalidateIotlb(FRONTEND + at * MIB, MIB),
  ),
  vring.map(
    (v): Request =>
      (d) =>
        d.onIotlbMiss(v, FRONTEND + 2 * MIB, v === 0),
  ),
  fc
    .tuple(fc.integer({ min: 0, max: 4 }), fc.constantFrom(100, 256), fc.boolean())
    .map(([queues, size, mine]): Request => {
      return async (d) => d.setInflight(mine ? d.getInflight(queues, size) : sharedArea(20_000), queues, size);
    }),
  fc.constantFrom(0, 1, 15).map(
    (status): Request =>
      (d) =>
        d.setStatus(status),
  ),
  fc.constant((d: VirtioDevice) => d.resetRings()),
  fc.constant((d: VirtioDevice) => d.reset()),
  fc.constant(async (d: VirtioDevice) => closeSync(await d.postcopyAdvise())),
  fc.constant((d: VirtioDevice) => d.postcopyListen()),
  fc.constant((d: VirtioDevice) => d.postcopyReady()),
  fc.constant((d: VirtioDevice) => d.postcopyEnd()),
  fc.constantFrom('save' as const, 'load' as const).map((direction): Request => {
    return async (d) => {
      const { readFd, writeFd } = createPipe();
      closeSync(direction === 'save' ? readFd : writeFd);
      await d.transferState(direction, 0, direction === 'save' ? writeFd : readFd);
    };
  }),
  fc.constant((d: VirtioDevice) => d.checkState()),
);

test('virtio device: whatever is asked in whatever order, the datapath’s contract holds and nothing is left behind', () =>
  leakless(() =>
    fc.assert(
      fc.asyncProperty(fc.array(request, { maxLength: 60 }), fc.boolean(), async (requests, isSetUp) => {
        const model = plainModel(VRINGS, { save: () => Uint8Array.of(1), load: () => {} });
        const bench = DeviceBench.of(model, () => new FakePostcopy());
        const { device } = bench;
        try {
          if (isSetUp) await bench.setUp({ vrings: [0, 1, 2] });
          for (const ask of requests)
            try {
              await ask(device);
            } catch (error) {
              assert.ok(error instanceof ProtocolError, `${error}`);
            }
        } finally {
          await device.destroy();
        }
      }),
      { numRuns: 300 },
    ),
  ));
