/** Values of QEMU's options: what is read is printed again as it was, and a change touches one key. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import type { MemoryWish } from '../../src/launch/memory.ts';
import { makeValue, parseValue } from '../../src/launch/option-value.ts';
import { shellWord } from '../../src/launch/print.ts';
import { parseLine } from '../../src/launch/qemu-line.ts';
import { rewriteQemuLine } from '../../src/launch/rewrite.ts';
import { shellWords } from '../kit/command-cases.ts';

/** Much of what means something, and anything else. */
const anyText = fc.oneof(
  fc.string({ unit: fc.constantFrom(',', '=', 'a', 'b', 'on', 'no', ' ', '"', "'", '\\', '-', '\n', '{', 'é') }),
  fc.string(),
);
const plainText = anyText.filter((text) => !text.startsWith('{'));
const key = fc.stringMatching(/^[a-z][a-z_.-]{0,5}$/);

describe('values of QEMU options', () => {
  test('a value of any text is printed as it was read, with an implied key and without', () => {
    fc.assert(
      fc.property(plainText, fc.constantFrom('', 'driver'), (text, implied) => {
        assert.equal(parseValue(text, implied).toString(), text);
      }),
    );
  });

  test('JSON is printed as it was read', () => {
    fc.assert(
      fc.property(fc.dictionary(key, fc.jsonValue()), fc.nat({ max: 2 }), (object, indent) => {
        const text = JSON.stringify(object, undefined, indent);
        assert.equal(parseValue(text, 'driver').toString(), text);
      }),
    );
  });

  test('a key that was set is read with the same text, and the others stay as they were', () => {
    const value = fc.oneof(plainText, fc.constant('{"driver":"e1000","x":1}'));
    fc.assert(
      fc.property(value, key, anyText, key, (text, name, content, other) => {
        fc.pre(name !== other && other !== `no${name}` && name !== `no${other}`);
        const changed = parseValue(text, 'driver');
        const before = changed.get(other);
        changed.set(name, content);
        const again = parseValue(changed.toString(), 'driver');
        assert.equal(again.get(name), content);
        assert.equal(again.get(other), before);
        changed.delete(name);
        assert.equal(parseValue(changed.toString(), 'driver').get(name), undefined);
      }),
    );
  });

  test('a value that is made is read as it was meant', () => {
    fc.assert(
      fc.property(fc.dictionary(key, anyText, { maxKeys: 5 }), (pairs) => {
        const value = parseValue(makeValue('socket', pairs), 'backend');
        for (const [name, content] of Object.entries(pairs)) assert.equal(value.get(name), content);
      }),
    );
  });
});

describe('QEMU command lines', () => {
  const word = fc.oneof(anyText, fc.constantFrom('-m', '-S', '-device', '--name', '-drive', '-append'));

  test('the words of the options are the arguments', () => {
    fc.assert(
      fc.property(fc.array(word), (args) => {
        const words = parseLine(args).flatMap((option) => option.words);
        assert.deepEqual(words, args);
      }),
    );
  });

  test('a line without a virtio card passes through untouched', () => {
    const network = {
      link: {
        replaces: true,
        network: () => assert.fail('no card needs a network'),
      },
      offloads: true,
      queues: undefined,
    };
    const memory: MemoryWish = { hugepages: 'off', mounts: () => [], fileKind: () => 'nothing' };
    const option = fc.tuple(fc.constantFrom('-m', '-drive', '-chardev', '-append', '-object', '-numa'), plainText);
    fc.assert(
      fc.property(fc.array(option), (options) => {
        const args = options.flat();
        assert.deepEqual(rewriteQemuLine(args, { network, memory }).args, args);
      }),
    );
  });

  test('a shell takes a printed word as the word it was', () => {
    fc.assert(
      fc.property(
        anyText.filter((text) => text !== ''),
        (text) => {
          assert.deepEqual(shellWords(shellWord(text)), [text]);
        },
      ),
    );
  });
});
