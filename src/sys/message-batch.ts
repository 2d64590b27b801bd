/**
 * Many messages in one system call, each gathered from or scattered over pieces of memory.
 * @see sendmmsg(2), recvmmsg(2)
 */
import { MMSGHDR } from '../uapi/packet.ts';
import { IOVEC, MSGHDR } from '../uapi/socket.ts';
import { addressOf, errno, libc } from './libc.ts';

const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

const c = {
  sendmmsg: libc.func('sendmmsg', 'int', ['int', 'uintptr_t', 'uint', 'int']),
  recvmmsg: libc.func('recvmmsg', 'int', ['int', 'uintptr_t', 'uint', 'int', 'void *']),
};

const MESSAGE_WORDS = MMSGHDR.size / 4;
const IOV_WORD = MSGHDR.off.msg_iov / 4;
const IOVLEN_WORD = MSGHDR.off.msg_iovlen / 4;
const LEN_WORD = MMSGHDR.off.msg_len / 4;
const PIECE_WORDS = IOVEC.size / 4;
const TWO_32 = 2 ** 32;

/** Messages to be sent or received. The memory of their pieces stays the caller's, who keeps it alive. */
export class MessageBatch {
  /** messages begun since `clear` */
  count = 0;
  readonly #messages: Uint32Array;
  readonly #pieces: Uint32Array;
  readonly #messagesAddress: number;
  readonly #piecesAddress: number;
  #piece = 0;

  /** Has room for `messages`, of `pieces` pieces in all. */
  constructor(messages: number, pieces: number) {
    this.#messages = new Uint32Array(messages * MESSAGE_WORDS);
    this.#pieces = new Uint32Array(pieces * PIECE_WORDS);
    this.#messagesAddress = Number(addressOf(this.#messages));
    this.#piecesAddress = Number(addressOf(this.#pieces));
  }

  clear(): void {
    this.count = 0;
    this.#piece = 0;
  }

  /** Begins a message: the pieces added from now on are its. */
  begin(): void {
    const at = this.count++ * MESSAGE_WORDS;
    const address = this.#piecesAddress + this.#piece * IOVEC.size;
    this.#messages[at + IOV_WORD] = address;
    this.#messages[at + IOV_WORD + 1] = address / TWO_32;
    this.#messages[at + IOVLEN_WORD] = 0;
  }

  /** Adds `len` bytes at an address to the last message. */
  add(address: number, len: number): void {
    const at = this.#piece++ * PIECE_WORDS;
    this.#pieces[at] = address;
    this.#pieces[at + 1] = address / TWO_32;
    this.#pieces[at + 2] = len;
    this.#messages[(this.count - 1) * MESSAGE_WORDS + IOVLEN_WORD]++;
  }

  /** Bytes that message `i` took in the last call. */
  bytesOf(i: number): number {
    return this.#messages[i * MESSAGE_WORDS + LEN_WORD];
  }

  /** Sends messages `from` … `count` − 1 without waiting. @returns how many were taken; −errno if not even the first was */
  send(fd: number, from: number): number {
    const address = this.#messagesAddress + from * MMSGHDR.size;
    const n = c.sendmmsg(fd, address, this.count - from, MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? -errno() : n;
  }

  /** Receives into messages 0 … `n` − 1 without waiting. @returns how many came; −errno if none */
  receive(fd: number, n: number): number {
    const got = c.recvmmsg(fd, this.#messagesAddress, n, MSG_DONTWAIT, null);
    return got < 0 ? -errno() : got;
  }
}
