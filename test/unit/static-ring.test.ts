/** The load generator's rings, against devices that use buffers as ours, as DPDK's in order, and as none should. */
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { StaticPort } from '../../bench/static-port.ts';
import type { StaticRing } from '../../bench/static-ring.ts';
import { GuestRam } from '../../src/port/guest-ram.ts';
import { NetPair } from '../../src/port/net-pair.ts';
import { VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import type { DriverRing } from '../../src/virtqueue/driver-ring.ts';

const SIZE = 64;
const HEADER_LEN = 12;
const BUFFER_BYTES = 256;
const ADDR_BYTES = 8;
const LEN = HEADER_LEN + 64;
const AVAIL = 0x80;
const USED = 0x8000;

const opened: { pair: NetPair; ram: GuestRam }[] = [];
after(async () => {
  for (const { pair, ram } of opened) {
    await pair.close();
    ram.close();
  }
});

function makePort(inOrder: boolean) {
  const ram = new GuestRam([{ guestAddr: 2 ** 30, size: 2 ** 21 }]);
  const layout = { pieces: 'one', indirect: false } as const;
  const pair = new NetPair(ram, {
    ...{ ringSize: SIZE, packed: true, inOrder, eventIdx: false, headerLen: HEADER_LEN, maxFrame: 64 },
    ...{ bufferBytes: BUFFER_BYTES, mergeable: false, txLayout: layout, rxLayout: layout },
  });
  opened.push({ pair, ram });
  const frames = Array.from({ length: SIZE }, (_, n) => new Uint8Array(64).fill(n));
  return { port: new StaticPort(pair, ram, frames, HEADER_LEN), drivers: pair.rings.map(({ driver }) => driver) };
}

/** A packed ring's device. Takes what is available one by one, and says so descriptor by descriptor, or once for all. */
class Device {
  readonly #ring: DriverRing;
  #at = 0;
  #wrap = true;

  constructor(ring: DriverRing) {
    this.#ring = ring;
  }

  #off(at: number): number {
    return this.#ring.descriptorOff(at) + ADDR_BYTES;
  }

  /** Uses up to `n` buffers. `named`: each one, or the last only in the place of the first. @returns how many, and their addresses */
  use(n: number, named: 'each' | 'last', write: boolean): number[] {
    const { dv } = this.#ring.views;
    const addrs: number[] = [];
    const first = this.#at;
    const flags = (this.#wrap ? AVAIL | USED : 0) | (write ? VRING_DESC_F_WRITE : 0);
    let id = -1;
    while (addrs.length < n) {
      const off = this.#off(this.#at);
      if ((dv.getUint16(off + 6, true) & (AVAIL | USED)) !== (this.#wrap ? AVAIL : USED)) break;
      assert.equal(dv.getUint32(off, true), write ? BUFFER_BYTES : LEN, 'length of an available buffer');
      id = dv.getUint16(off + 4, true);
      addrs.push(dv.getUint32(off - ADDR_BYTES, true));
      if (named === 'each') this.#write(off, id, this.#wrap, write);
      if (++this.#at === SIZE) {
        this.#at = 0;
        this.#wrap = !this.#wrap;
      }
    }
    if (named === 'last' && addrs.length > 0) {
      dv.setUint16(this.#off(first) + 4, id, true);
      dv.setUint16(this.#off(first) + 6, flags, true);
    }
    return addrs;
  }

  #write(off: number, id: number, wrap: boolean, write: boolean): void {
    const { dv } = this.#ring.views;
    dv.setUint32(off, write ? LEN : 0, true);
    dv.setUint16(off + 4, id, true);
    dv.setUint16(off + 6, (wrap ? AVAIL | USED : 0) | (write ? VRING_DESC_F_WRITE : 0), true);
  }

  /** Changes the id that the last used descriptor has. */
  spoil(): void {
    const { dv } = this.#ring.views;
    const off = this.#off((this.#at + SIZE - 1) % SIZE) + 4;
    dv.setUint16(off, (dv.getUint16(off, true) + 1) % SIZE, true);
  }
}

/** Looks until the ring's patience ends. */
function lookLong(ring: StaticRing): number {
  for (let i = 0; i < 1000; i++) {
    const n = ring.look(32);
    if (n > 0) return n;
  }
  return 0;
}

describe('static packed rings', () => {
  for (const named of ['each', 'last'] as const) {
    for (const block of [1, 4, 32]) {
      test(`go round and round in blocks of ${block} where ${named} used buffer is named`, () => {
        const { port, drivers } = makePort(named === 'last');
        const [rx, tx] = drivers.map((driver) => new Device(driver));
        port.rx.block = port.tx.block = block;
        assert.deepEqual(tx.use(1, named, false), [], 'nothing is on offer before the start');
        port.start(false);
        const counts = { rx: 0, tx: 0 };
        const seen = { rx: new Map<number, number>(), tx: new Map<number, number>() };
        for (let turn = 0; turn < 200; turn++) {
          for (const kind of ['rx', 'tx'] as const) {
            const addrs = (kind === 'rx' ? rx : tx).use(1 + ((turn * 7) % 45), named, kind === 'rx');
            for (const [i, addr] of addrs.entries()) {
              const at = (counts[kind] + i) % SIZE;
              assert.equal(addr, seen[kind].get(at) ?? addr, `${kind}: buffers come round in one order`);
              seen[kind].set(at, addr);
            }
            counts[kind] += addrs.length;
            const n = lookLong(port[kind]);
            assert.ok(port[kind].total + n <= counts[kind], `${kind}: no more is taken back than was used`);
            assert.equal((port[kind].used + n) % block, 0);
            if (n > 0) port[kind].recycle(n);
            assert.ok(counts[kind] - port[kind].total < block, `${kind}: all is found, but for a part of a block`);
          }
        }
        assert.ok(counts.rx > 20 * SIZE && counts.tx > 20 * SIZE, `many laps: ${JSON.stringify(counts)}`);
        assert.equal(new Set(seen.rx.values()).size, SIZE);
        assert.equal(new Set(seen.tx.values()).size, SIZE);
        assert.ok(port.rx.inOrder(SIZE) && port.tx.inOrder(SIZE));
      });
    }
  }

  test('a device that uses buffers out of order is found out', () => {
    const { port, drivers } = makePort(false);
    const rx = new Device(drivers[0]);
    rx.use(3, 'each', true);
    assert.equal(lookLong(port.rx), 3);
    assert.equal(port.rx.inOrder(3), true);
    port.rx.recycle(3);
    rx.use(5, 'each', true);
    rx.spoil();
    assert.equal(lookLong(port.rx), 5);
    assert.equal(port.rx.inOrder(5), false);
  });

  test('an in-order device that names a buffer which is not on offer is found out', () => {
    const { port, drivers } = makePort(true);
    const tx = new Device(drivers[1]);
    port.tx.publish(4);
    tx.use(4, 'each', false);
    tx.spoil();
    assert.equal(lookLong(port.tx), 4);
    assert.equal(port.tx.inOrder(4), false);
  });
});
