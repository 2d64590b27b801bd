/**
 * The programs in the kernel that share frames out among queues: to the queue that a table has for {MAC address, VLAN}, or to queue
 * 0. They count what goes to each, and what has no entry.
 */
import {
  BPF_DW,
  BPF_FUNC_map_lookup_elem,
  BPF_FUNC_redirect_map,
  BPF_FUNC_skb_load_bytes_relative,
  BPF_FUNC_xdp_get_buff_len,
  BPF_H,
  BPF_HDR_START_MAC,
  BPF_W,
  SK_BUFF,
  XDP_MD,
  XDP_PASS,
} from '../uapi/bpf.ts';
import { ETH_P_8021AD, ETH_P_8021Q, ETHHDR, VLAN_HLEN } from '../uapi/ip.ts';
import { BpfAssembler, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 } from './bpf-assembler.ts';

/** The table's key: six bytes of address and the VLAN's number in the CPU's order, 0 without a tag. */
export const STEER_KEY_BYTES = 8;
export const STEER_KEY_VLAN = 6;
/** Its value: the queue, 4 bytes. */
export const STEER_VALUE_BYTES = 4;
/** A counter: packets and bytes, 8 bytes each. Counter n is queue n's; the last one's frames had no entry, and went to queue 0. */
export const STEER_COUNT_BYTES = 16;

/** VLAN numbers are 12 bits of a tag. */
const VID_MASK = 0xfff;
const ADDRESS_WORD = 4;
const TYPE_OFF = ETHHDR.off.h_proto;
const TCI_OFF = ETHHDR.size;

/** On the stack, from R10 down. */
const KEY = -8;
const SLOT = -16;

/** The maps of a program that steers, as descriptors. */
export interface SteeringMaps {
  /** hash: STEER_KEY_BYTES → STEER_VALUE_BYTES */
  readonly table: number;
  /** array by CPU: STEER_COUNT_BYTES, one more than there are queues */
  readonly counts: number;
  readonly queues: number;
}

/** Fields of a packet are read as the CPU has them: so the kernel's number of a protocol, turned round. */
export const bigEndian16 = (n: number) => ((n & 0xff) << 8) | (n >> 8);

/** From the key on the stack to the queue in R7; R8 has the frame's bytes. Uses all registers but R6 and R9. */
function lookUpAndCount(program: BpfAssembler, { table, counts, queues }: SteeringMaps): void {
  program
    .loadMap(R1, table)
    .alu('mov', R2, R10)
    .aluImm('add', R2, KEY)
    .call(BPF_FUNC_map_lookup_elem)
    .jumpImm('eq', R0, 0, 'unknown')
    .load(BPF_W, R7, R0, 0)
    .store(BPF_W, R10, SLOT, R7)
    .goto('count')
    .label('unknown')
    .aluImm('mov', R7, 0)
    .storeImm(BPF_W, R10, SLOT, queues)
    .label('count')
    .loadMap(R1, counts)
    .alu('mov', R2, R10)
    .aluImm('add', R2, SLOT)
    .call(BPF_FUNC_map_lookup_elem)
    .jumpImm('eq', R0, 0, 'counted')
    .aluImm('mov', R1, 1)
    .atomicAdd(R0, 0, R1)
    .atomicAdd(R0, 8, R8)
    .label('counted');
}

/** Redirects to socket R9 × `perQueue` + R7 of the map, R9 being the receive queue. Where there is none, the kernel goes on with the frame. */
function redirect(program: BpfAssembler, sockets: number, perQueue: number): BpfAssembler {
  return program
    .alu('mov', R2, R9)
    .aluImm('mul', R2, perQueue)
    .alu('add', R2, R7)
    .loadMap(R1, sockets)
    .aluImm('mov', R3, XDP_PASS)
    .call(BPF_FUNC_redirect_map)
    .exit();
}

/**
 * XDP: gives every frame to a socket of the receive queue that it has come by. Without `maps`, to the first.
 * @param sockets descriptor of the XSKMAP: those of receive queue q begin at q × `perQueue`
 */
export function xdpProgram(sockets: number, perQueue: number, maps?: SteeringMaps): Uint8Array {
  const program = new BpfAssembler().alu('mov', R6, R1).load(BPF_W, R9, R6, XDP_MD.off.rx_queue_index);
  if (maps === undefined) return redirect(program.aluImm('mov', R7, 0), sockets, perQueue).assemble();
  program
    .load(BPF_W, R8, R6, XDP_MD.off.data_end)
    .load(BPF_W, R3, R6, XDP_MD.off.data)
    .storeImm(BPF_DW, R10, KEY, 0)
    .alu('mov', R4, R3)
    .aluImm('add', R4, ETHHDR.size)
    .jump('gt', R4, R8, 'key')
    .load(BPF_W, R5, R3, ETHHDR.off.h_dest)
    .store(BPF_W, R10, KEY, R5)
    .load(BPF_H, R5, R3, ETHHDR.off.h_dest + ADDRESS_WORD)
    .store(BPF_H, R10, KEY + ADDRESS_WORD, R5)
    .load(BPF_H, R5, R3, TYPE_OFF)
    .jumpImm('eq', R5, bigEndian16(ETH_P_8021Q), 'tagged')
    .jumpImm('ne', R5, bigEndian16(ETH_P_8021AD), 'key')
    .label('tagged')
    .aluImm('add', R4, VLAN_HLEN)
    .jump('gt', R4, R8, 'key')
    .load(BPF_H, R5, R3, TCI_OFF)
    .fromBigEndian(R5, 16)
    .aluImm('and', R5, VID_MASK)
    .store(BPF_H, R10, KEY + STEER_KEY_VLAN, R5)
    .label('key')
    .alu('mov', R1, R6)
    .call(BPF_FUNC_xdp_get_buff_len)
    .alu('mov', R8, R0);
  lookUpAndCount(program, maps);
  return redirect(program, sockets, perQueue).assemble();
}

/**
 * A program for PACKET_FANOUT_EBPF: answers the number of the socket in its group, in the order in which they have joined. The kernel
 * has taken the tag off the frame, and does not count its bytes, nor those of the Ethernet header.
 */
export function fanoutProgram(maps: SteeringMaps): Uint8Array {
  const program = new BpfAssembler()
    .alu('mov', R6, R1)
    .load(BPF_W, R8, R6, SK_BUFF.off.len)
    .aluImm('add', R8, ETHHDR.size)
    .storeImm(BPF_DW, R10, KEY, 0)
    .aluImm('mov', R2, ETHHDR.off.h_dest)
    .alu('mov', R3, R10)
    .aluImm('add', R3, KEY)
    .aluImm('mov', R4, STEER_KEY_VLAN)
    .aluImm('mov', R5, BPF_HDR_START_MAC)
    .call(BPF_FUNC_skb_load_bytes_relative)
    .load(BPF_W, R2, R6, SK_BUFF.off.vlan_tci)
    .aluImm('and', R2, VID_MASK)
    .store(BPF_H, R10, KEY + STEER_KEY_VLAN, R2);
  lookUpAndCount(program, maps);
  return program.alu('mov', R0, R7).exit().assemble();
}
