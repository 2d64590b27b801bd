/** Requests over rings of both formats: what a device sees of them, and in which order a driver gets them back. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { AddressMap } from '../../src/mem/address-map.ts';
import { DirtyLog } from '../../src/mem/dirty-log.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { inflightQueueBytes } from '../../src/uapi/inflight.ts';
import { VRING_DESC_F_NEXT } from '../../src/uapi/virtio-ring.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { Segment } from '../../src/virtqueue/driver-ring.ts';
import { FAULTS } from '../../src/virtqueue/fault.ts';
import { PackedRing } from '../../src/virtqueue/packed-ring.ts';
import { MAX_PENDING, RequestQueue } from '../../src/virtqueue/request-queue.ts';
import type { RingConfig } from '../../src/virtqueue/ring-config.ts';
import { SplitRing } from '../../src/virtqueue/split-ring.ts';
import { Dice } from '../kit/naive-driver.ts';
import { Ram } from '../kit/ram.ts';
import { RequestDriver, type RequestRing } from '../kit/request-driver.ts';

const KIB = 1024;
const text = (string: string) => new TextEncoder().encode(string);

/** A ring with both its sides. */
class Bench {
  readonly ram: Ram;
  readonly driver: RequestDriver;
  readonly #config: RingConfig;
  /** that of the device at work */
  queue: RequestQueue;

  constructor({ size = 64, cuts = [] as readonly number[], indirect = true, ...options }: BenchOptions = {}) {
    this.ram = new Ram({ cuts });
    this.driver = new RequestDriver(this.ram, size, options);
    const { addr, layout, ring: driver } = this.driver;
    const placeOf = (off: number) => ({ window: this.ram.handle.id, off: this.ram.offsetOf(addr) + off });
    const records = options.inflight ? this.ram.alloc(inflightQueueBytes(driver.format, size)) : undefined;
    this.#config = {
      format: driver.format,
      num: size,
      desc: placeOf(layout.descOff),
      avail: placeOf(layout.availOff),
      used: placeOf(layout.usedOff),
      base: options.packed ? 0x8000_8000 : 0,
      eventIdx: options.eventIdx ?? false,
      indirect,
      kickFd: NO_FD,
      callFd: NO_FD,
      inflight: records && { ...this.ram.place(records), num: size },
    };
    this.queue = this.newDevice();
  }

  /** A device that takes the ring over, with nothing but what is in memory, and a base as QEMU has it for want of a better one. */
  newDevice(): RequestQueue {
    const Ring = this.#config.format === 'packed' ? PackedRing : SplitRing;
    const windows = [];
    windows[this.ram.handle.id] = this.ram.views;
    const caller = new Caller(new Int32Array(1), 0);
    const ring = new Ring(this.#config, new AddressMap(this.ram.chunks), windows, caller);
    assert.equal(FAULTS[ring.start()].name, 'none');
    this.queue = new RequestQueue(ring, 3, 7n);
    return this.queue;
  }

  get fault(): string {
    return FAULTS[this.queue.ring.fault].name;
  }

  /** Offers a request that says `word`, with room for 8 bytes. */
  ask(word: string): number {
    const id = this.driver.add([text(word)], [8]);
    assert.ok(id >= 0, 'the ring has room');
    this.driver.ring.publish();
    return id;
  }

  /** The next request, which must be there. */
  pop() {
    const request = this.queue.pop();
    assert.ok(request !== undefined, `a request is there (${this.fault})`);
    return request;
  }

  /** Completes a request with its own word. */
  echo(request: ReturnType<Bench['pop']>): boolean {
    const word = request.readable.read();
    request.writable.write(word);
    return this.queue.complete(request, word.length);
  }

  /** The words that have come back. */
  get answers(): string[] {
    const words: string[] = [];
    for (let answer = this.driver.take(); answer !== undefined; answer = this.driver.take())
      words.push(answer.bytes.toString('latin1', 0, answer.written));
    return words;
  }
}

interface BenchOptions extends RequestRing {
  readonly size?: number;
  readonly cuts?: readonly number[];
  readonly indirect?: boolean;
  /** the ring has inflight records */
  readonly inflight?: boolean;
}

const words = (n: number, from = 0) => Array.from({ length: n }, (_, i) => `word${from + i}`);

/** Asks for many things in many shapes, and has them answered in any order. */
function manyLaps(dice: Dice, bench: Bench): void {
  const { driver, queue } = bench;
  const ALL = 1000;
  const underWay: ReturnType<Bench['pop']>[] = [];
  const got: string[] = [];
  for (let asked = 0; got.length < ALL; ) {
    const before = Array.from({ length: dice.int(0, 2) }, () => text('. '));
    const said = [...before, text(`#${asked}`)];
    if (asked < ALL && driver.add(said, [20, 20], dice.chance(50)) >= 0) asked++;
    if (dice.chance(30) || asked === ALL) driver.ring.publish();
    for (let n = dice.int(0, 3); n > 0; n--) {
      const request = queue.popOrAsk();
      if (request !== undefined) underWay.push(request);
    }
    for (let n = dice.int(0, 3); n > 0 && underWay.length > 0; n--)
      bench.echo(underWay.splice(dice.int(0, underWay.length - 1), 1)[0]);
    got.push(...bench.answers);
    assert.deepEqual([bench.fault, driver.ring.broken], ['none', undefined]);
  }
  const numbers = got.map((answer) => answer.replaceAll('. ', ''));
  assert.deepEqual(
    numbers,
    Array.from({ length: ALL }, (_, i) => `#${i}`),
  );
}

for (const packed of [false, true]) {
  const format = packed ? 'packed' : 'split';
  describe(`request queue, ${format}`, () => {
    test('a request has what the driver says and room for the answer, piece by piece', () => {
      const { queue, driver } = new Bench({ packed });
      assert.equal(queue.pop(), undefined);
      for (const indirect of [false, true]) {
        const id = driver.add([text('he'), text('llo')], [2, 3, 4], indirect);
        driver.ring.publish();
        const request = queue.pop();
        assert.ok(request !== undefined);
        assert.deepEqual([request.vring, request.features], [3, 7n]);
        assert.deepEqual(
          request.readable.pieces.map((piece) => Buffer.from(piece).toString()),
          ['he', 'llo'],
        );
        assert.deepEqual(
          request.writable.pieces.map(({ length }) => length),
          [2, 3, 4],
        );
        request.writable.write(text('answer'), 1);
        assert.equal(queue.complete(request, 7), true);
        const answer = driver.take();
        assert.deepEqual([answer?.id, answer?.written], [id, 7]);
        assert.equal(answer?.bytes.toString('latin1'), '\xeeanswer\xee\xee', 'nothing else is written');
      }
    });

    test('a request may have only one of both', () => {
      const { queue, driver } = new Bench({ packed });
      driver.add([text('only said')], []);
      driver.add([], [5]);
      driver.ring.publish();
      const [said, room] = [queue.pop(), queue.pop()];
      assert.deepEqual([said?.readable.length, said?.writable.length], [9, 0]);
      assert.deepEqual([room?.readable.length, room?.writable.length], [0, 5]);
      assert.equal(queue.pop(), undefined);
    });

    test('a descriptor that lies in two pieces of memory is two pieces', () => {
      const cuts = Array.from({ length: 63 }, (_, i) => (i + 1) * 64 * KIB);
      const bench = new Bench({ packed, cuts });
      const said = Uint8Array.from({ length: 200 * KIB }, (_, i) => i * 7);
      bench.driver.add([said], [100 * KIB]);
      bench.driver.ring.publish();
      const { readable, writable } = bench.pop();
      assert.ok(readable.pieces.length >= 4 && writable.pieces.length >= 2);
      assert.deepEqual(readable.read(), said);
      assert.deepEqual(readable.slice(1000, 150_000).read(1, 100_000), said.slice(1001, 101_000));
      assert.equal(writable.length, 100 * KIB);
    });

    test('the driver gets requests back in its order, whatever the order of completion', () => {
      const bench = new Bench({ packed });
      const asked = words(5);
      for (const word of asked) bench.ask(word);
      const requests = asked.map(() => bench.pop());
      for (const i of [3, 1]) assert.equal(bench.echo(requests[i]), false, 'held back');
      assert.deepEqual(bench.answers, []);
      assert.equal(bench.echo(requests[0]), true);
      assert.deepEqual(bench.answers, asked.slice(0, 2));
      bench.ask('word5');
      const late = bench.pop();
      assert.equal(bench.echo(late), false);
      assert.equal(bench.echo(requests[2]), true);
      assert.deepEqual(bench.answers, asked.slice(2, 4));
      assert.equal(bench.echo(requests[4]), true);
      assert.deepEqual(bench.answers, ['word4', 'word5']);
      assert.equal(bench.queue.pop(), undefined);
    });

    test('an in-order driver understands a batch', () => {
      const bench = new Bench({ packed, inOrder: true });
      const asked = words(5);
      for (const word of asked) bench.ask(word);
      const requests = asked.map(() => bench.pop());
      for (const i of [4, 2, 3, 1, 0]) bench.echo(requests[i]);
      assert.deepEqual(bench.answers, asked);
    });

    for (const eventIdx of [false, true])
      test(`kicks are asked for the next request, not for those under way (event index ${eventIdx})`, () => {
        const bench = new Bench({ packed, eventIdx });
        const { queue, driver } = bench;
        const kicked = (word: string) => {
          driver.add([text(word)], [8]);
          return driver.ring.publish();
        };
        assert.equal(queue.popOrAsk(), undefined);
        for (let lap = 0; lap < 100; lap++) {
          assert.equal(kicked(`a${lap}`), true, 'it has asked for the first');
          queue.ring.suppressKicks();
          const first = queue.popOrAsk();
          assert.ok(first !== undefined);
          assert.equal(kicked(`b${lap}`), false, 'it has not asked for the second');
          const second = queue.popOrAsk();
          assert.ok(second !== undefined);
          assert.equal(queue.popOrAsk(), undefined);
          assert.equal(kicked(`c${lap}`), true, 'it has asked for the third, with two under way');
          const third = queue.popOrAsk();
          assert.ok(third !== undefined);
          assert.equal(queue.popOrAsk(), undefined);
          for (const request of [second, third, first]) bench.echo(request);
          assert.deepEqual(bench.answers, [`a${lap}`, `b${lap}`, `c${lap}`]);
        }
      });

    test('no more than MAX_PENDING requests are given out', () => {
      const bench = new Bench({ packed, size: 1024 });
      const asked = words(MAX_PENDING + 1);
      for (const word of asked) bench.ask(word);
      const requests = asked.slice(1).map(() => bench.pop());
      assert.equal(bench.queue.blocked, true);
      assert.equal(bench.queue.popOrAsk(), undefined);
      bench.echo(requests[1]);
      assert.equal(bench.queue.blocked, true, 'one that is held back takes memory too');
      bench.echo(requests[0]);
      requests.push(bench.pop());
      for (const request of requests.slice(2)) bench.echo(request);
      assert.deepEqual(bench.answers, asked);
    });

    test('what makes no sense to complete is refused', () => {
      const bench = new Bench({ packed });
      bench.ask('word');
      const request = bench.pop();
      for (const written of [-1, 9, 0.5, Number.NaN])
        assert.throws(() => bench.queue.complete(request, written), RangeError);
      assert.deepEqual(bench.answers, []);
      bench.queue.complete(request, 8);
      assert.throws(() => bench.queue.complete(request, 8), /completed before/);
      assert.throws(() => request.writable.write(new Uint8Array(9)), RangeError);
      assert.throws(() => request.writable.write(new Uint8Array(1), 8), RangeError);
      assert.throws(() => request.readable.read(0, 5), RangeError);
      assert.throws(() => request.readable.read(3, 2), RangeError);
      assert.throws(() => request.readable.slice(-1), RangeError);
    });

    test('nothing comes back from behind a request that the device has failed at, and idle does not wait for it', async () => {
      const bench = new Bench({ packed });
      const asked = words(3);
      for (const word of asked) bench.ask(word);
      const [first, second, third] = asked.map(() => bench.pop());
      let idle = false;
      const waited = bench.queue.idle().then(() => {
        idle = true;
      });
      bench.queue.abandon(second);
      bench.echo(third);
      await new Promise(setImmediate);
      assert.equal(idle, false);
      bench.echo(first);
      await waited;
      assert.deepEqual(bench.answers, ['word0']);
      bench.ask('word3');
      assert.equal(bench.queue.pop(), undefined);
      await bench.queue.idle();
    });

    test('all writable memory of a completed request is in the dirty log', () => {
      const bench = new Bench({ packed });
      const { ram, queue, driver } = bench;
      const { window, off } = ram.place(ram.alloc(8192, 4096));
      const piece = { window, off: 65536, guestAddr: 0, size: 64 * 2 ** 20 };
      queue.ring.log = new DirtyLog({ window, off, size: 4096, pages: [piece] }, queue.ring.windows);
      const isDirty = (at: number) =>
        ((ram.views.u8[off + ((at - 65536) >> 15)] >> (((at - 65536) >> 12) & 7)) & 1) === 1;
      const said = ram.alloc(4096, 4096);
      const room = ram.alloc(3 * 4096, 4096);
      driver.addChain([
        { addr: said.addr, len: 4096 },
        { addr: room.addr, len: 2 * 4096, write: true },
        { addr: room.addr + 2 * 4096, len: 1, write: true },
      ]);
      driver.ring.publish();
      const request = bench.pop();
      assert.equal(isDirty(room.off), false);
      queue.complete(request, 1);
      assert.deepEqual(
        [0, 1, 2].map((page) => isDirty(room.off + 4096 * page)),
        [true, true, true],
        'one that has failed halfway may have written more than it says',
      );
      assert.equal(isDirty(said.off), false);
    });

    describe('malformed chains', () => {
      const DATA = 4096;
      interface Malformed {
        readonly name: string;
        readonly fault: string;
        readonly indirect?: boolean;
        chain(ram: Ram, data: number): Segment[];
      }
      const fair = (addr: number, write = false): Segment => ({ addr, len: 100, write });
      const chains: Malformed[] = [
        {
          name: 'a readable descriptor behind a writable one',
          fault: 'direction',
          chain: (_, data) => [fair(data), fair(data, true), fair(data)],
        },
        {
          name: 'a readable descriptor behind writable ones only',
          fault: 'direction',
          chain: (_, data) => [fair(data, true), fair(data)],
        },
        {
          name: 'a descriptor of no bytes',
          fault: 'zero_length',
          chain: (_, data) => [fair(data), { addr: data, len: 0, write: true }],
        },
        {
          name: 'a descriptor of 4 GiB less one byte',
          fault: 'address',
          chain: (_, data) => [{ addr: data, len: 0xffff_ffff }],
        },
        { name: 'a descriptor outside memory', fault: 'address', chain: (ram, data) => [fair(data), fair(ram.end)] },
        {
          name: 'a descriptor that ends outside memory',
          fault: 'address',
          chain: (ram) => [fair(ram.end - 99, true)],
        },
        {
          name: 'more than 2 GiB in all',
          fault: 'address',
          chain: (ram) => Array.from({ length: 34 }, () => ({ addr: ram.base, len: 2 ** 26, write: true })),
        },
        {
          name: 'more pieces than a list holds',
          fault: 'chain_loop',
          chain: (_, data) => Array.from({ length: 300 }, () => fair(data)),
        },
      ];
      for (const { name, fault, chain } of chains)
        for (const indirect of [false, true])
          test(`${name}${indirect ? ', in an indirect table' : ''}: ${fault}`, () => {
            const bench = new Bench({ packed, size: 512 });
            const { queue, driver, ram } = bench;
            bench.ask('before');
            const { addr } = ram.alloc(DATA);
            driver.addChain(chain(ram, addr), indirect);
            driver.ring.publish();
            const before = bench.pop();
            assert.equal(queue.pop(), undefined);
            assert.equal(bench.fault, fault);
            assert.equal(queue.blocked, true);
            assert.equal(queue.popOrAsk(), undefined, 'and no more is taken from the ring');
            bench.echo(before);
            assert.deepEqual(bench.answers, ['before'], 'what was asked before is answered');
          });

      test('an indirect table that was not negotiated: indirect', () => {
        const bench = new Bench({ packed, indirect: false });
        bench.driver.add([text('word')], [8], true);
        bench.driver.ring.publish();
        assert.equal(bench.queue.pop(), undefined);
        assert.equal(bench.fault, 'indirect');
      });

      test('a chain that never ends: chain_loop', () => {
        const bench = new Bench({ packed, size: 16 });
        const { addr } = bench.ram.alloc(DATA);
        const { ring } = bench.driver;
        const id = ring.add(Array.from({ length: 16 }, () => fair(addr)));
        const { dv } = bench.ram.views;
        // the last one goes on to the first: the flags are the last half-word of a packed descriptor, and before `next` in a split one
        const flagsOff = ring.descriptorOff(packed ? 15 : lastOf(bench, id)) + (packed ? 14 : 12);
        dv.setUint16(flagsOff, dv.getUint16(flagsOff, true) | VRING_DESC_F_NEXT, true);
        if (!packed) dv.setUint16(flagsOff + 2, id, true);
        ring.publish();
        assert.equal(bench.queue.pop(), undefined);
        assert.equal(bench.fault, 'chain_loop');
      });

      /** The last descriptor of the split ring's chain `id`. */
      function lastOf({ driver, ram }: Bench, id: number): number {
        let at = id;
        for (let steps = 0; steps < 16; steps++) {
          const off = driver.ring.descriptorOff(at);
          if ((ram.views.dv.getUint16(off + 12, true) & VRING_DESC_F_NEXT) === 0) return at;
          at = ram.views.dv.getUint16(off + 14, true);
        }
        return at;
      }
    });

    test('a device that takes over begins with the requests that were not given back, and records what it does', () => {
      const bench = new Bench({ packed, size: 16, inflight: true });
      let [asked, done] = [0, 0];
      for (let life = 0; life < 60; life++) {
        const { queue } = bench;
        for (; asked < done + 5; asked++) bench.ask(`word${asked}`);
        const requests = Array.from({ length: 5 }, () => bench.pop());
        assert.deepEqual(
          requests.map(({ readable }) => Buffer.from(readable.read()).toString()),
          words(5, done),
          `life ${life}`,
        );
        assert.equal(queue.pop(), undefined);
        // the last of them are held back, and lost with this life
        for (const i of [4, 1, 3, 0].slice(life % 3)) bench.echo(requests[i]);
        const n = [2, 2, 1][life % 3];
        assert.deepEqual(bench.answers, words(n, done));
        done += n;
        bench.newDevice();
      }
    });

    test('every request comes back once, with its own answer, over many laps of the ring', () => {
      fc.assert(
        fc.property(fc.integer(), fc.boolean(), fc.boolean(), (seed, eventIdx, inOrder) =>
          manyLaps(new Dice(seed), new Bench({ packed, size: 16, eventIdx, inOrder })),
        ),
        { numRuns: 6 },
      );
    });
  });
}
