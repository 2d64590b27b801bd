/**
 * Packet sockets: their options, the receive ring in its second version, and what sendmmsg takes.
 * @see packet(7); linux/if_packet.h; Documentation/networking/packet_mmap.rst
 */
import { layout } from './layout.ts';

export const SOCKADDR_LL = layout('sockaddr_ll', {
  sll_family: 'u16',
  /** big-endian */
  sll_protocol: 'u16',
  sll_ifindex: 's32',
  sll_hatype: 'u16',
  sll_pkttype: 'u8',
  sll_halen: 'u8',
  sll_addr: ['u8', 8],
});

export const PACKET_MREQ = layout('packet_mreq', {
  mr_ifindex: 's32',
  mr_type: 'u16',
  mr_alen: 'u16',
  mr_address: ['u8', 8],
});
export const PACKET_MR_PROMISC = 1;

export const TPACKET_REQ = layout('tpacket_req', {
  tp_block_size: 'u32',
  tp_block_nr: 'u32',
  tp_frame_size: 'u32',
  tp_frame_nr: 'u32',
});

/** In front of each frame of the ring, at the beginning of its slot. */
export const TPACKET2_HDR = layout('tpacket2_hdr', {
  tp_status: 'u32',
  /** bytes of the frame */
  tp_len: 'u32',
  /** of these, bytes in the slot */
  tp_snaplen: 'u32',
  /** where in the slot they begin */
  tp_mac: 'u16',
  tp_net: 'u16',
  tp_sec: 'u32',
  tp_nsec: 'u32',
  tp_vlan_tci: 'u16',
  tp_vlan_tpid: 'u16',
  tp_padding: ['u8', 4],
});

/** Where the slot's sockaddr_ll begins, which says where the frame came from. */
export const TPACKET2_ADDRESS_OFF = TPACKET2_HDR.size;
/** `sll_pkttype`: a frame that this machine sends. */
export const PACKET_OUTGOING = 4;

export const TPACKET_STATS = layout('tpacket_stats', { tp_packets: 'u32', tp_drops: 'u32' });

export const TPACKET_V2 = 1;
export const TPACKET_ALIGNMENT = 16;

/** `tp_status`: the slot is the kernel's; ours; ours, and the whole frame waits in the socket's queue; a tag came beside the frame. */
export const TP_STATUS_KERNEL = 0;
export const TP_STATUS_USER = 1;
export const TP_STATUS_COPY = 2;
export const TP_STATUS_VLAN_VALID = 0x10;
export const TP_STATUS_VLAN_TPID_VALID = 0x40;

/** Socket options of level SOL_PACKET. */
export const PACKET_ADD_MEMBERSHIP = 1;
export const PACKET_DROP_MEMBERSHIP = 2;
export const PACKET_RX_RING = 5;
export const PACKET_STATISTICS = 6;
export const PACKET_COPY_THRESH = 7;
export const PACKET_VERSION = 10;
export const PACKET_VNET_HDR = 15;
export const PACKET_FANOUT = 18;
export const PACKET_FANOUT_DATA = 22;
export const PACKET_QDISC_BYPASS = 20;
export const PACKET_IGNORE_OUTGOING = 23;

export const PACKET_FANOUT_HASH = 0;
export const PACKET_FANOUT_EBPF = 7;
/** As PACKET_IGNORE_OUTGOING, which a group does not heed; since Linux 5.16, and without effect before. */
export const PACKET_FANOUT_FLAG_IGNORE_OUTGOING = 0x4000;
/** The kernel chooses a group that nobody has. */
export const PACKET_FANOUT_FLAG_UNIQUEID = 0x2000;

/** One message of sendmmsg and recvmmsg: a msghdr, and the bytes that it took. */
export const MMSGHDR = layout('mmsghdr', { msg_hdr: ['u64', 7], msg_len: 'u32' });
