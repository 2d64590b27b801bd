/**
 * What the kernel says of its network interfaces, at once and whenever it changes.
 * @see rtnetlink(7)
 */
import { closeSync } from 'node:fs';
import {
  IFINFOMSG,
  IFLA_ADDRESS,
  IFLA_IFNAME,
  IFLA_MTU,
  NLM_F_REQUEST,
  NLMSG_ERROR,
  NLMSGERR,
  NLMSGHDR,
  RTATTR,
  RTM_DELLINK,
  RTM_GETLINK,
  RTM_NEWLINK,
  RTMGRP_LINK,
  SOCKADDR_NL,
} from '../uapi/rtnetlink.ts';
import { check, EAGAIN, EINTR, errno, libc } from './libc.ts';

const AF_NETLINK = 16;
const NETLINK_ROUTE = 0;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const ENODEV = 19;
const ENOBUFS = 105;
/** More than the kernel puts into one message of ours. */
const BUFFER_BYTES = 65536;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  bind: libc.func('bind', 'int', ['int', 'void *', 'uint']),
  send: libc.func('send', 'int64_t', ['int', 'void *', 'size_t', 'int']),
  recv: libc.func('recv', 'int64_t', ['int', 'void *', 'size_t', 'int']),
};

/** A network interface. */
export interface InterfaceInfo {
  readonly name: string;
  readonly index: number;
  /** ARPHRD_… */
  readonly type: number;
  /** IFF_… */
  readonly flags: number;
  /** 6 bytes where it is Ethernet */
  readonly address: Uint8Array;
  readonly mtu: number;
}

/** An interface as it is now, or that it has gone. */
export type LinkEvent = { readonly gone: boolean; readonly link: InterfaceInfo };

const align = (len: number) => (len + 3) & ~3;

function readLink(view: DataView, at: number, end: number): InterfaceInfo {
  let name = '';
  let address = new Uint8Array();
  let mtu = 0;
  for (let a = at + align(IFINFOMSG.size); a + RTATTR.size <= end; ) {
    const len = view.getUint16(a + RTATTR.off.rta_len, true);
    if (len < RTATTR.size || a + len > end) break;
    const bytes = new Uint8Array(view.buffer, a + RTATTR.size, len - RTATTR.size);
    const type = view.getUint16(a + RTATTR.off.rta_type, true);
    if (type === IFLA_IFNAME) name = Buffer.from(bytes).toString('latin1').replace(/\0.*$/s, '');
    else if (type === IFLA_ADDRESS) address = bytes.slice();
    else if (type === IFLA_MTU) mtu = view.getUint32(a + RTATTR.size, true);
    a += align(len);
  }
  return {
    name,
    index: view.getInt32(at + IFINFOMSG.off.ifi_index, true),
    type: view.getUint16(at + IFINFOMSG.off.ifi_type, true),
    flags: view.getUint32(at + IFINFOMSG.off.ifi_flags, true),
    address,
    mtu,
  };
}

/** A socket of the network namespace that it is made in. */
export class LinkSocket {
  /** can be read when something has changed */
  readonly fd: number;
  readonly #view = new DataView(new ArrayBuffer(BUFFER_BYTES));

  /** @param listens the changes of all interfaces are told by `read` */
  constructor(listens: boolean) {
    this.fd = check(c.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE), 'socket AF_NETLINK');
    const address = new DataView(new ArrayBuffer(SOCKADDR_NL.size));
    address.setUint16(SOCKADDR_NL.off.nl_family, AF_NETLINK, true);
    address.setUint32(SOCKADDR_NL.off.nl_groups, listens ? RTMGRP_LINK : 0, true);
    try {
      check(c.bind(this.fd, address, address.byteLength), 'bind AF_NETLINK');
    } catch (error) {
      closeSync(this.fd);
      throw error;
    }
  }

  /** Asks for an interface, which `read` tells of, too. @param which its name or its index */
  ask(which: string | number): void {
    const name = typeof which === 'string' ? Buffer.from(`${which}\0`) : Buffer.alloc(0);
    const attribute = name.length > 0 ? align(RTATTR.size + name.length) : 0;
    const at = NLMSGHDR.size + align(IFINFOMSG.size);
    const view = new DataView(new ArrayBuffer(at + attribute));
    view.setUint32(NLMSGHDR.off.nlmsg_len, view.byteLength, true);
    view.setUint16(NLMSGHDR.off.nlmsg_type, RTM_GETLINK, true);
    view.setUint16(NLMSGHDR.off.nlmsg_flags, NLM_F_REQUEST, true);
    if (typeof which === 'number') view.setInt32(NLMSGHDR.size + IFINFOMSG.off.ifi_index, which, true);
    if (attribute > 0) {
      view.setUint16(at + RTATTR.off.rta_len, RTATTR.size + name.length, true);
      view.setUint16(at + RTATTR.off.rta_type, IFLA_IFNAME, true);
      new Uint8Array(view.buffer).set(name, at + RTATTR.size);
    }
    check(Number(c.send(this.fd, view, view.byteLength, 0)), 'send AF_NETLINK');
  }

  /**
   * What has been told since the last call, without waiting. @returns `overrun`: the kernel had more to say than the socket held;
   * `missing`: there is no interface such as was asked for
   */
  read(): { events: LinkEvent[]; overrun: boolean; missing: boolean } {
    const told = { events: [] as LinkEvent[], overrun: false, missing: false };
    for (;;) {
      const n = Number(c.recv(this.fd, this.#view, BUFFER_BYTES, 0));
      if (n < 0 && errno() === EINTR) continue;
      if (n < 0 && errno() === EAGAIN) return told;
      if (n < 0 && errno() === ENOBUFS) told.overrun = true;
      else this.#take(check(n, 'recv AF_NETLINK'), told);
    }
  }

  #take(bytes: number, told: { events: LinkEvent[]; missing: boolean }): void {
    const view = this.#view;
    for (let at = 0; at + NLMSGHDR.size <= bytes; ) {
      const len = view.getUint32(at + NLMSGHDR.off.nlmsg_len, true);
      if (len < NLMSGHDR.size || at + len > bytes) return;
      const type = view.getUint16(at + NLMSGHDR.off.nlmsg_type, true);
      const body = at + NLMSGHDR.size;
      // of another family are what bridges say of their ports: one that leaves a bridge is not gone
      const ofAll = view.getUint8(body + IFINFOMSG.off.ifi_family) === 0;
      if ((type === RTM_NEWLINK || type === RTM_DELLINK) && ofAll)
        told.events.push({ gone: type === RTM_DELLINK, link: readLink(view, body, at + len) });
      else if (type === NLMSG_ERROR && view.getInt32(body + NLMSGERR.off.error, true) === -ENODEV) told.missing = true;
      at += align(len);
    }
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** An interface of the calling thread's network namespace by its name, or undefined if there is none. */
export function findInterface(name: string): InterfaceInfo | undefined {
  const socket = new LinkSocket(false);
  try {
    socket.ask(name);
    // the kernel has answered before send returns
    const { events } = socket.read();
    return events[0]?.link;
  } finally {
    socket.close();
  }
}
