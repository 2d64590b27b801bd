/** Numbered, checksummed flows that a mirror (testpmd in macswap mode) must send back to a card of ours, whole and in order. */
import assert from 'node:assert/strict';
import { setImmediate as yieldNow } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import type { VirtioUser } from '../../src/port/virtio-user.ts';

/** Frames of one flow on the way at a time. */
const WINDOW = 16;
const QUIET_MS = 10_000;
const MAC_BYTES = 12;
const FLOW_OFF = 42;
const SEQ_OFF = 44;
const CRC_BYTES = 4;

/** What is sent: `flows` UDP flows of `frames` frames each, `bytes` long without the frame check; flow f leaves on pair f mod pairs. */
export interface MirrorTraffic {
  readonly bytes: number;
  readonly frames: number;
  readonly flows: number;
}

/** How many frames came back on each pair. */
export type PairCounts = readonly number[];

/** Frame `seq` of a flow: IPv4 and UDP with the flow's own port, filler, and a CRC over all but the MAC addresses. */
export function flowFrame(dst: Uint8Array, src: Uint8Array, flow: number, seq: number, bytes: number): Uint8Array {
  const all = Buffer.alloc(bytes);
  for (let i = SEQ_OFF + 4; i < bytes; i++) all[i] = (i * 11 + seq * 7 + flow) & 0xff;
  all.set(dst, 0);
  all.set(src, 6);
  all.writeUInt16BE(0x0800, 12);
  all.set([0x45, 0], 14);
  all.writeUInt16BE(bytes - 14, 16);
  all.set([64, 17], 22);
  all.set([10, 0, 0, 1, 10, 0, 0, 2], 26);
  all.writeUInt16BE(headerChecksum(all.subarray(14, 34)), 24);
  all.writeUInt16BE(1000 + flow, 34);
  all.writeUInt16BE(2000, 36);
  all.writeUInt16BE(bytes - 34, 38);
  all.writeUInt16BE(flow, FLOW_OFF);
  all.writeUInt32BE(seq, SEQ_OFF);
  all.writeUInt32BE(crcOf(all), bytes - CRC_BYTES);
  return all;
}

const crcOf = (frame: Uint8Array) => crc32(frame.subarray(MAC_BYTES, frame.length - CRC_BYTES));

function headerChecksum(header: Buffer): number {
  let sum = 0;
  for (let i = 0; i < header.length; i += 2) sum += header.readUInt16BE(i);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** The flow and number of a frame that came back. */
function check(
  card: VirtioUser,
  mirror: Uint8Array,
  received: Uint8Array,
  bytes: number,
): { flow: number; seq: number } {
  const frame = Buffer.from(received);
  assert.equal(frame.length, bytes, 'length of a frame that came back');
  assert.equal(frame.readUInt32BE(bytes - CRC_BYTES), crcOf(frame), 'CRC of a frame that came back');
  assert.ok(frame.subarray(0, 6).equals(card.macBytes) && frame.subarray(6, 12).equals(mirror), 'its addresses');
  return { flow: frame.readUInt16BE(FLOW_OFF), seq: frame.readUInt32BE(SEQ_OFF) };
}

/** Sends the flows and takes what comes back: every frame once, unharmed, in its flow's order, and nothing else. */
export async function assertMirrored(
  card: VirtioUser,
  mirror: Uint8Array,
  traffic: MirrorTraffic,
): Promise<PairCounts> {
  const { bytes, frames, flows } = traffic;
  const pairs = card.pairs.length;
  const sent = new Array<number>(flows).fill(0);
  const back = new Array<number>(flows).fill(0);
  const onPair = new Array<number>(pairs).fill(0);
  let missing = frames * flows;
  let giveUpAt = performance.now() + QUIET_MS;

  const sendMore = () => {
    for (let flow = 0; flow < flows; flow++) {
      const pair = flow % pairs;
      while (sent[flow] < frames && sent[flow] - back[flow] < WINDOW) {
        if (!card.send(flowFrame(mirror, card.macBytes, flow, sent[flow], bytes), undefined, pair)) break;
        sent[flow]++;
      }
    }
    for (let pair = 0; pair < pairs; pair++) card.flush(pair);
  };
  const takeAll = () => {
    let taken = 0;
    for (let pair = 0; pair < pairs; pair++) {
      for (let got = card.receive(pair); got !== undefined; got = card.receive(pair), taken++) {
        const { flow, seq } = check(card, mirror, got, bytes);
        assert.equal(seq, back[flow], `${bytes} bytes: order of flow ${flow}`);
        back[flow]++;
        onPair[pair]++;
      }
    }
    return taken;
  };

  while (missing > 0) {
    sendMore();
    const taken = takeAll();
    missing -= taken;
    if (taken > 0) giveUpAt = performance.now() + QUIET_MS;
    else await yieldNow();
    assert.ok(performance.now() < giveUpAt, `${bytes} bytes: ${missing} frames are missing; came back: ${back}`);
  }
  assert.equal(takeAll(), 0, 'nothing else comes back');
  for (const { rx } of card.pairs) assert.ok(rx.guardsIntact, 'the back end wrote outside the receive buffers');
  return onPair;
}
