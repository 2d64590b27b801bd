import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { helpText } from '../../src/cli/command-line.ts';
import {
  allValues,
  choice,
  FLAG,
  givenValue,
  hexMask,
  integer,
  ON_OFF,
  type Option,
  parseOptions,
  TEXT,
  valueOrDefault,
} from '../../src/cli/options.ts';
import { ConfigError, SwitchError, SysError } from '../../src/errors.ts';

const COUNT = { long: 'count', short: 'n', value: 'COUNT', type: integer(0, 100), default: '7', help: 'how many' };
const COUNTER = { long: 'counter', value: 'NAME', type: TEXT, repeats: true, help: 'which' } as const;
const COLOUR = { long: 'colour', value: 'WHEN', optionalValue: true, type: FLAG, help: 'colours' } as const;
const QUIET = { long: 'quiet', short: 'q', type: FLAG, help: 'say nothing' };
const VERBOSE = { short: 'v', type: FLAG, help: 'say more' };
const TABLE: readonly Option[] = [COUNT, COUNTER, COLOUR, QUIET, VERBOSE];

const values = (...args: string[]) => parseOptions(TABLE, args).given.map(({ name, text }) => `${name} ${text}`.trim());
const fails = (code: string, option: string, message: RegExp, ...args: string[]) =>
  assert.throws(
    () => parseOptions(TABLE, args),
    (error) => {
      assert.ok(error instanceof ConfigError && error instanceof SwitchError);
      assert.deepEqual([error.code, error.option], [code, option]);
      assert.match(error.message, message);
      return true;
    },
  );

test('options: a long option takes its value from the same word or from the next', () => {
  assert.deepEqual(values('--count', '5'), ['--count 5']);
  assert.deepEqual(values('--count=5'), ['--count 5']);
  assert.deepEqual(values('--counter=a=b'), ['--counter a=b']);
});

test('options: a short option takes its value from the same word or from the next', () => {
  assert.deepEqual(values('-n', '5'), ['-n 5']);
  assert.deepEqual(values('-n5'), ['-n 5']);
});

test('options: short flags share a word, and the last of them may take a value', () => {
  assert.deepEqual(values('-qv'), ['-q', '-v']);
  assert.deepEqual(values('-qvn5', '-vn', '6'), ['-q', '-v', '-n 5', '-v', '-n 6']);
});

test('options: the word after an option is its value even when it looks like an option', () => {
  assert.deepEqual(values('--counter', '--quiet', '-q'), ['--counter --quiet', '-q']);
});

test('options: an optional value is taken from the same word only', () => {
  assert.deepEqual(values('--colour', '-q'), ['--colour', '-q']);
  assert.deepEqual(values('--colour=always'), ['--colour always']);
});

test('options: a unique beginning stands for a long option, and a full name wins over longer ones', () => {
  assert.deepEqual(values('--q'), ['--quiet']);
  assert.deepEqual(values('--counte', 'a'), ['--counter a']);
  assert.deepEqual(values('--count', '5'), ['--count 5']);
  assert.deepEqual(values('--col=x'), ['--colour x']);
});

test('options: an ambiguous beginning is an error that names the candidates', () => {
  fails('CONFIG_AMBIGUOUS_OPTION', '--cou', /beginning of several options: --count, --counter$/, '--cou', '1');
  fails('CONFIG_AMBIGUOUS_OPTION', '--co', /--count, --counter, --colour$/, '--co');
});

test('options: an unknown option is an error that names the nearest', () => {
  fails('CONFIG_UNKNOWN_OPTION', '--color', /nearest is --colour$/, '--color');
  fails('CONFIG_UNKNOWN_OPTION', '--qiuet', /nearest is --quiet$/, '--qiuet=1');
  fails('CONFIG_UNKNOWN_OPTION', '-x', /unknown option/, '-qx');
});

test('options: a missing value and a value too many are errors', () => {
  fails('CONFIG_MISSING_VALUE', '--count', /needs a value: 0\.\.100/, '--count');
  fails('CONFIG_MISSING_VALUE', '-n', /needs a value/, '-qn');
  fails('CONFIG_UNEXPECTED_VALUE', '--quiet', /takes no value, "1" is given/, '--quiet=1');
});

test('options: an invalid value is an error with the valid range', () => {
  fails(
    'CONFIG_INVALID_VALUE',
    '--count',
    /^--count: invalid count "101"; valid: 0\.\.100$/,
    '--count=1',
    '--count',
    '101',
  );
  fails('CONFIG_INVALID_VALUE', '--count', /invalid count ""/, '--count=');
  fails('CONFIG_INVALID_VALUE', '--counter', /invalid name ""/, '--counter=');
  assert.throws(() => parseOptions(TABLE, ['--count', 'x']), { range: '0..100' });
});

test('options: words that belong to no option are kept apart', () => {
  assert.deepEqual(parseOptions(TABLE, ['a', '-q', '-', '--', 'b']).words, ['a', '-', '--', 'b']);
});

test('options: the last of several values counts, and all of a repeated option', () => {
  const { given } = parseOptions(TABLE, ['-n1', '--counter', 'a', '--count', '2', '--counter=b']);
  assert.equal(givenValue(given, COUNT), 2);
  assert.deepEqual(allValues(given, COUNTER), ['a', 'b']);
  assert.equal(givenValue(given, QUIET), undefined);
  assert.equal(valueOrDefault(given, COUNT), 2);
  assert.equal(valueOrDefault([], COUNT), 7);
});

test('options: numbers are whole decimal numbers in their range', () => {
  const type = integer(5, 2147483647);
  for (const text of ['5', '05', '2147483647']) assert.equal(type.parse(text), Number(text));
  for (const text of ['', ' 5', '5 ', '4', '-5', '+5', '0x5', '5.0', '5e1', '2147483648', '9'.repeat(400), '٥']) {
    assert.equal(type.parse(text), undefined, text);
  }
});

test('options: switches are 0 or 1, choices one of their words', () => {
  assert.deepEqual(['0', '1', '01', '2', '', 'on'].map(ON_OFF.parse), [
    false,
    true,
    true,
    undefined,
    undefined,
    undefined,
  ]);
  assert.deepEqual(['a', 'b', 'c', ''].map(choice('a', 'b').parse), ['a', 'b', undefined, undefined]);
});

test('options: masks are hexadecimal, not zero, and within their bits', () => {
  const type = hexMask(32);
  assert.deepEqual(type.parse('f'), [0, 1, 2, 3]);
  assert.deepEqual(type.parse('0XA1'), [0, 5, 7]);
  assert.deepEqual(type.parse('0x80000000'), [31]);
  assert.deepEqual(type.parse('0000000000000001'), [0]);
  for (const text of ['', '0', '0x', '0x0', 'g', '1 1', '-1', '100000000', '0x1.8'])
    assert.equal(type.parse(text), undefined, text);
});

test('help: the text is the golden one and stays within 100 columns', () => {
  assert.equal(helpText(), readFileSync(new URL('help.golden.txt', import.meta.url), 'utf8'));
  for (const line of helpText().split('\n')) assert.ok(line.length <= 100, line);
});

test('errors: a system call error names the call, its object and the errno', () => {
  const error = new SysError('bind', 98, 'a.sock');
  assert.deepEqual([error.name, error.code, error.syscall, error.errno], ['SysError', 'EADDRINUSE', 'bind', 98]);
  assert.equal(error.message, 'bind a.sock: EADDRINUSE: address already in use');
});
