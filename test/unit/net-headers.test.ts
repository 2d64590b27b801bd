import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FrameHeaders, MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS } from '../../src/net/headers.ts';
import { type PacketSpec, packet } from '../kit/packets.ts';

const PAYLOAD = Buffer.from('payload');
const BEFORE = 5;

/** Parses `bytes` where something else stands before and behind them. */
function parse(bytes: Buffer, len = bytes.length): FrameHeaders | undefined {
  const all = Buffer.concat([Buffer.alloc(BEFORE, 0x45), bytes, Buffer.alloc(64, 0x45)]);
  const headers = new FrameHeaders();
  const dv = new DataView(all.buffer, all.byteOffset, all.length);
  return headers.parse(dv, BEFORE, len) ? headers : undefined;
}

const body = (units: number) => Buffer.alloc(8 * units - 2, 1);
const hopByHop = { type: 0, body: body(1) };
const routing = { type: 43, body: body(3) };
const destination = { type: 60, body: body(2) };

const WHOLE: Record<string, PacketSpec> = {
  'IPv4 TCP': { version: 4, protocol: 'tcp', payload: PAYLOAD },
  'IPv4 UDP': { version: 4, protocol: 'udp', payload: PAYLOAD },
  'IPv6 TCP': { version: 6, protocol: 'tcp', payload: PAYLOAD },
  'IPv6 UDP without payload': { version: 6, protocol: 'udp', payload: Buffer.alloc(0) },
  'IPv4 with options, TCP with options': {
    ...{ version: 4, protocol: 'tcp', payload: PAYLOAD },
    ...{ ipOptions: Buffer.alloc(40, 1), tcpOptions: Buffer.alloc(40, 1) },
  },
  'one VLAN tag': { version: 4, protocol: 'tcp', payload: PAYLOAD, tags: [0x8100] },
  'two VLAN tags': { version: 6, protocol: 'udp', payload: PAYLOAD, tags: [0x88a8, 0x8100] },
  'IPv6 extension headers': {
    ...{ version: 6, protocol: 'tcp', payload: PAYLOAD },
    extensions: [hopByHop, destination, routing, destination],
  },
};

for (const [name, spec] of Object.entries(WHOLE)) {
  test(`headers: ${name}: they lie where they were put, and no shorter piece of the frame has them`, () => {
    const { bytes, ipOff, csumStart, payloadOff } = packet(spec);
    const headers = parse(bytes);
    assert.ok(headers);
    assert.equal(headers.ipOff, ipOff);
    assert.equal(headers.ipVersion, spec.version);
    assert.equal(headers.protocol, spec.protocol === 'tcp' ? 6 : 17);
    assert.equal(headers.transportOff, csumStart);
    assert.equal(headers.payloadOff, payloadOff);
    for (let len = 0; len < bytes.length; len++) assert.equal(parse(bytes, len) !== undefined, len >= payloadOff);
  });
}

test('headers: IPv6 fragments begin with what routers read', () => {
  const fragmentOff = (...extensions: (typeof hopByHop)[]) => {
    const headers = parse(packet({ version: 6, protocol: 'udp', payload: PAYLOAD, extensions }).bytes);
    return headers === undefined ? undefined : [headers.fragmentOff - 54, headers.nextHeaderOff - 14];
  };
  assert.deepEqual(fragmentOff(), [0, 6]);
  assert.deepEqual(fragmentOff(hopByHop), [8, 40]);
  assert.deepEqual(fragmentOff(destination), [0, 6]);
  assert.deepEqual(fragmentOff(hopByHop, destination), [8, 40]);
  assert.deepEqual(fragmentOff(hopByHop, destination, routing), [48, 64]);
  assert.deepEqual(fragmentOff(destination, routing, destination), [40, 56]);
});

test('headers: as many VLAN tags and extension headers as are allowed, and not one more', () => {
  const tagged = (n: number) => packet({ version: 4, protocol: 'udp', payload: PAYLOAD, tags: Array(n).fill(0x8100) });
  assert.ok(parse(tagged(MAX_VLAN_TAGS).bytes));
  assert.equal(parse(tagged(MAX_VLAN_TAGS + 1).bytes), undefined);
  const extended = (n: number) =>
    packet({ version: 6, protocol: 'udp', payload: PAYLOAD, extensions: Array(n).fill(destination) });
  assert.ok(parse(extended(MAX_EXTENSION_HEADERS).bytes));
  assert.equal(parse(extended(MAX_EXTENSION_HEADERS + 1).bytes), undefined);
});

test('headers: what is no whole TCP or UDP packet is refused', () => {
  const changed = (spec: PacketSpec, change: (bytes: Buffer, at: { ip: number; transport: number }) => void) => {
    const { bytes, ipOff, csumStart } = packet(spec);
    change(bytes, { ip: ipOff, transport: csumStart });
    return parse(bytes);
  };
  const tcp4: PacketSpec = { version: 4, protocol: 'tcp', payload: PAYLOAD };
  const udp6: PacketSpec = { version: 6, protocol: 'udp', payload: PAYLOAD, extensions: [routing] };
  assert.ok(changed(tcp4, () => {}) && changed(udp6, () => {}));
  const refused: Record<string, FrameHeaders | undefined> = {
    ARP: changed(tcp4, (b) => b.writeUInt16BE(0x0806, 12)),
    'the wrong version in IPv4': changed(tcp4, (b, { ip }) => b.writeUInt8(0x65, ip)),
    'an IPv4 header below 20 bytes': changed(tcp4, (b, { ip }) => b.writeUInt8(0x44, ip)),
    'an IPv4 header beyond the frame': changed(tcp4, (b, { ip }) => b.writeUInt8(0x4f, ip)),
    ICMP: changed(tcp4, (b, { ip }) => b.writeUInt8(1, ip + 9)),
    'a first fragment': changed(tcp4, (b, { ip }) => b.writeUInt16BE(0x2000, ip + 6)),
    'a later fragment': changed(tcp4, (b, { ip }) => b.writeUInt16BE(1, ip + 6)),
    'a TCP header below 20 bytes': changed(tcp4, (b, { transport }) => b.writeUInt8(0x40, transport + 12)),
    'a TCP header beyond the frame': changed(tcp4, (b, { transport }) => b.writeUInt8(0xf0, transport + 12)),
    'the wrong version in IPv6': changed(udp6, (b, { ip }) => b.writeUInt8(0x40, ip)),
    'an IPv6 fragment': changed(udp6, (b, { ip }) => b.writeUInt8(44, ip + 6)),
    'an extension header beyond the frame': changed(udp6, (b, { ip }) => b.writeUInt8(255, ip + 41)),
    'hop-by-hop options behind others': changed(udp6, (b, { ip }) => b.writeUInt8(0, ip + 40)),
    'an authentication header': changed(udp6, (b, { ip }) => b.writeUInt8(51, ip + 40)),
  };
  for (const [what, headers] of Object.entries(refused)) assert.equal(headers, undefined, what);
});
