/** A host in a network namespace that sends and receives frames as they are, by a plain packet socket of its own. */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { addressOf, errno, libc } from '../../src/sys/libc.ts';
import { findInterface } from '../../src/sys/netlink.ts';
import { inNetns } from '../../src/sys/netns.ts';
import type { Cable } from '../peers/netns.ts';

const AF_PACKET = 17;
const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0o4000 | 0o2000000;
const SOL_PACKET = 263;
const PACKET_AUXDATA = 8;
const PACKET_IGNORE_OUTGOING = 23;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const EAGAIN = 11;
const ENETDOWN = 100;
const ETH_P_ALL = 3;
const TP_STATUS_VLAN_VALID = 0x10;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  bind: libc.func('bind', 'int', ['int', 'void *', 'uint']),
  setsockopt: libc.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']),
  send: libc.func('send', 'int64_t', ['int', 'void *', 'size_t', 'int']),
  recvmsg: libc.func('recvmsg', 'int64_t', ['int', 'void *', 'int']),
};

function ensure(result: number, what: string): number {
  if (result < 0) throw new Error(`raw host: ${what}: errno ${errno()}`);
  return result;
}

/** IEEE 802 "local experimental" EtherType, behind a tag or not. */
const isOurs = (frame: Uint8Array) =>
  [12, 16].some(
    (at) => frame[at] === 0x88 && frame[at + 1] === 0xb5 && (at === 12 || [0x81, 0x88].includes(frame[12])),
  );

export class RawHost {
  readonly #fd: number;
  readonly #wanted: (frame: Uint8Array) => boolean;
  readonly #frame = new Uint8Array(70_000);
  readonly #control = new DataView(new ArrayBuffer(64));
  readonly #iovec = new BigUint64Array([addressOf(this.#frame), BigInt(this.#frame.length)]);
  readonly #message = new DataView(new ArrayBuffer(56));

  /** At the far end of a cable. @param wanted the frames that `receive` tells of: by default those of our tests' EtherType */
  constructor({ netns, far }: Pick<Cable, 'netns' | 'far'>, wanted: (frame: Uint8Array) => boolean = isOurs) {
    this.#wanted = wanted;
    this.#fd = inNetns(netns, () => {
      const index = findInterface(far)?.index;
      if (index === undefined) throw new Error(`raw host: there is no ${far} in ${netns}`);
      const fd = ensure(c.socket(AF_PACKET, SOCK_RAW_NONBLOCK_CLOEXEC, 0), 'socket');
      const on = new Int32Array([1]);
      ensure(c.setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, on, 4), 'PACKET_AUXDATA');
      ensure(c.setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, on, 4), 'PACKET_IGNORE_OUTGOING');
      ensure(c.setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, new Int32Array([2 ** 24]), 4), 'SO_RCVBUFFORCE');
      const address = new DataView(new ArrayBuffer(20));
      address.setUint16(0, AF_PACKET, true);
      address.setUint16(2, ETH_P_ALL);
      address.setInt32(4, index, true);
      ensure(c.bind(fd, address, 20), 'bind');
      return fd;
    });
    this.#message.setBigUint64(16, addressOf(this.#iovec), true);
    this.#message.setBigUint64(24, 1n, true);
    this.#message.setBigUint64(32, addressOf(this.#control), true);
  }

  /** Sends a frame, with its tag if it has one. */
  send(frame: Uint8Array): void {
    ensure(Number(c.send(this.#fd, frame, frame.length, 0)), 'send');
  }

  /** The next frame that is wanted, with its tag if it had one; or undefined if none is there. */
  receive(): Uint8Array | undefined {
    for (;;) {
      this.#message.setBigUint64(40, 64n, true);
      const n = Number(c.recvmsg(this.#fd, this.#message, 0));
      if (n < 0 && errno() === EAGAIN) return undefined;
      if (n < 0 && errno() === ENETDOWN) continue; // told once, when the interface has been down
      const frame = this.#withTag(this.#frame.slice(0, ensure(n, 'recvmsg')));
      if (this.#wanted(frame)) return frame;
    }
  }

  /** Puts back the tag that the kernel has taken off. */
  #withTag(frame: Uint8Array): Uint8Array {
    const status = this.#control.getUint32(16, true);
    const auxdata = Number(this.#message.getBigUint64(40, true)) >= 36;
    if (!auxdata || (status & TP_STATUS_VLAN_VALID) === 0) return frame;
    const tag = new DataView(new ArrayBuffer(4));
    tag.setUint16(0, this.#control.getUint16(34, true));
    tag.setUint16(2, this.#control.getUint16(32, true));
    return Buffer.concat([frame.subarray(0, 12), new Uint8Array(tag.buffer), frame.subarray(12)]);
  }

  /** The next frame, within `ms`, or undefined. */
  async waitFrame(ms = 10_000): Promise<Uint8Array | undefined> {
    const giveUpAt = performance.now() + ms;
    for (;;) {
      const frame = this.receive();
      if (frame !== undefined || performance.now() > giveUpAt) return frame;
      await sleep(1);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }
}
