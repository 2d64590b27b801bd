/**
 * A host on a card of ours: it answers ARP and ping, pings, sends datagrams, and remembers the RARPs it has heard. For tests with a
 * Linux guest at the other end that need no second one.
 */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import {
  type Address,
  arpReply,
  arpTarget,
  type Ends,
  ETHERTYPE,
  echoFrame,
  ICMP,
  IP_END,
  IP_PROTOCOL,
  internetChecksum,
  ipBytes,
  macBytes,
  udpFrame,
} from './ip-packets.ts';

/** The guest at the other end. */
export interface Neighbour {
  readonly mac: string;
  readonly ip: string;
}

/** What pings have seen. */
export interface Pings {
  readonly sent: number;
  readonly answered: number;
  /** between two answers, ms */
  readonly longestGapMs: number;
}

const PING_ID = 0x7065;
/** How long to sleep for a frame before looking whether to stop, ms. */
const NAP_MS = 20;

export class IpHost {
  readonly card: VirtioUser;
  readonly ip: string;
  /** Source address of every RARP request heard, in order. */
  readonly rarps: string[] = [];
  readonly #ip: Address;
  readonly #peer: Neighbour;
  readonly #running: Promise<void>;
  #stopping = false;
  #seq = 0;
  #pingEveryMs = 0;
  #pingBytes = 56;
  #nextPing = 0;
  #sent = 0;
  #lastAnswer = 0;
  #answered = 0;
  #longestGapMs = 0;

  /** Uses the card until `stop`; nobody else may receive from it. The card stays the caller's. */
  constructor(card: VirtioUser, ip: string, peer: Neighbour) {
    this.card = card;
    this.ip = ip;
    this.#ip = ipBytes(ip);
    this.#peer = peer;
    this.#running = this.#run();
    this.#running.catch(() => {}); // told by whoever waits
  }

  get #ends(): Ends {
    const { mac, ip } = this.#peer;
    return { dstMac: macBytes(mac), srcMac: this.card.macBytes, dstIp: ipBytes(ip), srcIp: this.#ip };
  }

  async #run(): Promise<void> {
    while (!this.#stopping) {
      const frame = await this.card.waitFrame(NAP_MS / 4);
      if (frame !== undefined) this.#take(Buffer.from(frame));
      this.#pingIfDue();
    }
  }

  #take(frame: Buffer): void {
    const type = frame.readUInt16BE(12);
    if (type === ETHERTYPE.rarp) this.rarps.push(frame.toString('hex', 6, 12).replaceAll(/(..)(?!$)/g, '$1:'));
    else if (type === ETHERTYPE.arp) this.#answerArp(frame);
    else if (type === ETHERTYPE.ipv4 && frame[23] === IP_PROTOCOL.icmp) this.#takeIcmp(frame);
  }

  #answerArp(frame: Buffer): void {
    const target = arpTarget(frame);
    if (target !== undefined && this.#ip.every((byte, i) => byte === target[i])) {
      this.#send(arpReply(frame, this.card.macBytes, this.#ip));
    }
  }

  #takeIcmp(frame: Buffer): void {
    if (!frame.subarray(30, IP_END).equals(this.#ip)) return;
    const message = frame.subarray(IP_END, 14 + frame.readUInt16BE(16));
    assert.equal(internetChecksum(message), 0, 'checksum of an ICMP message from the guest');
    const [id, seq] = [frame.readUInt16BE(IP_END + 4), frame.readUInt16BE(IP_END + 6)];
    const payload = message.subarray(8);
    if (frame[IP_END] === ICMP.echoRequest) {
      this.#send(echoFrame(this.#ends, ICMP.echoReply, id, seq, payload));
    } else if (frame[IP_END] === ICMP.echoReply && id === PING_ID) {
      assert.ok(payload.equals(pingPayload(seq, this.#pingBytes)), `payload of the answer to ping ${seq}`);
      const now = performance.now();
      if (this.#answered > 0) this.#longestGapMs = Math.max(this.#longestGapMs, now - this.#lastAnswer);
      this.#lastAnswer = now;
      this.#answered++;
    }
  }

  #pingIfDue(): void {
    if (this.#pingEveryMs === 0 || performance.now() < this.#nextPing) return;
    this.#nextPing = performance.now() + this.#pingEveryMs;
    const seq = this.#seq++ & 0xffff;
    this.#sent++;
    this.#send(echoFrame(this.#ends, ICMP.echoRequest, PING_ID, seq, pingPayload(seq, this.#pingBytes)));
  }

  /** Puts a frame on the ring, which has room unless the guest stands still. */
  #send(frame: Uint8Array): boolean {
    const sent = this.card.send(frame);
    this.card.flush();
    return sent;
  }

  /** Begins to ping the guest again and again; what was counted before is forgotten. */
  startPinging(everyMs = 10, bytes = 56): void {
    this.#pingBytes = bytes;
    [this.#sent, this.#answered, this.#longestGapMs] = [0, 0, 0];
    this.#pingEveryMs = everyMs;
  }

  /** Stops pinging. */
  async stopPinging(): Promise<Pings> {
    this.#pingEveryMs = 0;
    await sleep(10 * NAP_MS); // for answers on their way
    return this.pings;
  }

  get pings(): Pings {
    return { sent: this.#sent, answered: this.#answered, longestGapMs: this.#longestGapMs };
  }

  /** Waits for `n` answers more to pings that are being sent. */
  async answersMore(n = 5, ms = 20_000): Promise<void> {
    const target = this.#answered + n;
    await this.until(`${n} answers more from ${this.#peer.ip}`, () => this.#answered >= target, ms);
  }

  /** Waits for a condition; rejects, naming `what`, after `ms`, or when a frame from the guest was damaged. */
  async until(what: string, condition: () => boolean, ms = 20_000): Promise<void> {
    const giveUpAt = performance.now() + ms;
    while (!condition()) {
      assert.ok(performance.now() < giveUpAt, `${what}: not within ${ms} ms; ${JSON.stringify(this.pings)}`);
      await Promise.race([sleep(NAP_MS), this.#running]);
    }
  }

  /** Sends a datagram without a checksum to a port of the guest. @returns false if the ring is full */
  sendUdp(port: number, payload: Uint8Array): boolean {
    return this.#send(udpFrame(this.#ends, { dst: port, src: 40_000 }, payload));
  }

  /** Ends it; rejects if a frame from the guest was damaged. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
  }
}

function pingPayload(seq: number, bytes: number): Buffer {
  return Buffer.from(Uint8Array.from({ length: bytes }, (_, i) => (i * 5 + seq) & 0xff));
}
