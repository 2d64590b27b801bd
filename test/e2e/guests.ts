/** What tests have Linux guests do. */
import assert from 'node:assert/strict';
import type { ShellResult } from '../peers/guest-agent.ts';

/** A guest that runs shell commands. */
interface Guest {
  sh(command: string, timeoutMs?: number): Promise<ShellResult>;
}

/** Every one of three pings must be answered. */
export async function assertPing(from: Guest, ip: string, more = ''): Promise<void> {
  const { status, output } = await from.sh(`ping -c 3 -i 0.1 -W 5 ${more} ${ip}`, 30_000);
  assert.equal(status, 0, output);
}

/** Waits until a guest answers again: its driver needs a moment to come back. @returns how long it took, ms */
export async function untilPing(from: Guest, ip: string, ms = 20_000): Promise<number> {
  const start = performance.now();
  for (;;) {
    const { status, output } = await from.sh(`ping -c 1 -W 1 ${ip}`);
    const took = performance.now() - start;
    if (status === 0) return took;
    assert.ok(took < ms, `no answer from ${ip} within ${ms} ms\n${output}`);
  }
}
