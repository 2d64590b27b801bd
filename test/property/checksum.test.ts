import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { addOnes, checksumOf, completeChecksum, onesSum, subtractOnes } from '../../src/net/checksum.ts';
import { naiveSum } from '../kit/packets.ts';

/** 0 and 0xffff are the same number in ones' complement. */
const same = (a: number, b: number) => a % 0xffff === b % 0xffff;

test('checksum: the example of RFC 1071 §3', () => {
  const bytes = Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7);
  assert.equal(onesSum(new DataView(bytes.buffer), 0, 8), 0xddf2);
});

test('checksum: the IPv4 header of a packet in the wild', () => {
  const header = Buffer.from('45000073000040004011b861c0a80001c0a800c7', 'hex');
  const dv = new DataView(header.buffer, header.byteOffset, header.length);
  assert.equal(onesSum(dv, 0, 20), 0xffff);
  dv.setUint16(10, 0);
  assert.equal(checksumOf(onesSum(dv, 0, 20)), 0xb861);
});

test('checksum: any length at any alignment sums as word by word', () => {
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 100 }),
    fc.uint8Array({ maxLength: 3000, size: 'max' }),
    fc.nat(70000).map((n) => new Uint8Array(n).fill(0xff)),
  );
  fc.assert(
    fc.property(bytes, fc.nat(17), fc.boolean(), (data, off, shared) => {
      const size = off + data.length + 20;
      const all = new Uint8Array(shared ? new SharedArrayBuffer(size) : new ArrayBuffer(size)).fill(0xa5);
      all.set(data, off);
      assert.equal(onesSum(new DataView(all.buffer), off, data.length), naiveSum(data));
    }),
    { numRuns: 500 },
  );
});

test("checksum: adding and taking off are each other's inverse", () => {
  const word = fc.nat(0xffff);
  fc.assert(
    fc.property(word, word, (a, b) => {
      assert.ok(same(addOnes(a, b), a + b));
      assert.ok(same(subtractOnes(addOnes(a, b), b), a));
      assert.ok(addOnes(a, b) <= 0xffff && subtractOnes(a, b) <= 0xffff);
    }),
  );
});

test('checksum: a completed one verifies, is never zero, and nothing else is written', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 2, maxLength: 200 }), fc.nat(), fc.nat(0xffff), (data, where, pseudo) => {
      const at = (where % (data.length >> 1)) * 2;
      new DataView(data.buffer).setUint16(at, pseudo);
      const all = new Uint8Array(data.length + 9).fill(0xa5);
      all.set(data, 3);
      const dv = new DataView(all.buffer);
      completeChecksum(dv, 3, data.length, at);
      assert.notEqual(dv.getUint16(3 + at), 0);
      const pseudoBytes = Buffer.from([pseudo >> 8, pseudo & 0xff]);
      const total = naiveSum(pseudoBytes, all.subarray(3, 3 + data.length));
      assert.ok(same(total, 0xffff), `sums to ${total.toString(16)}`);
      data[at] = all[3 + at];
      data[at + 1] = all[4 + at];
      assert.deepEqual(all.subarray(3, 3 + data.length), data);
      assert.ok(all.subarray(0, 3).every((byte) => byte === 0xa5) && all.subarray(-6).every((byte) => byte === 0xa5));
    }),
  );
});
