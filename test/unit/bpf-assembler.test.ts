/** The assembler of the kernel's programs against instructions as RFC 9669 encodes them, and the programs made with it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BpfAssembler, R0, R1, R2, R3, R6, R10 } from '../../src/net/bpf-assembler.ts';
import { fanoutProgram, xdpProgram } from '../../src/net/steering-program.ts';
import { BPF_B, BPF_DW, BPF_H, BPF_W } from '../../src/uapi/bpf.ts';

/** As hexadecimal, an instruction a word: opcode, registers, offset, immediate. */
const listing = (program: Uint8Array) => Buffer.from(program).toString('hex').match(/.{16}/g);
const bytesOf = (fill: (program: BpfAssembler) => BpfAssembler) => listing(fill(new BpfAssembler()).assemble());

test('bpf assembler: each instruction has the bytes of RFC 9669', () => {
  const table: [string, (program: BpfAssembler) => BpfAssembler][] = [
    ['0f21000000000000', (p) => p.alu('add', R1, R2)],
    ['1f21000000000000', (p) => p.alu('sub', R1, R2)],
    ['bfa2000000000000', (p) => p.alu('mov', R2, R10)],
    ['b7000000feffffff', (p) => p.aluImm('mov', R0, -2)],
    ['07020000f8ffffff', (p) => p.aluImm('add', R2, -8)],
    ['2702000003000000', (p) => p.aluImm('mul', R2, 3)],
    ['57050000ff0f0000', (p) => p.aluImm('and', 5, 0xfff)],
    ['dc05000010000000', (p) => p.fromBigEndian(5, 16)],
    ['6163040000000000', (p) => p.load(BPF_W, R3, R6, 4)],
    ['69650c0000000000', (p) => p.load(BPF_H, 5, R6, 12)],
    ['7165ffff00000000', (p) => p.load(BPF_B, 5, R6, -1)],
    ['7965000000000000', (p) => p.load(BPF_DW, 5, R6, 0)],
    ['635af8ff00000000', (p) => p.store(BPF_W, R10, -8, 5)],
    ['7a0af8ff00000000', (p) => p.storeImm(BPF_DW, R10, -8, 0)],
    ['620af0ff04000000', (p) => p.storeImm(BPF_W, R10, -16, 4)],
    ['db10080000000000', (p) => p.atomicAdd(R0, 8, R1)],
    ['8500000033000000', (p) => p.call(51)],
    ['9500000000000000', (p) => p.exit()],
  ];
  for (const [hex, fill] of table) assert.deepEqual(bytesOf(fill), [hex]);
});

test('bpf assembler: the address of a map takes two instructions', () => {
  assert.deepEqual(
    bytesOf((p) => p.loadMap(R1, 7)),
    ['1811000007000000', '0000000000000000'],
  );
});

test('bpf assembler: jumps count from the next instruction to their label', () => {
  const program = new BpfAssembler()
    .jumpImm('eq', R0, 0, 'end')
    .jumpImm('ne', R1, -1, 'next')
    .label('next')
    .jump('gt', R1, R2, 'end')
    .goto('end')
    .loadMap(R1, 1)
    .label('end')
    .exit();
  assert.deepEqual(listing(program.assemble()), [
    '1500050000000000',
    '55010000ffffffff',
    '2d21030000000000',
    '0500020000000000',
    ...['1811000001000000', '0000000000000000'],
    '9500000000000000',
  ]);
});

test('bpf assembler: a jump to nowhere, back or too far, and two labels of one name are refused', () => {
  assert.throws(() => new BpfAssembler().goto('there').assemble(), /no label there/);
  assert.throws(() => new BpfAssembler().label('here').goto('here').assemble(), /a jump of -1 to here/);
  const far = new BpfAssembler().goto('far');
  for (let i = 0; i < 32768; i++) far.exit();
  assert.throws(() => far.label('far').exit().assemble(), /a jump of 32768 to far/);
  assert.throws(() => new BpfAssembler().label('a').label('a'), /two labels a/);
});

test('steering programs: the plain one is what redirects to the socket of the receive queue', () => {
  assert.deepEqual(listing(xdpProgram(9, 4)), [
    'bf16000000000000', // r6 = r1
    '6169100000000000', // r9 = r6->rx_queue_index
    'b707000000000000', // r7 = 0
    'bf92000000000000', // r2 = r9
    '2702000004000000', // r2 *= 4
    '0f72000000000000', // r2 += r7
    ...['1811000009000000', '0000000000000000'], // r1 = map 9
    'b703000002000000', // r3 = XDP_PASS
    '8500000033000000', // redirect_map
    '9500000000000000', // exit
  ]);
});

test('steering programs: the fanout one is what answers the queue of an address and a VLAN', () => {
  assert.deepEqual(listing(fanoutProgram({ table: 5, counts: 6, queues: 3 })), [
    'bf16000000000000', // r6 = r1
    '6168000000000000', // r8 = r6->len
    '070800000e000000', // r8 += 14
    '7a0af8ff00000000', // the key is zero
    'b702000000000000', // r2 = 0
    'bfa3000000000000', // r3 = r10
    '07030000f8ffffff', // r3 -= 8
    'b704000006000000', // r4 = 6
    'b705000000000000', // r5 = BPF_HDR_START_MAC
    '8500000044000000', // skb_load_bytes_relative: the destination
    '6162180000000000', // r2 = r6->vlan_tci
    '57020000ff0f0000', // r2 &= 0xfff
    '6b2afeff00000000', // the key's VLAN
    ...['1811000005000000', '0000000000000000'], // r1 = the table
    'bfa2000000000000', // r2 = r10
    '07020000f8ffffff', // r2 -= 8
    '8500000001000000', // map_lookup_elem
    '1500030000000000', // none: 3 on
    '6107000000000000', // r7 = the queue
    '637af0ff00000000', // its counter
    '0500020000000000', // 2 on
    'b707000000000000', // r7 = 0
    '620af0ff03000000', // the last counter
    ...['1811000006000000', '0000000000000000'], // r1 = the counters
    'bfa2000000000000', // r2 = r10
    '07020000f0ffffff', // r2 -= 16
    '8500000001000000', // map_lookup_elem
    '1500030000000000', // none: 3 on
    'b701000001000000', // r1 = 1
    'db10000000000000', // packets
    'db80080000000000', // bytes
    'bf70000000000000', // r0 = r7
    '9500000000000000', // exit
  ]);
});
