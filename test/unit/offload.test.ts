import assert from 'node:assert/strict';
import { test } from 'node:test';
import { featureMask } from '../../src/uapi/virtio.ts';
import * as net from '../../src/uapi/virtio-net.ts';
import {
  acceptsOf,
  maySendOf,
  NEED_CSUM,
  NEED_ECN,
  NEED_TSO4,
  NEED_TSO6,
  NEED_UFO,
  NEED_USO4,
  NEED_USO6,
  NEEDS_MALFORMED,
  needsOf,
} from '../../src/virtio-net/offload.ts';

const ALL = NEED_CSUM | NEED_TSO4 | NEED_TSO6 | NEED_ECN | NEED_UFO | NEED_USO4 | NEED_USO6;
const TSO = NEED_TSO4 | NEED_TSO6;

test('offloads: what a driver accepts follows from its features and what these require', () => {
  const { VIRTIO_NET_F_GUEST_CSUM: CSUM, VIRTIO_NET_F_GUEST_TSO4: TSO4, VIRTIO_NET_F_GUEST_TSO6: TSO6 } = net;
  const { VIRTIO_NET_F_GUEST_ECN: ECN, VIRTIO_NET_F_GUEST_UFO: UFO } = net;
  const { VIRTIO_NET_F_GUEST_USO4: USO4, VIRTIO_NET_F_GUEST_USO6: USO6 } = net;
  const accepts = (...bits: number[]) => acceptsOf(featureMask(...bits));
  assert.equal(accepts(), 0);
  assert.equal(accepts(CSUM), NEED_CSUM);
  assert.equal(accepts(CSUM, TSO4), NEED_CSUM | NEED_TSO4);
  assert.equal(accepts(CSUM, TSO6, ECN), NEED_CSUM | NEED_TSO6 | NEED_ECN);
  assert.equal(accepts(CSUM, ECN), NEED_CSUM, 'ECN requires TSO4 or TSO6');
  assert.equal(accepts(CSUM, UFO), NEED_CSUM | NEED_UFO);
  assert.equal(accepts(CSUM, USO4), NEED_CSUM | NEED_USO4);
  assert.equal(accepts(CSUM, USO6), NEED_CSUM | NEED_USO6);
  assert.equal(accepts(CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6), ALL);
  assert.equal(accepts(TSO4, TSO6, ECN, UFO, USO4, USO6), 0, 'all require GUEST_CSUM');
  assert.equal(
    accepts(net.VIRTIO_NET_F_CSUM, net.VIRTIO_NET_F_HOST_TSO4, net.VIRTIO_NET_F_GSO),
    0,
    'what it sends is another thing',
  );
});

test('offloads: what a driver may send follows from its features and what these require', () => {
  const { VIRTIO_NET_F_CSUM: CSUM, VIRTIO_NET_F_HOST_TSO4: TSO4, VIRTIO_NET_F_HOST_TSO6: TSO6 } = net;
  const { VIRTIO_NET_F_HOST_ECN: ECN, VIRTIO_NET_F_HOST_UFO: UFO, VIRTIO_NET_F_HOST_USO: USO } = net;
  const maySend = (...bits: number[]) => maySendOf(featureMask(...bits));
  assert.equal(maySend(), 0);
  assert.equal(maySend(CSUM), NEED_CSUM);
  assert.equal(maySend(CSUM, TSO4), NEED_CSUM | NEED_TSO4);
  assert.equal(maySend(CSUM, TSO6, ECN), NEED_CSUM | NEED_TSO6 | NEED_ECN);
  assert.equal(maySend(CSUM, ECN), NEED_CSUM);
  assert.equal(maySend(CSUM, UFO), NEED_CSUM | NEED_UFO);
  assert.equal(maySend(CSUM, USO), NEED_CSUM | NEED_USO4 | NEED_USO6);
  assert.equal(maySend(CSUM, net.VIRTIO_NET_F_GSO), NEED_CSUM | TSO | NEED_ECN | NEED_UFO);
  assert.equal(maySend(TSO4, TSO6, ECN, UFO, USO, net.VIRTIO_NET_F_GSO), 0);
  assert.equal(maySend(net.VIRTIO_NET_F_GUEST_CSUM, net.VIRTIO_NET_F_GUEST_TSO4), 0);
});

const IP4 = 0x0800;
const IP6 = 0x86dd;
const TCP4 = { gsoType: 1, gsoSize: 1448, csumStart: 34, csumOffset: 16, etherType: IP4 };
const TCP6 = { gsoType: 4, gsoSize: 1428, csumStart: 54, csumOffset: 16, etherType: IP6 };
const UDP4 = { gsoType: 5, gsoSize: 1400, csumStart: 34, csumOffset: 6, etherType: IP4 };
const PLAIN = { gsoType: 0, gsoSize: 0, csumStart: 34, csumOffset: 16, etherType: IP4 };

interface Header {
  flags?: number;
  gsoType: number;
  gsoSize: number;
  csumStart: number;
  csumOffset: number;
  etherType: number;
  len?: number;
  maySend?: number;
}

const needs = ({ flags = 1, gsoType, gsoSize, csumStart, csumOffset, etherType, len = 9000, maySend = ALL }: Header) =>
  needsOf(flags, gsoType, gsoSize, csumStart, csumOffset, len, etherType, maySend);

test('offloads: a header says what its packet needs', () => {
  assert.equal(needs({ ...PLAIN, flags: 0 }), 0);
  assert.equal(needs(PLAIN), NEED_CSUM);
  assert.equal(needs(TCP4), NEED_CSUM | NEED_TSO4);
  assert.equal(needs({ ...TCP4, gsoType: 0x81 }), NEED_CSUM | NEED_TSO4 | NEED_ECN);
  assert.equal(needs(TCP6), NEED_CSUM | NEED_TSO6);
  assert.equal(needs({ ...TCP6, gsoType: 0x84 }), NEED_CSUM | NEED_TSO6 | NEED_ECN);
  assert.equal(needs({ ...UDP4, gsoType: 3 }), NEED_CSUM | NEED_UFO);
  assert.equal(needs({ ...UDP4, gsoType: 3, csumStart: 54, etherType: IP6 }), NEED_CSUM | NEED_UFO);
  assert.equal(needs(UDP4), NEED_CSUM | NEED_USO4);
  assert.equal(needs({ ...UDP4, csumStart: 54, etherType: IP6 }), NEED_CSUM | NEED_USO6);
});

test('offloads: behind a VLAN tag the type alone says which IP it is, and UDP needs both', () => {
  for (const etherType of [0x8100, 0x88a8]) {
    assert.equal(needs({ ...TCP4, etherType, csumStart: 38 }), NEED_CSUM | NEED_TSO4);
    assert.equal(needs({ ...TCP6, etherType, csumStart: 58 }), NEED_CSUM | NEED_TSO6);
    assert.equal(needs({ ...UDP4, etherType, csumStart: 38 }), NEED_CSUM | NEED_USO4 | NEED_USO6);
    assert.equal(needs({ ...UDP4, gsoType: 3, etherType, csumStart: 38 }), NEED_CSUM | NEED_UFO);
  }
});

test('offloads: flags that are not known, DATA_VALID among them, and fields without their flag count for nothing', () => {
  const wild = { gsoType: 0, gsoSize: 0xffff, csumStart: 0xffff, csumOffset: 0xffff, etherType: 0x0806 };
  assert.equal(needs({ ...wild, flags: 0 }), 0);
  assert.equal(needs({ ...wild, flags: 0xfe, maySend: 0 }), 0);
  assert.equal(needs({ ...PLAIN, flags: 0xff, gsoSize: 0xffff }), NEED_CSUM);
});

test('offloads: the checksum lies within the packet and behind what the switch looks at (CVE-2024-11614)', () => {
  assert.equal(needs({ ...PLAIN, len: 52 }), NEED_CSUM);
  const bad: Header[] = [
    { ...PLAIN, len: 51 },
    { ...PLAIN, csumStart: 0xffff, csumOffset: 0xffff },
    { ...PLAIN, csumStart: 0xffff },
    { ...PLAIN, csumOffset: 0xffff },
    { ...PLAIN, csumStart: 0, csumOffset: 0 },
    { ...PLAIN, csumStart: 0, csumOffset: 40 },
    { ...PLAIN, csumStart: 33 },
    { ...PLAIN, len: 0 },
  ];
  for (const header of bad) assert.equal(needs(header), NEEDS_MALFORMED, JSON.stringify(header));
});

test('offloads: malformed segmentation requests are refused', () => {
  const bad: Header[] = [
    { ...TCP4, flags: 0 },
    { ...TCP4, flags: 2 },
    { ...TCP4, gsoSize: 0 },
    { ...TCP4, csumOffset: 6 },
    { ...UDP4, csumOffset: 16 },
    { ...UDP4, gsoType: 3, csumOffset: 16 },
    { ...TCP4, len: 53 },
    { ...UDP4, len: 41 },
    { ...TCP4, etherType: IP6 },
    { ...TCP6, etherType: IP4 },
    { ...TCP4, etherType: 0x0806 },
    { ...UDP4, etherType: 0x0806 },
    { ...UDP4, gsoType: 3, etherType: 0x0806 },
    { ...TCP6, csumStart: 53 },
    ...[2, 6, 7, 0x40, 0x80, 0x82, 0x83, 0x85, 0xff].map((gsoType) => ({ ...TCP4, gsoType })),
    ...[0x83, 0x85].map((gsoType) => ({ ...UDP4, gsoType })),
  ];
  for (const header of bad) assert.equal(needs(header), NEEDS_MALFORMED, JSON.stringify(header));
  assert.equal(needs({ ...TCP4, len: 54 }), NEED_CSUM | NEED_TSO4);
  assert.equal(needs({ ...UDP4, len: 42 }), NEED_CSUM | NEED_USO4);
});

test('offloads: what was not negotiated is refused, whatever else was', () => {
  const headers: [Header, number][] = [
    [PLAIN, NEED_CSUM],
    [TCP4, NEED_CSUM | NEED_TSO4],
    [{ ...TCP4, gsoType: 0x81 }, NEED_CSUM | NEED_TSO4 | NEED_ECN],
    [TCP6, NEED_CSUM | NEED_TSO6],
    [{ ...UDP4, gsoType: 3 }, NEED_CSUM | NEED_UFO],
    [UDP4, NEED_CSUM | NEED_USO4],
  ];
  for (const [header, mask] of headers) {
    assert.equal(needs({ ...header, maySend: mask }), mask);
    for (let bit = 1; bit <= NEED_USO6; bit <<= 1)
      assert.equal(needs({ ...header, maySend: ALL & ~bit }), (mask & bit) === 0 ? mask : NEEDS_MALFORMED);
  }
});
