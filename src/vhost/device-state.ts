/**
 * A device's own state on its way through a migration: one transfer at a time, and how it went.
 * @see QEMU docs/interop/vhost-user.rst "Migrating back-end state"
 */
import { closeSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import type { DeviceModel } from './device-model.ts';
import { MAX_STATE_BYTES, StateTransfer } from './state-transfer.ts';
import type { StateDirection } from './vhost-device.ts';

/** The only phase there is: the guest and all vrings are stopped. */
const PHASE_STOPPED = 0;

function fail(problem: string, request = 'SET_DEVICE_STATE_FD'): never {
  throw new ProtocolError('BAD_STATE', request, problem);
}

export class DeviceState {
  readonly #model: DeviceModel;
  #transfer: StateTransfer | undefined;

  constructor(model: DeviceModel) {
    this.#model = model;
  }

  /** Starts a transfer and takes `fd` over, also on failure. @param suspended no vring runs */
  async start(direction: StateDirection, phase: number, fd: number, suspended: boolean): Promise<void> {
    let state: Uint8Array | undefined;
    try {
      if (phase !== PHASE_STOPPED) fail(`phase ${phase} is unknown, must be 0`);
      if (!suspended) fail('every vring must be stopped first');
      if (this.#transfer !== undefined) fail('CHECK_DEVICE_STATE must end the transfer before');
      if (this.#model.save === undefined || this.#model.load === undefined)
        fail('this device has no state to transfer');
      state = direction === 'save' ? await this.#model.save() : undefined;
      if (state !== undefined && state.length > MAX_STATE_BYTES) fail(`${state.length} bytes of state are too many`);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    this.#transfer =
      state === undefined
        ? StateTransfer.load(fd, (bytes) => this.#model.load?.(bytes))
        : StateTransfer.save(fd, state);
  }

  /** Resolves when the transfer has ended; ProtocolError if it failed. */
  async check(): Promise<void> {
    if (this.#transfer === undefined) fail('no state has been transferred', 'CHECK_DEVICE_STATE');
    try {
      await this.#transfer.ended;
    } finally {
      this.#transfer = undefined;
    }
  }

  /** Gives up a transfer that has not ended, so that `check` tells `problem`. */
  abort(problem: string): void {
    this.#transfer?.abort(problem);
  }

  /** Gives up and forgets. */
  reset(): void {
    this.abort('the device was reset');
    this.#transfer = undefined;
  }
}
