/** The ten ways of DPDK's virtio driver through its rings, and how to tell from testpmd's log which one it took. */
import assert from 'node:assert/strict';
import type { DpdkTestpmd, VirtioUserOptions } from './dpdk.ts';

/** Feature bits that decide on a path. */
const BITS = { mergeable: 15, packed: 34, inOrder: 35 } as const;

/** One path of DPDK's driver. */
export interface RingPath {
  readonly name: string;
  readonly ports: Pick<VirtioUserOptions, 'packed' | 'mrgRxbuf' | 'inOrder' | 'vectorized'>;
  /** what testpmd's log calls it: `virtio: using ‹rx› Rx path on port 0` */
  readonly rx: string;
  readonly tx: string;
  /** the features that must have been negotiated, and the other ones of these three not */
  readonly features: readonly (keyof typeof BITS)[];
}

type Row = readonly [name: string, ports: RingPath['ports'], rx: string, tx: string, features: RingPath['features']];

const ROWS: readonly Row[] = [
  ['split, mergeable', { mrgRxbuf: true, inOrder: false }, 'mergeable buffer', 'standard', ['mergeable']],
  ['split, non-mergeable', { mrgRxbuf: false, inOrder: false }, 'standard', 'standard', []],
  ['split, vector_rx', { mrgRxbuf: false, inOrder: false, vectorized: true }, 'vectorized', 'standard', []],
  ['split, inorder mergeable', { mrgRxbuf: true, inOrder: true }, 'inorder', 'inorder', ['mergeable', 'inOrder']],
  ['split, inorder non-mergeable', { mrgRxbuf: false, inOrder: true }, 'inorder', 'inorder', ['inOrder']],
  [
    'packed, mergeable',
    { packed: true, mrgRxbuf: true, inOrder: false },
    'packed ring mergeable buffer',
    'packed ring standard',
    ['packed', 'mergeable'],
  ],
  [
    'packed, non-mergeable',
    { packed: true, mrgRxbuf: false, inOrder: false },
    'packed ring standard',
    'packed ring standard',
    ['packed'],
  ],
  [
    'packed, inorder mergeable',
    { packed: true, mrgRxbuf: true, inOrder: true },
    'packed ring mergeable buffer',
    'packed ring standard',
    ['packed', 'mergeable', 'inOrder'],
  ],
  [
    'packed, inorder non-mergeable',
    { packed: true, mrgRxbuf: false, inOrder: true },
    'packed ring standard',
    'packed ring standard',
    ['packed', 'inOrder'],
  ],
  [
    'packed, vectorized',
    { packed: true, mrgRxbuf: false, inOrder: true, vectorized: true },
    'packed ring vectorized',
    'packed ring vectorized',
    ['packed', 'inOrder'],
  ],
];

/** The paths; the last one needs a processor with AVX512, see {@link hasAvx512}. */
export const RING_PATHS: readonly RingPath[] = ROWS.map(([name, ports, rx, tx, features]) => ({
  name,
  ports,
  rx,
  tx,
  features,
}));

/** The path needs AVX512 (F, BW and VL); without, DPDK silently takes another one. */
export const needsAvx512 = ({ ports }: RingPath): boolean => ports.packed === true && ports.vectorized === true;

/** Checks that a started testpmd took the path on every one of its virtio_user ports, with the features that go with it. */
export function assertPath(testpmd: DpdkTestpmd, path: RingPath, ports = 1): void {
  const { log } = testpmd;
  const all = (pattern: RegExp) => [...log.matchAll(pattern)].map(([, found]) => found);
  for (let port = 0; port < ports; port++) {
    assert.deepEqual(all(new RegExp(`virtio: using (.*) Rx path on port ${port}`, 'g')), [path.rx], path.name);
    assert.deepEqual(all(new RegExp(`virtio: using (.*) Tx path on port ${port}`, 'g')), [path.tx], path.name);
  }
  const negotiated = all(/features after negotiate = ([0-9a-f]+)/g).map((hex) => BigInt(`0x${hex}`));
  assert.equal(negotiated.length, ports, `the features of ${ports} ports are in the log:\n${log}`);
  for (const features of negotiated) {
    for (const [name, bit] of Object.entries(BITS)) {
      const expected = path.features.includes(name as keyof typeof BITS);
      assert.equal(((features >> BigInt(bit)) & 1n) === 1n, expected, `${path.name}: feature ${name}`);
    }
  }
}
