/**
 * What the switch asks of a port, whatever is behind it. All calls come from the thread that owns the port, a burst at a time:
 * that thread's only one (virtio-net/burst.ts), which all its ports know.
 */

export interface Port {
  /** The port's number: its place in the lcore's table. */
  readonly id: number;
  /** The port's block of counters (PORT_SLOTS), which this lcore writes. */
  readonly counters: Float64Array;
  /** False while what is behind the port takes no frames. */
  readonly canTransmit: boolean;
  /**
   * Stage 1: fills the burst with what has arrived on queue `queue`; sets `uniform`, `offloads` and `tagged` as well, or clears them.
   * @returns packets, 0 to 32
   */
  receive(queue: number): number;
  /**
   * Stage 3: sends packets list[from] … list[to − 1] of the burst, whose segments hold a whole frame each, and reads their bytes before
   * it returns: the next port may get other ones. Adds one to `burst.delivered` for each packet taken. @returns how many were taken; the
   * rest is dropped and counted
   */
  transmit(list: Int32Array, from: number, to: number): number;
  /**
   * Stage 4: the burst that `receive` filled from queue `queue` has gone where it goes; its buffers go back. Segments and lengths may be
   * others by now.
   */
  complete(queue: number): void;
}
