/** Our layouts and constants of FUSE and of the vhost ioctls against the C headers of this machine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fuse from '../../src/uapi/fuse.ts';
import type { Layout } from '../../src/uapi/layout.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import { evaluateC, hasGcc } from './c-probe.ts';

const HEADERS = ['linux/fuse.h', 'linux/vhost.h'];
const skip = hasGcc() || process.env.CI === 'true' ? false : 'there is no gcc here to compile the C side with';

const exportsOf = (module: object) => Object.entries(module) as [string, unknown][];
const isLayout = (value: unknown): value is Layout<string> => typeof value === 'object';

test('FUSE and vhost: struct layouts are those of the C headers', { skip }, () => {
  const ours = new Map<string, bigint>();
  for (const [, value] of [...exportsOf(fuse), ...exportsOf(vhost)]) {
    if (!isLayout(value)) continue;
    const { name, size, off } = value;
    ours.set(`sizeof(struct ${name})`, BigInt(size));
    for (const [field, at] of Object.entries(off)) ours.set(`offsetof(struct ${name}, ${field})`, BigInt(at));
  }
  assert.ok(ours.has('sizeof(struct fuse_ioctl_in)') && ours.has('sizeof(struct vhost_memory)'));
  assert.deepEqual(evaluateC(HEADERS, new Map([...ours.keys()].map((one) => [one, undefined]))), ours);
});

test('FUSE and vhost: constants are those of the C headers', { skip }, () => {
  const ours = new Map<string, bigint>();
  // a plain int there, negative for one of them
  for (const [name, value] of [...exportsOf(fuse), ...exportsOf(vhost)])
    if (typeof value === 'number') ours.set(`(unsigned int)${name}`, BigInt(value >>> 0));
  assert.ok(ours.has('(unsigned int)CUSE_INIT') && ours.has('(unsigned int)VHOST_SET_MEM_TABLE'));
  assert.deepEqual(evaluateC(HEADERS, new Map([...ours.keys()].map((one) => [one, undefined]))), ours);
});
