/** Our layouts and constants of AF_XDP and bpf(2) against the C headers of this machine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as bpf from '../../src/uapi/bpf.ts';
import * as ethtool from '../../src/uapi/ethtool.ts';
import type { Layout } from '../../src/uapi/layout.ts';
import * as xdp from '../../src/uapi/xdp.ts';
import { evaluateC, hasGcc } from './c-probe.ts';

const HEADERS = [
  'sys/socket.h',
  'linux/types.h',
  'linux/bpf.h',
  'linux/if_xdp.h',
  'linux/if_link.h',
  'linux/if.h',
  'linux/ethtool.h',
  'linux/sockios.h',
];
/** Macros of headers that Debian 12 does not have yet. */
const NEW = ['XDP_USE_SG', 'XDP_PKT_CONTD'];
const skip = hasGcc() || process.env.CI === 'true' ? false : 'there is no gcc here to compile the C side with';

const WHOLE: readonly Layout<string>[] = [
  xdp.XDP_UMEM_REG_ARG,
  xdp.SOCKADDR_XDP,
  xdp.XDP_RING_OFFSET,
  xdp.XDP_MMAP_OFFSETS_ARG,
  xdp.XDP_DESC,
  xdp.XDP_STATISTICS_ARG,
  bpf.XDP_MD,
  ethtool.ETHTOOL_VALUE,
  ethtool.IFREQ,
  ethtool.ETHTOOL_FLOW_EXT,
  ethtool.ETHTOOL_RX_FLOW_SPEC,
  ethtool.ETHTOOL_RXNFC,
];
/** Of these we have the beginning only. */
const BEGINNINGS: readonly [type: string, within: string, Layout<string>][] = [
  ['struct __sk_buff', '', bpf.SK_BUFF],
  ['union bpf_attr', '', bpf.BPF_ATTR_MAP_CREATE],
  ['union bpf_attr', '', bpf.BPF_ATTR_MAP_ELEM],
  ['union bpf_attr', '', bpf.BPF_ATTR_PROG_LOAD],
  ['union bpf_attr', 'link_create.', bpf.BPF_ATTR_LINK_CREATE],
];

test('AF_XDP and bpf: struct layouts are those of the C headers', { skip }, () => {
  const ours = new Map<string, bigint>();
  for (const { name, size, off } of WHOLE) {
    ours.set(`sizeof(struct ${name})`, BigInt(size));
    for (const [field, at] of Object.entries(off)) ours.set(`offsetof(struct ${name}, ${field})`, BigInt(at));
  }
  for (const [type, within, { off }] of BEGINNINGS)
    for (const [field, at] of Object.entries(off)) ours.set(`offsetof(${type}, ${within}${field})`, BigInt(at));
  // where the locations begin: right behind their number
  ours.set('offsetof(struct ethtool_rxnfc, rule_locs)', BigInt(ethtool.ETHTOOL_RXNFC.off.rule_cnt + 4));
  const { off, size } = bpf.BPF_INSN;
  ours.set('sizeof(struct bpf_insn)', BigInt(size));
  for (const field of ['code', 'off', 'imm'] as const)
    ours.set(`offsetof(struct bpf_insn, ${field})`, BigInt(off[field]));
  assert.deepEqual(evaluateC(HEADERS, new Map([...ours.keys()].map((one) => [one, undefined]))), ours);
});

test('bpf: the registers of an instruction are the halves of its second byte', { skip }, () => {
  const insn = (fields: string) => `((union { struct bpf_insn i; unsigned char b[8]; }) { .i = { ${fields} } }).b[1]`;
  const expressions = [insn('.dst_reg = 3, .src_reg = 10'), insn('.dst_reg = 15')];
  const theirs = evaluateC(HEADERS, new Map(expressions.map((one) => [one, undefined])));
  assert.deepEqual([...theirs.values()], [0xa3n, 0x0fn]);
  assert.equal(bpf.BPF_INSN.off.regs, 1);
});

test('AF_XDP and bpf: constants are those of the C headers', { skip }, () => {
  const ours = new Map<string, bigint>();
  for (const [name, value] of [bpf, xdp, ethtool].flatMap((module) => Object.entries<unknown>(module)))
    if (typeof value === 'number') ours.set(name, BigInt(value));
  const condition = (name: string) => (NEW.includes(name) ? name : undefined);
  const theirs = evaluateC(HEADERS, new Map([...ours.keys()].map((name) => [name, condition(name)])));
  for (const name of NEW) if (!theirs.has(name)) ours.delete(name);
  assert.deepEqual(theirs, ours);
});
