/** Live migration of a test guest from one QEMU to another, over QMP. */
import { waitUntil } from './process.ts';
import type { QemuGuest } from './qemu.ts';

/** How to migrate. */
export interface MigrateOptions {
  /** Memory follows after the guest has moved, page by page as it is touched. Default false. */
  readonly postcopy?: boolean;
  /** Most bytes a second. Default 1 GiB: as fast as it goes. */
  readonly bandwidth?: number;
  /** How long the guest may stand still, ms. Default 300, as QEMU has it. */
  readonly downtimeLimitMs?: number;
  /** Until it is done. Default 60 s. */
  readonly timeoutMs?: number;
  /** Called when memory has begun to move, while the guest still runs at the source. */
  readonly underway?: () => Promise<void>;
}

/** What QEMU says of a migration. */
export interface Migration {
  readonly totalMs: number;
  readonly downtimeMs: number;
  /** How often dirty pages were looked for. */
  readonly dirtySyncs: number;
  /** Bytes of guest memory sent. */
  readonly transferred: number;
}

interface QueryMigrate {
  readonly status?: string;
  readonly 'error-desc'?: string;
  readonly 'total-time'?: number;
  readonly downtime?: number;
  readonly ram?: { transferred: number; 'dirty-sync-count': number };
}

const POLL_MS = 20;

/**
 * Moves a guest to `target`, which was launched with `incoming` and the same options but for its socket. When this returns the
 * guest runs there; the source stands still, and is to be stopped. Its agent is reached through the target from now on.
 */
export async function migrate(source: QemuGuest, target: QemuGuest, options: MigrateOptions = {}): Promise<Migration> {
  const { postcopy = false, bandwidth = 2 ** 30, downtimeLimitMs = 300, timeoutMs = 60_000, underway } = options;
  const uri = `unix:${target.migrationSocket}`;
  // so that a guest that dirties its pages faster than they are sent moves all the same
  const capabilities = [{ capability: 'auto-converge', state: !postcopy }].concat([
    { capability: 'postcopy-ram', state: postcopy },
    { capability: 'events', state: true },
  ]);
  for (const guest of [target, source]) await guest.qmp('migrate-set-capabilities', { capabilities });
  await source.qmp('migrate-set-parameters', { 'max-bandwidth': bandwidth, 'downtime-limit': downtimeLimitMs });
  await target.qmp('migrate-incoming', { uri });
  await source.qmp('migrate', { uri });

  let state: QueryMigrate = {};
  const status = async (...wanted: string[]) => {
    state = (await source.qmp('query-migrate')) as QueryMigrate;
    if (['failed', 'cancelled', 'postcopy-paused'].includes(state.status ?? '')) {
      const reason = state['error-desc'] ?? 'QEMU gives no reason';
      throw new Error(`the migration is ${state.status}: ${reason}\nsource: ${source.said}\ntarget: ${target.said}`);
    }
    return wanted.includes(state.status ?? '');
  };
  const until = (what: string, ...wanted: string[]) =>
    waitUntil(`the migration of ${source.options.name} to be ${what}`, () => status(...wanted), timeoutMs, {
      everyMs: POLL_MS,
      details: () => `it is: ${JSON.stringify(state)}`,
    });

  if (underway !== undefined) {
    await until('under way', 'active', 'completed');
    await underway();
  }
  if (postcopy) {
    await until('under way', 'active', 'completed');
    await source.qmp('migrate-start-postcopy');
  }
  await until('completed', 'completed');
  const running = async () => ((await target.qmp('query-status')) as { status: string }).status === 'running';
  await waitUntil(`${target.options.name} to run`, running, timeoutMs, { everyMs: POLL_MS });
  return {
    totalMs: state['total-time'] ?? Number.NaN,
    downtimeMs: state.downtime ?? Number.NaN,
    dirtySyncs: state.ram?.['dirty-sync-count'] ?? Number.NaN,
    transferred: state.ram?.transferred ?? Number.NaN,
  };
}
