/** A switch with VLANs and an uplink does what the model says, and no frame reaches a guest of another VLAN, whatever tags it has. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { PortVlan, SwitchConfig, VlanConfig } from '../../src/switch/switch-config.ts';
import { BROADCAST, frame, mac, tagged } from '../kit/frames.ts';
import { SwitchModel } from '../kit/switch-model.ts';
import { assertCounted, CONFIG, TestGuest } from '../kit/test-switch.ts';
import { type Incoming, UplinkSwitch } from '../kit/uplink-switch.ts';

const GUESTS = 4;
const UPLINK = CONFIG.maxPorts;
const ADDRESSES = [mac(0), mac(1), mac(2), mac(3), mac(0x70), mac(0x71), BROADCAST, Buffer.from('01005e000001', 'hex')];
const MACS = 6;
const VIDS = [0, 10, 20, 30, 40, 1000, 1001, 1003];

const vid = fc.constantFrom(10, 20, 30);
const portVlan: fc.Arbitrary<PortVlan | undefined> = fc.oneof(
  fc.constant(undefined),
  fc.record({ access: vid }),
  fc.record({ trunk: fc.uniqueArray(vid, { minLength: 1, maxLength: 3 }), native: fc.option(vid, { nil: undefined }) }),
);
const tag = fc.record({
  tpid: fc.constantFrom(0x8100, 0x8100, 0x88a8),
  tci: fc.tuple(fc.constantFrom(0, 0x6000, 0xf000), fc.constantFrom(...VIDS)).map(([priority, id]) => priority | id),
});
const frameSpec = fc.record({
  dst: fc.nat(ADDRESSES.length - 1),
  /** its own address, unless it is another's */
  src: fc.option(fc.nat(MACS - 1), { freq: 4 }),
  tags: fc.array(tag, { maxLength: 2 }),
  len: fc.constantFrom(60, 64, 300),
  /** from outside: the first tag comes beside the frame */
  beside: fc.boolean(),
});
type FrameSpec = typeof frameSpec extends fc.Arbitrary<infer T> ? T : never;
const burst = fc.record({ port: fc.nat(GUESTS), frames: fc.array(frameSpec, { minLength: 1, maxLength: 8 }) });
const setting = fc.record({
  learning: fc.constantFrom('dynamic', 'first') as fc.Arbitrary<'dynamic' | 'first'>,
  vm2vm: fc.constantFrom(0, 1, 2) as fc.Arbitrary<0 | 1 | 2>,
  plan: fc.constantFrom('device', 'none') as fc.Arbitrary<'device' | 'none'>,
  guest: fc.constantFrom('drop', 'trust', 'qinq') as fc.Arbitrary<'drop' | 'trust' | 'qinq'>,
  strip: fc.boolean(),
});

function make({ dst, src, tags, len }: FrameSpec, port: number): Buffer {
  const own = port === GUESTS ? 4 : port;
  const bare = frame(ADDRESSES[dst], ADDRESSES[src ?? own], len);
  return tags.reduceRight((bytes, { tpid, tci }) => tagged(bytes, tci, tpid), bare);
}

/** What a frame is told by, whatever its tags: the serial number in its payload. */
function serialOf(bytes: Buffer): number {
  let at = 12;
  while ([0x8100, 0x88a8].includes(bytes.readUInt16BE(at))) at += 4;
  return bytes.readUInt32LE(at + 2);
}

/** Some kernels take a frame's first tag off. */
function asReceived(bytes: Buffer, { tags: [first], beside }: FrameSpec, type: number): Buffer | Incoming {
  if (first === undefined || !beside || first.tpid !== type) return bytes;
  const bare = Buffer.concat([bytes.subarray(0, 12), bytes.subarray(16)]);
  return { bytes: bare, tag: (first.tpid << 16) | first.tci };
}

type Setting = typeof setting extends fc.Arbitrary<infer T> ? T : never;
type Bursts = readonly { readonly port: number; readonly frames: readonly FrameSpec[] }[];

function run({ plan, guest, strip, ...rest }: Setting, vlans: readonly (PortVlan | undefined)[], bursts: Bursts): void {
  const vlan: VlanConfig = { plan, guest, strip };
  const config: SwitchConfig = { ...CONFIG, ...rest, vlan };
  const on = new UplinkSwitch(config);
  const guests = vlans.map((one, id) => new TestGuest(on, id, { num: 32, ...(one && { vlan: one }) }));
  const model = new SwitchModel(config, vlan, vlans, UPLINK);
  for (const { port, frames } of bursts) {
    const made = frames.map((spec) => make(spec, port));
    if (port < GUESTS) guests[port].send(...made);
    else on.uplink.arrive(...made.map((bytes, i) => asReceived(bytes, frames[i], guest === 'qinq' ? 0x88a8 : 0x8100)));
    on.settle();
    const due = model.burst(port < GUESTS ? port : UPLINK, made);
    assert.deepEqual(on.uplink.taken(), due.get(UPLINK) ?? [], 'at the uplink');
    for (const { id } of guests) {
      const got = guests[id].received();
      assert.deepEqual(got, due.get(id) ?? [], `at guest ${id}`);
      for (const one of got) {
        const sent = made.findIndex((bytes) => serialOf(bytes) === serialOf(one));
        assertInVlan(model, vlan, frames[sent], port, id);
      }
    }
  }
  assertCounted(...guests);
  on.close();
  for (const { ram } of guests) ram.close();
}

test('VLANs: any switch does with any frames what the model says, and keeps VLANs apart', () => {
  const vlans = fc.array(portVlan, { minLength: GUESTS, maxLength: GUESTS });
  const withVlans = fc
    .tuple(setting, vlans)
    .filter(
      ([{ learning }, all]) => learning === 'dynamic' || all.every((one) => one === undefined || 'access' in one),
    );
  fc.assert(
    fc.property(withVlans, fc.array(burst, { maxLength: 12 }), ([one, all], bursts) => run(one, all, bursts)),
    { numRuns: 400 },
  );
});

/** A frame that has come from `port` may be in a VLAN of guest `id`: by what the two are in, and the frame's own first tag. */
function assertInVlan(model: SwitchModel, vlan: VlanConfig, { tags }: FrameSpec, port: number, id: number): void {
  const mine = model.vidsOf(id);
  const type = port === GUESTS && vlan.guest === 'qinq' ? 0x88a8 : 0x8100;
  const first = tags[0]?.tpid === type ? tags[0].tci & 0xfff : 0;
  if (port === GUESTS) {
    const own = vlan.plan === 'none' ? 0 : 1000 + id;
    const right = mine[0] === 0 ? first === own : mine.includes(first);
    assert.ok(right, `guest ${id} of ${mine} got what was in VLAN ${first} outside`);
    return;
  }
  const theirs = model.vidsOf(port);
  const isTrunk = theirs.length > 1 || model.untaggedVid(port) === undefined;
  const shared = isTrunk && first !== 0 ? [first] : theirs;
  assert.ok(
    shared.some((one) => mine.includes(one)),
    `guest ${id} of ${mine} got what guest ${port} of ${theirs} sent`,
  );
}
