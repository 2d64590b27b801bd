/**
 * Which guest's lane each {address, VLAN} of an uplink goes to: the tables in the kernel that the uplink's program looks into.
 */
import { STEER_KEY_BYTES, STEER_VALUE_BYTES } from '../net/steering-program.ts';
import type { LaneMaps } from '../net/zero-copy-program.ts';
import { BpfMap, mapIndex } from '../sys/bpf.ts';
import { BPF_MAP_TYPE_DEVMAP, BPF_MAP_TYPE_HASH } from '../uapi/bpf.ts';
import { steerKey } from './steering.ts';

/** Lanes, and entries of them, at most. */
const MAX_LANES = 1024;
const MAX_ENTRIES = 4096;

/** The uplink's interface, as lanes know it. */
export interface LaneExit {
  readonly name: string;
  readonly index: number;
  /** the network namespace that it is in, undefined for this process's */
  readonly netns: string | undefined;
  readonly mtu: number;
}

export class LaneSteering {
  readonly exit: LaneExit;
  readonly #table: BpfMap;
  readonly #ends: BpfMap;
  /** lanes by key */
  readonly #owners = new Map<string, number>();
  #closed = false;

  /** Throws SysError: EPERM, ENOSYS with what to do. */
  constructor(exit: LaneExit) {
    this.exit = exit;
    this.#table = new BpfMap(BPF_MAP_TYPE_HASH, STEER_KEY_BYTES, STEER_VALUE_BYTES, MAX_ENTRIES, 'lanes');
    try {
      this.#ends = new BpfMap(BPF_MAP_TYPE_DEVMAP, 4, 4, MAX_LANES, 'lane_ends');
    } catch (error) {
      this.#table.close();
      throw error;
    }
  }

  /** What the uplink's program needs besides its sockets. */
  get maps(): Omit<LaneMaps, 'sockets'> {
    return { table: this.#table.fd, ends: this.#ends.fd };
  }

  /** Lane `lane` begins at interface `index` of the calling thread's namespace. Throws RangeError, SysError. */
  setEnd(lane: number, index: number): void {
    if (lane >= MAX_LANES) throw new RangeError(`lane ${lane} of ${MAX_LANES}`);
    this.#ends.update(mapIndex(lane), mapIndex(index));
  }

  /** The lane is gone. */
  removeEnd(lane: number): void {
    if (this.#closed) return;
    this.#ends.delete(mapIndex(lane));
  }

  /** From now on frames to `mac` (6 bytes) with this VLAN's tag, or with none for VLAN 0, go to the lane. Throws SysError (E2BIG). */
  add(mac: Uint8Array, vlan: number, lane: number): void {
    const key = steerKey(mac, vlan);
    this.#table.update(key, mapIndex(lane));
    this.#owners.set(Buffer.from(key).toString('hex'), lane);
  }

  /** Frames to `mac` in the VLAN go to the switch again, unless another lane has them meanwhile. */
  remove(mac: Uint8Array, vlan: number, lane: number): void {
    const key = steerKey(mac, vlan);
    const name = Buffer.from(key).toString('hex');
    if (this.#closed || this.#owners.get(name) !== lane) return;
    this.#owners.delete(name);
    this.#table.delete(key);
  }

  /** Closes the maps; a program that uses them goes on. */
  close(): void {
    this.#closed = true;
    this.#table.close();
    this.#ends.close();
  }
}
