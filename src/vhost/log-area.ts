/**
 * The dirty log of a guest that is being migrated: one bit a page of guest physical memory. The lcores write it.
 * @see QEMU docs/interop/vhost-user.rst "Migration"
 */
import { closeSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import { SharedMapping } from '../mem/shared-mapping.ts';
import type { WindowPool } from '../mem/window.ts';
import type { SharedArea } from './vhost-device.ts';

/** "Dirty pages are of size": VHOST_LOG_PAGE */
const LOG_PAGE = 4096;

/** Fails if a log of `size` bytes ends before the guest's memory does, at `guestEnd`: writes there could not be told. */
export function checkLogCovers(size: number, guestEnd: number, request: string): void {
  const need = Math.ceil(guestEnd / LOG_PAGE / 8);
  if (size >= need) return;
  const problem = `the dirty log has ${size} bytes, guest memory up to 0x${guestEnd.toString(16)} needs ${need}`;
  throw new ProtocolError('BAD_SHARED_AREA', request, problem);
}

/** Maps the log and takes its fd over, also on failure. @throws ProtocolError if it is no good for memory up to `guestEnd` */
export function mapLog(pool: WindowPool, area: SharedArea, guestEnd: number): SharedMapping {
  try {
    checkLogCovers(area.size, guestEnd, 'SET_LOG_BASE');
  } catch (error) {
    closeSync(area.fd);
    throw error;
  }
  return new SharedMapping(pool, area, 'the dirty log', 'SET_LOG_BASE');
}
