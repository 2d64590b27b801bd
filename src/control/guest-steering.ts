/**
 * Which queue of an uplink a guest's frames come by: one that the guest's own lcore polls, so that no other lcore fills its ring. Any
 * queue would do: what has no entry comes by the first and is switched like everything else.
 */
import type { Steering } from '../port/steering.ts';

interface SteeredGuest {
  readonly mac: Uint8Array;
  readonly vlans: readonly number[];
  /** index of its lcore */
  readonly lcore: number;
}

export class GuestSteering {
  readonly #lcores: number;
  /** by device number */
  readonly #guests = new Map<number, SteeredGuest>();
  readonly #tables = new Set<Steering>();

  /** @param lcores how many lcores there are: queue n belongs to lcore n modulo their number */
  constructor(lcores: number) {
    this.#lcores = lcores;
  }

  /** An uplink whose table is to have all guests from now on. Throws SysError. */
  addTable(table: Steering): void {
    this.#tables.add(table);
    for (const [id, guest] of this.#guests) this.#enter(table, id, guest);
  }

  /** The uplink is closed. */
  removeTable(table: Steering): void {
    this.#tables.delete(table);
  }

  /**
   * Frames to `mac`, 6 bytes, in one of `vlans` (0: without a tag) are for device `id`, and no others. Throws SysError (E2BIG: a table is
   * full).
   */
  add(id: number, mac: Uint8Array, vlans: readonly number[], lcore: number): void {
    this.remove(id);
    const guest = { mac, vlans, lcore };
    this.#guests.set(id, guest);
    for (const table of this.#tables) this.#enter(table, id, guest);
  }

  /** The device has gone. */
  remove(id: number): void {
    const guest = this.#guests.get(id);
    if (guest === undefined) return;
    this.#guests.delete(id);
    for (const table of this.#tables) for (const vlan of guest.vlans) table.remove(guest.mac, vlan);
    // an address that has moved to another device is that one's
    for (const [other, heir] of this.#guests) {
      if (Buffer.compare(heir.mac, guest.mac) === 0) for (const table of this.#tables) this.#enter(table, other, heir);
    }
  }

  #enter(table: Steering, id: number, { mac, vlans, lcore }: SteeredGuest): void {
    const queue = queueOf(id, lcore, this.#lcores, table.queues);
    for (const vlan of vlans) table.add(mac, vlan, queue);
  }
}

/** One of the queues that lcore `lcore` polls, another for each device; if it polls none, one of any. */
export function queueOf(id: number, lcore: number, lcores: number, queues: number): number {
  const own = Math.ceil((queues - lcore) / lcores);
  return own > 0 ? lcore + lcores * (id % own) : id % queues;
}
