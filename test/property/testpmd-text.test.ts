/** Whatever is typed, or given as a device, is read or refused in one line; nothing else happens. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ConfigError } from '../../src/errors.ts';
import { parseVdev } from '../../src/port/vdev.ts';
import { VDEV_KINDS } from '../../src/port/vdev-kinds.ts';
import { COMMANDS, GRAMMAR } from '../../src/testpmd/commands.ts';
import { planStreams, type Topology } from '../../src/testpmd/topology.ts';

const words = [...new Set(COMMANDS.flatMap(({ pattern }) => pattern.split(' ')))];
const word = fc.oneof(fc.constantFrom(...words), fc.string(), fc.nat().map(String), fc.constantFrom('all', 'io', 'on'));
const line = fc.array(word, { maxLength: 8 }).map((all) => all.join(' '));

test('testpmd: any line is a command, nothing, or one line that says what is wrong', () => {
  fc.assert(
    fc.property(line, (text) => {
      const read = GRAMMAR.parse(text);
      if (typeof read === 'string') assert.match(read, /^(Bad arguments|Command not found): [^\n]+$/);
      else if (read !== undefined) assert.ok(read.values.every((value) => value !== undefined));
    }),
  );
});

test('testpmd: completing any line offers words that go on from what is typed', () => {
  fc.assert(
    fc.property(line, (text) => {
      const [offered, typed] = GRAMMAR.complete(text);
      assert.ok(text.endsWith(typed));
      for (const one of offered) assert.ok(one.startsWith(typed) && one.endsWith(' '));
    }),
  );
});

test('testpmd: what completion offers is never refused where it was offered', () => {
  fc.assert(
    fc.property(line, (text) => {
      const [offered, typed] = GRAMMAR.complete(text);
      const start = text.slice(0, text.length - typed.length);
      for (const one of offered) {
        const read = GRAMMAR.parse(start + one);
        if (typeof read === 'string') assert.match(read, /; found nothing$/);
      }
    }),
  );
});

test('vdev: any text is a device or a ConfigError', () => {
  const kind = fc.constantFrom(...Object.keys(VDEV_KINDS));
  const key = fc.constantFrom(...Object.values(VDEV_KINDS).flatMap(({ keys }) => Object.keys(keys)));
  const setting = fc
    .tuple(fc.oneof(key, fc.string()), fc.oneof(fc.nat().map(String), fc.string()))
    .map((two) => two.join('='));
  const device = fc
    .tuple(kind, fc.nat(), fc.array(setting, { maxLength: 4 }))
    .map(([name, n, settings]) => [`${name}${n}`, ...settings].join(','));
  fc.assert(
    fc.property(fc.oneof(device, fc.string()), (text) => {
      try {
        assert.ok(text.startsWith(parseVdev(text).name));
      } catch (error) {
        assert.ok(error instanceof ConfigError && error.option === '--vdev', `${error}`);
      }
    }),
  );
});

test('testpmd: every queue of every port is received from once and sent to once, both by one thread', () => {
  const wanted = fc.record({
    ports: fc.uniqueArray(fc.nat(31), { minLength: 1, maxLength: 9 }),
    topology: fc.constantFrom<Topology>('paired', 'chained', 'loop'),
    queues: fc.integer({ min: 1, max: 5 }),
    threads: fc.integer({ min: 1, max: 6 }),
  });
  fc.assert(
    fc.property(wanted, (all) => {
      const plan = planStreams(all);
      assert.ok(plan.length <= all.threads && plan.every((streams) => streams.length > 0));
      for (const side of ['rxPort', 'txPort'] as const) {
        const seen = plan.flatMap((streams) => streams.map((one) => `${one[side]}/${one.queue}`));
        assert.deepEqual(
          seen.toSorted(),
          all.ports.flatMap((port) => Array.from({ length: all.queues }, (_, q) => `${port}/${q}`)).toSorted(),
        );
      }
      const owner = new Map<string, number>();
      for (const [t, streams] of plan.entries()) {
        for (const { rxPort, txPort, queue } of streams) {
          for (const port of [rxPort, txPort]) {
            assert.equal(owner.get(`${port}/${queue}`) ?? t, t);
            owner.set(`${port}/${queue}`, t);
          }
        }
      }
    }),
  );
});

test('testpmd: a thread that has several queues of a port has those that its number says', () => {
  const sizes = fc.record({
    ports: fc.integer({ min: 1, max: 8 }),
    queues: fc.integer({ min: 1, max: 6 }),
    threads: fc.integer({ min: 1, max: 8 }),
  });
  fc.assert(
    fc.property(
      sizes,
      fc.constantFrom<Topology>('paired', 'chained', 'loop'),
      ({ ports, queues, threads }, topology) => {
        const plan = planStreams({ ports: Array.from({ length: ports }, (_, n) => n), topology, queues, threads });
        const lcores = Math.min(plan.length, queues);
        for (const streams of plan) {
          const classes = new Map<number, Set<number>>();
          for (const { rxPort, queue } of streams) {
            classes.set(rxPort, (classes.get(rxPort) ?? new Set()).add(queue % lcores));
          }
          for (const one of classes.values()) assert.equal(one.size, 1, 'as the engine hands queues to threads');
        }
      },
    ),
  );
});
