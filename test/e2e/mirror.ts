/** Numbered, checksummed flows that a mirror (testpmd in macswap mode) must send back to a card of ours, whole and in order. */
import assert from 'node:assert/strict';
import { setImmediate as yieldNow } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { ipBytes, L4_END, udpFrame } from '../kit/ip-packets.ts';

/** Frames of one flow on the way at a time. */
const WINDOW = 16;
const QUIET_MS = 10_000;
const SILENCE_MS = 300;
const PROBE_BYTES = 60;
const MAC_BYTES = 12;
const FLOW_OFF = L4_END;
const SEQ_OFF = L4_END + 2;
const CRC_BYTES = 4;
const IPS = { srcIp: ipBytes('10.0.0.1'), dstIp: ipBytes('10.0.0.2') };

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
  const payload = Uint8Array.from({ length: bytes - L4_END }, (_, i) => (i * 11 + seq * 7 + flow) & 0xff);
  const all = udpFrame({ dstMac: dst, srcMac: src, ...IPS }, { dst: 2000, src: 1000 + flow }, payload);
  all.writeUInt16BE(flow, FLOW_OFF);
  all.writeUInt32BE(seq, SEQ_OFF);
  all.writeUInt32BE(crcOf(all), bytes - CRC_BYTES);
  return all;
}

const crcOf = (frame: Uint8Array) => crc32(frame.subarray(MAC_BYTES, frame.length - CRC_BYTES));

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

/**
 * Returns when every flow is mirrored and nothing is on its way any more. A front end does not hear when its back end has enabled
 * the last of its rings, and drops are allowed until then.
 */
export async function untilMirrored(card: VirtioUser, mirror: Uint8Array, flows: number): Promise<void> {
  const waiting = new Set(Array.from({ length: flows }, (_, flow) => flow));
  const giveUpAt = performance.now() + QUIET_MS;
  let quietSince = performance.now();
  for (let probeAt = 0; waiting.size > 0 || performance.now() - quietSince < SILENCE_MS; ) {
    assert.ok(performance.now() < giveUpAt, `flows that are not mirrored: ${[...waiting]}`);
    if (waiting.size > 0 && performance.now() > probeAt) {
      probeAt = performance.now() + SILENCE_MS;
      for (const flow of waiting) {
        const pair = flow % card.pairs.length;
        card.send(flowFrame(mirror, card.macBytes, flow, 0, PROBE_BYTES), undefined, pair);
        card.flush(pair);
      }
    }
    for (let pair = 0; pair < card.pairs.length; pair++) {
      for (let got = card.receive(pair); got !== undefined; got = card.receive(pair)) {
        waiting.delete(check(card, mirror, got, PROBE_BYTES).flow);
        quietSince = performance.now();
      }
    }
    await yieldNow();
  }
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
