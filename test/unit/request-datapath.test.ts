/** The datapath of a device that answers requests: when it begins them, and what it waits for. */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createEventfd, drain, signal } from '../../src/sys/eventfd.ts';
import { RequestDatapath, type RequestHandler } from '../../src/vhost/request-datapath.ts';
import { NO_FD } from '../../src/vhost/vhost-device.ts';
import type { VirtioRequest } from '../../src/virtqueue/request-queue.ts';
import { openFds } from '../kit/device-bench.ts';
import { Ram } from '../kit/ram.ts';
import { RequestDriver } from '../kit/request-driver.ts';

const PORT = 0;
/** Where a packed ring of 256 stands after 1200 descriptors: place 176 of a lap with wrap counter 1. */
const PACKED_AT_1200 = 0x80b0_80b0;
const text = (string: string) => new TextEncoder().encode(string);

/** A promise that the test keeps. */
interface Waiting {
  readonly request: VirtioRequest;
  finish(written: number): void;
  fail(error: Error): void;
}

/** A device with its driver. */
class Bench {
  readonly ram = new Ram();
  readonly driver: RequestDriver;
  readonly kick = createEventfd();
  readonly call = createEventfd();
  readonly err = createEventfd();
  readonly told: string[] = [];
  readonly datapath: RequestDatapath;
  readonly waiting: Waiting[] = [];

  constructor({
    handle,
    size = 256,
    packed = false,
  }: { handle?: RequestHandler; size?: number; packed?: boolean } = {}) {
    this.driver = new RequestDriver(this.ram, size, { packed });
    const wait: RequestHandler = (request) =>
      new Promise((finish, fail) => this.waiting.push({ request, finish, fail }));
    this.datapath = new RequestDatapath(handle ?? wait, {
      onFault: (vring, fault) => this.told.push(`fault ${fault} of ${vring}`),
      onMiss: (vring, iova, write) => this.told.push(`miss 0x${iova.toString(16)} ${write} of ${vring}`),
      onFailure: (error) => this.told.push(`failure: ${error.message}`),
    });
  }

  async start({ enabled = true, kickFd = this.kick } = {}): Promise<this> {
    await this.datapath.setMemory(PORT, this.ram.memory);
    this.startVring(enabled, kickFd);
    return this;
  }

  startVring(enabled: boolean, kickFd: number, base = this.driver.ring.format === 'packed' ? 0x8000_8000 : 0): void {
    const { addr, layout, ring } = this.driver;
    const placeOf = (off: number) => ({ window: this.ram.handle.id, off: this.ram.offsetOf(addr) + off });
    this.datapath.startVring(PORT, 0, {
      ring: {
        format: ring.format,
        num: ring.size,
        desc: placeOf(layout.descOff),
        avail: placeOf(layout.availOff),
        used: placeOf(layout.usedOff),
        base,
        ...{ eventIdx: false, indirect: true, kickFd, callFd: this.call },
      },
      features: 0n,
      enabled,
      errFd: this.err,
    });
  }

  ask(word: string): void {
    assert.ok(this.driver.add([text(word)], [16]) >= 0);
    if (this.driver.ring.publish()) signal(this.kick);
  }

  get answers(): string[] {
    const words: string[] = [];
    for (let answer = this.driver.take(); answer !== undefined; answer = this.driver.take())
      words.push(answer.bytes.toString('latin1', 0, answer.written));
    return words;
  }

  async until(what: string, condition: () => boolean): Promise<void> {
    const giveUpAt = performance.now() + 5000;
    while (!condition()) {
      assert.ok(performance.now() < giveUpAt, `in vain waited for: ${what}`);
      await sleep(1);
    }
  }

  /** Stops everything. @returns where the vring stood */
  async end(): Promise<number | undefined> {
    const base = await this.datapath.stopVring(PORT, 0);
    this.datapath.removePort();
    for (const fd of [this.kick, this.call, this.err]) closeSync(fd);
    return base;
  }
}

const echo: RequestHandler = ({ readable, writable }) => {
  const word = readable.read();
  writable.write(word);
  return word.length;
};

/** A moment in which a device that should do nothing would have done it. */
const aMoment = () => sleep(30);

describe('request datapath', () => {
  for (const packed of [false, true])
    test(`a kick has requests answered, and the driver is called (${packed ? 'packed' : 'split'})`, async () => {
      const before = openFds();
      const bench = await new Bench({ handle: echo, packed }).start();
      for (let i = 0; i < 600; i++) {
        bench.ask(`word${i}`);
        await bench.until('a call', () => drain(bench.call) > 0);
        assert.deepEqual(bench.answers, [`word${i}`]);
      }
      assert.equal(await bench.end(), packed ? PACKED_AT_1200 : 600);
      assert.equal(openFds(), before);
    });

  test('what was there before the vring started is answered without a kick', async () => {
    const bench = new Bench({ handle: echo });
    bench.driver.add([text('early')], [8]);
    bench.driver.ring.publish();
    await bench.start();
    await bench.until('an answer', () => bench.driver.ring.ready);
    assert.deepEqual(bench.answers, ['early']);
    await bench.end();
  });

  test('a vring without a kick eventfd is looked at all the time', async () => {
    const bench = await new Bench({ handle: echo }).start({ kickFd: NO_FD });
    for (const word of ['one', 'two']) {
      bench.driver.add([text(word)], [8]);
      bench.driver.ring.publish();
      await bench.until('an answer', () => bench.driver.ring.ready);
      assert.deepEqual(bench.answers, [word]);
    }
    await bench.end();
  });

  test('a disabled vring waits until it is enabled', async () => {
    const bench = await new Bench({ handle: echo }).start({ enabled: false });
    bench.ask('word');
    await aMoment();
    assert.deepEqual(bench.answers, []);
    bench.datapath.enableVring(PORT, 0, true);
    await bench.until('an answer', () => bench.driver.ring.ready);
    assert.deepEqual(bench.answers, ['word']);
    bench.datapath.enableVring(PORT, 0, false);
    bench.ask('late');
    await aMoment();
    assert.deepEqual(bench.answers, []);
    await bench.end();
  });

  test('many requests are begun in turns, and others get theirs in between', async () => {
    let begun = 0;
    const bench = new Bench({
      handle: () => {
        begun++;
        return 0;
      },
    });
    for (let i = 0; i < 120; i++) bench.driver.add([text('word')], [8]);
    bench.driver.ring.publish();
    await bench.start();
    const seen: number[] = [];
    while (begun < 120) {
      await new Promise(setImmediate);
      seen.push(begun);
    }
    assert.ok(
      seen.some((n) => n > 0 && n < 120),
      `begun after each turn: ${seen}`,
    );
    await bench.end();
  });

  test('stopping waits for what is under way, and begins nothing more', async () => {
    const bench = await new Bench().start();
    for (const word of ['one', 'two', 'three']) bench.ask(word);
    await bench.until('three requests', () => bench.waiting.length === 3);
    let base: number | undefined;
    const stopped = bench.datapath.stopVring(PORT, 0).then((where) => {
      base = where;
    });
    bench.ask('four');
    await aMoment();
    assert.equal(base, undefined);
    for (const { request, finish } of bench.waiting.toReversed()) {
      request.writable.write(text('yes'));
      finish(3);
    }
    await stopped;
    assert.equal(base, 3);
    assert.deepEqual(bench.answers, ['yes', 'yes', 'yes']);
    bench.startVring(true, bench.kick, base);
    await bench.until('the fourth request', () => bench.waiting.length === 4);
    assert.equal(Buffer.from(bench.waiting[3].request.readable.read()).toString(), 'four');
    bench.waiting[3].finish(0);
    assert.equal(await bench.end(), 4);
  });

  test('new memory waits for what is under way in the old, and holds up what comes meanwhile', async () => {
    const bench = await new Bench().start();
    bench.ask('old');
    await bench.until('a request', () => bench.waiting.length === 1);
    let changed = false;
    const done = Promise.resolve(bench.datapath.setMemory(PORT, bench.ram.memory)).then(() => {
      changed = true;
    });
    bench.ask('new');
    await aMoment();
    assert.deepEqual([changed, bench.waiting.length], [false, 1]);
    bench.waiting[0].finish(0);
    await done;
    await bench.until('the next request', () => bench.waiting.length === 2);
    bench.waiting[1].finish(0);
    await bench.end();
  });

  test('a request waits for a translation, which is asked for once', async () => {
    const bench = new Bench({ handle: echo });
    const { memory } = bench.ram;
    const chunks = memory.chunks.map((chunk) => ({ ...chunk, writable: false }));
    await bench.datapath.setMemory(PORT, { ...memory, chunks, iotlb: true });
    bench.startVring(true, bench.kick);
    for (const word of ['one', 'two']) bench.ask(word);
    await bench.until('a miss', () => bench.told.length > 0);
    await aMoment();
    assert.equal(bench.told.length, 1);
    assert.match(bench.told[0], /^miss 0x[0-9a-f]+ true of 0$/);
    await bench.datapath.setMemory(PORT, { ...memory, iotlb: true });
    await bench.until('both answers', () => bench.waiting.length === 0 && bench.driver.ring.ready);
    await aMoment();
    assert.deepEqual(bench.answers, ['one', 'two']);
    await bench.end();
  });

  test('a malformed chain stops the vring: that is told once, also by the error eventfd', async () => {
    const bench = await new Bench({ handle: echo }).start();
    bench.ask('before');
    bench.driver.addChain([{ addr: 0, len: 8 }]);
    bench.driver.ring.publish();
    signal(bench.kick);
    await bench.until('the fault', () => bench.told.length > 0);
    for (let i = 0; i < 3; i++) bench.ask('behind');
    await aMoment();
    assert.deepEqual(bench.told, ['fault 5 of 0']);
    assert.equal(drain(bench.err), 1);
    assert.deepEqual(bench.answers, ['before']);
    assert.equal(await bench.end(), 1);
  });

  const broken: [string, RequestHandler][] = [
    ['throws', () => assert.fail('on fire')],
    ['rejects', () => Promise.reject(new Error('on fire'))],
    ['says that it has written more than there is room for', () => 17],
    ['says that later', () => Promise.resolve(-1)],
  ];
  for (const [how, handle] of broken)
    test(`a handler that ${how} fails the device: told once, and nothing more is begun or given back`, async () => {
      let calls = 0;
      const counted: RequestHandler = (request) => {
        calls++;
        return handle(request);
      };
      const bench = await new Bench({ handle: counted }).start();
      bench.ask('one');
      await bench.until('the failure', () => bench.told.length > 0);
      for (const word of ['two', 'three']) bench.ask(word);
      await aMoment();
      assert.equal(bench.told.length, 1);
      assert.match(bench.told[0], /^failure: (on fire|(17|-1) bytes written to a request with room for 16)$/);
      assert.deepEqual([calls, bench.answers], [1, []]);
      assert.equal(await bench.end(), 0, 'a successor begins with the request that failed');
    });

  test('a handler that fails many requests at a time is told of once', async () => {
    const bench = await new Bench().start();
    for (const word of ['one', 'two']) bench.ask(word);
    await bench.until('two requests', () => bench.waiting.length === 2);
    for (const { fail } of bench.waiting) fail(new Error('on fire'));
    await bench.until('the failure', () => bench.told.length > 0);
    await aMoment();
    assert.deepEqual(bench.told, ['failure: on fire']);
    await bench.end();
  });

  test('a new call eventfd is used from then on', async () => {
    const bench = await new Bench({ handle: echo }).start();
    const other = createEventfd();
    bench.datapath.setCall(PORT, 0, other);
    bench.ask('word');
    await bench.until('a call', () => drain(other) > 0);
    assert.equal(drain(bench.call), 0);
    await bench.end();
    closeSync(other);
  });
});
