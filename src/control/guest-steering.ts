/**
 * Which queue of an uplink a guest's frames come by: one that the guest's own lcore polls, so that no other lcore fills its ring. Any
 * queue would do: what has no entry comes by the first and is switched like everything else.
 */
import type { SteeringTable } from '../port/steering.ts';

interface SteeredGuest {
  readonly mac: Uint8Array;
  readonly vlans: readonly number[];
  /** index of its lcore */
  readonly lcore: number;
  /** another for each guest of that lcore */
  readonly turn: number;
}

export class GuestSteering {
  readonly #lcores: number;
  readonly #onFull: () => void;
  /** by device number */
  readonly #guests = new Map<number, SteeredGuest>();
  readonly #tables = new Set<SteeringTable>();

  /** tables that have been told to be full */
  readonly #full = new WeakSet<SteeringTable>();

  /**
   * @param lcores how many lcores there are: queue n belongs to lcore n modulo their number
   * @param onFull told once for each table that has no room for a guest
   */
  constructor(lcores: number, onFull: () => void) {
    this.#lcores = lcores;
    this.#onFull = onFull;
  }

  /** An uplink whose table is to have all guests from now on. Throws SysError. */
  addTable(table: SteeringTable): void {
    this.#tables.add(table);
    for (const guest of this.#guests.values()) this.#enter(table, guest);
  }

  /** The uplink is closed. */
  removeTable(table: SteeringTable): void {
    this.#tables.delete(table);
  }

  /** Frames to `mac`, 6 bytes, in one of `vlans` (0: without a tag) are for device `id`, and no others. Throws SysError. */
  add(id: number, mac: Uint8Array, vlans: readonly number[], lcore: number): void {
    this.remove(id);
    const turns = new Set([...this.#guests.values()].filter((guest) => guest.lcore === lcore).map(({ turn }) => turn));
    let turn = 0;
    while (turns.has(turn)) turn++;
    const guest = { mac, vlans, lcore, turn };
    this.#guests.set(id, guest);
    for (const table of this.#tables) this.#enter(table, guest);
  }

  /** The device has gone. */
  remove(id: number): void {
    const guest = this.#guests.get(id);
    if (guest === undefined) return;
    this.#guests.delete(id);
    for (const table of this.#tables) for (const vlan of guest.vlans) table.remove(guest.mac, vlan);
    // an address that has moved to another device is that one's
    for (const heir of this.#guests.values()) {
      if (Buffer.compare(heir.mac, guest.mac) === 0) for (const table of this.#tables) this.#enter(table, heir);
    }
  }

  #enter(table: SteeringTable, { mac, vlans, lcore, turn }: SteeredGuest): void {
    const queue = queueOf(turn, lcore, this.#lcores, table.queues);
    for (const vlan of vlans) {
      if (table.add(mac, vlan, queue) || this.#full.has(table)) continue;
      this.#full.add(table);
      this.#onFull();
    }
  }
}

/** One of the queues that lcore `lcore` polls, another for each turn; if it polls none, one of any. */
export function queueOf(turn: number, lcore: number, lcores: number, queues: number): number {
  const own = Math.ceil((queues - lcore) / lcores);
  return own > 0 ? lcore + lcores * (turn % own) : turn % queues;
}
