/**
 * The programs in the kernel of zero copy. Each guest has a lane: a virtual cable whose far end has an AF_XDP socket over the guest's own
 * memory. The uplink's program sends a guest's frames into its lane, and gives all others to the switch; the lane's own see to it that no
 * frame is longer than the guest's buffers, and that what the guest sends leaves by the uplink.
 */
import {
  BPF_DW,
  BPF_FUNC_map_lookup_elem,
  BPF_FUNC_redirect,
  BPF_FUNC_redirect_map,
  BPF_FUNC_xdp_adjust_head,
  BPF_FUNC_xdp_get_buff_len,
  BPF_H,
  BPF_W,
  TC_ACT_SHOT,
  XDP_DROP,
  XDP_MD,
  XDP_PASS,
} from '../uapi/bpf.ts';
import { ETHHDR, VLAN_HLEN } from '../uapi/ip.ts';
import { BpfAssembler, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 } from './bpf-assembler.ts';
import { bigEndian16, STEER_KEY_VLAN } from './steering-program.ts';

const VID_MASK = 0xfff;
/** In a half word of a source address as the CPU has it: the address is a group's. */
const GROUP_BIT = 1;
const TYPE_OFF = ETHHDR.off.h_proto;
const TCI_OFF = ETHHDR.size;
const SOURCE_OFF = ETHHDR.off.h_source;
/** On the stack, from R10 down: the key, and both addresses of a frame. */
const KEY = -8;
const ADDRESSES = -24;
const SLOT = -4;

/** What the uplink's program works with: descriptors of maps. */
export interface LaneMaps {
  /** XSKMAP: the switch's own sockets, by receive queue */
  readonly sockets: number;
  /** hash: as for steering, but to the number of a lane */
  readonly table: number;
  /** DEVMAP: near ends, by lane */
  readonly ends: number;
}

/** How frames come in. */
export interface LaneTags {
  /** EtherType of the tag that says which VLAN a frame is in */
  readonly type: number;
  /** it is taken off */
  readonly strip: boolean;
}

/**
 * XDP, for the uplink: a frame to an address and a VLAN in the table goes to its lane, any other to the switch's socket of the queue that
 * it has come by. A frame from a group's address makes no sense, and goes to the switch, which counts such frames.
 */
export function laneProgram({ sockets, table, ends }: LaneMaps, { type, strip }: LaneTags): Uint8Array {
  const program = new BpfAssembler()
    .alu('mov', R6, R1)
    .load(BPF_W, R9, R6, XDP_MD.off.rx_queue_index)
    .load(BPF_W, R8, R6, XDP_MD.off.data_end)
    .load(BPF_W, R3, R6, XDP_MD.off.data)
    .storeImm(BPF_DW, R10, KEY, 0)
    .alu('mov', R4, R3)
    .aluImm('add', R4, ETHHDR.size)
    .jump('gt', R4, R8, 'switch')
    .load(BPF_H, R5, R3, SOURCE_OFF)
    .aluImm('and', R5, GROUP_BIT)
    .jumpImm('ne', R5, 0, 'switch')
    // both addresses, for the key and for a frame that is to lose its tag
    .load(BPF_W, R5, R3, 0)
    .store(BPF_W, R10, KEY, R5)
    .store(BPF_W, R10, ADDRESSES, R5)
    .load(BPF_W, R5, R3, 4)
    .store(BPF_H, R10, KEY + 4, R5)
    .store(BPF_W, R10, ADDRESSES + 4, R5)
    .load(BPF_W, R5, R3, 8)
    .store(BPF_W, R10, ADDRESSES + 8, R5)
    .aluImm('mov', R7, 0)
    .load(BPF_H, R5, R3, TYPE_OFF)
    .jumpImm('ne', R5, bigEndian16(type), 'look')
    .aluImm('add', R4, VLAN_HLEN)
    .jump('gt', R4, R8, 'switch')
    .load(BPF_H, R5, R3, TCI_OFF)
    .fromBigEndian(R5, 16)
    .aluImm('and', R5, VID_MASK)
    .store(BPF_H, R10, KEY + STEER_KEY_VLAN, R5)
    // a tag of VLAN 0 is a priority and nothing else: the switch knows what to do with it
    .jumpImm('eq', R5, 0, 'switch')
    .aluImm('mov', R7, 1)
    .label('look')
    .loadMap(R1, table)
    .alu('mov', R2, R10)
    .aluImm('add', R2, KEY)
    .call(BPF_FUNC_map_lookup_elem)
    .jumpImm('eq', R0, 0, 'switch')
    .load(BPF_W, R8, R0, 0);
  if (strip) takeTagOff(program.jumpImm('eq', R7, 0, 'go'));
  program
    .label('go')
    .alu('mov', R2, R8)
    .loadMap(R1, ends)
    .aluImm('mov', R3, XDP_DROP)
    .call(BPF_FUNC_redirect_map)
    .exit()
    .label('switch')
    .alu('mov', R2, R9)
    .loadMap(R1, sockets)
    .aluImm('mov', R3, XDP_PASS)
    .call(BPF_FUNC_redirect_map)
    .exit();
  // the kernel takes no program with what nothing leads to
  if (strip) program.label('drop').aluImm('mov', R0, XDP_DROP).exit();
  return program.assemble();
}

/** The addresses move up over the tag; what is behind it stays where it is. */
function takeTagOff(program: BpfAssembler): void {
  program
    .alu('mov', R1, R6)
    .aluImm('mov', R2, VLAN_HLEN)
    .call(BPF_FUNC_xdp_adjust_head)
    .jumpImm('ne', R0, 0, 'drop')
    .load(BPF_W, R5, R6, XDP_MD.off.data_end)
    .load(BPF_W, R3, R6, XDP_MD.off.data)
    .alu('mov', R4, R3)
    .aluImm('add', R4, ETHHDR.size)
    .jump('gt', R4, R5, 'drop');
  for (const off of [0, 4, 8]) program.load(BPF_W, R5, R10, ADDRESSES + off).store(BPF_W, R3, off, R5);
}

/**
 * XDP, for a lane's far end: hands every frame of at most `maxFrame` bytes to the socket, and counts those that it drops for their length.
 * @param socket descriptor of an XSKMAP of one @param dropped of an ARRAY with one value of 8 bytes
 */
export function farProgram(socket: number, dropped: number, maxFrame: number): Uint8Array {
  return new BpfAssembler()
    .call(BPF_FUNC_xdp_get_buff_len)
    .jumpImm('gt', R0, maxFrame, 'long')
    .loadMap(R1, socket)
    .aluImm('mov', R2, 0)
    .aluImm('mov', R3, XDP_DROP)
    .call(BPF_FUNC_redirect_map)
    .exit()
    .label('long')
    .storeImm(BPF_W, R10, SLOT, 0)
    .loadMap(R1, dropped)
    .alu('mov', R2, R10)
    .aluImm('add', R2, SLOT)
    .call(BPF_FUNC_map_lookup_elem)
    .jumpImm('eq', R0, 0, 'counted')
    .aluImm('mov', R1, 1)
    .atomicAdd(R0, 0, R1)
    .label('counted')
    .aluImm('mov', R0, XDP_DROP)
    .exit()
    .assemble();
}

/** Traffic control, for what arrives at a lane's near end, which the guest has sent: it leaves by the uplink, interface `uplink`. */
export const nearProgram = (uplink: number): Uint8Array =>
  new BpfAssembler().aluImm('mov', R1, uplink).aluImm('mov', R2, 0).call(BPF_FUNC_redirect).exit().assemble();

/** Traffic control, for what the host's own stack would send by an end of a lane: nothing leaves. What is redirected there does not come by. */
export const silentProgram = (): Uint8Array => new BpfAssembler().aluImm('mov', R0, TC_ACT_SHOT).exit().assemble();
