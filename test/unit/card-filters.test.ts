/** A card's own filters: what the kernel is asked for, byte by byte, and which places they take. No card is at hand for it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SysError } from '../../src/errors.ts';
import { CardFilters } from '../../src/port/card-filters.ts';
import { insertRequest, type RxFilter, RxFilters } from '../../src/sys/ethtool.ts';
import { RX_CLS_LOC_FIRST, RX_CLS_LOC_LAST } from '../../src/uapi/ethtool.ts';
import { openFds } from '../kit/device-bench.ts';
import { mac } from '../kit/frames.ts';

const EINVAL = 22;
const ENOENT = 2;
const ENOSPC = 28;
const ENODEV = 19;

test('card filters: an address in a VLAN, and one in any, as struct ethtool_rxnfc', () => {
  const zeros = (n: number) => '00'.repeat(n);
  const golden = ({ flow, tci, mask, ring, location }: Record<'flow' | 'tci' | 'mask' | 'ring' | 'location', string>) =>
    [
      ...['32000000', zeros(4), zeros(8), flow],
      // the frame's header, and what is beside it: compared with
      ...['525412345678', zeros(46), zeros(10), tci, zeros(8)],
      // which bits of that count
      ...['ffffffffffff', zeros(46), zeros(10), mask, zeros(8), zeros(4)],
      ...[ring, zeros(4), location, zeros(4), zeros(4), zeros(4)],
    ].join('');
  const address = mac(0x12345678);
  const bytes = (filter: Omit<RxFilter, 'mac'>) =>
    Buffer.from(insertRequest({ mac: address, ...filter }).buffer).toString('hex');
  assert.equal(
    bytes({ vlan: 1001, queue: 5, location: RX_CLS_LOC_FIRST }),
    golden({ flow: '12000080', tci: '03e9', mask: '0fff', ring: '05000000', location: 'feffffff' }),
  );
  assert.equal(
    bytes({ vlan: 0, queue: 1, location: 7 }),
    golden({ flow: '12000000', tci: '0000', mask: '0000', ring: '01000000', location: '07000000' }),
  );
});

/** A card's table as its driver keeps it. */
class Card {
  readonly rules = new Map<number, RxFilter>();
  readonly #size: number;
  readonly #special: boolean;
  closed = false;

  constructor(size: number, special: boolean, taken: readonly number[] = []) {
    this.#size = size;
    this.#special = special;
    for (const location of taken) this.rules.set(location, { mac: mac(99), vlan: 9, queue: 0, location });
  }

  table() {
    return { taken: [...this.rules.keys()], size: this.#size, special: this.#special };
  }

  insert(filter: RxFilter): number {
    let { location } = filter;
    if (this.#special) {
      const all = Array.from({ length: this.#size }, (_, i) => i);
      if (location === RX_CLS_LOC_LAST) all.reverse();
      else assert.equal(location, RX_CLS_LOC_FIRST);
      location = all.find((at) => !this.rules.has(at)) ?? -1;
      if (location < 0) throw new SysError('SIOCETHTOOL', ENOSPC, 'test');
    }
    if (location >= this.#size) throw new SysError('SIOCETHTOOL', EINVAL, 'test');
    assert.ok(!this.rules.has(location), 'a place of its own');
    this.rules.set(location, { ...filter, location });
    return location;
  }

  remove(location: number): void {
    if (!this.rules.delete(location)) throw new SysError('SIOCETHTOOL', ENOENT, 'test');
  }

  close(): void {
    this.closed = true;
  }

  /** By whose filter a frame comes: of its first match. */
  queueOf(address: Uint8Array, vlan: number): number | undefined {
    const places = [...this.rules.keys()].sort((a, b) => a - b);
    const matches = (rule: RxFilter) =>
      Buffer.compare(rule.mac, address) === 0 && (rule.vlan === 0 || rule.vlan === vlan);
    const place = places.find((at) => matches(this.rules.get(at) as RxFilter));
    return place === undefined ? undefined : this.rules.get(place)?.queue;
  }
}

for (const special of [false, true])
  test(`card filters: ${special ? 'the card finds' : 'we find'} a place for each, and take away no others’`, () => {
    const card = new Card(8, special, [0, 7]);
    const filters = new CardFilters(card, 2, 3);
    assert.equal(filters.queues, 3);
    assert.equal(filters.add(mac(1), 0, 0), true);
    assert.equal(filters.add(mac(1), 1000, 1), true);
    assert.equal(filters.add(mac(2), 1001, 2), true);
    assert.deepEqual([card.queueOf(mac(1), 1000), card.queueOf(mac(1), 5), card.queueOf(mac(2), 1001)], [3, 2, 4]);
    assert.equal(card.queueOf(mac(2), 0), undefined);
    // another queue for the same is another filter in place of the first
    assert.equal(filters.add(mac(2), 1001, 0), true);
    assert.deepEqual([card.queueOf(mac(2), 1001), card.rules.size], [2, 5]);
    for (let n = 3; n < 6; n++) assert.equal(filters.add(mac(n), 7, 0), true);
    assert.equal(filters.add(mac(6), 7, 0), false, 'no room');
    assert.equal(filters.add(mac(6), 0, 0), false);
    assert.equal(filters.remove(mac(6), 7), false);
    assert.equal(filters.remove(mac(3), 7), true);
    assert.equal(filters.add(mac(6), 0, 1), true);
    // somebody has removed one of ours
    const [ours] = [...card.rules.values()].filter((rule) => Buffer.compare(rule.mac, mac(1)) === 0);
    card.remove(ours.location);
    assert.equal(filters.counts(), undefined);
    filters.close();
    assert.deepEqual([[...card.rules.keys()], card.closed], [[0, 7], true]);
  });

test('card filters: what another program does to the card is no harm, and what makes no sense is told', () => {
  const card = new Card(4, false);
  const filters = new CardFilters(card, 0, 2);
  card.insert({ mac: mac(50), vlan: 1, queue: 0, location: 0 });
  const broken = new CardFilters(
    { ...card, table: () => card.table(), insert: fails, remove: fails, close: () => {} },
    0,
    2,
  );
  assert.throws(() => broken.add(mac(1), 1, 0), /ENODEV/);
  assert.equal(filters.add(mac(1), 0, 1), true);
  filters.close();
});

function fails(): never {
  throw new SysError('SIOCETHTOOL', ENODEV, 'test');
}

test('card filters: an interface without them says so, and one that is not there', () => {
  const before = openFds();
  for (const [name, code] of [
    ['lo', 'ENOTSUP'],
    ['nosuch0', 'ENODEV'],
  ]) {
    const filters = new RxFilters(name);
    assert.throws(() => filters.table(), { code });
    assert.throws(() => filters.insert({ mac: mac(1), vlan: 0, queue: 0, location: 0 }), { code });
    assert.throws(() => filters.remove(0), { code });
    filters.close();
  }
  assert.equal(openFds(), before);
});
