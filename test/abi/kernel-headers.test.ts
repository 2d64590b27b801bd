/** Our layouts and constants against the C headers of this machine. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as ip from '../../src/uapi/ip.ts';
import type { Layout } from '../../src/uapi/layout.ts';
import * as packet from '../../src/uapi/packet.ts';
import * as rtnetlink from '../../src/uapi/rtnetlink.ts';
import { CMSGHDR, IOVEC, MSGHDR, SOCKADDR_UN } from '../../src/uapi/socket.ts';
import * as tun from '../../src/uapi/tun.ts';
import * as userfaultfd from '../../src/uapi/userfaultfd.ts';
import * as vhostUser from '../../src/uapi/vhost-user.ts';
import * as virtio from '../../src/uapi/virtio.ts';
import * as virtioNet from '../../src/uapi/virtio-net.ts';
import * as virtioRing from '../../src/uapi/virtio-ring.ts';
import { evaluateC, hasGcc } from './c-probe.ts';

const HEADERS = [
  'sys/socket.h',
  'sys/un.h',
  'sys/uio.h',
  'sys/mman.h',
  'sys/eventfd.h',
  'sys/epoll.h',
  'fcntl.h',
  'errno.h',
  'linux/magic.h',
  'linux/virtio_ring.h',
  'linux/virtio_net.h',
  'linux/virtio_config.h',
  'linux/vhost.h',
  'linux/if_ether.h',
  'linux/icmp.h',
  'linux/in.h',
  'linux/in6.h',
  'linux/ip.h',
  'linux/ipv6.h',
  'linux/tcp.h',
  'linux/udp.h',
  'linux/userfaultfd.h',
  'linux/if_packet.h',
  'linux/rtnetlink.h',
  'linux/veth.h',
  'linux/if_link.h',
  'linux/if.h',
  'net/if_arp.h',
  'sys/ioctl.h',
  'linux/if_tun.h',
];

/** Where C names a field differently, or has it in a struct within. */
const FIELD_IN_C: Record<string, Record<string, string>> = {
  virtio_net_hdr_mrg_rxbuf: Object.fromEntries(
    ['flags', 'gso_type', 'hdr_len', 'gso_size', 'csum_start', 'csum_offset'].map((field) => [field, `hdr.${field}`]),
  ),
  icmphdr: { rest: 'un' },
  uffdio_register: { start: 'range.start', len: 'range.len' },
  uffd_msg: { flags: 'arg.pagefault.flags', address: 'arg.pagefault.address', ptid: 'arg.pagefault.feat.ptid' },
  vhost_memory_region: { mmap_offset: 'flags_padding' }, // vhost-user's own use of the last 8 bytes
};

/** Fields that are bits in C, which have no offset. */
const BIT_FIELDS: Record<string, readonly string[]> = {
  iphdr: ['version_ihl'],
  ipv6hdr: ['version'],
  tcphdr: ['doff', 'flags'],
};

const LAYOUTS: readonly Layout<string>[] = [
  virtioRing.VRING_DESC,
  virtioRing.VRING_AVAIL,
  virtioRing.VRING_USED_ELEM,
  virtioRing.VRING_PACKED_DESC,
  virtioRing.VRING_PACKED_DESC_EVENT,
  virtioNet.VIRTIO_NET_HDR_MRG_RXBUF,
  vhostUser.VHOST_VRING_STATE,
  vhostUser.VHOST_VRING_ADDR,
  vhostUser.VHOST_IOTLB_MESSAGE,
  { ...vhostUser.VHOST_MEMORY_REGION, name: 'vhost_memory_region' },
  userfaultfd.UFFDIO_API_ARG,
  userfaultfd.UFFDIO_RANGE_ARG,
  userfaultfd.UFFDIO_REGISTER_ARG,
  userfaultfd.UFFDIO_COPY_ARG,
  userfaultfd.UFFD_MSG,
  SOCKADDR_UN,
  IOVEC,
  MSGHDR,
  CMSGHDR,
  packet.SOCKADDR_LL,
  packet.PACKET_MREQ,
  packet.TPACKET_REQ,
  packet.TPACKET2_HDR,
  packet.TPACKET_STATS,
  packet.MMSGHDR,
  rtnetlink.NLMSGHDR,
  rtnetlink.NLMSGERR,
  rtnetlink.IFINFOMSG,
  rtnetlink.RTATTR,
  rtnetlink.SOCKADDR_NL,
  tun.IFREQ,
  ip.ETHHDR,
  ip.IPHDR,
  ip.IPV6HDR,
  ip.IPV6_OPT_HDR,
  ip.ICMPHDR,
  ip.TCPHDR,
  ip.UDPHDR,
];

/** Constants of a TypeScript module or source text, by name. */
type Constants = Map<string, bigint>;

function exportedConstants(module: object): Constants {
  const numbers = Object.entries(module).filter(([, value]) => typeof value === 'number');
  return new Map(numbers.map(([name, value]): [string, bigint] => [name, BigInt(value as number)]));
}

/** The `const NAME = 0o4000;` lines of src/sys, whose constants are private. */
function sysConstants(): Constants {
  const dir = new URL('../../src/sys/', import.meta.url);
  const found: Constants = new Map();
  for (const file of readdirSync(dir)) {
    const source = readFileSync(new URL(file, dir), 'utf8');
    for (const [, name, value] of source.matchAll(/^(?:export )?const ([A-Z][A-Z0-9_]*) = (0?[xo]?[0-9a-f_]+);/gm)) {
      found.set(name, BigInt(value.replaceAll('_', '')));
    }
  }
  return found;
}

const skip = hasGcc() || process.env.CI === 'true' ? false : 'there is no gcc here to compile the C side with';

test('struct layouts are those of the C headers', { skip }, () => {
  const ours = new Map<string, bigint>();
  for (const { name, size, off } of LAYOUTS) {
    ours.set(`sizeof(struct ${name})`, BigInt(size));
    for (const [field, at] of Object.entries(off)) {
      if (BIT_FIELDS[name]?.includes(field)) continue;
      ours.set(`offsetof(struct ${name}, ${FIELD_IN_C[name]?.[field] ?? field})`, BigInt(at));
    }
  }
  const theirs = evaluateC(HEADERS, new Map([...ours.keys()].map((expression) => [expression, undefined])));
  assert.deepEqual(theirs, ours);
});

test('constants are those of the C headers', { skip }, () => {
  const ours: Constants = new Map([
    ...exportedConstants(virtio),
    ...exportedConstants(virtioRing),
    ...exportedConstants(virtio),
    ...exportedConstants(virtioNet),
    ...exportedConstants(vhostUser),
    ...exportedConstants(ip),
    ...exportedConstants(userfaultfd),
    ...exportedConstants(packet),
    ...exportedConstants(rtnetlink),
    ...exportedConstants(tun),
    ...sysConstants(),
  ]);
  ours.delete('VHOST_VRING_F_LOG'); // the header has the bit's number, the protocol its value: below
  const theirs = evaluateC(HEADERS, new Map([...ours.keys()].map((name) => [name, name])));
  for (const [name, value] of theirs) assert.equal(ours.get(name), value, name);

  const compared = [...theirs.keys()];
  for (const name of [
    'VIRTIO_NET_F_MRG_RXBUF',
    'VRING_DESC_F_INDIRECT',
    'VRING_PACKED_DESC_F_USED',
    'VHOST_F_LOG_ALL',
    'VIRTIO_F_VERSION_1',
  ]) {
    assert.ok(compared.includes(name), `${name} was not compared`);
  }
  for (const name of ['VHOST_IOTLB_INVALIDATE', 'VHOST_ACCESS_RW', 'SO_DOMAIN', 'MSG_DONTWAIT']) {
    assert.ok(compared.includes(name), `${name} was not compared`);
  }
  for (const name of [
    'SCM_RIGHTS',
    'MSG_CTRUNC',
    'MFD_ALLOW_SEALING',
    'MAP_FIXED',
    'EFD_NONBLOCK',
    'EPOLLET',
    'UFFDIO_COPY',
    'PACKET_VNET_HDR',
    'TP_STATUS_COPY',
    'RTM_DELLINK',
    'TUNSETIFF',
  ]) {
    assert.ok(compared.includes(name), `${name} was not compared`);
  }
});

test('VHOST_VRING_F_LOG is the bit that the header numbers', { skip }, () => {
  const theirs = evaluateC(HEADERS, new Map([['1 << VHOST_VRING_F_LOG', undefined]]));
  assert.equal(theirs.get('1 << VHOST_VRING_F_LOG'), BigInt(vhostUser.VHOST_VRING_F_LOG));
});
