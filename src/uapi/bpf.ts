/**
 * bpf(2): maps, programs and links of the kernel's virtual machine.
 * @see linux/bpf.h, linux/bpf_common.h, bpf(2), RFC 9669
 */
import { layout } from './layout.ts';

/** Commands of bpf(2). */
export const BPF_MAP_CREATE = 0;
export const BPF_MAP_LOOKUP_ELEM = 1;
export const BPF_MAP_UPDATE_ELEM = 2;
export const BPF_MAP_DELETE_ELEM = 3;
export const BPF_PROG_LOAD = 5;
export const BPF_LINK_CREATE = 28;

export const BPF_MAP_TYPE_HASH = 1;
export const BPF_MAP_TYPE_PERCPU_ARRAY = 6;
export const BPF_MAP_TYPE_XSKMAP = 17;

export const BPF_PROG_TYPE_SOCKET_FILTER = 1;
export const BPF_PROG_TYPE_XDP = 6;

/** The attach type of a link to an interface. */
export const BPF_XDP = 37;

export const BPF_FUNC_map_lookup_elem = 1;
export const BPF_FUNC_redirect_map = 51;
export const BPF_FUNC_skb_load_bytes_relative = 68;
export const BPF_FUNC_xdp_get_buff_len = 188;
/** Offsets count from the Ethernet header on. */
export const BPF_HDR_START_MAC = 0;

/** What an XDP program answers: here, the packet goes on to the kernel. */
export const XDP_PASS = 2;

/** A name is 15 characters and a NUL. */
export const BPF_OBJ_NAME_LEN = 16;

/** `regs` is dst_reg in its lower half and src_reg in its upper; `off` and `imm` are signed. */
export const BPF_INSN = layout('bpf_insn', { code: 'u8', regs: 'u8', off: 'u16', imm: 's32' });

/** The parts of union bpf_attr, by command: from the union's beginning on. What is left out is zero. */
export const BPF_ATTR_MAP_CREATE = layout('bpf_attr', {
  map_type: 'u32',
  key_size: 'u32',
  value_size: 'u32',
  max_entries: 'u32',
  map_flags: 'u32',
  inner_map_fd: 'u32',
  numa_node: 'u32',
  map_name: ['u8', BPF_OBJ_NAME_LEN],
});
export const BPF_ATTR_MAP_ELEM = layout('bpf_attr', { map_fd: 'u32', key: 'u64', value: 'u64', flags: 'u64' });
export const BPF_ATTR_PROG_LOAD = layout('bpf_attr', {
  prog_type: 'u32',
  insn_cnt: 'u32',
  insns: 'u64',
  license: 'u64',
  log_level: 'u32',
  log_size: 'u32',
  log_buf: 'u64',
  kern_version: 'u32',
  prog_flags: 'u32',
  prog_name: ['u8', BPF_OBJ_NAME_LEN],
});
export const BPF_ATTR_LINK_CREATE = layout('bpf_attr', {
  prog_fd: 'u32',
  target_ifindex: 'u32',
  attach_type: 'u32',
  flags: 'u32',
});

/** In `prog_flags`: the program may be given frames of several pieces. */
export const BPF_F_XDP_HAS_FRAGS = 32;

/** What an XDP program is given; `data` and `data_end` are read as 32 bits and are pointers then. */
export const XDP_MD = layout('xdp_md', {
  data: 'u32',
  data_end: 'u32',
  data_meta: 'u32',
  ingress_ifindex: 'u32',
  rx_queue_index: 'u32',
  egress_ifindex: 'u32',
});

/** What a socket's program is given; its beginning. */
export const SK_BUFF = layout('__sk_buff', {
  len: 'u32',
  pkt_type: 'u32',
  mark: 'u32',
  queue_mapping: 'u32',
  protocol: 'u32',
  vlan_present: 'u32',
  vlan_tci: 'u32',
  vlan_proto: 'u32',
});

/** Instruction classes, and what is added to them. */
export const BPF_LDX = 0x01;
export const BPF_ST = 0x02;
export const BPF_STX = 0x03;
export const BPF_LD = 0x00;
export const BPF_ALU = 0x04;
export const BPF_JMP = 0x05;
export const BPF_ALU64 = 0x07;

/** Sizes: 4, 2, 1 and 8 bytes. */
export const BPF_W = 0x00;
export const BPF_H = 0x08;
export const BPF_B = 0x10;
export const BPF_DW = 0x18;

export const BPF_IMM = 0x00;
export const BPF_MEM = 0x60;
export const BPF_ATOMIC = 0xc0;

/** The operand is `imm`, or the source register. */
export const BPF_K = 0x00;
export const BPF_X = 0x08;

export const BPF_ADD = 0x00;
export const BPF_SUB = 0x10;
export const BPF_MUL = 0x20;
export const BPF_AND = 0x50;
export const BPF_MOV = 0xb0;
export const BPF_END = 0xd0;
export const BPF_TO_BE = 0x08;

export const BPF_JA = 0x00;
export const BPF_JEQ = 0x10;
export const BPF_JGT = 0x20;
export const BPF_JNE = 0x50;
export const BPF_CALL = 0x80;
export const BPF_EXIT = 0x90;

/** In `src_reg` of a load of 64 bits: `imm` is the descriptor of a map, whose address is loaded. */
export const BPF_PSEUDO_MAP_FD = 1;
