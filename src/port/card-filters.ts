/**
 * VMDq by a card's own filters (ethtool's ntuple): {MAC address, VLAN} → queue of the interface. What the table has no room for comes by
 * the queue that the card likes. Has not been tried on a card yet.
 */
import { SysError } from '../errors.ts';
import type { RxFilters } from '../sys/ethtool.ts';
import { RX_CLS_LOC_FIRST, RX_CLS_LOC_LAST } from '../uapi/ethtool.ts';
import type { SteeringTable } from './steering.ts';

/** What drivers say of a filter that they do not take: no room, one like it, not this kind. */
const NOT_TAKEN = ['ENOSPC', 'EBUSY', 'EEXIST', 'EINVAL', 'ENOTSUP', 'E2BIG', 'ENOMEM'];

const keyOf = (mac: Uint8Array, vlan: number) => `${Buffer.from(mac).toString('hex')} ${vlan}`;

export class CardFilters implements SteeringTable {
  readonly queues: number;
  readonly #filters: Pick<RxFilters, 'table' | 'insert' | 'remove' | 'close'>;
  readonly #firstQueue: number;
  /** ours, by address and VLAN */
  readonly #location = new Map<string, number>();
  readonly #special: boolean;
  /** locations that are taken, by us or by others; of a card without special ones */
  readonly #taken: Set<number>;
  readonly #size: number;

  /**
   * @param filters owned from now on, unless this throws SysError: ENOTSUP: the card has none
   * @param firstQueue queue 0 is this one of the interface
   */
  constructor(filters: Pick<RxFilters, 'table' | 'insert' | 'remove' | 'close'>, firstQueue: number, queues: number) {
    const { taken, size, special } = filters.table();
    this.#filters = filters;
    this.#firstQueue = firstQueue;
    this.queues = queues;
    this.#special = special;
    this.#size = size;
    this.#taken = new Set(taken);
  }

  add(mac: Uint8Array, vlan: number, queue: number): boolean {
    this.remove(mac, vlan);
    const location = this.#locationFor(vlan);
    if (location < 0) return false;
    try {
      const at = this.#filters.insert({ mac, vlan, queue: this.#firstQueue + queue, location });
      this.#location.set(keyOf(mac, vlan), at);
      this.#taken.add(at);
      return true;
    } catch (error) {
      if (error instanceof SysError && NOT_TAKEN.includes(error.code)) return false;
      throw error;
    }
  }

  /** The first match counts: filters without a VLAN, which match every one, are behind those with. @returns −1: the table is full */
  #locationFor(vlan: number): number {
    if (this.#special) return vlan === 0 ? RX_CLS_LOC_LAST : RX_CLS_LOC_FIRST;
    if (vlan === 0) {
      for (let at = this.#size - 1; at >= 0; at--) if (!this.#taken.has(at)) return at;
    } else for (let at = 0; at < this.#size; at++) if (!this.#taken.has(at)) return at;
    return -1;
  }

  remove(mac: Uint8Array, vlan: number): boolean {
    const key = keyOf(mac, vlan);
    const at = this.#location.get(key);
    if (at === undefined) return false;
    this.#location.delete(key);
    this.#taken.delete(at);
    try {
      this.#filters.remove(at);
    } catch (error) {
      // somebody else has removed it, or the card has gone
      if (!(error instanceof SysError) || !['ENOENT', 'ENODEV', 'EINVAL'].includes(error.code)) throw error;
    }
    return true;
  }

  /** The card does not say. */
  counts(): undefined {
    return undefined;
  }

  /** Takes our filters off the card. */
  close(): void {
    for (const key of [...this.#location.keys()]) {
      const [mac, vlan] = key.split(' ');
      this.remove(Buffer.from(mac, 'hex'), Number(vlan));
    }
    this.#filters.close();
  }
}
