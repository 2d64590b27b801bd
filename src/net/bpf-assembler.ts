/**
 * An assembler for the few instructions of eBPF that are used here. Programs are small: jumps go forward, to labels by name.
 * @see RFC 9669
 */
import {
  BPF_ADD,
  BPF_ALU,
  BPF_ALU64,
  BPF_AND,
  BPF_ATOMIC,
  BPF_CALL,
  BPF_DW,
  BPF_END,
  BPF_EXIT,
  BPF_IMM,
  BPF_INSN,
  BPF_JA,
  BPF_JEQ,
  BPF_JGT,
  BPF_JMP,
  BPF_JNE,
  BPF_K,
  BPF_LD,
  BPF_LDX,
  BPF_MEM,
  BPF_MOV,
  BPF_MUL,
  BPF_PSEUDO_MAP_FD,
  BPF_ST,
  BPF_STX,
  BPF_SUB,
  BPF_TO_BE,
  BPF_X,
} from '../uapi/bpf.ts';

/** Registers: what a function answers, its arguments, what calls leave alone, and the end of 512 bytes of stack. */
export const R0 = 0;
export const R1 = 1;
export const R2 = 2;
export const R3 = 3;
export const R4 = 4;
export const R5 = 5;
export const R6 = 6;
export const R7 = 7;
export const R8 = 8;
export const R9 = 9;
export const R10 = 10;

/** Operations on 64 bits, and comparisons without sign. */
export const ALU_OPS = { add: BPF_ADD, sub: BPF_SUB, mul: BPF_MUL, and: BPF_AND, mov: BPF_MOV } as const;
export const JUMPS = { eq: BPF_JEQ, gt: BPF_JGT, ne: BPF_JNE } as const;

const INSN_BYTES = BPF_INSN.size;
const { off: INSN } = BPF_INSN;
/** A jump's offset is 16 bits with a sign. */
const MAX_JUMP = 32767;

interface Jump {
  /** the instruction that jumps */
  readonly at: number;
  readonly label: string;
}

/** Instructions, one call each, in order. `size` is one of BPF_B, BPF_H, BPF_W, BPF_DW. */
export class BpfAssembler {
  readonly #code: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #jumps: Jump[] = [];

  #emit(code: number, dst: number, src: number, off: number, imm: number): this {
    const at = this.#code.length;
    for (let i = 0; i < INSN_BYTES; i++) this.#code.push(0);
    const bytes = new DataView(new ArrayBuffer(INSN_BYTES));
    bytes.setUint8(INSN.code, code);
    bytes.setUint8(INSN.regs, dst | (src << 4));
    bytes.setInt16(INSN.off, off, true);
    bytes.setInt32(INSN.imm, imm, true);
    for (let i = 0; i < INSN_BYTES; i++) this.#code[at + i] = bytes.getUint8(i);
    return this;
  }

  /** dst = dst `op` register src */
  alu(op: keyof typeof ALU_OPS, dst: number, src: number): this {
    return this.#emit(BPF_ALU64 | ALU_OPS[op] | BPF_X, dst, src, 0, 0);
  }

  /** dst = dst `op` number */
  aluImm(op: keyof typeof ALU_OPS, dst: number, imm: number): this {
    return this.#emit(BPF_ALU64 | ALU_OPS[op] | BPF_K, dst, 0, 0, imm);
  }

  /** Turns the lowest `bits` (16, 32, 64) of dst from big-endian to the CPU's order; what is above them becomes zero. */
  fromBigEndian(dst: number, bits: number): this {
    return this.#emit(BPF_ALU | BPF_END | BPF_TO_BE, dst, 0, 0, bits);
  }

  /** dst = memory at src + off, without sign */
  load(size: number, dst: number, src: number, off: number): this {
    return this.#emit(BPF_LDX | BPF_MEM | size, dst, src, off, 0);
  }

  /** memory at dst + off = src */
  store(size: number, dst: number, off: number, src: number): this {
    return this.#emit(BPF_STX | BPF_MEM | size, dst, src, off, 0);
  }

  /** memory at dst + off = number */
  storeImm(size: number, dst: number, off: number, imm: number): this {
    return this.#emit(BPF_ST | BPF_MEM | size, dst, 0, off, imm);
  }

  /** Adds src to the 8 bytes at dst + off, in one step that nobody sees half of. */
  atomicAdd(dst: number, off: number, src: number): this {
    return this.#emit(BPF_STX | BPF_ATOMIC | BPF_DW, dst, src, off, BPF_ADD);
  }

  /** dst = the map of this descriptor */
  loadMap(dst: number, fd: number): this {
    return this.#emit(BPF_LD | BPF_IMM | BPF_DW, dst, BPF_PSEUDO_MAP_FD, 0, fd).#emit(0, 0, 0, 0, 0);
  }

  /** Calls one of the kernel's functions, BPF_FUNC_…: arguments in R1 to R5, which are lost, its answer in R0. */
  call(helper: number): this {
    return this.#emit(BPF_JMP | BPF_CALL, 0, 0, 0, helper);
  }

  /** Goes to the label if dst compares so with register src. */
  jump(test: keyof typeof JUMPS, dst: number, src: number, label: string): this {
    return this.#jumpTo(label).#emit(BPF_JMP | JUMPS[test] | BPF_X, dst, src, 0, 0);
  }

  /** Goes to the label if dst compares so with the number. */
  jumpImm(test: keyof typeof JUMPS, dst: number, imm: number, label: string): this {
    return this.#jumpTo(label).#emit(BPF_JMP | JUMPS[test] | BPF_K, dst, 0, 0, imm);
  }

  /** Goes to the label. */
  goto(label: string): this {
    return this.#jumpTo(label).#emit(BPF_JMP | BPF_JA, 0, 0, 0, 0);
  }

  /** Ends the program; its answer is in R0. */
  exit(): this {
    return this.#emit(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
  }

  /** Names the place of the next instruction. Throws RangeError if the name is used. */
  label(name: string): this {
    if (this.#labels.has(name)) throw new RangeError(`two labels ${name}`);
    this.#labels.set(name, this.#code.length / INSN_BYTES);
    return this;
  }

  #jumpTo(label: string): this {
    this.#jumps.push({ at: this.#code.length / INSN_BYTES, label });
    return this;
  }

  /** The program as BPF_PROG_LOAD takes it: 8 bytes an instruction. Throws RangeError for a jump to nowhere, too far, or back. */
  assemble(): Uint8Array {
    const bytes = Uint8Array.from(this.#code);
    const view = new DataView(bytes.buffer);
    for (const { at, label } of this.#jumps) {
      const to = this.#labels.get(label);
      if (to === undefined) throw new RangeError(`no label ${label}`);
      const distance = to - at - 1;
      if (distance < 0 || distance > MAX_JUMP) throw new RangeError(`a jump of ${distance} to ${label}`);
      view.setInt16(at * INSN_BYTES + INSN.off, distance, true);
    }
    return bytes;
  }
}
