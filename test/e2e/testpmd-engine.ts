/** testpmd's engine for tests: with the settings that testpmd has when nothing is said. */
import assert from 'node:assert/strict';
import { parseVdevs } from '../../src/port/vdev.ts';
import type { ForwardConfig } from '../../src/testpmd/engine.ts';
import { ForwardEngine } from '../../src/testpmd/forward-engine.ts';

/** Time for everything that takes milliseconds, on a busy machine. */
export const PATIENCE_MS = 20_000;

const opened = new Set<ForwardEngine>();

/** Engines that a failed test has left behind would keep its process alive. */
export async function closeEngines(): Promise<void> {
  for (const engine of opened) await engine.close();
}

export const defaults = (): ForwardConfig => ({
  mode: 'mac',
  retry: false,
  retryDelay: 1,
  retryNum: 64,
  burst: 32,
  txpkts: [64],
  ethPeers: new Map(),
  rxq: 1,
  txq: 1,
  cores: 1,
});

/** An engine with these ports; what they wait for is written to `waits`. */
export async function engineOf(
  vdevs: readonly string[],
  config: Partial<ForwardConfig> = {},
  waits: string[] = [],
  failures: Pick<string[], 'push'> = { push: (reason) => assert.fail(reason) },
): Promise<ForwardEngine> {
  const engine = await ForwardEngine.open({
    vdevs: parseVdevs(vdevs),
    config: { ...defaults(), ...config },
    onWait: (text) => waits.push(text),
  });
  engine.onFailure((reason) => failures.push(reason));
  opened.add(engine);
  return engine;
}

/** The `--vdev` argument of a virtio-user port. */
export function userPort(index: number, path: string, keys: Record<string, string | number> = {}): string {
  return [`net_virtio_user${index}`, `path=${path}`, ...Object.entries(keys).map(([k, v]) => `${k}=${v}`)].join(',');
}
