import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ConfigError } from '../../src/errors.ts';
import { parseVdev, parseVdevs, type VdevOf } from '../../src/port/vdev.ts';
import { VDEV_KINDS, type VdevKey, type VdevKind } from '../../src/port/vdev-kinds.ts';

const fails = (code: ConfigError['code'], message: RegExp, text: string) =>
  assert.throws(
    () => parseVdev(text),
    (error) => {
      assert.ok(error instanceof ConfigError);
      assert.deepEqual([error.code, error.option], [code, '--vdev']);
      assert.match(error.message, message);
      return true;
    },
  );

test('vdev: name, number and values are read, and defaults are filled in', () => {
  const vdev = parseVdev('net_virtio_user3,path=/tmp/x.sock,mac=52:54:00:AB:cd:01,queues=2,server=1');
  assert.deepEqual(vdev, {
    kind: 'net_virtio_user',
    name: 'net_virtio_user3',
    number: 3,
    values: {
      path: '/tmp/x.sock',
      mac: '52:54:00:ab:cd:01',
      queues: 2,
      queue_size: 256,
      server: true,
      mrg_rxbuf: true,
      in_order: true,
      packed_vq: false,
      speed: undefined,
      cq: undefined,
      vectorized: undefined,
      offloads: false,
    },
    notes: [],
  });
});

test("vdev: DPDK's other names mean the same kind, and the name stays as it was given", () => {
  for (const [name, kind] of [
    ['virtio_user0,path=/x', 'net_virtio_user'],
    ['eth_null10', 'net_null'],
    ['eth_af_packet0,iface=lo', 'net_af_packet'],
  ]) {
    const vdev = parseVdev(name);
    assert.deepEqual([vdev.kind, vdev.name], [kind, name.split(',')[0]]);
  }
});

test('vdev: keys that repeat make lists', () => {
  const { values } = parseVdev('net_pcap0,rx_pcap=a.pcap,rx_pcap=b.pcap,infinite_rx=1') as VdevOf<'net_pcap'>;
  assert.deepEqual(values.rx_pcap, ['a.pcap', 'b.pcap']);
  assert.deepEqual(values.tx_pcap, []);
  assert.equal(values.infinite_rx, true);
});

test('vdev: a key may stand alone where that means something', () => {
  const { values } = parseVdev('net_tap0,iface=t0,persist') as VdevOf<'net_tap'>;
  assert.equal(values.persist, true);
  fails('CONFIG_INVALID_VALUE', /invalid iface ""; valid: the name of an interface of 1 to 15 bytes/, 'net_tap0,iface');
});

test('vdev: an interface may be one of a network namespace', () => {
  const iface = (text: string) => (parseVdev(`net_af_packet0,iface=${text}`) as VdevOf<'net_af_packet'>).values.iface;
  for (const text of ['eth1', 'blue:eth1', `${'n'.repeat(255)}:${'e'.repeat(15)}`, '...:e'])
    assert.equal(iface(text), text);
  for (const text of ['blue:', ':eth1', '../x:eth1', '..:eth1', 'a:b:c', 'e'.repeat(16), `n:${'e'.repeat(16)}`])
    fails(
      'CONFIG_INVALID_VALUE',
      /invalid iface .* of 1 to 15 bytes, or NAMESPACE:INTERFACE$/,
      `net_af_packet0,iface=${text}`,
    );
});

test('vdev: a value may hold an equals sign', () => {
  const { values } = parseVdev('net_pcap0,rx_pcap=a=b.pcap') as VdevOf<'net_pcap'>;
  assert.deepEqual(values.rx_pcap, ['a=b.pcap']);
});

test('vdev: unknown kinds and keys are errors that name the nearest', () => {
  fails(
    'CONFIG_INVALID_VALUE',
    /^--vdev net_afpacket0: no such kind of device; the nearest is net_af_packet0$/,
    'net_afpacket0',
  );
  fails(
    'CONFIG_UNKNOWN_OPTION',
    /^--vdev net_tap0,ifac=x: net_tap has no key "ifac"; the nearest is iface$/,
    'net_tap0,ifac=x',
  );
  fails('CONFIG_UNKNOWN_OPTION', /net_ring has no key "size"; it takes none$/, 'net_ring0,size=1');
  // names that every object has
  fails('CONFIG_UNKNOWN_OPTION', /has no key "constructor"/, 'net_null0,constructor=1');
  fails('CONFIG_INVALID_VALUE', /no such kind/, 'constructor0');
});

test('vdev: the name ends in a number', () => {
  fails('CONFIG_INVALID_VALUE', /ends in a number of up to 9 digits, for example net_null0$/, 'net_null');
  fails('CONFIG_INVALID_VALUE', /ends in a number/, 'net_null1234567890');
  fails('CONFIG_INVALID_VALUE', /no such kind/, '');
});

test('vdev: values out of range, twice, and missing are errors', () => {
  fails('CONFIG_INVALID_VALUE', /invalid queues "0"; valid: 1\.\.128$/, 'net_virtio_user0,path=/x,queues=0');
  fails('CONFIG_INVALID_VALUE', /"48"; valid: 2\.\.32768, a power of two$/, 'net_virtio_user0,path=/x,queue_size=48');
  fails('CONFIG_INVALID_VALUE', /invalid mac "53:54:00:00:00:01"/, 'net_virtio_user0,path=/x,mac=53:54:00:00:00:01');
  fails('CONFIG_INVALID_VALUE', /a path of 1 to 107 bytes/, `net_virtio_user0,path=/${'x'.repeat(107)}`);
  fails('CONFIG_CONFLICT', /size is given twice/, 'net_null0,size=64,size=65');
  fails('CONFIG_MISSING_VALUE', /^--vdev net_af_packet0: needs iface=…: the name of an interface/, 'net_af_packet0');
  fails('CONFIG_UNKNOWN_OPTION', /no key ""/, 'net_null0,');
});

test('vdev: keys without effect are noted', () => {
  assert.deepEqual(parseVdev('net_virtio_user0,path=/x,cq=1').notes, [
    '--vdev net_virtio_user0: cq: no effect: there is no control queue',
  ]);
});

test('vdev: each device has a name of its own, by whichever alias', () => {
  assert.deepEqual(
    parseVdevs(['net_null0', 'net_null1', 'net_ring0']).map(({ name }) => name),
    ['net_null0', 'net_null1', 'net_ring0'],
  );
  assert.throws(() => parseVdevs(['net_null0', 'eth_null0']), { code: 'CONFIG_CONFLICT', message: /own number/ });
});

test('vdev: every default in the table is valid', () => {
  for (const [kind, { keys }] of Object.entries<VdevKind>(VDEV_KINDS))
    for (const [key, row] of Object.entries<VdevKey>(keys))
      if (row.default !== undefined) assert.notEqual(row.type.parse(row.default), undefined, `${kind} ${key}`);
});
