/**
 * An eventfd whose next write waits, as a hostile peer makes it: who shares it shares its flags.
 */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import koffi from 'koffi';
import { drain } from '../../src/sys/eventfd.ts';

const F_SETFL = 4;
const O_RDWR = 2;
const fcntl = koffi.load(null).func('fcntl', 'int', ['int', 'int', 'int']);
/** Makes the next write to an eventfd wait. Its owner has set it not to block, but the peer shares that setting. */
export function fillAndBlock(fd: number): void {
  drain(fd);
  assert.equal(fcntl(fd, F_SETFL, O_RDWR), 0);
  writeSync(fd, new BigUint64Array([2n ** 64n - 2n]));
}
