/** What tests have Linux guests do. */
import assert from 'node:assert/strict';
import type { QemuGuest } from '../peers/qemu.ts';

/** Every one of three pings must be answered. */
export async function assertPing(from: QemuGuest, ip: string, more = ''): Promise<void> {
  const { status, output } = await from.sh(`ping -c 3 -i 0.1 -W 5 ${more} ${ip}`, 30_000);
  assert.equal(status, 0, output);
}

/** Waits until a guest answers again: its driver needs a moment to come back. @returns how long it took, ms */
export async function untilPing(from: QemuGuest, ip: string, ms = 20_000): Promise<number> {
  const start = performance.now();
  for (;;) {
    const { status, output } = await from.sh(`ping -c 1 -W 1 ${ip}`);
    const took = performance.now() - start;
    if (status === 0) return took;
    assert.ok(took < ms, `no answer from ${ip} within ${ms} ms\n${output}`);
  }
}
