/**
 * VMDq in software: {MAC address, VLAN} → queue, as a table that a program in the kernel asks for every frame. Frames without an entry go
 * to queue 0.
 */

import { closeSync } from 'node:fs';
import { SysError } from '../errors.ts';
import {
  fanoutProgram,
  STEER_COUNT_BYTES,
  STEER_KEY_BYTES,
  STEER_KEY_VLAN,
  STEER_VALUE_BYTES,
  type SteeringMaps,
} from '../net/steering-program.ts';
import { BpfMap, loadProgram, mapIndex } from '../sys/bpf.ts';
import { setFanoutProgram } from '../sys/packet-socket.ts';
import { BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_PROG_TYPE_SOCKET_FILTER } from '../uapi/bpf.ts';

const MAC_BYTES = 6;
/** Entries that the table holds unless asked otherwise. */
const MAX_ENTRIES = 4096;
/** VLANs are numbered 0, for no tag, to 4095. */
const MAX_VLAN = 4095;

/** Frames that a program has steered, since it was loaded. */
export interface SteeredCount {
  /** frames */
  readonly packets: number;
  /** as the kernel has them: without a tag that it has taken off */
  readonly bytes: number;
}

/** What a program has steered. */
export interface SteeringCounts {
  /** by queue, those that had an entry */
  readonly queues: readonly SteeredCount[];
  /** those that had none */
  readonly unknown: SteeredCount;
}

/** Which queue each {address, VLAN} comes by. */
export interface SteeringTable {
  /** queues are numbered from 0 to n − 1 */
  readonly queues: number;
  /** From now on frames to `mac` with this VLAN's tag, or with none for VLAN 0, go to `queue`. @returns false if there is no room for that */
  add(mac: Uint8Array, vlan: number, queue: number): boolean;
  /** @returns false if there was no such entry */
  remove(mac: Uint8Array, vlan: number): boolean;
  /** undefined: nobody counts */
  counts(): SteeringCounts | undefined;
  close(): void;
}

/** Two maps of the kernel's, which live as long as this object or a program that uses them. */
export class Steering implements SteeringTable {
  readonly queues: number;
  readonly #table: BpfMap;
  readonly #counts: BpfMap;

  /** Throws SysError: EPERM, ENOSYS with what to do. @param maxEntries pairs of address and VLAN, at most */
  constructor(queues: number, maxEntries = MAX_ENTRIES) {
    if (queues < 1) throw new RangeError('steering takes a queue at least');
    this.queues = queues;
    this.#table = new BpfMap(BPF_MAP_TYPE_HASH, STEER_KEY_BYTES, STEER_VALUE_BYTES, maxEntries, 'steer_table');
    try {
      this.#counts = new BpfMap(BPF_MAP_TYPE_PERCPU_ARRAY, 4, STEER_COUNT_BYTES, queues + 1, 'steer_counts');
    } catch (error) {
      this.#table.close();
      throw error;
    }
  }

  /** What a program needs of it. */
  get maps(): SteeringMaps {
    return { table: this.#table.fd, counts: this.#counts.fd, queues: this.queues };
  }

  /**
   * From now on frames to `mac` (6 bytes) with this VLAN's tag, or with none for VLAN 0, go to `queue`, wherever they went before. Throws
   * RangeError, SysError. @returns false if the table is full: they go to queue 0
   */
  add(mac: Uint8Array, vlan: number, queue: number): boolean {
    if (!Number.isInteger(queue) || queue < 0 || queue >= this.queues)
      throw new RangeError(`queue ${queue} of ${this.queues}`);
    try {
      this.#table.update(keyOf(mac, vlan), mapIndex(queue));
      return true;
    } catch (error) {
      if (error instanceof SysError && error.code === 'E2BIG') return false;
      throw error;
    }
  }

  /** @returns false if there was no such entry */
  remove(mac: Uint8Array, vlan: number): boolean {
    return this.#table.delete(keyOf(mac, vlan));
  }

  counts(): SteeringCounts {
    const counts = Array.from({ length: this.queues + 1 }, (_, queue) => this.#countOf(queue));
    return { queues: counts.slice(0, -1), unknown: counts[this.queues] };
  }

  #countOf(queue: number): SteeredCount {
    const bytes = this.#counts.lookup(mapIndex(queue)) as Uint8Array;
    const perCpu = new BigUint64Array(bytes.buffer);
    let count = { packets: 0, bytes: 0 };
    for (let i = 0; i < perCpu.length; i += 2)
      count = { packets: count.packets + Number(perCpu[i]), bytes: count.bytes + Number(perCpu[i + 1]) };
    return count;
  }

  /** Closes the maps; programs that use them go on. */
  close(): void {
    this.#table.close();
    this.#counts.close();
  }
}

function keyOf(mac: Uint8Array, vlan: number): Uint8Array {
  if (mac.length !== MAC_BYTES) throw new RangeError(`an address of ${mac.length} bytes`);
  if (!Number.isInteger(vlan) || vlan < 0 || vlan > MAX_VLAN) throw new RangeError(`VLAN ${vlan} of 0 to ${MAX_VLAN}`);
  const key = new Uint8Array(STEER_KEY_BYTES);
  key.set(mac);
  new DataView(key.buffer).setUint16(STEER_KEY_VLAN, vlan, true);
  return key;
}

/**
 * Has the packet sockets of a fanout group share frames by the table: socket n of the group, in the order in which they have joined, is
 * queue n. The group's kind is PACKET_FANOUT_EBPF. The program stays with the group. @param fd one of its sockets. Throws SwitchError
 * (BPF_REJECTED), SysError.
 */
export function steerFanout(fd: number, steering: Steering): void {
  const program = loadProgram(BPF_PROG_TYPE_SOCKET_FILTER, fanoutProgram(steering.maps), 'steer_fanout');
  try {
    setFanoutProgram(fd, program);
  } finally {
    closeSync(program);
  }
}
