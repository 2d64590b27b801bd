/**
 * Malformed descriptor chains, for either direction.
 */
import { VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import type { RamPlace } from './ram.ts';
import type { Format, Piece, RawRing } from './raw-ring.ts';

/** Memory for a chain: its data and an indirect table; the first guest address of all memory, and the first behind it. */
export interface Layout {
  readonly data: RamPlace;
  readonly table: RamPlace;
  readonly first: number;
  readonly end: number;
}

export interface BadChain {
  readonly name: string;
  /** the fault's name in FAULTS */
  readonly fault: string;
  /** indirect tables are negotiated, unless this is false */
  readonly indirect?: boolean;
  /** Writes the chain. @returns its head */
  build(ring: RawRing, layout: Layout): number;
}

/** Descriptors that the tests use for nothing else. */
const HEAD = 20;
const IDS = [HEAD, 21, 22, 23];
const ENTRY = 16;
const NEXT = VRING_DESC_F_NEXT;
const INDIRECT = VRING_DESC_F_INDIRECT;
const HEADER = 12;

/** @param direction VRING_DESC_F_WRITE for a receive ring, 0 for a transmit ring */
export function badChains(direction: number, format: Format): BadChain[] {
  const wrong = direction ^ VRING_DESC_F_WRITE;
  /** One descriptor. */
  const single = (name: string, fault: string, piece: (layout: Layout) => Piece, flags = direction): BadChain => ({
    name,
    fault,
    build(ring, layout) {
      ring.describe(HEAD, piece(layout), flags, HEAD);
      return HEAD;
    },
  });
  /** A fair descriptor, and then another. */
  const second = (
    name: string,
    fault: string,
    piece: (layout: Layout) => Piece,
    flags = direction,
    next = 0,
  ): BadChain => ({
    name,
    fault,
    build(ring, layout) {
      ring.describe(HEAD, { addr: layout.data.addr, len: HEADER }, direction | NEXT, IDS[1]);
      ring.describe(IDS[1], piece(layout), flags, next);
      return HEAD;
    },
  });
  /** An indirect table of three fair entries, then changed by `spoil`; `len` is its length as told. */
  const table = (
    name: string,
    fault: string,
    spoil: (ring: RawRing, layout: Layout) => void,
    len = 3 * ENTRY,
    flags = INDIRECT,
  ): BadChain => ({
    name,
    fault,
    build(ring, layout) {
      const pieces = [0, 1, 2].map((i) => ({ addr: layout.data.addr + 400 * i, len: 400 }));
      ring.chain([0, 1, 2], pieces, direction, layout.table.off);
      ring.describe(HEAD, { addr: layout.table.addr, len }, flags, IDS[1]);
      ring.describe(IDS[1], pieces[0], direction);
      spoil(ring, layout);
      return HEAD;
    },
  });
  const fair = ({ data }: Layout): Piece => ({ addr: data.addr, len: 200 });
  const nothing = () => {};
  const entry =
    (i: number, change: (layout: Layout) => Piece, flags: number, next = i + 1) =>
    (ring: RawRing, layout: Layout) =>
      ring.describe(i, change(layout), flags, next, layout.table.off);
  /** A head beyond a ring of 64, with what could be a fair descriptor there. */
  const head = (n: number): BadChain => ({
    name: `head ${n} of a ring of 64`,
    fault: 'head_range',
    build(ring, layout) {
      if (n === ring.num) ring.describe(n, { addr: layout.first, len: 200 }, direction);
      return n;
    },
  });

  const both: BadChain[] = [
    single('a descriptor that goes on to itself', 'chain_loop', fair, direction | NEXT),
    second('a looped chain', 'chain_loop', fair, direction | NEXT, HEAD),
    single('a descriptor outside guest memory', 'address', () => ({ addr: 0, len: 200 })),
    single('a descriptor ending one byte past memory', 'address', ({ end }) => ({ addr: end - 199, len: 200 })),
    single('a descriptor behind memory', 'address', ({ end }) => ({ addr: end, len: 200 })),
    single('a descriptor of 4 GiB less one', 'address', ({ data }) => ({ addr: data.addr, len: 0xffff_ffff })),
    single('a descriptor of 2 GiB', 'address', ({ data }) => ({ addr: data.addr, len: 0x8000_0000 })),
    single('a descriptor at the last address', 'address', () => ({ addr: 2n ** 64n - 1n, len: 200 })),
    single('a descriptor that wraps into memory', 'address', ({ data }) => ({
      addr: 2n ** 64n - 8n,
      len: data.addr % 2 ** 31,
    })),
    single('an address with its top bit set', 'address', ({ data }) => ({
      addr: BigInt(data.addr) + 2n ** 63n,
      len: 200,
    })),
    single('an address 2^32 too high', 'address', ({ data }) => ({ addr: data.addr + 2 ** 32, len: 200 })),
    single('an address 2^33 above the memory at hand', 'address', ({ first }) => ({ addr: first + 2 ** 33, len: 200 })),
    second('a second descriptor outside guest memory', 'address', ({ end }) => ({ addr: end - 1, len: 2 })),
    single('a descriptor of length zero', 'zero_length', ({ data }) => ({ addr: data.addr, len: 0 })),
    single(
      'a looping descriptor of length zero',
      'zero_length',
      ({ data }) => ({ addr: data.addr, len: 0 }),
      direction | NEXT,
    ),
    second('a second descriptor of length zero', 'zero_length', ({ data }) => ({ addr: data.addr, len: 0 })),
    single('a descriptor of the other direction', 'direction', fair, wrong),
    second('a second descriptor of the other direction', 'direction', fair, wrong),
    table('an indirect table with NEXT', 'indirect', nothing, 3 * ENTRY, INDIRECT | NEXT),
    table('an indirect table of 47 bytes', 'indirect', nothing, 47),
    table('an indirect table of 8 bytes', 'indirect', nothing, 8),
    table('an indirect table of no bytes', 'indirect', nothing, 0),
    table('an indirect table of 4 GiB less 16', 'indirect', nothing, 0xffff_fff0),
    table('an indirect table of 32769 entries', 'indirect', nothing, 32769 * ENTRY),
    { ...table('an indirect table that was not negotiated', 'indirect', nothing), indirect: false },
    single('an indirect table outside guest memory', 'address', () => ({ addr: 0, len: 48 }), INDIRECT),
    single('an indirect table ending past memory', 'address', ({ end }) => ({ addr: end - 32, len: 48 }), INDIRECT),
    table(
      'an indirect entry of length zero',
      'zero_length',
      entry(1, ({ data }) => ({ addr: data.addr, len: 0 }), direction | NEXT),
    ),
    table('an indirect entry of the other direction', 'direction', entry(1, fair, wrong | NEXT)),
    table(
      'an indirect entry outside guest memory',
      'address',
      entry(1, ({ end }) => ({ addr: end - 9, len: 10 }), direction | NEXT),
    ),
    single('a chain of 11 bytes', 'no_header', ({ data }) => ({ addr: data.addr, len: HEADER - 1 })),
    {
      name: 'a chain of 5 and 6 bytes',
      fault: 'no_header',
      build(ring, { data }) {
        const pieces = [5, 6].map((len) => ({ addr: data.addr, len }));
        ring.chain(IDS, pieces, direction);
        return HEAD;
      },
    },
  ];
  const split: BadChain[] = [
    head(64),
    head(0xffff),
    second('a chain going on to descriptor 64 of 64', 'desc_range', fair, direction | NEXT, 64),
    second('a chain going on to descriptor 65535', 'desc_range', fair, direction | NEXT, 0xffff),
    table(
      'an indirect table in an indirect table',
      'indirect',
      entry(0, ({ table: t }) => ({ addr: t.addr, len: 48 }), INDIRECT),
    ),
    table(
      'an indirect table further on in one',
      'indirect',
      entry(2, ({ table: t }) => ({ addr: t.addr, len: 48 }), INDIRECT),
    ),
    table('an indirect entry going on past its table', 'desc_range', entry(1, fair, direction | NEXT, 3), 3 * ENTRY),
    table('an indirect entry going on to 65535', 'desc_range', entry(0, fair, direction | NEXT, 0xffff)),
    table('a looped indirect table', 'chain_loop', entry(2, fair, direction | NEXT, 0)),
    table('an indirect entry that goes on to itself', 'chain_loop', entry(1, fair, direction | NEXT, 1)),
  ];
  const packed: BadChain[] = [
    table('an indirect table behind a descriptor of its chain', 'indirect', (ring, { data, table: t }) => {
      ring.describe(HEAD, { addr: data.addr, len: HEADER }, direction | NEXT, IDS[1]);
      ring.describe(IDS[1], { addr: t.addr, len: 3 * ENTRY }, INDIRECT);
    }),
    {
      name: 'a chain over all the ring and further',
      fault: 'chain_loop',
      build(ring, { data }) {
        const ids = Array.from({ length: ring.num + 1 }, (_, i) => 100 + i);
        ring.chain(ids, Array(ring.num + 1).fill({ addr: data.addr, len: HEADER }), direction);
        return ids[0];
      },
    },
  ];
  return [...both, ...(format === 'split' ? split : packed)];
}
