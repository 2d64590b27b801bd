/**
 * The options of testpmd for packets of its own: what flows are made of, that they are verified, and capture files in their place.
 */
import { ConfigError } from '../errors.ts';
import { MAX_FLOWS } from '../testpmd/traffic/payload.ts';
import {
  extremes,
  type FrameSizes,
  IMIX,
  leastFrame,
  MAX_MADE_FRAME,
  type NumberRange,
  type TrafficPlan,
  widest,
} from '../testpmd/traffic/traffic-plan.ts';
import type { TrafficSettings } from '../testpmd/traffic/traffic-settings.ts';
import { FLAG, type Given, givenValue, integer, type Option, TEXT, type ValueType, valueOrDefault } from './options.ts';

const U32 = 2 ** 32 - 1;
const U48 = 2 ** 48 - 1;
const MAX_SIZES = 64;
/** Flows that are told apart where nobody says how many there are. */
const DEFAULT_VERIFIED = 65536;

/** `FIRST`, `FIRST-LAST` or `FIRST+COUNT`. @param one reads a number as text, up to `max` */
function range(
  noun: string,
  max: number,
  example: string,
  one: (text: string) => number | undefined,
): ValueType<NumberRange> {
  const parse = (text: string): NumberRange | undefined => {
    const [, firstText, sign, lastText] = /^([^-+]+)(?:([-+])([^-+]+))?$/.exec(text) ?? [];
    const first = firstText === undefined ? undefined : one(firstText);
    if (first === undefined || sign === undefined) return first === undefined ? undefined : { first, count: 1 };
    const count = sign === '+' ? integer(1, MAX_FLOWS).parse(lastText) : (one(lastText) ?? -1) - first + 1;
    const fits = count !== undefined && count >= 1 && count <= MAX_FLOWS && first + count - 1 <= max;
    return fits ? { first, count } : undefined;
  };
  return { range: `${noun}, FIRST-LAST or FIRST+COUNT of up to ${MAX_FLOWS}, for example ${example}`, parse };
}

const plainNumber = (max: number) => (text: string) => integer(0, max).parse(text);

function macNumber(text: string): number | undefined {
  return /^[\da-f]{2}(?::[\da-f]{2}){5}$/i.test(text) ? Number.parseInt(text.replaceAll(':', ''), 16) : undefined;
}

/** An IPv4 address as a 32-bit number. */
export function ipNumber(text: string): number | undefined {
  const parts = text.split('.').map((part) => integer(0, 255).parse(part));
  return parts.length === 4 && !parts.includes(undefined)
    ? (parts as number[]).reduce((sum, part) => 256 * sum + part, 0)
    : undefined;
}

const MAC_RANGE = range('addresses', U48, '02:00:00:00:00:01+16', macNumber);
const IP_RANGE = range('IPv4 addresses', U32, '10.0.0.1-10.0.0.99', ipNumber);
const PORT_RANGE = range('UDP ports', 65535, '1024+100', plainNumber(65535));
const VLAN_RANGE = range('VLANs up to 4094', 4094, '100-199', plainNumber(4094));

const SIZES: ValueType<FrameSizes> = {
  range: `imix (64, 590 and 1514 bytes, 7 : 4 : 1), up to ${MAX_SIZES} sizes with commas, or MIN-MAX at random; without FCS, at most ${MAX_MADE_FRAME}`,
  parse: (text) => {
    if (text === 'imix') return { list: IMIX };
    const size = integer(1, MAX_MADE_FRAME);
    const [, minText, maxText] = /^(\d+)-(\d+)$/.exec(text) ?? [];
    if (minText !== undefined) {
      const [min, max] = [size.parse(minText), size.parse(maxText)];
      return min === undefined || max === undefined || min > max ? undefined : { min, max };
    }
    const list = text.split(',').map((part) => size.parse(part));
    return list.length > MAX_SIZES || list.includes(undefined) ? undefined : { list: list as number[] };
  },
};

/** The options, in the order of the help. */
export const TRAFFIC = {
  flows: {
    long: 'flows',
    value: 'COUNT',
    type: integer(1, MAX_FLOWS),
    help: 'flows that are made, or verified; left out: as many as the longest range has',
  },
  sizes: { long: 'sizes', value: 'SIZES', type: SIZES, help: 'bytes of the frames that are made' },
  vlan: { long: 'vlan', value: 'RANGE', type: VLAN_RANGE, help: 'VLAN tags; left out: none' },
  srcMac: { long: 'src-mac', value: 'RANGE', type: MAC_RANGE, help: 'source addresses' },
  dstMac: { long: 'dst-mac', value: 'RANGE', type: MAC_RANGE, help: 'destination addresses' },
  srcIp: { long: 'src-ip', value: 'RANGE', type: IP_RANGE, help: 'source IPv4 addresses' },
  dstIp: { long: 'dst-ip', value: 'RANGE', type: IP_RANGE, help: 'destination IPv4 addresses' },
  srcPort: { long: 'src-port', value: 'RANGE', type: PORT_RANGE, help: 'source UDP ports' },
  dstPort: { long: 'dst-port', value: 'RANGE', type: PORT_RANGE, help: 'destination UDP ports' },
  seed: { long: 'seed', value: 'NUMBER', type: integer(1, 2 ** 31 - 1), default: '1', help: 'of random sizes' },
  verify: {
    long: 'verify',
    type: FLAG,
    help: 'rxonly, flowgen: count what is lost, twice or damaged; latency',
  },
  verifyFromFirst: {
    long: 'verify-from-first',
    type: FLAG,
    help: 'the same, and what is lost before the first packet of a flow comes',
  },
  pcapIn: { long: 'pcap-in', value: 'FILE', type: TEXT, help: 'txonly: send what this capture holds' },
  pcapInGaps: { long: 'pcap-in-gaps', type: FLAG, help: 'at the distances in time that it was captured at' },
  pcapInLoop: { long: 'pcap-in-loop', type: FLAG, help: 'over and over' },
  pcapOut: { long: 'pcap-out', value: 'FILE', type: TEXT, help: 'capture what is received, as pcapng' },
} satisfies Record<string, Option>;

/** Rows that say what is made: with one of them, packets are ours and no longer as DPDK's. */
const MAKING: readonly Option[] = [
  ...[TRAFFIC.sizes, TRAFFIC.vlan, TRAFFIC.srcMac, TRAFFIC.dstMac, TRAFFIC.srcIp, TRAFFIC.dstIp],
  ...[TRAFFIC.srcPort, TRAFFIC.dstPort],
];

/** What the options among `given` say. Throws ConfigError for options that do not go together. */
export function resolveTraffic(given: readonly Given[]): TrafficSettings {
  const flows = givenValue(given, TRAFFIC.flows);
  const fromFirst = givenValue(given, TRAFFIC.verifyFromFirst) === true;
  const verify = fromFirst || givenValue(given, TRAFFIC.verify) === true;
  const makes = given.some(({ row }) => row === TRAFFIC.flows || MAKING.includes(row));
  const plan = makes ? planOf(given, flows) : undefined;
  const replay = replayOf(given);
  const recordTo = givenValue(given, TRAFFIC.pcapOut);
  if (replay !== undefined && recordTo === replay.path)
    throw new ConfigError('CONFIG_CONFLICT', '--pcap-out', 'is the file of --pcap-in, which would be lost; give two', {
      value: recordTo,
    });
  return {
    ...(plan === undefined ? {} : { plan }),
    ...(verify ? { verify: { flows: flows ?? DEFAULT_VERIFIED, fromFirst } } : {}),
    ...(replay === undefined ? {} : { replay }),
    ...(recordTo === undefined ? {} : { recordTo }),
  };
}

function planOf(given: readonly Given[], flows: number | undefined): TrafficPlan {
  const one = (first: number): NumberRange => ({ first, count: 1 });
  const vlan = givenValue(given, TRAFFIC.vlan);
  const ranges = {
    ...(vlan === undefined ? {} : { vlan }),
    srcMac: givenValue(given, TRAFFIC.srcMac) ?? one(0x020000000001),
    dstMac: givenValue(given, TRAFFIC.dstMac) ?? one(0x020000000002),
    // RFC 2544's networks for tests
    srcIp: givenValue(given, TRAFFIC.srcIp) ?? one(0xc6120001),
    dstIp: givenValue(given, TRAFFIC.dstIp) ?? one(0xc6130001),
    srcPort: givenValue(given, TRAFFIC.srcPort) ?? one(49152),
    dstPort: givenValue(given, TRAFFIC.dstPort) ?? one(9),
  };
  const many = flows ?? widest(ranges);
  // flows that no range tells apart are told apart by their ports, as far as there are ports
  if (widest(ranges) === 1 && givenValue(given, TRAFFIC.srcPort) === undefined)
    ranges.srcPort = { first: 1024, count: Math.min(many, 65536 - 1024) };
  const sizes = givenValue(given, TRAFFIC.sizes) ?? { list: [64] };
  const least = leastFrame(ranges);
  if (extremes(sizes).min < least) {
    const tagged = vlan === undefined ? '' : ' with a VLAN tag';
    const problem = `frames of ${extremes(sizes).min} bytes have no room for what is verified; ${least} bytes${tagged} at least`;
    throw new ConfigError('CONFIG_INVALID_VALUE', '--sizes', problem, { range: `${least}..${MAX_MADE_FRAME}` });
  }
  return { flows: many, sizes, ...ranges, seed: valueOrDefault(given, TRAFFIC.seed) };
}

function replayOf(given: readonly Given[]): TrafficSettings['replay'] {
  const path = givenValue(given, TRAFFIC.pcapIn);
  const gaps = givenValue(given, TRAFFIC.pcapInGaps) === true;
  const loop = givenValue(given, TRAFFIC.pcapInLoop) === true;
  if (path !== undefined) return { path, gaps, loop };
  if (gaps || loop) {
    const option = gaps ? '--pcap-in-gaps' : '--pcap-in-loop';
    throw new ConfigError('CONFIG_CONFLICT', option, 'says how --pcap-in is sent, which is not given');
  }
  return undefined;
}
