import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  LEARN_KNOWN,
  LEARN_MOVED,
  LEARN_NEW,
  LEARN_REFUSED,
  MacTable,
  NOT_FOUND,
  vidBits,
} from '../../src/switch/mac-table.ts';

const PORTS = 4;
/** Addresses used: few, so that they meet again and crowd a small table. */
const ADDRESSES = 48;
/** Every other one is in a VLAN, where one of the same bytes is without. */
const address = (n: number): [first: number, last: number] => [
  Math.imul(n >> 1, 0x01000193),
  ((n >> 1) & 3) | vidBits((n & 1) * (4095 - n)),
];

/** What a MacTable does, with a Map. Probe limits do not bind in tables so small. */
class Model {
  readonly entries = new Map<number, { port: number; seen: number }>();
  readonly #max: number;
  readonly #portMax: number;

  constructor(max: number, portMax: number) {
    this.#max = max;
    this.#portMax = portMax;
  }

  learn(n: number, port: number, now: number): number {
    const entry = this.entries.get(n);
    const ofPort = [...this.entries.values()].filter((e) => e.port === port).length;
    const roomOnPort = ofPort < this.#portMax;
    if (entry?.port === port) {
      entry.seen = now;
      return LEARN_KNOWN;
    }
    if (!roomOnPort || (entry === undefined && this.entries.size >= this.#max)) return LEARN_REFUSED;
    this.entries.set(n, { port, seen: now });
    return entry === undefined ? LEARN_NEW : LEARN_MOVED;
  }

  forget(which: (entry: { port: number; seen: number }) => boolean): void {
    for (const [n, entry] of this.entries) if (which(entry)) this.entries.delete(n);
  }
}

const step = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('learn' as const),
      n: fc.nat(ADDRESSES - 1),
      port: fc.nat(PORTS - 1),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('age' as const), maxAge: fc.nat(40) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('flush' as const), port: fc.nat(PORTS - 1) }) },
);

test('MAC table: it does what a Map would, also when crowded', () => {
  const sizes = fc.record({ max: fc.integer({ min: 1, max: 32 }), portMax: fc.integer({ min: 1, max: 32 }) });
  fc.assert(
    fc.property(sizes, fc.array(step, { maxLength: 150 }), ({ max, portMax }, steps) => {
      const table = new MacTable(max, portMax, PORTS);
      const model = new Model(max, portMax);
      steps.forEach((s, now) => {
        if (s.do === 'learn') {
          const [first, last] = address(s.n);
          assert.equal(table.learn(first, last, s.port, now), model.learn(s.n, s.port, now), `step ${now}`);
        } else if (s.do === 'age') {
          table.age(now, s.maxAge);
          model.forget(({ seen }) => now - seen > s.maxAge);
        } else {
          table.flushPort(s.port);
          model.forget(({ port }) => port === s.port);
        }
        for (let n = 0; n < ADDRESSES; n++) {
          const found = table.lookup(...address(n));
          assert.equal(found, model.entries.get(n)?.port ?? NOT_FOUND, `address ${n} after step ${now}`);
        }
        assert.equal(table.size, model.entries.size);
      });
    }),
    { numRuns: 300 },
  );
});
